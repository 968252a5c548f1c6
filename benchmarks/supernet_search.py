"""How fast each search engine finds the front, on spaces of which every member is known.

    python benchmarks/supernet_search.py [--folder DIR] [--spaces 0 1 2] [--seeds 20]
        [--engines NAME ...] [--json FILE]

- Three spaces of 13,824 convolutional networks on digits with shared weights, one for each training
  seed (benchmarks/supernet_digits.py): quality is the accuracy on 797 images that were not trained
  on, cost is MACs. Training and evaluating them all takes about five minutes of one core each, the
  first time; the tables are kept in DIR.
- The 125 cells and the 36 slices of pointsman.claims.architectures, of which each was trained.

What is printed, over seeds of the engines: share of the space's hypervolume (both axes from 0 to 1
between the least and the greatest of the space, reference point 0.1 beyond the worst of both) after
some evaluations, how many runs reached 0.95 of it, and the processor time of a whole run, which is
the engine's own as an evaluation is a look into the table. No genotype is evaluated twice: what an
engine proposes again is answered from memory and not counted, which is kinder to engines that
repeat themselves than counting it.

"as shipped" means the settings of DyNAS-T: NSGA-II with 50 genotypes a generation and a mutation
rate of 0.02; LINAS with costs predicted instead of counted. The settings of `front_search` were
tried out on the spaces of the training seeds 100 and 101, which are not among those reported.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev

import supernet_digits

from pointsman.claims import architectures
from pointsman.supernet.search.engine import Engine
from pointsman.supernet.search.engines.evolution import nsga2
from pointsman.supernet.search.engines.front_search import front_search
from pointsman.supernet.search.engines.linas import linas
from pointsman.supernet.search.engines.optuna_samplers import optuna_nsga2, tpe
from pointsman.supernet.search.engines.random_search import random_search
from pointsman.supernet.search.engines.reinforce import reinforce
from pointsman.supernet.search.hypervolume import hypervolume_share
from pointsman.supernet.search.problem import Evaluation, Problem
from pointsman.supernet.search.run import search

ENGINES: dict[str, Engine] = {
    "random, no repeats": random_search,
    "front_search": front_search,
    "front_search, batches of 8": partial(front_search, batch=8),
    "pymoo NSGA-II": nsga2,
    "pymoo NSGA-II, as shipped": partial(nsga2, population=50, mutation=0.02),
    "optuna NSGA-II, 20": partial(optuna_nsga2, population=20),
    "optuna NSGA-II, 50": optuna_nsga2,
    "REINFORCE": reinforce,
    "LINAS, as shipped": partial(linas, exact_costs=False),
    "LINAS, exact costs": linas,
    "optuna TPE": tpe,
}

Known = tuple[Problem, list[Evaluation]]


def digits(seed: int, folder: Path) -> Known:
    table = supernet_digits.table(seed, folder)
    space = supernet_digits.supernet(0).space
    problem = Problem(space, lambda g: table[g][0], lambda g: table[g][1], "MACs")
    return problem, [Evaluation(g, *values) for g, values in table.items()]


def cells(seed: int) -> Known:
    table = architectures.cell_table(seed)
    cost = architectures.cell_parameters
    problem = Problem(architectures.CELLS, lambda g: table[g][0], cost, "parameters")
    return problem, [Evaluation(g, right, cost(g)) for g, (right, _) in table.items()]


def slices(seed: int) -> Known:
    table = architectures.slice_table(seed)
    cost = architectures.slice_parameters
    problem = Problem(architectures.SLICES, lambda g: table[g][0], cost, "parameters")
    return problem, [Evaluation(g, right, cost(g)) for g, (right, _) in table.items()]


def compared(known: Known, engine: Engine, seeds: int, looks: tuple[int, ...]) -> dict[str, float]:
    """Figures of one engine on one space."""
    problem, truth = known
    shares: list[list[float]] = []
    started = time.process_time()
    spent = 0.0
    for seed in range(seeds):
        started = time.process_time()
        history = search(problem, engine, looks[-1], seed=seed)
        spent += time.process_time() - started
        assert len({each.genotype for each in history}) == len(history)
        shares.append([hypervolume_share(history[:count], truth) for count in looks])
    found = {"seeds": float(seeds), "seconds a run": spent / seeds}
    for count, column in zip(looks, zip(*shares, strict=True), strict=True):
        found[f"share at {count}"] = fmean(column)
        found[f"spread at {count}"] = pstdev(column)
    found["runs at 0.95"] = float(sum(row[-1] >= 0.95 for row in shares))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("supernet_digits"))
    parser.add_argument("--spaces", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="optuna")
    results = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    for name in options.engines:
        for kind in options.kinds:
            make, looks = KINDS[kind]
            for space in options.spaces:
                known = make(space, options.folder)
                found = compared(known, ENGINES[name], options.seeds, looks)
                results[f"{kind} {space}: {name}"] = found
                shares = "  ".join(
                    f"{found[f'share at {n}']:.3f}±{found[f'spread at {n}']:.3f} at {n}"
                    for n in looks
                )
                print(
                    f"{kind} {space}  {name:28s}{shares}  {found['runs at 0.95']:.0f}/"
                    f"{options.seeds} reach 0.95  {found['seconds a run']:.2f} s",
                    flush=True,
                )
                if options.json:
                    options.json.write_text(json.dumps(results, indent=1) + "\n")


KINDS: dict[str, tuple[Callable[[int, Path], Known], tuple[int, ...]]] = {
    "digits": (digits, (100, 300)),
    "cells": (lambda seed, folder: cells(seed), (25, 50)),
    "slices": (lambda seed, folder: slices(seed), (9, 18)),
}


if __name__ == "__main__":
    main()
