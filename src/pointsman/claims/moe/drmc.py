"""DRMC: one network for images of many centres, with experts weighed by ReLU for each image.

Yang et al., "DRMC: A Generalist Model with Dynamic Routing for Multi-Center PET Image Synthesis"
(2023, arXiv 2307.05249).

Blocks of a bank of attention experts and a bank of feed-forward experts. A bank's router reads the
channel means of the image and the hidden vector of the router before, and its ReLU gives every
expert a weight, which may be zero; the centre is never told. So images whose centres contradict
each other take different weights. The composition is `moe.systems.vision.multi_centre`.

What was settled:
- Images of 4 channels and 6 x 6 pixels from 4 centres. A centre shifts the channel means by about
  half of a pixel's own deviation, and mixes the channels by a matrix of its own; the matrices of
  two centres are opposite. So one pixel hardly tells the centre, the means of an image do. (With
  shifts of twice the deviation every pixel tells it, and the shared network does as well.)
- 2 blocks of 3 + 3 experts at 8 channels, 300 updates on batches that mix all centres.
- "Shared" is the same network with every weight 1 for every image.
- No expert is asked to be skipped; how many weights are zero is shown.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import Tensor

CENTRES, CHANNELS, SIDE, WIDTH, BLOCKS = 4, 4, 6, 8, 2
UPDATES, BATCH, RATE = 300, 32, 1e-2


def quick() -> None:
    """Weights are the ReLU of scores, zero experts do not run, and hidden vectors are handed on."""
    import warnings

    import torch
    from torch.testing import assert_close

    from pointsman.cost import count_flops
    from pointsman.moe import Context
    from pointsman.moe.systems.vision import PooledRouter, multi_centre

    torch.manual_seed(0)
    net, image = multi_centre(1, 8, 2, heads=2).double(), torch.rand(5, 1, 4, 4).double()
    prediction, routings = net(image)
    must(len(routings) == 4, "two banks a block")
    assert prediction.shape == image.shape
    for routing in routings:
        assert_close(routing.route.to_dense(), routing.scores.relu())
    layer = net.blocks[0].layers[0]  # type: ignore[index]
    router, x = layer.router, torch.randn(5, 8, 4, 4).double()  # type: ignore[union-attr]
    assert isinstance(router, PooledRouter)
    first = router(x, Context())
    again = router(x, Context(state=first.state))
    must(
        not torch.equal(first.scores, again.scores), "a router reads what the one before handed on"
    )
    wanted = sum(
        first.scores[:, e].relu()[:, None, None, None] * expert(x)
        for e, expert in enumerate(layer.experts.parts)  # type: ignore[union-attr]
    )
    assert_close(layer(x)[0], wanted)  # type: ignore[operator]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that every expert is skipped is meant here
        for block in net.blocks:
            for each in block.layers:  # type: ignore[union-attr]
                each.router.leave.bias.fill_(-100.0)
        convolutions = 5 * 16 * 2 * 9 * 8 * 2
        routers = 4 * 5 * 2 * ((8 + 16) * 16 + 16 * 3)
        counted = round(float(count_flops(net, image)) * 1e6)
        must(counted == convolutions + routers, f"experts of weight zero do not run, got {counted}")
        assert_close(net(image)[0], image + net.leave(net.enter(image)))


def full(seed: int) -> Figures:
    """Error of routed and shared networks; how far apart the centres' weights lie."""
    import torch
    from torch import nn

    from pointsman.moe.systems.vision import multi_centre

    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> "Tensor":
        return torch.randn(*shape, generator=generator)

    shifts = 0.5 * normal(CENTRES, CHANNELS)
    maps = normal(CENTRES, CHANNELS, CHANNELS) * CHANNELS**-0.5
    maps[1] = -maps[0]

    def draw(count: int) -> "tuple[Tensor, Tensor, Tensor]":
        centre = torch.randint(CENTRES, (count,), generator=generator)
        noise = normal(count, CHANNELS, SIDE, SIDE)
        y = torch.einsum("ndc,nchw->ndhw", maps[centre], noise)
        x = noise + shifts[centre][:, :, None, None]
        return x, x + y, centre

    found = {}
    for name in ("routed", "shared"):
        torch.manual_seed(seed)
        net = multi_centre(CHANNELS, WIDTH, BLOCKS, heads=2)
        routers = [m for m in net.modules() if type(m).__name__ == "PooledRouter"]
        if name == "shared":
            for router in routers:
                assert isinstance(router.leave, nn.Linear)
                nn.init.zeros_(router.leave.weight).requires_grad_(False)
                nn.init.ones_(router.leave.bias).requires_grad_(False)
        weights = [weight for weight in net.parameters() if weight.requires_grad]
        optimiser = torch.optim.Adam(weights, RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, UPDATES)
        generator.manual_seed(seed + 1)
        for _ in range(UPDATES):
            x, y, _ = draw(BATCH)
            optimiser.zero_grad()
            (net(x)[0] - y).square().mean().backward()
            optimiser.step()
            schedule.step()
        with torch.no_grad():
            x, y, centre = draw(2000)
            answer, routings = net(x)
        error = (answer - y).square().mean() / (y - x).square().mean()
        found[f"{name}: error"] = float(error)
        if name == "routed":
            weights_nE = torch.cat([each.route.to_dense() for each in routings], dim=1)
            found |= _apart(weights_nE, centre)
    return found


def _apart(weights_nE: "Tensor", centre_n: "Tensor") -> dict[str, float]:
    """Least distance between the mean weights of two centres, and the spread inside a centre."""
    import torch

    own = [weights_nE[centre_n == at] for at in range(CENTRES)]
    means = torch.stack([each.mean(dim=0) for each in own])
    # In each weight, as the distance between two vectors grows with how long they are.
    inside = torch.stack([each.std(dim=0).square().sum().sqrt() for each in own])
    return {
        "weights: distance of the nearest centres": float(torch.pdist(means).min()),
        "weights: mean distance between centres": float(torch.pdist(means).mean()),
        "weights: spread inside a centre": float(inside.mean()),
        "weights: share of zeros": float((weights_nE == 0).float().mean()),
    }


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    better = mean(measurements, "routed: error") <= 0.5 * mean(measurements, "shared: error")
    inside = mean(measurements, "weights: spread inside a centre")
    return better and mean(measurements, "weights: mean distance between centres") > 5 * inside


CLAIM = Claim(
    slug="drmc",
    paper="DRMC: A Generalist Model with Dynamic Routing for Multi-Center PET Image Synthesis",
    year=2023,
    arxiv="2307.05249",
    level="moe",
    claim="Weights that a router gives the experts for each image keep centres with contradicting "
    "images from interfering, without being told the centre.",
    baseline="The same network with every expert at weight 1; equal updates, data and rate.",
    criterion="On images of 4 centres, two of them opposite, in the mean over the seeds: the "
    "relative error is at most half of that with shared weights, and the mean distance between the "
    "centres' mean weights is above 5 times the spread inside a centre.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.multi_centre",
    composition="router over channel means, handed on from bank to bank · ReLU · mixed attention "
    "and feed-forward experts on images",
    note="The weights do tell the centres apart, and the routed network has the lower error on "
    "every seed, but not half of it: banks of nonlinear experts with norms over the image learn to "
    "tell centres apart without any router.",
    key={
        "routed": "routed: error",
        "shared": "shared: error",
        "between centres": "weights: mean distance between centres",
        "inside a centre": "weights: spread inside a centre",
    },
)
