"""Parts 1 and 2 of `pool_peers.py`: routers that choose before any model is called.

Legend: N queries, K of the validation and the test part, M models, S settings of a knob.
"""

import time

import numpy as np
from pool_peers_shared import best_policy, cost_cells, dense_only, say_absent, spread, table

from pointsman.frontier import Frontier, Point, apgr, deferral_curve
from pointsman.pool.routers import (
    Blend,
    KMeans,
    Linear,
    MultilayerPerceptron,
    NearestNeighbours,
    Prediction,
    PromptLength,
)
from pointsman.pool.strategies.prices import chosen_at, prices
from pool import STRONG, WEAK

PEER_ROUTERS = (
    ("LLMRouter", "knn"),
    ("LLMRouter", "svm"),
    ("LLMRouter", "mlp"),
    ("LLMRouter", "hybrid"),
    ("RouterBench", "knn"),
    ("RouterBench", "mlp"),
    ("RouterBench", "svm"),
    ("AvengersPro", "k-means"),
)
OURS = (
    (PromptLength, False),
    (NearestNeighbours, False),
    (KMeans, False),
    (MultilayerPerceptron, False),
    (Linear, False),
    (Blend, False),
    (Linear, True),
    (Blend, True),
)
# A blend takes half a minute a fit on ten models: in the first part only.
QUICK = tuple((kind, rich) for kind, rich in OURS if kind is not Blend)
ONE_BY_ONE = 40  # queries asked singly for the time of one decision


def router_arrays(part, *, turned=False):
    """What a peer's router is told; turned: models listed the other way round."""
    train, order = part.logs["train"], slice(None, None, -1 if turned else 1)
    return {
        "x": part.features["train"].dense,
        "query": train.identity(),
        "quality": train.quality[:, order],
        "cost": train.cost[:, order],
        "price": part.price[order],
        "models": np.array(train.models[order]),
        "ask": np.concatenate([part.features[p].dense for p in ("validation", "test")]),
    }


# ---- our routers, answered for in the same form


def ours(kind, part, features, *, turned=False):
    """As the worker answers: scores, its own choice without prices, its settings, its times."""
    train, order = part.logs["train"], slice(None, None, -1 if turned else 1)
    start = time.process_time()
    router = kind().fit(features["train"], train.quality[:, order], train.cost[:, order])
    seconds = time.process_time() - start
    validation, test = (router.predict(features[p]) for p in ("validation", "test"))
    both = Prediction(*(np.concatenate(pair) for pair in zip(validation, test, strict=True)))
    single = [features["test"].take([at]) for at in range(ONE_BY_ONE + 1)]
    router.predict(single[0])
    start = time.process_time()
    for one in single[1:]:
        chosen_at(router.predict(one), 1.0)
    took = time.process_time() - start
    return {
        "score": both.quality,
        "own": chosen_at(both, 0.0),
        "knob": np.stack([chosen_at(both, price) for price in prices(validation)]),
        "seconds": seconds,
        "microseconds": 1e6 * took / ONE_BY_ONE,
    }


def priced(part, answer):
    """(S, N) our rule on anyone's scores: score less a price times the model's mean cost."""
    score = np.maximum(answer["score"], -10.0)
    cost = np.broadcast_to(part.logs["train"].mean_cost(), score.shape)
    n = len(part.logs["validation"])
    grid = prices(Prediction(score[:n], cost[:n]))
    return np.stack([chosen_at(Prediction(score, cost), price) for price in grid])


# ---- figures


def two_model_figures(part, answer):
    """APGR by its scores, APGR by its own settings, percent sent to the strong model unasked."""
    n = len(part.logs["validation"])
    weak, strong = part.true_quality.T
    ends = {"weak": weak.mean(), "strong": strong.mean()}
    score = answer["score"][n:]
    ranked = apgr(*deferral_curve(score[:, 1] - score[:, 0], weak, strong), **ends)
    up = answer["knob"][:, n:] == 1
    own = apgr(up.mean(axis=1), np.where(up, strong, weak).mean(axis=1), **ends)
    return ranked, own, 100 * (answer["own"][n:] == 1).mean()


def area(part, knob):
    """Mean quality over costs from the cheapest model's to the dearest's, singles always at hand.

    Settings are the corners of the hull on the validation part, measured on the test part.
    """
    n, m = len(part.logs["validation"]), len(part.logs["train"].models)
    knob = np.concatenate([knob, np.repeat(np.arange(m)[:, None], knob.shape[1], axis=1)])
    seen, rows = part.logs["validation"], np.arange(n)
    points = [
        Point(at, seen.quality[rows, k[:n]].mean(), seen.cost[rows, k[:n]].mean())
        for at, k in enumerate(knob)
    ]
    corners = [point.knob for point in Frontier("", tuple(points), "US$").hull().points]
    rows = np.arange(len(part.true_quality))
    cost = np.array([part.true_cost[rows, knob[at, n:]].mean() for at in corners])
    quality = np.array([part.true_quality[rows, knob[at, n:]].mean() for at in corners])
    order = np.argsort(cost)
    ends = part.true_cost.mean(axis=0)
    grid = np.linspace(ends.min(), ends.max(), 501)
    return float(np.interp(grid, cost[order], quality[order]).mean())


def ten_model_figures(part, answer):
    """100 * area with its own settings, and with our price rule on its scores."""
    return 100 * area(part, answer["knob"]), 100 * area(part, priced(part, answer))


def best_figures(part):
    """The same for singles alone, and for the truth: between them every router lies."""
    n, m = len(part.logs["validation"]), part.true_quality.shape[1]
    alone = np.repeat(np.arange(m)[:, None], n + len(part.true_quality), axis=1)
    corners, ends = best_policy(part).hull().points, part.true_cost.mean(axis=0)
    grid = np.linspace(ends.min(), ends.max(), 501)
    best = np.interp(grid, [p.cost for p in corners], [p.quality for p in corners]).mean()
    return 100 * area(part, alone), 100 * float(best)


def title(kind, rich):
    return f"ours: {kind.title}" + (" + n-grams" if rich else "")


# ---- parts 1 and 2


def ask_routers(peers, parts):
    for part in parts:
        for peer, which in PEER_ROUTERS:
            key = (part.name, part.seed, peer, which)
            peers.ask(key, peer, which, part.seed, router_arrays(part))
            if part.name == "MMLU" and part.seed == 0:
                turned = router_arrays(part, turned=True)
                peers.ask((*key, "turned"), peer, which, part.seed, turned)


def router_rows(peers, parts, kinds, figures, digits):
    rows, absent = [], []
    for peer, which in PEER_ROUTERS:
        answers = [peers.said[(part.name, part.seed, peer, which)] for part in parts]
        if any(isinstance(answer, str) for answer in answers):
            absent.append(f"{peer} {which}: {next(a for a in answers if isinstance(a, str))}")
            continue
        found = np.array([figures(part, a) for part, a in zip(parts, answers, strict=True)])
        cells = [spread(c, d) for c, d in zip(found.T, digits, strict=True)]
        rows.append([f"{peer} {which}", *cells, *cost_cells(answers)])
    for kind, rich in kinds:
        answers = []
        for part in parts:
            features = part.features
            if not rich:
                features = {name: dense_only(f) for name, f in features.items()}
            answers.append(ours(kind, part, features))
        found = np.array([figures(part, a) for part, a in zip(parts, answers, strict=True)])
        cells = [spread(c, d) for c, d in zip(found.T, digits, strict=True)]
        rows.append([title(kind, rich), *cells, *cost_cells(answers)])
    return rows, absent


def part_one(peers, parts, quick=False):
    first = parts[0]
    sizes = ", ".join(f"{name} {len(log):,}" for name, log in first.logs.items())
    print(f"\n1. Two models, RouteLLM's MMLU log ({WEAK}, {STRONG}): {sizes}\n")
    rows, absent = router_rows(peers, parts, QUICK if quick else OURS, two_model_figures, (3, 3, 1))
    names = ("APGR, its scores ranked", "APGR, its own settings", "% strong by default")
    table(("router", *names, "fit, s", "decide, µs"), rows)
    say_absent(absent)
    print("\nPercent sent to the strong model by default, as the log lists the weak model first")
    print("and second (seed 0):\n")
    rows = []
    n = len(first.logs["validation"])
    dense = {name: dense_only(f) for name, f in first.features.items()}
    for peer, which in PEER_ROUTERS:
        key = (first.name, first.seed, peer, which)
        pair = [peers.said[key], peers.said[(*key, "turned")]]
        if not any(isinstance(answer, str) for answer in pair):
            rows.append([f"{peer} {which}", *turned_cells(pair, n)])
    for kind in (NearestNeighbours, KMeans, Linear, MultilayerPerceptron):
        pair = [ours(kind, first, dense, turned=turned) for turned in (False, True)]
        rows.append([title(kind, False), *turned_cells(pair, n)])
    table(("router", "weak first", "weak second"), rows)


def turned_cells(pair, n):
    strong = zip(pair, (1, 0), strict=True)  # its column, each way round
    return [f"{100 * (answer['own'][n:] == column).mean():.1f}" for answer, column in strong]


def part_two(peers, parts):
    sizes = ", ".join(f"{name} {len(log):,}" for name, log in parts[0].logs.items())
    print(f"\n2. Ten models, synthetic pool with topics: {sizes}; 100 x area\n")
    rows, absent = router_rows(peers, parts, QUICK, ten_model_figures, (2, 2))
    ends = np.array([best_figures(part) for part in parts]).T
    rows.append(["single models and chance", spread(ends[0], 2), "", "", ""])
    rows.append(["the truth, a limit", spread(ends[1], 2), "", "", ""])
    names = ("area, its own settings", "area, our price on its scores")
    table(("router", *names, "fit, s", "decide, µs"), rows)
    say_absent(absent)
