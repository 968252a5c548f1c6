"""What `pointsman search` does once its words are read: run, resume, measure, write."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pointsman.cli.made import Packed
from pointsman.cli.subnets import UNITS, Subnets, spelled
from pointsman.compare import results as written
from pointsman.compare.data import Dataset
from pointsman.compare.metric import ACCURACY, BITS_PER_BYTE
from pointsman.compare.request import Request
from pointsman.compare.ways import testing_order
from pointsman.cost import compare_latency
from pointsman.errors import InputError
from pointsman.frontier import Frontier, Outcomes, Pick, Point, certify, oracle
from pointsman.supernet.saved import save_subnet
from pointsman.supernet.search.drawing import affordable_start
from pointsman.supernet.search.engine import Engine
from pointsman.supernet.search.history import Evaluator, History, one_by_one
from pointsman.supernet.search.problem import Evaluation, Problem, front
from pointsman.supernet.search.run import search
from pointsman.supernet.search.workers import LocalWorkers, RayWorkers
from pointsman.supernet.space import Genotype

STUDY, WAY = "study.db", "subnets"
ENGINES = {  # by name: module and function in supernet.search.engines; the first is the usual one
    "front": "front_search:front_search",
    "random": "random_search:random_search",
    "nsga2": "evolution:nsga2",
    "linas": "linas:linas",
    "tpe": "optuna_samplers:tpe",
    "reinforce": "reinforce:reinforce",
    "optuna-nsga2": "optuna_samplers:optuna_nsga2",
}
AT_A_TIME = ("front", "random")  # whose batch is free; others have generations of their own
FRONT = 12  # subnets of the front that are measured and certified: every one costs confidence


@dataclass(frozen=True)
class Asked:
    """The words of the command line that say how to search; see `pointsman search --help`."""

    named: str
    evaluations: int
    engine: str
    batch: int
    workers: int
    ray: str | None
    seed: int
    study: str | None
    resume: bool
    out: Path


def engine_of(name: str, batch: int) -> Engine:
    """The engine of a name; those that can propose so many subnets at a time do.

    Raises:
        InputError: there is none.
    """
    if name not in ENGINES:
        raise InputError(f"--engine is one of {', '.join(ENGINES)}, got {name!r}")
    module, function = ENGINES[name].split(":")
    found = getattr(import_module(f"pointsman.supernet.search.engines.{module}"), function)
    engine: Engine = partial(found, batch=batch) if name in AT_A_TIME else found
    return engine


def facts_of(data: Dataset, seed: int, standardise: bool) -> dict[str, str]:
    """What evaluations depend on beside the network, by digests."""
    return {
        "data": data.fingerprint()[:16],
        "split": f"seed {seed}, {'standardised' if standardise else 'as it is'}",
    }


def run(
    problem: Problem,
    asked: Asked,
    facts: dict[str, str],
    begin: Callable[[int], None],
    found: Callable[[Evaluation], None],
) -> list[Evaluation]:
    """Every evaluation of the search, from the study or new.

    Args:
        problem: what is searched.
        asked: how.
        facts: see `facts_of`.
        begin: told how many evaluations were there already.
        found: called with each new evaluation.

    Raises:
        InputError: the study is there and --resume was not given, or it cannot be used.
        UnreachableError: nothing is within the budget.
    """
    store: str | Path = asked.study or asked.out / STUDY
    if asked.study is None:
        asked.out.mkdir(parents=True, exist_ok=True)
        if (asked.out / STUDY).exists() and not asked.resume:
            raise InputError(
                f"{asked.out / STUDY} is there: --resume continues it, or choose another --out"
            )
    engine = engine_of(asked.engine, asked.batch)
    affordable_start(problem)  # refuse before anything is shown
    with ExitStack() as stack:
        history = stack.enter_context(History(problem.space, store, unit=problem.unit, about=facts))
        known = history.evaluations()
        begin(len(known))
        by = stack.enter_context(_evaluator(problem, asked))
        return search(
            problem,
            engine,
            asked.evaluations,
            seed=asked.seed,
            known=known,
            evaluate=history.sharing(by),
            found=found,
        )


@contextmanager
def _evaluator(problem: Problem, asked: Asked) -> Iterator[Evaluator]:
    if asked.workers == 1 and asked.ray is None:
        yield one_by_one
        return
    packed = Packed.of(asked.named, problem)
    if asked.ray is None:
        with LocalWorkers(packed, asked.workers) as local:
            yield local.evaluate
        return
    address = None if asked.ray == "local" else asked.ray
    with RayWorkers(packed, asked.workers, address) as cluster:
        yield cluster.evaluate


def problem_of(subnets: Subnets, which: str, budget: float | None) -> Problem:
    """Quality on the validation part against the cost; can be pickled."""
    space = subnets.supernet.space
    return Problem(space, subnets.quality, partial(subnets.cost, which), UNITS[which], budget)


class Subnet:
    """The chosen subnet, to be written into a folder."""

    def __init__(self, subnets: Subnets, genotype: Genotype, named: str, certificate: Any) -> None:
        self.subnets, self.genotype = subnets, genotype
        self.named, self.certificate = named, certificate

    def save(self, folder: Path) -> None:
        """Description and weights of the extracted module."""
        about = {"made_by": self.named, "certificate": self.certificate}
        supernet = self.subnets.supernet
        save_subnet(folder, supernet, self.genotype, subnet=self.extracted(), about=about)

    def extracted(self) -> torch.nn.Module:
        """The ordinary module, with the batch statistics of this subnet."""
        self.subnets.quality(self.genotype)
        return self.subnets.supernet.extract(self.genotype).eval()


def settle(
    subnets: Subnets,
    problem: Problem,
    evaluations: Sequence[Evaluation],
    request: Request,
    data: Dataset,
    asked: Asked,
    given: torch.nn.Module | None = None,
) -> tuple[dict[str, Any], Subnet]:
    """The front measured on unseen parts, and the cheapest subnet whose quality is certified.

    Args:
        subnets: of the supernet.
        problem: that was searched.
        evaluations: found.
        request: what drop is allowed, how surely.
        data: for its name.
        asked: how it was searched.
        given: the network as it was before its fine-tuning, which is the reference where it is
            better than the whole network afterwards.

    Raises:
        InputError: every evaluation failed.
    """
    best = front(evaluations)
    if not best:
        failure = next((e.failure for e in evaluations), "nothing was evaluated")
        raise InputError(f"{asked.named}: every evaluation failed, the first with: {failure}")
    best = _thinned(best)
    space, reference = problem.space, _reference(subnets, problem, best, given)
    full = space.decode(subnets.whole)
    names = {e.genotype: spelled(space.decode(e.genotype), full) for e in best}

    def outcomes(part: str) -> Outcomes:
        rows = np.stack([subnets.qualities(genotype, part) for genotype in names])
        costs = np.array([[e.cost] for e in best]) * np.ones_like(rows[:1])
        alone = np.full(rows.shape[1], reference.cost)
        knobs = tuple(f"{WAY}: {name}" for name in names.values())
        return Outcomes(knobs, rows, costs, reference.qualities(part), alone, problem.unit)

    order = testing_order(outcomes("validation"))
    pick = certify(outcomes("calibration"), request.max_drop, request.confidence, order)
    tested = outcomes("test")
    picked = next(e for e in best if f"{WAY}: {names[e.genotype]}" == str(pick.knob))
    chosen = Subnet(subnets, picked.genotype, asked.named, pick.certificate.to_dict())
    found = _results(subnets, problem, tested, pick, request, data, chosen, reference)
    found["search"] = {
        "engine": asked.engine,
        "seed": asked.seed,
        "evaluations": len(evaluations),
        "failed": sum(each.failed for each in evaluations),
        "budget": problem.budget,
        "space": space.count(),
        "history": [[list(e.genotype), _plain(e.quality), _plain(e.cost)] for e in evaluations],
    }
    return found, chosen


@dataclass(frozen=True)
class _Reference:
    """What subnets are compared with."""

    name: str
    cost: float
    qualities: Callable[[str], np.ndarray[Any, np.dtype[np.float64]]]  # of a part's inputs, (N,)
    module: Callable[[], torch.nn.Module]


def _reference(
    subnets: Subnets,
    problem: Problem,
    best: Sequence[Evaluation],
    given: torch.nn.Module | None,
) -> _Reference:
    """The whole network, where it is broken the best subnet; or the one given, if it is better."""
    genotype, name = subnets.whole, "the whole network"
    try:
        quality = subnets.quality(genotype)
    except Exception:  # the search has said what breaks
        genotype, name = best[-1].genotype, "the best subnet"
        quality = subnets.quality(genotype)
    cost, parts = problem.cost(genotype), subnets.parts
    if given is not None and parts.judged(given, "validation").mean() >= quality:
        return _Reference("the network given", cost, partial(parts.judged, given), lambda: given)
    taken = Subnet(subnets, genotype, "", None)
    return _Reference(name, cost, partial(subnets.qualities, genotype), taken.extracted)


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _thinned(best: list[Evaluation]) -> list[Evaluation]:
    """At most `FRONT` of a front, its ends among them."""
    if len(best) <= FRONT:
        return best
    return [best[at] for at in sorted({round(i) for i in np.linspace(0, len(best) - 1, FRONT)})]


def _results(
    subnets: Subnets,
    problem: Problem,
    tested: Outcomes,
    pick: Pick,
    request: Request,
    data: Dataset,
    chosen: Subnet,
    compared: _Reference,
) -> dict[str, Any]:
    found = Frontier.from_outcomes("Subnets of one supernet", tested)
    assert found.reference is not None
    reference = Point(compared.name, found.reference.quality, found.reference.cost)
    cheapest = min(found.points, key=lambda point: point.cost)
    ladder = [Point("the cheapest subnet", cheapest.quality, cheapest.cost), reference]
    example = subnets.parts.inputs["test"][:1]
    modules = {
        "measured_ms": chosen.extracted(),
        "reference_ms": compared.module(),
    }
    calls = {name: partial(module, example) for name, module in modules.items()}
    times = compare_latency(calls)
    return written.assemble(
        data={
            "name": data.name,
            "kind": data.kind,
            "inputs": {name: len(part) for name, part in subnets.parts.inputs.items()},
            "classes": list(data.classes),
            "note": data.note,
        },
        request=request,
        metric=BITS_PER_BYTE if data.kind == "text" else ACCURACY,
        unit=problem.unit,
        ladder=ladder,
        reference=reference,
        fronts=[found],
        ways=[WAY],
        random=ladder,
        oracle=oracle(tested),
        pick=pick,
        used={name: float(time.median) for name, time in times.items()},
        trained=[],
    )
