"""Scores from forward passes alone, and the trivial ones. Higher is better; nothing is changed.

Legend: N inputs of the batch, A activations.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.cost import count_flops
from pointsman.errors import InputError
from pointsman.supernet.scores.gradients import without_running_statistics


def parameters(network: nn.Module, x: Any = None, y: Any = None) -> float:
    """How many there are: what every score must beat."""
    return float(sum(weight.numel() for weight in network.parameters()))


def flops(network: nn.Module, x: Tensor, y: Any = None) -> float:
    """MFLOPs of one input: what every score must beat."""
    return float(count_flops(network, x[:1]).amount)


def naswot(network: nn.Module, x: Tensor, y: Any = None) -> float:
    """How differently the inputs switch the network's ReLUs: log det of their code's similarity.

    Mellor et al. 2020, "Neural architecture search without training", arXiv 2006.04647. The (N, N)
    matrix counts the ReLUs that two inputs have in the same state.

    Raises:
        InputError: no module `nn.ReLU` in it.
    """
    alone = without_running_statistics(network)
    similarity = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    relus = [module for module in alone.modules() if isinstance(module, nn.ReLU | nn.ReLU6)]
    if not relus:
        raise InputError("naswot reads the states of ReLU modules, this network has none")

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        on_NA = (output.flatten(1) > 0).double()
        similarity.add_(on_NA @ on_NA.T + (1 - on_NA) @ (1 - on_NA).T)

    handles = [module.register_forward_hook(count) for module in relus]
    with torch.no_grad():
        alone(x)
    for handle in handles:
        handle.remove()
    return float(torch.linalg.slogdet(similarity).logabsdet)


def epsinas(
    network: nn.Module, x: Tensor, y: Any = None, *, constants: tuple[float, float] = (1e-7, 1.0)
) -> float:
    """How much the outputs change when all weights are one constant, and then another.

    Gracheva 2023, "Neural architecture search: two constant shared weights initialisations", arXiv
    2302.04406. Weights and scales of normalisation are set to the constant, biases to 0; the raw
    outputs of a batch are scaled to [0, 1]; the score is the mean absolute difference of the two,
    over their mean, both taken where neither is exactly 0. No labels, no gradients.

    For a network without normalisation and biases whose parts scale with their input, such as a
    perceptron with ReLU, the score is 0: it knows nothing of it. All units of a layer are alike, so
    it does not see width. On other tasks than vision its sign may turn.

    Args:
        network: its weights play no part.
        x: (N, ...) inputs.
        y: unused.
        constants: small and large; a pair for which most networks give finite outputs.

    Returns:
        The score; not a number where outputs overflow or are all equal.
    """
    one, other = (_normalised(network, x, constant) for constant in constants)
    both = torch.stack([one, other])
    kept = both[:, (both != 0).all(dim=0) & both.isfinite().all(dim=0)]
    if kept.shape[1] == 0 or not bool(both.isfinite().all()):
        return float("nan")
    return float((kept[0] - kept[1]).abs().mean() / kept.mean())


@torch.no_grad()
def _normalised(network: nn.Module, x: Tensor, constant: float) -> Tensor:
    """All outputs in one row, from 0 to 1, with every weight at a constant."""
    alone = without_running_statistics(copy.deepcopy(network).double())
    for name, weight in alone.named_parameters():
        weight.fill_(0.0 if name.rpartition(".")[2] == "bias" else constant)
    outputs = alone(x.double()).flatten()
    low, high = outputs.min(), outputs.max()
    found: Tensor = (outputs - low) / (high - low)  # 0 / 0 where all are equal
    return found
