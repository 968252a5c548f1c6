"""Systems that choose a place first and an expert there second, so that tokens travel less.

What they save on the way is counted by `pointsman.moe.parallel.two_level_traffic`.

Legend: T tokens, E experts, G groups, M = E / G experts of a group.
"""

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.moe.balance import grouped_switch, switch
from pointsman.moe.balance.common import nothing, wide
from pointsman.moe.experts import FeedForwardExperts
from pointsman.moe.layer import MoE
from pointsman.moe.routers import TwoLevelRouter
from pointsman.select import within_best_group

if TYPE_CHECKING:
    from pointsman.moe.layer import Routing


def smile(
    width: int,
    hidden: int,
    nodes: int = 16,
    per_node: int = 8,
    *,
    node_weight: float = 0.01,
    device_weight: float = 0.01,
) -> MoE:
    """One router picks the node, another the device in it, and both are kept in balance.

    The expert of node i and place j there is i * per_node + j, and its answer is weighted by the
    product of the two probabilities.

    Where we depart: the router of places is shared by all nodes, which is what makes it cheap; the
    paper does not say it where we could read it. Weights of the losses are ours, and nothing has a
    capacity. The exchange in two hops is counted and not run.

    Args:
        width: D.
        hidden: of an expert.
        nodes: G, 16 in the paper.
        per_node: M, one expert a device, 8 in the paper.
        node_weight: of the balancing loss over nodes.
        device_weight: of the balancing loss over places in a node.

    Source: He et al. 2022, "SMILE: scaling mixture-of-experts with efficient bi-level routing",
    arXiv 2212.05191.
    """
    router = TwoLevelRouter(
        nn.Linear(width, nodes, bias=False), nn.Linear(width, per_node, bias=False), shared=True
    )
    return MoE(
        router,
        partial(within_best_group, groups=nodes, k=1),
        FeedForwardExperts(nodes * per_node, width, hidden, activation="relu"),
        balance=(
            (node_weight, partial(node_balance, nodes=nodes)),
            (device_weight, partial(place_balance, nodes=nodes)),
        ),
    )


def sam(
    width: int,
    hidden: int,
    num_experts: int,
    groups: int,
    k: int = 2,
    *,
    balance: float = 0.01,
    align: float = 0.1,
) -> MoE:
    """A token goes to the one group with the most probability, and mixes the k best experts there.

    Where we depart: one softmax over all experts scores the groups too; whether the paper has a
    second router was not found. The form of the alignment loss is our reading, see `alignment`, and
    both weights are ours.

    Args:
        width: D.
        hidden: of an expert.
        num_experts: E.
        groups: G, such as devices; a divisor of E.
        k: experts a token, 1 to E / G.
        balance: weight of the load-balancing loss.
        align: weight of the alignment loss.

    Source: Jiang et al. 2021, "Towards more effective and economic sparsely-activated model", arXiv
    2110.07431.
    """
    return MoE(
        nn.Linear(width, num_experts, bias=False),
        partial(within_best_group, groups=groups, k=k),
        FeedForwardExperts(num_experts, width, hidden, activation="relu"),
        balance=((balance, switch), (align, partial(alignment, groups=groups))),
    )


def node_balance(routing: "Routing", layer: "MoE | None" = None, *, nodes: int) -> Tensor:
    """The switch loss over nodes, which are contiguous groups of experts.

    Args:
        routing: of one call.
        layer: not read.
        nodes: G, a divisor of E.
    """
    experts = routing.route.num_branches
    return grouped_switch(routing, group_of=[e * nodes // experts for e in range(experts)])


def place_balance(routing: "Routing", layer: "MoE | None" = None, *, nodes: int) -> Tensor:
    """The switch loss over places in a node, all nodes together.

    Args:
        routing: of one call.
        layer: not read.
        nodes: G, a divisor of E.
    """
    experts = routing.route.num_branches
    return grouped_switch(routing, group_of=[e % (experts // nodes) for e in range(experts)])


def alignment(routing: "Routing", layer: "MoE | None" = None, *, groups: int) -> Tensor:
    """Probability that experts outside of a token's group have above its last chosen one.

    A group with many fair experts may win over the group of the best ones; this loss makes such
    probabilities fall: mean over tokens of the sum of relu(p_outside - p_last chosen).

    Args:
        routing: of one call, each token within one group.
        layer: not read.
        groups: G, of equal size and contiguous.

    Raises:
        InputError: groups that do not divide the experts.
    """
    route, scores_TE = routing.route, routing.scores
    if groups < 1 or route.num_branches % groups:
        raise InputError(f"{groups} groups do not divide {route.num_branches} experts")
    if len(route) == 0:
        return nothing(scores_TE)
    chance_TE = wide(scores_TE).softmax(dim=1)
    chosen_N = chance_TE[route.inputs, route.branches]
    none_T = torch.full_like(chance_TE[:, 0], torch.inf)
    last_T = none_T.scatter_reduce(0, route.inputs, chosen_N, "amin")
    inside_TG = route.mask().reshape(len(chance_TE), groups, -1).any(dim=2)
    outside_TE = ~inside_TG.repeat_interleave(route.num_branches // groups, dim=1)
    above_TE = (chance_TE - last_T[:, None]).relu() * outside_TE
    loss: Tensor = above_TE.sum(dim=1).mean().to(scores_TE.dtype)
    return loss
