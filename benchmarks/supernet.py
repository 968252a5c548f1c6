"""One elastic network for every budget, beside pruning and training from scratch, on images.

    python benchmarks/supernet.py [--cifar10 FILE] [--data digits cifar10] [--epochs 40 6]
        [--tuning 10 2] [--evaluations 40] [--folder DIR] [--seed 0] [--json FILE]

Everything is trained here, with one recipe (see benchmarks/supernet_networks.py): an elastic
network once, and the same network as a plain one. Then, at 50, 25 and 10% of the MACs:

- the elastic network's best subnet within the budget, found by one search for all budgets;
- the plain network pruned: by pointsman in one call (and in another to 50 and 25% of the measured
  time), by Torch-Pruning (its L2 and Taylor criteria over all layers, step by step until the budget
  is met), and of random channels, equally many of every layer;
- a new network of the subnet's shape, trained from scratch for as many epochs as the plain network
  and the fine-tuning together.

All are fine-tuned alike, by the same epochs of the same recipe, at two rates: the higher suits what
was cut, the lower what has lost little. "Before" is without that, and with statistics of batch
normalisation gathered anew, for all alike. Four parts share no image: weights are fitted on train,
the search looks at calibration, and what is printed is measured on test. Times are of one thread's
processor, medians of passes that take turns, 256 images at a time.

CIFAR-10 is read from FILE, or shared/data/cifar10_20k.npz beside the checkout, and left out where
it is not. With --folder, weights and what was found are kept there and read again, so that a run
can be taken up. Legend: N inputs.
"""

import argparse
import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from depth_networks import Task, cifar10, digits
from supernet_networks import (
    BATCH,
    RATE,
    TUNING_RATES,
    calibrated,
    elastic,
    kept,
    network,
    right,
    smoothed,
    train_elastic,
    train_plain,
)
from torch import Tensor, nn

from depth import timed
from pointsman.cost import count_flops
from pointsman.errors import UnreachableError
from pointsman.supernet.costs import count_mflops
from pointsman.supernet.pruning import Criterion, at_random, latency, prune, taylor
from pointsman.supernet.search.engines.front_search import front_search
from pointsman.supernet.search.problem import Evaluation, Problem, front
from pointsman.supernet.search.run import search
from pointsman.supernet.space import Genotype
from pointsman.supernet.supernet import Supernet

DATA = Path(__file__).parents[2] / "shared" / "data" / "cifar10_20k.npz"
SHARES = (0.5, 0.25, 0.1)  # of the MACs of the whole network
PRUNING_STEPS = 100  # of Torch-Pruning, to no channel at all
LEAST_TIME = 0.25  # of the whole network's; pruning in time goes no further here
ROUNDS = 4  # in which pointsman scores the channels anew
WHOLE, SCRATCH = "elastic: the whole network", "from scratch, the subnet's shape"
FEW = 5  # evaluations for a budget below all subnets of the search
TIMED, TURNS = 256, 7  # images, and passes over them, where time is measured
Key = tuple[str, float]  # how a network was made, share of the MACs


class Found:
    """What was computed under a name, in a file if there is a folder for it."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self.file = folder and folder / f"{name}.json"
        self.known: dict[str, Any] = (
            json.loads(self.file.read_text()) if self.file and self.file.exists() else {}
        )

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        if name not in self.known:
            self.known[name] = compute()
            if self.file:
                self.file.write_text(json.dumps(self.known, indent=1))
        return self.known[name]


def mmacs(net: nn.Module, task: Task) -> float:
    return float(count_flops(net, task.test.x[:1])) / 2


def searched(
    supernet: Supernet, task: Task, evaluations: int, seed: int, budget: float | None = None
) -> list[list[Any]]:
    """Genotypes, accuracies on calibration and MMACs of one search for their front."""
    cost = count_mflops(supernet, task.test.x[:1])

    def quality(genotype: Genotype) -> float:
        subnet = calibrated(supernet.extract(genotype), task)
        return float(right(subnet, task.calibration).mean())

    problem = Problem(supernet.space, quality, lambda g: cost(g) / 2, "MMACs", budget)
    found = search(problem, front_search, evaluations, seed=seed)
    return [[e.genotype, e.quality, e.cost] for e in found]


def on_the_way(
    supernet: Supernet, task: Task, known: Found, evaluations: int, seed: int
) -> list[Evaluation]:
    """One search over all costs, and a few evaluations for a share that it never came below."""
    history = known.get("search", partial(searched, supernet, task, evaluations, seed))
    whole = mmacs(supernet, task)
    for share in SHARES:
        if min(cost for _, _, cost in history) > share * whole:
            run = partial(searched, supernet, task, FEW, seed, share * whole)
            history = history + known.get(f"search within {share:g}", run)
    return [Evaluation(tuple(genotype), quality, cost) for genotype, quality, cost in history]


def best_within(found: Sequence[Evaluation], budget: float) -> Evaluation:
    return max((e for e in found if e.cost <= budget), key=lambda e: (e.quality, -e.cost))


def torch_pruned(net: nn.Module, task: Task, criterion: str) -> Iterator[tuple[float, nn.Module]]:
    """Torch-Pruning step by step, over all layers together; a copy at each of `SHARES`."""
    import torch_pruning  # type: ignore[import-untyped]

    pruned, whole = copy.deepcopy(net), mmacs(net, task)
    importance = {
        "L2": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
        "Taylor": lambda: torch_pruning.importance.GroupTaylorImportance(),
    }[criterion]()
    pruner = torch_pruning.pruner.BasePruner(
        pruned,
        task.train.x[:1],
        importance=importance,
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=PRUNING_STEPS,
        ignored_layers=[pruned.classes],
    )
    left = list(SHARES)
    for step in range(PRUNING_STEPS):
        if criterion == "Taylor":
            rows = torch.arange(step * BATCH, (step + 1) * BATCH) % len(task.train.y)
            pruned.zero_grad()
            smoothed(pruned(task.train.x[rows]), task.train.y[rows]).backward()
        pruner.step()
        while left and mmacs(pruned, task) <= left[0] * whole:
            pruned.zero_grad()
            yield left.pop(0), copy.deepcopy(pruned)
        if not left:
            return


def pruned(
    net: nn.Module, task: Task, share: float, criterion: Criterion, **said: Any
) -> nn.Module:
    """Pruned by pointsman to a share of the MACs, or what is said, in one call."""
    done = prune(net, task.test.x[:TIMED], to=share, criterion=criterion, **said)
    print(f"  {done.report}", flush=True)
    return done.model


def competitors(
    supernet: Supernet, plain: nn.Module, found: Sequence[Evaluation], task: Task, seed: int
) -> dict[Key, nn.Module]:
    """Networks at every share of the MACs, by (how they were made, share)."""
    whole = mmacs(plain, task)

    def loss(net: nn.Module) -> Tensor:
        return smoothed(net(task.train.x[: 2 * BATCH]), task.train.y[: 2 * BATCH])

    nets: dict[Key, nn.Module] = {}
    for share in SHARES:
        subnet = supernet.extract(best_within(found, share * whole).genotype)
        nets["elastic: best subnet", share] = subnet
        nets["pruned by pointsman, Taylor", share] = pruned(
            plain, task, share, taylor(loss), rounds=ROUNDS
        )
        nets["pruned of random channels", share] = pruned(
            plain, task, share, at_random(seed), across=False
        )
        if share >= LEAST_TIME:
            try:
                nets["pruned by pointsman, Taylor, to a share of the ms", share] = pruned(
                    plain, task, share, taylor(loss), rounds=ROUNDS, of=latency
                )
            except UnreachableError as error:
                print(f"  to {share:.0%} of the ms: {error}", flush=True)
        fresh = copy.deepcopy(subnet)
        torch.manual_seed(seed)
        for layer in fresh.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                layer.reset_parameters()
        nets[SCRATCH, share] = fresh
    for criterion in ("L2", "Taylor"):
        for share, net in torch_pruned(plain, task, criterion):
            nets[f"Torch-Pruning, {criterion}", share] = net
    return nets


def report(task: Task, arguments: argparse.Namespace, epochs: int, tuning: int) -> dict[str, Any]:
    """Train, search, prune, fine-tune, measure and print everything of one data set."""
    seed, folder = arguments.seed, arguments.folder
    known = Found(folder, f"{task.name}-found-{seed}")
    plain = network(task, seed)
    supernet = elastic(plain, task)
    name = f"{task.name}-{epochs}-epochs-{seed}"
    kept(folder, f"{name}-elastic", supernet, lambda: train_elastic(supernet, task, epochs, seed))
    kept(folder, f"{name}-plain", plain, lambda: train_plain(plain, task, epochs, RATE, seed))
    found = on_the_way(supernet, task, known, arguments.evaluations, seed)
    nets = competitors(supernet, plain, found, task, seed)
    top = [len(choice.options) - 1 for choice in supernet.space.choices]
    nets["plain: the whole network", 1.0] = plain
    nets[WHOLE, 1.0] = supernet.extract(top)
    sizes = {key: (mmacs(net, task), _parameters(net)) for key, net in nets.items()}
    times = timed(nets, task.test.x[:TIMED], TURNS)
    print_front(supernet, task, found)
    rows: dict[Key, dict[str, list[int]]] = {key: {} for key in nets}
    for key, net in nets.items():
        if not key[0].startswith(SCRATCH):
            calibrated(net, task)
            rows[key]["before"] = right(net, task.test).int().tolist()
    print_rows(task, rows, sizes, times)
    # The decisive shares first.
    for key in sorted(nets, key=lambda key: (key[0].startswith(SCRATCH), key[1])):
        rows[key] |= known.get(
            f"{key[0]} at {key[1]:g}, after", partial(tuned, nets, key, task, epochs, tuning, seed)
        )
        print(f"  {key[0]} at {key[1]:.0%}: {_means(rows[key])}", flush=True)
    print_rows(task, rows, sizes, times)
    return {"data": task.name, "rows": {f"{a} at {b:g}": _means(r) for (a, b), r in rows.items()}}


def tuned(
    nets: Mapping[Key, nn.Module], key: Key, task: Task, epochs: int, tuning: int, seed: int
) -> dict[str, list[int]]:
    """Which test images a network gets right after fine-tuning, at each rate."""
    if key[0].startswith(SCRATCH):
        train_plain(nets[key], task, epochs, RATE, seed)
    found = {}
    for rate in TUNING_RATES:
        net = copy.deepcopy(nets[key])
        train_plain(net, task, tuning, rate, seed + 1)
        found[after(rate)] = right(net, task.test).int().tolist()
    return found


def after(rate: float) -> str:
    """Name of a column."""
    return f"after, at {rate:g}"


def _parameters(net: nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())


def _means(row: dict[str, list[int]]) -> dict[str, float]:
    return {when: sum(found) / len(found) for when, found in row.items()}


def print_front(supernet: Supernet, task: Task, found: Sequence[Evaluation]) -> None:
    """The front in MACs and in measured ms, of all subnets that the search evaluated."""
    subnets = {e.genotype: calibrated(supernet.extract(e.genotype), task) for e in found}
    times = timed(subnets, task.test.x[:TIMED], TURNS)
    by_time = [Evaluation(e.genotype, e.quality, float(times[e.genotype][0])) for e in found]
    print(f"\n## {task.name}: front of one elastic network, {len(found)} subnets evaluated\n")
    print("| MMACs | ms CPU | accuracy on calibration | on test | on the front in |")
    print("|---:|---:|---:|---:|---|")
    in_macs, in_ms = ({e.genotype for e in front(of)} for of in (found, by_time))
    for each in sorted(found, key=lambda e: e.cost):
        kinds = [n for n, of in (("MACs", in_macs), ("ms", in_ms)) if each.genotype in of]
        if kinds:
            test = float(right(subnets[each.genotype], task.test).mean())
            print(
                f"| {each.cost:.2f} | {times[each.genotype][0]:.3f} | "
                f"{100 * each.quality:.2f} | {100 * test:.2f} | {', '.join(kinds)} |",
                flush=True,
            )


def print_rows(
    task: Task,
    rows: Mapping[Key, Mapping[str, list[int]]],
    sizes: Mapping[Key, tuple[float, int]],
    times: Mapping[Key, Any],
) -> None:
    """Every network, with the points lost against the whole elastic one before fine-tuning."""
    reference = torch.tensor(rows[WHOLE, 1.0]["before"]).float()
    print(f"\n## {task.name}: at 50, 25 and 10% of the MACs, {len(reference):,} test images\n")
    columns = ["before", *map(after, TUNING_RATES)]
    print(
        f"| network | MMACs | thousand parameters | ms CPU (wall) | {' | '.join(columns)} "
        "| points below the whole elastic network, before |"
    )
    print("|---|---:|---:|---:|" + "---:|" * len(columns) + "---:|")
    for key, row in sorted(rows.items(), key=lambda item: -item[0][1]):
        shown = {when: f"{100 * share:.2f}" for when, share in _means(row).items()}
        lost = "-"
        if "before" in row:
            drop = 100 * (reference - torch.tensor(row["before"]).float())
            lost = f"{float(drop.mean()):+.2f} ± {1.96 * float(drop.std()) / len(drop) ** 0.5:.2f}"
        macs, parameters = sizes[key]
        print(
            f"| {key[0]}, {key[1]:.0%} | {macs:.2f} | {parameters / 1e3:.1f} | "
            f"{times[key][0]:.3f} ({times[key][1]:.3f}) | "
            f"{' | '.join(shown.get(name, '-') for name in columns)} | {lost} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cifar10", type=Path, default=DATA)
    parser.add_argument("--data", nargs="+", default=["digits", "cifar10"])
    parser.add_argument("--epochs", type=int, nargs=2, default=(40, 6), help="digits, CIFAR-10")
    parser.add_argument("--tuning", type=int, nargs=2, default=(10, 2), help="digits, CIFAR-10")
    parser.add_argument("--evaluations", type=int, default=40, help="of the search")
    parser.add_argument("--folder", type=Path, help="where weights and results are kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    if "digits" in arguments.data:
        task = digits((1, 1))
        found.append(report(task, arguments, arguments.epochs[0], arguments.tuning[0]))
    if "cifar10" in arguments.data and not arguments.cifar10.exists():
        print(f"\nCIFAR-10 is left out: there is no {arguments.cifar10}")
    elif "cifar10" in arguments.data:
        task = cifar10(arguments.cifar10, (1, 1))
        found.append(report(task, arguments, arguments.epochs[1], arguments.tuning[1]))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
