"""Which router finds what there is to find, in worlds whose truth is known: prints two tables.

    python benchmarks/pool_synthetic.py [--models 10] [--queries 2000] [--seeds 1]
    python benchmarks/pool_synthetic.py --false-alarms 100

Every router is fitted on the same drawn log and decides fresh queries at five prices of a US$, by
its predicted quality less the price times its predicted cost. Its choices are valued by the true
expected quality and cost, which no luck of the draw touches. The first table shows the share of the
gap between the best single model and the best policy that decides before any call: 100 is the best
policy, 0 the best single model at that price, and below 0 is worse than not routing. Where nothing
can be learned there is no gap: that column shows the quality lost, in points of 100.

The second table is of the world whose answers come with signals. Strategies that read them are
valued by what they reached on the fresh queries, the judge's cost included, at the setting that was
best on 1,000 other ones; on the same scale, so that more than 100 is possible.

Takes under two minutes of one core; with --blend, which adds the blend of routers, six.

With --false-alarms it draws so many small logs in which nothing can be learned instead, and counts
on how many of them `pointsman compare`'s verdict says that routing pays (its quick routers only).
"""

import argparse
import time
from typing import get_args

import numpy as np

from pointsman.compare.queries.verdict import judge
from pointsman.pool.features import TextEncoder
from pointsman.pool.routers import (
    Blend,
    Constant,
    GradientBoosting,
    KMeans,
    Linear,
    MatrixFactorization,
    MultilayerPerceptron,
    NearestNeighbours,
    Pairwise,
    PerTask,
    PromptLength,
    SkillProfile,
)
from pointsman.pool.strategies import BeforeCall, Chain, RoutedCascade, Single
from pointsman.pool.strategies.strategy import outcomes
from pointsman.pool.synthetic import Kind, world

ROUTERS = (
    Constant,
    PromptLength,
    PerTask,
    KMeans,
    NearestNeighbours,
    SkillProfile,
    MatrixFactorization,
    Linear,
    Pairwise,
    MultilayerPerceptron,
    GradientBoosting,
)
QUICK = (PromptLength, KMeans, NearestNeighbours, SkillProfile, Linear, MultilayerPerceptron)
FRESH, VALIDATION = 1500, 1000


def gains(w, log):
    """Price to the true quality less the price times the true cost, (N, M)."""
    truth = w.truth(log)
    return {price: truth.quality - price * truth.cost for price in w.prices(log)[:5]}


def share(gains_NM, reached):
    """Of the gap between the best single model and the best policy; where none is, what is lost."""
    single, best = gains_NM.mean(axis=0).max(), gains_NM.max(axis=1).mean()
    return (reached - single) / (best - single) if best - single > 1e-9 else reached - best


def routers_table(routers, models, queries, seeds):
    """Router to kind to one figure for each seed and price: percent, or points where no gap is."""
    kinds, found = get_args(Kind), {}
    seconds = dict.fromkeys((router.title for router in routers), 0.0)
    for kind in kinds:
        for seed in range(seeds):
            w = world(kind, models=models, seed=seed)
            train, fresh = w.log(queries, seed=1), w.log(FRESH, seed=2)
            encoder = TextEncoder().fit(train)
            features, asked = encoder.transform(train), encoder.transform(fresh)
            worth = gains(w, fresh)
            for router in routers:
                start = time.process_time()
                fitted = router().fit(features, train.quality, train.cost)
                quality, cost = fitted.predict(asked)
                seconds[router.title] += time.process_time() - start
                for price, gains_NM in worth.items():
                    chosen = (quality - price * cost).argmax(axis=1)
                    value = share(gains_NM, gains_NM[np.arange(FRESH), chosen].mean())
                    found.setdefault(router.title, {}).setdefault(kind, []).append(100 * value)
    return kinds, found, {name: total / len(kinds) / seeds for name, total in seconds.items()}


def strategies_table(models, queries, seeds):
    """Strategy to one percentage for each seed and price, in the world of signals."""
    found = {}
    strategies = [
        lambda: BeforeCall(Linear()),
        lambda: Chain("confidence"),
        lambda: Chain("verifier"),
        lambda: RoutedCascade(Linear(), "confidence"),
        lambda: RoutedCascade(Linear(), "verifier"),
    ]
    for seed in range(seeds):
        w = world("signals", models=models, seed=seed)
        logs = {"train": w.log(queries, seed=1), "fresh": w.log(FRESH, seed=2)}
        logs["validation"] = w.log(VALIDATION, seed=3)
        encoder = TextEncoder().fit(logs["train"])
        features = {name: encoder.transform(log) for name, log in logs.items()}
        fresh = logs["fresh"]
        for make in strategies:
            strategy = make().fit(logs["train"], features["train"])
            predicted = {name: strategy.predict(features[name]) for name in ("validation", "fresh")}
            settings = strategy.settings(logs["validation"], predicted["validation"])
            reached = {
                name: outcomes(logs[name], strategy, predicted[name], settings, models - 1)
                for name in predicted
            }
            for price, gains_NM in gains(w, fresh).items():
                means = {
                    name: (each.quality - price * each.cost).mean(axis=1)
                    for name, each in reached.items()
                }
                value = share(gains_NM, means["fresh"][means["validation"].argmax()])
                found.setdefault(strategy.title, []).append(100 * value)
    return found


def false_alarms(logs):
    """How often the verdict says that routing pays where nothing can be learned."""
    alarms = 0
    for seed in range(logs):
        w = world("unlearnable", models=4, seed=seed)
        log, *held = (w.log(count, seed) for count, seed in ((500, 1), (300, 2), (300, 3)))
        encoder = TextEncoder().fit(log)
        features = encoder.transform(log)
        strategies = [Single(), *(BeforeCall(router()) for router in QUICK)]
        parts = [[], []]
        for strategy in strategies:
            strategy.fit(log, features)
            predicted = [strategy.predict(encoder.transform(part)) for part in held]
            settings = strategy.settings(held[0], predicted[0])
            for reached, part, each in zip(parts, held, predicted, strict=True):
                reached.append(outcomes(part, strategy, each, settings, 3))
        alarms += judge(*parts, [strategy.title for strategy in strategies[1:]]).routable
        print(f"{alarms} false alarms on {seed + 1} logs", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--queries", type=int, default=2000, help="of the log to learn from")
    parser.add_argument("--seeds", type=int, default=1, help="worlds of each kind")
    parser.add_argument("--blend", action="store_true", help="the blend of routers too")
    parser.add_argument("--false-alarms", type=int, metavar="LOGS")
    given = parser.parse_args()
    if given.false_alarms is not None:
        false_alarms(given.false_alarms)
        return
    routers = (*ROUTERS, Blend) if given.blend else ROUTERS
    start = time.process_time()
    kinds, found, seconds = routers_table(routers, given.models, given.queries, given.seeds)
    print(
        f"{given.models} models, {given.queries} queries to learn from, {FRESH} fresh ones, "
        f"{given.seeds} worlds of each kind.\n\nShare of the gap found (%), mean over prices"
        " ('unlearnable': points of quality lost)\n"
    )
    print("| router | " + " | ".join(kinds) + " | seconds a fit |")
    print("|---" * (len(kinds) + 2) + "|")
    for name, by_kind in found.items():
        cells = [
            f"{np.mean(by_kind[kind]):.{2 if kind == 'unlearnable' else 0}f}" for kind in kinds
        ]
        print(f"| {name} | " + " | ".join(cells) + f" | {seconds[name]:.1f} |")
    print("\nWith signals of the answers, by price (0 first), % of the gap before any call\n")
    for name, values in strategies_table(given.models, given.queries, given.seeds).items():
        by_price = np.reshape(values, (given.seeds, -1)).mean(axis=0)
        print(f"{name:<44}" + "".join(f"{value:7.0f}" for value in by_price))
    print(f"\n{time.process_time() - start:.0f} s of processor time")


if __name__ == "__main__":
    main()
