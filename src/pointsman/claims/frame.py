"""What a claim is: a published result with the criterion that decides whether it holds here.

A claim is one file that puts existing parts together and declares, before anything is run, what
would make the result hold. `quick` asserts the mechanism in about a second; `full` measures one
seed; `decide` reads the criterion off the measurements of all seeds.

Figures are named "row: column", such as "whole network: accuracy", and shown as that table. Shares
and accuracies are numbers from 0 to 1.

Importing a claim must be instant, so that listing hundreds is: what computes (torch, scikit-learn,
the levels) is imported inside `quick`, `full` and their helpers.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Literal, get_args

from pointsman.errors import InputError

Figures = Mapping[str, float]
Level = Literal["moe", "depth", "steps", "pool", "supernet"]
Status = Literal["holds", "does not hold here", "mechanism only", "not run"]

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Claim:
    """A published system with its claim, checked at small scale.

    Args:
        slug: short name in lower case with hyphens; its file has the same name with underscores.
        paper: title.
        year: of the first version.
        arxiv: id, such as "1805.10982"; empty where the paper is not there.
        level: the size of what is routed; also the folder of the file.
        claim: what is claimed, in one sentence of our own.
        baseline: what it is compared with.
        criterion: when it holds, as a sentence that was fixed before the first full run.
        quick: asserts the mechanism (invariants, identities, limit cases) in about a second;
            raises AssertionError, see `must`.
        full: measures one seed, see `Figures`. None: the mechanism is all that can be checked here.
        decide: the criterion as a function of the figures of all seeds. None exactly if `full` is.
        key: the two to four figures that a listing shows: short label to name of the figure.
        composition: the parts that the system is put together from, with " · " between.
        entry: dotted path of the function or class that makes the system.
        note: what was found beside the criterion, for the page of claims; it decides nothing.

    Raises:
        InputError: a slug, level or arXiv id that is none; or only one of `full` and `decide`.
    """

    slug: str
    paper: str
    year: int
    arxiv: str
    level: Level
    claim: str
    baseline: str
    criterion: str
    quick: Callable[[], None]
    full: Callable[[int], Figures] | None = None
    decide: Callable[[Sequence[Figures]], bool] | None = None
    key: Mapping[str, str] = field(default_factory=dict)
    composition: str = ""
    entry: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.slug):
            raise InputError(f"a slug is words in lower case with hyphens, got {self.slug!r}")
        if self.level not in get_args(Level):
            levels = ", ".join(get_args(Level))
            raise InputError(f"{self.slug}: the level is one of {levels}, got {self.level!r}")
        if not re.fullmatch(r"(\d{4}\.\d{4,5})?", self.arxiv):
            raise InputError(f"{self.slug}: an arXiv id looks like 1805.10982, got {self.arxiv!r}")
        if (self.full is None) != (self.decide is None):
            raise InputError(f"{self.slug}: `full` measures what `decide` decides on: give both")

    @property
    def mechanism(self) -> str:
        """What `quick` asserts: the first line of its documentation."""
        return (self.quick.__doc__ or "").strip().split("\n")[0]

    @property
    def paper_id(self) -> str:
        """Year and arXiv id, in words."""
        return f"{self.year}, arXiv {self.arxiv}" if self.arxiv else str(self.year)


def must(condition: bool, rule: str) -> None:
    """Refuse to go on unless a rule holds; unlike `assert`, also under `python -O`.

    Raises:
        AssertionError: it does not hold; the text is the rule.
    """
    if not condition:
        raise AssertionError(rule)


def mean(measurements: Sequence[Figures], name: str) -> float:
    """A figure's mean over the seeds."""
    return fmean(figures[name] for figures in measurements)


def spread(measurements: Sequence[Figures], name: str) -> float:
    """A figure's sample standard deviation over the seeds; 0 with one seed."""
    values = [figures[name] for figures in measurements]
    return stdev(values) if len(values) > 1 else 0.0
