"""Predict the quality of genotypes from those evaluated: a few regressions, chosen by their error.

Ridge, support vectors or a random forest of scikit-learn, on the one-hot encoding of a space: the
one with the least mean absolute error in cross-validation is fitted to everything (the first two
and the rule are those of LINAS: Cummings et al. 2022, arXiv 2202.12954, which compares relative
errors; the absolute one does not explode where a quality is near 0). What the others missed in
cross-validation says how far off a prediction is.

Legend: N genotypes, F features.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from pointsman.errors import InputError
from pointsman.supernet.space import Genotype, Space

Array = np.ndarray[Any, np.dtype[np.float64]]

FOLDS = 5


class QualityPredictor:
    """A regression from genotypes to quality, with the spread of its errors.

    Args:
        space: of the genotypes.
        models: by name, unfitted regressions as scikit-learn has them; None: `regressions()`.
        seed: of the folds.

    Attributes:
        errors_: by name, mean absolute error in cross-validation.
        chosen_: name of the best.
        model_: the best, fitted to everything.
        residuals_: (N,) absolute errors of the best on what it was not fitted to, sorted.
    """

    def __init__(
        self, space: Space, models: Mapping[str, Any] | None = None, *, seed: int = 0
    ) -> None:
        self.space, self.models, self.seed = space, models, seed

    def fit(self, genotypes: Sequence[Genotype], quality: Sequence[float]) -> Self:
        """Choose and fit.

        Raises:
            InputError: fewer than two genotypes, other than one quality each, or not a number.
        """
        from sklearn.base import clone
        from sklearn.model_selection import KFold, cross_val_predict

        y_N = np.asarray(quality, dtype=float)
        if len(genotypes) < 2 or y_N.shape != (len(genotypes),) or not np.isfinite(y_N).all():
            raise InputError(
                "a predictor is fitted to at least two genotypes with a number each, got "
                f"{len(genotypes)} genotypes and qualities {y_N.shape}: leave failures out"
            )
        x_NF = self.space.features(genotypes)
        folds = KFold(min(FOLDS, len(y_N)), shuffle=True, random_state=self.seed)
        models = regressions(self.seed) if self.models is None else self.models
        self.errors_: dict[str, float] = {}
        for name, model in models.items():
            missed_N = np.abs(cross_val_predict(clone(model), x_NF, y_N, cv=folds) - y_N)
            self.errors_[name] = float(missed_N.mean())
            if self.errors_[name] <= min(self.errors_.values()):
                self.chosen_, self.residuals_ = name, np.sort(missed_N)
        self.model_ = clone(models[self.chosen_]).fit(x_NF, y_N)
        return self

    def predict(self, genotypes: Sequence[Genotype]) -> Array:
        """(N,) expected quality."""
        if not len(genotypes):
            return np.zeros(0)
        return np.asarray(self.model_.predict(self.space.features(genotypes)), dtype=float)

    def spread(self, share: float = 0.68) -> float:
        """How far off a prediction is in this share of cases, at most.

        The conformal quantile of the errors in cross-validation, without their sign; it holds on
        average over genotypes drawn like those fitted, not for each.

        Raises:
            InputError: a share outside (0, 1).
        """
        if not 0 < share < 1:
            raise InputError(f"a share lies between 0 and 1, got {share}")
        rank = int(np.ceil(share * (len(self.residuals_) + 1))) - 1
        return float(self.residuals_[min(rank, len(self.residuals_) - 1)])


def regressions(seed: int = 0, *, forest: bool = False) -> dict[str, Any]:
    """Ridge and support vectors, with their strength chosen inside; and a forest, if asked."""
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVR

    found: dict[str, Any] = {"ridge": RidgeCV(np.logspace(-1, 1, 5))}
    for strength in (1, 10):
        scaled = TransformedTargetRegressor(
            SVR(C=strength, epsilon=0.01), transformer=StandardScaler()
        )
        found[f"support vectors, C={strength}"] = scaled
    if forest:
        found["forest"] = RandomForestRegressor(100, random_state=seed, n_jobs=1)
    return found
