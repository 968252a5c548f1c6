"""Routers that skip layers of the byte-level model: supervised by tree search, beside the oracle.

Windows of 128 bytes; bits are those of the last 64, given all before them. Two kinds of routers
learn from the same labels:

    all bytes    read the whole window before its path is decided, its last bytes too. That is for
                 scoring a text that is there, not for writing one; as the path is chosen with the
                 answer in sight, it may tell up to one bit per skippable layer about the window.
    first half   read the first 64 bytes only, as `write_on_paths` does with a prompt.

Legend: L layers, V = 128 byte values.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from depth_text_models import (
    BYTES,
    LAYERS,
    PROMPT,
    WIDTH,
    Row,
    prompts_of,
    same_texts,
    timed,
    times_as_fast,
    windows,
)
from torch import Tensor
from torch.nn import functional

from pointsman.depth.decoder import Decoder
from pointsman.depth.decoding.early import decode
from pointsman.depth.decoding.exits import LanguageExits
from pointsman.depth.layers.gap import SkipGap, skip_gap
from pointsman.depth.layers.network import SkipNetwork, outcomes_of_runs
from pointsman.depth.layers.paths import enumerate_paths
from pointsman.depth.layers.routers import WindowRouters
from pointsman.depth.layers.search import TreeSearch, every_path
from pointsman.depth.layers.training import fit_routers
from pointsman.depth.layers.writing import write_on_paths
from pointsman.frontier import Frontier

HALF = PROMPT  # bytes that are read before those that count
EDITABLE = range(1, LAYERS)  # the first layer always runs
LABELLED, MEASURED, SIMULATIONS = 160, 96, 32
TOLERANCES = (0.02, 0.05, 0.1)  # bits per byte that a label may lose
PRICES = (-2.0, -1.0, 0.0, 1.0, 2.0)
BLIND = math.log2(BYTES)  # bits


class HalfRouters(WindowRouters):
    """Routers that read the first half of the window alone."""

    def pool(self, features: Tensor) -> Tensor:
        return super().pool(features[:, :HALF])


def saved(logits: Tensor, ids: Tensor) -> Tensor:
    """1 - bits / 7 of the second half: how much of a blind guess's bits is saved."""
    nats = functional.cross_entropy(logits[:, HALF:].mT, ids[:, HALF:], reduction="none")
    return (1 - nats.mean(dim=1) / math.log(BYTES)).clamp(0, 1)


def cut(stream: str, count: int) -> tuple[Tensor, Tensor]:
    texts = windows(stream, count, 2 * HALF + 1, offset=0.25)
    return texts[:, :-1], texts[:, 1:]


def fixed_paths(network: SkipNetwork, x: Tensor, y: Tensor, held_out: Any) -> Frontier:
    """For each number of layers the path that is best on x for all windows alike, measured apart."""
    paths = enumerate_paths(LAYERS, actions=2, editable=EDITABLE)
    mean = every_path(network.trunk, x, y, paths, quality=saved).quality.mean(axis=1)
    chosen: dict[Any, Tensor] = {}
    for length in range(1, LAYERS + 1):
        places = [place for place, path in enumerate(paths) if sum(path) == length]
        best = paths[max(places, key=lambda place: float(mean[place]))]
        chosen[float(length)] = torch.tensor(best).expand(len(held_out[0]), -1)
    found = outcomes_of_runs(network, *held_out, chosen, quality=saved, decided=False)
    return Frontier.from_outcomes("fixed", found)


def rows_of_gap(name: str, gap: SkipGap, fixed: Frontier, prices: Sequence[float]) -> list[Row]:
    rows = []
    for price in prices:
        at = gap.at(price)
        spent = at["cost"]
        cheapest = min(point.cost for point in fixed.points)
        at["fixed"] = fixed.quality_at(max(spent, cheapest))
        bits = {
            key: BLIND * (1 - at[key])
            for key in ("routers", "shuffled", "exchanged", "fixed", "oracle")
        }
        rows.append(
            {
                "name": f"{name}, price {price:g}",
                "layers": LAYERS * (1 - at["skipped"]),
                "MFLOPs": spent / (2 * HALF),
                **bits,
                "gap to oracle": bits["routers"] - bits["oracle"],
                "under fixed": bits["fixed"] - bits["routers"],
            }
        )
    return rows


def router_table(
    decoder: Decoder, labelled: int, measured: int, texts: int, new: int, seed: int = 0
) -> tuple[list[Row], list[Row], Row]:
    """Bits of routers and of what they are held against; speed of writing; what the search found."""
    learned, held_out = cut("train", labelled), cut("test", measured)
    search = TreeSearch(simulations=SIMULATIONS, actions=2, editable=EDITABLE, max_gap=None)
    tried = search.search(decoder, *learned, quality=saved)
    paths = enumerate_paths(LAYERS, actions=2, editable=EDITABLE)
    oracle = every_path(decoder, *held_out, paths=paths, quality=saved)
    kinds = {"all bytes": WindowRouters, "first half": HalfRouters}
    rows: list[Row] = []
    about: Row = {"paths tried of": [SIMULATIONS, len(paths)]}
    fixed: Frontier | None = None
    writer: SkipNetwork | None = None
    for kind, make in kinds.items():
        for tolerance in TOLERANCES:
            torch.manual_seed(seed)
            routers = make(LAYERS, WIDTH, actions=2, editable=EDITABLE)
            network = SkipNetwork(decoder, routers)
            if fixed is None:
                fixed = fixed_paths(network, learned[0][::2], learned[1][::2], held_out)
                whole = BLIND * (1 - float(oracle.whole.mean()))
                spent = float(network.layer_costs(held_out[0][:1]).whole) / (2 * HALF)
                rows.append({"name": "full depth", "layers": 8.0, "MFLOPs": spent})
                rows[0] |= {"routers": whole, "fixed": whole}
            labels, good = tried.best(tolerance=tolerance / BLIND)
            about[f"layers of labels within {tolerance:g}"] = float(labels[good].sum(1).double().mean())
            fit_routers(network, learned[0][good], labels[good], updates=300, seed=seed)
            gap = skip_gap(network, *held_out, oracle, PRICES, quality=saved)
            rows += rows_of_gap(f"{kind}, within {tolerance:g}", gap, fixed, PRICES)
            if kind == "first half" and tolerance == TOLERANCES[1]:
                writer = network
    assert writer is not None
    return rows, writing_table(decoder, writer, texts, new), about


def writing_table(decoder: Decoder, network: SkipNetwork, count: int, new: int) -> list[Row]:
    """Tokens per second of writing, each text on the path that its prompt is given at price 0."""
    prompts = prompts_of("test", count)
    contenders: Any = {
        "full depth (decode)": partial(decode, LanguageExits(decoder, at=[]), new=new),
        "full depth (write_on_paths)": partial(write_on_paths, network, new=new, price=-math.inf),
        "on paths, price 0": partial(write_on_paths, network, new=new, price=0.0),
    }
    found, rows = timed(contenders, prompts, new), []
    base = found["full depth (decode)"]
    for name, each in found.items():
        runs = [float(one.runs.sum(1).double().mean()) for one in each["found"] if hasattr(one, "runs")]
        written = [getattr(one, "ids", None) for one in each["found"]]
        ids = [one.output if text is None else text for one, text in zip(each["found"], written, strict=True)]
        row = {"name": name, "tokens per s": each["tokens per s"]}
        row |= {"times as fast": times_as_fast(base, each)}
        row |= {"layers": sum(runs) / len(runs) if runs else float(LAYERS)}
        row |= {"texts as full depth": same_texts([one.ids for one in base["found"]], ids)}
        rows.append(row | {"texts": count})
    return rows
