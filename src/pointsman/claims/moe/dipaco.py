"""DiPaCo: paths through shared modules, trained on their own documents and averaged now and then.

Douillard et al., "DiPaCo: Distributed Path Composition" (2024, arXiv 2403.10616).

A network has levels of alternative modules, and a path takes one of each. Documents are routed by
features of their first tokens, which are left out of every loss: k-means makes one shard for each
path. A worker trains its path for many inner steps with AdamW; then every module takes an outer
Nesterov step by the mean change over its paths, weighted by the sizes of their shards and scaled
by the root of their number. In use a document runs one path.

What was settled:
- A small world instead of C4: 4 languages of 16 symbols, in each of which the next symbol hangs on
  the last two (logits of standard deviation 1) and on a bias of the language (1 too). Documents of
  96 symbols, the first 32 for routing by their frequencies; 512 to train on, 256 fresh ones.
- 2 levels of 2 modules: 4 paths, 4 shards. Everything starts from one network pretrained on all
  documents for 100 steps; then 20 rounds of 25 inner steps. The dense network of the size of a path
  takes as many steps in all, on batches of the same size; with four paths at work the paper too
  counts steps, and not work. A dense network with batches of four times the size, which sees as
  much text as all paths together, is shown beside.
- Rates were tried on other seeds among 0.003, 0.01 and 0.03: 0.01 for the dense networks, 0.003
  for the paths, whose outer rate is 0.7 with momentum 0.6, of (0.7, 0.9), (0.7, 0.6), (0.4, 0.6).
- Re-sharding by a discriminative router, overlap and early stopping are left out.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

SYMBOLS, LANGUAGES, LONG, PREFIX = 16, 4, 96, 32
WIDTH, BATCH = 32, 256
START, ROUNDS, INNER = 100, 20, 25
DENSE_RATE, INNER_RATE, OUTER_RATE, MOMENTUM = 1e-2, 3e-3, 0.7, 0.6


def quick() -> None:
    """A round with outer rate 1 is averaging; one path is its worker; other modules stay."""
    import torch
    from torch import nn
    from torch.testing import assert_close

    from pointsman.moe.parallel import Paths, PathTraining

    def fresh() -> Paths:
        torch.manual_seed(0)
        return Paths([[nn.Linear(3, 3) for _ in range(2)] for _ in range(2)]).double()

    def batches(seed: int) -> Callable[[nn.Module], torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)

        def loss(net: nn.Module) -> torch.Tensor:
            x = torch.randn(8, 3, generator=generator, dtype=torch.float64)
            found: torch.Tensor = (net(x) - x).square().mean()
            return found

        return loss

    def changed(*seeds: tuple[int, int]) -> list[torch.Tensor]:
        net, before = fresh(), fresh()
        training = PathTraining(net, outer_rate=1.0, momentum=0.0)
        training.round({path: (1.0, batches(path[1])) for path in seeds}, 5)
        pairs = zip(before.parameters(), net.parameters(), strict=True)
        return [(old - new).detach() for old, new in pairs]

    single = fresh().extract((0, 0))
    optimiser, loss = torch.optim.AdamW(single.parameters(), 1e-3, weight_decay=0.0), batches(0)
    for _ in range(5):
        optimiser.zero_grad()
        loss(single).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    start = fresh().extract((0, 0))
    wanted = [
        (old - new).detach()
        for old, new in zip(start.parameters(), single.parameters(), strict=True)
    ]
    first, second, both = changed((0, 0)), changed((0, 1)), changed((0, 0), (0, 1))
    for found, mine in zip([*first[:2], *first[4:6]], wanted, strict=True):
        assert_close(found, mine, rtol=0, atol=1e-12)  # one path: what its worker did
    must(not any(bool(found.any()) for found in [*first[2:4], *first[6:]]), "others stay")
    for at in (0, 1):  # the module that both ran through
        assert_close(both[at], 2**0.5 * (first[at] + second[at]) / 2, rtol=0, atol=1e-12)
    for at in (4, 5):  # a module of one path
        assert_close(both[at], first[at], rtol=0, atol=1e-12)


def full(seed: int) -> Figures:
    """Nats a symbol on fresh documents, with good and with useless routing, and of dense ones."""
    import numpy as np

    from pointsman.moe.parallel import nearest_shard, shard_centres

    world = _World(seed)
    train, language = world.documents(512, 1)
    fresh, other = world.documents(256, 2)
    features, known = _frequencies(fresh), _frequencies(train)
    centres = shard_centres(known, LANGUAGES, seed=seed)
    shards, routed = nearest_shard(known, centres), nearest_shard(features, centres)
    rng = np.random.default_rng(seed)
    useless = rng.integers(LANGUAGES, size=len(train)), rng.integers(LANGUAGES, size=len(fresh))
    return {
        "paths: nats a symbol": _paths(seed, train, shards, fresh, routed),
        "paths, random routing: nats a symbol": _paths(seed, train, useless[0], fresh, useless[1]),
        "dense, size of a path: nats a symbol": _dense(seed, train, fresh, BATCH),
        "dense, four times the text: nats a symbol": _dense(seed, train, fresh, 4 * BATCH),
        "routing: purity": _purity(routed, other),
        "routing, in training: purity": _purity(shards, language),
    }


class _World:
    """Languages in which the next symbol hangs on the last two."""

    def __init__(self, seed: int) -> None:
        import numpy as np

        self.rng, self.seed = np.random.default_rng(seed), seed
        shape = (LANGUAGES, SYMBOLS, SYMBOLS, SYMBOLS)
        bias = self.rng.standard_normal((LANGUAGES, 1, 1, SYMBOLS))
        chances = np.exp(self.rng.standard_normal(shape) + bias)
        self.cumulative = (chances / chances.sum(axis=3, keepdims=True)).cumsum(axis=3)

    def documents(self, count: int, part: int) -> "tuple[np.ndarray, np.ndarray]":
        """(N, places) symbols and the language of each document."""
        import numpy as np

        rng = np.random.default_rng([self.seed, part])
        language = rng.integers(LANGUAGES, size=count)
        found = np.zeros((count, LONG), dtype=np.int64)
        found[:, :2] = rng.integers(SYMBOLS, size=(count, 2))
        for at in range(2, LONG):
            table = self.cumulative[language, found[:, at - 2], found[:, at - 1]]
            drawn = (table < rng.random((count, 1))).sum(axis=1)
            found[:, at] = np.minimum(drawn, SYMBOLS - 1)
        return found, language


def _frequencies(documents: "np.ndarray") -> "np.ndarray":
    """(N, symbols) of the prefix, which is left out of every loss."""
    import numpy as np

    found: np.ndarray = np.eye(SYMBOLS)[documents[:, :PREFIX]].mean(axis=1)
    return found


def _purity(shards: "np.ndarray", language: "np.ndarray") -> float:
    """Share of documents whose language is the most common one of their shard."""
    import numpy as np

    counts = [np.bincount(language[shards == shard]).max(initial=0) for shard in range(LANGUAGES)]
    return float(sum(counts) / len(language))


def _pairs(documents: "np.ndarray") -> "tuple[Tensor, Tensor]":
    """Two symbols, one-hot, and the next one, at all places behind the prefix."""
    import torch

    ids = torch.as_tensor(documents)
    before = torch.stack([ids[:, PREFIX - 2 : -2], ids[:, PREFIX - 1 : -1]], dim=2)
    hot = torch.nn.functional.one_hot(before, SYMBOLS).flatten(2).float()
    return hot.flatten(0, 1), ids[:, PREFIX:].flatten()


def _loss(documents: "np.ndarray", batch: int, seed: int) -> "Callable[[nn.Module], Tensor]":
    import torch
    from torch.nn.functional import cross_entropy

    x, y = _pairs(documents)
    generator = torch.Generator().manual_seed(seed)

    def loss(net: "nn.Module") -> "Tensor":
        rows = torch.randint(len(x), (batch,), generator=generator)
        return cross_entropy(net(x[rows]), y[rows])

    return loss


def _network(seed: int) -> "list[nn.Module]":
    """The two levels of one path."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [
            nn.Sequential(nn.Linear(2 * SYMBOLS, WIDTH), nn.ReLU()),
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, SYMBOLS)),
        ]


def _advance(
    net: "nn.Module", loss: "Callable[[nn.Module], Tensor]", steps: int, rate: float
) -> None:
    import torch

    optimiser = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.0)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(net).backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def _nats(nets: "Sequence[nn.Module]", documents: "np.ndarray", routed: "np.ndarray") -> float:
    """Of every symbol behind the prefix, each document through its own network."""
    import torch
    from torch.nn.functional import cross_entropy

    total, count = 0.0, 0
    with torch.no_grad():
        for at, net in enumerate(nets):
            x, y = _pairs(documents[routed == at])
            total += float(cross_entropy(net(x), y, reduction="sum"))
            count += len(y)
    return total / count


def _dense(seed: int, train: "np.ndarray", fresh: "np.ndarray", batch: int) -> float:
    import numpy as np
    from torch import nn

    net = nn.Sequential(*_network(seed))
    _advance(net, _loss(train, batch, seed), START + ROUNDS * INNER, DENSE_RATE)
    return _nats([net], fresh, np.zeros(len(fresh), dtype=np.int64))


def _paths(
    seed: int,
    train: "np.ndarray",
    shards: "np.ndarray",
    fresh: "np.ndarray",
    routed: "np.ndarray",
) -> float:
    from copy import deepcopy

    from torch import nn

    from pointsman.moe.parallel import Paths, PathTraining

    levels = _network(seed)
    _advance(nn.Sequential(*levels), _loss(train, BATCH, seed), START, INNER_RATE)
    model = Paths([[deepcopy(level) for _ in range(2)] for level in levels])
    training = PathTraining(model, inner_rate=INNER_RATE, outer_rate=OUTER_RATE, momentum=MOMENTUM)
    work = {
        path: (float((shards == at).sum()), _loss(train[shards == at], BATCH, seed + 1 + at))
        for at, path in enumerate(model.paths())
    }
    for _ in range(ROUNDS):
        training.round(work, INNER)
    return _nats([model.extract(path) for path in model.paths()], fresh, routed)


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    ours = mean(measurements, "paths: nats a symbol")
    dense = mean(measurements, "dense, size of a path: nats a symbol")
    return mean(measurements, "routing: purity") > 0.9 and ours < dense


CLAIM = Claim(
    slug="dipaco",
    paper="DiPaCo: Distributed Path Composition",
    year=2024,
    arxiv="2403.10616",
    level="moe",
    claim="Paths through shared modules that are trained apart on their own documents, and "
    "averaged only now and then, model text better than one network of the size of a path.",
    baseline="A dense network of the size of a path with as many steps; the same paths under "
    "random routing, and the dense network with four times the text, beside it.",
    criterion="On fresh documents in the mean over the seeds: more than 0.9 of the documents are "
    "in a shard of their own language, and the loss is below that of the dense network of the size "
    "of a path after as many steps.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.parallel.PathTraining",
    composition="k-means of prefix frequencies · 2 x 2 shared modules · inner AdamW · outer "
    "Nesterov a module",
    key={
        "nats": "paths: nats a symbol",
        "nats, dense": "dense, size of a path: nats a symbol",
        "nats, random routing": "paths, random routing: nats a symbol",
        "purity": "routing: purity",
    },
)
