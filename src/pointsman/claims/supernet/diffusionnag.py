"""DiffusionNAG: architectures drawn from a learned distribution, tilted by a predictor.

An et al., "DiffusionNAG: Predictor-guided Neural Architecture Generation with Diffusion Models"
(2023, arXiv 2305.16943).

An architecture is the one-hot vector of its operations. A network learns the score of the vectors
under noise of every size, another one the accuracy of an architecture from its noisy vector; the
gradient of the second is added to the first while noise is taken away step by step. So better
architectures are generated, where others generate and filter. The parts are
`supernet.search.generation.GenotypeDiffusion` and, as an engine, `engines.diffusion`.

What was settled:
- Six edges with one of five operations each; the score of an architecture is a random gain for each
  edge's operation plus random interactions of pairs, known exactly, so that what was generated can
  be judged by the truth. No data sets, and so no embedding of them.
- The distribution is learned from 5,000 uniformly drawn architectures without scores, the guide
  from 500 of them with scores; 100 sizes of noise; the guide's weight is 10, tried out on seed 100.
- An architecture is valid if exactly one operation of each edge is above 1/2.
- The baseline is generation without guidance (weight 0), and filtering it: as many valid ones as
  the guide was fitted to cost the same number of scores.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from pointsman.supernet.space import Genotype, Space

EDGES, OPERATIONS = 6, 5
EXAMPLES, SCORED, GENERATED = 5000, 500, 500
GUIDANCE = 10.0
# 4 degrees of freedom, at 1 - 0.05 / 18: six edges of each of three seeds, 5% for all together
REJECTED = 16.19


def synthetic(seed: int) -> "tuple[Space, Callable[[Genotype], float]]":
    """The space, and the true score of an architecture."""
    import numpy as np

    from pointsman.supernet.space import Choice, Space

    rng = np.random.default_rng(seed)
    alone = rng.normal(size=(EDGES, OPERATIONS))
    pairs = rng.normal(0, 0.3, (EDGES, EDGES, OPERATIONS, OPERATIONS))

    def score(genotype: "Genotype") -> float:
        taken = np.array(genotype)
        one, other = np.triu_indices(EDGES, 1)
        both = pairs[one, other, taken[one], taken[other]].sum()
        return float(alone[np.arange(EDGES), taken].sum() + both)

    names = tuple(f"operation {at}" for at in range(OPERATIONS))
    return Space([Choice(f"edge {at}", names) for at in range(EDGES)]), score


def quick() -> None:
    """Without guidance genotypes come out as they were distributed; with it the guided ones do."""
    import numpy as np

    from pointsman.supernet.search.generation import GenotypeDiffusion

    space, _ = synthetic(0)
    rng = np.random.default_rng(0)
    examples = [space.sample(rng) for _ in range(500)]
    examples = [(0, *genotype[1:]) for genotype in examples]  # the first edge is always the same
    diffusion = GenotypeDiffusion(space, updates=150).fit(examples)
    wanted = [float(genotype[1] == 2) for genotype in examples]
    diffusion.fit_guide(examples, wanted)

    def shares(guidance: float) -> tuple[float, float]:
        drawn = [g for g in diffusion.genotypes(diffusion.sample(100, guidance=guidance)) if g]
        must(len(drawn) >= 90, f"nearly all are valid, got {len(drawn)} of 100")
        return tuple(  # type: ignore[return-value]
            sum(genotype[at] == taken for genotype in drawn) / len(drawn)
            for at, taken in ((0, 0), (1, 2))
        )

    same, free = shares(0.0)
    must(same >= 0.95, f"what never varied does not vary, got {same:.0%}")
    must(0.05 <= free <= 0.4, f"what was uniform is drawn about uniformly, got {free:.0%}")
    _, guided = shares(3.0)
    must(guided >= 0.7, f"what the guide wants is drawn more often, got {guided:.0%}")


def full(seed: int) -> Figures:
    """Validity and true scores with and without guidance, and how uniform the latter is."""
    import numpy as np

    from pointsman.supernet.search.generation import GenotypeDiffusion

    space, score = synthetic(seed)
    rng = np.random.default_rng(seed)
    examples = [space.sample(rng) for _ in range(EXAMPLES)]
    diffusion = GenotypeDiffusion(space).fit(examples, seed=seed)
    diffusion.fit_guide(examples[:SCORED], [score(g) for g in examples[:SCORED]], seed=seed)
    found: dict[str, float] = {}
    for row, guidance in (("free", 0.0), ("guided", GUIDANCE)):
        vectors = diffusion.sample(GENERATED, seed=seed, guidance=guidance)
        drawn = [genotype for genotype in diffusion.genotypes(vectors) if genotype is not None]
        scores = np.array([score(genotype) for genotype in drawn])
        found[f"{row}: valid"] = len(drawn) / GENERATED
        found[f"{row}: distinct"] = len(set(drawn)) / GENERATED
        found[f"{row}: mean score"] = float(scores.mean())
        found[f"{row}: best score"] = float(scores.max())
        found[f"{row}: 90th percentile"] = float(np.quantile(scores, 0.9))
        if row == "free":
            found["free: largest chi-square of an edge"] = max(
                _chi_square([genotype[at] for genotype in drawn]) for at in range(EDGES)
            )
    found["scored: best score"] = max(score(genotype) for genotype in examples[:SCORED])
    return found


def _chi_square(taken: list[int]) -> float:
    expected = len(taken) / OPERATIONS
    counts = (taken.count(operation) for operation in range(OPERATIONS))
    return sum((count - expected) ** 2 / expected for count in counts)


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    valid = min(figures["guided: valid"] for figures in measurements) >= 0.95
    better = mean(measurements, "guided: mean score") >= mean(measurements, "free: 90th percentile")
    uniform = max(figures["free: largest chi-square of an edge"] for figures in measurements)
    return valid and better and uniform <= REJECTED


CLAIM = Claim(
    slug="diffusionnag",
    paper="DiffusionNAG: Predictor-guided Neural Architecture Generation with Diffusion Models",
    year=2023,
    arxiv="2305.16943",
    level="supernet",
    claim="A diffusion model of architectures, guided by a predictor of noisy ones, generates "
    "valid architectures that are far better than those of the distribution it learned.",
    baseline="The same model without guidance.",
    criterion="With every seed at least 95% of the guided architectures are valid; the mean of "
    "their true scores is at least the 90th percentile of the unguided ones, in the mean over the "
    f"seeds; and without guidance no edge's operations differ from uniform by a chi-square above "
    f"{REJECTED} (significance of 5% for the 18 edges of all seeds together).",
    quick=quick,
    full=full,
    decide=decide,
    composition="score of noisy one-hot genotypes · guide on noisy genotypes · Langevin and "
    "reverse steps",
    entry="pointsman.supernet.search.engines.diffusion.diffusion_search",
    key={
        "guided": "guided: mean score",
        "free": "free: mean score",
        "free, 90th percentile": "free: 90th percentile",
    },
)
