"""What every call of a log spent: as the log says, else by the prices.

Legend: N queries, M models.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pointsman.errors import InputError
from pointsman.pool.reading import names
from pointsman.pool.reading.assemble import Cells
from pointsman.pool.reading.names import shown
from pointsman.pool.reading.prices import Price, call_cost, prices_of
from pointsman.pool.reading.values import Array

COUNTS = (names.INPUT, names.OUTPUT, names.TOKENS)


def costs(
    path: Path, cells: Cells, prices: Mapping[str, Price], price_file: Path | None
) -> tuple[Array, str]:
    """(N, M) US$ of every call, and a sentence that says where they are from.

    A model's costs are the log's where it has any, and its price fills the gaps; else they follow
    from its price and the tokens, counted or estimated, see `prices.call_cost`. A cell without a
    score gets no cost from a price: the model was not asked.

    Raises:
        InputError: a model has neither costs nor a price, or nothing costs anything.
    """
    found = prices_of(prices, cells.models)
    scored = ~np.isnan(cells.cells[names.QUALITY])
    characters = np.array([len(query) for query in cells.queries], dtype=np.float64)
    given = cells.cells.get(names.COST, np.full(scored.shape, np.nan))
    cost = np.array(given)
    ways: dict[str, list[str]] = {}
    for column, model in enumerate(cells.models):
        told = bool((~np.isnan(given[:, column])).any())
        price = found.get(model)
        if price is None:
            if not told:
                continue
            ways.setdefault("in the log", []).append(model)
            continue
        counts = {role: cells.cells[role][:, column] for role in COUNTS if role in cells.cells}
        counts = {role: count for role, count in counts.items() if not np.isnan(count).all()}
        gap = np.isnan(given[:, column]) & scored[:, column]
        cost[gap, column] = call_cost(price, characters, counts)[gap]
        if not told or gap.any():
            way = _way(price, counts, str(price_file))
            way = f"in the log, and where it has none {way}" if told else way
        else:
            way = "in the log"
        ways.setdefault(way, []).append(model)
    _check(path, cells, cost, ways, price_file)
    if len(ways) == 1:
        return cost, f"Costs in US$ are {next(iter(ways))}."
    parts = [f"of {shown(models, 4)} {way}" for way, models in ways.items()]
    return cost, "Costs in US$ are " + "; ".join(parts) + "."


def _way(price: Price, counts: Mapping[str, Array], file: str) -> str:
    if not price.counts_tokens():
        return f"the prices per call of {file}"
    if names.OUTPUT in counts and (names.INPUT in counts or names.TOKENS in counts):
        return f"counted tokens times the prices of {file}"
    estimate = "tokens estimated at 4 characters each"
    if names.OUTPUT in counts:
        return f"the prices of {file} times counted output tokens and {estimate} of the query"
    if names.TOKENS in counts:
        if price.input == price.output or names.INPUT in counts:
            return f"counted tokens times the prices of {file}"
        return f"the prices of {file} times counted tokens, of which {estimate} are the query's"
    first = "counted input tokens" if names.INPUT in counts else f"the query's {estimate}"
    if price.answer:
        return f"the prices of {file} times {first} and answers of {price.answer:g} tokens"
    return (
        f"the prices of {file} times {first}; answers are not counted, as the log has no output "
        "tokens (the price file may give output_tokens of a typical answer)"
    )


def _check(
    path: Path, cells: Cells, cost: Array, ways: Mapping[str, list[str]], file: Path | None
) -> None:
    settled = {model for models in ways.values() for model in models}
    missing = [model for model in cells.models if model not in settled]
    if missing and not settled and file is None:
        raise InputError(
            f"{path}: this log has no costs: give the prices of {shown(cells.models, 4)} with "
            "--prices FILE (such as CSV with columns model,input,output in US$ per million "
            "tokens), or add columns of costs"
        )
    if missing:
        where = "no price (there is no --prices FILE)" if file is None else f"no price in {file}"
        raise InputError(
            f"{path}: every model needs costs, {missing[0]!r} has none in the log and {where}: "
            "add them, or choose other models with --models"
        )
    if not np.nansum(cost) > 0:
        raise InputError(
            f"{path}: every cost is 0, so there is nothing to save: give prices with --prices FILE"
        )
