"""Gates: how the parameters of one choice become the weights with which its options are mixed.

A gate takes logits (E,), how many options are kept in the end (1 for a choice, more for the edges
into a node) and a `Draw`, and gives weights (E,) that carry a gradient to the logits. Options whose
weight is exactly 0 are not computed.

Legend: E options.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pointsman.errors import InputError
from pointsman.select import gumbel


@dataclass(frozen=True)
class Draw:
    """What a gate may depend on beside its logits.

    Args:
        progress: share of the search that is done, from 0 to 1.
        generator: of random numbers; None means torch's global one.
    """

    progress: float = 0.0
    generator: torch.Generator | None = None


# (logits (E,), options kept in the end, draw) -> weights (E,)
Gate = Callable[[Tensor, int, Draw], Tensor]


def softmax_gate(logits: Tensor, keep: int = 1, draw: Draw | None = None) -> Tensor:
    """Every option with its probability (Liu et al. 2018, "DARTS", arXiv 1806.09055)."""
    return logits.softmax(dim=0)


@dataclass(frozen=True)
class Annealed:
    """A gate with a temperature that falls during the training.

    Args:
        start: temperature at the beginning.
        end: at the end.

    Raises:
        InputError: a temperature that is not above 0.
    """

    start: float
    end: float

    def __post_init__(self) -> None:
        if min(self.start, self.end) <= 0:
            raise InputError(f"temperatures are above 0, got {self.start} and {self.end}")


@dataclass(frozen=True)
class GumbelGate(Annealed):
    """As many options as are kept, drawn without putting back, each with weight one.

    The draw is from softmax(logits); backward it has the gradient of the soft draw, softmax((logits
    + noise) / temperature), as far as the drawn options' outputs carry it (one option: Dong and
    Yang 2019, "Searching for a robust neural architecture in four GPU hours", arXiv 1910.04465;
    two edges, Gumbel-Top2: ROME, arXiv 2011.11233).

    Args:
        start: temperature at the beginning.
        end: at the end; it falls along a line.

    Raises:
        InputError: a temperature that is not above 0.
    """

    start: float = 10.0
    end: float = 0.1

    def __call__(self, logits: Tensor, keep: int = 1, draw: Draw | None = None) -> Tensor:
        """Weights (E,) of 0 and 1."""
        draw = draw or Draw()
        temperature = self.start + (self.end - self.start) * draw.progress
        route = gumbel(logits[None], keep, temperature=temperature, generator=draw.generator)
        return route.to_dense()[0]


def dirichlet_gate(logits: Tensor, keep: int = 1, draw: Draw | None = None) -> Tensor:
    """A mixture drawn from the Dirichlet distribution with concentration elu(logits) + 1.

    Chen et al. 2020, "DrNAS: Dirichlet neural architecture search", arXiv 2006.10355. Its gradient
    is that of the draw itself (implicit reparameterisation). The generator gives the seed of the
    draw, since torch draws gamma variables from the global generator only.
    """
    generator = draw.generator if draw else None
    seed = int(torch.randint(2**62, (1,), generator=generator))
    concentration = torch.nn.functional.elu(logits) + 1 + torch.finfo(logits.dtype).eps
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixture: Tensor = torch.distributions.Dirichlet(
            concentration, validate_args=False
        ).rsample()
    return mixture


def two_path_gate(logits: Tensor, keep: int = 1, draw: Draw | None = None) -> Tensor:
    """A binary gate over two drawn options: one of them with weight one, both computed.

    Two options are drawn by their probabilities without putting back, and one of the two by the
    probabilities among them. Backward, the gradient of the two logits is sum_j dL/dg_j p_j
    (delta_ij - p_i) with p the probabilities among the two, and that of the others is 0 (Cai et al.
    2018, "ProxylessNAS", arXiv 1812.00332, eq. 4). The option that is not in force needs a weight
    that is not exactly 0 to be computed: it gets the smallest normal number, which adds nothing.
    """
    generator = draw.generator if draw else None
    if len(logits) == 1:
        return softmax_gate(logits)
    probabilities = logits.detach().softmax(dim=0).cpu()
    pair = torch.multinomial(probabilities, 2, generator=generator).to(logits.device)
    among = logits[pair].softmax(dim=0)
    in_force = int(torch.multinomial(among.detach().cpu(), 1, generator=generator))
    hard = torch.full_like(among, torch.finfo(logits.dtype).tiny)
    hard[in_force] = 1
    return torch.zeros_like(logits).index_put((pair,), hard + (among - among.detach()))
