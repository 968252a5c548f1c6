"""The models of a wide log: columns "<model> score", or columns of numbers within the range."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pointsman.errors import InputError
from pointsman.pool.reading import names as n
from pointsman.pool.reading.files import must_have
from pointsman.pool.reading.names import Named, plain, shown, taken_apart
from pointsman.pool.reading.values import is_number_column, numbers

MOST_MODELS = 200
NEVER = {*n.NEVER_A_MODEL, *n.QUERY, *n.QUERY_TOO, *n.KEY, *n.TASK, *n.GROUP, *n.ROLE_OF}


class Wide:
    """Models of a wide log, and the columns of each.

    Args:
        path: of the file, for errors.
        head: pandas frame of its first rows.
        columns: those that may belong to a model.
        asked: models that the user named; None: they are recognised.
        priced: models of the price file.
        low, high: the range of a quality.

    Attributes:
        models: their names, in the order of the file.
        cells: role to model to column.

    Raises:
        InputError: no model, only one, or columns that may be models or not.
    """

    def __init__(
        self,
        path: Path,
        head: Any,
        columns: list[str],
        asked: Sequence[str] | None,
        priced: Sequence[str],
        low: float,
        high: float,
    ) -> None:
        self.path, self.head, self.low, self.high = path, head, low, high
        named = [taken_apart(column) for column in columns]
        self.quality: dict[str, str] = {}
        for name in named:
            if self._scores(name):  # of several for one model, the first
                self.quality.setdefault(name.base, name.column)
        if len(self.quality) < 2:  # one "test score" among models that are called by name alone
            self.quality = {}
        if asked is not None:
            self.quality = {model: self._asked(model, columns) for model in asked}
        elif not self.quality:
            bare = self._bare(named)
            self.quality = {c: c for c in self._agreed(bare, named, priced)}
        self.models = tuple(self.quality)
        self._check_number()
        self.cells: dict[str, dict[str, str]] = {n.QUALITY: dict(self.quality)}
        by_name = {plain(model): model for model in self.models}
        for name in named:
            model = by_name.get(plain(name.base))
            if model is None or name.role in (None, n.QUALITY, n.IGNORED):
                continue
            if name.column not in self.quality.values() and is_number_column(head[name.column]):
                self.cells.setdefault(str(name.role), {}).setdefault(model, name.column)

    def _scores(self, name: Named) -> bool:
        return (
            name.role == n.QUALITY
            and name.base != ""
            and plain(name.base) not in {*n.TASK, *n.GROUP, *n.KEY, *n.QUERY, *n.ROLE_OF}
            and is_number_column(self.head[name.column])
        )

    def _asked(self, model: str, columns: list[str]) -> str:
        if model in columns:
            return model
        return self.quality.get(model) or must_have(self.path, columns, model, "--models")

    def _bare(self, named: list[Named]) -> list[str]:
        """Columns of numbers whose names could be models'."""
        return [
            name.column
            for name in named
            if name.role in (None, n.QUALITY)
            and name.base != ""
            and plain(name.column) not in NEVER
            and not plain(name.column).startswith("unnamed ")
            and is_number_column(self.head[name.column])
            and not self._numbered(name.column)
        ]

    def _numbered(self, column: str) -> bool:
        """Whether a column counts its rows, or holds identifiers."""
        values = numbers(self.head[column])[0]
        known = values[values == values]
        # Few whole numbers may all differ by chance, such as grades from 0 to 10.
        whole = len(known) > 20 and bool((known == known.round()).all())
        return whole and len(set(known.tolist())) == len(known)

    def _inside(self, column: str) -> float:
        """Share of a column's numbers that are within the quality range."""
        values = numbers(self.head[column])[0]
        known = values[values == values]
        return float(((known >= self.low) & (known <= self.high)).mean()) if len(known) else 1.0

    def _agreed(self, bare: list[str], named: list[Named], priced: Sequence[str]) -> list[str]:
        """Which bare columns are models, refused where that is anybody's guess."""
        inside = [column for column in bare if self._inside(column) > 0.5]
        if not inside:
            self._check_range(bare)
        bases = {plain(name.base) for name in named if name.role not in (None, n.IGNORED)}
        sure = [c for c in bare if plain(c) in bases or plain(c) in set(map(plain, priced))]
        rest = [column for column in bare if column not in sure]
        if sure and rest:
            raise InputError(
                f"{self.path}: column {rest[0]!r} could be a model or not: it holds numbers, but "
                f"has neither a cost nor a price, as {sure[0]!r} has: name the models with "
                "--models, or leave it out"
            )
        outside = [column for column in rest if column not in inside]
        if outside and inside:
            raise InputError(
                f"{self.path}: column {outside[0]!r} could be a model or not: its numbers are not "
                f"within [{self.low:g}, {self.high:g}], while those of {inside[0]!r} are: name the "
                "models with --models, or leave it out"
            )
        return sure or inside

    def _check_range(self, bare: list[str]) -> None:
        values = [numbers(self.head[column])[0] for column in bare]
        if bare:
            least, most = min(v[v == v].min() for v in values), max(v[v == v].max() for v in values)
            raise InputError(
                f"{self.path}: a quality lies in [{self.low:g}, {self.high:g}], column {bare[0]!r} "
                f"and others hold numbers from {least:g} to {most:g}: if these are qualities, give "
                f"their range, such as --quality-range {min(least, 0):g},{most:g}"
            )

    def _check_number(self) -> None:
        if len(self.models) > MOST_MODELS:
            raise InputError(
                f"{self.path}: {len(self.models)} columns could be models, beginning with "
                f"{shown(self.models, 3)}; at most {MOST_MODELS} can be compared: name the models "
                "with --models"
            )
        if len(self.models) == 1:
            raise InputError(
                f"{self.path}: at least two models are needed to route between, found only "
                f"{self.models[0]!r}: add a column of scores for another one"
            )
        if not self.models:
            raise InputError(
                f"{self.path}: no column holds the scores of a model: a wide log has one column of "
                "numbers, true or false for each model, a long one a column 'model' and a column "
                f"'score'; the columns are {shown(list(map(str, self.head.columns)), 12)}"
            )
