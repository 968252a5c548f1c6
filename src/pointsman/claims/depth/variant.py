"""VARiant: early scales of an image run the whole network, late scales a subnet of its layers.

Chen et al., "Progressive Supernet Training for Efficient Visual Autoregressive Modeling" (2025,
arXiv 2511.16546).

A next-scale model needs its depth for the first, coarse scales; the many places of the late scales
get by with a subnet of layers at equal distances, whose weights and keys are the whole network's.
Training runs a subnet with a share of steps that rises from 0.2 to 1, so that the whole network is
learned first and the subnet last. The part is `depth.NextScale` with `layers_by_scale` and
`subnet_share`.

What was settled:
- Digits of 8x8 pixels in 17 levels, written at 1, 2, 4 and 8 pixels a side by six layers; the
  bridge is the first two scales. The network reads pixels, not tokens of an autoencoder.
- One network is trained whole; from its weights three runs of equal length go on: a share of 0.2
  throughout, of 1 throughout, and a rising one. Depths of subnets are drawn from 4, 3 and 2.
- Quality is nats of an image over its 85 places, on the test part. "Subnet" is the mean over the
  three depths, "whole" all layers at every scale.
- Sensitivity is measured on the network that was trained whole: three of the six layers at the
  first two scales alone, or at the last alone. The rise in nats is divided by the layers left out,
  three a scale. Beside it stands the rise by layer and place, as a late scale has far more places.
- Learning rates and lengths are alike for all runs and were not tuned.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from pointsman.claims.testbeds import Digits, Part
    from pointsman.depth.scales import Layers, NextScale

SIZES, LEVELS, WIDTH, LAYERS, HEADS = (1, 2, 4, 8), 17, 24, 6, 4
BRIDGE, DEPTHS, CUT = 2, (4, 3, 2), 3
BATCH, FIRST, LATER, RATE, LATER_RATE = 16, 300, 200, 4e-3, 2e-3
SHARES: dict[str, Callable[[float], float]] = {
    "share 0.2": lambda progress: 0.2,
    "share 1": lambda progress: 1.0,
}


def quick() -> None:
    """Full depth is the full model; later scales leave the bridge alone and hold fewer keys."""
    import torch

    from pointsman.depth.scales import (
        equidistant,
        layers_by_scale,
        pyramid,
        subnet_share,
    )

    must(equidistant(30, 8) == (0, 4, 8, 12, 16, 20, 24, 29), "layers lie at equal distances")
    model = _model(0).eval()
    images = torch.randint(LEVELS, (3, 8, 8), generator=torch.Generator().manual_seed(0))
    scales, labels = pyramid(images, SIZES, LEVELS), torch.tensor([1, 2, 3])
    with torch.no_grad():
        whole = model(scales, labels)
        same = model(scales, labels, _subnet(LAYERS))
        cut = model(scales, labels, _subnet(2))
    must(all(map(torch.equal, whole, same)), "d = D is the whole model")
    must(all(map(torch.allclose, whole[:2], cut[:2])), "the bridge sees nothing of later scales")
    must(not torch.allclose(whole[3], cut[3]), "the last scale runs other layers")
    _, held = model.sample(labels, layers_by_scale(LAYERS, 4, bridge=BRIDGE, depth=2))
    must(held == 3 * (6 * (1 + 4) + 2 * (16 + 64)), "keys are held where a layer ran")
    must([subnet_share(at) for at in (0, 1)] == [0.2, 1.0], "the share of subnets rises to 1")


def full(seed: int) -> Figures:
    """Nats of test images for the whole network and its subnets, after each way of training."""
    import copy

    from pointsman.claims import testbeds
    from pointsman.depth.scales import equidistant, subnet_share

    data = testbeds.digits(seed)
    start = _model(seed)
    _train(start, data, seed, FIRST, RATE, lambda progress: 0.0)
    whole, some = range(LAYERS), equidistant(LAYERS, CUT)
    before = _nats(start, data.test, [whole] * 4)
    early = _nats(start, data.test, [some, some, whole, whole]) - before
    late = _nats(start, data.test, [whole, whole, whole, some]) - before
    left_out = LAYERS - CUT
    found = {
        "whole alone: nats, whole": before,
        "whole alone: nats, subnet": _subnets(start, data.test),
        "first two scales: rise a layer": early / (2 * left_out),
        "last scale: rise a layer": late / left_out,
        "first two scales: rise a layer and place": early / (5 * left_out),
        "last scale: rise a layer and place": late / (64 * left_out),
    }
    for name, share in (SHARES | {"rising share": subnet_share}).items():
        model = copy.deepcopy(start)
        _train(model, data, seed + 1, LATER, LATER_RATE, share)
        found[f"{name}: nats, whole"] = _nats(model, data.test, [whole] * 4)
        found[f"{name}: nats, subnet"] = _subnets(model, data.test)
    return found


def _model(seed: int) -> "NextScale":
    import torch

    from pointsman.depth.scales import NextScale

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NextScale(SIZES, levels=LEVELS, classes=10, width=WIDTH, layers=LAYERS, heads=HEADS)


def _subnet(depth: int) -> "Layers":
    from pointsman.depth.scales import layers_by_scale

    return layers_by_scale(LAYERS, len(SIZES), bridge=BRIDGE, depth=depth)


def _train(
    model: "NextScale",
    data: "Digits",
    seed: int,
    updates: int,
    rate: float,
    share: Callable[[float], float],
) -> None:
    """Steps on the whole network or, with the share's probability, on a subnet."""
    import torch

    from pointsman.depth.scales import nats, pyramid

    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for update in range(updates):
        rows = torch.randint(len(data.train.x), (BATCH,), generator=generator)
        drawn = float(torch.rand((), generator=generator))
        depth = DEPTHS[int(torch.randint(len(DEPTHS), (), generator=generator))]
        layers = _subnet(depth) if drawn < share(update / updates) else None
        scales = pyramid(16 * data.train.x[rows].reshape(-1, 8, 8), SIZES, LEVELS)
        loss = nats(model(scales, data.train.y[rows], layers), scales).sum() / 85
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()


def _nats(model: "NextScale", part: "Part", layers: "Layers") -> float:
    """Of an image, over all its scales."""
    import torch

    from pointsman.depth.scales import nats, pyramid

    scales = pyramid(16 * part.x.reshape(-1, 8, 8), SIZES, LEVELS)
    with torch.no_grad():
        return float(nats(model(scales, part.y, layers), scales).sum())


def _subnets(model: "NextScale", part: "Part") -> float:
    return sum(_nats(model, part, _subnet(depth)) for depth in DEPTHS) / len(DEPTHS)


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    at = {name: mean(measurements, name) for name in measurements[0]}
    asymmetric = at["first two scales: rise a layer"] > at["last scale: rise a layer"]
    keeps_whole = at["rising share: nats, whole"] <= at["share 1: nats, whole"]
    learns_some = at["rising share: nats, subnet"] <= at["share 0.2: nats, subnet"]
    return asymmetric and keeps_whole and learns_some


CLAIM = Claim(
    slug="variant",
    paper="Progressive Supernet Training for Efficient Visual Autoregressive Modeling",
    year=2025,
    arxiv="2511.16546",
    level="depth",
    claim="Writing an image scale by scale, late scales get by with a subnet of the layers that "
    "early ones need, and a share of subnet steps that rises trains both better than a fixed one.",
    baseline="Layers left out at the last scale instead of the first two; and fixed shares of "
    "subnet steps, 0.2 and 1, from the same weights and as long.",
    criterion="In the mean over the seeds: leaving layers out at the first two scales raises the "
    "nats of an image by more per layer left out than at the last scale; after a rising share the "
    "whole network's nats are at most those after share 1, and the subnets' at most those after "
    "share 0.2.",
    quick=quick,
    full=full,
    decide=decide,
    note="The rising share does what is claimed: the whole network ends 2.8 nats below share 1, "
    "the subnets 1.3 below share 0.2. Leaving layers out costs 4.6 times as much a place at the "
    "first two scales, but the last has 64 places against 5, so that an image loses more there.",
    composition="next-scale decoder · layers at equal distances · keys of the layers that ran · "
    "rising share of subnet steps",
    entry="pointsman.depth.NextScale",
    key={
        "early, nats a layer": "first two scales: rise a layer",
        "late, nats a layer": "last scale: rise a layer",
        "whole, rising": "rising share: nats, whole",
        "subnet, rising": "rising share: nats, subnet",
    },
)
