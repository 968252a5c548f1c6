"""Routers that know the task of a token: a gate for each task, or experts by task alone.

Legend: T tokens, D width, E experts, G tasks, A attributes of a task, P width of an embedding.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.moe.context import Context
from pointsman.moe.routers.base import Router
from pointsman.moe.routers.common import check_ids, check_sizes

Reads = Literal["own", "shared", "nothing"]


class TaskRouter(Router):
    """Scores x W_g' + b_g for a token of task g = `context.task`.

    Args:
        width: D.
        num_experts: E.
        num_tasks: G.
        gate: "own" gives every task rows W_g of its own; "shared" one W for all and a bias for
            each task, which is what a gate on [x; embedding of the task] comes to; "nothing" leaves
            the features out, so that all tokens of a task take the same experts.
        std: standard deviation of the weights at first. Small, as per-task gates that start large
            scatter every task over all experts.
        bias_std: standard deviation of the biases at first; not 0, so that tasks differ.

    Attributes:
        weight: (G, E, D), (1, E, D) or None.
        bias: (G, E).

    Raises:
        InputError: a size below one, or another word for the gate.

    Source: Gupta et al. 2022, "Sparsely activated mixture-of-experts are robust multi-task
    learners", arXiv 2204.07689. Its exact gate was not found; "own" and "shared" are the two
    readings of its text, and "nothing" is their common limit.
    """

    def __init__(
        self,
        width: int,
        num_experts: int,
        num_tasks: int,
        *,
        gate: Reads = "own",
        std: float = 0.02,
        bias_std: float = 0.02,
    ) -> None:
        super().__init__()
        check_sizes("TaskRouter", width=width, num_experts=num_experts, num_tasks=num_tasks)
        if gate not in get_args(Reads):
            raise InputError(f"the gate is one of {', '.join(get_args(Reads))}, got {gate!r}")
        self.gate = gate
        gates = {"own": num_tasks, "shared": 1, "nothing": 0}[gate]
        self.weight = nn.Parameter(torch.randn(gates, num_experts, width) * std) if gates else None
        self.bias = nn.Parameter(torch.randn(num_tasks, num_experts) * bias_std)

    def forward(self, x_TD: Tensor, context: Context) -> Tensor:
        """Scores (T, E).

        Raises:
            InputError: `context.task` is missing, or no id of a task.
        """
        (task_T,) = context.require("task", reader="TaskRouter")
        check_ids(task_T, len(self.bias), "task", "TaskRouter")
        bias_TE = self.bias.index_select(0, task_T)
        if self.weight is None:
            return bias_TE.to(x_TD.dtype)
        # One product with the gates of all tasks; there are few, and it needs no sorting.
        scores_TGE = torch.einsum("td,ged->tge", x_TD, self.weight)
        if self.gate == "shared":
            return scores_TGE[:, 0] + bias_TE
        places_T11 = task_T[:, None, None].expand(-1, 1, scores_TGE.shape[2])
        return scores_TGE.gather(1, places_T11).squeeze(1) + bias_TE

    @torch.no_grad()
    def with_task_like(self, tasks: Sequence[int]) -> "TaskRouter":
        """A router that knows one more task, whose gate is the mean of those of related tasks.

        Raises:
            InputError: no task, or one that is not known.
        """
        known = len(self.bias)
        if not tasks or not all(0 <= task < known for task in tasks):
            raise InputError(
                f"a new task starts like some of the tasks 0 to {known - 1}, got {list(tasks)}"
            )
        related = list(tasks)
        num_experts = self.bias.shape[1]
        width = 1 if self.weight is None else self.weight.shape[2]
        grown = TaskRouter(width, num_experts, known + 1, gate=self.gate).to(self.bias)
        grown.bias.copy_(torch.cat([self.bias, self.bias[related].mean(dim=0, keepdim=True)]))
        if self.weight is not None and grown.weight is not None:
            weight_GED: Tensor = self.weight
            if self.gate == "own":
                extra_1ED = weight_GED[related].mean(dim=0, keepdim=True)
                weight_GED = torch.cat([weight_GED, extra_1ED])
            grown.weight.copy_(weight_GED)
        return grown


class ConditionalRouter(Router):
    """Scores from attributes of a token's task, not from the token: V LayerNorm(U a_g).

    Tokens of one task (`context.task`) share their scores, so linear experts can be merged into one
    matrix for each task, and an unseen task gets a route from the attributes it shares with others.

    Args:
        attributes_GA: (G, A), such as bits that say which modalities a task reads and writes.
        num_experts: E.
        embedding: P.
        activation: GELU after the normalisation.
        noise: standard deviation of Gaussian noise on the scores in training, drawn once for each
            task and call; None means 1 / E.
        learn_attributes: train them too; a unit matrix then makes them a task embedding.

    Attributes:
        attributes: (G, A), a parameter that is trained only if asked.

    Raises:
        InputError: attributes that are no floating point table, or a size below one.

    Source: Zhu et al. 2022, "Uni-Perceiver-MoE", arXiv 2206.04674 (the attribute gate).
    """

    def __init__(
        self,
        attributes_GA: Tensor,
        num_experts: int,
        *,
        embedding: int = 64,
        activation: bool = False,
        noise: float | None = None,
        learn_attributes: bool = False,
    ) -> None:
        super().__init__()
        check_sizes("ConditionalRouter", num_experts=num_experts, embedding=embedding)
        if attributes_GA.ndim != 2 or 0 in attributes_GA.shape:
            raise InputError(
                "ConditionalRouter needs attributes of shape (tasks, attributes), "
                f"got {tuple(attributes_GA.shape)}"
            )
        if not attributes_GA.dtype.is_floating_point:
            raise InputError(
                f"attributes must be floating point, got {attributes_GA.dtype}: use .float()"
            )
        self.noise = 1 / num_experts if noise is None else noise
        self.activation = activation
        self.attributes = nn.Parameter(
            attributes_GA.detach().clone(), requires_grad=learn_attributes
        )
        self.enter = nn.Linear(attributes_GA.shape[1], embedding, bias=False)
        self.norm = nn.LayerNorm(embedding)
        self.leave = nn.Linear(embedding, num_experts, bias=False)

    def of_tasks(self) -> Tensor:
        """Scores of every task (G, E), without noise."""
        embedded_GP = self.norm(self.enter(self.attributes))
        scores_GE: Tensor = self.leave(
            functional.gelu(embedded_GP) if self.activation else embedded_GP
        )
        return scores_GE

    def forward(self, x_TD: Tensor, context: Context) -> Tensor:
        """Scores (T, E).

        Raises:
            InputError: `context.task` is missing, or no id of a task.
        """
        (task_T,) = context.require("task", reader="ConditionalRouter")
        check_ids(task_T, len(self.attributes), "task", "ConditionalRouter")
        scores_GE = self.of_tasks()
        if self.training and self.noise > 0:
            scores_GE = scores_GE + self.noise * torch.randn_like(scores_GE)
        return scores_GE.index_select(0, task_T).to(x_TD.dtype)
