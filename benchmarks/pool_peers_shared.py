"""What the parts of `pool_peers.py` share: data and its splits, the other process, tables.

Legend: N queries, M models.
"""

import json
import os
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pointsman.frontier import Frontier, Point
from pointsman.pool.features import TextEncoder
from pointsman.pool.log import Log
from pointsman.pool.reading import split_log
from pointsman.pool.routers import Prediction
from pointsman.pool.strategies.prices import chosen_at, prices
from pointsman.pool.synthetic import OUTPUT_PRICE, world
from pool import PRICES, read

WORKER = Path(__file__).with_name("pool_peers_worker.py")
TRAIN, VALIDATION, FRESH = 1000, 400, 1500  # queries of the synthetic pools


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
        command = [self.python, str(WORKER), str(self.folder)]
        try:
            subprocess.run(command, env={**os.environ, **one}, check=True)
            said = json.loads((self.folder / "said.json").read_text())
        except (OSError, subprocess.CalledProcessError) as wrong:
            said = {task["answer"]: {"failed": str(wrong)} for task in self.tasks}
        for task in self.tasks:
            key, told = tuple(task["key"]), said[task["answer"]]
            if "failed" in told:
                self.said[key] = told["failed"]
            else:
                with np.load(self.folder / task["answer"]) as arrays:
                    self.said[key] = dict(arrays)


# ---- tables


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


def say_absent(absent):
    for line in absent:
        print(f"left out: {line}")


def best_policy(part):
    """Frontier of the best policy that decides before a call, by the truth of the test part."""
    truth = Prediction(part.true_quality, part.true_cost)
    rows, points = np.arange(len(part.true_quality)), []
    for price in prices(truth):
        at = chosen_at(truth, price)
        points.append(Point(price, truth.quality[rows, at].mean(), truth.cost[rows, at].mean()))
    return Frontier("the truth", tuple(points), "US$")
