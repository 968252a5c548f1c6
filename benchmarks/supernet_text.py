"""A language model fine-tuned as a supernet: bits per byte against tokens per second.

    python benchmarks/supernet_text.py --folder F [--updates 700] [--tuning 120] [--json found.json]

A Llama of `transformers` with 1.9 million weights is pretrained on the standard library's sources
(some 16 minutes of one core for 700 updates), then fine-tuned on the same text in two ways with
equally many updates on the same batches: as a supernet (layers, heads and feed-forward widths; the
whole network and one random subnet an update, distillation from the whole) and plainly. Models are
kept in a folder. Then one table holds

    supernet     the front that a search finds on tuning bytes (bits against counted MFLOPs)
    cut          the same subnets of the plainly tuned network, units sorted by importance
    dropping     the plainly tuned network without the sub-layers of the least score, and without
                 the layers of the least score, both scored on tuning bytes

with bits per byte on other held-out files, MFLOPs counted with attention's own products, and tokens
per second measured in turns, in process time of one thread: reading (8 windows of 256 bytes at
once) and writing (one text, with a cache).
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from supernet_text_models import CONTEXT, bits, kept, pretrained, stream, windows
from torch import Tensor, nn

from pointsman.cost import count_flops
from pointsman.supernet.costs import count_mflops
from pointsman.supernet.elastic import Heads, Skip, Width
from pointsman.supernet.language import (
    SublayerDropping,
    call,
    logits_of,
    next_token_losses,
    tidy,
)
from pointsman.supernet.making import magnitude, make_elastic
from pointsman.supernet.search.engines.front_search import front_search
from pointsman.supernet.search.problem import Problem, front
from pointsman.supernet.search.run import search
from pointsman.supernet.supernet import Supernet
from pointsman.supernet.training import RandomBatches
from pointsman.supernet.training.elastic_finetuning import finetune_elastic

BATCH, RATE = 16, 1e-3
ELASTIC = [
    Skip("model.layers", only=(1, 2, 3, 4)),
    Heads("model.layers.*.self_attn", counts=(2, 3, 5)),
    Width("model.layers.*.mlp", shares=(0.25, 0.5, 0.75, 1.0)),
]
READ, PROMPT, NEW = 8, 64, 64  # windows read at once; bytes of a prompt, and written

Row = dict[str, Any]


def elastic(model: nn.Module) -> Supernet:
    example = torch.arange(16)[None]
    return make_elastic(model, {"input_ids": example}, ELASTIC, importance=magnitude).eval()


def tuned(name: str, folder: Path, updates: int, pretraining: int, subnets: int) -> Supernet:
    """The pretrained model fine-tuned: as a supernet, or plainly where no subnet is trained."""

    def make() -> Row:
        net = elastic(pretrained(folder, pretraining))
        every = stream("train").long().unfold(0, CONTEXT + 1, 1)
        batches = RandomBatches(every[:, :-1], every[:, 1:], size=BATCH, seed=1)
        start = time.process_time()
        finetune_elastic(
            net,
            batches,
            updates=updates,
            subnets=subnets,
            task=next_token_losses,
            logits=logits_of,
            rate=RATE,
            decay=0.0,
        )
        seconds = time.process_time() - start
        print(f"{name}: {updates} updates in {seconds:.0f} s", flush=True)
        return {"model": net.state_dict(), "updates": updates, "seconds": seconds}

    net = elastic(pretrained(folder, pretraining))
    net.load_state_dict(kept(name, folder, make)["model"])
    return net.eval()


def searched(net: Supernet, evaluations: int, count: int) -> list[tuple[int, ...]]:
    """Genotypes of the front on tuning bytes, the largest first, about evenly spread."""
    ids = windows("tune", 12)
    cost = count_mflops(net, {"input_ids": torch.zeros(1, CONTEXT, dtype=torch.long)})

    def quality(genotype: tuple[int, ...]) -> float:
        net.use(genotype)
        return -bits(net, ids)

    problem = Problem(net.space, quality, cost, "MFLOPs")
    found = front(search(problem, front_search, evaluations))
    largest = net.space.canonical([len(choice.options) - 1 for choice in net.space.choices])
    picks = [found[round(at * (len(found) - 1) / (count - 1))].genotype for at in range(count)]
    return list(dict.fromkeys([largest, *reversed(picks)]))


def contenders(net: Supernet, plain: Supernet, evaluations: int) -> dict[str, nn.Module]:
    """Every model of the table, by name."""
    found: dict[str, nn.Module] = {}
    for genotype in searched(net, evaluations, 7):
        about = _about(net, genotype)
        found[f"supernet, {about}"] = tidy(net.extract(genotype).eval())
        found[f"cut, {about}"] = tidy(plain.extract(genotype).eval())
    whole = tidy(plain.extract(plain.in_force).eval())
    calibration = list(windows("tune", 24)[:, :-1].split(8))
    either = SublayerDropping("either").fit(whole, calibration)
    layers = SublayerDropping("layer").fit(whole, calibration)
    print("scores:", {name: round(score, 4) for name, score in either.scores_.items()})
    for count in (1, 2, 3, 4, 6):
        found[f"dropping, {count} sub-layers"] = either.drop(count).eval()
    for count in (1, 2, 3):
        found[f"dropping, {count} layers"] = layers.drop(count).eval()
    return found


def _about(net: Supernet, genotype: tuple[int, ...]) -> str:
    values = net.space.decode(genotype)

    def total(ending: str) -> int:
        return int(sum(value for name, value in values.items() if name.endswith(ending)))

    return f"{total('.kept') + 2} layers, {total('heads')} heads, {total('width')} units"


def table(models: dict[str, nn.Module], count: int, rounds: int) -> list[Row]:
    """Bits, MFLOPs a byte, weights, and speed of each model, in turns."""
    test, texts = windows("test", count), windows("test", READ, offset=0.5)
    seconds: dict[tuple[str, str], list[float]] = {}
    ways: dict[str, Callable[[nn.Module], Any]] = {
        "read": lambda model: call(model, texts[:, :-1]),
        "write": partial(write, prompt=texts[:1, :PROMPT]),
    }
    for turn in range(rounds + 1):
        for name, model in models.items():
            for way, run in ways.items():
                start = time.process_time()
                with torch.no_grad():
                    run(model)
                if turn:  # the first warms up
                    seconds.setdefault((name, way), []).append(time.process_time() - start)
    rows = []
    for name, model in models.items():
        flops = count_flops(lambda x, model=model: call(model, x), texts[:1, :-1])
        rows.append(
            {
                "name": name,
                "bits": bits(model, test),
                "MFLOPs a byte": float(flops) / CONTEXT,
                "weights": sum(weight.numel() for weight in model.parameters()),
                "read, bytes/s": READ * CONTEXT / median(seconds[name, "read"]),
                "write, bytes/s": NEW / median(seconds[name, "write"]),
            }
        )
    return rows


def write(model: Any, prompt: Tensor) -> Tensor:
    """A text (1, PROMPT + NEW), greedily, with a cache."""
    text, found = prompt, model(prompt, use_cache=True)
    for _ in range(NEW):
        last = found.logits[:, -1:].argmax(dim=-1)
        text = torch.cat([text, last], dim=1)
        found = model(last, past_key_values=found.past_key_values, use_cache=True)
    return text


def show(rows: list[Row]) -> None:
    wide = max(len(row["name"]) for row in rows)
    columns = [column for column in rows[0] if column != "name"]
    print(" " * wide, *(f"{column:>14}" for column in columns))
    for row in rows:
        print(f"{row['name']:<{wide}}", *(f"{row[column]:>14,.3f}" for column in columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where models are kept")
    parser.add_argument("--updates", type=int, default=700, help="of pretraining")
    parser.add_argument("--tuning", type=int, default=120, help="updates of fine-tuning")
    parser.add_argument("--evaluations", type=int, default=100, help="of the search")
    parser.add_argument("--windows", type=int, default=48, help="of 256 bytes, for bits")
    parser.add_argument("--rounds", type=int, default=5, help="of the measured speeds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    about = options.folder, options.tuning, options.updates
    net, plain = tuned("supernet", *about, subnets=1), tuned("plain", *about, subnets=0)
    rows = table(contenders(net, plain, options.evaluations), options.windows, options.rounds)
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
