"""MAP: the front of merged models from a handful of evaluated merges.

Li et al., "MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic Approximation"
(2024, arXiv 2406.07529).

Merges add shares of task vectors to a base; the metric of each task, behind a link, is fitted as a
quadratic function of the shares, and NSGA-III finds the front on these surrogates. The parts are
`supernet.merge`, `QuadraticSurrogate` and `amortised_front`.

What was settled:
- A network 64-32-10 is trained briefly on all labels, and fine-tuned once on the labels 0 to 4 and
  once on 5 to 9. The metrics are the accuracies on either half of the labels, on the calibration
  part, with the sigmoid as link.
- 12 merges are evaluated for the surrogates, and at most 32 of the front that they give: 44, a
  tenth of the grid of 21 x 21 merges that is the truth. Only what was evaluated counts.
- Hypervolumes begin at the worst accuracy of either task on the grid, so they are no formality.
- The plain version: neither bins for uncertainty (Bayesian) nor merging in pairs (nested).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import numpy as np

    from pointsman.claims.testbeds import Part

GRID, EVALUATED = 21, 32
BASE_UPDATES, TUNE_UPDATES = 60, 150


def quick() -> None:
    """Quadratic task losses are met exactly from 12 merges, and their front is found."""
    import numpy as np

    from pointsman.supernet.merging import QuadraticSurrogate, amortised_front, design

    shares, tops = design(2), ([0.2, 0.6], [0.9, 0.3])

    def metrics(c_NK: Any) -> list[Any]:
        return [-((c_NK - top) ** 2).sum(axis=1) for top in tops]

    models = [QuadraticSurrogate().fit(shares, metric) for metric in metrics(shares)]
    new = np.random.default_rng(0).random((30, 2))
    for model, metric in zip(models, metrics(new), strict=True):
        must(bool(np.allclose(model.predict(new), metric)), "the surrogate is the metric itself")
    found = amortised_front(models, 2, population=20, generations=40)
    along = (found - tops[0]) @ np.array([0.7, -0.3]) / 0.58
    line = np.array(tops[0]) + along[:, None] * np.array([0.7, -0.3])
    must(float(np.abs(found - line).max()) < 0.05, "the front is the line between the optima")


def full(seed: int) -> Figures:
    """How well surrogates foresee merges, and the share of the grid's hypervolume."""
    import numpy as np

    from pointsman.supernet.merging import QuadraticSurrogate, amortised_front, design

    measure = _measure(seed)
    values = np.linspace(0, 1, GRID)
    grid = np.stack(np.meshgrid(values, values), axis=-1).reshape(-1, 2)
    truth_NT = np.array([measure(row) for row in grid])
    shares = design(2, seed=seed)
    seen_NT = np.array([measure(row) for row in shares])
    models = [QuadraticSurrogate("sigmoid").fit(shares, seen_NT[:, task]) for task in (0, 1)]
    held = [row not in {tuple(s) for s in shares.tolist()} for row in map(tuple, grid.tolist())]
    explained = [
        1
        - ((model.predict(grid[held]) - truth_NT[held, task]) ** 2).sum()
        / ((truth_NT[held, task] - truth_NT[held, task].mean()) ** 2).sum()
        for task, model in enumerate(models)
    ]
    found = amortised_front(models, 2, seed=seed)
    predicted = np.stack([model.predict(found) for model in models], axis=1)
    ranked = found[np.argsort(predicted[:, 0])]
    places = np.unique(np.linspace(0, len(ranked) - 1, EVALUATED).round().astype(int))
    ours_NT = np.array([measure(row) for row in ranked[places]])
    both_NT = np.concatenate([seen_NT, ours_NT])
    drawn = np.random.default_rng(seed).random((len(both_NT), 2))
    random_NT = np.array([measure(row) for row in drawn])
    worst = truth_NT.min(axis=0)
    whole = _hypervolume(truth_NT, worst)
    return {
        "surrogate: R², lesser of both tasks": float(min(explained)),
        "MAP: share of hypervolume": _hypervolume(both_NT, worst) / whole,
        "its 12 design points: share of hypervolume": _hypervolume(seen_NT, worst) / whole,
        "as many at random: share of hypervolume": _hypervolume(random_NT, worst) / whole,
        "MAP: evaluations": float(len(both_NT)),
        "grid: evaluations": float(len(grid)),
    }


def _measure(seed: int) -> Any:
    """Gives the accuracies on either half of the labels of a merge with these shares."""
    import torch

    from pointsman.claims.architectures import NOISE, noisy_digits
    from pointsman.claims.testbeds import Part, accuracy, fit, mlp
    from pointsman.supernet.merging import merge

    data = noisy_digits(seed)

    def half(part: "Part", low: bool) -> "Part":
        rows = (part.y < 5) == low
        return Part(part.x[rows], part.y[rows])

    def trained(state: Any, part: "Part", updates: int) -> dict[str, torch.Tensor]:
        net = mlp(64, 32, 10, seed=seed)
        if state is not None:
            net.load_state_dict(state)
        fit(net, part, seed=seed, updates=updates, noise=NOISE)
        return {name: value.clone() for name, value in net.state_dict().items()}

    base = trained(None, data.train, BASE_UPDATES)
    tuned = [trained(base, half(data.train, low), TUNE_UPDATES) for low in (True, False)]
    tasks = [half(data.calibration, low) for low in (True, False)]
    net = mlp(64, 32, 10, seed=seed)

    def measure(shares: Any) -> list[float]:
        net.load_state_dict(merge(base, tuned, list(shares)))
        with torch.no_grad():
            return [accuracy(net(task.x), task.y) for task in tasks]

    return measure


def _hypervolume(metrics_N2: "np.ndarray[Any, Any]", worst: "np.ndarray[Any, Any]") -> float:
    from pointsman.frontier import Frontier, Point

    points = tuple(Point(at, a, -b) for at, (a, b) in enumerate(metrics_N2.tolist()))
    front = Frontier("merges", points, "negative accuracy")
    return front.hypervolume(worst_quality=float(worst[0]), worst_cost=-float(worst[1]))


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    return (
        mean(measurements, "surrogate: R², lesser of both tasks") > 0.9
        and mean(measurements, "MAP: share of hypervolume") >= 0.95
        and 10 * mean(measurements, "MAP: evaluations") <= mean(measurements, "grid: evaluations")
    )


CLAIM = Claim(
    slug="map",
    paper="MAP: Low-compute Model Merging with Amortized Pareto Fronts via Quadratic Approximation",
    year=2024,
    arxiv="2406.07529",
    level="supernet",
    claim="The front of merged models is found with far fewer evaluations than a search of its "
    "own needs, since the metrics are nearly quadratic in the shares of the merge.",
    baseline="A grid of 21 x 21 merges, all evaluated; and as many merges at random as MAP uses.",
    criterion="In the mean over the seeds: R² of the surrogates on merges of the grid that they "
    "were not fitted on exceeds 0.9 for both tasks, and the evaluated merges reach at least 95% of "
    "the grid's hypervolume with at most a tenth of its evaluations.",
    quick=quick,
    full=full,
    decide=decide,
    composition="task vectors with shares · quadratic surrogate behind a link · NSGA-III on the "
    "surrogates · the front evaluated",
    entry="pointsman.supernet.merging.amortised_front",
    key={
        "R²": "surrogate: R², lesser of both tasks",
        "MAP": "MAP: share of hypervolume",
        "random": "as many at random: share of hypervolume",
    },
    note="Fine-tuning on half of the labels makes large task vectors, along which accuracies fall "
    "from near 1 to near 0: the quadratic form that rests on small ones explains little more than "
    "half. The front is still closer to the grid's than that of as many merges at random.",
)
