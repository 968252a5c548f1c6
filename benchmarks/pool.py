"""How well each router ranks the questions of RouteLLM's MMLU log: prints one table.

    python benchmarks/pool.py [--data FILE] [--jobs 2] [--certificate] [--seed 0]

The log: 14,042 questions, and whether mixtral-8x7b and gpt-4-1106 answered them right. Routers see
the text of a question and nothing else, but for the per-task table, which is told the subject.

Five-fold cross-fitting: equal questions share a fold; encoder and router are fitted on four folds
and score the fifth; whatever a router chooses (penalties, numbers of neighbours, blend weights) it
chooses inside the four. The questions of each fold are ranked among themselves, those that should
gain most from the strong model first, and the same share of each fold is sent to it. (Ranked all
together, chance makes scores low in the folds of many gains, for these are missing in the other
four.) Intervals are percentiles over bootstrapped questions, with the ranks as they are. What the
encoder and the blend are made of was settled with an eye on this log; no router sees a test fold.

--certificate: is the promise kept? Thresholds on the blend's scores are ordered on 1,500 questions,
and the cheapest that loses at most a point against gpt-4-1106 is certified at 95% on 3,500 others,
200 times over. Drawn with replacement from the log, the log itself is the truth, so a promise
broken is seen without error. Drawn as a split, the rest of the log stands in for it; that is an
estimate with an error of its own, so more promises look broken than are.

Takes about ten minutes of one core.
"""

import argparse
import gzip
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binom, rankdata

from pointsman.frontier import Outcomes, apgr, certify, cpt, deferral_curve, safest_first
from pointsman.pool.features import TextEncoder
from pointsman.pool.log import Log
from pointsman.pool.routers import (
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
from pointsman.pool.routers.blend import Blend
from pointsman.pool.routers.forest import Forest

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "routellm_mmlu.csv.gz"
WEAK, STRONG = "mixtral-8x7b", "gpt-4-1106"
PRICES = (0.24, 24.7)  # US$ per million tokens, as RouteLLM has them
CHARACTERS_A_TOKEN = 4  # the log has no counts of tokens; no figure below but the saving uses this
FOLDS, BOOTSTRAPS, RESAMPLINGS = 5, 500, 200
VALIDATION, CALIBRATION = 1500, 3500
MAX_DROP, CONFIDENCE = 0.01, 0.95
SUBJECT = " (is told the subject)"

ROUTERS = (
    Constant,
    PromptLength,
    PerTask,
    KMeans,
    NearestNeighbours,
    SkillProfile,
    MatrixFactorization,
    MultilayerPerceptron,
    Pairwise,
    GradientBoosting,
    Forest,
    Linear,
    Blend,
)

# RouteLLM (Ong et al. 2024, arXiv 2406.18665 v4, table of MMLU), best training set of each.
PUBLISHED = (
    ("RouteLLM, random", 0.500, 50.07, 79.93),
    ("RouteLLM, BERT", 0.572, 41.30, 72.20),
    ("RouteLLM, matrix factorisation", 0.597, 35.46, 71.40),
    ("RouteLLM, causal LLM of 8B", 0.600, 35.49, 70.31),
    ("RouteLLM, similarity-weighted ranking", 0.603, 35.40, 71.55),
)


def read(path, queries=None):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        table = pd.read_csv(file)
    if queries is not None:
        table = table.sample(queries, random_state=0)
    texts = table["query"].astype(str).to_numpy(object)
    tokens = np.array([len(text) for text in texts]) / CHARACTERS_A_TOKEN
    return Log(
        queries=texts,
        models=(WEAK, STRONG),
        quality=table[[WEAK, STRONG]].to_numpy(float),
        cost=tokens[:, None] * np.array(PRICES) / 1e6,
        groups={"subject": table["subject"].astype(str).to_numpy(object)},
        name=Path(path).name,
    )


def fold_of(log, seed):
    """(N,) fold of each question; equal questions share one."""
    identity = log.identity()
    return (np.random.default_rng(seed).permutation(identity.max() + 1) % FOLDS)[identity]


def fold_scores(path, queries, seed, fold):
    """Router's title to (scores of the questions of one fold, seconds of CPU)."""
    log = read(path, queries)
    out = fold_of(log, seed) == fold
    train, test = log.take(~out), log.take(out)
    encoder = TextEncoder().fit(train)
    seen, new = encoder.transform(train), encoder.transform(test)
    scores = {}
    for kind in ROUTERS:
        start = time.process_time()
        title, told = kind.title, (seen, new)
        if kind is PerTask:
            title = kind.title + SUBJECT
            told = [
                replace(features, task=part.groups["subject"])
                for features, part in ((seen, train), (new, test))
            ]
        quality = kind().fit(told[0], train.quality, train.cost).predict(told[1]).quality
        scores[title] = (quality[:, 1] - quality[:, 0], time.process_time() - start)
    return scores


def cross_fitted(log, path, queries, seed, jobs):
    """Router's title to (N,) scores, and to mean seconds of CPU."""
    fold, scores, seconds = fold_of(log, seed), {}, {}
    with ProcessPoolExecutor(jobs) as pool:
        parts = pool.map(partial(fold_scores, path, queries, seed), range(FOLDS))
        for number, part in enumerate(parts):
            print(f"fold {number + 1} of {FOLDS} is done", flush=True)
            for title, (values, took) in part.items():
                here = (rankdata(values) - 0.5) / len(values)  # equal scores, equal ranks
                scores.setdefault(title, np.empty(len(log)))[fold == number] = here
                seconds[title] = seconds.get(title, 0.0) + took / FOLDS
    return scores, seconds


def measured(scores, quality):
    """APGR, CPT(50%) and CPT(80%) in percent of calls."""
    weak, strong = quality[:, 0].mean(), quality[:, 1].mean()
    curve = deferral_curve(scores, quality[:, 0], quality[:, 1])
    found = [100 * cpt(*curve, share, weak=weak, strong=strong) for share in (0.5, 0.8)]
    return [apgr(*curve, weak=weak, strong=strong), *found]


def with_interval(scores, quality):
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(BOOTSTRAPS):
        rows = rng.integers(0, len(scores), len(scores))
        drawn.append(measured(scores[rows], quality[rows]))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return [measured(scores, quality), low, high]


def print_table(log, scores, seconds):
    rows = []
    for title, values in scores.items():
        rows.append((title, *with_interval(values, log.quality), "yes", f"{seconds[title]:.1f}"))
    rows.sort(key=lambda row: row[1][0])
    gain = log.quality[:, 1] - log.quality[:, 0]
    perfect = ("Perfect ranker, in hindsight", *with_interval(gain, log.quality), "a limit", "")
    print(f"\n{len(log):,} questions; {WEAK} {log.quality[:, 0].mean():.4f}, ", end="")
    print(f"{STRONG} {log.quality[:, 1].mean():.4f} right\n")
    print("| router | APGR | CPT(50%) | CPT(80%) | fitted on this log? | CPU s to fit and score |")
    print("|---|---|---|---|---|---:|")
    for title, *values in PUBLISHED:
        print(f"| {title} | {values[0]:.3f} | {values[1]:.1f} | {values[2]:.1f} | no | |")
    for title, found, low, high, like, took in (*rows, perfect):
        cells = [
            f"{value:.{digits}f} [{below:.{digits}f}, {above:.{digits}f}]"
            for value, below, above, digits in zip(found, low, high, (3, 1, 1), strict=True)
        ]
        print(f"| {title} | {' | '.join(cells)} | {like} | {took} |")
    print(
        "\nThe published routers were trained on other data (chat preferences and some gold labels)"
        "\nand carried over; ours are fitted on questions of the same log. Only rows that say yes"
        "\nare like for like."
    )


def outcomes(rows, thresholds, scores, log):
    up = scores[rows] >= np.array(thresholds)[:, None]
    quality, price = log.quality[rows], np.array(PRICES)
    return Outcomes(
        knobs=tuple(f"{threshold:.6f}" for threshold in thresholds),
        quality=np.where(up, quality[:, 1], quality[:, 0]),
        cost=np.where(up, price[1], price[0]),
        reference_quality=quality[:, 1],
        reference_cost=np.full(len(rows), price[1]),
        unit="US$ per million tokens",
    )


def promise(seed, log, scores, *, replacement):
    """Certified?, drop on what counts as the truth, and share of cost saved, of one resampling."""
    rng = np.random.default_rng(seed)
    n = len(log)
    drawn = rng.choice(n, VALIDATION + CALIBRATION, replace=replacement)
    validation, calibration = drawn[:VALIDATION], drawn[VALIDATION:]
    truth = np.arange(n) if replacement else np.setdiff1d(np.arange(n), drawn)
    thresholds = np.unique(np.quantile(scores[validation], np.arange(20) / 20))
    order = safest_first(outcomes(validation, thresholds, scores, log))
    pick = certify(outcomes(calibration, thresholds, scores, log), MAX_DROP, CONFIDENCE, order)
    chosen = thresholds[[f"{threshold:.6f}" for threshold in thresholds].index(pick.knob)]
    real = outcomes(truth, [chosen], scores, log)
    saved = 1 - real.cost.mean() / real.reference_cost.mean()
    return pick.certificate.certified, real.drops().mean(), saved


def print_certificate(log, scores, jobs):
    print(
        f"\nPromise of at most {MAX_DROP:.0%} lost at {CONFIDENCE:.0%}, {RESAMPLINGS} times over:"
    )
    allowed = int(binom.ppf(0.95, RESAMPLINGS, 1 - CONFIDENCE))
    for replacement, words in (
        (True, "drawn with replacement, against the whole log"),
        (False, "split, against the rest of the log"),
    ):
        job = partial(promise, log=log, scores=scores, replacement=replacement)
        with ProcessPoolExecutor(jobs) as pool:
            found = list(pool.map(job, range(RESAMPLINGS), chunksize=10))
        certified, drop, saved = (np.array(column) for column in zip(*found, strict=True))
        broken = int((certified & (drop > MAX_DROP)).sum())
        print(
            f"- {words}: certified {certified.sum()} times, broken {broken} times "
            f"(expected at most {RESAMPLINGS * (1 - CONFIDENCE):.0f}, up to {allowed} by chance); "
            f"mean drop {100 * drop.mean():.2f} points, mean cost saved {saved.mean():.1%}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, default=0, help="of the folds")
    parser.add_argument("--queries", type=int, help="a sample only, to try it out")
    parser.add_argument("--certificate", action="store_true")
    given = parser.parse_args()
    if not given.data.is_file():
        parser.exit(1, f"{given.data} is not there: name RouteLLM's MMLU log with --data\n")
    log = read(given.data, given.queries)
    scores, seconds = cross_fitted(log, given.data, given.queries, given.seed, given.jobs)
    print_table(log, scores, seconds)
    if given.certificate:
        print_certificate(log, scores[Blend.title], given.jobs)


if __name__ == "__main__":
    main()
