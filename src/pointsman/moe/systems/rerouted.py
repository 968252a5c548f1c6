"""Systems that change how a trained model routes: by drawing, by tuning shifts, by tuning routers.

Legend: T tokens, E experts, D width, N samples, B of one batch, P numbers of a routing vector,
K = k neighbours.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.moe.context import Context
from pointsman.moe.convert import routed_layers, softmax_top_k
from pointsman.moe.convert.huggingface import float_softmax
from pointsman.moe.layer import MoE, Routing, Select
from pointsman.moe.routers.base import Router, Scored
from pointsman.moe.routers.common import keeps_tokens, promises, scored_by, step_all
from pointsman.route import Route
from pointsman.select import guarantees, top_k
from pointsman.select.checks import check_k, check_scores
from pointsman.select.noise import gumbel_like
from pointsman.select.weighing import Weigh, weigh_chosen


@guarantees(batch_independent=True, causal=True)
def sampled_top_k(
    scores: Tensor,
    k: int,
    *,
    temperature: float,
    renormalize: bool = True,
    weigh: Weigh | None = None,
    generator: torch.Generator | None = None,
) -> Route:
    """The k experts of largest score plus Gumbel noise, weighted as without noise.

    At temperature 1 it is a draw from the softmax of the scores without putting back, at 0 plain
    `top_k`.

    Guarantee: exactly k experts. Batch independent and causal: with the same seed and the same row
    position, an input draws the same noise.

    Args:
        scores: (T, E) floating point.
        k: experts of each input, 1 to E.
        temperature: of the noise, at least 0.
        renormalize: divide the chosen weights by their sum.
        weigh: see `top_k`.
        generator: of the noise; None means torch's global one.

    Returns:
        A route whose weights have the type of the scores.

    Raises:
        RouteError: NaN or +inf among the scores, or k out of range.
    """
    check_scores(scores)
    check_k(k, scores.shape[1])
    noise_TE = temperature * gumbel_like(scores, generator) if temperature > 0 else 0.0
    best_TK, branches_TK = (scores.detach() + noise_TE).topk(k, dim=1)
    taken_TK = best_TK > -torch.inf
    weights_TK = weigh_chosen(scores, branches_TK, taken_TK, weigh=weigh, renormalize=renormalize)
    return Route.from_indices(
        branches_TK.masked_fill(~taken_TK, -1),
        weights_TK.to(scores.dtype),
        num_branches=scores.shape[1],
    )


@contextmanager
def sampled_routing(
    model: nn.Module,
    temperature: float | Mapping[str, float],
    *,
    generator: torch.Generator | None = None,
) -> Iterator[None]:
    """Meanwhile, the routed layers of a model draw their experts, see `sampled_top_k`.

    Args:
        model: whose layers choose by `top_k`, or were taken from transformers.
        temperature: of all layers, or by the name of the layer; layers left out do not draw.
        generator: of the noise; None means torch's global one.

    Raises:
        InputError: a layer that is not there, or chooses in another way.
    """
    layers = routed_layers(model)
    wanted = dict(temperature) if isinstance(temperature, Mapping) else {}
    if not isinstance(temperature, Mapping):
        wanted = dict.fromkeys(layers, temperature)
    for name in wanted:
        if name not in layers:
            raise InputError(f"no routed layer is named {name!r}: there are {', '.join(layers)}")
    drawing: dict[str, Select] = {
        name: partial(_drawing(name, layers[name].select), temperature=heat, generator=generator)
        for name, heat in wanted.items()
    }
    before = {name: layers[name].select for name in drawing}
    try:
        for name, select in drawing.items():
            layers[name].select = select
        yield
    finally:
        for name, select in before.items():
            layers[name].select = select


@torch.no_grad()
def roster_of_experts(
    model: nn.Module,
    run: Callable[[], Tensor],
    *,
    temperature: float | Mapping[str, float] = 0.3,
    passes: int = 8,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Probabilities averaged over several passes that route at random around the router's choice.

    The first pass draws nothing. No weight is changed.

    Where we depart: the paper draws for the token being written alone, its cache holding the keys
    and values of a pass without noise. With a cache kept by the caller that is what `run` does if
    it reads the cache without adding to it; without one, earlier tokens are drawn anew too.

    Args:
        model: see `sampled_routing`.
        run: calls the model and gives its logits (..., classes).
        temperature: see `sampled_routing`; the paper tunes one for each layer, up to 0.5, and
            leaves the first and last layers alone.
        passes: at least one.
        generator: of the noise; None means torch's global one.

    Returns:
        Probabilities (..., classes).

    Raises:
        InputError: no pass, or see `sampled_routing`.

    Source: Zibakhsh et al. 2025, "MoEs are stronger than you think", arXiv 2509.17238.
    """
    if passes < 1:
        raise InputError(f"a roster has at least one pass, got {passes}")
    total = run().softmax(dim=-1)
    with sampled_routing(model, temperature, generator=generator):
        for _ in range(passes - 1):
            total = total + run().softmax(dim=-1)
    return total / passes


class ShiftedRouter(Router):
    """A router with a vector added to the scores of every token, zero at first.

    Args:
        router: what it is added to.
        like: a tensor (E,) of the type and device of the scores.

    Source: Su et al. 2025, "Rewiring experts on the fly", arXiv 2510.14853.
    """

    def __init__(self, router: nn.Module, like: Tensor) -> None:
        super().__init__()
        self.router, self.shift = router, nn.Parameter(torch.zeros_like(like))
        self.guarantee, self.keeps_tokens = promises(router), keeps_tokens(router)

    def forward(self, x_TD: Tensor, context: Context | None = None) -> Scored:
        """Scores (T, E)."""
        scored = scored_by(self.router, x_TD, context)
        clean = None if scored.clean is None else scored.clean + self.shift
        return scored._replace(scores=scored.scores + self.shift, clean=clean)

    def after_step(self, routings: Sequence[Routing]) -> None:
        """Passed on to the router inside."""
        step_all((self.router,), routings)


class Rerouting:
    """Shifts of a model's routers, tuned on text and forgotten at the end; see `online_rerouting`.

    Attributes:
        shifts: (E,) parameter of each layer, by name.
    """

    def __init__(self, shifts: Mapping[str, nn.Parameter]) -> None:
        self.shifts = dict(shifts)

    def adapt(self, loss: Callable[[], Tensor], *, steps: int = 5, rate: float = 0.1) -> None:
        """Lower a loss in the shifts alone: the next-token loss of the text so far.

        Call it on the prompt, and again every so many tokens. Keys and values cached before are
        those of the earlier shifts: compute them anew, or accept it.

        Args:
            loss: calls the model; nothing but the shifts gets a gradient.
            steps: of Adam.
            rate: of learning.
        """
        shifts = list(self.shifts.values())
        optimiser = torch.optim.Adam(shifts, rate)
        for _ in range(steps):
            with torch.enable_grad():
                grads = torch.autograd.grad(loss(), shifts, allow_unused=True)
            for shift, grad in zip(shifts, grads, strict=True):
                shift.grad = grad
            optimiser.step()
        optimiser.zero_grad()

    def reset(self) -> None:
        """Back to the model's own routing, for the next prompt."""
        for shift in self.shifts.values():
            nn.init.zeros_(shift)


@contextmanager
def online_rerouting(model: nn.Module, names: Iterable[str] | None = None) -> Iterator[Rerouting]:
    """Meanwhile, let a model tune its routing to the text it reads, without labels.

    One vector is added to the router scores of each layer; all weights stay as they are.

    Where we depart: optimiser, rate, steps and interval were not found in what was read of the
    paper, so they are arguments.

    Args:
        model: with routed layers.
        names: of the layers to tune, such as `confident_layers`; None means all.

    Raises:
        InputError: a layer that is not there.

    Source: Su et al. 2025, "Rewiring experts on the fly", arXiv 2510.14853.
    """
    layers = routed_layers(model)
    chosen = list(layers) if names is None else list(names)
    for name in chosen:
        if name not in layers:
            known = ", ".join(layers) or "none"
            raise InputError(f"no routed layer is named {name!r}: there are {known}")
    before = {name: layers[name].router for name in chosen}
    shifted = {name: ShiftedRouter(router, _row(layers[name])) for name, router in before.items()}
    try:
        for name, router in shifted.items():
            layers[name].router = router
        yield Rerouting({name: router.shift for name, router in shifted.items()})
    finally:
        for name, plain in before.items():
            layers[name].router = plain


def confident_layers(routings: Mapping[str, Routing], count: int) -> list[str]:
    """The layers whose routers are surest: largest mean over tokens of the highest probability.

    Args:
        routings: of one call of each layer, by name.
        count: layers.
    """
    sure = {
        name: float(routing.scores.detach().softmax(dim=1).amax(dim=1).mean())
        for name, routing in routings.items()
    }
    return sorted(sure, key=lambda name: -sure[name])[:count]


def routing_vectors(routings: Sequence[Routing]) -> Tensor:
    """(T, P): probabilities of all experts of all layers, side by side, for each token.

    Args:
        routings: one a layer, of the same T tokens.
    """
    return torch.cat([routing.scores.softmax(dim=1) for routing in routings], dim=1)


def successful_neighbours(
    embeddings_ND: Tensor, correct_N: Tensor, *, k: int = 3, width: float | None = None
) -> tuple[Tensor, Tensor]:
    """The nearest samples that the model answers well, and how much each counts.

    Args:
        embeddings_ND: what the task is, from any frozen model.
        correct_N: bool, which samples were answered correctly.
        k: neighbours; a sample is never its own.
        width: of the Gaussian that weighs distances; None means their median.

    Returns:
        Indices (N, K) int64 and weights (N, K) that sum to one.

    Raises:
        InputError: fewer than k + 1 correct samples.
    """
    if int(correct_N.sum()) <= k:
        raise InputError(
            f"{k} neighbours need at least {k + 1} correct samples, got {int(correct_N.sum())}"
        )
    distance_NN = torch.cdist(embeddings_ND, embeddings_ND)
    distance_NN[:, ~correct_N] = torch.inf
    distance_NN.fill_diagonal_(torch.inf)
    near_NK, index_NK = distance_NN.topk(k, dim=1, largest=False)
    scale = near_NK.median() if width is None else torch.as_tensor(width).to(near_NK)
    # The softmax of squared distances: a far sample's neighbours still sum to one.
    weights_NK = (-(near_NK**2) / (2 * scale.clamp_min(1e-12) ** 2)).softmax(dim=1)
    return index_NK, weights_NK


def manifold_loss(vectors_BP: Tensor, targets_BKP: Tensor, weights_BK: Tensor) -> Tensor:
    """Scalar: mean squared distance of routing vectors to those of their neighbours.

    Args:
        vectors_BP: with gradient.
        targets_BKP: of the neighbours.
        weights_BK: how much each counts.
    """
    squared_BK = (vectors_BP[:, None] - targets_BKP).square().sum(dim=2)
    return (weights_BK * squared_BK).sum(dim=1).mean()


def roma(
    routers: Iterable[nn.Parameter],
    run: Callable[[Tensor], tuple[Tensor, Tensor]],
    neighbours: tuple[Tensor, Tensor],
    *,
    weight: float = 1.0,
    updates: int = 200,
    batch: int = 32,
    rate: float = 1e-3,
    generator: torch.Generator | None = None,
) -> None:
    """Tune routers alone, so that samples of alike tasks are routed like those that go well.

    Where we depart: whether the neighbours' routing moves along is not stated; here it is that of
    the model before tuning. The width of the Gaussian, the weight and the rate were not found.

    Args:
        routers: parameters to tune; the paper takes the routers of the last five layers.
        run: samples (B,) int64 → the loss of their answers, a scalar, and their routing vectors
            (B, P), such as those of the last token, see `routing_vectors`.
        neighbours: see `successful_neighbours`.
        weight: of `manifold_loss`.
        updates: of Adam.
        batch: samples an update.
        rate: of learning.
        generator: of the samples; None means torch's global one.

    Source: Li et al. 2025, "Routing manifold alignment", arXiv 2511.07419.
    """
    index_NK, weights_NK = neighbours
    with torch.no_grad():
        _, stored_NP = run(torch.arange(len(index_NK), device=index_NK.device))
    tuned = list(routers)
    optimiser = torch.optim.Adam(tuned, rate)
    for _ in range(updates):
        rows_B = torch.randint(len(index_NK), (batch,), generator=generator).to(index_NK.device)
        loss, vectors_BP = run(rows_B)
        near = manifold_loss(vectors_BP, stored_NP[index_NK[rows_B]], weights_NK[rows_B])
        grads = torch.autograd.grad(loss + weight * near, tuned, allow_unused=True)
        for parameter, grad in zip(tuned, grads, strict=True):
            parameter.grad = grad
        optimiser.step()
    optimiser.zero_grad()


def _drawing(name: str, select: Select) -> Callable[..., Route]:
    """`sampled_top_k` with the arguments of a layer's own selection."""
    function: Any = select
    bound: dict[str, Any] = {}
    while isinstance(function, partial) and not function.args:
        bound = {**function.keywords, **bound}
        function = function.func
    if function is softmax_top_k:
        return partial(sampled_top_k, **{"weigh": float_softmax, **bound})
    if function is top_k and not {"bias", "noise", "generator"} & set(bound):
        return partial(sampled_top_k, **bound)
    raise InputError(
        f"{name} chooses by {getattr(function, '__name__', type(function).__name__)}: drawing "
        "around a choice is there for top_k without bias and noise"
    )


def _row(layer: MoE) -> Tensor:
    """(E,) in the type and on the device of a layer's scores."""
    first = next((w for w in layer.router.parameters()), next(layer.parameters()))
    count: Any = layer.experts.num_experts
    return first.new_zeros(count, dtype=layer.router_dtype or first.dtype)
