"""Selection by sparse optimal transport. Legend: T inputs, E branches, K places of a branch."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointsman.errors import RouteError
from pointsman.route import Route
from pointsman.select.checks import check_count, check_positive, check_scores
from pointsman.select.guarantee import guarantees

Vector = np.ndarray[Any, np.dtype[np.float64]]
EVALUATIONS = 150  # of the semi-dual at most


@guarantees(batch_independent=False, causal=False)
def sparse_transport(scores: Tensor, capacity: int, gamma: float = 0.1) -> Route:
    """The plan of best total score in which no branch takes more than `capacity` inputs.

    Guarantee: at most `capacity` inputs a branch, and the weights of each branch that has an
    eligible input sum to T / E (T counting inputs with an eligible branch). The weights of each
    input sum to one as nearly as the plan can be found: exactly where the capacity is T, with a gap
    where the limit bites. Neither batch independent nor causal.

    The plan P maximises <scores, P> - gamma / 2 ||P||², its rows summing to one, its columns to
    T / E with at most `capacity` entries each (Liu et al. 2022, "Sparsity-constrained optimal
    transport", arXiv 2209.15466). It is found through the semi-dual: prices of the inputs by
    L-BFGS, in float64 on the CPU, then the best column of each branch at these prices in closed
    form: the dearest inputs, as many as fit, projected on a simplex. The limit makes the problem
    non-convex, hence the gap.

    Gradients flow to the scores with the prices held fixed: raising a score moves weight inside the
    column of its branch.

    Args:
        scores: (T, E) floating point; -inf is never chosen.
        capacity: inputs that a branch may take, at least 1 and at least T / E. With T it is
            quadratically regularised transport; the smaller it and gamma are, the nearer the plan
            is to an assignment.
        gamma: strength of the regularisation, in the unit of the scores, above 0. (The paper's,
            whose plan sums to one in all, is T times as large.)

    Returns:
        A route whose weights are the plan, in the type of the scores; branches in ascending order.

    Raises:
        RouteError: NaN or +inf among the scores (looked for on a CPU only), a capacity below 1
            or below T / E, or a gamma that is not above 0.
    """
    check_scores(scores)
    check_count(capacity, "capacity", 1)
    check_positive(gamma, "gamma")
    num_inputs, num_branches = scores.shape
    if capacity * num_branches < num_inputs:
        raise RouteError(
            f"every input must find a place: {num_inputs} inputs and {num_branches} branches need "
            f"a capacity of at least {-(-num_inputs // max(num_branches, 1))}, got {capacity}"
        )
    eligible_T = (scores.detach() > -torch.inf).any(dim=1)
    table = scores[eligible_T].to(torch.float64)
    prices = torch.as_tensor(_prices(table.detach().cpu(), capacity, gamma), device=scores.device)
    plan = _columns(table + prices.unsqueeze(1), capacity, gamma)
    plan_TE = scores.new_zeros(scores.shape).index_put((eligible_T,), plan.to(scores.dtype))
    return Route.from_dense(plan_TE)


def _prices(table: Tensor, capacity: int, gamma: float) -> Vector:
    """(T,) prices that maximise the semi-dual; what each input may add to its scores."""
    from scipy.optimize import minimize  # slow to import, and seldom needed

    def negative_semi_dual(prices: Vector) -> tuple[float, Vector]:
        raised = table + torch.as_tensor(prices).unsqueeze(1)
        plan = _columns(raised, capacity, gamma)
        value = (raised.nan_to_num(neginf=0.0) * plan).sum() - gamma / 2 * plan.square().sum()
        return float(value - prices.sum()), plan.sum(dim=1).numpy() - 1.0

    if len(table) == 0:
        return np.zeros(0)
    found = minimize(
        negative_semi_dual,
        np.zeros(len(table)),
        jac=True,
        method="L-BFGS-B",
        options={"maxfun": EVALUATIONS, "maxls": 10, "ftol": 1e-12, "gtol": 1e-7},
    )
    prices: Vector = found.x
    return prices


def _columns(raised_TE: Tensor, capacity: int, gamma: float) -> Tensor:
    """(T, E) the best column of each branch: its dearest inputs, projected on the simplex.

    A column maximises <raised, p> - gamma / 2 ||p||² among p >= 0 with sum T / E and
    at most `capacity` entries.
    """
    num_inputs, num_branches = raised_TE.shape
    mass = num_inputs / max(num_branches, 1)
    best_KE, inputs_KE = (raised_TE / gamma).topk(min(capacity, num_inputs), dim=0)
    eligible_KE = best_KE > -torch.inf
    best_KE = best_KE.masked_fill(~eligible_KE, 0.0)
    # Sorted, an entry is in the support if it exceeds what would be taken off all before it.
    rank_K1 = torch.arange(1, len(best_KE) + 1, device=raised_TE.device).unsqueeze(1)
    over_KE = (best_KE.cumsum(dim=0) - mass) / rank_K1
    inside_KE = (best_KE > over_KE) & eligible_KE
    last_1E = (inside_KE * rank_K1).argmax(dim=0, keepdim=True) if len(best_KE) else rank_K1
    taken_KE = over_KE.gather(0, last_1E) if len(best_KE) else over_KE
    entries_KE = (best_KE - taken_KE).clamp(min=0).masked_fill(~inside_KE, 0.0)
    return torch.zeros_like(raised_TE).scatter(0, inputs_KE, entries_KE)
