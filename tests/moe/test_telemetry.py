"""Telemetry: counted once per token, per layer, whatever recomputes or accumulates."""

import json
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from pointsman.errors import InputError
from pointsman.moe import FeedForwardExperts, MoE
from pointsman.moe.balance import switch
from pointsman.moe.telemetry import Telemetry, agreement, watch
from pointsman.route import Route
from pointsman.select import relu, top_k, with_capacity

EXPERTS, WIDTH = 4, 6


class Network(nn.Module):
    """Routed layers in a row, recomputed in the backward pass if asked."""

    def __init__(self, layers: int = 3, reentrant: bool | None = None, k: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            MoE(
                nn.Linear(WIDTH, EXPERTS, bias=False),
                partial(top_k, k=k),
                FeedForwardExperts(EXPERTS, WIDTH, 8),
            )
            for _ in range(layers)
        )
        self.reentrant = reentrant

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for layer in self.layers:

            def block(x: Tensor, layer: nn.Module = layer) -> Tensor:
                return x + layer(x, mask=mask)[0]  # type: ignore[no-any-return]

            if self.reentrant is None:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.reentrant)  # type: ignore[no-untyped-call]
        return x


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed))


def collapsed(expert: int) -> MoE:
    """Everything to one expert."""
    router = nn.Linear(WIDTH, EXPERTS)
    with torch.no_grad():
        router.weight.zero_()
        router.bias.copy_(10.0 * torch.nn.functional.one_hot(torch.tensor(expert), EXPERTS))
    select = partial(top_k, k=1, renormalize=False)
    return MoE(router, select, FeedForwardExperts(EXPERTS, WIDTH, 8))


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_activations_count_once(reentrant: bool) -> None:
    x = tokens(2, 5).requires_grad_()
    plain, again = Network(), Network(reentrant=reentrant)
    with watch(plain) as expected:
        plain(x).square().mean().backward()
    with watch(again) as found:
        again(x).square().mean().backward()
    want, have = expected.as_dict(), found.as_dict()
    for one, other in zip(want["layers"], have["layers"], strict=True):
        assert one["tokens"] == 10
        assert one.pop("router_gradient") == pytest.approx(other.pop("router_gradient"), rel=1e-5)
    assert have == want


def test_recomputation_of_micro_batches_counts_once_too() -> None:
    network, x = Network(reentrant=False), tokens(6, 5).requires_grad_()
    with watch(network) as found:
        for part in x.split(2):
            network(part).square().sum().backward()
    with watch(network) as whole:
        network(x)
    for one, other in zip(found.reports(), whole.reports(), strict=True):
        assert (one.calls, other.calls) == (3, 1)
        assert (one.tokens, one.load, one.dropped) == (other.tokens, other.load, other.dropped)
        assert one.token_entropy == pytest.approx(other.token_entropy, rel=1e-6)


def test_collapse_of_each_layer_onto_another_expert_is_not_hidden() -> None:
    layers = nn.ModuleList(collapsed(at % EXPERTS) for at in range(8))
    found = Telemetry([str(at) for at in range(8)])
    for name, layer in layers.named_children():
        found.add(name, layer(tokens(12))[1])
    pooled = torch.tensor([report.load for report in found.reports()]).sum(0)
    assert (pooled == 24).all()  # pooled, it looks even
    for at, report in enumerate(found.reports()):
        assert report.load_ratio == EXPERTS
        assert report.dead == tuple(e for e in range(EXPERTS) if e != at % EXPERTS)
        assert report.load_entropy == report.token_entropy == 0


def test_padding_is_no_token_and_dropped_tokens_are_named_by_their_place() -> None:
    layer = MoE(
        collapsed(0).router,
        partial(with_capacity, k=1, capacity=2, renormalize=False),
        FeedForwardExperts(EXPERTS, WIDTH, 8),
    )
    mask = torch.tensor([[True, False, True, True], [False, True, True, False]])
    found = Telemetry(["layer"])
    for _ in range(2):
        found.add("layer", layer(tokens(2, 4), mask=mask)[1])
    report = found.report("layer")
    assert (report.calls, report.tokens, report.padding) == (2, 10, 6)
    assert report.load == (4, 0, 0, 0)
    assert report.dropped_ids == ((0, 3), (0, 5), (0, 6), (1, 3), (1, 5), (1, 6))
    assert report.dropped == 6


def test_entropies_of_known_routes() -> None:
    layer = MoE(nn.Linear(WIDTH, EXPERTS), partial(top_k, k=2), FeedForwardExperts(4, WIDTH, 8))
    with torch.no_grad():
        for weight in layer.router.parameters():
            weight.zero_()
    found = Telemetry(["a"])
    found.add("a", layer(tokens(7))[1])
    report = found.report("a")
    assert report.token_entropy == pytest.approx(torch.tensor(2.0).log().item())
    assert report.load_entropy == pytest.approx(torch.tensor(2.0).log().item())


def test_the_gradient_norm_is_that_of_the_accumulated_gradient() -> None:
    network = Network()
    with watch(network) as found:
        for seed in range(3):
            network(tokens(4, seed=seed)).square().sum().backward()
    for report, layer in zip(found.reports(), network.layers, strict=True):
        grad = layer.router.weight.grad  # type: ignore[union-attr]
        assert isinstance(grad, Tensor)
        assert report.router_gradient == pytest.approx(float(grad.norm()))
        assert report.router_gradient > 0


def test_a_router_that_cannot_learn_shows_no_gradient() -> None:
    layer = MoE(
        nn.Linear(WIDTH, EXPERTS), partial(top_k, k=1), FeedForwardExperts(EXPERTS, WIDTH, 8),
        balance=[(0.0, switch)],
    )  # fmt: skip
    network = nn.Sequential(layer)
    with watch(network) as found:
        y, routing = layer(tokens(9))
        (y.sum() + routing.loss).backward()
    assert found.report("0").router_gradient == pytest.approx(0, abs=1e-6)


def test_hooks_are_gone_after_the_block_even_after_an_error() -> None:
    network = Network()
    with pytest.raises(KeyError), watch(network):
        raise KeyError
    assert not any(module._forward_hooks for module in network.modules())
    with watch(network) as found, torch.no_grad():
        network(tokens(3))
    network(tokens(3))
    assert found.report("layers.0").tokens == 3
    assert found.report("layers.0").router_gradient is None


def test_a_telemetry_can_go_on_over_steps_and_keeps_no_graph() -> None:
    network = Network()
    found = None
    for seed in range(2):
        with watch(network, found) as found:
            network(tokens(5, seed=seed)).sum().backward()
    assert found is not None
    assert found.report("layers.1").calls == 2
    for record in found._records.values():
        assert record.load is not None
        assert record.entropy is not None
        assert not record.load.requires_grad
        assert not record.entropy.requires_grad


def test_merging_telemetries_of_processes_gives_what_one_would_have() -> None:
    network, parts = Network(), [tokens(4, seed=seed) for seed in range(3)]
    each = []
    for part in parts:
        with watch(network) as one:
            network(part)
        each.append(pickle.loads(pickle.dumps(one)))  # as `all_gather_object` sends it
    with watch(network) as whole:
        for part in parts:
            network(part)
    assert each[0].merge(*each[1:]).as_dict() == whole.as_dict()
    assert each[0].report("layers.0").calls == 1  # unchanged


def test_zero_tokens_and_routers_without_weights_are_counted() -> None:
    layer = MoE(nn.Identity(), relu, FeedForwardExperts(WIDTH, WIDTH, 8))
    found = Telemetry(["a"])
    found.add("a", layer(tokens(0))[1])
    report = found.report("a")
    assert (report.tokens, report.load_ratio, report.load_entropy) == (0, 0.0, 0.0)
    assert report.token_entropy == 0.0
    found.read_gradients(nn.ModuleDict({"a": layer}))
    assert found.report("a").router_gradient is None


def test_results_come_as_plain_data_and_as_a_table() -> None:
    network = Network(layers=2)
    with watch(network) as found:
        network(tokens(3, 4)).sum().backward()
    data = found.as_dict()
    assert json.loads(json.dumps(data)) == data
    assert [layer["name"] for layer in data["layers"]] == ["layers.0", "layers.1"]
    console = Console(width=80, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(found.table())
    text = captured.get()
    for word in ("layers.1", "max/mean", "dropped", "gradient", "12"):
        assert word in text
    assert "…" not in text


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_chart_is_written_whole(tmp_path: Path, ending: str) -> None:
    found = Telemetry(["first", "second"])
    found.add("first", collapsed(1)(tokens(5))[1])
    narrow = MoE(nn.Linear(WIDTH, 2), partial(top_k, k=2), FeedForwardExperts(2, WIDTH, 8))
    found.add("second", narrow(tokens(5))[1])  # layers may have other numbers of experts
    path = found.draw(tmp_path / "deep" / f"load.{ending}")
    assert path.stat().st_size > 5_000
    texts = {text.get_text() for axes in found.figure().axes for text in axes.texts}
    assert {"dead", "4.0, 3 dead", "1.0"} <= texts
    with pytest.raises(InputError, match=r"written as \.png or \.svg, got 'load\.gif'"):
        found.draw(tmp_path / "load.gif")
    with pytest.raises(InputError, match="nothing was routed yet"):
        Telemetry(["a"]).figure()


def test_agreement_is_the_share_of_pairs_in_both() -> None:
    one = Route.from_indices(torch.tensor([[0, 1], [2, 3], [-1, -1]]), num_branches=4)
    other = Route.from_indices(torch.tensor([[1, 0], [2, 0], [-1, 3]]), num_branches=4)
    assert agreement(one, one) == 1
    assert agreement(one, other) == pytest.approx(3 / 6)
    empty = Route.from_indices(torch.zeros(0, 1, dtype=torch.int64), num_branches=4)
    assert agreement(empty, empty) == 1
    with pytest.raises(InputError, match=r"same tokens and experts"):
        agreement(one, empty)


def test_watching_changes_no_output() -> None:
    network, x = Network(), tokens(2, 5)
    before = network(x)
    with watch(network):
        assert_close(network(x), before, rtol=0, atol=0)


def test_wrong_use_is_refused() -> None:
    with (
        pytest.raises(InputError, match="Linear has no routed layer to watch"),
        watch(nn.Linear(2, 2)),
    ):
        pass
    with pytest.raises(InputError, match="its own name"):
        Telemetry(["a", "a"])
    found = Telemetry(["a"])
    with pytest.raises(InputError, match=r"no layer is named 'b' here, got the names a"):
        found.report("b")
    found.add("a", collapsed(0)(tokens(2))[1])
    narrow = MoE(nn.Linear(WIDTH, 2), partial(top_k, k=2), FeedForwardExperts(2, WIDTH, 8))
    with pytest.raises(InputError, match=r"a had 4 experts before, got a routing to 2"):
        found.add("a", narrow(tokens(2))[1])
    other = Telemetry(["a"])
    other.add("a", narrow(tokens(2))[1])
    with pytest.raises(InputError, match="a has 4 and 2 experts"):
        found.merge(other)
    with pytest.raises(InputError, match="telemetries of the same layers"):
        found.merge(Telemetry(["b"]))
    with pytest.raises(InputError, match="the model has no routed layer named 'a'"):
        found.read_gradients(Network())
