"""A system in which every token builds a tree of low-rank pieces and runs it from the leaves up.

Legend: T tokens, D width, O width of answers, P nodes of one sub-layer's trees (T times the
product of the fan-outs above), E experts of a sub-layer, F fan-out, V width of values.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.moe.balance import switch
from pointsman.moe.experts import LoRAExperts, freeze
from pointsman.moe.layer import Routing
from pointsman.route import Route
from pointsman.select import top_k


class Gate(nn.Module):
    """Scores of a sub-layer's experts for a node, from its token and the experts above it.

    Args:
        num_experts: E.
        above: ancestors of a node, each a key of `width`.
        width: of keys and of the projected token.
    """

    def __init__(self, num_experts: int, above: int, width: int) -> None:
        super().__init__()
        self.keys_EG = nn.Parameter(torch.randn(num_experts, width) * width**-0.5)
        enter, leave = nn.Linear((1 + above) * width, width), nn.Linear(width, width)
        self.query = nn.Sequential(enter, nn.ReLU(), leave)

    def forward(self, known_PG: Tensor) -> Tensor:
        """Scores (P, E)."""
        scores: Tensor = self.query(known_PG) @ self.keys_EG.T
        return scores


class ExpertTree(nn.Module):
    """Sub-layers of low-rank experts, tied into one tree for each token.

    From the top down, every chosen node asks for its own children: its query is made of the token
    and of the keys of all experts above it. From the bottom up, a node's value is the weighted sum
    over its children c of act(B_c A_c x + b_c + W v_c), without W at the leaves. An expert's own
    part is computed once for a token, however many nodes of its tree it is.

    Args:
        base: frozen, runs on every token.
        experts: of each sub-layer, bottom first.
        fan_out: children of a node in each sub-layer, bottom first.
        ranks: of the experts of each sub-layer; values are E * rank wider after each.
        gate: width of keys and of the projected token.
        activation: of each child's value.
        balance: weight of the switch loss of each gate.

    Raises:
        InputError: lists of different lengths, or a fan-out above the number of experts.
    """

    def __init__(
        self,
        base: nn.Linear,
        experts: Sequence[int],
        fan_out: Sequence[int],
        ranks: Sequence[int],
        *,
        gate: int = 32,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
        balance: float = 1e-2,
    ) -> None:
        super().__init__()
        if not len(experts) == len(fan_out) == len(ranks) >= 1:
            raise InputError(
                "a tree needs experts, fan_out and ranks of as many sub-layers, "
                f"got {len(experts)}, {len(fan_out)} and {len(ranks)}"
            )
        if any(not 1 <= f <= e for f, e in zip(fan_out, experts, strict=True)):
            raise InputError(f"a node has 1 to E children, got {fan_out} of {experts}")
        self.base, self.fan_out = freeze(base), tuple(fan_out)
        self.activation, self.balance = activation, balance
        width, values = base.in_features, 0
        self.banks, self.lifts, self.gates = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, (count, rank) in enumerate(zip(experts, ranks, strict=True)):
            wider = values + count * rank
            bank = LoRAExperts(count, width, wider, rank, bias=True)
            nn.init.normal_(bank.b_EOR, std=rank**-0.5)  # as what leaves the tree starts at zero
            self.banks.append(bank)
            self.lifts.append(nn.Linear(values, wider, bias=False) if level else nn.Identity())
            self.gates.append(Gate(count, len(experts) - 1 - level, gate))
            values = wider
        self.project = nn.Linear(width, gate, bias=False)
        self.leave = nn.Linear(values, base.out_features, bias=False)
        nn.init.zeros_(self.leave.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Routing]]:
        """(..., D) → (..., O), and the routing of each sub-layer's nodes, top first."""
        x_TD = x.reshape(-1, x.shape[-1])
        routings, chosen = self._descend(x_TD)
        value: Tensor | None = None
        for level, routing in enumerate(reversed(routings)):
            value = self._ascend(x_TD, level, routing.route, chosen[-1 - level], value)
        y_TO = self.base(x_TD) + self.leave(value)
        return y_TO.reshape(*x.shape[:-1], y_TO.shape[1]), routings

    def _descend(self, x_TD: Tensor) -> tuple[list[Routing], list[Tensor]]:
        """Routing of each sub-layer, top first, and the children (P, F) of its nodes."""
        known_PG, routings, chosen = self.project(x_TD), [], []
        for level in reversed(range(len(self.gates))):
            gate, children = self.gates[level], self.fan_out[level]
            assert isinstance(gate, Gate)
            scores_PE = gate(known_PG)
            # A single child made to weigh one would leave the gate without gradient.
            route = top_k(scores_PE, children, renormalize=children > 1)
            routings.append(self._accounted(Routing(scores_PE, route, scores_PE)))
            child_PF = route.branches.reshape(len(scores_PE), children)
            chosen.append(child_PF)
            keys = gate.keys_EG[child_PF.flatten()]
            known_PG = torch.cat([known_PG.repeat_interleave(children, dim=0), keys], dim=1)
        return routings, chosen

    def _accounted(self, routing: Routing) -> Routing:
        if not self.balance:
            return routing
        losses, weights = {"switch": switch(routing)}, {"switch": self.balance}
        return Routing(routing.scores, routing.route, routing.clean, losses=losses, weights=weights)

    def _ascend(
        self, x_TD: Tensor, level: int, route: Route, child_PF: Tensor, below: Tensor | None
    ) -> Tensor:
        """Values (P, V) of the nodes above this sub-layer, from those of their children."""
        bank, count = self.banks[level], len(child_PF)
        assert isinstance(bank, LoRAExperts)
        experts = bank.num_experts
        per_token = count // max(len(x_TD), 1)
        token_N = torch.arange(len(route), device=x_TD.device)
        token_N = token_N.div(max(per_token * child_PF.shape[1], 1), rounding_mode="floor")
        wanted_N = token_N * experts + child_PF.flatten()
        # Each expert once a token: the distinct pairs are run, and nodes take from them.
        pairs, place_N = torch.unique(wanted_N, return_inverse=True)
        run = Route.from_triples(
            pairs.div(experts, rounding_mode="floor"),
            pairs.remainder(experts),
            num_inputs=len(x_TD),
            num_branches=experts,
        )
        rows = bank(run.dispatch(x_TD), run.by_branch().offsets)
        own_NV = torch.empty_like(rows).index_copy(0, run.by_branch().order, rows)[place_N]
        if below is not None:
            own_NV = own_NV + self.lifts[level](below)
        own_NV = self.activation(own_NV) * route.weights[:, None]
        value_PV: Tensor = own_NV.reshape(count, child_PF.shape[1], own_NV.shape[1]).sum(dim=1)
        return value_PV


def residual_tree(
    base: nn.Linear,
    experts: Sequence[int] = (4, 4),
    fan_out: Sequence[int] = (2, 2),
    ranks: Sequence[int] = (16, 16),
) -> ExpertTree:
    """A tree of low-rank experts for each token, so that few pieces make many different experts.

    Where we depart: no bias between A and B (the one after B stays); the switch gate alone, of the
    three that the paper's code offers.

    Args:
        base: the layer beside which the tree runs; it is frozen.
        experts: of each sub-layer, bottom first.
        fan_out: children of a node.
        ranks: of the experts.

    Source: Zeng et al. 2025, "S'MoRE: structural mixture of residual experts for LLM fine-tuning",
    arXiv 2504.06426.
    """
    return ExpertTree(base, experts, fan_out, ranks)
