"""Adam over half-precision weights whose full-precision copies exist one tile at a time.

Legend: P values of all weights, flattened.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pointsman.errors import InputError


class TiledAdam:
    """Adam with weights and moments kept in float32, and gradients widened tile by tile.

    A mixed-precision step widens every half-precision gradient to float32 first, a temporary copy
    of 4 bytes for each weight. Here only one tile is widened at a time; as every operation is by
    value, each result is bit for bit that of one large tile (Singh et al. 2023, "A hybrid
    tensor-expert-data parallelism approach to optimize mixture-of-experts training", arXiv
    2303.06318).

    Args:
        parameters: of any floating point type; those without a gradient are left alone.
        rate: of learning.
        betas: of the two moments.
        eps: added to the root of the second moment.
        tile: values in a tile; the default is about that of the paper.

    Attributes:
        largest_copy: values of the largest temporary copy so far.

    Raises:
        InputError: a tile below one value.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        rate: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        tile: int = 1_800_000,
    ) -> None:
        if tile < 1:
            raise InputError(f"a tile holds at least one value, got {tile}")
        self.parameters = list(parameters)
        self.rate, self.betas, self.eps, self.tile = rate, betas, eps, tile
        self.wide = [weight.detach().float().flatten() for weight in self.parameters]
        self.first = [torch.zeros_like(wide) for wide in self.wide]
        self.second = [torch.zeros_like(wide) for wide in self.wide]
        self.steps = self.largest_copy = 0

    @torch.no_grad()
    def step(self) -> None:
        """One update from the gradients that are there."""
        self.steps += 1
        for at, weight in enumerate(self.parameters):
            if weight.grad is None:
                continue
            narrow, gradient = weight.view(-1), weight.grad.reshape(-1)
            for begin in range(0, len(narrow), self.tile):
                tile = slice(begin, begin + self.tile)
                narrow[tile] = self._advance(at, tile, gradient[tile])

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in self.parameters:
            weight.grad = None

    def _advance(self, at: int, tile: slice, gradient_P: Tensor) -> Tensor:
        wide_P = gradient_P.float()  # the temporary copy
        self.largest_copy = max(self.largest_copy, len(wide_P))
        first, second = self.first[at][tile], self.second[at][tile]
        first.mul_(self.betas[0]).add_(wide_P, alpha=1 - self.betas[0])
        second.mul_(self.betas[1]).addcmul_(wide_P, wide_P, value=1 - self.betas[1])
        size = (second / (1 - self.betas[1] ** self.steps)).sqrt_().add_(self.eps)
        moved: Tensor = self.wide[at][tile]
        return moved.addcdiv_(first, size, value=-self.rate / (1 - self.betas[0] ** self.steps))
