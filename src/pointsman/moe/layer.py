"""The routed layer: decide (router, select), move (route), compute (experts), account (losses).

Legend: T tokens without padding, E experts, D width, N routed rows in branch order.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from pointsman.errors import DegenerateWarning, InputError
from pointsman.moe.context import Context
from pointsman.moe.routers.base import Router, Scored
from pointsman.moe.routers.common import keeps_tokens, promises, scored_by, step_all
from pointsman.route import Route
from pointsman.select import Guarantee, guarantee_of

Select = Callable[[Tensor], Route]  # scores (T, E) -> Route
Estimator = Callable[[Tensor, Route], Route]  # scores (T, E), Route -> the same pairs, reweighted
Balance = Callable[["Routing", "MoE"], Tensor]  # -> a scalar


@dataclass(frozen=True, eq=False)
class Routing:
    """What one call of a routed layer decided, for losses and for inspection.

    Tokens of a padding mask are not among the T: they took no expert and count nowhere.

    Attributes:
        scores: (T, E), what was selected from.
        route: who went where.
        clean: (T, E), the scores before noise; the scores themselves where there is none.
        spread: (T, E), the standard deviation of the noise; None where there is none.
        state: (..., P) in the leading shape of the input, for the router of the next routed layer.
        kept: (T,), places of the T among the flattened tokens; None where there is no padding.
        num_tokens: of the call, padding included.
        tokens: (T, D) without gradient, where the router learns from them after the step.
        losses: balancing terms of this layer by name, not weighted; a second term of one name is
            "name 2".
        weights: their weights.
    """

    scores: Tensor
    route: Route
    clean: Tensor
    spread: Tensor | None = None
    state: Tensor | None = None
    kept: Tensor | None = None
    num_tokens: int = 0
    tokens: Tensor | None = None
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> Tensor:
        """Scalar: the weighted sum of this layer's balancing terms, 0 without any."""
        terms = [self.weights[name] * loss for name, loss in self.losses.items()]
        return torch.stack(terms).sum() if terms else self.scores.new_zeros(())

    def dropped(self) -> Tensor:
        """Places, among the flattened tokens, of real tokens that no expert took."""
        places = self.route.dropped().nonzero().squeeze(1)
        return places if self.kept is None else self.kept[places]


class MoE(nn.Module):
    """Mixture of experts: every token runs only the experts that its route names.

    Padding is left out before anything is decided: it takes no expert, no capacity, no part in a
    loss or a count and no FLOPs, whatever the parts are, and its output is zero.

    Under `torch.compile` the graph breaks once, around selection, dispatch and experts, as who goes
    where hangs on values. The router and what surrounds the layer are compiled.

    Args:
        router: (T, D) → scores (T, E); a `Router` is also given the `Context`.
        select: scores → `Route`, such as `partial(top_k, k=2)`.
        experts: rows sorted by expert (N, D) and offsets (E + 1,) → rows (N, D'). A bank that has a
            quicker way for some routes offers `on_route`: tokens (T, D) and route → (T, D').
        shared: (T, D) → (T, D'), run on every token and added; a frozen base layer, for example.
        balance: (weight, term) pairs; a term is called with the `Routing` and this layer, and what
            it gives is returned with the routing, of this layer alone.
        estimator: reweights the pairs of the route so that gradients reach the router, see `learn`.
        causal: refuse a router or selection in which a token's expert hangs on later tokens.
        router_dtype: what the router is given and computes in, which its own weights must be in;
            None means the type of the tokens. Weights come back in the type of the tokens.
        input_dims: trailing dimensions that make up one token: 1 for features, 3 for images.
        max_dropped: share of the tokens that may go without an expert before a warning. At 1, the
            default, only a call that drops everything warns, which costs nothing to see.

    Raises:
        InputError: `causal`, and the parts are not.

    Source: Shazeer et al. 2017, arXiv 1701.06538.
    """

    def __init__(
        self,
        router: nn.Module,
        select: Select,
        experts: nn.Module,
        *,
        shared: nn.Module | None = None,
        balance: Iterable[tuple[float, Balance]] = (),
        estimator: Estimator | None = None,
        causal: bool = False,
        router_dtype: torch.dtype | None = None,
        input_dims: int = 1,
        max_dropped: float = 1.0,
    ) -> None:
        super().__init__()
        self.router, self.select, self.experts = router, select, experts
        self.shared, self.estimator = shared, estimator
        self.balance: tuple[tuple[float, Balance], ...] = tuple(balance)
        # Terms with weights or counters of their own are saved with the layer.
        self.balance_terms = nn.ModuleList(t for _, t in self.balance if isinstance(t, nn.Module))
        self.causal, self.router_dtype, self.input_dims = causal, router_dtype, input_dims
        self.max_dropped = max_dropped
        if causal and not self.guarantee.causal:
            raise InputError(
                "a causal layer may not route a token by later ones, "
                f"{_name(router)} with {_name(select)} can: choose other parts, or causal=False"
            )
        self._warn_if_the_router_cannot_learn()

    @property
    def guarantee(self) -> Guarantee:
        """What one token's experts may depend on beside that token."""
        selected = guarantee_of(self.select)
        scored = promises(self.router)
        return Guarantee(
            selected.batch_independent and scored.batch_independent,
            selected.causal and scored.causal,
        )

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        context: Context | None = None,
        select: Select | None = None,
    ) -> tuple[Tensor, Routing]:
        """Output in the leading shape of x (..., D'), and the routing of its flattened tokens.

        Args:
            x: tokens (..., D); all dimensions before those of one token are flattened for routing.
            mask: (...) bool, True where there is a token and False where there is padding.
            context: what else the router may read.
            select: another selection for this call, such as fewer experts a token.

        Raises:
            InputError: a mask or context of another shape, or experts of another type or device.
            RouteError: scores that cannot be routed.
        """
        shape, inner = self._split(x)
        flat = x.reshape(shape.numel(), *inner)
        kept = None if mask is None else _kept(mask, shape)
        x_TD = flat if kept is None else flat.index_select(0, kept)
        about = Context()
        if context is not None or isinstance(self.router, Router):
            about = (context or about).of_tokens(shape, kept, x.device)
        scored = self._score(x_TD, about)
        send = self._send
        if torch.compiler.is_compiling():
            from pointsman.moe._uncompiled import uncompiled

            send = partial(uncompiled, self._send)
        route, y_TD = send(x_TD, scored.scores, select or self.select)
        self._warn_if_dropped(route, select or self.select)
        if self.shared is not None:
            y_TD = y_TD + self.shared(x_TD)
        routing = Routing(
            scored.scores,
            route,
            scored.scores if scored.clean is None else scored.clean,
            scored.spread,
            None if scored.state is None else _spread(scored.state, kept, shape),
            kept,
            shape.numel(),
            x_TD.detach() if keeps_tokens(self.router) else None,
        )
        return _spread(y_TD, kept, shape), self._account(routing)

    def after_step(self, routings: Sequence[Routing]) -> None:
        """What is learned outside of autograd: selection biases, centroids, adaptive weights.

        Call it after the optimiser's step with every routing of that step, of all micro-batches.
        It reads what the calls returned, so that recomputed activations are not counted again.
        """
        step_all((self.router, self.select, *(term for _, term in self.balance)), routings)

    def _split(self, x: Tensor) -> tuple[torch.Size, torch.Size]:
        cut = x.ndim - self.input_dims
        if cut < 0:
            raise InputError(
                f"a token has {self.input_dims} dimensions here, got an input of {tuple(x.shape)}"
            )
        return x.shape[:cut], x.shape[cut:]

    def _score(self, x_TD: Tensor, context: Context) -> Scored:
        dtype = self.router_dtype
        features = x_TD if dtype is None else x_TD.to(dtype)
        try:
            return scored_by(self.router, features, context)
        except RuntimeError:
            _require_like(self.router, features)
            raise

    def _send(self, x_TD: Tensor, scores_TE: Tensor, select: Select) -> tuple[Route, Tensor]:
        """The route, and what the experts make of the tokens."""
        route = select(scores_TE)
        if self.estimator is not None:
            route = self.estimator(scores_TE, route)
        whole = getattr(self.experts, "on_route", None)
        if whole is not None and route.weights.dtype == x_TD.dtype:
            return route, whole(x_TD, route)
        rows = self.experts(route.dispatch(x_TD), route.by_branch().offsets)
        if route.weights.dtype != rows.dtype and (
            self.router_dtype is not None or torch.is_autocast_enabled(x_TD.device.type)
        ):
            return route, route.weighted(route.weights.to(rows.dtype)).combine(rows)
        return route, route.combine(rows)

    def _account(self, routing: Routing) -> Routing:
        if not self.balance:
            return routing
        losses: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        for weight, term in self.balance:
            name, repeat = _name(term), 2
            while name in losses:
                name, repeat = f"{_name(term)} {repeat}", repeat + 1
            losses[name], weights[name] = term(routing, self), weight
        return replace(routing, losses=losses, weights=weights)

    def _warn_if_dropped(self, route: Route, select: Select) -> None:
        tokens, share = route.num_inputs, 1.0
        if len(route) > 0:
            if self.max_dropped >= 1:
                return
            share = int(route.dropped().sum()) / tokens
        if tokens > 0 and (share > self.max_dropped or share == 1):
            warnings.warn(
                f"{share:.0%} of {tokens} tokens were taken by no expert of {_name(select)}: "
                "raise its capacity, or look at its scores",
                DegenerateWarning,
                stacklevel=3,
            )

    def _warn_if_the_router_cannot_learn(self) -> None:
        """Some set-ups give the router a gradient of zero, such as k = 1 made to sum to one."""
        if not any(weight.requires_grad for weight in self.router.parameters()):
            return
        if router_can_learn(self.select, self.estimator, getattr(self.experts, "num_experts", 4)):
            return
        if not self.balance:
            warnings.warn(
                f"the router gets no gradient: {_name(self.select)} gives weights that do not "
                "depend on the scores. With k = 1 use renormalize=False, or give an estimator",
                DegenerateWarning,
                stacklevel=3,
            )


def router_can_learn(select: Select, estimator: Estimator | None, num_experts: int) -> bool:
    """Whether a gradient passes from the weights of a route to the scores, on a small example.

    True also where the example does not suit the selection, as nothing is known then.
    """
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(8, max(num_experts, 1), generator=generator, dtype=torch.float64)
    scores.requires_grad_()
    own = _generator(select)
    state = None if own is None else own.get_state()
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            route = select(scores)
            route = route if estimator is None else estimator(scores, route)
            weights = route.weights
            if num_experts < 2 or len(weights) == 0:
                return True
            if not weights.requires_grad:
                return False
            probe = torch.randn(weights.shape, generator=generator, dtype=weights.dtype)
            (grad,) = torch.autograd.grad((weights * probe).sum(), scores, allow_unused=True)
    except (RuntimeError, ValueError, IndexError):
        return True
    finally:
        if own is not None and state is not None:
            own.set_state(state)  # the caller's draws are the caller's
    return grad is not None and bool(grad.abs().max() > 1e-9)


def _generator(select: Select) -> torch.Generator | None:
    """The random generator bound to a selection by `functools.partial`, if any."""
    while isinstance(select, partial):
        found = select.keywords.get("generator")
        if isinstance(found, torch.Generator):
            return found
        select = select.func
    return None


def _require_like(router: nn.Module, x_TD: Tensor) -> None:
    """After a failure: whether the router's weights do not fit the tokens.

    Raises:
        InputError: they are of another type or on another device, or a linear router takes another
            width.
    """
    for weight in router.parameters():
        if (weight.dtype, weight.device) != (x_TD.dtype, x_TD.device):
            raise InputError(
                f"the router is {weight.dtype} on {weight.device}, the tokens {x_TD.dtype} on "
                f"{x_TD.device}: use .to() on one of them, or router_dtype"
            )
    if isinstance(router, nn.Linear) and x_TD.shape[1:] != (router.in_features,):
        raise InputError(
            f"the router takes tokens of width {router.in_features}, got {tuple(x_TD.shape[1:])}"
        )


def _kept(mask: Tensor, shape: torch.Size) -> Tensor:
    if mask.dtype != torch.bool or mask.shape != shape:
        raise InputError(
            f"the mask must be bool with the shape of the tokens, {tuple(shape)}, "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    return mask.reshape(-1).nonzero().squeeze(1)


def _spread(rows: Tensor, kept: Tensor | None, shape: torch.Size) -> Tensor:
    """Rows of the kept tokens in the shape of the input, zeros elsewhere."""
    inner = rows.shape[1:]
    if kept is not None:
        rows = rows.new_zeros(shape.numel(), *inner).index_copy(0, kept, rows)
    return rows.reshape(*shape, *inner)


def _name(part: object) -> str:
    while hasattr(part, "func"):  # functools.partial
        part = part.func
    name: str = getattr(part, "__name__", type(part).__name__)
    return name
