"""The interface of routers: features of tokens, and what else is known of them, to scores.

Legend: T tokens, D width, E experts.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from pointsman.moe.context import Context
from pointsman.select import Guarantee


class Scored(NamedTuple):
    """What a router says of each token, where scores alone are not all.

    Fields: `scores` (T, E), what is selected from; `clean` (T, E), the scores before noise;
    `spread` (T, E), the standard deviation of that noise; `state` (T, P), what the next routed
    layer's router goes on from.
    """

    scores: Tensor
    clean: Tensor | None = None
    spread: Tensor | None = None
    state: Tensor | None = None


class Router(nn.Module, ABC):
    """A router that reads more than features, learns outside of autograd, or mixes tokens.

    A plain module from (T, D) to (T, E), such as `nn.Linear`, is a router too: it is called with
    the features alone and taken to treat each token by itself.

    Attributes:
        guarantee: what one token's scores may depend on beside that token.
        keeps_tokens: whether `after_step` needs `Routing.tokens`.
    """

    guarantee: Guarantee = Guarantee(batch_independent=True, causal=True)
    keeps_tokens: bool = False

    @abstractmethod
    def forward(self, x_TD: Tensor, context: Context) -> Tensor | Scored:
        """Scores (T, E); -inf marks an expert that a token may not have."""
