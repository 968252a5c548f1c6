"""What the depth of a network is used for: contributions, skips, erasure, logit lens, linear maps.

After Csordás, Manning & Potts, "Do Language Models Use Their Depth Efficiently?" (2025,
arXiv:2505.13898). Nothing is trained; a network is walked block by block, with something changed on
the way. h_l is the state before block l and d_l = h_{l+1} - h_l what the block adds.

Where we depart: linear maps between two networks are least squares with a small ridge in closed
form, on half of the tokens, and judged on the other half, instead of 10,000 steps of AdamW; means
over tokens are reported beside maxima, because maxima depend on how many prompts there are.

Any `Trunk` whose features are its states will do: (n, S, D) or (n, D). The first token of a
language model often has a huge norm: leave it out with `start=1`.
"""

from pointsman.depth.diagnostics.adding import (
    Contributions,
    contributions,
    sublayer_contributions,
)
from pointsman.depth.diagnostics.reading import (
    Lens,
    integrated_gradients,
    linear_maps,
    logit_lens,
)
from pointsman.depth.diagnostics.removing import SkipEffects, erasure, skip_effects
from pointsman.depth.diagnostics.walking import hidden_states

__all__ = [
    "Contributions",
    "Lens",
    "SkipEffects",
    "contributions",
    "erasure",
    "hidden_states",
    "integrated_gradients",
    "linear_maps",
    "logit_lens",
    "skip_effects",
    "sublayer_contributions",
]
