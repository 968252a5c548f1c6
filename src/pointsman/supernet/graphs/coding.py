"""Choosing operations of a supernet that is never trained: its mixture as a sparse code.

Xu et al., "Do Not Train It: A Linear Neural Architecture Search of Graph Neural Networks" (2023,
arXiv 2305.14065): the outputs of operations with random weights are a dictionary, and the
coefficients of the mixture, of unit length, are fitted to the labels with a penalty on their
absolute sum. Nothing else is learned, so the search costs its few steps.

What such a search prefers may be the scale or the smoothness of an operation's outputs and not what
they say of the labels: run it on shuffled labels too, as the claim does, and see
`readout_scores`, which cannot be misled so.

Legend: E options of a choice, N examples, D features, C classes.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.supernet.relax import Draw, Relaxation, release
from pointsman.supernet.supernet import Supernet

START = 1e-3


def unit_gate(logits: Tensor, keep: int = 1, draw: Draw | None = None) -> Tensor:
    """(E,) the coefficients over their Euclidean length: a gate, see `relax.gates`."""
    return nn.functional.normalize(logits, dim=0)


def sparse_code(
    supernet: Supernet,
    loss: Callable[[Supernet], Tensor],
    *,
    penalty: float = 0.5,
    steps: int = 100,
    rate: float = 3e-4,
) -> Relaxation:
    """Fit the coefficients of every choice; the weights stay what they are, bit for bit.

    The defaults are the official code's: all coefficients start at 0.001, Adam with momenta 0.5 and
    0.999 and decay 0.001. The genotype is `derive()` of what is returned.

    Args:
        supernet: is in evaluation mode and without mixtures afterwards.
        loss: of the supernet, on data for the architecture.
        penalty: weight of the sum of the absolute coefficients of unit length.
        steps: of the coefficients.
        rate: of the steps.

    Raises:
        InputError: fewer than one step.
    """
    if steps < 1:
        raise InputError(f"coefficients are fitted in at least one step, got {steps}")
    relaxation = Relaxation(supernet, gate=unit_gate)
    with torch.no_grad():
        for alpha in relaxation.alpha:
            alpha.fill_(START)
    optimiser = torch.optim.Adam(
        relaxation.parameters(), rate, betas=(0.5, 0.999), weight_decay=1e-3
    )
    supernet.eval()
    learning = [weight for weight in supernet.parameters() if weight.requires_grad]
    try:
        for weight in learning:
            weight.requires_grad_(False)
        for _ in range(steps):
            optimiser.zero_grad()
            relaxation.mix(supernet)
            size = torch.stack([unit_gate(alpha).abs().sum() for alpha in relaxation.alpha]).sum()
            (loss(supernet) + penalty * size).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    finally:
        for weight in learning:
            weight.requires_grad_(True)
        release(supernet)
    return relaxation


def readout_scores(
    outputs: Mapping[str, Tensor],
    y: Tensor,
    training: Tensor,
    validation: Tensor,
    *,
    strength: float = 1.0,
) -> dict[str, float]:
    """Validation accuracy of a ridge read-out of each operation's outputs, in closed form.

    Every operation is judged by what its outputs say of the labels, each feature brought to mean 0
    and variance 1 first, so that scale cannot decide. Our own addition.

    Args:
        outputs: by option, (N, D) of operations that need not be trained.
        y: (N,) labels from 0.
        training: (N,) bool, examples the read-out is fitted to.
        validation: (N,) bool, examples it is judged on.
        strength: of the ridge.
    """
    targets_NC = nn.functional.one_hot(y).double()
    scores = {}
    for option, x_ND in outputs.items():
        x_ND = x_ND.detach().double()
        spread_D = x_ND[training].std(dim=0).clamp_min(1e-9)
        x_ND = (x_ND - x_ND[training].mean(dim=0)) / spread_D
        x_ND = torch.cat([x_ND, torch.ones_like(x_ND[:, :1])], dim=1)
        seen_ND = x_ND[training]
        ridge = strength * torch.eye(seen_ND.shape[1], dtype=seen_ND.dtype, device=seen_ND.device)
        solved_DC = torch.linalg.solve(
            seen_ND.T @ seen_ND + ridge, seen_ND.T @ targets_NC[training]
        )
        right = (x_ND @ solved_DC).argmax(dim=1) == y
        scores[option] = float(right[validation].double().mean())
    return scores
