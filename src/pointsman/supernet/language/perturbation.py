"""Structured pruning with forward passes only: units are judged by switching many off at a time.

Dery et al., "Everybody Prune Now: Structured Pruning of LLMs with only Forward Passes" (2024,
arXiv 2402.05406), known as Bonsai. Units are attention heads and hidden units of feed-forwards.
Until enough parameters are gone, a round

1. takes a prior of every unit from one forward pass, such as |weights| times the size of inputs;
2. keeps the better 1 - 2p of each group of units; the other 2p are candidates;
3. draws masks that switch off half of the candidates, those of low prior more often, and measures
   the utility (minus the perplexity, say) under each mask and under its complement;
4. fits a linear regression of the utility on the masks, its penalty chosen by cross-validation on
   Kendall's rank correlation;
5. removes the candidates of the smallest coefficients, p of the parameters.

No gradient and no optimiser is kept, so pruning fits where inference does.

Where we depart: the paper descends from coefficients that equal the prior, here the ridge is solved
and its penalty is on what departs from the prior times a fitted factor; coefficients are divided by
the parameters of their unit before units of several sizes are compared, as what has to go is
parameters; units removed are zeros until the end, when the network is cut once. A mask and its
complement are constant in their sum, so that k masks hold only about k / 2 directions: without
`paired` the same number of masks says more, and it is left to choose.

Legend: U units of a group, C candidates, M masks.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.modules import evaluating
from pointsman.supernet.channels import ChannelGroup, channel_groups, narrow
from pointsman.supernet.language.units import Prior, Units, input_dim, inputs_read

Array = np.ndarray[Any, np.dtype[np.float64]]
Utility = Callable[[nn.Module], float]  # higher is better

PENALTIES = (1e-4, 1e-2, 1.0, 1e2)
FOLDS = 5


def weighted_inputs(model: nn.Module, group: ChannelGroup, read: Mapping[str, Tensor]) -> Tensor:
    """(U,) |weights| that take a unit times the size of what it gives, over all layers that do.

    After Sun et al. 2023, "Wanda", arXiv 2306.11695. Where no linear layer takes the units, the
    size of all weights that they own.
    """
    weights = dict(model.named_parameters())
    total_U = torch.zeros(group.size, dtype=torch.float64)
    for part in group.slices:
        module, _, tensor = part.name.rpartition(".")
        dim = input_dim(model.get_submodule(module))
        if tensor == "weight" and module in read and part.dim == dim:
            by_input = weights[part.name].detach().abs().double().sum(dim=1 - dim) * read[module]
            total_U += by_input[part.rows_UR].sum(dim=1)
    if bool(total_U.any()):
        return total_U
    for part in group.slices:
        if part.name in weights:
            rows = weights[part.name].detach().double().movedim(part.dim, 0)
            total_U += rows[part.rows_UR].abs().flatten(1).sum(dim=1)
    return total_U


def draw_masks(
    prior_C: Array, count: int, rng: np.random.Generator, *, paired: bool = True
) -> Array:
    """(M, C) masks of 1 (on) and 0: half of the candidates are off, those of low prior more often.

    Args:
        prior_C: of the candidates.
        count: M, about: one more where pairs need it.
        rng: of the draws.
        paired: each mask is followed by its complement.
    """
    off = max(1, len(prior_C) // 2)
    chance_C = prior_C.max() - prior_C + 1e-3 * (np.ptp(prior_C) + 1e-12)
    masks: list[Array] = []
    while len(masks) < count:
        mask = np.ones(len(prior_C))
        mask[rng.choice(len(prior_C), off, replace=False, p=chance_C / chance_C.sum())] = 0
        masks += [mask, 1 - mask] if paired else [mask]
    return np.array(masks)


def mask_effects(masks_MC: Array, utility_M: Array, prior_C: Array | None = None) -> Array:
    """(C,) how much of the utility each candidate brings: coefficients of a ridge regression.

    Its penalty is the one of `PENALTIES` (times the number of masks) with the highest Kendall rank
    correlation of predicted and measured utility in five folds, in which pairs stay together.

    Args:
        masks_MC: 1 where a candidate is on.
        utility_M: measured.
        prior_C: what the candidates are taken to bring, up to a common factor, which is fitted;
            the penalty is on what departs from it. None: nothing.
    """
    from scipy.stats import kendalltau

    folds = np.arange(len(masks_MC)) // 2 % FOLDS
    prior = np.zeros(masks_MC.shape[1]) if prior_C is None else prior_C

    def agreement(penalty: float) -> float:
        predicted = np.zeros(len(masks_MC))
        for fold in np.unique(folds):
            held = folds == fold
            slope, level = _ridge(masks_MC[~held], utility_M[~held], penalty, prior)
            predicted[held] = masks_MC[held] @ slope + level
        found = float(kendalltau(predicted, utility_M).statistic)
        return found if np.isfinite(found) else -1.0

    several = len(np.unique(folds)) > 1
    best = max(PENALTIES, key=agreement) if several else PENALTIES[1]
    return _ridge(masks_MC, utility_M, best, prior)[0]


def _ridge(
    masks_MC: Array, utility_M: Array, penalty: float, prior_C: Array
) -> tuple[Array, float]:
    """Coefficients (C,) and the intercept; neither it nor the factor of the prior is penalised."""
    middle_C, level = masks_MC.mean(axis=0), float(utility_M.mean())
    centred, rest_M = masks_MC - middle_C, utility_M - level
    expected_M = centred @ prior_C
    spread = float(expected_M @ expected_M)
    factor = max(float(expected_M @ rest_M) / spread, 0.0) if spread > 0 else 0.0
    rest_M = rest_M - factor * expected_M
    gram = centred.T @ centred / len(centred) + penalty * np.eye(len(middle_C)) / 4
    slope_C = factor * prior_C + np.linalg.solve(gram, centred.T @ rest_M / len(centred))
    return slope_C, level - float(middle_C @ slope_C)


class PerturbationPruning:
    """Prune heads and hidden units by forward passes alone.

    Args:
        share: of the parameters of all units, how many go in all; the last unit may exceed it.
        step: p, of the same, how many go in a round.
        masks: M of a round; 0: the prior alone decides.
        prior: what units are worth before any is switched off.
        paired: whether each mask comes with its complement.
        seed: of the masks.

    Attributes:
        kept_: for each group, by name, the units that stay.
        pruned_: the smaller model.
        evaluations_: how often the utility was measured.
    """

    def __init__(
        self,
        share: float = 0.5,
        *,
        step: float = 0.05,
        masks: int = 200,
        prior: Prior = weighted_inputs,
        paired: bool = True,
        seed: int = 0,
    ) -> None:
        if not (0 < share < 1 and 0 < step <= 0.5 and masks >= 0):
            raise InputError(
                "a share lies in (0, 1), a step in (0, 0.5] and masks are at least 0, got "
                f"{share}, {step} and {masks}"
            )
        self.share, self.step, self.masks = share, step, masks
        self.prior, self.paired, self.seed = prior, paired, seed

    def fit(
        self,
        model: nn.Module,
        example: Any,
        utility: Utility,
        groups: Sequence[ChannelGroup] | None = None,
    ) -> Self:
        """Remove units until their share of the parameters is gone.

        Args:
            model: stays as it is.
            example: a batch to take the prior from.
            utility: of a model, the higher the better, always on the same data; the model it is
                given must not be changed.
            groups: of units of `model`; None: all whose units can be removed exactly, which are
                the heads and hidden units of a transformer.

        Raises:
            InputError: no group of units, a utility that is not finite, or a share that leaves some
                group without a unit.
        """
        found = groups or [g for g in channel_groups(model, example) if g.exact]
        if not found:
            raise InputError("nothing in this model can be removed exactly: give `groups`")
        work = copy.deepcopy(model)
        units = Units(work, found)
        rng = np.random.default_rng(self.seed)
        self.evaluations_ = 0
        goal = self.share * units.total
        while units.removed < goal - 1e-9:
            most = min(goal - units.removed, self.step * units.total)
            if not self._round(work, units, example, utility, most, rng):
                raise InputError(
                    f"each group keeps a unit, so {self.share:.0%} of the parameters cannot go: "
                    "lower the share"
                )
        self.kept_ = {group.name: kept for group, kept in units.kept().items()}
        self.pruned_ = narrow(model, units.kept())
        return self

    def _round(
        self,
        work: nn.Module,
        units: Units,
        example: Any,
        utility: Utility,
        most: float,
        rng: np.random.Generator,
    ) -> bool:
        """Remove units of `most` parameters, at least one; False: there was none to remove."""
        prior = units.priors(inputs_read(work, example), self.prior)
        # p is meant of what is left, or the last rounds would run out of candidates
        share = min(1.0, 2 * self.step * units.total / (units.total - units.removed))
        candidates = units.candidates(prior, share)
        if not candidates:
            return False
        worth = np.array([prior[unit] for unit in candidates])
        if self.masks and len(candidates) > 1:
            masks_MC = draw_masks(worth, self.masks, rng, paired=self.paired)
            measured = np.array(
                [self._measure(work, units, candidates, m, utility) for m in masks_MC]
            )
            sizes = np.array([units.size(unit) for unit in candidates])
            worth = mask_effects(masks_MC, measured, worth * sizes) / sizes
        removed = 0.0
        for at in np.argsort(worth, kind="stable"):
            if removed >= most - 1e-9:
                break
            removed += units.remove(candidates[at])
        return removed > 0

    def _measure(
        self,
        work: nn.Module,
        units: Units,
        candidates: Sequence[tuple[int, int]],
        mask_C: Array,
        utility: Utility,
    ) -> float:
        off = [unit for unit, on in zip(candidates, mask_C, strict=True) if not on]
        with units.without(off), evaluating(work), torch.no_grad():
            found = float(utility(work))
        self.evaluations_ += 1
        if not np.isfinite(found):
            raise InputError(f"a utility is a finite number, got {found}")
        return found
