"""DARTS-PT: an operation is kept by what the supernet loses without it.

Wang et al., "Rethinking Architecture Selection in Differentiable NAS" (2021, arXiv 2108.04392).

After the supernet of DARTS is trained, edges are decided in random order: each operation is removed
in turn, the others keep their weights, and the one whose removal costs the most accuracy stays
alone; the supernet is tuned a little before the next edge. The part is
`supernet.relax.select_by_perturbation`.

What was settled:
- Both ways of selecting decide on the same trained supernet, searched a third longer than in the
  other claims, as the weight of skip connections is said to grow with time.
- Accuracy without an operation is on the whole calibration part; 15 updates of tuning each.
- Nine searches rather than the ten of the sheet.
"""

from collections.abc import Sequence

from pointsman.claims.frame import Claim, Figures, mean, must

RUNS = 3
UPDATES = 160
TUNING = 15


def quick() -> None:
    """With planted values that add up, the best operation is kept whatever its weight."""
    from torch import nn

    from pointsman.supernet.elastic.one_of import OneOf
    from pointsman.supernet.relax import Relaxation, select_by_perturbation
    from pointsman.supernet.supernet import Supernet

    worth = {"skip": 0.0, "small": 1.0, "large": 3.0}
    net = Supernet(nn.Sequential(*(OneOf(at, dict.fromkeys(worth, nn.ReLU())) for at in "ab")))

    def score(net: Supernet) -> float:
        mixtures = [dial.mixture for dial in net.dials]
        return sum(
            value * bool(weight > 0)
            for mixture in mixtures
            if mixture is not None
            for value, weight in zip(worth.values(), mixture.tolist(), strict=True)
        )

    differ = False
    for seed in range(5):
        relaxation = Relaxation(net, spread=3.0, seed=seed)
        kept = select_by_perturbation(net, relaxation, score, seed=seed)
        must(kept == (2, 2), "the operation that is worth the most is kept")
        differ |= relaxation.derive() != kept
    must(differ, "the largest weight is not always where the value is")


def full(seed: int) -> Figures:
    """Accuracy and skip share of what both selections take from the same supernets."""
    import torch

    from pointsman.claims.architectures import CELL_RATE
    from pointsman.claims.relaxed_cells import NEVER, Search, loss, skip_share
    from pointsman.claims.testbeds import accuracy
    from pointsman.modules import evaluating
    from pointsman.supernet.relax import Relaxation, select_by_perturbation
    from pointsman.supernet.supernet import Supernet

    largest, perturbed = [], []
    for run in range(RUNS):
        search = Search(seed, run)
        supernet = search.supernet()
        relaxation = Relaxation(supernet, never=NEVER, seed=search.seed)
        search.relaxed(supernet, relaxation, updates=UPDATES)
        largest.append(relaxation.derive())
        held_out = search.data.calibration

        def score(net: Supernet, held_out=held_out) -> float:  # type: ignore[no-untyped-def]
            with evaluating(net), torch.no_grad():
                return accuracy(net(held_out.x), held_out.y)

        batches = search.halves()[0]

        def tune(net: Supernet, batches=batches) -> None:  # type: ignore[no-untyped-def]
            optimiser = torch.optim.AdamW(net.parameters(), CELL_RATE / 4, weight_decay=1e-2)
            net.train()
            for _ in range(TUNING):
                optimiser.zero_grad()
                loss(net, next(batches)).backward()  # type: ignore[no-untyped-call]
                optimiser.step()

        perturbed.append(
            select_by_perturbation(supernet, relaxation, score, tune=tune, seed=search.seed)
        )
    found = {}
    for name, genotypes in (("perturbation", perturbed), ("largest weight", largest)):
        found[f"{name}: accuracy"] = sum(map(search.accuracy, genotypes)) / RUNS
        found[f"{name}: skip share"] = sum(map(skip_share, genotypes)) / RUNS
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    return mean(measurements, "perturbation: accuracy") >= mean(
        measurements, "largest weight: accuracy"
    ) and mean(measurements, "perturbation: skip share") <= mean(
        measurements, "largest weight: skip share"
    )


CLAIM = Claim(
    slug="darts-pt",
    paper="Rethinking Architecture Selection in Differentiable NAS",
    year=2021,
    arxiv="2108.04392",
    level="supernet",
    claim="Keeping the operations whose removal costs the supernet most gives better "
    "architectures, with fewer skip connections, than keeping those of the largest weight.",
    baseline="The operations of the largest weight, in the same trained supernets.",
    criterion="Over nine searches, the mean table accuracy of the cells kept by perturbation is at "
    "least that of the cells with the largest weights, and their share of skip connections is no "
    "larger.",
    quick=quick,
    full=full,
    decide=decide,
    composition="softmax gates · alternating loop · selection by perturbation",
    entry="pointsman.supernet.relax.select_by_perturbation",
    key={
        "perturbation": "perturbation: accuracy",
        "largest weight": "largest weight: accuracy",
        "skips": "perturbation: skip share",
        "skips, largest": "largest weight: skip share",
    },
)
