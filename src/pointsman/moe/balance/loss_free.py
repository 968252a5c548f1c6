"""Balance without a loss: a bias for choosing, moved after each step by what the experts received.

Legend: T tokens, E experts.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.moe.balance.common import over_processes
from pointsman.route import Route
from pointsman.select import Guarantee, top_k
from pointsman.select.weighing import Weigh, weigh_all

if TYPE_CHECKING:
    from pointsman.moe.layer import Routing


class BiasedTopK(nn.Module):
    """The k experts of largest weight plus bias; the weights themselves have no bias.

    After a step, `after_step` raises the bias of experts that got less than the mean and lowers
    that of the others, by `rate`. The bias hangs on past batches only, so the selection stays batch
    independent and causal (Wang et al. 2024, "Auxiliary-loss-free load balancing strategy for
    mixture-of-experts", arXiv 2408.15664).

    The bias is kept in float32 or better when the module is cast to a half type, where a step of
    0.001 would be lost. Where torch.distributed has been started, loads are summed over all
    processes, so that every copy of the layer keeps the same bias.

    Args:
        num_experts: E.
        k: experts of each token, 1 to E.
        rate: what a bias moves in a step, at least 0.
        weigh: scores (T, E) to the weights that the bias is added to; the sigmoid is the paper's.
            None means softmax over experts, which needs a much smaller rate.
        renormalize: divide the chosen weights by their sum, as DeepSeek-V3 does.

    Raises:
        InputError: k out of range, or a rate below 0.
    """

    guarantee = Guarantee(batch_independent=True, causal=True)
    bias: Tensor

    def __init__(
        self,
        num_experts: int,
        k: int,
        *,
        rate: float = 0.001,
        weigh: Weigh | None = torch.sigmoid,
        renormalize: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= k <= num_experts:
            raise InputError(f"k must lie between 1 and {num_experts} experts, got {k!r}")
        if not 0 <= rate < float("inf"):
            raise InputError(f"the rate of the bias is finite and at least 0, got {rate!r}")
        self.k, self.rate, self.weigh, self.renormalize = k, rate, weigh, renormalize
        self.register_buffer("bias", torch.zeros(num_experts, dtype=torch.float32))

    def forward(self, scores: Tensor) -> Route:
        """Scores (T, E), -inf where an expert is not eligible, to a route of k experts a token.

        Raises:
            RouteError: NaN or +inf among the scores, or another number of experts.
        """
        closed_TE = scores == -torch.inf
        weights_TE = weigh_all(scores, self.weigh).masked_fill(closed_TE, -torch.inf)
        return top_k(
            weights_TE, self.k, renormalize=self.renormalize, weigh=_as_they_are, bias=self.bias
        )

    @torch.no_grad()
    def after_step(self, routings: Sequence["Routing"]) -> None:
        """Move every bias once, by the loads of all these routings together."""
        load_E = torch.zeros_like(self.bias, dtype=torch.int64)
        for routing in routings:
            load_E += routing.route.load()
        load_E = over_processes(load_E)
        # In whole numbers: E times a load against the sum of loads is exact.
        lacking_E = torch.sign(load_E.sum() - len(load_E) * load_E)
        self.bias += self.rate * lacking_E

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.bias.dtype.itemsize < before.dtype.itemsize:
            self.bias = before.to(self.bias.device)
        return self

    def extra_repr(self) -> str:
        """Size and rate, for printing."""
        return f"num_experts={len(self.bias)}, k={self.k}, rate={self.rate}"


def _as_they_are(weights_TE: Tensor) -> Tensor:
    return weights_TE
