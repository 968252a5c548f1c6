"""Training of exits: what is trained, what stays to the last bit, and that every loss falls."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from pointsman.depth import EarlyExit
from pointsman.depth.fitting import Batches, Recipe, parts_of
from pointsman.depth.remembered import remembered
from pointsman.depth.training import (
    ExitLoss,
    distillation,
    exit_logits,
    train_back_to_front,
    train_front_to_back,
    train_heads,
    train_jointly,
)
from pointsman.errors import InputError, PointsmanError

CLASSES, INPUTS = 3, 256
FAST = Recipe(epochs=6, rate=2e-2)


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(INPUTS, 6, generator=generator)
    y = (x[:, :2].square().sum(dim=1) > 1.2).long() + (x[:, 2] > 1).long()
    return x, y


def network(seed=0):
    torch.manual_seed(seed)
    backbone = nn.Sequential(
        nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1)),
        nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1)),
        nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()),
        nn.Linear(16, CLASSES),
    )
    return EarlyExit(backbone, [0, 1], example=torch.zeros(2, 6))


def batches(batch=64, seed=1):
    return Batches(*data(), batch, seed=seed)


def losses_of(net):
    x, y = data()
    net.eval()
    with torch.no_grad():
        return [float(functional.cross_entropy(logits, y)) for logits in net(x)]


TRAININGS = {
    "jointly": lambda net: train_jointly(net, batches(), FAST),
    "jointly, with everything that helps": lambda net: train_jointly(
        net,
        batches(),
        FAST,
        ExitLoss((0.3, 0.6, 1), distil=0.5),
        into_trunk=0.5,
        equilibrium=True,
    ),
    "back to front": lambda net: train_back_to_front(net, batches(), FAST),
    "front to back": lambda net: train_front_to_back(net, batches(), FAST),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_every_exit_gets_better_and_the_network_keeps_its_mode(name):
    net = network().train()
    net.segments[1].eval()
    modes = {module: module.training for module in net.modules()}
    before = losses_of(copy.deepcopy(net))
    TRAININGS[name](net)
    assert {module: module.training for module in net.modules()} == modes
    assert all(weight.requires_grad and weight.grad is None for weight in net.parameters())
    after = losses_of(net)
    assert all(late < 0.75 * early for late, early in zip(after, before, strict=True)), (
        before,
        after,
    )


def test_training_is_the_same_from_the_same_seeds():
    nets = [network(), network()]
    for net in nets:
        torch.manual_seed(7)
        train_jointly(net, batches(), Recipe(epochs=2))
    assert_close(nets[0].state_dict(), nets[1].state_dict(), rtol=0, atol=0)


def test_heads_alone_leave_the_trunk_as_it_is_to_the_last_bit():
    net = network()
    train_jointly(net, batches(), FAST)
    trunk = copy.deepcopy(net.trunk.state_dict())
    fresh = network(5)
    net.heads.load_state_dict(fresh.heads.state_dict())
    before = losses_of(net)
    history = train_heads(net.train(), batches(), FAST)
    assert net.training
    assert_close(net.trunk.state_dict(), trunk, rtol=0, atol=0)
    after = losses_of(net)
    assert after[2] == before[2]
    assert after[0] < 0.8 * before[0]
    assert after[1] < 0.8 * before[1]
    assert len(history) == 6
    assert all(len(losses) == 2 for losses in history)


def test_heads_learn_from_the_last_exit_without_labels():
    net = network()
    train_back_to_front(net, batches(), FAST, heads=Recipe(epochs=1, rate=1e-6))
    before = losses_of(net)
    unlabelled = Batches(data()[0], None, 64)
    train_heads(net, unlabelled, FAST, ExitLoss(distil=1))
    after = losses_of(net)
    assert after[0] < 0.8 * before[0]
    assert after[2] == before[2]


def test_heads_learn_the_same_from_remembered_features():
    nets = [network(), network()]
    x, y = data()
    train_heads(nets[0], Batches(x, y, 64, seed=2), Recipe(epochs=2, rate=1e-2))
    kept, features = remembered(nets[1], x)
    assert [tuple(part.shape) for part in features] == [(INPUTS, 16), (INPUTS, 16), (INPUTS, 3)]
    assert_close(kept.logits(features), nets[1].logits(x))
    train_heads(kept, Batches(features, y, 64, seed=2), Recipe(epochs=2, rate=1e-2))
    assert_close(nets[1].state_dict(), nets[0].state_dict(), rtol=1e-4, atol=1e-5)
    answer, expected = kept.run(features, 0.6), nets[1].run(x, 0.6)
    assert torch.equal(answer.stage, expected.stage)
    assert_close(answer.output, expected.output)


def test_what_a_head_shares_with_the_end_of_the_network_stays():
    torch.manual_seed(0)
    unembedding = nn.Linear(8, CLASSES)
    backbone = [nn.Linear(6, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 8), unembedding)]
    head = nn.Sequential(nn.LayerNorm(8), unembedding)
    net = EarlyExit(backbone, [0], example=torch.zeros(2, 6), heads=[head])
    before = copy.deepcopy(unembedding.state_dict())
    norm = head[0].weight.detach().clone()
    train_heads(net, batches(), FAST)
    assert_close(unembedding.state_dict(), before, rtol=0, atol=0)
    assert float((head[0].weight.detach() - norm).abs().max()) > 1e-3


def test_back_to_front_trains_the_trunk_as_if_it_were_alone():
    net, alone = network(), network()
    for exits, loss in ((net, ExitLoss()), (alone, ExitLoss((0.2, 5, 1)))):
        torch.manual_seed(3)
        train_back_to_front(exits, batches(), Recipe(epochs=2), loss)
    assert_close(net.trunk.state_dict(), alone.trunk.state_dict(), rtol=0, atol=0)


def test_front_to_back_freezes_what_was_trained_with_an_earlier_exit():
    net, shorter = network(), network()
    torch.manual_seed(3)
    train_front_to_back(net, batches(), Recipe(epochs=2))
    first = EarlyExit(
        nn.Sequential(shorter.segments[0], shorter.segments[1], shorter.heads[1]),
        [0],
        example=torch.zeros(2, 6),
        heads=[shorter.heads[0]],
    )
    torch.manual_seed(3)
    train_front_to_back(first, batches(), Recipe(epochs=2))
    pairs = [(net.backbone[0], first.backbone[0][0]), (net.heads[0], first.heads[0])]
    for mine, its in pairs:
        assert_close(mine.state_dict(), its.state_dict(), rtol=0, atol=0)
    untrained = network().backbone[0].state_dict()
    assert float((untrained["0.weight"] - net.backbone[0][0].weight.detach()).abs().max()) > 1e-3


def test_no_gradient_into_the_trunk_trains_it_as_if_it_were_alone():
    def trunk_after(**options):
        net = network()
        for module in net.modules():
            module.p = 0.0 if isinstance(module, nn.Dropout) else getattr(module, "p", None)
        recipe = Recipe(epochs=2, clip=math.inf)
        train_jointly(net, batches(), recipe, **options)
        return net.trunk.state_dict()

    alone = trunk_after(loss=ExitLoss((0, 0, 1)))
    assert_close(trunk_after(into_trunk=0.0), alone, rtol=0, atol=1e-6)
    assert (
        float((trunk_after()["blocks.0.0.weight"] - alone["blocks.0.0.weight"]).abs().max()) > 1e-4
    )


def plain_step(net, **options):
    """The gradients of one step of gradient descent, by name."""
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    for module in net.modules():
        module.p = 0.0 if isinstance(module, nn.Dropout) else getattr(module, "p", None)
    recipe = Recipe(
        epochs=1,
        clip=math.inf,
        warmup=0.0,
        optimiser=lambda groups: torch.optim.SGD(groups, lr=0.1),
    )
    scale = recipe.scale(0.5)
    train_jointly(net, [data()], recipe, **options)
    return {
        name: (before[name] - weight.detach()) / (0.1 * scale)
        for name, weight in net.named_parameters()
    }


def test_equilibrium_is_the_published_rescaling_at_each_branch():
    net = network().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.Dropout):
            module.forward = lambda x: x

    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, factor):
            ctx.factor = factor
            return x.view_as(x)

        @staticmethod
        def backward(ctx, gradient):
            return ctx.factor * gradient, None

    x, y = data()
    x, exits, total = x.double(), 3, 0.0
    for at, segment in enumerate(net.segments):
        x, left = segment(x), exits - at
        if at < 2:
            head = net.heads[at](Scale.apply(x, 1 / left))
            total = total + functional.cross_entropy(head, y)
            x = Scale.apply(x, (left - 1) / left)
    (total + functional.cross_entropy(x, y)).backward()
    published = {name: w.grad for name, w in net.named_parameters() if w.grad is not None}

    net.zero_grad(set_to_none=True)
    inputs, labels = data()
    found = parts_of(net, net.stages(), inputs.double())
    outputs = exit_logits(net, inputs.double(), [0, 1, 2])
    torch.stack([functional.cross_entropy(o, labels) for o in outputs]).sum().backward()
    from pointsman.depth.training import _balancer

    _balancer(found)()
    for name, weight in net.named_parameters():
        if weight.grad is not None:
            assert_close(weight.grad, published[name])


def test_equilibrium_and_weights_change_the_step_that_is_taken():
    plain = plain_step(network())
    even = plain_step(network(), equilibrium=True)
    assert_close(even["heads.0.linear.bias"], plain["heads.0.linear.bias"])
    first, last = "trunk.blocks.0.0.weight", "trunk.blocks.3.weight"
    assert_close(even[first], plain[first] / 3, rtol=1e-2, atol=1e-6)
    assert_close(even[last], plain[last], rtol=1e-3, atol=1e-6)


def test_a_share_into_the_trunk_scales_that_gradient():
    net = network().eval()
    x, y = data()

    def gradient(share):
        net.zero_grad(set_to_none=True)
        logits = exit_logits(net, x, [0], share)[0]
        functional.cross_entropy(logits, y).backward()
        trunk = net.backbone[0][0].weight.grad
        return (None if trunk is None else trunk.clone()), net.heads[0].linear.weight.grad.clone()

    whole, third = gradient(1.0), gradient(1 / 3)
    assert_close(third[0], whole[0] / 3)
    assert_close(third[1], whole[1])
    assert float(gradient(0.0)[0].abs().max()) == 0


def test_parts_of_a_network_belong_to_the_exits_that_need_them():
    net = network()
    found = parts_of(net, net.stages(), data()[0])
    names = {weight: name for name, weight in net.named_parameters()}
    users = {names[weight]: exits for weight, exits in found.users.items()}
    assert users["trunk.blocks.0.0.weight"] == (0, 1, 2)
    assert users["trunk.blocks.1.0.weight"] == (1, 2)
    assert users["trunk.blocks.3.weight"] == (2,)
    assert users["heads.0.linear.weight"] == (0,)
    assert [names[w].split(".")[0] for w in found.head(1)] == ["heads", "heads"]
    assert net.backbone[1][1] in found.modules[1]
    assert net.heads[0].linear in found.modules[0]
    assert all(weight.requires_grad for weight in net.parameters())


def test_distillation_is_the_divergence_and_spares_the_teacher():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    student.requires_grad_()
    teacher.requires_grad_()
    t = 3.0
    p, q = (teacher / t).softmax(dim=1), (student / t).softmax(dim=1)
    expected = t**2 * (p * (p.log() - q.log())).sum(dim=1).mean()
    loss = distillation(student, teacher, t)
    assert_close(loss, expected)
    loss.backward()
    assert teacher.grad is None
    assert_close(distillation(teacher, teacher, t), torch.zeros((), dtype=torch.float64))


def test_logits_with_several_places_learn_at_each_of_them():
    logits = torch.randn(4, 6, CLASSES)
    target = torch.randint(CLASSES, (4, 6))
    target[0, :3] = -100
    expected = functional.cross_entropy(logits.reshape(-1, CLASSES), target.reshape(-1))
    assert_close(ExitLoss().label(logits, target), expected)


def test_batches_take_every_input_once_a_pass_in_another_order():
    x, y = torch.arange(10.0)[:, None], torch.arange(10)
    parts = Batches({"a": x, "b": (x, None)}, y, 5, seed=3)
    passes = []
    for _ in range(2):
        seen = [(inputs["a"], inputs["b"][0], labels) for inputs, labels in parts]
        assert all(torch.equal(a, b) and torch.equal(a[:, 0].long(), t) for a, b, t in seen)
        passes.append(torch.cat([labels for _, _, labels in seen]).tolist())
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(10))
    assert passes[0] != passes[1]
    assert len(parts) == 2
    doubled = next(iter(Batches(x, y, 4, augment=lambda x: 2 * x)))
    assert torch.equal(doubled[0][:, 0].long(), 2 * doubled[1])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ExitLoss((0, 0)), "not all 0"),
        (lambda: ExitLoss((1, -1)), "at least 0"),
        (lambda: ExitLoss(distil=1.5), r"distil lies in \[0, 1\]"),
        (lambda: ExitLoss(temperature=0), "temperature is above 0"),
        (lambda: Recipe(epochs=0), "at least one epoch"),
        (lambda: Recipe(rate=0), "above 0"),
        (lambda: Recipe(warmup=1), "warm-up in"),
        (lambda: Batches(torch.zeros(0, 3), None), "at least one input, .* got 0 inputs"),
        (lambda: Batches(torch.zeros(4, 3), torch.zeros(3)), "4 inputs, 3 targets"),
        (lambda: train_jointly(network(), batches(), FAST, into_trunk=2), "share in"),
        (lambda: train_jointly(network(), batches(), FAST, ExitLoss((1, 1))), "3 exits need"),
        (lambda: train_jointly(network(), [], FAST), "the data gave no batch"),
        (lambda: train_jointly(network(), iter(batches()), FAST), "no batch in epoch"),
        (lambda: train_heads(network(), Batches(data()[0], None), FAST), "no labels"),
        (lambda: train_front_to_back(network(), batches(), FAST, ExitLoss(distil=1)), "distil=0"),
        (
            lambda: train_heads(
                EarlyExit(
                    [nn.Linear(6, 6), nn.Linear(6, 6)],
                    [0],
                    example=torch.zeros(2, 6),
                    heads=[nn.Identity()],
                ),
                batches(),
                FAST,
            ),
            "nothing to fit",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call, text):
    with pytest.raises(InputError, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_no_number_ends_training():
    x, y = data()
    x[5] = math.nan
    with pytest.raises(PointsmanError, match="diverged in epoch 1"):
        train_jointly(network(), Batches(x, y, 64), FAST)
