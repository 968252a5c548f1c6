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

import numpy as np
import torch
from depth_text_models import (
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

from pointsman.claims.language import BYTES
from pointsman.depth.decoder import Decoder
from pointsman.depth.decoding.early import decode
from pointsman.depth.decoding.exits import LanguageExits
from pointsman.depth.layers.gap import oracle_frontier
from pointsman.depth.layers.network import SkipNetwork
from pointsman.depth.layers.paths import enumerate_paths, exchanged_runs, shuffled_runs
from pointsman.depth.layers.routers import WindowRouters
from pointsman.depth.layers.search import TreeSearch, every_path
from pointsman.depth.layers.training import fit_routers
from pointsman.depth.layers.writing import write_on_paths

HALF = PROMPT  # bytes that are read before those that count
EDITABLE = range(1, LAYERS)  # the first layer always runs
SIMULATIONS = 32  # paths that the search tries on each window
TOLERANCES = (0.02, 0.05)  # bits per byte that a label may lose
PRICES = (-2.0, -1.0, 0.0, 1.0)
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


class HeldOut:
    """Every path on every measured window, so that what any policy reaches is looked up."""

    def __init__(self, decoder: Decoder, texts: tuple[Tensor, Tensor]) -> None:
        self.x, self.y = texts
        self.paths = enumerate_paths(LAYERS, actions=2, editable=EDITABLE)
        self.tried = every_path(decoder, *texts, paths=self.paths, quality=saved)
        self.place = {path: at for at, path in enumerate(self.tried.paths)}

    def bits(self, runs_NB: Tensor) -> float:
        """Mean bits per byte where each window takes its own path."""
        places = [self.place[tuple(path)] for path in runs_NB.tolist()]
        found = self.tried.quality[places, np.arange(len(places))]
        return BLIND * (1 - float(found.mean()))

    def blind(self, runs_NB: Tensor, how: Any, draws: int = 50) -> float:
        """The mean over draws of chance."""
        generator = torch.Generator().manual_seed(0)
        return sum(self.bits(how(runs_NB, generator)) for _ in range(draws)) / draws


def shuffled(runs_NB: Tensor, generator: torch.Generator) -> Tensor:
    """As many layers of each window, at places drawn among those that may be skipped."""
    table, places = runs_NB.clone(), list(EDITABLE)
    table[:, places] = shuffled_runs(table[:, places], generator)
    return table


def fixed_paths(decoder: Decoder, learned: tuple[Tensor, Tensor], held: HeldOut) -> list[Row]:
    """For each number of layers the path that is best for all labelled windows, measured apart."""
    mean = every_path(decoder, *learned, held.paths, quality=saved).quality.mean(axis=1)
    rows: list[Row] = []
    for length in range(LAYERS, 0, -1):
        places = [place for place, path in enumerate(held.paths) if sum(path) == length]
        path = held.paths[max(places, key=lambda place: float(mean[place]))]
        bits = held.bits(torch.tensor(path).expand(len(held.x), -1))
        skips = ", ".join(str(at + 1) for at, count in enumerate(path) if not count) or "none"
        rows.append({"layers": float(length), "bits": bits, "skips": skips})
    return rows


def measured_rows(
    name: str, network: SkipNetwork, held: HeldOut, fixed: list[Row], prices: Sequence[float]
) -> list[Row]:
    """Routers at several prices beside what spends as many layers, or as much, without them."""
    costs, rows = network.layer_costs(held.x[:1]), []
    oracle = oracle_frontier(network, held.x, held.tried)
    cheapest = min(point.cost for point in oracle.points)
    for price in prices:
        runs = network.all_runs(held.x, price)
        spent, bits = float(np.mean(costs.of(runs).amount)), held.bits(runs)
        layers = float(runs.sum(1).double().mean())
        # fixed paths pay nobody for deciding: at the same MFLOPs they may run a little more
        afford = layers + float(costs.deciding) / float(np.mean(costs.blocks.amount))
        best = np.interp(
            afford, *zip(*((r["layers"], r["bits"]) for r in fixed[::-1]), strict=True)
        )
        top = BLIND * (1 - oracle.quality_at(max(spent, cheapest)))
        rows.append(
            {
                "name": f"{name}, price {price:g}",
                "layers": layers,
                "MFLOPs": spent / (2 * HALF),
                "bits": bits,
                "shuffled": held.blind(runs, shuffled),
                "exchanged": held.blind(runs, exchanged_runs),
                "best fixed": float(best),
                "oracle": top,
                "gap to oracle": bits - top,
            }
        )
    return rows


def router_table(
    decoder: Decoder, labelled: int, measured: int, texts: int, new: int, seed: int = 0
) -> Row:
    """Bits of routers and of what they are held against; the fixed paths; speed of writing."""
    learned, held = cut("train", labelled), HeldOut(decoder, cut("test", measured))
    search = TreeSearch(simulations=SIMULATIONS, actions=2, editable=EDITABLE, max_gap=None)
    tried = search.search(decoder, *learned, quality=saved)
    fixed = fixed_paths(decoder, (learned[0][::2], learned[1][::2]), held)
    kinds = {"all bytes": WindowRouters, "first half": HalfRouters}
    rows: list[Row] = []
    found: Row = {"simulations": SIMULATIONS, "paths": len(held.paths)}
    for kind, make in kinds.items():
        for tolerance in TOLERANCES:
            torch.manual_seed(seed)
            network = SkipNetwork(decoder, make(LAYERS, WIDTH, actions=2, editable=EDITABLE))
            labels, good = tried.best(tolerance=tolerance / BLIND)
            layers = float(labels[good].sum(1).double().mean())
            found[f"layers of labels within {tolerance:g}"] = layers
            fit_routers(network, learned[0][good], labels[good], updates=300, seed=seed)
            name = f"{kind}, within {tolerance:g}"
            rows += measured_rows(name, network, held, fixed, PRICES)
            if kind == "first half" and tolerance == TOLERANCES[1]:
                found["writing"] = writing_table(decoder, network, texts, new)
    whole = float(network.layer_costs(held.x[:1]).whole) / (2 * HALF)
    first = {"name": "full depth", "layers": float(LAYERS), "MFLOPs": whole}
    rows.insert(0, first | {"bits": BLIND * (1 - float(held.tried.whole.mean()))})
    lines = [{"name": f"best fixed path of {row['layers']:g} layers"} | row for row in fixed]
    return found | {"routers": rows, "fixed": lines}


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
        results = each.pop("found")
        runs = [float(one.runs.sum(1).double().mean()) for one in results if hasattr(one, "runs")]
        each["ids"] = [one.ids if hasattr(one, "ids") else one.output for one in results]
        row: Row = {"name": name, "tokens per s": each["tokens per s"]}
        row["times as fast"] = times_as_fast(base, each)
        row["layers"] = sum(runs) / len(runs) if runs else float(LAYERS)
        row["texts as full depth"] = same_texts(base["ids"], each["ids"])
        rows.append(row | {"texts": count})
    return rows
