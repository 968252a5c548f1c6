"""Other routers and ours, on the same vectors and the same splits: prints one table a part.

    python benchmarks/pool_peers.py [FILE] [--peer-python PATH] [--routerbench DIR]
        [--llmrouterbench DIR] [--queries 5000] [--seeds 3] [--parts 1 2 3 4]

1. Two models: RouteLLM's MMLU log (FILE, or shared/data/routellm_mmlu.csv.gz beside the checkout).
2. Ten models: a synthetic pool of known truth.
3. Two models and a verifier's score after the answer: AutoMix beside our cascades, at its cost.
4. Ten models, learned while serving under a ceiling on the mean cost: ParetoBandit beside ours.

The peers run from their own code in another process (`pool_peers_worker.py`), in a Python of your
choice that has them: llmrouter-lib 0.4.0, automix-llm 1.0.3 and paretobandit 0.1.1 with torch,
scikit-learn, pandas and PyYAML; RouterBench and LLMRouterBench (AvengersPro) have no package, so
name the folders that hold their `routers/` and `AvengersPro/`. What is not there is left out, and
said so.

Every router gets the same vectors: the dense part of our `TextEncoder`, fitted on the training
part. Rows marked "+ n-grams" are ours with its sparse part as well, as it comes by default; no peer
takes that. Each part is split anew for each seed; figures are means ± standard deviations over
seeds. Processor seconds and microseconds are of one core; a decision is timed one query at a time,
with its vector given. Takes about six minutes of one core.

Legend: N queries, M models, S settings of a knob.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pointsman.frontier import Frontier, Outcomes, Point, apgr, deferral_curve
from pointsman.pool.features import TextEncoder
from pointsman.pool.log import Log
from pointsman.pool.online import Knapsack, LinearUpperConfidence, Pacer
from pointsman.pool.reading import split_log
from pointsman.pool.routers import (
    Blend,
    KMeans,
    Linear,
    MultilayerPerceptron,
    NearestNeighbours,
    Prediction,
    PromptLength,
)
from pointsman.pool.strategies import BeforeCall, Chain, RoutedCascade
from pointsman.pool.strategies.prices import chosen_at, prices
from pointsman.pool.strategies.strategy import outcomes
from pointsman.pool.synthetic import OUTPUT_PRICE, world
from pool import DATA, PRICES, STRONG, WEAK, read

WORKER = Path(__file__).with_name("pool_peers_worker.py")
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
ONE_BY_ONE = 40  # queries asked singly for the time of one decision
TRAIN, VALIDATION, FRESH = 1500, 500, 2000  # queries of the synthetic pools
STREAM = 3000  # requests of the fourth part
COMPONENTS = 25  # of the vectors there: what ParetoBandit comes with
PARETOBANDIT = {
    "cold": "no log",
    "warm": "priors from a log",
    "warm unpenalised": "priors from a log, no fixed penalty",
}
CEILINGS = (0.05, 0.3)  # of the way from the cheapest model's mean cost to the dearest's


# ---- data


@dataclass(frozen=True)
class Split:
    """One data set, split: what is learned from, what settings are chosen on, what is measured."""

    name: str
    seed: int
    logs: dict[str, Log]
    features: dict
    true_quality: np.ndarray  # (N, M) of the test part: known, or as it was observed
    true_cost: np.ndarray
    price: np.ndarray  # (M, 2) US$ per token in and out


def mmlu(path, queries, seed):
    parts = split_log(read(path, queries), seed)
    # nothing is certified here, so what a certificate would be made on is measured on as well
    test = joined(parts["calibration"], parts["test"])
    logs = {"train": parts["train"], "validation": parts["validation"], "test": test}
    price = np.array([PRICES, PRICES]).T / 1e6
    return split("MMLU", seed, logs, test.quality, test.cost, price)


def pool_of_ten(seed, models=10, kind="clusters", sizes=(TRAIN, VALIDATION, FRESH)):
    w = world(kind, models=models, seed=seed)
    names = ("train", "validation", "test")
    logs = {
        name: w.log(n, seed=at + 1) for at, (name, n) in enumerate(zip(names, sizes, strict=True))
    }
    truth = w.truth(logs["test"])
    price = w.token_price[:, None] * np.array([1.0, OUTPUT_PRICE])
    return split(f"synthetic, {models}", seed, logs, truth.quality, truth.cost, price)


def split(name, seed, logs, quality, cost, price):
    encoder = TextEncoder().fit(logs["train"])
    features = {part: encoder.transform(log) for part, log in logs.items()}
    return Split(name, seed, logs, features, quality, cost, price)


def joined(first, second):
    return replace(
        first,
        queries=np.concatenate([first.queries, second.queries]),
        quality=np.concatenate([first.quality, second.quality]),
        cost=np.concatenate([first.cost, second.cost]),
        groups={},
    )


def dense_only(features):
    return replace(features, sparse=None)


# ---- the other process


@dataclass
class Peers:
    """Tasks for the worker, run together, and its answers."""

    python: str
    paths: list[str]
    folder: Path
    tasks: list[dict] = field(default_factory=list)
    said: dict = field(default_factory=dict)

    def ask(self, key, peer, which, seed, arrays):
        name = f"job{len(self.tasks)}"
        np.savez(self.folder / f"{name}.npz", **arrays)
        self.tasks.append(
            {
                "key": list(key),
                "peer": peer,
                "which": which,
                "seed": seed,
                "arrays": f"{name}.npz",
                "answer": f"{name}-answer.npz",
            }
        )

    def run(self):
        jobs = {"paths": self.paths, "tasks": self.tasks}
        (self.folder / "jobs.json").write_text(json.dumps(jobs))
        one = {"OMP_NUM_THREADS": "1", "LOKY_MAX_CPU_COUNT": "1"}
        subprocess.run(
            [self.python, str(WORKER), str(self.folder)],
            env={**os.environ, **one},
            check=True,
        )
        said = json.loads((self.folder / "said.json").read_text())
        for task in self.tasks:
            key, told = tuple(task["key"]), said[task["answer"]]
            if "failed" in told:
                self.said[key] = told["failed"]
            else:
                with np.load(self.folder / task["answer"]) as arrays:
                    self.said[key] = dict(arrays)


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
    truth = Prediction(part.true_quality, part.true_cost)
    n, m = len(part.logs["validation"]), part.true_quality.shape[1]
    rows, ends = np.arange(len(part.true_quality)), part.true_cost.mean(axis=0)
    points = []
    for price in prices(truth):
        at = chosen_at(truth, price)
        points.append(Point(price, truth.quality[rows, at].mean(), truth.cost[rows, at].mean()))
    corners = Frontier("", tuple(points), "US$").hull().points
    grid = np.linspace(ends.min(), ends.max(), 501)
    best = np.interp(grid, [p.cost for p in corners], [p.quality for p in corners]).mean()
    alone = np.repeat(np.arange(m)[:, None], n + len(rows), axis=1)
    return 100 * area(part, alone), 100 * float(best)


def spread(values, digits):
    found = np.array(values, dtype=float)
    if not np.isfinite(found).all():
        return "-"
    return f"{found.mean():.{digits}f} ± {found.std(ddof=1) if len(found) > 1 else 0:.{digits}f}"


def cost_cells(answers):
    seconds = np.mean([answer["seconds"] for answer in answers])
    return [f"{seconds:.2f}", f"{np.mean([a['microseconds'] for a in answers]):,.0f}"]


def table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)


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


def router_rows(peers, parts, figures, digits):
    rows, absent = [], []
    for peer, which in PEER_ROUTERS:
        answers = [peers.said[(part.name, part.seed, peer, which)] for part in parts]
        if any(isinstance(answer, str) for answer in answers):
            absent.append(f"{peer} {which}: {next(a for a in answers if isinstance(a, str))}")
            continue
        found = np.array([figures(part, a) for part, a in zip(parts, answers, strict=True)])
        cells = [spread(c, d) for c, d in zip(found.T, digits, strict=True)]
        rows.append([f"{peer} {which}", *cells, *cost_cells(answers)])
    for kind, rich in OURS:
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


def say_absent(absent):
    for line in absent:
        print(f"left out: {line}")


def part_one(peers, parts):
    first = parts[0]
    sizes = ", ".join(f"{name} {len(log):,}" for name, log in first.logs.items())
    print(f"\n1. Two models, RouteLLM's MMLU log ({WEAK}, {STRONG}): {sizes}\n")
    rows, absent = router_rows(peers, parts, two_model_figures, (3, 3, 1))
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
    for kind in (NearestNeighbours, KMeans, Linear, MultilayerPerceptron, Blend):
        pair = [ours(kind, first, dense, turned=turned) for turned in (False, True)]
        rows.append([title(kind, False), *turned_cells(pair, n)])
    table(("router", "weak first", "weak second"), rows)


def turned_cells(pair, n):
    strong = zip(pair, (1, 0), strict=True)  # its column, each way round
    return [f"{100 * (answer['own'][n:] == column).mean():.1f}" for answer, column in strong]


def part_two(peers, parts):
    sizes = ", ".join(f"{name} {len(log):,}" for name, log in parts[0].logs.items())
    print(f"\n2. Ten models, synthetic pool with topics: {sizes}; 100 x area\n")
    rows, absent = router_rows(peers, parts, ten_model_figures, (2, 2))
    ends = np.array([best_figures(part) for part in parts]).T
    rows.append(["single models and chance", spread(ends[0], 2), "", "", ""])
    rows.append(["the truth, a limit", spread(ends[1], 2), "", "", ""])
    names = ("area, its own settings", "area, our price on its scores")
    table(("router", *names, "fit, s", "decide, µs"), rows)
    say_absent(absent)


# ---- part 3


def ask_automix(peers, parts):
    for part in parts:
        known = joined_signals(part, ("train", "validation"))
        test = joined_signals(part, ("test",))
        arrays = {
            "quality": known["quality"],
            "signal": known["signal"],
            "cost": known["cost"],
            "ask_quality": test["quality"],
            "ask_signal": test["signal"],
            "verifier_cost": part.logs["train"].signal_cost["verifier"][0, 0],
            "models": np.array(part.logs["train"].models),
        }
        peers.ask((part.name, part.seed, "AutoMix", "union"), "AutoMix", "union", 0, arrays)


def joined_signals(part, names):
    logs = [part.logs[name] for name in names]
    return {
        "quality": np.concatenate([log.quality for log in logs]),
        "cost": np.concatenate([log.cost for log in logs]),
        "signal": np.concatenate([log.signals["verifier"][:, 0] for log in logs]),
    }


def strategy_curve(part, strategy):
    """Costs, qualities on the test part of the hull's corners on the validation part; seconds."""
    logs, features = part.logs, part.features
    start = time.process_time()
    strategy.fit(logs["train"], features["train"])
    said = {name: strategy.predict(features[name]) for name in ("validation", "test")}
    settings = strategy.settings(logs["validation"], said["validation"])
    seconds = time.process_time() - start
    seen = outcomes(logs["validation"], strategy, said["validation"], settings, 1)
    corners = [p.knob for p in Frontier.from_outcomes("", seen).hull().points]
    kept = [s for s, knob in zip(settings, seen.knobs, strict=True) if knob in corners]
    found: Outcomes = outcomes(logs["test"], strategy, said["test"], kept, 1)
    cost, quality = found.cost.mean(axis=1), found.quality.mean(axis=1)
    order = np.argsort(cost)
    return cost[order], quality[order], seconds


def part_three(peers, parts):
    sizes = ", ".join(f"{name} {len(log):,}" for name, log in parts[0].logs.items())
    print(f"\n3. Two models and a verifier, synthetic pool with signals: {sizes}\n")
    makers = {
        "ours: Chain": lambda: Chain("verifier"),
        "ours: RoutedCascade(Linear) + n-grams": lambda: RoutedCascade(Linear(), "verifier"),
    }
    found, seconds, absent = {}, {}, []
    for part in parts:
        answer = peers.said[(part.name, part.seed, "AutoMix", "union")]
        if isinstance(answer, str):
            absent.append(f"AutoMix: {answer}")
            continue
        curves = {name: strategy_curve(part, make()) for name, make in makers.items()}
        seconds.setdefault("AutoMix", []).append(float(answer["seconds"]))
        for name, curve in curves.items():
            seconds.setdefault(name, []).append(curve[2])
        test = part.logs["test"]
        for name, retry in zip(answer["names"], answer["retry"], strict=True):
            cost = test.cost[:, 0] + np.where(retry, test.cost[:, 1], 0.0)
            cost = cost.mean() + test.signal_cost["verifier"][0, 0]
            rivals = {"AutoMix": np.where(retry, *test.quality.T[::-1]).mean()}
            for other, (spent, reached, _) in curves.items():
                rivals[other] = np.interp(cost, spent, reached)
            for who, quality in rivals.items():
                figures = (1e3 * cost, 100 * quality, lift(test, quality, cost))
                found.setdefault((str(name), who), []).append(figures)
    rows = []
    for (bound, who), values in found.items():
        cells = [spread(c, d) for c, d in zip(np.array(values).T, (3, 2, 2), strict=True)]
        rows.append([bound, who, *cells, f"{np.mean(seconds[who]):.2f}"])
    table(
        ("AutoMix's cost at", "who", "US$ per 1,000", "% right at that cost", "IBC lift", "fit, s"),
        rows,
    )
    say_absent(sorted(set(absent)))


def lift(log, quality, cost):
    """AutoMix's incremental benefit per cost over that of the large model, less 1."""
    small, large = log.quality.mean(axis=0)
    cheap, dear = log.cost.mean(axis=0)
    base = (large - small) / (dear - cheap)
    return ((quality - small) / (cost - cheap) - base) / base


# ---- part 4


def whitened(train, stream):
    """(N, 25) principal components of unit variance, learned on the training part."""
    from sklearn.decomposition import PCA

    fitted = PCA(COMPONENTS, svd_solver="full").fit(train)
    scale = np.sqrt(fitted.explained_variance_)
    return fitted.transform(train) / scale, fitted.transform(stream) / scale


def ceilings(part):
    low, high = part.true_cost.mean(axis=0)[[0, -1]]
    return [low + share * (high - low) for share in CEILINGS]


def ask_paretobandit(peers, parts):
    for part in parts:
        test, train = part.logs["test"], part.logs["train"]
        for ceiling in ceilings(part):
            arrays = {
                "raw_train": part.features["train"].dense.astype(float),
                "raw": part.features["test"].dense.astype(float),
                "components": COMPONENTS,
                "train_quality": train.quality,
                "quality": test.quality,
                "cost": test.cost,
                "price": part.price,
                "ceiling": ceiling,
                "models": np.array(test.models),
            }
            for which in PARETOBANDIT:
                key = (part.name, part.seed, "ParetoBandit", which, ceiling)
                peers.ask(key, "ParetoBandit", which, part.seed, arrays)


def our_knapsack(part, ceiling):
    test, m = part.logs["test"], len(part.logs["test"].models)
    _, x = whitened(*(part.features[p].dense.astype(float) for p in ("train", "test")))
    bandit = Knapsack(LinearUpperConfidence(m, COMPONENTS), ceiling * len(x), len(x))
    rng, chosen, decide, learn = np.random.default_rng(part.seed), [], 0.0, 0.0
    for at in range(len(x)):
        start = time.process_time()
        arm = bandit.choose(x[at], None, rng).arm
        middle = time.process_time()
        bandit.update(arm, test.quality[at, arm], x[at], test.cost[at, arm])
        decide, learn = decide + middle - start, learn + time.process_time() - middle
        chosen.append(arm)
    return answered(chosen, decide, learn)


def our_pacer(part, ceiling):
    """A policy fitted on the log beforehand, told by a `Pacer` what each request may cost."""
    logs, features, strategy = part.logs, part.features, BeforeCall(Linear())
    strategy.fit(logs["train"], features["train"])
    said = strategy.predict(features["validation"])
    settings = strategy.settings(logs["validation"], said)
    seen = outcomes(logs["validation"], strategy, said, settings, 0)
    hull = Frontier.from_outcomes("", seen).hull()
    price = {k: s.parameters["price"] for k, s in zip(seen.knobs, settings, strict=True)}
    test, rng, now = logs["test"], np.random.default_rng(part.seed), [0.0]
    ends = [point.cost for point in hull.points]
    pacer = Pacer(
        ceiling * len(test),
        float(len(test)),
        floor=ends[0],
        ceiling=ends[-1],
        clock=lambda: now[0],
    )
    chosen, decide = [], 0.0
    for at in range(len(test)):
        now[0], one = float(at), features["test"].take([at])
        start = time.process_time()
        mix = hull.mix(pacer.target_cost())
        knob = mix[int(rng.random() >= mix[0][1]) if len(mix) > 1 else 0][0]
        found = strategy.predict(one)
        arm = int(chosen_at(found, price[knob])[0])
        decide += time.process_time() - start
        pacer.request(found.cost[0, arm])
        pacer.spend(test.cost[at, arm], found.cost[0, arm])
        chosen.append(arm)
    return answered(chosen, decide, 0.0)


def answered(chosen, decide, learn):
    n = len(chosen)
    return {
        "own": np.array(chosen),
        "microseconds": 1e6 * decide / n,
        "learning": 1e6 * learn / n,
    }


def part_four(peers, parts):
    print(f"\n4. Ten models, {STREAM:,} requests in turn under a ceiling on the mean cost\n")
    rows, absent = [], []
    for at, share in enumerate(CEILINGS):
        found = {}
        for part in parts:
            ceiling = ceilings(part)[at]
            for which, name in PARETOBANDIT.items():
                answer = peers.said[(part.name, part.seed, "ParetoBandit", which, ceiling)]
                if isinstance(answer, str):
                    absent.append(f"ParetoBandit, {which}: {answer}")
                else:
                    figures = online_figures(part, answer, ceiling)
                    found.setdefault(f"ParetoBandit, {name}", []).append(figures)
            mine = {
                "ours: Knapsack(LinearUpperConfidence), no log": our_knapsack(part, ceiling),
                "ours: Linear from a log + n-grams, Pacer": our_pacer(part, ceiling),
            }
            for name, answer in mine.items():
                found.setdefault(name, []).append(online_figures(part, answer, ceiling))
            for name, quality in hindsight(part, ceiling).items():
                found.setdefault(name, []).append((100 * quality, 1.0, np.nan, np.nan))
        for name, values in sorted(found.items()):
            cells = [spread(c, d) for c, d in zip(np.array(values).T, (2, 3, 0, 0), strict=True)]
            rows.append([f"{share:.0%}", name, *cells])
    table(
        ("ceiling", "who", "100 x mean reward", "cost / ceiling", "decide, µs", "learn, µs"), rows
    )
    say_absent(sorted(set(absent)))


def online_figures(part, answer, ceiling):
    """Expected reward of what was chosen, what it cost, and the times."""
    rows, own = np.arange(len(answer["own"])), answer["own"]
    reward = 100 * part.true_quality[rows, own].mean()
    spent = part.logs["test"].cost[rows, own].mean() / ceiling
    return reward, spent, float(answer["microseconds"]), float(answer["learning"])


def hindsight(part, ceiling):
    """What mixing single models, and what the best policy would reach for this cost."""
    truth, rows = Prediction(part.true_quality, part.true_cost), np.arange(len(part.true_quality))
    ends = zip(part.true_quality.mean(axis=0), part.true_cost.mean(axis=0), strict=True)
    alone = Frontier("", tuple(Point(at, *end) for at, end in enumerate(ends)), "US$")
    points = []
    for price in prices(truth):
        at = chosen_at(truth, price)
        points.append(Point(price, truth.quality[rows, at].mean(), truth.cost[rows, at].mean()))
    return {
        "~ single models and chance": alone.quality_at(ceiling),
        "~ the truth, a limit": Frontier("", tuple(points), "US$").quality_at(ceiling),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", default=DATA)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--routerbench", type=Path, help="folder that holds its routers/")
    parser.add_argument("--llmrouterbench", type=Path, help="folder that holds AvengersPro/")
    parser.add_argument("--queries", type=int, default=5000, help="of the MMLU log")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 3, 4])
    given = parser.parse_args()
    if not given.data.is_file():
        print(f"{given.data} is not there: nothing to compare on; name RouteLLM's MMLU log")
        return
    start, seeds, wanted = time.process_time(), range(given.seeds), set(given.parts)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(p.resolve()) for p in (given.routerbench, given.llmrouterbench) if p]
        peers = Peers(given.peer_python, paths, Path(folder))
        parts = {}
        if 1 in wanted:
            parts[1] = [mmlu(given.data, given.queries, seed) for seed in seeds]
            ask_routers(peers, parts[1])
        if 2 in wanted:
            parts[2] = [pool_of_ten(seed) for seed in seeds]
            ask_routers(peers, parts[2])
        if 3 in wanted:
            sizes = (1000, 1000, 3000)
            parts[3] = [pool_of_ten(s, models=2, kind="signals", sizes=sizes) for s in seeds]
            ask_automix(peers, parts[3])
        if 4 in wanted:
            sizes = (1000, 500, STREAM)
            parts[4] = [pool_of_ten(seed, sizes=sizes) for seed in seeds]
            ask_paretobandit(peers, parts[4])
        peers.run()
        for number, show in enumerate((part_one, part_two, part_three, part_four), 1):
            if number in wanted:
                show(peers, parts[number])
    children = os.times().children_user + os.times().children_system
    here = time.process_time() - start
    print(f"\n{here:.0f} s of processor time here, {children:.0f} s in the peers' process")


if __name__ == "__main__":
    main()
