"""How much early exits save on images at no more than a point lost, beside smaller networks.

    python benchmarks/depth.py [--cifar10 FILE] [--data digits cifar10] [--epochs 15 5]
        [--folder DIR] [--max-drop 0.01] [--confidence 0.95] [--rounds 5] [--json FILE]

Everything is trained here, with one recipe for every network (see benchmarks/depth_networks.py):
the full network alone, the same network with an exit at every stage, and plain smaller networks:
its first stages alone, and all of it half as wide. For each stopping rule a threshold per exit is
searched on the validation part, ordered there from safe to cheap, and certified on the calibration
part against the full network trained alone (and, in a second table, against the exit network's own
end). What is printed is measured on the test part, which nothing else has seen:

- MACs and processor time saved, in % of the full network's; their ratio is what of the MACs saved
  is realised as time, at 256 images at a time, gathering those that go on included;
- points of accuracy lost against the reference, with a 95% interval (paired, normal);
- at the same mean cost, the accuracy of mixing the plain networks by chance, and of leaving the
  exit network at one of its exits by chance.

CIFAR-10 is read from FILE, or shared/data/cifar10_20k.npz beside the checkout, and left out where
it is not. With --folder, weights are kept there and read again. Takes about 50 minutes of one core
with CIFAR-10, one minute without. Legend: S exits, N inputs, C classes.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from depth_networks import PLAIN, Part, Task, augmenter, cifar10, digits, logits, trained
from torch import Tensor, nn
from torch.nn import functional

from pointsman.cost import count_flops
from pointsman.depth import EarlyExit
from pointsman.depth.budget import Measured, right_class
from pointsman.depth.fitting import Batches
from pointsman.depth.gating import jei_dnn
from pointsman.depth.networks import CoarseHead
from pointsman.depth.stopping import (
    Calibrated,
    Patience,
    Window,
    margin,
    max_probability,
    negative_entropy,
)
from pointsman.depth.thresholds import exit_settings
from pointsman.errors import InputError
from pointsman.frontier import (
    Frontier,
    Pick,
    Point,
    certify,
    random_mixing,
    safest_first,
    upper_bound,
)
from pointsman.run import Confidence, StageCosts, StoppingRule

DATA = Path(__file__).parents[2] / "shared" / "data" / "cifar10_20k.npz"
EPOCHS = {"CIFAR-10": (15, 5), "digits": (30, 10)}
BATCH = 256
GATE_PRICES = (0.3, 1.0)  # nats that the cost of the whole network is worth
COVERAGES = (0.8, 0.95)
Rule = Confidence | StoppingRule


@dataclass(frozen=True, eq=False)
class Exits:
    """A network with exits, what it answers on each part, and a rule to leave it by."""

    net: EarlyExit
    rule: Rule
    logits: Mapping[str, Tensor]


@dataclass(frozen=True)
class Row:
    """A certified setting of one rule, measured on the test part."""

    rule: str
    pick: Pick
    thresholds: tuple[float, ...]
    accuracy: float
    cost: float
    lost: tuple[float, float]
    left: list[float]
    mixed: float | None
    by_chance: float | None


def on_all_parts(net: nn.Module, task: Task) -> dict[str, Tensor]:
    """Logits (S, N, C) on all parts but the one that trained."""
    return {
        name: logits(net, getattr(task, name)) for name in ("validation", "calibration", "test")
    }


def rules(task: Task, net: EarlyExit, seed: int) -> dict[str, Exits]:
    """Every stopping rule, fitted on the validation part where it is fitted."""
    found = on_all_parts(net, task)
    held_out, labels = found["validation"], task.validation.y
    plain: dict[str, Rule] = {
        "confidence": max_probability,
        "margin": margin,
        "entropy": negative_entropy,
        "confidence, calibrated": Calibrated().fit(held_out, labels),
        "patience": Patience(),
        "patience and confidence": Patience(within=max_probability),
    }
    for coverage in COVERAGES:
        plain[f"window at {coverage:.0%}"] = Window(coverage).fit(held_out)
    every = {name: Exits(net, rule, found) for name, rule in plain.items()}
    for price in GATE_PRICES:
        gated = learned_gate(task, net, price, seed)
        every[f"learned gate, {price:g}"] = gated
    return every


def learned_gate(task: Task, net: EarlyExit, price: float, seed: int) -> Exits:
    """Heads and gates trained for one another on the frozen trunk, whose features are kept."""
    torch.manual_seed(seed)
    linears = [copy.deepcopy(head.linear) for head in (*net.heads, net.backbone[-1])]
    read = [Read(linear, at) for at, linear in enumerate(linears)]
    early = len(net.heads)
    moved = Part(augmenter(task, seed + 1)(task.train.x), task.train.y)
    train, held_out = features(net, moved), features(net, task.validation)
    tail = [nn.Identity() for _ in range(early)] + [read[-1]]
    on_features = EarlyExit(tail, list(range(early)), example=train[:1], heads=read[:-1])
    rule = jei_dnn(
        on_features,
        Batches(train, task.train.y, 128, seed=seed),
        Batches(held_out, task.validation.y, 200, seed=seed),
        price=price,
        costs=net.stage_costs(task.train.x[:1]),
        warm_up=None,
    )
    gated = copy.deepcopy(net)
    for head, linear in zip(gated.heads, linears, strict=False):
        head.linear.load_state_dict(linear.state_dict())
    return Exits(gated.eval(), rule, on_all_parts(gated, task))


class Read(nn.Module):
    """One exit's linear layer on the features of all exits, (n, S, most K)."""

    def __init__(self, linear: nn.Linear, exit_: int) -> None:
        super().__init__()
        self.linear, self.exit = linear, exit_

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.linear(x[:, self.exit, : self.linear.in_features])
        return answer


@torch.no_grad()
def features(net: EarlyExit, part: Part, rows: int = 500) -> Tensor:
    """What the linear layers of all exits read, (N, S, most K), with zeros where K is less."""
    *stages, end = net.backbone
    assert isinstance(end, CoarseHead)
    widest = end.linear.in_features
    found = []
    for state in part.x.split(rows):
        pooled = []
        for stage in stages:
            state = stage(state)
            read = end.pooled(state)
            pooled.append(functional.pad(read, (0, widest - read.shape[1])))
        found.append(torch.stack(pooled, dim=1))
    return torch.cat(found)


def measured(
    exits: Exits, part: Part, name: str, costs: StageCosts, full: tuple[Tensor, float] | None
) -> Measured:
    """The logits of one part, weighed; the reference is the full network or the last exit."""
    answers = exits.logits[name]
    reference = None if full is None else (right_class(full[0], part.y)[0], full[1])
    return Measured(answers, right_class(answers, part.y), exits.rule, costs, reference)


def certified_row(
    name: str,
    exits: Exits,
    task: Task,
    costs: StageCosts,
    full: Mapping[str, tuple[Tensor, float]] | None,
    plain: Frontier,
    arguments: argparse.Namespace,
) -> Row:
    """Search on validation, certify on calibration, measure on test."""

    def on(part: str) -> Measured:
        reference = None if full is None else full[part]
        return measured(exits, getattr(task, part), part, costs, reference)

    held_out = on("validation")
    settings = exit_settings(held_out.logits, held_out.quality, costs, exits.rule)
    found = held_out.outcomes(settings)
    order = safest_first(found)
    by_knob = dict(zip(found.knobs, settings, strict=True))
    chosen = [by_knob[knob] for knob in order]
    outcomes = on("calibration").outcomes(chosen)
    pick = certify(outcomes, arguments.max_drop, arguments.confidence, order=order)
    test = on("test")
    result = test.outcomes([by_knob[pick.knob]])
    drops, cost = result.drops()[0], float(result.cost.mean())
    by_chance = Frontier(
        "exits",
        tuple(
            Point(at, float(test.quality[at].mean()), float(costs.alone(at)))
            for at in range(len(costs))
        ),
        result.unit,
    )
    left = [float((result.cost[0] == spent).mean()) for spent in sorted(set(result.cost[0]))]
    return Row(
        name,
        pick,
        by_knob[pick.knob],
        float(result.quality.mean()),
        cost,
        (100 * float(drops.mean()), 196 * float(drops.std()) / len(drops) ** 0.5),
        left,
        at_cost(plain, cost),
        at_cost(by_chance, cost),
    )


def at_cost(frontier: Frontier, cost: float) -> float | None:
    """Accuracy of mixing by chance at this cost; None below the cheapest."""
    try:
        return random_mixing(frontier).quality_at(cost)
    except InputError:
        return None


def timed(runs: Mapping[str, Callable[[Tensor], object]], x: Tensor, rounds: int) -> dict[str, Any]:
    """Medians in ms per input, (processor, wall), of passes over x that take turns."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            used, start = time.process_time(), time.perf_counter()
            with torch.no_grad():
                for batch in x.split(BATCH):
                    run(batch)
            if round_:
                passed = (time.process_time() - used, time.perf_counter() - start)
                seconds[name].append(passed)
    return {name: 1e3 * np.median(times, axis=0) / len(x) for name, times in seconds.items()}


def report(task: Task, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, certify, measure and print everything of one data set."""
    names = ("exits", *arguments.plain)
    nets = {name: trained(task, name, arguments.seed, arguments.folder) for name in names}
    net = nets["exits"]
    assert isinstance(net, EarlyExit)
    costs = net.stage_costs(task.test.x[:1])
    spent = {name: float(count_flops(nets[name], task.test.x[:1])) for name in arguments.plain}
    answers = {name: on_all_parts(nets[name], task) for name in arguments.plain}
    right = {
        name: {part: right_class(found[part], getattr(task, part).y)[0] for part in found}
        for name, found in answers.items()
    }
    plain = Frontier(
        "plain networks",
        tuple(Point(name, float(right[name]["test"].mean()), spent[name]) for name in spent),
        "MFLOPs",
    )
    reference = {part: (found, spent["full"]) for part, found in answers["full"].items()}
    every = rules(task, net, arguments.seed)
    tables = {
        kind: [
            certified_row(name, exits, task, costs, kept, plain, arguments)
            for name, exits in every.items()
        ]
        for kind, kept in (("the full network alone", reference), ("its own end", None))
    }
    runs: dict[str, Callable[[Tensor], object]] = {name: nets[name] for name in spent}
    runs["its own end"] = net.backbone
    for kind, rows in tables.items():
        for row in rows:
            runs[f"{kind}: {row.rule}"] = runner(every[row.rule], row.thresholds)
    times = timed(runs, task.test.x, arguments.rounds)
    print_networks(task, net, every["confidence"], costs, spent, right, times)
    for kind, rows in tables.items():
        print_rules(kind, rows, spent["full"], times, arguments)
    return as_json(task, tables, spent, right, times)


def runner(exits: Exits, thresholds: Sequence[float]) -> Callable[[Tensor], object]:
    return lambda x: exits.net.run(x, thresholds, exits.rule)


def print_networks(
    task: Task,
    net: EarlyExit,
    exits: Exits,
    costs: StageCosts,
    spent: Mapping[str, float],
    right: Mapping[str, Mapping[str, Tensor]],
    times: Mapping[str, Any],
) -> None:
    sizes = ", ".join(
        f"{len(getattr(task, part).y):,} {part}"
        for part in ("train", "validation", "calibration", "test")
    )
    print(f"\n## {task.name}: {sizes}; {sum(task.epochs)} epochs\n")
    print("| network | MMACs | ms CPU (wall) | accuracy on test | drop certified at 95% |")
    print("|---|---:|---:|---:|---:|")
    for name in spent:
        own, kept = right[name]["calibration"], right["full"]["calibration"]
        bound = upper_bound((kept - own).numpy(), 0.95, "exact") if name != "full" else 0.0
        print(
            f"| {name} | {spent[name] / 2:.2f} | {times[name][0]:.3f} ({times[name][1]:.3f}) | "
            f"{100 * float(right[name]['test'].mean()):.2f} | {100 * bound:.2f} |"
        )
    for at, name in enumerate(net.exits):
        own = right_class(exits.logits["calibration"], task.calibration.y)[at]
        bound = upper_bound((right["full"]["calibration"] - own).numpy(), 0.95, "exact")
        accuracy = float(right_class(exits.logits["test"], task.test.y)[at].mean())
        last = at == len(net.exits) - 1
        ms = "{:.3f} ({:.3f})".format(*times["its own end"]) if last else ""
        print(
            f"| exit {name} | {float(costs.alone(at)) / 2:.2f} | {ms} | "
            f"{100 * accuracy:.2f} | {100 * bound:.2f} |"
        )


def print_rules(
    kind: str,
    rows: Sequence[Row],
    full: float,
    times: Mapping[str, Any],
    arguments: argparse.Namespace,
) -> None:
    print(f"\nAt most {100 * arguments.max_drop:g} points lost against {kind}:\n")
    print(
        "| rule | certified | MACs saved % | CPU time saved % | wall % | realised | accuracy | "
        "lost, points | plain mixed | exits by chance | left at each exit % |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|")
    base = times["full"]
    for row in rows:
        macs = 1 - row.cost / full
        cpu, wall = 1 - times[f"{kind}: {row.rule}"] / base
        sure = "yes" if row.pick.certificate.certified else "no"
        lost = f"{row.lost[0]:+.2f} ± {row.lost[1]:.2f}"
        realised = f"{cpu / macs:.2f}" if macs > 0.01 else "-"
        cells = [_percent(row.mixed), _percent(row.by_chance)]
        left = " ".join(f"{100 * share:.0f}" for share in row.left)
        print(
            f"| {row.rule} | {sure} | {100 * macs:.1f} | {100 * cpu:.1f} | {100 * wall:.1f} | "
            f"{realised} | {100 * row.accuracy:.2f} | {lost} | {' | '.join(cells)} | {left} |"
        )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def as_json(
    task: Task,
    tables: Mapping[str, Sequence[Row]],
    spent: Mapping[str, float],
    right: Mapping[str, Mapping[str, Tensor]],
    times: Mapping[str, Any],
) -> dict[str, Any]:
    """Every figure that was printed."""
    return {
        "data": task.name,
        "epochs": list(task.epochs),
        "networks": {
            name: {"MFLOPs": spent[name], "accuracy": float(right[name]["test"].mean())}
            for name in spent
        },
        "ms": {name: found.tolist() for name, found in times.items()},
        "rules": {
            kind: [
                {
                    "rule": row.rule,
                    "certified": row.pick.certificate.certified,
                    "promised_drop": row.pick.certificate.promised_drop,
                    "thresholds": [str(threshold) for threshold in row.thresholds],
                    "accuracy": row.accuracy,
                    "lost_points": row.lost[0],
                    "MFLOPs": row.cost,
                    "saved": 1 - row.cost / spent["full"],
                }
                for row in rows
            ]
            for kind, rows in tables.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cifar10", type=Path, default=DATA, metavar="FILE")
    parser.add_argument("--data", nargs="+", default=["digits", "cifar10"])
    parser.add_argument("--epochs", type=int, nargs=2, help="of CIFAR-10, in two parts")
    parser.add_argument("--plain", nargs="+", default=list(PLAIN), help="full is needed")
    parser.add_argument("--folder", type=Path, metavar="DIR")
    parser.add_argument("--max-drop", type=float, default=0.01)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    if "digits" in arguments.data:
        found.append(report(digits(EPOCHS["digits"]), arguments))
    if "cifar10" in arguments.data:
        if arguments.cifar10.exists():
            epochs = arguments.epochs or EPOCHS["CIFAR-10"]
            found.append(report(cifar10(arguments.cifar10, epochs), arguments))
        else:
            print(f"\nCIFAR-10 is left out: there is no {arguments.cifar10}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
