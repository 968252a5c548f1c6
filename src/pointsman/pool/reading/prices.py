"""What models charge: a price file, and the costs that follow from it where a log has none."""

import csv
import io
import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError, reason
from pointsman.pool.reading.names import plain, shown

Array = npt.NDArray[np.float64]
MILLION = 1e6
CHARACTERS_A_TOKEN = 4.0  # of a query whose tokens nobody counted

# Field to the words for it, each with the factor that brings it to US$ per million tokens (or, for
# `call` and `answer`, to US$ per call and tokens).
FIELDS: dict[str, dict[str, float]] = {
    "input": {
        "input": 1, "prompt": 1, "input price": 1, "price input": 1,
        "input cost per token": MILLION,
    },
    "output": {
        "output": 1, "completion": 1, "output price": 1, "price output": 1,
        "output cost per token": MILLION,
    },
    "both": {"price": 1, "per million": 1, "per million tokens": 1},
    "call": {"call": 1, "per call": 1, "request": 1, "input cost per request": 1},
    "answer": {"output tokens": 1, "answer tokens": 1, "answer": 1},
}  # fmt: skip


@dataclass(frozen=True)
class Price:
    """What one model charges.

    Args:
        input: US$ per million tokens of the query.
        output: US$ per million tokens of the answer.
        call: US$ per call beside that.
        answer: tokens of a typical answer, for logs that do not count them.
    """

    input: float = 0.0
    output: float = 0.0
    call: float = 0.0
    answer: float = 0.0

    def counts_tokens(self) -> bool:
        """Whether a call's cost depends on its tokens."""
        return self.input > 0 or self.output > 0


def read_prices(path: Path) -> dict[str, Price]:
    """Model to price, from a .toml, .json or .csv file.

    Each model has `input` and `output` (US$ per million tokens), or `price` (the same for both), or
    `call` (US$ per call); `output_tokens` may say how long its answers are. In TOML and JSON a
    model may have a number alone, which is its `price`; in JSON and CSV a row names its model in
    `model`. Tables under "models" are found too, so that the configuration of a server serves.

    Raises:
        InputError: no such file, another format, or a price that is missing, negative or no number.
    """
    readers: dict[str, Callable[[str], Any]] = {
        ".toml": tomllib.loads,
        ".json": json.loads,
        ".csv": _rows,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: prices come in a .toml, .json or .csv file")
    try:
        found = reader(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as {path.suffix} ({reason(error)})") from error
    if isinstance(found, Mapping) and isinstance(found.get("models"), Mapping | list):
        found = found["models"]
    if isinstance(found, list):
        found = {str(row.get("model", row.get("name"))): row for row in map(_row, found)}
    priced = {str(m): _price(path, str(m), entry) for m, entry in _row(found).items()}
    prices = {model: price for model, price in priced.items() if price is not None}
    if not prices or "None" in prices:
        raise InputError(
            f'{path}: prices are given by model, such as ["gpt-4"] with input = 10 and output = '
            "30 in TOML, or columns model,input,output in CSV"
        )
    return prices


def prices_of(prices: Mapping[str, Price], models: tuple[str, ...]) -> dict[str, Price]:
    """The prices of some models, by their exact names or, failing that, without regard to case."""
    loose = {plain(name): price for name, price in prices.items()}
    found = {model: prices.get(model, loose.get(plain(model))) for model in models}
    return {model: price for model, price in found.items() if price is not None}


def call_cost(price: Price, characters: Array, given: Mapping[str, Array]) -> Array:
    """(n,) US$ of calls to one model.

    cost = call + (input tokens * input price + output tokens * output price) / 1,000,000

    Input tokens that no column counts are the characters of the query over four; output tokens that
    no column counts are the total less the input where the total is known, else `price.answer`.

    Args:
        price: of the model.
        characters: (n,) of the queries.
        given: "input tokens", "output tokens" and "tokens" to (n,) counts, NaN where unknown; those
            that the log has.
    """
    estimated = np.ceil(characters / CHARACTERS_A_TOKEN)
    entered = given.get("input tokens", estimated)
    total = given.get("tokens")
    if "output tokens" in given:
        written = given["output tokens"]
        if "input tokens" not in given and total is not None:
            entered = np.maximum(total - written, 0.0)
    elif total is not None:
        entered = np.minimum(entered, total)
        written = total - entered
    else:
        written = np.full(len(characters), price.answer)
    spent: Array = price.call + (entered * price.input + written * price.output) / MILLION
    return spent


def _rows(text: str) -> list[dict[str, Any]]:
    rows = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    return [{k: v for k, v in row.items() if v not in (None, "")} for row in rows]


def _row(entry: Any) -> Mapping[str, Any]:
    return entry if isinstance(entry, Mapping) else {}


def _price(path: Path, model: str, entry: Any) -> Price | None:
    """The price of one model; None where its entry is about other things."""
    fields = entry if isinstance(entry, Mapping) else {"price": entry}
    found: dict[str, float] = {}
    for name, value in fields.items():
        for field, words in FIELDS.items():
            factor = words.get(plain(str(name)))
            if factor is not None:
                found[field] = factor * _number(path, model, str(name), value)
    if not found:
        return None
    both = found.pop("both", None)
    if both is not None:
        found = {"input": both, "output": both} | found
    if ("input" in found) != ("output" in found) or not {"input", "call"} & found.keys():
        raise InputError(
            f"{path}: {model!r} needs input and output (US$ per million tokens), price (for both) "
            f"or call (US$ per call), it has {shown(list(map(str, fields)))}"
        )
    return Price(**found)


def _number(path: Path, model: str, name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not isfinite(number) or number < 0:
        raise InputError(
            f"{path}: a price is a number that is not negative, {model!r} has {name} = {value!r}"
        )
    return number
