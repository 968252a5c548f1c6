"""Systems that are ways to run a layer: grouped rows without padding, and slots of a fixed number.

Legend: T tokens, E experts, K choices of a token, N routed pairs, C slots of an expert, D width.
"""

from functools import partial

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.moe.balance import switch
from pointsman.moe.experts import FeedForwardExperts
from pointsman.moe.layer import MoE
from pointsman.route import Route
from pointsman.select import top_k
from pointsman.select.guarantee import guarantees


def megablocks(width: int, hidden: int, num_experts: int, *, k: int = 1) -> MoE:
    """Experts run on exactly the rows that came, however many: no token is dropped or padded.

    Rows are sorted by expert and one grouped product runs them all.

    Where we depart: the paper multiplies blocks of 128 rows on a GPU, which pads each expert's rows
    to whole blocks; here the groups have the lengths they have (`padded_rows` counts what blocks
    would add). Defaults are the library's: the best expert, weighed by its probability, and a
    balancing loss of weight 0.1.

    Args:
        width: D.
        hidden: of each expert.
        num_experts: E.
        k: experts of each token.

    Source: Gale et al. 2022, "MegaBlocks", arXiv 2211.15841.
    """
    return MoE(
        nn.Linear(width, num_experts, bias=False),
        partial(top_k, k=k, renormalize=False),
        FeedForwardExperts(num_experts, width, hidden, bias=False),
        balance=[(0.1, switch)],
    )


def padded_rows(load_E: Tensor, block: int) -> int:
    """Rows that are computed when each expert's rows are filled up to whole blocks."""
    return int((load_E + block - 1).div(block, rounding_mode="floor").sum()) * block


def tutel(
    width: int,
    hidden: int,
    num_experts: int,
    *,
    k: int = 2,
    factor: float = 1.0,
) -> MoE:
    """Each expert has slots, filled by first choices first, and their number may follow the load.

    Where we depart: rows without a token are not computed, so that slots limit what is taken and
    cost nothing where they stay empty; `encode` and `decode` are the exchange with slots laid out.
    The parallel layouts and the pipelining of the paper belong to a cluster.

    Args:
        width: D.
        hidden: of each expert.
        num_experts: E.
        k: experts of each token.
        factor: of the capacity, see `slots_per_expert`.

    Source: Hwang et al. 2022, "Tutel", arXiv 2206.03382.
    """
    return MoE(
        nn.Linear(width, num_experts, bias=False),
        partial(first_choices_first, k=k, factor=factor),
        FeedForwardExperts(num_experts, width, hidden, bias=False),
        balance=[(0.01, switch)],
    )


@guarantees(batch_independent=False, causal=False)
def first_choices_first(scores: Tensor, k: int, *, factor: float = 1.0, multiple: int = 1) -> Route:
    """The k best experts of each token as far as they have slots, first choices served first.

    Weights sum to one over the k chosen and are not divided anew where one of them is full. (Where
    that is wanted, see `select.with_capacity` in the order "rank".)

    Args:
        scores: (T, E) floating point.
        k: wanted of each token, 1 to E.
        factor: see `slots_per_expert`.
        multiple: see `slots_per_expert`.

    Raises:
        RouteError: as `top_k`.
    """
    route, (tokens, experts) = top_k(scores, k), scores.shape
    busiest = int(route.load().max())
    slots = slots_per_expert(tokens, experts, k, factor, busiest=busiest, multiple=multiple)
    kept = (places(route) < slots).nonzero().squeeze(1)
    return Route(
        route.inputs.index_select(0, kept),
        route.branches.index_select(0, kept),
        route.weights.index_select(0, kept),
        tokens,
        experts,
    )


def slots_per_expert(
    tokens: int, num_experts: int, k: int, factor: float, *, busiest: int, multiple: int = 1
) -> int:
    """Capacity C: k * int(factor * ceil(T / E)) if the factor is positive, else by the load.

    Args:
        tokens: T.
        num_experts: E.
        k: choices of each token.
        factor: above 0, the rule above. 0: as many as the busiest expert needs, so that none is
            dropped. Below 0: as many as it needs, at most the rule with the factor's size.
        busiest: choices that fell on the busiest expert.
        multiple: C is rounded up to it, so that it can be split into chunks or over devices.

    Raises:
        InputError: a number of experts or a multiple below 1.
    """
    if num_experts < 1 or multiple < 1:
        raise InputError(
            "slots need at least one expert and a multiple of at least 1, "
            f"got {num_experts} and {multiple}"
        )
    rule = k * int(abs(factor) * -(-tokens // num_experts))
    slots = rule if factor > 0 else busiest if factor == 0 else min(rule, busiest)
    return -(-slots // multiple) * multiple


def places(route: Route) -> Tensor:
    """(N,): how many pairs come before each one in its expert, all first choices before any second.

    The slot that Tutel gives a pair: a count, for which nothing of size T * E * C is made.
    """
    inputs, branches = route.inputs, route.branches
    count = torch.arange(len(route), device=inputs.device)
    begins_T = route.branches_per_input().cumsum(0) - route.branches_per_input()
    choice = count - begins_T.index_select(0, inputs)
    order = torch.sort(choice, stable=True).indices  # inputs are ascending within a choice
    by_expert, again = torch.sort(branches.index_select(0, order), stable=True)
    begins_E = route.load().cumsum(0) - route.load()
    before = count - begins_E.index_select(0, by_expert)
    return torch.empty_like(before).scatter_(0, order.index_select(0, again), before)


def encode(x_TD: Tensor, route: Route, slots: int) -> Tensor:
    """(E, C, D): every token's row in its slots, zeros in slots that stay empty.

    Args:
        x_TD: rows of the tokens.
        route: no expert of which has more than `slots` pairs.
        slots: C.
    """
    rows = x_TD.index_select(0, route.inputs)
    empty = x_TD.new_zeros(route.num_branches * slots, x_TD.shape[1])
    filled = empty.index_copy(0, route.branches * slots + places(route), rows)
    return filled.reshape(route.num_branches, slots, -1)


def decode(answers_ECD: Tensor, route: Route) -> Tensor:
    """(T, D): what the slots of each token answered, times its weights, summed."""
    slots = answers_ECD.shape[1]
    taken = route.branches * slots + places(route)
    rows = answers_ECD.flatten(0, 1).index_select(0, taken) * route.weights[:, None]
    return rows.new_zeros(route.num_inputs, rows.shape[1]).index_add(0, route.inputs, rows)
