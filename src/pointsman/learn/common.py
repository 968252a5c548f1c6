"""What the estimators share. Legend: T inputs, E branches, N pairs, K slots of one input."""

import torch
from torch import Tensor

from pointsman.errors import RouteError
from pointsman.route import Route
from pointsman.select.checks import check_scores


def check_pairs(scores_TE: Tensor, route: Route) -> None:
    """The route must be one of these scores.

    Raises:
        RouteError: scores that are none, see `select`, or another number of inputs or branches.
    """
    check_scores(scores_TE)
    if scores_TE.shape != (route.num_inputs, route.num_branches):
        raise RouteError(
            f"scores of shape {tuple(scores_TE.shape)} do not fit a route of {route.num_inputs} "
            f"inputs and {route.num_branches} branches: give those it was chosen from"
        )


def log_softmax(scores_TE: Tensor) -> Tensor:
    """Over branches; an input without eligible branch stays at -inf, with a gradient of zero."""
    nowhere_T1 = (scores_TE == -torch.inf).all(dim=1, keepdim=True)
    filled = scores_TE.masked_fill(nowhere_T1, 0.0)
    return filled.log_softmax(dim=1).masked_fill(nowhere_T1, -torch.inf)


def of_pairs(values_TE: Tensor, route: Route) -> Tensor:
    """(N,) the entries of the route's pairs; gradients flow."""
    return values_TE[route.inputs, route.branches]


def of_inputs(values_N: Tensor, route: Route) -> Tensor:
    """(N,) the sum over each input's pairs, at each of them."""
    total_T = values_N.new_zeros(route.num_inputs).index_add(0, route.inputs, values_N)
    return total_T.index_select(0, route.inputs)


def place(route: Route) -> Tensor:
    """(N,) how many pairs of the same input come before each pair: its rank, or turn of draw."""
    count_T = route.branches_per_input()
    first_T = count_T.cumsum(dim=0) - count_T
    position = torch.arange(len(route), device=route.inputs.device)
    return position - first_T.index_select(0, route.inputs)


def slots(route: Route) -> Tensor:
    """(T, K) branches in order, -1 in empty slots; on a GPU the host waits for the largest K."""
    count_T = route.branches_per_input()
    width = int(count_T.max()) if len(count_T) else 0
    table = route.branches.new_full((route.num_inputs, width), -1)
    return table.index_put((route.inputs, place(route)), route.branches)


def columns(table_TK: Tensor) -> list[Tensor]:
    """K columns (T, 1); none of a table without any, where torch's own split gives one."""
    return [column.unsqueeze(1) for column in table_TK.unbind(dim=1)]
