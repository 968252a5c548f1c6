"""Feed-forward experts as a loop that can be read: what the fast paths are held against.

Legend: N routed rows sorted by expert, E experts, D width (of the answers on the way down),
F hidden width of one expert, which counts twice on the way up of gated experts, gate first.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

Activation = Callable[[Tensor], Tensor]  # elementwise


def by_loop(
    rows_ND: Tensor,
    sizes_E: list[int],
    up_EFD: Tensor,
    bias_EF: Tensor | None,
    down_EDF: Tensor,
    activation: Activation,
    gated: bool,
) -> Tensor:
    """One expert after the other, each on its own rows; any order of gradients is available.

    Args:
        rows_ND: sorted by expert.
        sizes_E: rows of each expert.
        up_EFD: of the products on the way up.
        bias_EF: added there, or None.
        down_EDF: of the products on the way down.
        activation: elementwise.
        gated: whether the way up holds a gate.

    Returns:
        (N, D).
    """
    # unbind once: indexing the stack for each expert would make its backward build a zero tensor of
    # the whole stack every time.
    biases = [None] * len(sizes_E) if bias_EF is None else bias_EF.unbind(0)
    weights = zip(up_EFD.unbind(0), biases, down_EDF.unbind(0), strict=True)
    answers = []
    for rows, (up, bias, down) in zip(torch.split(rows_ND, sizes_E), weights, strict=True):
        hidden = linear(rows, up, bias)
        if gated:
            gate, plain = hidden.chunk(2, dim=1)
            hidden = activation(gate) * plain
        else:
            hidden = activation(hidden)
        answers.append(linear(hidden, down))
    return torch.cat(answers)
