"""`pointsman search MODEL --data D`: the front of a supernet's subnets, and a certified one."""

import json
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from torch import nn

from pointsman.cli.compare import Bar
from pointsman.cli.elastic import Tuning, finetuned
from pointsman.cli.made import make
from pointsman.cli.searching import ENGINES, Asked, facts_of, problem_of, run, settle
from pointsman.cli.subnets import UNITS, Parts, Subnets, budget_of, spelled
from pointsman.compare.files import load
from pointsman.compare.request import Request
from pointsman.compare.results import POLICY, REPORT, write
from pointsman.errors import InputError
from pointsman.frontier.table import results_table
from pointsman.policy_folder import weights_digest
from pointsman.supernet.search.problem import Evaluation, Problem, front
from pointsman.supernet.supernet import Supernet
from pointsman.writing import write_atomically

FRONT = "front.json"  # of a problem that is no supernet


@click.command("search")
@click.argument("model")
@click.option("--data", metavar="DATA", help="As compare takes it: digits, a table, an .npz file.")
@click.option("--target", metavar="COLUMN", help="Label column of a table.")
@click.option("--standardise", is_flag=True, help="Standardise features and pixels for the model.")
@click.option("--budget", metavar="COST", help='Of a subnet, such as 12.5, or "50%" of the whole.')
@click.option(
    "--cost", type=click.Choice(list(UNITS)), default="flops", show_default=True,
    help="What a subnet spends.",
)  # fmt: skip
@click.option("--evaluations", default=100, show_default=True, help="Subnets to evaluate in all.")
@click.option(
    "--engine", type=click.Choice(list(ENGINES)), default=next(iter(ENGINES)), show_default=True,
    help="What proposes the subnets.",
)  # fmt: skip
@click.option("--batch", default=4, show_default=True, help="Subnets proposed at a time.")
@click.option(
    "--updates", default=1000, show_default=True,
    help="Of the fine-tuning of a plain network; 0: none.",
)  # fmt: skip
@click.option("--rate", default=1e-3, show_default=True, help="Of that fine-tuning at its start.")
@click.option("--max-drop", default=0.01, show_default=True, help="Largest loss of quality.")
@click.option("--confidence", default=0.95, show_default=True, help="That the promise holds.")
@click.option("--seed", default=0, show_default=True, help="Fixes everything random.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, ...")
@click.option("--workers", default=1, show_default=True, help="Processes that evaluate.")
@click.option("--ray", metavar="ADDRESS", help='Workers on a Ray cluster: "auto", "local", a URL.')
@click.option("--study", metavar="URL", help="Shared history: a file, or postgresql://...")
@click.option("--resume", is_flag=True, help="Continue a search that was cut off.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder for results.")
def command(
    model: str,
    data: str | None,
    target: str | None,
    standardise: bool,
    budget: str | None,
    cost: str,
    evaluations: int,
    engine: str,
    batch: int,
    updates: int,
    rate: float,
    max_drop: float,
    confidence: float,
    seed: int,
    device: str,
    workers: int,
    ray: str | None,
    study: str | None,
    resume: bool,
    out: Path | None,
) -> None:
    """Search the subnets of MODEL for the best at every cost, and certify a cheap one.

    MODEL is module:function or file.py:function. The function takes no argument and gives a
    trained Supernet, which is judged on DATA; a plain network, whose widths become elastic and
    which is fine-tuned on DATA first; or a Problem with a quality and a cost of its own.

    Subnets are compared on the validation part, the pick is certified on the calibration part, and
    the figures shown are of the test part. Every evaluation is kept in a study (an SQLite file in
    the folder of the results): a search that was cut is continued by --resume, and processes that
    are given one --study share the work. Neither changes what is found; --batch may, and should be
    no smaller than the number of workers that are to be busy.
    """
    notes = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
    line = " ".join(shlex.quote(word) for word in ["pointsman", *sys.argv[1:]])
    request = Request(max_drop, confidence, seed=seed, command=line).check("features")
    name = model.rpartition(":")[2]
    asked = Asked(
        model, evaluations, engine, batch, workers, ray, seed, study, resume,
        out or Path(f"pointsman-{name}"),
    )  # fmt: skip
    if min(evaluations, workers, batch) < 1:
        raise InputError("--evaluations, --workers and --batch take numbers from 1")
    if updates < 0 or not 0 < rate < math.inf:
        raise InputError(f"--updates is 0 or more and --rate above 0, got {updates} and {rate}")
    _quiet()
    try:
        judged = _Judged(data, target, standardise, budget, cost, device)
        _run(asked, request, judged, Tuning(updates, rate, seed), notes)
    except KeyboardInterrupt:
        notes.print(f"\nstopped; {line}{'' if resume else ' --resume'} continues")
        sys.exit(130)


@dataclass(frozen=True)
class _Judged:
    """The words of the command line that say what subnets are judged on."""

    data: str | None
    target: str | None
    standardise: bool
    budget: str | None
    cost: str
    device: str


def _run(asked: Asked, request: Request, on: _Judged, tuning: Tuning, notes: Console) -> None:
    made = make(asked.named)
    if isinstance(made, Problem):
        if on.data is not None or on.budget is not None:
            raise InputError(
                f"{asked.named} gives a Problem, which has its own quality, cost and budget: leave "
                "out --data and --budget"
            )
        _show_front(made, _searched(made, asked, {}, notes), asked.out, notes)
        return
    if not isinstance(made, nn.Module):
        raise InputError(
            f"{asked.named} must give a Supernet, a network, or a Problem (a Space with a quality "
            f"and a cost), it gives a {type(made).__name__}"
        )
    if on.data is None:
        raise InputError("a network is judged on data: give --data")
    data = load(on.data, target=on.target)
    parts = Parts.of(data, request.seed, standardise=on.standardise, device=on.device)
    facts = facts_of(data, request.seed, on.standardise)
    made, given = made.to(on.device), None
    if not isinstance(made, Supernet):
        made, given = _finetuned(made, parts, tuning, facts, asked, notes), made
    facts["network"] = weights_digest(made)[:16]
    subnets = Subnets(made, parts)
    problem = problem_of(subnets, on.cost, None)
    if on.budget is not None:
        whole = problem.cost(subnets.whole)
        problem = problem_of(subnets, on.cost, budget_of(on.budget, whole, problem.unit))
    evaluations = _searched(problem, asked, facts, notes)
    found, chosen = settle(subnets, problem, evaluations, request, data, asked, given)
    write(found, chosen, asked.out)
    Console(emoji=False).print(results_table(found))
    notes.print(f"report: {asked.out / REPORT}   subnet: {asked.out / POLICY}")


def _finetuned(
    given: nn.Module,
    parts: Parts,
    tuning: Tuning,
    facts: dict[str, str],
    asked: Asked,
    notes: Console,
) -> Supernet:
    """A plain network as a supernet, with a bar while it is fine-tuned."""
    with Bar(notes, [f"{asked.named}: every width becomes elastic"]) as bar:

        def begin() -> None:
            bar.plan(tuning.updates)
            bar.begin("fine-tuning")

        return finetuned(given, parts, tuning, facts, asked.out, begin, lambda: bar.advance(1))


def _searched(
    problem: Problem, asked: Asked, facts: dict[str, str], notes: Console
) -> list[Evaluation]:
    """The evaluations, with a bar; then what broke, if anything did."""
    import torch

    from pointsman.supernet.search.failures import breaking_options

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in workers, so that their number changes nothing
    count = problem.space.count()
    total = min(asked.evaluations, count)
    kind = "subnet" if count == 1 else "subnets"
    heading = [f"{asked.named}: {count:,} {kind}, {total} to evaluate"]
    with Bar(notes, heading) as bar:

        def begin(known: int) -> None:
            bar.plan(total)
            bar.begin("evaluating" if known == 0 else f"evaluating ({known} were there)")
            bar.advance(min(known, total))

        try:
            evaluations = run(problem, asked, facts, begin, lambda _: bar.advance(1))
            bar.advance(total - len(evaluations))  # of a space with fewer within the budget
        finally:
            torch.set_num_threads(threads)
    failed = [each for each in evaluations if each.failed]
    if failed:
        notes.print(f"{len(failed)} evaluations failed, the first with: {failed[0].failure}")
    for choice, option in breaking_options(problem.space, evaluations):
        notes.print(f"{choice} {option}: every evaluation with it failed")
    return evaluations


def _show_front(
    problem: Problem, evaluations: Sequence[Evaluation], out: Path, notes: Console
) -> None:
    """The front of a problem that is no supernet, as lines and as a file."""
    best = front(evaluations)
    if not best:
        raise InputError(f"every evaluation failed, the first with: {evaluations[0].failure}")
    options = [problem.space.decode(each.genotype) for each in best]
    for each, taken in zip(best, options, strict=True):
        click.echo(f"{each.quality:.4f}  {each.cost:.6g} {problem.unit}  {spelled(taken)}")
    rows = [
        {"quality": each.quality, "cost": each.cost, "unit": problem.unit, "options": taken}
        for each, taken in zip(best, options, strict=True)
    ]
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / FRONT, json.dumps(rows, indent=1) + "\n")
    notes.print(f"front: {out / FRONT}")


def _quiet() -> None:
    """Optuna reports every study that it opens, which is nothing to a user of the command."""
    from importlib.util import find_spec

    if find_spec("optuna") is not None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
