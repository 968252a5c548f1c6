"""Training by forward passes alone: through hard routing, thresholds, anything.

Legend: P particles, Q numbers of one particle, V = 2Q vertices around it.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from pointsman.errors import InputError

Cost = Callable[[Tensor], float | Tensor]


@torch.no_grad()
def polytope_step(
    x_PQ: Tensor,
    cost: Cost,
    *,
    epsilon: float = 0.1,
    step: float = 1.0,
    probe: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One move of every particle towards the cheaper vertices around it.

    The vertices lie at `probe` along randomly turned axes, both ways. The cost of each is taken
    with the other particles where they are. A particle moves by `step` times the mean of its
    vertices' directions, weighed by softmax(-cost / epsilon): the limit of entropic transport
    without a constraint on the vertices. Equal costs leave it where it is; a small epsilon takes it
    to the best vertex. (Le 2026, "Training non-differentiable networks via optimal transport",
    arXiv 2605.01928.)

    Args:
        x_PQ: (P, Q) floating point.
        cost: (P, Q) to a number, called 2 P Q times; use the same data in all of them. A cost that
            is not finite counts as infinitely high.
        epsilon: what difference of costs matters, above 0.
        step: length of the way to the best vertex, above 0.
        probe: distance at which costs are taken, above 0.
        generator: of the rotations; None means torch's global one.

    Returns:
        (P, Q), a new tensor.

    Raises:
        InputError: a number out of range, or no finite cost around a particle.
    """
    for name, value in (("epsilon", epsilon), ("step", step), ("probe", probe)):
        if not 0 < value < math.inf:
            raise InputError(f"{name} must be a finite number above 0, got {value!r}")
    if x_PQ.ndim != 2:
        raise InputError(f"particles have shape (P, Q), got {tuple(x_PQ.shape)}")
    moved_PQ = x_PQ.clone()
    for place in range(len(x_PQ)):
        axes_QQ = _rotation(x_PQ, generator)
        directions_VQ = torch.cat([axes_QQ, -axes_QQ])
        costs_V = x_PQ.new_empty(len(directions_VQ))
        for vertex, direction_Q in enumerate(directions_VQ):
            there_PQ = x_PQ.clone()
            there_PQ[place] += probe * direction_Q
            costs_V[vertex] = float(cost(there_PQ))
        costs_V = torch.where(costs_V.isfinite(), costs_V, torch.inf)
        if len(costs_V) and not costs_V.isfinite().any():
            raise InputError(f"no vertex around particle {place} has a finite cost")
        moved_PQ[place] += step * (-costs_V / epsilon).softmax(dim=0) @ directions_VQ
    return moved_PQ


def _rotation(x_PQ: Tensor, generator: torch.Generator | None) -> Tensor:
    """(Q, Q) orthogonal, evenly distributed."""
    size = x_PQ.shape[1]
    drawn = torch.randn(size, size, dtype=x_PQ.dtype, device=x_PQ.device, generator=generator)
    q, r = torch.linalg.qr(drawn)
    turned: Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0).to(q.dtype)
    return turned


class PolyStep:
    """An optimiser of any parameters by forward passes: `step(closure)` moves them once.

    The parameters are their start plus a map of a few coordinates, and the coordinates are cut into
    particles that move by `polytope_step`. With `rank`, each matrix has that many coordinates,
    mapped to it by random numbers, and vectors have their own; every so many steps what was reached
    becomes the new start, under a new map. A step costs two evaluations for each coordinate.

    Args:
        parameters: moved in place; of one floating type and device.
        particle: Q, coordinates that move together; None means all of them.
        rank: coordinates of each parameter of two or more dimensions; None means all its entries.
        epsilon: see `polytope_step`; may be changed between steps, as `step_size` and `probe` may.
        step_size: likewise.
        probe: likewise.
        absorb_every: steps under one map; of effect with `rank` only.
        generator: of the rotations and maps; None means torch's global one.

    Attributes:
        evaluations: of the closure so far.

    Raises:
        InputError: no parameter, or a number out of range.

    Source: Le 2026, arXiv 2605.01928. Left out: its schedules, several probes a vertex, and its
    accelerations, such as leaving out costly vertices.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        particle: int | None = 2,
        rank: int | None = None,
        epsilon: float = 0.1,
        step_size: float = 1.0,
        probe: float = 1.0,
        absorb_every: int = 20,
        generator: torch.Generator | None = None,
    ) -> None:
        self.parameters = list(parameters)
        if not self.parameters:
            raise InputError("PolyStep moves parameters, got none")
        for name, value in (("particle", particle), ("rank", rank), ("absorb_every", absorb_every)):
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value!r}")
        self.particle, self.rank, self.absorb_every = particle, rank, absorb_every
        self.epsilon, self.step_size, self.probe = epsilon, step_size, probe
        self.generator = generator
        self.evaluations, self._steps = 0, 0
        self._x_PQ: Tensor
        self._start_anew()

    @torch.no_grad()
    def step(self, closure: Callable[[], float | Tensor]) -> float:
        """Move once; gives the lowest cost that was met on the way.

        Args:
            closure: the loss at the parameters as they are; called without gradients.

        Raises:
            InputError: see `polytope_step`.
        """
        lowest = math.inf

        def cost(x_PQ: Tensor) -> float:
            nonlocal lowest
            self._write(x_PQ)
            self.evaluations += 1
            found = float(closure())
            lowest = min(lowest, found)
            return found

        self._x_PQ = polytope_step(
            self._x_PQ,
            cost,
            epsilon=self.epsilon,
            step=self.step_size,
            probe=self.probe,
            generator=self.generator,
        )
        self._write(self._x_PQ)
        self._steps += 1
        if self.rank is not None and self._steps % self.absorb_every == 0:
            self._start_anew()
        return lowest

    @torch.no_grad()
    def _start_anew(self) -> None:
        """The parameters as they are become the start; maps are drawn, coordinates are zero."""
        self._start = [p.detach().clone() for p in self.parameters]
        self._maps = [self._map_of(p) for p in self.parameters]
        sizes = zip(self.parameters, self._maps, strict=True)
        self._sizes = [p.numel() if m is None else m.shape[1] for p, m in sizes]
        total = sum(self._sizes)
        width = total if self.particle is None else min(self.particle, total)
        # The last particle is filled up with coordinates that move nothing.
        self._x_PQ = self._start[0].new_zeros(-(-total // width), width)

    def _map_of(self, parameter: Tensor) -> Tensor | None:
        if self.rank is None or parameter.ndim < 2 or parameter.numel() <= self.rank:
            return None
        shape = (parameter.numel(), self.rank)
        drawn: Tensor = torch.randn(
            shape, dtype=parameter.dtype, device=parameter.device, generator=self.generator
        )
        return drawn / math.sqrt(self.rank)

    def _write(self, x_PQ: Tensor) -> None:
        pieces = torch.split(x_PQ.flatten()[: sum(self._sizes)], self._sizes)
        for parameter, start, matrix, piece in zip(
            self.parameters, self._start, self._maps, pieces, strict=True
        ):
            moved = piece if matrix is None else matrix @ piece
            parameter.copy_(start + moved.reshape(start.shape))
