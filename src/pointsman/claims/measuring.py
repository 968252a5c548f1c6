"""Run a claim over its seeds, and keep what was measured with what it was measured on.

A measurement is one JSON file in the folder `measured` of this package. It holds the text of the
criterion and a digest of the claim's file, so that a listing can say when either has changed since.
"""

import ast
import hashlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pointsman import __version__
from pointsman.claims.frame import SEEDS, Claim, Figures, Status, mean, spread
from pointsman.errors import InputError

FOLDER = Path(__file__).parent / "measured"
SCHEMA = {"name": "pointsman-claim", "version": 1}


@dataclass(frozen=True)
class Measurement:
    """What a full run of a claim found.

    Attributes:
        slug: of the claim.
        status: "holds" or "does not hold here".
        criterion: its text when measured.
        digest: of the claim's file when measured.
        seeds: S of them.
        figures: S mappings of names to numbers, rounded to six significant digits.
        mean: over the seeds.
        spread: sample standard deviation over the seeds.
        date: UTC, such as "2026-11-21".
        seconds: of CPU time, for all seeds together.
        pointsman: version.
        torch: version.
        machine: cores and architecture, in words.
    """

    slug: str
    status: Literal["holds", "does not hold here"]
    criterion: str
    digest: str
    seeds: tuple[int, ...]
    figures: tuple[Figures, ...]
    mean: Figures
    spread: Figures
    date: str
    seconds: float
    pointsman: str
    torch: str
    machine: str

    def to_json(self) -> str:
        """As text that `read` reads back."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"


def measure(
    claim: Claim,
    seeds: Sequence[int] = SEEDS,
    on_seed: Callable[[int], None] | None = None,
) -> Measurement:
    """Run a claim in full, on one thread, and decide.

    Args:
        claim: with a `full` run.
        seeds: at least one.
        on_seed: called with each seed when it is done.

    Raises:
        InputError: the claim has no full run, or no seed was given.
        ValueError: `full` gave a figure that is not finite, not named "row: column", or not the
            same for every seed.
    """
    if claim.full is None or claim.decide is None:
        raise InputError(f"{claim.slug} has no full run: its mechanism alone is checked")
    if not seeds:
        raise InputError("a claim is measured over at least one seed, got none")
    start, code = time.process_time(), digest(claim)  # of what runs, not of a later edit
    figures: list[Figures] = []
    with _one_thread():
        for seed in seeds:
            figures.append(_rounded(claim, claim.full(seed), figures))
            if on_seed is not None:
                on_seed(seed)
    return Measurement(
        slug=claim.slug,
        status="holds" if claim.decide(figures) else "does not hold here",
        criterion=claim.criterion,
        digest=code,
        seeds=tuple(seeds),
        figures=tuple(figures),
        mean={name: _round(mean(figures, name)) for name in figures[0]},
        spread={name: _round(spread(figures, name)) for name in figures[0]},
        date=datetime.now(UTC).date().isoformat(),
        seconds=round(time.process_time() - start, 1),
        pointsman=__version__,
        torch=version("torch"),
        machine=f"{os.cpu_count()} cores, {platform.machine()}, one thread used",
    )


class _one_thread:  # noqa: N801  # used as a function
    """Torch on one thread meanwhile: small networks are faster so, and sums come out the same."""

    def __enter__(self) -> None:
        import torch

        self.threads = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *error: object) -> None:
        import torch

        torch.set_num_threads(self.threads)


def _rounded(claim: Claim, found: Figures, earlier: Sequence[Figures]) -> dict[str, float]:
    figures = {name: _round(value) for name, value in found.items()}
    for name, value in figures.items():
        if not math.isfinite(value) or ": " not in name:
            raise ValueError(
                f"{claim.slug}: a figure is a finite number named 'row: column', "
                f"got {value} for {name!r}"
            )
    missing = set(claim.key.values()) - set(figures)
    if missing or (earlier and list(earlier[0]) != list(figures)):
        raise ValueError(
            f"{claim.slug}: every seed gives the same figures, the key ones among them, "
            f"got {', '.join(figures)}"
        )
    return figures


def _round(value: float) -> float:
    return float(f"{value:.6g}")


def digest(claim: Claim) -> str:
    """Of the code in a claim's file: all but the module's docstring and the words of `CLAIM`."""
    source = Path(str(sys.modules[claim.quick.__module__].__file__)).read_text(encoding="utf-8")
    lines, tree = source.splitlines(), ast.parse(source)
    words = [node for node in tree.body if _is_words(node)]
    for node in reversed(words):
        lines[node.lineno - 1 : node.end_lineno] = []
    code = "\n".join(line.rstrip() for line in lines)
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def _is_words(node: ast.stmt) -> bool:
    """A text that stands alone, or `CLAIM = Claim(...)`, whose criterion is compared by itself."""
    match node:
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Assign(targets=[ast.Name(id="CLAIM")]):
            return True
    return False


def path_of(claim: Claim, folder: Path = FOLDER) -> Path:
    """Where a claim's measurement lies, or would."""
    return folder / f"{claim.slug}.json"


def read(claim: Claim, folder: Path = FOLDER) -> Measurement | None:
    """The recorded measurement of a claim, None if there is none.

    Raises:
        InputError: the file is damaged, or of another version.
    """
    path = path_of(claim, folder)
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise _damaged(path, claim, str(error)) from error
    if not isinstance(found, Mapping) or found.get("schema") != SCHEMA:
        raise _damaged(path, claim, f"expected schema {SCHEMA}")
    missing = [field.name for field in fields(Measurement) if field.name not in found]
    if missing:
        raise _damaged(path, claim, f"missing {', '.join(missing)}")
    values = {field.name: found[field.name] for field in fields(Measurement)}
    values["seeds"], values["figures"] = tuple(values["seeds"]), tuple(values["figures"])
    return Measurement(**values)


def _damaged(path: Path, claim: Claim, reason: str) -> InputError:
    return InputError(
        f"{path} is no measurement ({reason}): "
        f"`pointsman claims run {claim.slug} --full` writes it anew"
    )


@dataclass(frozen=True)
class Standing:
    """A claim with its latest measurement, as listed."""

    claim: Claim
    measurement: Measurement | None

    @classmethod
    def of(cls, claim: Claim, folder: Path = FOLDER) -> "Standing":
        """Read from the folder of measurements; see `read` for what it raises."""
        return cls(claim, None if claim.full is None else read(claim, folder))

    @property
    def status(self) -> Status:
        """What is known about the claim here."""
        if self.claim.full is None:
            return "mechanism only"
        return "not run" if self.measurement is None else self.measurement.status

    @property
    def stale(self) -> bool:
        """Whether the criterion or the claim's file changed since the measurement."""
        found = self.measurement
        return found is not None and (
            found.criterion != self.claim.criterion or found.digest != digest(self.claim)
        )

    @property
    def words(self) -> str:
        """The status, with a word where it is out of date."""
        return f"{self.status}, measured before a change" if self.stale else self.status

    def as_dict(self) -> dict[str, Any]:
        """Everything in plain JSON types; without a measurement, its part is None."""
        claim, found = self.claim, self.measurement
        return {
            "slug": claim.slug,
            "paper": claim.paper,
            "year": claim.year,
            "arxiv": claim.arxiv,
            "level": claim.level,
            "claim": claim.claim,
            "baseline": claim.baseline,
            "criterion": claim.criterion,
            "composition": claim.composition,
            "mechanism": claim.mechanism,
            "entry": claim.entry,
            "status": self.status,
            "measured_before_a_change": self.stale,
            "key": dict(claim.key),
            "mean": None if found is None else dict(found.mean),
            "spread": None if found is None else dict(found.spread),
            "measurement": None if found is None else asdict(found),
        }
