"""The stopping rules that compare tries: how sure a stage is, by name, for each kind of data.

All but patience lie in [0, 1], so that thresholds on them can be read and compared. A window of
text is as sure as its places are on average: it leaves as one.
"""

import math
from collections.abc import Mapping

from torch import Tensor

from pointsman.compare.data import Kind
from pointsman.depth.stopping import OverPlaces, Patience
from pointsman.run import StoppingRule
from pointsman.select import margin, max_probability, negative_entropy

USUAL, PATIENCE = "confidence", "patience"


def certainty(logits: Tensor) -> Tensor:
    """1 minus the entropy of the classes as a share of its greatest value: (n, C) → (n,)."""
    classes = logits.shape[1]
    return 1 + negative_entropy(logits) / math.log(classes) if classes > 1 else logits[:, 0] * 0 + 1


RULES: Mapping[str, StoppingRule] = {
    USUAL: OverPlaces(max_probability),
    "margin": OverPlaces(margin),
    "entropy": OverPlaces(certainty),
    # counts alone have as many settings as there are stages: confidence ranks inputs between them
    PATIENCE: Patience(within=max_probability),
}


def rules_for(kind: Kind) -> dict[str, StoppingRule]:
    """The rules for one kind of data; the places of a window never all agree, so no patience."""
    return {name: rule for name, rule in RULES.items() if kind != "text" or name != PATIENCE}
