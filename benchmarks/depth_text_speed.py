"""Bits per byte and tokens per second of exits and of drafts, their settings chosen beforehand.

What is chosen (a threshold for each exit, how drafts are made) is chosen on the tuning stream and
measured on the test stream, which share no byte.

Legend: L layers, E exits, V = 128 byte values, N bytes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from depth_text_models import (
    LAYERS,
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
from pointsman.cost import Cost
from pointsman.depth.decoder import Decoder
from pointsman.depth.decoding.early import KEEPS, decode
from pointsman.depth.decoding.exits import LanguageExits
from pointsman.depth.decoding.forced import TokenCosts, forced, layer_runs
from pointsman.depth.decoding.speculative import speculate
from pointsman.depth.thresholds import Setting, exit_settings
from pointsman.run import StageCosts
from pointsman.select import max_probability

EARLY = (1, 3, 5, 6)  # layers after which a token may leave, where it chooses (counted from 0)
ONE_THRESHOLD = (0.98, 0.9, 0.7)  # the same at every exit, not searched
LOSSES = (0.01, 0.03, 0.1)  # bits per byte that searched thresholds may lose on the tuning stream
TRIED = 12  # settings that are run as they decode, of all that the search gives
Key = TypeVar("Key")


@dataclass(frozen=True)
class Drafts:
    """Drafts come after so many layers, so many of them, while they are as sure as this."""

    after: int
    most: int
    sure: float = 0.0

    def __str__(self) -> str:
        while_sure = f" while {self.sure:g} sure" if self.sure else ""
        return f"{self.most} drafts after {self.after}{while_sure}"

    @property
    def options(self) -> dict[str, Any]:
        """Of `speculate`, where there is an exit after every layer."""
        return {"drafts": self.most, "exit_": self.after - 1, "sure": self.sure}


SPECULATE = (
    Drafts(2, 3),
    Drafts(3, 3),
    Drafts(3, 5, 0.5),
    Drafts(4, 4),
    Drafts(4, 6),
    Drafts(4, 8, 0.5),
)


def fastest(contenders: Mapping[Key, Callable[[Tensor], Any]], count: int, new: int) -> Key:
    """The contender with the least process time on prompts of the tuning stream."""
    named = {str(key): run for key, run in contenders.items()}
    found = timed(named, prompts_of("tune", count), new)
    return min(contenders, key=lambda key: sum(found[str(key)]["seconds"]))


def tuned_drafts(exits: Decoder, count: int, new: int) -> Drafts:
    """How the network's own exits draft fastest."""
    every = LanguageExits(exits, at=range(LAYERS - 1))
    ways = {each: partial(speculate, every, new=new, **each.options) for each in SPECULATE}
    return fastest(ways, count, new)


def bits_row(name: str, model: LanguageExits, ids: Tensor, limits: Any, keep: Any = "exact") -> Row:
    """Bits per byte, layers and MFLOPs per token of texts that are given."""
    costs = TokenCosts.count(model, ids[:1])
    found = [forced(model, part, limits, keep=keep) for part in ids.split(16)]
    left = torch.cat([each.exits for each in found])
    bits = torch.cat([each.bits(part) for each, part in zip(found, ids.split(16), strict=True)])
    asked = [limits] * (len(model) - 1) if isinstance(limits, float) else list(limits)
    spent = costs.spent(left, [*asked[: len(model) - 1], -math.inf], model.bounds, keep)
    return {
        "name": name,
        "bits": float(bits.mean()),
        "layers": float(layer_runs(left, model.bounds, keep).sum() / left.numel()),
        "left after": float(torch.tensor(model.bounds[1:])[left].double().mean()),
        "MFLOPs": float(np.mean(spent.amount)),
    }


def token_costs(model: LanguageExits, ids: Tensor) -> StageCosts:
    """What a token spends to reach each exit, above keys and values, which every layer needs."""
    costs = TokenCosts.count(model, ids[:1])
    own = np.array(costs.layer) - np.array(costs.store)
    bounds = model.bounds
    advance = [own[a:b].sum() for a, b in pairwise(bounds)]
    advance[0] += sum(costs.store)
    return StageCosts(Cost(np.array(advance), "MFLOPs"), Cost(np.array(costs.answer), "MFLOPs"))


@torch.no_grad()
def searched(exits: Decoder, count: int) -> dict[float, Setting]:
    """Loss of bits -> the early exits' thresholds that spend least and lose no more.

    All on the tuning stream.
    The search reads states that are exact; what it gives is then run as it decodes, with keys and
    values from the states with which tokens left.
    """
    model, ids = LanguageExits(exits, at=EARLY), windows("tune", count)
    logits = torch.stack([each[:, :-1].flatten(0, 1) for each in model(ids)])
    target = ids[:, 1:].flatten()
    nats = torch.stack(
        [functional.cross_entropy(each, target, reduction="none") for each in logits]
    )
    quality = 1 - nats / math.log(BYTES)
    costs = token_costs(model, ids)
    settings = exit_settings(logits, quality, costs, max_probability)
    sure, paid = logits.softmax(-1).amax(-1).numpy(), np.cumsum(np.asarray(costs.advance.amount))
    guessed = [
        _guess(setting, sure, nats.numpy() / math.log(2), paid, costs) for setting in settings
    ]
    full = guessed[0][0]
    best: dict[float, Setting] = {}
    front = _front(settings, guessed, full + 1.5 * max(LOSSES))
    rows = [(bits_row("", model, ids, setting[:-1], "propagate"), setting) for setting in front]
    full = rows[0][0]["bits"]
    for loss in LOSSES:
        fine = [(row["MFLOPs"], setting) for row, setting in rows if row["bits"] <= full + loss]
        best[loss] = min(fine)[1]
    return {loss: limits[:-1] for loss, limits in best.items()}


def _guess(
    setting: Setting, sure_EN: Any, bits_EN: Any, paid: Any, costs: StageCosts
) -> tuple[float, float]:
    """Bits and MFLOPs per token if every token left as the exact states say."""
    leaves = sure_EN >= np.array(setting)[:, None]
    leaves[-1] = True
    exit_ = leaves.argmax(axis=0)
    asked = np.isfinite(np.array(setting)) | np.isneginf(np.array(setting))
    answers = np.cumsum(np.asarray(costs.answer.amount) * asked)
    return float(bits_EN[exit_, np.arange(len(exit_))].mean()), float(
        (paid + answers)[exit_].mean()
    )


def _front(
    settings: list[Setting], guessed: list[tuple[float, float]], most: float
) -> list[Setting]:
    """Full depth, and settings that no other one beats in bits and MFLOPs, evenly thinned out."""
    chosen, least = [], math.inf
    for place in sorted(range(len(settings)), key=lambda place: guessed[place]):
        bits, spent = guessed[place]
        if bits <= most and spent < least:
            chosen.append(settings[place])
            least = spent
    if len(chosen) > TRIED:
        chosen = [chosen[at] for at in np.linspace(0, len(chosen) - 1, TRIED).round().astype(int)]
    return [settings[0], *chosen]


def bits_table(
    exits: Decoder, plain: Decoder | None, count: int, chosen: dict[float, Setting]
) -> list[Row]:
    """Bits per byte, layers and MFLOPs per token of every way to run the network."""
    ids, rows = windows("test", count), []
    some = LanguageExits(exits, at=EARLY)
    if plain is not None:
        rows.append(bits_row("plain network, no exits", LanguageExits(plain, at=[]), ids, math.inf))
    rows.append(bits_row("full depth", LanguageExits(exits, at=[]), ids, math.inf))
    for at in reversed(range(LAYERS - 1)):
        model = LanguageExits(exits, at=[at])
        rows.append(bits_row(f"exit after {at + 1}", model, ids, -math.inf, "propagate"))
        rows[-1] |= _cut_off(exits, at + 1, ids)
    for threshold in ONE_THRESHOLD:
        name = f"by token at {threshold}, propagate"
        rows.append(bits_row(name, some, ids, threshold, "propagate"))
    for loss, limits in chosen.items():
        name = f"searched for {loss:g} bits"
        rows += [bits_row(f"{name}, {keep}", some, ids, limits, keep) for keep in KEEPS]
    return rows


def _cut_off(exits: Decoder, layers: int, ids: Tensor) -> Row:
    """What a fixed exit spends: no deeper layer keeps anything."""
    costs = TokenCosts.count(LanguageExits(exits, at=[]), ids[:1])
    spent = sum(costs.layer[:layers]) + costs.answer[0]
    return {"layers": float(layers), "MFLOPs": spent}


def contenders_of(
    exits: Decoder, plain: Decoder | None, new: int, chosen: dict[float, Setting], drafts: Drafts
) -> dict[str, Callable[[Tensor], Any]]:
    """Every way of decoding."""
    full, some = LanguageExits(exits, at=[]), LanguageExits(exits, at=EARLY)
    found: dict[str, Callable[[Tensor], Any]] = {"full depth": partial(decode, full, new=new)}
    if plain is not None:
        found["plain network"] = partial(decode, LanguageExits(plain, at=[]), new=new)
    for at in (1, 3, 5):
        only = LanguageExits(exits, at=[at])
        found[f"exit after {at + 1}"] = partial(decode, only, new=new, thresholds=-math.inf)
    found["by token at 0.9, propagate"] = partial(
        decode, some, new=new, thresholds=0.9, keep="propagate"
    )
    for loss, limits in chosen.items():
        for keep in KEEPS:
            found[f"searched for {loss:g} bits, {keep}"] = partial(
                decode, some, new=new, thresholds=limits, keep=keep
            )
    every = LanguageExits(exits, at=range(LAYERS - 1))
    found[f"speculation: {drafts}"] = partial(speculate, every, new=new, **drafts.options)
    return found


def speed_table(
    contenders: dict[str, Callable[[Tensor], Any]], batch: int, count: int, new: int
) -> list[Row]:
    """One row per contender."""
    measured, rows = timed(contenders, prompts_of("test", count, batch), new), []
    base = measured["full depth"]
    full = [found.ids for found in base["found"]]
    for name, each in measured.items():
        results = each["found"]
        row: Row = {"name": name, "tokens per s": each["tokens per s"]}
        row["times as fast"] = times_as_fast(base, each)
        ran = sum(float(found.ran.sum()) for found in results)
        row["layers per token"] = ran / sum(int(found.lengths.sum()) - batch for found in results)
        exits = torch.cat([found.exits.flatten() for found in results])
        shares = torch.bincount(exits[exits >= 0], minlength=results[0].num_exits) / len(exits)
        drafted = sum(found.drafted for found in results)
        if drafted:
            row["accepted"] = sum(found.accepted for found in results) / drafted
            row["tokens per round"] = count * new / sum(found.rounds for found in results)
        elif len(shares) > 2:
            row["left at exits"] = "/".join(f"{100 * share:.0f}" for share in shares.tolist()) + "%"
        row["texts as full depth"] = same_texts(full, [found.ids for found in results])
        rows.append(row | {"texts": batch * count})
    return rows
