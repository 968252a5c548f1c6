"""The stopping rules that compare tries: how sure a stage is, by name, for each kind of data.

All lie in [0, 1], so that thresholds on them can be read and compared.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from pointsman.compare.data import Kind
from pointsman.run import Confidence
from pointsman.select import margin, max_probability, negative_entropy

USUAL = "confidence"


def certainty(logits: Tensor) -> Tensor:
    """1 minus the entropy of the classes as a share of its greatest value: (n, C) → (n,)."""
    classes = logits.shape[1]
    return 1 + negative_entropy(logits) / math.log(classes) if classes > 1 else logits[:, 0] * 0 + 1


RULES: Mapping[str, Confidence] = {
    USUAL: max_probability,
    "margin": margin,
    "entropy": certainty,
}


def rules_for(kind: Kind) -> dict[str, Confidence]:
    """The rules for one kind of data: logits (n, C), or (n, L, C) for text, → (n,).

    A window of text is as sure as its places are on average: it leaves as one.
    """
    if kind != "text":
        return dict(RULES)
    return {name: partial(_over_places, rule) for name, rule in RULES.items()}


def _over_places(rule: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    places = rule(logits.flatten(0, 1)).view(logits.shape[:2])
    return places.mean(dim=1)
