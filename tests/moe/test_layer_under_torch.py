"""The routed layer under what torch does to modules, and in set-ups that are odd or wrong."""

import copy
import os
import pickle
import socket
import tempfile
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from pointsman.errors import DegenerateWarning, InputError, RouteError
from pointsman.moe import FeedForwardExperts, MoE
from pointsman.moe.balance import switch
from pointsman.select import top_k, with_capacity


def layer(k: int = 2, experts: int = 4, seed: int = 0, gated: bool = True) -> MoE:
    torch.manual_seed(seed)
    bank = FeedForwardExperts(experts, 8, 16, activation="silu", gated=gated)
    router = nn.Linear(8, experts, bias=False)
    return MoE(router, partial(top_k, k=k), bank, balance=[(0.1, switch)])


def gradients(moe: nn.Module, x: Tensor, seed: Tensor) -> list[Tensor]:
    output, routing = moe(x)
    loss = (output * seed).sum() + routing.loss
    return list(torch.autograd.grad(loss, [x, *moe.parameters()]))


# -------------------------------------------------------------------- torch's transformations


def test_autocast_computes_in_its_type_and_gives_gradients_in_that_of_the_weights() -> None:
    moe, x, seed = layer(), torch.randn(20, 8, requires_grad=True), torch.randn(20, 8)
    expected = gradients(moe, x, seed)
    with torch.autocast("cpu", torch.bfloat16):
        output, routing = moe(x)
        ours = gradients(moe, x, seed)
    assert output.dtype == torch.bfloat16
    assert routing.scores.dtype == torch.bfloat16
    assert [grad.dtype for grad in ours] == [torch.float32] * len(ours)
    same = [index for index, grad in enumerate(expected) if grad.abs().max() > 0.05]
    for index in same:
        cosine = torch.cosine_similarity(ours[index].flatten(), expected[index].flatten(), dim=0)
        assert cosine > 0.99
    with torch.autocast("cpu", torch.bfloat16):
        assert layer().double()(x.detach().double())[0].dtype == torch.float64


def test_recomputed_activations_give_the_same_gradients() -> None:
    moe, x, seed = layer(), torch.randn(20, 8, requires_grad=True), torch.randn(20, 8)
    expected = gradients(moe, x, seed)
    output, routing = checkpoint(moe, x, use_reentrant=False)
    loss = (output * seed).sum() + routing.loss
    assert_close(list(torch.autograd.grad(loss, [x, *moe.parameters()])), expected)


def test_a_recompute_that_routes_another_way_does_not_count_twice() -> None:
    """The step after training reads routings that the first pass returned."""
    moe, x = layer(), torch.randn(20, 8, requires_grad=True)
    output, routing = checkpoint(moe, x, use_reentrant=False)
    before = routing.route.load()
    output.sum().backward()
    assert_close(routing.route.load(), before)
    assert int(before.sum()) == 40


def test_a_copy_is_equal_and_independent() -> None:
    moe, x = layer(), torch.randn(6, 8)
    twin = copy.deepcopy(moe)
    assert_close(twin(x)[0], moe(x)[0])
    nn.init.zeros_(twin.experts.down_EDF)  # type: ignore[union-attr, arg-type]
    assert not twin(x)[0].any()
    assert moe(x)[0].any()


def test_weights_go_through_files_and_layers_through_pickle(tmp_path: Path) -> None:
    moe, other, x = layer(), layer(seed=1), torch.randn(6, 8)
    torch.save(moe.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert_close(other(x)[0], moe(x)[0])
    assert_close(pickle.loads(pickle.dumps(moe))(x)[0], moe(x)[0])
    assert sorted(moe.state_dict()) == [
        "experts.down_EDF",
        "experts.up_EFD",
        "experts.up_bias_EF",
        "router.weight",
    ]


def test_gradients_add_up_over_micro_batches() -> None:
    moe, whole = layer(), torch.randn(20, 8)
    for part in whole.split(10):
        moe(part)[0].square().sum().backward()
    ours = [weight.grad for weight in moe.parameters()]
    expected = torch.autograd.grad(moe(whole)[0].square().sum(), list(moe.parameters()))
    assert_close(ours, list(expected))


def test_optimisers_of_both_kinds_step() -> None:
    for make in (torch.optim.SGD, torch.optim.AdamW):
        moe, x = layer(), torch.randn(64, 8)
        optimizer = make(moe.parameters(), lr=0.01)
        first = None
        for _ in range(20):
            optimizer.zero_grad()
            loss = (moe(x)[0] - x).square().mean()
            loss.backward()
            optimizer.step()
            first = loss.item() if first is None else first
        assert loss.item() < 0.9 * first


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_layers_give_the_same_with_one_break_of_the_graph() -> None:
    """Routing hangs on values, so choosing, moving and the experts stay in Python."""
    from torch._dynamo.testing import CompileCounterWithBackend

    moe, seed = layer(), torch.randn(20, 8)
    torch.compiler.reset()
    x = torch.randn(20, 8, requires_grad=True)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(moe, backend=counter)
    assert_close(compiled(x)[0], moe(x)[0])
    assert_close(gradients(compiled, x, seed), gradients(moe, x, seed))
    graphs = counter.frame_count
    assert graphs <= 3
    x = torch.randn(20, 8, requires_grad=True)  # other loads are no reason to compile again
    assert_close(gradients(compiled, x, seed), gradients(moe, x, seed))
    assert counter.frame_count == graphs
    torch.compiler.reset()


# -------------------------------------------------------------------- sharded weights


def sharded_step(rank: int, world: int, file: str) -> None:
    """One process of `world`: the sharded layer on its part of the tokens, against the whole."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    try:
        moe, x_TD = layer(), torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
        expected = moe(x_TD)[0]
        grads = torch.autograd.grad(expected.square().sum() / world, list(moe.parameters()))
        part = x_TD.chunk(world)[rank]
        mesh = dist.init_device_mesh("cpu", (world,))
        fully_shard(moe.experts, mesh=mesh)
        fully_shard(moe, mesh=mesh)
        output, _ = moe(part)
        assert_close(output, expected.chunk(world)[rank])
        output.square().sum().backward()
        for weight, grad in zip(moe.parameters(), grads, strict=True):
            assert isinstance(weight.grad, DTensor)
            assert_close(weight.grad.full_tensor(), grad)
    finally:
        dist.destroy_process_group()


def loopback() -> bool:
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(
    not torch.distributed.is_available() or not loopback(), reason="no local sockets here"
)
def test_sharded_weights_give_the_same_outputs_and_gradients() -> None:
    with tempfile.TemporaryDirectory() as folder:
        sharded_step(0, 1, f"{folder}/store")


@pytest.mark.skipif(
    not torch.distributed.is_available() or not loopback(), reason="no local sockets here"
)
def test_two_processes_with_sharded_weights_give_the_same() -> None:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            sharded_step, args=(2, f"{folder}/store"), nprocs=2, start_method="fork"
        )


# -------------------------------------------------------------------- odd and wrong set-ups


def test_padding_alone_and_no_tokens_at_all_train_without_harm() -> None:
    for x, mask in (
        (torch.randn(2, 3, 8), torch.zeros(2, 3, dtype=torch.bool)),
        (torch.zeros(0, 8), None),
        (torch.zeros(2, 0, 8), torch.ones(2, 0, dtype=torch.bool)),
    ):
        moe = layer()
        x.requires_grad_()
        output, routing = moe(x, mask=mask)
        assert output.shape == x.shape
        assert not output.any()
        (output.sum() + routing.loss).backward()
        for tensor in (x, *moe.parameters()):
            assert tensor.grad is None or not tensor.grad.any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_scores_that_are_no_numbers_are_refused(value: float) -> None:
    moe = layer()
    with torch.no_grad():
        moe.router.weight[1, 2] = value  # type: ignore[index, operator]
    with pytest.raises(RouteError, match="scores must be numbers below infinity"):
        moe(torch.rand(5, 8))


def test_more_experts_than_there_are_and_no_capacity_are_refused() -> None:
    with pytest.raises(RouteError, match="k must be a whole number from 1 to .* 4, got 5"):
        layer(k=5)(torch.randn(3, 8))
    moe = layer()
    with pytest.raises(RouteError, match="capacity must be a whole number of at least 1, got 0"):
        moe(torch.randn(3, 8), select=partial(with_capacity, k=2, capacity=0))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(3, 7), r"the router takes tokens of width 8, got \(7,\)"),
        (torch.randn(3, 8).double(), "the router is torch.float32 on cpu, the tokens .*float64"),
        (torch.randn(3, 8).bfloat16(), "the router is torch.float32 on cpu, the tokens .*bfloat16"),
        (torch.tensor(1.0), r"a token has 1 dimensions here, got an input of \(\)"),
    ],
)
def test_tokens_that_do_not_fit_are_refused_in_one_line(x: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        layer()(x)
    assert "\n" not in str(caught.value)


def test_experts_that_do_not_fit_are_refused_in_one_line() -> None:
    for bank, message in (
        (FeedForwardExperts(4, 9, 16), "the experts take rows of width 9"),
        (FeedForwardExperts(4, 8, 16).double(), "the experts are torch.float64 on cpu"),
    ):
        moe = MoE(nn.Linear(8, 4), partial(top_k, k=2), bank)
        with pytest.raises(InputError, match=message):
            moe(torch.randn(3, 8))


def test_errors_of_a_router_s_own_are_not_hidden() -> None:
    class Broken(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("out of ink")

    bank = FeedForwardExperts(4, 8, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateWarning)
        moe = MoE(Broken(8, 4), partial(top_k, k=2), bank)
    with pytest.raises(RuntimeError, match="out of ink"):
        moe(torch.randn(3, 8))


def test_a_frozen_router_still_lets_tokens_and_experts_learn() -> None:
    moe, x, seed = layer(), torch.randn(20, 8, requires_grad=True), torch.randn(20, 8)
    expected = gradients(moe, x, seed)
    moe.router.requires_grad_(False)
    output, routing = moe(x)
    learning = [x, *(weight for weight in moe.parameters() if weight.requires_grad)]
    ours = torch.autograd.grad((output * seed).sum() + routing.loss, learning)
    assert len(ours) == len(expected) - 1
    assert_close([ours[0], *ours[1:]], [expected[0], *expected[2:]])


def test_frozen_experts_still_let_the_router_learn() -> None:
    moe, x, seed = layer(), torch.randn(20, 8), torch.randn(20, 8)
    (expected,) = torch.autograd.grad((moe(x)[0] * seed).sum(), [moe.router.weight])
    moe.experts.requires_grad_(False)
    (moe(x)[0] * seed).sum().backward()
    assert_close(moe.router.weight.grad, expected)


def test_inference_mode_and_no_grad_give_the_same() -> None:
    moe, x = layer(), torch.randn(6, 8)
    expected = moe(x)[0]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            output, _ = moe(x)
        assert not output.requires_grad
        assert_close(output, expected)
