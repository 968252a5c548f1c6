"""Learned deferral: how much the next model would gain, regressed on what the first one said.

Jitkrittum et al. 2023, "When Does Confidence-Based Cascade Deferral Suffice?" (arXiv 2307.02764).
Confidence orders inputs well only while the next model's accuracy does not depend on them; where
it is a specialist, or where labels are noisy, the best rule defers by the difference of the two
models' chances to be right. That difference is regressed after both were trained, on inputs that
neither has seen.

Legend: N inputs, C classes.
"""

from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError

Array = npt.NDArray[np.float64]
Target = Literal["correctness", "probability", "confidence"]
TOP = 5  # probabilities that are shown to the regression, largest first


class LearnedDeferral:
    """Expected gain of asking a second classifier, from the first one's probabilities.

    The three targets are the paper's, under their plain names:

    - "correctness" (its Diff-01): 1[second is right] - 1[first is right];
    - "probability" (Diff-Prob): probability of the true label by the second less that by the first,
      less noisy, but only as good as the second's calibration;
    - "confidence" (MaxProb): the second's largest probability, from which the first's is subtracted
      afterwards; it needs no labels.

    Where we depart from the paper, whose regression is a small network: gradient boosting by
    default, and any scikit-learn regressor in its place.

    Args:
        target: what is regressed.
        regressor: with `fit` and `predict`, cloned here; None: gradient-boosted trees.
        seed: of the default regressor.

    Attributes:
        regressor_: fitted.
    """

    def __init__(
        self, target: Target = "correctness", regressor: Any = None, seed: int = 0
    ) -> None:
        self.target = target
        self.regressor = regressor
        self.seed = seed

    def fit(self, first: npt.ArrayLike, second: npt.ArrayLike, labels: npt.ArrayLike) -> Self:
        """Learn on inputs that neither classifier was trained on.

        Args:
            first: (N, C) probabilities of the classifier that is asked first.
            second: (N, C) of the next one.
            labels: (N,) true classes as columns.

        Raises:
            InputError: shapes that do not match, or an unknown target.
        """
        from sklearn.base import clone
        from sklearn.ensemble import HistGradientBoostingRegressor

        p1, p2, y = np.asarray(first), np.asarray(second), np.asarray(labels)
        if p1.ndim != 2 or p1.shape != p2.shape or y.shape != (len(p1),):
            raise InputError(
                "learned deferral needs probabilities (inputs, classes) of both classifiers and "
                f"one label each, got {p1.shape}, {p2.shape} and {y.shape}"
            )
        rows = np.arange(len(y))
        if self.target == "correctness":
            gain = (p2.argmax(axis=1) == y) * 1.0 - (p1.argmax(axis=1) == y)
        elif self.target == "probability":
            gain = p2[rows, y] - p1[rows, y]
        elif self.target == "confidence":
            gain = p2.max(axis=1)
        else:
            raise InputError(
                f"target is correctness, probability or confidence, got {self.target!r}"
            )
        if self.regressor is not None:
            regressor = clone(self.regressor)
        else:
            regressor = HistGradientBoostingRegressor(
                max_iter=60, max_leaf_nodes=8, learning_rate=0.1, random_state=self.seed
            )
        self.regressor_ = regressor.fit(what_was_said(p1), gain)
        return self

    def score(self, first: npt.ArrayLike) -> Array:
        """(N,) expected gain of going on; defer above a threshold, highest first."""
        p1 = np.asarray(first, dtype=np.float64)
        gain: Array = np.asarray(self.regressor_.predict(what_was_said(p1)), dtype=np.float64)
        return gain - p1.max(axis=1) if self.target == "confidence" else gain


def what_was_said(probabilities: npt.ArrayLike) -> Array:
    """(N, T + C + 1): the largest probabilities in order, which class leads, and the entropy.

    The leading class is spread over C columns, so that a second model's speciality can be seen.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    ranked = -np.sort(-p, axis=1)[:, :TOP]
    leads = np.eye(p.shape[1])[p.argmax(axis=1)]
    entropy = -(p * np.log(np.maximum(p, 1e-12))).sum(axis=1, keepdims=True)
    return np.concatenate([ranked, leads, entropy], axis=1)
