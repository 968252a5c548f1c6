"""Dr.LLM: routers that skip, run or repeat the blocks of a frozen network, taught by a search.

Heakl et al., "Dr.LLM: Dynamic Layer Routing in LLMs" (2025, arXiv:2510.12773).

A small router before each block of a frozen residual network decides whether the input skips it,
runs it or runs it twice. What to decide is found offline: among many paths through the network, for
each input the shortest that answers right. The routers learn these labels with a focal loss with
class-balanced weights while each block runs as the label says. The parts: `every_path` (or
`TreeSearch`, where paths are many), `Tried.best`, `WindowRouters`, `fit_routers`, `SkipNetwork`,
and `skip_gap`, which holds the routers against chance and the oracle.

What was settled:
- The network is a residual multi-layer perceptron of six blocks on noisy digits instead of a
  language model; all paths with at most two edits are tried instead of a tree search.
- The network learns from 700 images. 300 others and half of the calibration images, each under
  four draws of noise, give the labels; the other half, as often, choose the price of a run: the
  dearest whose accuracy there is at most 0.75 points below the frozen network's. Everything is
  reported on the test part.
- "Answers right" is taken with a margin: a path is good enough if it gives the label at most 0.1
  less probability than the whole network does. A path that is right by a hair does not carry over
  to the next input. Of an input's equally short paths the label is the one that is good enough for
  most inputs.
- This, the noise, the 0.75 points and the parts were set on seeds from 100 on.
- Routers have 8 hidden units instead of 128, as a block here is only 64 wide inside; classes are
  weighed with beta 0.9, as repeats are next to none among the labels and would weigh too much.
- Random skipping keeps each input's number of skips and repeats and draws the blocks.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import Tensor

    from pointsman.claims.testbeds import Part
    from pointsman.depth.layers.network import SkipNetwork
    from pointsman.depth.layers.perceptron import ResidualPerceptron
    from pointsman.depth.layers.search import Tried

BLOCKS, WIDTH, NOISE, UPDATES = 6, 32, 0.1, 500
EDITS, MARGIN, SLACK, HIDDEN, LEARNED, BETA = 2, 0.1, 0.0075, 8, 700, 0.9
PRICES = (-6.0, -4.0, *(at / 8 for at in range(-24, 1)))


def quick() -> None:
    """Routers that always run give the network to the bit; the label is the shortest right path."""
    import math

    import numpy as np
    import torch

    from pointsman.depth.layers.network import SkipNetwork
    from pointsman.depth.layers.paths import enumerate_paths
    from pointsman.depth.layers.routers import WindowRouters
    from pointsman.depth.layers.search import TreeSearch, every_path

    torch.manual_seed(0)
    trunk = _network(0).eval()
    routers: Any = WindowRouters(BLOCKS, WIDTH)
    network = SkipNetwork(trunk, routers)
    x = torch.randn(40, 64)
    y = trunk(x).argmax(dim=1)
    must(torch.equal(network.run(x, -math.inf).output, trunk(x)), "price -inf is the network")
    with torch.no_grad():
        routers.judges["3"][2].bias.copy_(torch.tensor([99.0, 0.0, 0.0]))  # skip
    runs = network.run(x).runs
    must(bool((runs[:, 3] == 0).all()), "a router that says skip is obeyed")
    tried = every_path(trunk, x, y, enumerate_paths(BLOCKS, max_edits=EDITS))
    labels, found = tried.best(least=1.0)
    must(bool(found.all()), "the whole network is right, so every input has a right path")
    lengths = np.array([sum(path) for path in tried.paths])
    for row, label in enumerate(labels.tolist()):
        right = lengths[tried.quality[:, row] == 1]
        must(sum(label) == right.min(), "no right path is shorter than the label")
    few = TreeSearch(simulations=30).search(trunk, x, y)
    must(bool((few.counts() == 30).all()), "a search keeps its budget")


def _network(seed: int) -> "ResidualPerceptron":
    from pointsman.depth.layers.perceptron import ResidualPerceptron

    return ResidualPerceptron(64, WIDTH, BLOCKS, 10, seed=seed)


def full(seed: int) -> Figures:
    """Accuracy and block runs of routers, chance, one path for all, and the oracle."""
    import torch

    from pointsman.claims import testbeds
    from pointsman.depth.layers.gap import skip_gap
    from pointsman.depth.layers.network import SkipNetwork, likelihood
    from pointsman.depth.layers.paths import enumerate_paths
    from pointsman.depth.layers.routers import WindowRouters
    from pointsman.depth.layers.search import every_path
    from pointsman.depth.layers.training import fit_routers

    learned, labelled, held_out, test = _parts(seed)
    trunk = _network(seed)
    testbeds.fit(trunk, learned, seed=seed, updates=UPDATES, decay=0.05, noise=NOISE)
    paths = enumerate_paths(BLOCKS, max_edits=EDITS)
    tried = every_path(trunk, labelled.x, labelled.y, paths, quality=likelihood)
    labels, _ = tried.best(tolerance=MARGIN)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SkipNetwork(trunk, WindowRouters(BLOCKS, WIDTH, hidden=HIDDEN))
    fit_routers(network, labelled.x, labels, beta=BETA, updates=300, seed=seed)
    price = _price(network, held_out)
    tried_test = every_path(trunk, test.x, test.y, paths)
    at = skip_gap(network, test.x, test.y, tried_test, [price], seed=seed).at(price)
    saved = at["skipped"] - at["repeated"]
    one = _one_path(every_path(trunk, held_out.x, held_out.y, paths), BLOCKS * (1 - saved))
    return {
        "frozen network: accuracy": at["whole"],
        "routers: accuracy": at["routers"],
        "routers: share of runs saved": saved,
        "routers: repeats": at["repeated"],
        "routers: share of MFLOPs saved": at["saved"],
        "random blocks: accuracy": at["shuffled"],
        "other inputs' paths: accuracy": at["exchanged"],
        "one path for all: accuracy": float(tried_test.quality[paths.index(one)].mean()),
        "one path for all: share of runs saved": 1 - sum(one) / BLOCKS,
        "oracle: accuracy": at["oracle"],
        "labels: repeats": float((labels == 2).double().mean()),
    }


def _parts(seed: int) -> tuple["Part", "Part", "Part", "Part"]:
    """To learn from (clean), to label, to choose the price, to test; no image is in two of them."""
    import torch

    from pointsman.claims.testbeds import Part, digits

    data, generator = digits(seed), torch.Generator().manual_seed(seed)

    def noisy(x: "Tensor", y: "Tensor", copies: int) -> "Part":
        x = x.repeat(copies, 1)
        return Part(x + NOISE * torch.randn(x.shape, generator=generator), y.repeat(copies))

    train, calibration, half = data.train, data.calibration, len(data.calibration.x) // 2
    labelled = [torch.cat([a[LEARNED:], b[:half]]) for a, b in _columns(train, calibration)]
    return (
        Part(train.x[:LEARNED], train.y[:LEARNED]),
        noisy(labelled[0], labelled[1], 4),
        noisy(calibration.x[half:], calibration.y[half:], 4),
        noisy(data.test.x, data.test.y, 4),
    )


def _columns(*parts: "Part") -> list[tuple["Tensor", ...]]:
    return [tuple(part.x for part in parts), tuple(part.y for part in parts)]


def _price(network: "SkipNetwork", held_out: "Part") -> float:
    """The dearest price that loses at most 0.75 points; the safest where none does."""
    found = network.outcomes(held_out.x, held_out.y, PRICES)
    drops = found.drops().mean(axis=1)
    kept = [price for price, drop in zip(PRICES, drops, strict=True) if drop <= SLACK]
    return max(kept, default=PRICES[0])


def _one_path(tried: "Tried", most: float) -> tuple[int, ...]:
    """The path that is best for all inputs together among those of at most so many runs."""
    fits = [at for at, path in enumerate(tried.paths) if sum(path) <= most + 0.5]
    best: tuple[int, ...] = tried.paths[max(fits, key=lambda at: tried.quality[at].mean())]
    return best


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    routers = mean(measurements, "routers: accuracy")
    return (
        mean(measurements, "routers: share of runs saved") >= 0.15
        and routers >= mean(measurements, "frozen network: accuracy") - 0.01
        and routers >= mean(measurements, "random blocks: accuracy") + 0.02
    )


CLAIM = Claim(
    slug="dr-llm",
    paper="Dr.LLM: Dynamic Layer Routing in LLMs",
    year=2025,
    arxiv="2510.12773",
    level="depth",
    claim="Small routers, taught which blocks of a frozen network an input needs by a search done "
    "offline, leave blocks out at no loss of accuracy.",
    baseline="The frozen network, and skipping as many blocks for each input drawn at random.",
    criterion="On the test part, in the mean over the seeds: at least 15% fewer runs of blocks, at "
    "an accuracy at most 1 point below the frozen network's and at least 2 points above random "
    "skipping of as many blocks.",
    quick=quick,
    full=full,
    decide=decide,
    key={
        "routers": "routers: accuracy",
        "frozen": "frozen network: accuracy",
        "random": "random blocks: accuracy",
        "runs saved": "routers: share of runs saved",
    },
    composition="paths tried offline · shortest right path as label · a router a block · focal "
    "loss, class-balanced · skip, run or repeat",
    entry="pointsman.depth.layers.SkipNetwork",
    note="One of the three seeds alone saves less than 15%. The gain over random skipping is owed "
    "to which blocks are left out, not to deciding by input: one fixed path for all inputs does as "
    "well, and so do the routers' paths given to other inputs. In MFLOPs, with the routers paid, "
    "13.7% is saved.",
)
