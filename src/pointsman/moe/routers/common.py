"""What several routers share: calling one inside another, checks of ids, directions, a grid.

Legend: T tokens, D width, E experts, n sequences, S places of a sequence.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.moe.context import Context
from pointsman.moe.routers.base import Router, Scored
from pointsman.select import Guarantee

if TYPE_CHECKING:
    from pointsman.moe.layer import Routing


def scored_by(router: nn.Module, x_TD: Tensor, context: Context | None) -> Scored:
    """What a router says, whatever its kind: a `Router` is given the context, others features."""
    given = (context or Context(),) if isinstance(router, Router) else ()
    scored = router(x_TD, *given)
    return scored if isinstance(scored, Scored) else Scored(scored)


def promises(*routers: nn.Module) -> Guarantee:
    """What holds for scores made of the scores of all these routers."""
    each = [router.guarantee for router in routers if isinstance(router, Router)]
    return Guarantee(all(g.batch_independent for g in each), all(g.causal for g in each))


def keeps_tokens(*routers: nn.Module) -> bool:
    """Whether one of them learns from tokens after the step."""
    return any(isinstance(router, Router) and router.keeps_tokens for router in routers)


def step_all(parts: Sequence[object], routings: "Sequence[Routing]") -> None:
    """`after_step` of those that have it."""
    for part in parts:
        step = getattr(part, "after_step", None)
        if step is not None:
            step(routings)


def map_scores(scored: Scored, change: Callable[[Tensor], Tensor]) -> Scored:
    """The same change of the scores and of the scores before noise; the spread is left out."""
    clean = None if scored.clean is None else change(scored.clean)
    return Scored(change(scored.scores), clean, None, scored.state)


def log_softmax(scores: Tensor) -> Tensor:
    """Along the last dimension; where all are -inf, they stay so, with a gradient of zero."""
    closed = (scores == -torch.inf).all(dim=-1, keepdim=True)
    return scores.masked_fill(closed, 0.0).log_softmax(dim=-1).masked_fill(closed, -torch.inf)


def unit(x: Tensor) -> Tensor:
    """Rows of length one along the last dimension, in the type of x; a row of zeros stays zero.

    Computed in float32 or better, since squares overflow in half precision early. The gradient at
    zero is the identity instead of infinite.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    square = wide.square().sum(dim=-1, keepdim=True)
    return (wide / torch.where(square > 0, square, 1.0).sqrt()).to(x.dtype)


def check_sizes(reader: str, **sizes: int) -> None:
    """Every size must be a whole number of at least one.

    Raises:
        InputError: the first that is not.
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise InputError(f"{reader} needs {name} of at least 1, got {size!r}")


def check_ids(ids_T: Tensor, count: int, name: str, reader: str) -> None:
    """Ids must be one integer a token; on a CPU their values are looked at too.

    Raises:
        InputError: another shape or type, or an id outside 0..count - 1.
    """
    kind: Any = ids_T.dtype
    if ids_T.ndim != 1 or kind.is_floating_point or kind.is_complex or kind == torch.bool:
        raise InputError(
            f"{reader} reads one integer `{name}` of each token, "
            f"got {kind} of shape {tuple(ids_T.shape)} for the flattened tokens"
        )
    if ids_T.device.type == "cpu" and len(ids_T):
        low, high = (int(bound) for bound in ids_T.aminmax())
        if low < 0 or high >= count:
            raise InputError(
                f"{reader} knows `{name}` from 0 to {count - 1}, got {low if low < 0 else high}"
            )


class Grid:
    """Tokens laid out by sequence and place, (n, S, ...), and back; places of padding are empty.

    Args:
        context: with sequence and position filled in, as the layer does.
        reader: named in errors.

    Raises:
        InputError: the context has neither.
    """

    def __init__(self, context: Context, reader: str) -> None:
        self.sequence_T, self.position_T = context.require("sequence", "position", reader=reader)
        empty = len(self.sequence_T) == 0
        self.shape = tuple(
            0 if empty else int(at_T.max()) + 1 for at_T in (self.sequence_T, self.position_T)
        )

    def lay_out(self, rows: Tensor) -> Tensor:
        """(T, ...) to (n, S, ...), zeros where there is no token."""
        grid = rows.new_zeros(*self.shape, *rows.shape[1:])
        return grid.index_put((self.sequence_T, self.position_T), rows)

    def take(self, grid: Tensor) -> Tensor:
        """(n, S, ...) to (T, ...)."""
        return grid[self.sequence_T, self.position_T]

    def filled(self) -> Tensor:
        """(n, S) bool: where there is a token."""
        there = torch.zeros(self.shape, dtype=torch.bool, device=self.sequence_T.device)
        return there.index_put(
            (self.sequence_T, self.position_T), torch.ones_like(self.sequence_T, dtype=torch.bool)
        )
