"""Systems that route a token several times: rounds over one pool, and paths through modules.

Legend: T tokens, n sequences, S places of a sequence, D width, E experts or modules of the pool,
N routed rows.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.moe.balance import switch
from pointsman.moe.context import Context
from pointsman.moe.experts import FeedForwardExperts
from pointsman.moe.layer import MoE, Routing
from pointsman.route import Route
from pointsman.select import Guarantee, top_k


class Rounds(nn.Module):
    """Routed layers one after the other, each added to what it was given: x ← x + layer(x).

    Layers may share parts, such as one bank of experts; a state dict then names the shared weights
    once for each layer that holds them.

    Args:
        layers: in their order; tokens keep their width.
        residual: answer x_last; without it x_last - x_0, for a block that adds its input itself.
    """

    def __init__(self, layers: Sequence[MoE], *, residual: bool = False) -> None:
        super().__init__()
        self.layers, self.residual = nn.ModuleList(layers), residual

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, context: Context | None = None
    ) -> tuple[Tensor, list[Routing]]:
        """(..., D) → (..., D), and the routing of each round; see `MoE.forward`."""
        moved, routings = x, []
        for layer in self.layers:
            y, routing = layer(moved, mask=mask, context=context)
            moved = moved + y
            routings.append(routing)
        return moved if self.residual else moved - x, routings

    def after_step(self, routings: Sequence[Routing]) -> None:
        """Hand each layer the routings of its own; they come in the order of `forward`."""
        step = len(self.layers)
        for at, layer in enumerate(self.layers):
            assert isinstance(layer, MoE)
            layer.after_step(routings[at::step])


def chain_of_experts(
    width: int,
    hidden: int,
    num_experts: int,
    k: int = 8,
    *,
    rounds: int = 2,
    shared: nn.Module | None = None,
    balance: float = 0.0,
) -> Rounds:
    """Several rounds over one pool of experts, with a router each, so that experts build on others.

    A token makes k calls in all, k / rounds in each round; the weights are those of one layer and
    of the further routers. With one round this is an ordinary layer.

    Where we depart: what the paper does with the block's own residual was not found; the answer
    here is x_last - x_0, to be added once by the block.

    Args:
        width: D.
        hidden: of an expert.
        num_experts: E, of the one pool.
        k: calls of a token over all rounds; rounds must divide it.
        rounds: the paper's main setting is 2.
        shared: runs on every token in every round.
        balance: weight of the switch loss of each round.

    Raises:
        InputError: rounds that do not divide k.

    Source: Wang et al. 2025, "Chain-of-Experts: unlocking the communication power of
    mixture-of-experts models", arXiv 2506.18945.
    """
    if rounds < 1 or k % rounds:
        raise InputError(f"the k calls are split evenly over rounds, got {k} over {rounds}")
    pool = FeedForwardExperts(num_experts, width, hidden, activation="silu", gated=True)
    select = partial(top_k, k=k // rounds, renormalize=False)

    def made() -> MoE:
        router, terms = nn.Linear(width, num_experts, bias=False), [(balance, switch)]
        return MoE(router, select, pool, shared=shared, balance=terms if balance else ())

    return Rounds([made() for _ in range(rounds)])


class SkipControl(nn.Module):
    """Top-k in which a bias on the skip experts, for choosing only, holds their share at a target.

    After a step the bias moves by `rate` towards the target. The sign rule oscillates within about
    one step of the rate once it is there.

    Args:
        num_experts: E, the skip experts are the last of them.
        k: experts a token.
        skips: number of skip experts.
        target: share of all slots (k of each token) that go to them.
        rate: of the bias.

    Attributes:
        bias: scalar, of the skip experts.

    Raises:
        InputError: a target that no choice of k experts can reach.
    """

    guarantee = Guarantee(batch_independent=True, causal=True)
    bias: Tensor

    def __init__(
        self, num_experts: int, k: int, *, skips: int = 1, target: float = 0.3, rate: float = 1e-2
    ) -> None:
        super().__init__()
        work = num_experts - skips
        if not 1 <= skips < num_experts or not 1 <= k <= num_experts:
            raise InputError(
                f"of E experts 1 to E - 1 skip and 1 to E are chosen, got {skips} skips and "
                f"k = {k} of {num_experts}"
            )
        least, most = max(0, k - work) / k, min(skips, k) / k
        if not least <= target <= most:
            raise InputError(
                f"with k = {k} and {skips} of {num_experts} experts that skip, between {least:g} "
                f"and {most:g} of the slots can be skipped, got a target of {target!r}"
            )
        self.num_experts, self.k, self.skips = num_experts, k, skips
        self.target, self.rate = target, rate
        self.register_buffer("bias", torch.zeros((), dtype=torch.float32))

    def forward(self, scores: Tensor) -> Route:
        """Scores (T, E) to a route of k experts a token, weighed by softmax without the bias."""
        bias_E = scores.new_zeros(self.num_experts)
        bias_E[-self.skips :] = self.bias.to(scores.dtype)
        return top_k(scores, self.k, renormalize=False, bias=bias_E)

    @torch.no_grad()
    def after_step(self, routings: Sequence[Routing]) -> None:
        """Move the bias once, by the share skipped in all these routings together."""
        slots = sum(len(routing.route) for routing in routings)
        skipped = sum(int(routing.route.load()[-self.skips :].sum()) for routing in routings)
        self.bias += self.rate * torch.sign(torch.tensor(self.target * slots - skipped))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Keep the bias in float32 where the module is cast to a half type, which loses steps."""
        before = self.bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.bias.dtype.itemsize < before.dtype.itemsize:
            self.bias = before.to(self.bias.device)
        return self


class RoutedAttention(nn.Module):
    """Causal attention among the tokens of one sequence that chose this module, and no others.

    Args:
        width: D.
        heads: must divide D.
    """

    reads_places = True

    def __init__(self, width: int, heads: int = 1) -> None:
        super().__init__()
        if width % heads:
            raise InputError(f"heads must divide the width, got {heads} for {width}")
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, rows_ND: Tensor, sequence_N: Tensor, position_N: Tensor) -> Tensor:
        """What attention adds to each row, (N, D).

        The mask is over all rows at once, which is quadratic in N across sequences too.
        """
        query, key, value = (
            part.unflatten(1, (self.heads, -1)).transpose(0, 1)
            for part in self.mix(self.norm(rows_ND)).chunk(3, dim=1)
        )
        seen_NN = (sequence_N[:, None] == sequence_N) & (position_N[:, None] >= position_N)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen_NN)
        answer: Tensor = self.out(mixed.transpose(0, 1).flatten(1))
        return answer


class DistributedNetwork(nn.Module):
    """Steps over one pool of modules: at each, a token is moved by the modules it chooses.

    h ← h + sum over chosen i of rho_i f_i(h), with rho the softmax of the step's router. The paper
    writes M_i(h) - h, where M_i has its own residual connection; modules here are the f_i alone, so
    that an identity is f = 0, and choosing it costs nothing.

    Args:
        width: D.
        pool: modules from rows (N, D) to rows; one with `reads_places`, such as `RoutedAttention`,
            is also given the sequence and position of each row.
        steps: routers; each chooses from the same pool.
        k: modules a token and step, skips among them.
        skips: identity modules, the last of the E.
        target: share of slots that are to be skipped, see `SkipControl`; None leaves it free.
        rate: of that control.

    Attributes:
        num_experts: E, modules of the pool and skips.
    """

    def __init__(
        self,
        width: int,
        pool: Sequence[nn.Module],
        steps: int,
        k: int = 2,
        *,
        skips: int = 1,
        target: float | None = None,
        rate: float = 1e-2,
    ) -> None:
        super().__init__()
        self.pool, self.num_experts = nn.ModuleList(pool), len(pool) + skips
        self.routers = nn.ModuleList(nn.Linear(width, self.num_experts) for _ in range(steps))
        self.select: list[Callable[[Tensor], Route]] = [
            partial(top_k, k=k, renormalize=False)
            if target is None
            else SkipControl(self.num_experts, k, skips=skips, target=target, rate=rate)
            for _ in range(steps)
        ]
        # Their biases are saved with the network.
        self.controls = nn.ModuleList(c for c in self.select if isinstance(c, nn.Module))

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, list[Routing]]:
        """(..., S, D) → the same shape, and the routing of each step; padding comes out as zero."""
        shape, flat = x.shape[:-1], x.reshape(-1, x.shape[-1])
        kept = None if mask is None else mask.reshape(-1).nonzero().squeeze(1)
        h_TD = flat if kept is None else flat.index_select(0, kept)
        places = Context().of_tokens(shape, kept, x.device)
        routings = []
        for router, select in zip(self.routers, self.select, strict=True):
            scores_TE = router(h_TD)
            route = select(scores_TE)
            h_TD = h_TD + route.combine(self._run(route.dispatch(h_TD), route, places))
            routings.append(Routing(scores_TE, route, scores_TE, None, None, kept, shape.numel()))
        if kept is not None:
            h_TD = torch.zeros_like(flat).index_copy(0, kept, h_TD)
        return h_TD.reshape(x.shape), routings

    def after_step(self, routings: Sequence[Routing]) -> None:
        """Move the skip controls; routings come in the order of `forward`, of several calls too."""
        for at, control in enumerate(self.select):
            if isinstance(control, SkipControl):
                control.after_step(routings[at :: len(self.select)])

    def _run(self, rows_ND: Tensor, route: Route, places: Context) -> Tensor:
        order, answers = route.by_branch(), []
        assert places.sequence is not None
        assert places.position is not None
        bounds = order.offsets.tolist()
        for at, module in enumerate(self.pool):
            begin, end = bounds[at], bounds[at + 1]
            if begin == end:
                continue
            own = order.inputs[begin:end]
            if getattr(module, "reads_places", False):
                answers.append(
                    module(rows_ND[begin:end], places.sequence[own], places.position[own])
                )
            else:
                answers.append(module(rows_ND[begin:end]))
        answers.append(torch.zeros_like(rows_ND[bounds[len(self.pool)] :]))  # the skips
        return torch.cat(answers)


def distributed_architecture(
    width: int,
    hidden: int,
    *,
    attentions: int = 4,
    feed_forwards: int = 4,
    skips: int = 1,
    steps: int = 8,
    k: int = 2,
    target: float | None = None,
    rate: float = 1e-2,
) -> DistributedNetwork:
    """A pool of attention, feed-forward and identity modules that every token walks as it likes.

    Where we depart: modules are written without their own residual connection, which changes
    nothing; the paper's few dense layers before the pool are the caller's; its update of the skip
    bias is read as one on counts of tokens; weights are not renormalised.

    Args:
        width: D.
        hidden: of a feed-forward.
        attentions: modules with causal attention among the tokens that chose them.
        feed_forwards: modules x → down(gelu(up(norm(x)))).
        skips: identity modules.
        steps: routing steps.
        k: modules a token and step.
        target: share of slots to skip; None leaves it to the routers. The paper's example is 0.3.
        rate: of the control of skips.

    Source: Cowsik et al. 2025, "Towards distributed neural architectures", arXiv 2506.22389.
    """

    def feed_forward() -> nn.Module:
        up, down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        return nn.Sequential(nn.LayerNorm(width), up, nn.GELU(), down)

    pool: list[nn.Module] = [RoutedAttention(width) for _ in range(attentions)]
    pool += [feed_forward() for _ in range(feed_forwards)]
    return DistributedNetwork(width, pool, steps, k, skips=skips, target=target, rate=rate)
