"""Router-R1: route, think, route again, answer, learned from format, outcome and cost alone.

Zhang et al., "Router-R1: Teaching LLMs Multi-Round Routing and Aggregation via Reinforcement
Learning" (2025, arXiv 2506.09033).

In every turn the router thinks and then asks one model of the pool or answers. Its reward is -1
for a broken format, 0 for a wrong answer, and (1 - a) + a * cheapness for a right one, cheapness
being measured between moving percentiles of the root of the cost. The parts are in
`pool.reasoning`: `tags` reads what is written, `rewards` judges it, `simulated.SimulatedPool`
answers, `sequential.SequentialRouter` learns.

What is simulated (see `pool.reasoning.simulated`): no language model runs. A question is made of
one or two queries of a log and is right if both are; a thought is the step that names the open
part; a wrong reply is noticed in half of the cases; whether a model is right and what it costs is
read from the log. The policy is a network of 32 hidden units, and breaks the format only by not
answering.

What was settled:
- The log of the criterion is made up: four models, four skills, each model right about its own
  skill in 90% of queries and about the others in 35 to 50%, at mean costs of 1, 2, 4 and 8 that
  vary from call to call. The policy sees a noisy vector of the open part's skill.
- The best one-shot router is given more than it could have: for each pair of true skills it knows
  which model is right about both most often among the training queries. It asks that model once
  about the whole question, and pays for both parts.
- Beside the criterion: a table that asks the best model of each part's true skill and re-asks
  nobody, which shows how much is due to taking parts one at a time.
- Rates and sizes were set on seeds from 100 on by whether rewards still rose at the end.
- With the folder of `routellm_mmlu.csv.gz` (MMLU, two models, right or wrong) in the environment
  variable POINTSMAN_DATA, the same is done on that log: its queries as text features, one or two
  of them to a question, prices of the RouteLLM project by length of the query. Figures are of
  queries that nothing was learned on. Without the file these figures are missing, and the part of
  the criterion about them is void.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import numpy as np

    from pointsman.pool.log import Log
    from pointsman.pool.reasoning.simulated import SimulatedPool

SKILLS, TRAIN, TEST, QUESTIONS = 4, 4000, 4000, 4000
STRONG, WEAK = 0.9, (0.35, 0.4, 0.45, 0.5)
COSTS = (1.0, 2.0, 4.0, 8.0)
WEIGHTS = (0.0, 0.3, 0.6, 0.9)
DATA, FILE = "POINTSMAN_DATA", "routellm_mmlu.csv.gz"
MMLU_TRAIN, MMLU_TEST, MMLU_MODELS = 4000, 3000, ("mixtral-8x7b", "gpt-4-1106")
MMLU_PRICES = (0.24, 24.7)  # US$ per million tokens
ONE_SHOT, TABLE = "best one-shot", "table, part by part"


def quick() -> None:
    """Format before answer before cost; what is written earns what was done; rewards rise."""
    import numpy as np

    from pointsman.pool.reasoning.rewards import Cheapness, episode_reward, exact_match
    from pointsman.pool.reasoning.sequential import SequentialRouter
    from pointsman.pool.reasoning.simulated import SimulatedPool
    from pointsman.pool.reasoning.tags import Breach, parse_episode

    found = episode_reward([True, False, False], [1, 0, 1], [1, 1, 0.5], weight=0.6)
    must(bool(np.allclose(found, [-1, 0, 0.4 + 0.6 * 0.5])), "the reward is hierarchical")
    cheapness = Cheapness()
    must(bool((cheapness([4.0] * 9) == 0.5).all()), "equal costs are neither cheap nor dear")
    must(cheapness([1e9])[0] == 0, "the dearest of the window is")
    rng = np.random.default_rng(0)
    log, skill = _log(rng, 500)
    pool = SimulatedPool(log, _seen(skill, rng), turns=2)
    episodes = pool.start(pool.questions(200, rng), rng)
    while episodes.alive.any():
        episodes.take(rng.integers(pool.actions, size=200))
    for at in range(200):
        read = parse_episode(episodes.text(at), log.models)
        broken = isinstance(read, Breach)
        must(broken == episodes.breach[at], "only who never answers breaks the format")
        right = not isinstance(read, Breach) and exact_match(read.answer, [episodes.gold(at)])
        must(right == episodes.right[at], "the written answer is as right as the episode")
    router = SequentialRouter(updates=25, batch=128).fit(pool)
    must(router.rewards_[-1] > router.rewards_[0], "rewards rise")


def _log(rng: "np.random.Generator", count: int) -> tuple["Log", "np.ndarray[Any, Any]"]:
    """Four specialists, and the skill (count,) that each query asks for."""
    import numpy as np

    from pointsman.pool.log import Log

    skill = rng.integers(SKILLS, size=count)
    chance = np.tile(WEAK, (SKILLS, 1))
    np.fill_diagonal(chance, STRONG)
    spent = np.array(COSTS) * rng.lognormal(-0.045, 0.3, size=(count, SKILLS))
    return Log(
        queries=np.array([f"query {i}" for i in range(count)], dtype=object),
        models=tuple(f"model {m}" for m in range(SKILLS)),
        quality=(rng.random((count, SKILLS)) < chance[skill]).astype(float),
        cost=spent,
        unit="units",
    ), skill


def _seen(skill: "np.ndarray[Any, Any]", rng: "np.random.Generator") -> "np.ndarray[Any, Any]":
    import numpy as np

    noise = rng.normal(size=(len(skill), SKILLS))
    seen: np.ndarray[Any, Any] = np.eye(SKILLS)[skill] + 0.3 * noise
    return seen


def full(seed: int) -> Figures:
    """Right answers and costs over the weight of cost, by rounds and by baselines."""
    import numpy as np

    from pointsman.pool.reasoning.sequential import SequentialRouter
    from pointsman.pool.reasoning.simulated import SimulatedPool

    rng = np.random.default_rng(seed)
    (train, skill), (test, new) = _log(rng, TRAIN), _log(rng, TEST)
    pool, unseen = SimulatedPool(train, _seen(skill, rng)), SimulatedPool(test, _seen(new, rng))
    questions = unseen.questions(QUESTIONS, rng)
    two = questions[:, 1] >= 0
    found = {}
    for weight in WEIGHTS:
        router = SequentialRouter(weight=weight, seed=seed).fit(pool)
        episodes = router.act(unseen, questions, seed=seed)
        row = f"a = {weight:g}"
        found[f"{row}: right"] = float(episodes.right.mean())
        found[f"{row}: right, two parts"] = float(episodes.right[two].mean())
        found[f"{row}: cost"] = float(episodes.cost.mean())
        found[f"{row}: calls"] = float(episodes.calls.sum(axis=1).mean())
        found[f"{row}: without answer"] = float(episodes.breach.mean())
    one_shot = _best_one_shot(train, skill)[new[questions[two, 0]], new[questions[two, 1]]]
    by_part = _table(train, skill)[new[questions[two]]]
    for row, models in ((ONE_SHOT, np.stack([one_shot, one_shot], axis=1)), (TABLE, by_part)):
        quality = test.quality[questions[two], models]
        found[f"{row}: right, two parts"] = float(quality.prod(axis=1).mean())
    return {**found, **_on_mmlu(seed)}


def _table(log: "Log", skill: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """(skills,) the model that is right most often about each."""
    import numpy as np

    best: np.ndarray[Any, Any] = np.stack(
        [log.quality[skill == s].mean(axis=0).argmax() for s in range(SKILLS)]
    )
    return best


def _best_one_shot(log: "Log", skill: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """(skills, skills) the model that is right most often about both."""
    import numpy as np

    rate = np.stack([log.quality[skill == s].mean(axis=0) for s in range(SKILLS)])
    both: np.ndarray[Any, Any] = (rate[:, None] * rate[None]).argmax(axis=2)
    return both


def _on_mmlu(seed: int) -> dict[str, float]:
    """The same on the log of RouteLLM, if it is there."""
    import os
    from pathlib import Path

    from pointsman.pool.reasoning.sequential import SequentialRouter

    folder = os.environ.get(DATA)
    if not folder or not (Path(folder) / FILE).exists():
        return {}
    found = {}
    pool, unseen, questions = _mmlu(Path(folder) / FILE, seed)
    for weight in WEIGHTS:
        router = SequentialRouter(weight=weight, updates=100, seed=seed).fit(pool)
        episodes = router.act(unseen, questions, seed=seed)
        row = f"MMLU, a = {weight:g}"
        calls = episodes.calls.sum()
        found[f"{row}: right"] = float(episodes.right.mean())
        found[f"{row}: strong calls"] = float(episodes.calls[:, 1].sum() / max(calls, 1))
        found[f"{row}: calls"] = float(episodes.calls.sum(axis=1).mean())
        found[f"{row}: without answer"] = float(episodes.breach.mean())
    for at, model in enumerate(MMLU_MODELS):
        quality = unseen.log.quality[:, at][questions]
        found[f"MMLU, {model} alone: right"] = float(
            quality.prod(axis=1, where=questions >= 0).mean()
        )
    return found


def _mmlu(file: Any, seed: int) -> tuple["SimulatedPool", "SimulatedPool", Any]:
    """Pools of the training and the test queries, and test questions."""
    import numpy as np
    import pandas as pd

    from pointsman.pool.features import TextEncoder
    from pointsman.pool.log import Log
    from pointsman.pool.reasoning.simulated import SimulatedPool

    table = pd.read_csv(file).drop_duplicates("query")
    rng = np.random.default_rng(seed)
    table = table.iloc[rng.permutation(len(table))[: MMLU_TRAIN + MMLU_TEST]]
    tokens = table["query"].str.len().to_numpy(dtype=float)[:, None] / 4
    log = Log(
        queries=table["query"].to_numpy(dtype=object),
        models=MMLU_MODELS,
        quality=table[list(MMLU_MODELS)].to_numpy(dtype=float),
        cost=tokens * np.array(MMLU_PRICES) / 1e6,
    )
    rows = np.arange(len(log))
    train, test = log.take(rows < MMLU_TRAIN), log.take(rows >= MMLU_TRAIN)
    encoder = TextEncoder(components=32).fit(train)
    dense = [encoder.transform(part).dense.astype(float) for part in (train, test)]
    centre, scale = dense[0].mean(axis=0), dense[0].std(axis=0) + 1e-9
    pool, unseen = (
        SimulatedPool(part, (x - centre) / scale)
        for part, x in zip((train, test), dense, strict=True)
    )
    return pool, unseen, unseen.questions(QUESTIONS, rng)


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion."""
    at = {name: mean(measurements, name) for name in measurements[0]}
    rounds = at["a = 0: right, two parts"] >= at[f"{ONE_SHOT}: right, two parts"] + 0.05
    costs = [at[f"a = {weight:g}: cost"] for weight in WEIGHTS]
    falls = all(first > second for first, second in pairwise(costs))
    strong = [at.get(f"MMLU, a = {weight:g}: strong calls") for weight in WEIGHTS]
    real = [share for share in strong if share is not None]
    return rounds and falls and all(first > second for first, second in pairwise(real))


CLAIM = Claim(
    slug="router-r1",
    paper="Router-R1: Teaching LLMs Multi-Round Routing and Aggregation via Reinforcement Learning",
    year=2025,
    arxiv="2506.09033",
    level="pool",
    claim="A policy that routes in several rounds, learned from format, outcome and cost, answers "
    "questions of several parts better than any router that asks one model once, and the weight of "
    "the cost sets what it spends.",
    baseline="The best one-shot router, which is told the true skills of both parts; beside it a "
    "table that asks the best model part by part.",
    criterion="On a pool simulated from a log of four specialists, in the mean over seeds: on "
    "questions of two parts, with a = 0, at least 5 points more right answers than the best "
    "one-shot router; and the mean cost falls from each a in 0, 0.3, 0.6, 0.9 to the next. Where "
    "the MMLU log of RouteLLM is given, the share of strong calls on it falls likewise.",
    quick=quick,
    full=full,
    decide=decide,
    composition="tags parsed · hierarchical reward · cheapness by moving percentiles · clipped "
    "policy gradient with a critic · a pool simulated from a log",
    entry="pointsman.pool.reasoning.sequential.SequentialRouter",
    key={
        "right, two parts": "a = 0: right, two parts",
        "one-shot": f"{ONE_SHOT}: right, two parts",
        "cost, a = 0": "a = 0: cost",
        "cost, a = 0.9": "a = 0.9: cost",
    },
)
