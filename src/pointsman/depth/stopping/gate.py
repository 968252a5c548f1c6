"""A learned gate at each exit: whether the inputs should leave here, from how sure the exit is.

Regol, Chataoui & Coates, "Jointly-Learned Exit and Inference for a Dynamic Neural Network:
JEI-DNN" (2023, arXiv:2310.09163). Gate l reads four numbers off the softmax of exit l and no more
(largest probability, entropy, margin, entropy of the squared probabilities brought to sum 1), so
that a few weights suffice:

    g_l = sigmoid(w_l . features_l + b_l)
    P_l = max(0, min(g_l, 1 - sum_{j<l} g_j))         the share of an input that leaves at l
    c_l = P_l / prod_{j<l} (1 - c_j), within [0, 1]   the chance to leave at l for who came there

and an input leaves at the first c_l that reaches one half. Every gate sees only the logits of its
own exit; what earlier gates said reaches it through the sums.

Where we depart: the threshold on c_l may be another than one half, so that one trained set of gates
has a knob; where nothing is left to leave (the product is 0), c_l is 1. How the gates are trained
is in `depth.gating`.

Legend: n inputs, G gates, S = G + 1 exits, C classes.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.run import State
from pointsman.select import margin, max_probability, negative_entropy

FEATURES = 4


def gate_features(logits: Tensor) -> Tensor:
    """What a gate reads off logits (n, C), without gradient: (n, 4) float32 or float64.

    Largest probability, entropy in nats, margin between the two likeliest, and the entropy of the
    squared probabilities after they are brought to sum 1.

    Raises:
        RouteError: as in `select.max_probability`.
    """
    logits = logits.detach()
    # squared probabilities that sum to 1 are the softmax of twice the logits
    entropies = (-negative_entropy(logits), -negative_entropy(2 * logits))
    columns = [max_probability(logits), entropies[0], margin(logits), entropies[1]]
    return torch.stack(columns, dim=1)


class LearnedGate(nn.Module):
    """One linear unit for each exit before the last; a stopping rule.

    The knob is the threshold on c_l, in [0, 1]; published: 0.5.

    Args:
        gates: G, the exits before the last.

    Attributes:
        weight: (G, 4) and bias: (G,), which start at 0: every gate at one half.

    Raises:
        InputError: no gate.
    """

    def __init__(self, gates: int) -> None:
        super().__init__()
        if gates < 1:
            raise InputError(f"there is a gate for each exit before the last, got {gates}")
        self.weight = nn.Parameter(torch.zeros(gates, FEATURES))
        self.bias = nn.Parameter(torch.zeros(gates))

    def scores(self, logits: Sequence[Tensor] | Tensor) -> Tensor:
        """Before the sigmoid, (n, G), from the logits (n, C) of the exits, the last one or not.

        Raises:
            InputError: logits of fewer exits than there are gates.
        """
        gates = len(self.weight)
        if len(logits) < gates:
            raise InputError(f"{gates} gates read the logits of {gates} exits, got {len(logits)}")
        return torch.stack([self._score(logits[at], at) for at in range(gates)], dim=1)

    def forward(self, logits: Sequence[Tensor] | Tensor) -> Tensor:
        """Share of each input that leaves at each exit, (n, S); the rows sum to 1."""
        return exit_shares(self.scores(logits).sigmoid())

    @torch.no_grad()
    def sureness(self, logits: Tensor, stage: int, memory: State | None) -> tuple[Tensor, State]:
        """c_l (n,), and the sum of g and the product of 1 - c so far, (n,) each; without gradient.

        The last exit has no gate: whoever comes there leaves, c is 1.

        Raises:
            InputError: an exit beyond the last.
        """
        if stage > len(self.weight):
            raise InputError(
                f"{len(self.weight)} gates serve {len(self.weight) + 1} exits, got exit {stage} "
                "(from 0)"
            )
        if stage == len(self.weight):
            return torch.ones(len(logits), device=logits.device), memory
        gate = self._score(logits, stage).sigmoid()
        zero = torch.zeros_like(gate)
        said, left = (zero, zero + 1) if memory is None else memory
        share = torch.minimum(gate, 1 - said).clamp_min(0)
        chance = torch.where(left > 0, (share / left.clamp_min(1e-12)).clamp(0, 1), 1.0)
        return chance, (said + gate, left * (1 - chance))

    def _score(self, logits: Tensor, at: int) -> Tensor:
        features = gate_features(logits)
        return features @ self.weight[at].to(features) + self.bias[at].to(features)

    def to_state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Plain values and tensors, for a saved policy."""
        return {"gates": len(self.weight)}, {k: v.detach() for k, v in self.state_dict().items()}

    @classmethod
    def from_state(cls, plain: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """What `to_state` gave, back."""
        rule = cls(plain["gates"])
        rule.load_state_dict(dict(tensors))
        return rule


def exit_shares(gates: Tensor) -> Tensor:
    """P (n, S) from g (n, G) in [0, 1]: what the gates let out, in order; the last takes the rest.

    Rows sum to 1. Gradients flow.
    """
    before = gates.cumsum(dim=1) - gates
    shares = torch.minimum(gates, 1 - before).clamp_min(0)
    return torch.cat([shares, 1 - shares.sum(dim=1, keepdim=True)], dim=1)
