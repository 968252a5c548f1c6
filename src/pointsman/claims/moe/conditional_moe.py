"""Conditional mixture of experts: linear maps chosen by attributes of the task, then merged.

Zhu et al., "Uni-Perceiver-MoE: Learning Sparse Generalist Models with Conditional MoEs" (2022,
arXiv 2206.04674).

Every linear map of a generalist network becomes a few linear experts, and the gate reads a fixed
vector of attributes of the task instead of the token: softmax(V LayerNorm(U a)). Tasks that share
attributes share experts, and since tokens play no part, the experts of a task merge into one matrix
for inference. The part is `moe.routers.ConditionalRouter`, the compositions
`moe.systems.routed.conditional` and `merged_by_task`.

What was settled:
- Attributes here are which of three pairs a task is of, and which of the two it is: five bits.
- Two experts a token and map, as in the paper; one was too few for either gate in trials on other
  seeds. Merged, they cost what the dense network costs, which is what it is held against; training
  costs twice that, so a dense network twice as wide is measured beside. Under gates that read
  tokens nothing can be merged.
- The second map of a network makes its own choice; in the authors' code it may reuse the first's.
"""

from collections.abc import Sequence
from typing import Any

from pointsman.claims.frame import Claim, Figures, mean, must

EXPERTS, CHOSEN = 6, 2
ROWS = ("gate by attributes", "gate by token", "dense", "dense, twice as wide")


def quick() -> None:
    """Merged maps answer like the mixture, and equal attributes are given equal experts."""
    import torch
    from torch.testing import assert_close

    from pointsman.moe import Context
    from pointsman.moe.systems.routed import conditional, merged_by_task

    torch.manual_seed(0)
    attributes = torch.tensor([[1.0, 0, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1]])
    for k in (1, 2, 3):
        layer = conditional(attributes, 8, 5, EXPERTS, k).double().eval()
        x_TD, task_T = torch.randn(30, 8, dtype=torch.float64), torch.arange(30) % 3
        y_TO, routing = layer(x_TD, context=Context(task=task_T))
        for task, linear in enumerate(merged_by_task(layer)):
            assert_close(linear(x_TD[task_T == task]), y_TO[task_T == task])
        chosen = [set(routing.route.branches[routing.route.inputs == t].tolist()) for t in range(3)]
        must(chosen[0] == chosen[2], "equal attributes, equal experts")
        tokens_of_one = routing.route.mask()[task_T == 0]
        must(bool((tokens_of_one == tokens_of_one[0]).all()), "tokens play no part")


def full(seed: int) -> Figures:
    """Error over six related tasks with either gate on both maps, and without experts."""
    import torch

    from pointsman.claims import multitask

    world, found = multitask.tasks(seed), {}
    for row in ROWS:
        torch.manual_seed(seed)
        model = multitask.Multitask(*_body(row))
        multitask.fit(model, world, seed=seed)
        found[f"{row}: relative error"] = multitask.relative_error(model, world, seed=seed)
    return found


def _body(row: str) -> Any:
    import torch
    from torch import nn

    from pointsman.claims.multitask import HIDDEN, OUT, TASKS, WIDTH
    from pointsman.moe.layer import MoE
    from pointsman.moe.routers import LinearRouter
    from pointsman.moe.systems.routed import conditional

    hidden = 2 * HIDDEN if row == "dense, twice as wide" else HIDDEN
    sizes = ((WIDTH, hidden), (hidden, OUT))
    if row.startswith("dense"):
        first, second = (nn.Linear(*size) for size in sizes)
        return first, nn.GELU(), second
    task = torch.arange(TASKS)
    pair = nn.functional.one_hot(task // 2, 3)
    attributes = torch.cat([pair, nn.functional.one_hot(task % 2, 2)], dim=1).float()
    layers = [conditional(attributes, *size, EXPERTS, CHOSEN) for size in sizes]
    if row == "gate by token":
        layers = [
            MoE(LinearRouter(size[0], EXPERTS), layer.select, layer.experts)
            for size, layer in zip(sizes, layers, strict=True)
        ]
    return layers[0], nn.GELU(), layers[1]


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    ours, dense = "gate by attributes: relative error", "dense: relative error"
    better = all(found[ours] < found[dense] for found in measurements)
    return better and mean(measurements, ours) < mean(measurements, "gate by token: relative error")


CLAIM = Claim(
    slug="conditional-moe",
    paper="Uni-Perceiver-MoE: Learning Sparse Generalist Models with Conditional MoEs",
    year=2022,
    arxiv="2206.04674",
    level="moe",
    claim="Linear experts chosen by attributes of the task let tasks disturb each other less than "
    "in a dense network, and do better than experts chosen by token.",
    baseline="A dense network of the cost of the merged one, told the task in the same way; and "
    "the same experts under gates that read tokens.",
    criterion="On six tasks in three related pairs, after equal updates: the relative error is "
    "below that of the dense network in every seed, and in the mean over the seeds below that of "
    "gates that read tokens.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.conditional",
    composition="conditional router · top-2 · linear experts",
    key={
        "by attributes": "gate by attributes: relative error",
        "by token": "gate by token: relative error",
        "dense": "dense: relative error",
    },
)
