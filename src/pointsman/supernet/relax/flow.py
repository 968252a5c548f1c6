"""A graph of states that several tasks share, reduced by how much information each edge carries.

Choi and Im 2023, "Dynamic neural network for multi-task learning searching across diverse network
topologies" (arXiv 2303.06856). Edge (i, j) runs from an earlier state to one at most `reach` later
(the flow constant). Task k reads its input into the states with weights alpha^k, reads its output
from them with beta^k, and in between v_j = alpha_j x + sum_i gamma_ij e_ij(v_i). After training,
edges that carry little flow from read-in to read-out are deleted, and a compact network that all
tasks share is left.

What is certain are the three kinds of weights, the restriction and the flow-based reduction; these
are reconstructed: edge weights are sigmoids over the number of edges into a state, so that
activations stay bounded; the squeeze loss max(0, sum_ij max_k g^k_ij - kappa |E|), with g the
sigmoids; an edge's flow, the sum over all paths through it of the product of weights; and that
in the end a task has one read-in and one read-out state, the strongest of each.

Legend: S states, E edges, K tasks, N inputs, D width.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from pointsman.errors import InputError

Edge = tuple[int, int]


def edges_within(states: int, reach: int) -> list[Edge]:
    """Every pair of states i < j with j - i at most the reach, by j, then i.

    Raises:
        InputError: fewer than two states, or a reach below 1.
    """
    if states < 2 or reach < 1:
        raise InputError(
            f"a graph has two states or more and a reach of 1 or more, got {states} and {reach}"
        )
    return [(i, j) for j in range(states) for i in range(max(0, j - reach), j)]


def edge_flow(
    read_in_S: Tensor, read_out_S: Tensor, edges: Sequence[Edge], weights_E: Tensor
) -> tuple[Tensor, Tensor]:
    """The flow through each edge (E,), and through the whole graph (scalar).

    A path's flow is the product of its read-in weight, its edges' weights and its read-out weight;
    an edge's is the sum over the paths through it. It takes one pass forward and one backward: what
    arrives at the edge's start, times its weight, times what reaches the read-out from its end.

    Args:
        read_in_S: weight with which each state gets the input.
        read_out_S: weight with which it is read.
        edges: from an earlier state to a later one, by their ends.
        weights_E: of the edges; 0 where there is none.
    """
    arrives, leaves = list(read_in_S), list(read_out_S)
    for (i, j), weight in zip(edges, weights_E, strict=True):
        arrives[j] = arrives[j] + arrives[i] * weight
    for (i, j), weight in reversed(list(zip(edges, weights_E, strict=True))):
        leaves[i] = leaves[i] + weight * leaves[j]
    through = [arrives[i] * w * leaves[j] for (i, j), w in zip(edges, weights_E, strict=True)]
    return torch.stack(through), (torch.stack(arrives) * read_out_S).sum()


class StateGraph(nn.Module):
    """States with an operation on every edge between them, used by each task with its own weights.

    Args:
        states: how many.
        reach: over how many states an edge goes at most; 1: the graph is a chain.
        tasks: how many.
        operation: makes the module of an edge, (N, D) → (N, D) or of any one shape.

    Attributes:
        edges: (from, to) of each.
        kept_E: which edges are there; those that are not have no operation any more.
        architecture: the parameters of read-in, read-out and edges, apart from the weights.
    """

    kept_E: Tensor  # noqa: N815
    starts_KS: Tensor  # noqa: N815
    ends_KS: Tensor  # noqa: N815

    def __init__(
        self, states: int, reach: int, tasks: int, operation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.edges = edges_within(states, reach)
        self.operations = nn.ModuleDict({_name(edge): operation() for edge in self.edges})
        self.architecture = nn.ParameterDict(
            {
                "read_in": torch.zeros(tasks, states),
                "read_out": torch.zeros(tasks, states),
                "edges": torch.zeros(tasks, len(self.edges)),
            }
        )
        into_S = torch.tensor([j for _, j in self.edges]).bincount(minlength=states)
        self._into = [int(into_S[j]) for _, j in self.edges]
        self.register_buffer("kept_E", torch.ones(len(self.edges), dtype=torch.bool))
        self.register_buffer("starts_KS", torch.ones(tasks, states, dtype=torch.bool))
        self.register_buffer("ends_KS", torch.ones(tasks, states, dtype=torch.bool))

    @property
    def tasks(self) -> int:
        """How many."""
        return len(self.starts_KS)

    def weights(self, task: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of read-in (S,), read-out (S,) and edges (E,) for a task, with gradients."""
        named = self.architecture
        read_in = named["read_in"][task].masked_fill(~self.starts_KS[task], -math.inf)
        read_out = named["read_out"][task].masked_fill(~self.ends_KS[task], -math.inf)
        gates = named["edges"][task].sigmoid() * self.kept_E
        return read_in.softmax(0), read_out.softmax(0), gates / gates.new_tensor(self._into)

    def forward(self, x: Tensor, task: int) -> Tensor:
        """What a task reads; edges and states through which nothing flows for it are not run.

        Args:
            x: input of the shape that operations take.
            task: its number.
        """
        read_in, read_out, weights = self.weights(task)
        runs = _on_a_path(read_in, read_out, self.edges, weights)
        states: dict[int, Tensor] = {
            at: read_in[at] * x for at, share in enumerate(read_in.tolist()) if share > 0
        }
        for edge, weight, on in zip(self.edges, weights, runs, strict=True):
            if on:
                i, j = edge
                arriving = weight * self.operations[_name(edge)](states[i])
                states[j] = states[j] + arriving if j in states else arriving
        out: Tensor = sum(read_out[at] * v for at, v in states.items())  # type: ignore[assignment]
        return out

    def squeeze(self, share: float) -> Tensor:
        """By how much the edges in use, each by the task that uses it most, exceed a share of all.

        Args:
            share: kappa, in [0, 1].
        """
        used = (self.architecture["edges"].sigmoid() * self.kept_E).amax(dim=0).sum()
        excess: Tensor = used - share * len(self.edges)
        return excess.relu()

    @torch.no_grad()
    def flows(self) -> Tensor:
        """(K, E): the share of each task's flow that goes through each edge."""
        rows = [edge_flow(*self._read(task)) for task in range(self.tasks)]
        return torch.stack([through / total for through, total in rows])

    @torch.no_grad()
    def settle(self) -> None:
        """Each task keeps its strongest read-in, the last state aside, and later read-out."""
        for task in range(self.tasks):
            read_in, read_out, _ = self.weights(task)
            states = torch.arange(len(read_in), device=read_in.device)
            start = read_in[:-1].argmax()
            end = read_out.where(states > start, -1).argmax()
            self.starts_KS[task], self.ends_KS[task] = states == start, states == end

    def reduce(self, count: int, rank: Callable[[], Sequence[float]] | None = None) -> list[Edge]:
        """Delete edges one by one, those that carry least first; every task keeps a path.

        Args:
            count: how many to delete.
            rank: gives a value of each edge, asked again before each deletion; the lowest goes. An
                edge without which a task has no path stays. None: the largest share of any task's
                flow.

        Returns:
            The edges deleted: fewer than asked where all others are needed.
        """
        gone: list[Edge] = []
        while len(gone) < count:
            value = self.flows().amax(dim=0).tolist() if rank is None else rank()
            order = sorted(range(len(self.edges)), key=lambda at: value[at])
            at = next((at for at in order if self.kept_E[at] and self._spare(at)), None)
            if at is None:
                break
            self.kept_E[at] = False
            del self.operations[_name(self.edges[at])]
            gone.append(self.edges[at])
        return gone

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Of the operations that are left."""
        return self.operations.parameters()

    def _spare(self, at: int) -> bool:
        """Whether every task has a path, with an edge in it, without this edge."""
        without = self.kept_E.clone()
        without[at] = False
        for task in range(self.tasks):
            read_in, read_out, _ = self.weights(task)
            if not any(_on_a_path(read_in, read_out, self.edges, without)):
                return False
        return True

    def _read(self, task: int) -> tuple[Tensor, Tensor, list[Edge], Tensor]:
        read_in, read_out, weights = self.weights(task)
        return read_in, read_out, self.edges, weights


def _on_a_path(
    read_in_S: Tensor, read_out_S: Tensor, edges: Sequence[Edge], weights_E: Tensor
) -> list[bool]:
    """Whether anything flows through each edge."""
    there = [weight > 0 for weight in weights_E.tolist()]
    arrives = [weight > 0 for weight in read_in_S.tolist()]
    leaves = [weight > 0 for weight in read_out_S.tolist()]
    for (i, j), on in zip(edges, there, strict=True):
        arrives[j] |= on and arrives[i]
    for (i, j), on in zip(reversed(edges), reversed(there), strict=True):
        leaves[i] |= on and leaves[j]
    return [on and arrives[i] and leaves[j] for (i, j), on in zip(edges, there, strict=True)]


def _name(edge: Edge) -> str:
    return f"{edge[0]}-{edge[1]}"
