"""Make what is generated in docs/moe.md: the picture of telemetry and the list of parts.

python docs/make_moe.py             both; the picture trains a small network for about a minute
python docs/make_moe.py --parts     the list alone
"""

import argparse
import importlib
import inspect
import re
from functools import partial
from pathlib import Path

import torch
from torch import nn

from pointsman.claims import language
from pointsman.moe import FeedForwardExperts, MoE, watch
from pointsman.moe.balance import switch
from pointsman.select import top_k

HERE = Path(__file__).parent
PAGE, PICTURE = HERE / "moe.md", HERE / "images" / "moe-telemetry.png"
PACKAGES = {
    "Routers": "pointsman.moe.routers",
    "Selections": "pointsman.select",
    "Balancing": "pointsman.moe.balance",
    "Banks of experts": "pointsman.moe.experts",
    "Estimators": "pointsman.learn",
    "Conversion": "pointsman.moe.convert",
    "Parallelism": "pointsman.moe.parallel",
}
PARTS = re.compile(r"(<!-- parts[^>]*-->\n).*?(<!-- /parts -->)", re.DOTALL)
EXPERTS, LAYERS, UPDATES = 8, 6, 150


def parts() -> str:
    """One table a kind of part: every exported name with the first line of its documentation."""
    tables = []
    for title, name in PACKAGES.items():
        package = importlib.import_module(name)
        rows = [f"| `{part}` | {_first_line(getattr(package, part))} |" for part in package.__all__]
        head = [f"**{title}** (`{name}`)", "", "| part | what it is |", "|---|---|"]
        tables.append("\n".join([*head, *rows]))
    return "\n\n".join(tables) + "\n"


def _first_line(part: object) -> str:
    text = inspect.getdoc(part) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


def write_parts() -> None:
    """Put the tables between their marks in the page."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(PARTS.sub(lambda m: m[1] + parts() + m[2], page), encoding="utf-8")


def make(layer: int, width: int) -> nn.Module:
    """A routed layer; the upper half of the network has no balancing loss."""
    router = nn.Linear(width, EXPERTS, bias=False)
    experts = FeedForwardExperts(EXPERTS, width, 2 * width)
    balance = [(0.01, switch)] if layer < LAYERS // 2 else []
    return MoE(router, partial(top_k, k=2), experts, balance=balance)


def draw_picture() -> None:
    """Train a little, watch one more step, and draw what the layers did."""
    torch.set_num_threads(1)
    corpus = language.corpus()
    model = language.LanguageModel(make, layers=LAYERS)
    language.train(model, corpus, seed=0, updates=UPDATES)
    windows = corpus.validation[: 64 * 64].reshape(64, 64)
    with watch(model) as telemetry:
        logits, _ = model(windows[:, :-1])
        targets = windows[:, 1:].long()
        nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    telemetry.draw(PICTURE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", action="store_true", help="the list alone")
    if not parser.parse_args().parts:
        draw_picture()
    write_parts()
