"""Cross entropy for labels of which one is far commoner than the others.

Legend: N examples, A classes.
"""

import torch
from torch import Tensor

from pointsman.errors import InputError


def focal(
    scores_NA: Tensor, labels_N: Tensor, *, gamma: float = 2.0, weights_A: Tensor | None = None
) -> Tensor:
    """Cross entropy that counts what is sure already for less: a scalar.

        L = mean over examples of  -w_y (1 - p_y)^gamma log p_y

    Lin et al., "Focal Loss for Dense Object Detection" (2017, arXiv:1708.02002). gamma = 0 without
    weights is the cross entropy.

    Args:
        scores_NA: logits, floating point.
        labels_N: int64, from 0 to A - 1.
        gamma: how much less what is sure counts, at least 0.
        weights_A: of the classes. None: all 1.

    Raises:
        InputError: shapes that do not fit, or a negative gamma.
    """
    if scores_NA.ndim != 2 or labels_N.shape != scores_NA.shape[:1]:
        raise InputError(
            "scores are (examples, classes) with one label each, got "
            f"{tuple(scores_NA.shape)} and {tuple(labels_N.shape)}"
        )
    if not gamma >= 0:
        raise InputError(f"gamma is at least 0, got {gamma}")
    log_N = scores_NA.log_softmax(dim=1).gather(1, labels_N[:, None]).squeeze(1)
    loss_N = -((1 - log_N.exp()) ** gamma) * log_N
    if weights_A is not None:
        loss_N = loss_N * weights_A.to(loss_N)[labels_N]
    return loss_N.mean() if len(loss_N) else loss_N.sum()


def class_balanced(labels: Tensor, classes: int, *, beta: float = 0.999) -> Tensor:
    """Weights (A,) by the effective number of examples of each class, with mean 1 over `labels`.

        w_c = (1 - beta) / (1 - beta^(n_c))

    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples" (2019,
    arXiv:1901.05555). beta = 0 weighs all classes alike, beta towards 1 by the inverse of their
    counts. A class without example has weight 0, as nothing is known of it. The mean of 1 keeps the
    rate of learning what it is without weights.

    Args:
        labels: any shape, int64.
        classes: A.
        beta: in [0, 1).

    Raises:
        InputError: beta out of range, no label, or one that is no class.
    """
    if not 0 <= beta < 1:
        raise InputError(f"beta lies in [0, 1), got {beta}")
    flat = labels.flatten()
    if not len(flat) or int(flat.min()) < 0 or int(flat.max()) >= classes:
        raise InputError(f"labels are whole numbers from 0 to {classes - 1}, at least one of them")
    count_A = torch.bincount(flat, minlength=classes).double()
    weight_A = (1 - beta) / (1 - torch.as_tensor(beta, dtype=torch.float64) ** count_A)
    weight_A = torch.where(count_A > 0, weight_A, 0.0)
    return weight_A * count_A.sum() / (weight_A * count_A).sum()
