"""Parts 3 and 4 of `pool_peers.py`: deciding after an answer, and learning while serving.

Legend: N queries, M models.
"""

import time

import numpy as np
from pool_peers_shared import best_policy, say_absent, spread, table

from pointsman.frontier import Frontier, Outcomes, Point
from pointsman.pool.online import Knapsack, LinearUpperConfidence, Pacer
from pointsman.pool.routers import Linear
from pointsman.pool.strategies import BeforeCall, Chain, RoutedCascade
from pointsman.pool.strategies.prices import chosen_at
from pointsman.pool.strategies.strategy import outcomes

STREAM = 3000  # requests of the fourth part
COMPONENTS = 25  # of the vectors there: what ParetoBandit comes with
PARETOBANDIT = {
    "cold": "no log",
    "warm": "priors from a log",
    "warm unpenalised": "priors from a log, no fixed penalty",
}
CEILINGS = (0.05, 0.3)  # of the way from the cheapest model's mean cost to the dearest's


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
    ends = zip(part.true_quality.mean(axis=0), part.true_cost.mean(axis=0), strict=True)
    alone = Frontier("", tuple(Point(at, *end) for at, end in enumerate(ends)), "US$")
    return {
        "~ single models and chance": alone.quality_at(ceiling),
        "~ the truth, a limit": best_policy(part).quality_at(ceiling),
    }
