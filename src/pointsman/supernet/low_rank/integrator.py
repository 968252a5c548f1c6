"""Training in low rank from the first step to the last, with ranks that settle by themselves.

Schotthöfer et al., "Low-rank lottery tickets: finding efficient low-rank neural networks via matrix
differential equations" (2022, arXiv 2205.13571): the gradient flow of a network, followed on the
manifold of matrices of rank R by an integrator that small singular values do not disturb. One step
with rate h from W = U S V^T and the gradient G of the loss at W:

    K = U S - h G V           L = V S^T - h G^T U         (from the same point and batch)
    U' = orth[K | U]          V' = orth[L | V]            (2R columns; without U and V: fixed rank)
    S' = (U'^T U) S (V^T V')
    S'' = S' - h (gradient of the loss by S' at U' S' V'^T)
    U, S, V = U' P, D, V' Q   with S'' = P D Q^T, cut to the smallest rank R' for which the dropped
                              singular values have at most a share `threshold` of the norm of all

What was settled: plain gradient steps, because momentum of a factor has no meaning once its basis
has turned; everything that is not of low rank (biases, normalisation, layers kept whole) takes its
step by an optimiser of the user's choice in the second pass, as do the biases in the paper. Where
we depart: the gradients by K and L come from one pass, by U S + dK and V S^T + dL at dK = dL = 0,
where the authors' code runs two; and the whole tail counts when a rank is cut, where their loop
leaves out the last singular value. Batch statistics move twice a step, once for each pass.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.supernet.low_rank.layers import LowRank


class DynamicalLowRank:
    """Takes training steps on the low-rank layers of a network, and on the rest beside it.

    Args:
        net: with `LowRank` layers inside, as `make_low_rank` gives it. Start from a rank that is
            high enough: it can only double at a step.
        rate: h, of the factors; may be changed between steps through the attribute.
        threshold: share of the norm of a layer's singular values that may be dropped at each step;
            higher means lower ranks.
        rest: makes the optimiser of all other weights from their list; None: plain gradient steps
            of the same rate as the factors have at the start.
        least: smallest rank.
        adaptive: whether ranks change; the fixed-rank form needs no threshold.

    Raises:
        InputError: no low-rank layer, a rate that is not above 0, a threshold outside [0, 1).
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        rate: float,
        threshold: float = 0.1,
        rest: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
        least: int = 2,
        adaptive: bool = True,
    ) -> None:
        self.layers = [module for module in net.modules() if isinstance(module, LowRank)]
        if not self.layers:
            raise InputError("there is no low-rank layer in this network: see make_low_rank")
        if not rate > 0 or not 0 <= threshold < 1 or least < 1:
            raise InputError(
                "a rate above 0, a threshold in [0, 1) and a smallest rank of at least 1, got "
                f"rate={rate}, threshold={threshold}, least={least}"
            )
        self.rate, self.threshold, self.least, self.adaptive = rate, threshold, least, adaptive
        factors = {id(f) for layer in self.layers for f in (layer.u_OR, layer.s_RR, layer.v_IR)}
        others = [w for w in net.parameters() if id(w) not in factors and w.requires_grad]
        make = rest or (lambda weights: torch.optim.SGD(weights, rate))
        self.rest = make(others) if others else None

    @property
    def ranks(self) -> list[int]:
        """Of every low-rank layer, in order of definition."""
        return [layer.rank for layer in self.layers]

    def step(self, loss: Callable[[], Tensor]) -> Tensor:
        """One step on one batch.

        Args:
            loss: gives the loss of the batch; called twice.

        Returns:
            The loss before the step, without gradient.
        """
        before = self._turn(loss)
        self._fit_cores(loss)
        for layer in self.layers:
            if self.adaptive:
                layer.truncate(self.threshold, self.least)
        return before

    def _turn(self, loss: Callable[[], Tensor]) -> Tensor:
        """New bases from the steps of K and L; the layers give the same outputs as before."""
        for layer in self.layers:
            layer.probes = (
                torch.zeros_like(layer.u_OR, requires_grad=True),
                torch.zeros_like(layer.v_IR, requires_grad=True),
            )
        try:
            value = loss()
            probes = [probe for layer in self.layers for probe in layer.probes or ()]
            gradients = torch.autograd.grad(value, probes, materialize_grads=True)
        finally:
            for layer in self.layers:
                layer.probes = None
        for layer, k_OR, l_IR in zip(self.layers, gradients[::2], gradients[1::2], strict=True):
            self._widen(layer, k_OR, l_IR)
        return value.detach()

    @torch.no_grad()
    def _widen(self, layer: LowRank, k_gradient_OR: Tensor, l_gradient_IR: Tensor) -> None:
        u, s, v = layer.u_OR, layer.s_RR, layer.v_IR
        k, l_ = u @ s - self.rate * k_gradient_OR, v @ s.T - self.rate * l_gradient_IR
        wide_u, wide_v = self._basis(k, u), self._basis(l_, v)
        layer.set_factors(wide_u, (wide_u.T @ u) @ s @ (v.T @ wide_v), wide_v)

    def _basis(self, moved: Tensor, before: Tensor) -> Tensor:
        """Orthonormal columns that span what moved, and what was there if ranks may grow."""
        spanned = torch.cat([moved, before], dim=1) if self.adaptive else moved
        basis: Tensor = torch.linalg.qr(spanned).Q  # at most as many columns as rows
        return basis

    def _fit_cores(self, loss: Callable[[], Tensor]) -> None:
        if self.rest is not None:
            self.rest.zero_grad(set_to_none=True)
        weights = [w for g in self.rest.param_groups for w in g["params"]] if self.rest else []
        cores = [layer.s_RR for layer in self.layers]
        gradients = torch.autograd.grad(loss(), cores + weights, materialize_grads=True)
        with torch.no_grad():
            for core, gradient in zip(cores, gradients, strict=False):
                core.sub_(gradient, alpha=self.rate)
        for weight, gradient in zip(weights, gradients[len(cores) :], strict=True):
            weight.grad = gradient
        if self.rest is not None:
            self.rest.step()
