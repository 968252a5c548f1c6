"""Scores from gradients at random initialisation.

All take a network with the weights it was made with, a batch of inputs and their labels, and give a
number, higher is better; the network stays as it is. Batch normalisation uses the statistics of
what is run. Summed over matrices and kernels, not over biases and scales, so all of these grow with
the number of weights: always look at `parameters` beside them.

Legend: N inputs of the batch, K weights.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError

Loss = Callable[[Tensor, Tensor], Tensor]  # outputs, labels -> scalar, the mean over the inputs


def without_running_statistics(network: nn.Module) -> nn.Module:
    """A copy in training mode whose batch normalisation uses what it is run on, and keeps nothing.

    Dropout is off.
    """
    alone = copy.deepcopy(network).train()
    for module in alone.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
        elif isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    return alone


def matrices(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of two dimensions or more, by name.

    Raises:
        InputError: there are none.
    """
    found = {name: weight for name, weight in network.named_parameters() if weight.ndim > 1}
    if not found:
        raise InputError("a score from gradients needs a matrix or a kernel, this network has none")
    return found


def gradsign(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: Loss = functional.cross_entropy,
    chunk: int = 16,
) -> float:
    """How well the inputs agree on the sign of each weight's gradient: sum_k |sum_n sign g_nk|.

    Zhang & Jia 2021, "GradSign: Model performance inference with theoretical insights", arXiv
    2110.08616. Gradients are those of single inputs, from `torch.func`; normalisation sees one
    input at a time, as in the authors' loop. From 0 to N K; N K where all inputs are equal.

    Args:
        network: at initialisation.
        x: (N, ...) inputs.
        y: (N,) labels.
        loss: outputs (1, ...) and labels (1,) to a scalar.
        chunk: inputs at a time, whose gradients are in memory together.

    Raises:
        InputError: no matrix or kernel.
        ValueError: normalisation has a single value a channel to see in one input, such as
            `BatchNorm1d` on vectors; such networks have no GradSign.
    """
    alone = without_running_statistics(network)
    weights = {name: weight.detach() for name, weight in matrices(alone).items()}
    rest = {k: v.detach() for k, v in alone.named_parameters() if k not in weights}
    buffers = dict(alone.named_buffers())

    def one(given: dict[str, Tensor], x_one: Tensor, y_one: Tensor) -> Tensor:
        inputs = (x_one.unsqueeze(0),)
        outputs = torch.func.functional_call(alone, (given, rest, buffers), inputs)
        return loss(outputs, y_one.unsqueeze(0))

    per_input = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    parts = zip(torch.split(x, chunk), torch.split(y, chunk), strict=True)
    for x_part, y_part in parts:
        for name, gradient in per_input(weights, x_part, y_part).items():
            total[name] += gradient.sign().sum(dim=0)
    return float(sum(each.abs().sum() for each in total.values()))


def _gradients(network: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> list[tuple[Tensor, Tensor]]:
    """(weight, gradient) of every matrix and kernel."""
    alone = without_running_statistics(network)
    weights = list(matrices(alone).values())
    value = loss(alone(x), y)
    found = torch.autograd.grad(value, weights, allow_unused=True)
    pairs = zip(weights, found, strict=True)
    return [(w.detach(), torch.zeros_like(w) if g is None else g) for w, g in pairs]


def grad_norm(
    network: nn.Module, x: Tensor, y: Tensor, *, loss: Loss = functional.cross_entropy
) -> float:
    """Sum over the layers of the norm of the batch's gradient.

    Abdelfattah et al. 2021, "Zero-cost proxies for lightweight NAS", arXiv 2101.08134.
    """
    return float(sum(gradient.norm() for _, gradient in _gradients(network, x, y, loss)))


def snip(
    network: nn.Module, x: Tensor, y: Tensor, *, loss: Loss = functional.cross_entropy
) -> float:
    """Sum over the weights of |weight x gradient|: what their removal would change.

    Lee et al. 2018, "SNIP", arXiv 1810.02340, summed as by Abdelfattah et al. 2021.
    """
    pairs = _gradients(network, x, y, loss)
    return float(sum((weight * gradient).abs().sum() for weight, gradient in pairs))


def synflow(network: nn.Module, x: Tensor, y: Any = None) -> float:
    """Logarithm of the sum of weight x gradient with all weights positive and an input of ones.

    Tanaka et al. 2020, "Pruning neural networks without any data by iteratively conserving synaptic
    flow", arXiv 2006.05467. Neither data nor labels are used, but for the shape of an input.
    Computed in float64, with batch normalisation as the identity at first (its statistics 0 and 1).
    """
    alone = copy.deepcopy(network).double().eval()
    with torch.no_grad():
        for weight in (*alone.parameters(), *alone.buffers()):
            if weight.is_floating_point():
                weight.abs_()
    for module in alone.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            module.reset_running_stats()
    weights = list(matrices(alone).values())
    ones = torch.ones_like(x[:1], dtype=torch.float64)
    found = torch.autograd.grad(alone(ones).sum(), weights, allow_unused=True)
    pairs = ((w, g) for w, g in zip(weights, found, strict=True) if g is not None)
    total = sum(((weight * gradient).sum() for weight, gradient in pairs), torch.zeros(()).double())
    return float(total.detach().log())


def jacob_cov(network: nn.Module, x: Tensor, y: Any = None) -> float:
    """How little the outputs' gradients at different inputs resemble each other.

    Mellor et al. 2020, "Neural architecture search without training" (first version), arXiv
    2006.04647: with the eigenvalues v of the correlation matrix of d(sum of outputs)/d(input),
    -sum(log(v + k) + 1 / (v + k)), k = 1e-5. Not a number where a gradient is constant.
    """
    alone = without_running_statistics(network)
    inputs = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(alone(inputs).sum(), inputs)
    values = torch.linalg.eigvalsh(torch.corrcoef(gradient.flatten(1).double()).nan_to_num())
    if not bool((gradient.flatten(1).std(dim=1) > 0).all()):
        return float("nan")
    return float(-((values + 1e-5).log() + 1 / (values + 1e-5)).sum())
