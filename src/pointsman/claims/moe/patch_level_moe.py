"""Experts that look at a few patches each need fewer labelled images.

Chowdhury et al., "Patch-level Routing in Mixture-of-Experts is Provably Sample-efficient for
Convolutional Neural Networks" (2023, arXiv 2306.04073).

Of the patches of an image, each expert takes the few that its router scores highest and adds up
its filters' answers, weighed by a softmax over these. Patches that say nothing of the label get out
of the way. The composition is `systems.factored.patch_level`, its selection `patch_choice`.

What was settled:
- The paper's own model of data: an image is 16 patches of 32 numbers, one of them one of two
  orthogonal patterns that tell the label, at a random place, the others random with the pattern's
  length.
- Router and experts are trained together, with the softmax over the chosen patches. The other way
  of the paper, in which the router is trained first, is not checked.
- 4 experts of 8 filters take 2 patches each. The baseline is a convolutional network with all 32
  filters on every patch, which is the same bank with one expert that takes all patches, each with
  the same weight. Both have fixed random signs and the same training.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import Tensor

    from pointsman.moe import MoE

WIDTH, PATCHES = 32, 16
EXPERTS, FILTERS, CHOSEN = 4, 8, 2
SAMPLES = (40, 80, 160, 320)
UPDATES, RATE = 400, 3e-3
TEST = 2000


def quick() -> None:
    """Each expert takes its best patches of each image, and no other image has a say."""
    import torch
    from torch.testing import assert_close

    from pointsman.moe.systems.factored import patch_choice, patch_level

    torch.manual_seed(0)
    layer = patch_level(WIDTH, PATCHES, EXPERTS, FILTERS, CHOSEN, router_std=1.0, filter_std=1.0)
    x = torch.randn(5, PATCHES, WIDTH)
    y, routing = layer(x)
    scores = routing.scores.reshape(5, PATCHES, EXPERTS)
    best, places = scores.topk(CHOSEN, dim=1)
    table = routing.route.to_dense().reshape(5, PATCHES, EXPERTS)
    assert_close(table.gather(1, places), best.softmax(dim=1))
    assert_close(table.sum(dim=1), torch.ones(5, EXPERTS))
    must(routing.route.load().tolist() == [5 * CHOSEN] * EXPERTS, "every expert takes as many")
    for at in range(5):
        assert_close(layer(x[at : at + 1])[0], y[at : at + 1])
    whole = patch_choice(routing.scores, PATCHES, PATCHES)
    assert_close(whole.to_dense(), scores.softmax(dim=1).flatten(0, 1))
    y.sum().backward()
    grads = {
        name: w.grad is not None and bool(w.grad.any()) for name, w in layer.named_parameters()
    }
    expected = {"router.weight": True, "experts.up_EFD": True, "experts.up_bias_EF": True}
    for name, learns in grads.items():
        must(learns == expected.get(name, False), f"{name} learns: {learns}")


def full(seed: int) -> Figures:
    """Test accuracy by the number of training images, and how often the label's patch is taken."""
    found = {}
    for samples in SAMPLES:
        routed, everything = (_layer(seed, EXPERTS, CHOSEN), _layer(seed, 1, PATCHES))
        found[f"{samples} images: routed"], taken = _accuracy(routed, seed, samples)
        found[f"{samples} images: convolution"], _ = _accuracy(everything, seed, samples)
        found[f"{samples} images: label patch taken"] = taken
    return found


def _layer(seed: int, experts: int, chosen: int) -> "MoE":
    import torch

    from pointsman.moe.systems.factored import patch_level

    torch.manual_seed(seed)
    filters = EXPERTS * FILTERS // experts
    layer = patch_level(WIDTH, PATCHES, experts, filters, chosen)
    if experts == 1:
        # All patches with one weight: the router stays at zero.
        torch.nn.init.zeros_(layer.router.weight).requires_grad_(False)  # type: ignore[arg-type]
    return layer


def _draw(count: int, seed: int, world: int) -> "tuple[Tensor, Tensor, Tensor]":
    """Images (n, S, D), labels (n,) of -1 and 1, and the place of the label's patch (n,)."""
    import torch

    patterns = torch.randn(WIDTH, 2, generator=torch.Generator().manual_seed(world))
    patterns = torch.linalg.qr(patterns).Q.T * WIDTH**0.5
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, PATCHES, WIDTH, generator=generator)
    label = torch.randint(2, (count,), generator=generator)
    place = torch.randint(PATCHES, (count,), generator=generator)
    x[torch.arange(count), place] = patterns[label]
    return x, 2.0 * label - 1, place


def _accuracy(layer: "MoE", seed: int, samples: int) -> tuple[float, float]:
    """After training on so many images: accuracy, and how often the label patch is taken."""
    import torch
    from torch.nn.functional import softplus

    x, label, _ = _draw(samples, 1000 + seed, seed)
    weights = [weight for weight in layer.parameters() if weight.requires_grad]
    optimiser = torch.optim.Adam(weights, RATE, fused=True)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(UPDATES):
        rows = torch.randint(samples, (20,), generator=generator)
        loss = softplus(-label[rows] * layer(x[rows])[0].sum(dim=(1, 2))).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    x, label, place = _draw(TEST, 2000 + seed, seed)
    with torch.no_grad():
        y, routing = layer(x)
    right = float((y.sum(dim=(1, 2)).sign() == label).float().mean())
    took = routing.route.branches_per_input().reshape(TEST, PATCHES) > 0
    return right, float(took[torch.arange(TEST), place].float().mean())


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    fewer = all(
        mean(measurements, f"{few} images: routed")
        >= mean(measurements, f"{4 * few} images: convolution")
        for few in (40, 80)
    )
    return fewer and mean(measurements, "80 images: label patch taken") > 0.9


CLAIM = Claim(
    slug="patch-level-moe",
    paper="Patch-level Routing in Mixture-of-Experts is Provably Sample-efficient for "
    "Convolutional Neural Networks",
    year=2023,
    arxiv="2306.04073",
    level="moe",
    claim="Letting each expert take a few patches of an image cuts the labelled images needed, "
    "because the routers leave out patches that say nothing of the label.",
    baseline="A convolutional network with as many filters, each on every patch.",
    criterion="In the mean over the seeds, the routed network trained on 40 and on 80 images is at "
    "least as accurate as the convolutional one trained on four times as many, and trained on 80 "
    "it routes the patch that tells the label in more than 90% of the test images.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.factored.patch_level",
    composition="linear router · experts choose patches of each image, softmax over these · ReLU "
    "filters with fixed signs",
    key={
        "40 images, routed": "40 images: routed",
        "160, convolution": "160 images: convolution",
        "80 images, routed": "80 images: routed",
        "320, convolution": "320 images: convolution",
    },
    note="From 80 images on the routed network is right nearly always and beats the convolutional "
    "one of four times the images. On 40 it fails: its experts often settle on one of the two "
    "patterns, or on none.",
)
