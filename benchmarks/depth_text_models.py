"""The models of `depth_text.py`, the streams that they read, and how writing is timed.

Four streams share no byte, and held-out files are none that a model was trained on:

    train     files that models were trained on, and that routers learn from
    tune      the first 40% of the held-out bytes: thresholds and drafts are chosen there
    test      the rest of the held-out bytes: everything is measured there

Legend: L layers, V = 128 byte values.
"""

import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pointsman.claims.language import BYTES, corpus
from pointsman.depth.decoder import Decoder
from pointsman.depth.decoding.exits import LanguageExits
from pointsman.depth.decoding.training import fit_language, fit_text

WIDTH, LAYERS, HEADS, CONTEXT = 128, 8, 4, 256
SIZE = 8_000_000  # bytes of the training text
TUNE = 0.4  # of the held-out bytes
RATE, DROPOUT = 3e-3, 0.1  # dropout of the last layer, in the network with exits alone
PROMPT = 64  # bytes
KINDS = ("exits", "plain", "recursion")

Row = dict[str, Any]


def plain_decoder(seed: int = 0, layers: int = LAYERS) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(vocabulary=BYTES, width=WIDTH, layers=layers, heads=HEADS, context=CONTEXT)


def recursive(seed: int = 0) -> Any:
    """4 blocks; the middle two run up to 3 times: 8 layers deep at most, as the others."""
    from pointsman.depth.recursion.mixture import MixtureOfRecursions
    from pointsman.depth.recursion.routers import ExpertChoice

    router = ExpertChoice(WIDTH, capacities=(1.0, 2 / 3, 1 / 3))
    return MixtureOfRecursions(plain_decoder(seed, layers=4), range(1, 3), router)


def train(kind: str, folder: Path, updates: int) -> None:
    """Train one model and keep it, with the seconds it took."""
    text, start = corpus(SIZE).train, time.time()

    def say(update: int, loss: float) -> None:
        if update % 20 == 0:
            print(f"{update:5d}  {loss:.3f} nats  {time.time() - start:.0f} s", flush=True)

    about: dict[str, Any] = {"updates": updates, "rate": RATE, "seed": 0, "on_update": say}
    if kind == "recursion":
        model = recursive()
        fit_text(model, partial(recursion_loss, model), text, window=CONTEXT, **about)
        weights = model.state_dict()
    else:
        decoder = plain_decoder()
        early = range(LAYERS - 1) if kind == "exits" else ()
        dropout = DROPOUT if kind == "exits" else 0.0
        fit_language(LanguageExits(decoder, at=early), text, dropout=dropout, **about)
        weights = decoder.state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": weights, "seconds": time.time() - start}, folder / f"{kind}.pt")


def recursion_loss(model: Any, ids: Tensor) -> Tensor:
    found = model(ids[:, :-1])
    return functional.cross_entropy(found.logits.flatten(0, 1), ids[:, 1:].flatten()) + found.loss


def loaded(kind: str, folder: Path) -> Any:
    """A trained model, or None where it was not trained."""
    path = folder / f"{kind}.pt"
    if not path.exists():
        return None
    model = recursive() if kind == "recursion" else plain_decoder()
    model.load_state_dict(torch.load(path, weights_only=True)["model"])
    return model.eval()


def windows(stream: str, count: int, size: int = CONTEXT, offset: float = 0.0) -> Tensor:
    """Windows (count, size) of a stream, evenly spread."""
    held_out = corpus(SIZE).validation
    cut = int(TUNE * len(held_out))
    text = {"train": corpus(SIZE).train, "tune": held_out[:cut], "test": held_out[cut:]}[stream]
    starts = ((torch.arange(count) + offset) * (len(text) - size) / (count + 1)).long()
    return torch.stack([text[start : start + size].long() for start in starts.tolist()])


def prompts_of(stream: str, count: int, batch: int = 1) -> list[Tensor]:
    """`count` prompts (batch, 64), away from where the windows for bits begin."""
    texts = windows(stream, batch * count, PROMPT, offset=0.5)
    return list(texts.reshape(count, batch, PROMPT))


def timed(
    contenders: dict[str, Callable[[Tensor], Any]], prompts: list[Tensor], new: int
) -> dict[str, Row]:
    """Tokens per second of process time, the contenders in turns; and what they wrote."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    found: dict[str, list[Any]] = {name: [] for name in contenders}
    for run in contenders.values():  # warm up
        run(prompts[0][:, :8])
    for prompt in prompts:
        for name, run in contenders.items():
            start = time.process_time()
            written = run(prompt)
            seconds[name].append(time.process_time() - start)
            found[name].append(written)
    return {
        name: {
            "tokens per s": median(len(p) * new / s for p, s in zip(prompts, each, strict=True)),
            "seconds": each,
            "found": found[name],
        }
        for name, each in seconds.items()
    }


def times_as_fast(base: Row, other: Row) -> float:
    """Median over prompts, each contender against the base on the same prompt."""
    pairs = zip(base["seconds"], other["seconds"], strict=True)
    return float(median(a / b for a, b in pairs))


def same_texts(base: list[Tensor], other: list[Tensor]) -> int:
    """How many texts of two lists of batches are equal, byte by byte."""
    pairs = zip(base, other, strict=True)
    return sum(
        bool((a == b).all()) for mine, theirs in pairs for a, b in zip(mine, theirs, strict=True)
    )


def load() -> str:
    """The load of the machine, in words."""
    return f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def show(title: str, how: str, rows: list[Row]) -> None:
    """One table, with how it was measured below its title."""
    print(f"\n{title}\n  {how}\n  {load()} at the end of this table")
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "name"))
    wide = max(len(row["name"]) for row in rows)
    print(" " * wide, *(f"{column:>{max(9, len(column))}}" for column in columns))
    for row in rows:
        cells = []
        for column in columns:
            value = row.get(column, "")
            text = f"{value:.3f}" if isinstance(value, float) and math.isfinite(value) else value
            cells.append(f"{text!s:>{max(9, len(column))}}")
        print(f"{row['name']:<{wide}}", *cells)
    sys.stdout.flush()
