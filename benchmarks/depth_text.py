"""A byte-level language model that stops early: bits per byte and tokens per second of every way.

    python benchmarks/depth_text.py --folder F --train exits|plain|recursion [--updates 1000]
    python benchmarks/depth_text.py --folder F [--short] [--parts ...] [--json depth_text.json]

Trains small models on the standard library's sources (about 1.6 million weights, 8 layers; some 20
minutes of one core each for 1,000 updates) and keeps them in a folder; then, without --train,
measures them side by side:

    bits       bits per byte on held-out files, and layers per token: full depth, the same network
               trained without exits, each exit by itself, exits chosen token by token
    speed      tokens per second of decoding, one text at a time, all contenders in turns over the
               same prompts: full depth, fixed exits, exits by token with either way of keeping the
               cache, self-speculative decoding
    batch      the same with 16 texts at a time, each leaving where it likes
    recursion  recursion with a depth per token
    routers    routers that skip layers, supervised by tree search, beside what an oracle skips
    peer       `transformers`' assisted generation with `assistant_early_exit` on the same weights

Thresholds and drafts are chosen on other held-out files than those measured. Seconds are process
time of one thread, so that what else runs on the machine matters less; it does matter still (caches
and memory are shared), so the load is printed.
"""

import argparse
import json
import math
import os
import platform
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from depth_text_models import (
    DROPOUT,
    KINDS,
    LAYERS,
    Row,
    load,
    loaded,
    prompts_of,
    show,
    timed,
    train,
    windows,
)
from depth_text_routers import SIMULATIONS, router_table
from depth_text_speed import (
    EARLY,
    Drafts,
    bits_table,
    contenders_of,
    searched,
    speed_table,
    tuned_drafts,
)
from torch import Tensor
from torch.nn import functional

PARTS = ("bits", "speed", "batch", "recursion", "routers", "peer")
BATCH = 16
# windows for bits and of the tuning stream, texts to write and to tune on, batches of 16, bytes a
# text, windows that routers learn from and are measured on
FULL = {"windows": 64, "tune": 32, "texts": 6, "tuning": 4, "batches": 3, "new": 96}
FULL |= {"labelled": 160, "measured": 96}
SHORT = {"windows": 24, "tune": 16, "texts": 3, "tuning": 2, "batches": 1, "new": 64}
SHORT |= {"labelled": 128, "measured": 96}


def recursion_table(model: Any, count: int, texts: int, new: int) -> list[Row]:
    """Bits, depth and speed of recursion, at its own depths, all at the deepest, all at the least.

    The gates' threshold sets the depth: 0 lets every token through every recursion.
    """
    from pointsman.depth.recursion.mixture import generate

    ids = windows("test", count)
    prompts = prompts_of("test", texts)
    contenders, rows = {}, []
    for threshold in (0.0, 0.3, 0.5, 0.7, 1.0):

        def run(prompt: Tensor, threshold: float = threshold) -> Any:
            model.router.threshold = threshold
            return generate(model, prompt, new)

        contenders[f"recursion, gates above {threshold:g}"] = run
    measured = timed(contenders, prompts, new)
    for (name, each), threshold in zip(measured.items(), (0.0, 0.3, 0.5, 0.7, 1.0), strict=True):
        model.router.threshold = threshold
        with torch.no_grad():
            found = [model(part) for part in ids.split(16)]
        logits = torch.cat([part.logits for part in found])[:, :-1]
        nats = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        depth = torch.cat([part.depths for part in found]).double().mean()
        fixed = len(model.decoder.blocks) - len(model.shared)
        rows.append(
            {
                "name": name,
                "bits": float(nats) / math.log(2),
                "recursions per token": float(depth),
                "layers": fixed + float(depth) * len(model.shared),
                "tokens per s": each["tokens per s"],
            }
        )
    return rows


def measure(folder: Path, parts: list[str], size: dict[str, int]) -> Row:
    exits, plain = loaded("exits", folder), loaded("plain", folder)
    recursion = loaded("recursion", folder)
    if exits is None:
        raise SystemExit(f"no model in {folder}: train one with --train exits")
    print(f"sizes: {size}; {load()}, one thread each", flush=True)
    found: Row = {"sizes": size, "seconds": {}}

    def done(part: str, start: tuple[float, float]) -> None:
        spent = {"process": time.process_time() - start[0], "wall": time.time() - start[1]}
        found["seconds"][part] = spent | {"load average": os.getloadavg()[0]}
        words = f"{spent['process']:.0f} s of process time, {spent['wall']:.0f} s by the clock"
        print(f"  part {part}: {words}", flush=True)

    if {"bits", "speed", "batch"} & set(parts):
        start = time.process_time(), time.time()
        found["thresholds"] = searched(exits, size["tune"])
        for loss, limits in found["thresholds"].items():
            words = ", ".join(f"{limit:.3f}" for limit in limits)
            after = ", ".join(str(at + 1) for at in EARLY)
            print(f"thresholds after {after} for {loss:g} bits lost on tuning bytes: {words}")
        done("thresholds", start)
    for part, run in {
        "bits": measure_bits,
        "speed": measure_speed,
        "batch": measure_batch,
        "recursion": measure_recursion,
        "routers": measure_routers,
        "peer": measure_peer,
    }.items():
        if part in parts and (part != "recursion" or recursion is not None):
            start = time.process_time(), time.time()
            run({"exits": exits, "plain": plain, "recursion": recursion}, size, found)
            done(part, start)
    return found


def measure_bits(models: Row, size: dict[str, int], found: Row) -> None:
    chosen = found["thresholds"]
    found["bits"] = bits_table(models["exits"], models["plain"], size["windows"], chosen)
    how = (
        f"{size['windows']} windows of 256 bytes of held-out files, none of the tuning bytes; "
        "'searched': a threshold per exit, chosen on tuning bytes; MFLOPs counted per token with "
        "every head that was asked; layers = layer runs per token, left after = exit that answered"
    )
    show("Bits per byte on held-out files", how, found["bits"])


def measure_speed(models: Row, size: dict[str, int], found: Row) -> None:
    exits, new = models["exits"], size["new"]
    drafts = tuned_drafts(exits, size["tuning"], new)
    found["drafts"] = asdict(drafts)
    ways = contenders_of(exits, models["plain"], new, found["thresholds"], drafts)
    found["speed"] = speed_table(ways, 1, size["texts"], new)
    how = (
        f"{size['texts']} prompts of 64 bytes, {new} bytes more each, contenders in turns, medians "
        f"over prompts, process time; drafts chosen on {size['tuning']} tuning prompts; exits are "
        f"after layers {', '.join(str(at + 1) for at in EARLY)} and {LAYERS}; "
        "layers per token count prompts too"
    )
    show("Tokens per second, one text at a time", how, found["speed"])


def measure_batch(models: Row, size: dict[str, int], found: Row) -> None:
    exits, new = models["exits"], size["new"]
    if "drafts" not in found:
        found["drafts"] = asdict(tuned_drafts(exits, size["tuning"], new))
    drafts = Drafts(**found["drafts"])
    ways = contenders_of(exits, models["plain"], new, found["thresholds"], drafts)
    found["batch"] = speed_table(ways, BATCH, size["batches"], new)
    how = (
        f"{size['batches']} batches of {BATCH} prompts of 64 bytes, {new} bytes more each, texts "
        "of a batch leave at exits of their own (shares under 'left at exits'), process time; "
        "drafts chosen on single tuning prompts"
    )
    show(f"Tokens per second, {BATCH} texts at a time", how, found["batch"])


def measure_recursion(models: Row, size: dict[str, int], found: Row) -> None:
    sizes = size["windows"], size["texts"], size["new"]
    found["recursion"] = recursion_table(models["recursion"], *sizes)
    how = f"{sizes[0]} windows of 256 bytes for bits; {sizes[1]} prompts for speed, process time"
    show("Recursion with a depth per token", how, found["recursion"])


def measure_routers(models: Row, size: dict[str, int], found: Row) -> None:
    sizes = size["labelled"], size["measured"], size["texts"], size["new"]
    found["routers"] = table = router_table(models["exits"], *sizes)
    how = (
        f"the network trained with layer dropout (to {DROPOUT:g} at the last layer) and exits; "
        f"labels: shortest of {SIMULATIONS} paths that a tree search tries of {table['paths']}, "
        f"within so many bits of full depth, on {sizes[0]} windows of 128 bytes of the training "
        f"stream, searched once;\n  measured on {sizes[1]} held-out windows: bits per byte of the "
        "last 64 bytes, MFLOPs per byte read, deciding paid. 'all bytes': a window is read whole, "
        "its answer too, before\n  its path is decided (scoring, not generation); 'first half': "
        "decided from the first 64 bytes. shuffled, exchanged: as many layers at places drawn by "
        "chance, the same paths on\n  other windows (means of 50 draws); best fixed: one path for "
        "all, chosen on half of the labelled windows; oracle: best of all paths of each window at "
        "the same MFLOPs, known in hindsight"
    )
    show("Routers that skip layers: bits per byte", how, table["routers"])
    layers = {key: value for key, value in table.items() if key.startswith("layers of")}
    print("  " + "; ".join(f"{key} bits: {value:.2f}" for key, value in layers.items()))
    show("One path for all windows", "chosen on labelled windows, measured apart", table["fixed"])
    how = f"{sizes[2]} prompts of 64 bytes, {sizes[3]} bytes more each, path decided at the prompt"
    show("Tokens per second on paths", how + ", process time", table["writing"])


def measure_peer(models: Row, size: dict[str, int], found: Row) -> None:
    from depth_text_peer import peer_table

    found["peer"] = peer_table(models["exits"], size["tuning"], size["texts"], size["new"])
    how = (
        f"{size['texts']} prompts, {size['new']} bytes more each, process time; each side drafts "
        f"as was fastest for it on {size['tuning']} tuning prompts"
    )
    show("transformers on the same weights", how, found["peer"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where models are kept")
    parser.add_argument("--train", choices=KINDS)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--short", action="store_true", help="fewer windows and texts")
    for name in FULL:
        parser.add_argument(f"--{name}", type=int, help=f"{FULL[name]}, {SHORT[name]} if short")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.train:
        train(options.train, options.folder, options.updates)
        return
    size = dict(SHORT if options.short else FULL)
    size |= {name: value for name, value in vars(options).items() if name in size and value}
    found = measure(options.folder, options.parts, size)
    if options.json:
        limits = found.get("thresholds", {})  # text, as JSON has no infinity
        found["thresholds"] = {f"{loss:g}": [f"{t:.6g}" for t in limits[loss]] for loss in limits}
        about = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
        }
        options.json.write_text(json.dumps({**about, **found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
