"""How good answers are: quality in [0, 1] and loss, for each kind of data."""

import math

from torch import Tensor
from torch.nn.functional import cross_entropy

from pointsman.compare.data import Kind

BITS = 8.0  # quality 0 for text: a byte guessed blindly


def judge(logits: Tensor, targets: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Quality and loss in nats of a batch, (n,) each.

    Quality is 1 where the likeliest class is right; for text it is 1 minus the window's mean bits
    per byte over 8, cut to [0, 1].

    Args:
        logits: (n, C), or (n, L, C) for text.
        targets: (n,), or (n, L) for text.
        kind: of the data.
    """
    if kind == "text":
        loss = cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(dim=1)
        return (1 - loss / math.log(2) / BITS).clamp(0, 1), loss
    loss = cross_entropy(logits, targets, reduction="none")
    return (logits.argmax(dim=1) == targets).float(), loss
