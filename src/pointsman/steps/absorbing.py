"""Discrete diffusion that hides tokens: a network without time, losses, and sampling.

Every token is hidden (absorbed) by time t with probability t, and sampling reveals hidden ones.
The score of such a process factorises (RADD: Ou et al. 2024, arXiv 2406.03736): for a hidden place
i and rate lambda of hiding,

    p_t(x with x_i = v) / p_t(x) = (1 - lambda) / lambda  p_0(x_i = v | tokens that show),

so that time enters as a number in front and the network need not be given it. What it predicts
depends on the tokens alone and can be used again until one changes: see `policies.WhenChanged`.

Departures: learned positions and a plain transformer in place of rotary positions in a DiT; sizes
for a CPU.

Legend: n sequences, L places, V tokens (the hidden one has the id V), D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.steps.sampling import Evaluation, Moment

# tokens (n, L), some hidden -> logits (n, L, V) of the clean ones
CleanPredictor = Callable[[Tensor], Tensor]


class TokenTransformer(nn.Module):
    """Tokens (n, L), some hidden, → logits (n, L, V) of what they were.

    Args:
        vocabulary: V; the id V stands for a hidden token.
        length: L, the most places.
        width: D.
        layers: of attention in both directions.
        heads: of attention.
        timed: give it the time too, as score models without the factorisation do.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int,
        width: int,
        layers: int,
        heads: int,
        timed: bool = False,
    ) -> None:
        super().__init__()
        self.vocabulary, self.timed = vocabulary, timed
        self.tokens = nn.Embedding(vocabulary + 1, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.time = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor, t: float | Tensor | None = None) -> Tensor:
        """(n, L) → (n, L, V).

        Args:
            tokens: int64, from 0 to V.
            t: share that is hidden, one or (n,); read only by a timed network.

        Raises:
            InputError: a timed network was not told the time.
        """
        x = self.tokens(tokens) + self.places[: tokens.shape[1]]
        if self.timed:
            if t is None:
                raise InputError("a timed network reads the time: give t")
            told = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
            x = x + self.time(told[:, None])[:, None]
        logits: Tensor = self.head(self.norm(self.layers(x)))
        return logits

    def evaluation(self, name: str, length: int) -> Evaluation:
        """This network as an evaluation, its cost counted on one sequence of so many places."""

        def run(tokens: Tensor, t: float, condition: Tensor | None) -> Tensor:
            found: Tensor = self(tokens, t)
            return found

        example = torch.full((1, length), self.vocabulary, device=self.places.device)
        return Evaluation.counted(name, run, example)


def hide_by_rate(
    n: int, length: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Hide every token with probability lambda, a weight of 1 / lambda (the lambda-DCE loss).

    lambda is spread evenly over (0, 1] within the batch, which keeps the weight's variance low.

    Returns:
        What is hidden, (n, L) bool, and a weight per sequence, (n,).
    """
    rate = (torch.arange(n) + 1 - torch.rand(n, generator=generator)) / max(n, 1)
    rate = rate.clamp(min=1e-3)
    return torch.rand(n, length, generator=generator) < rate[:, None], 1 / rate


def hide_by_order(
    n: int, length: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Hide all places from a random one on in a random order: the any-order autoregressive loss.

    With k hidden, each of 1 to L alike, the weight is L / k. The same loss in expectation as
    `hide_by_rate`: both weigh a set of k hidden places by 1 / k.

    Returns:
        What is hidden, (n, L) bool, and a weight per sequence, (n,).
    """
    hidden = torch.randint(1, length + 1, (n,), generator=generator)
    order = torch.rand(n, length, generator=generator).argsort(dim=1).argsort(dim=1)
    return order < hidden[:, None], length / hidden


def clean_loss(
    network: CleanPredictor, tokens: Tensor, hidden: Tensor, weight: Tensor, vocabulary: int
) -> Tensor:
    """Nats a token: the weighted cross-entropy of hidden tokens, a bound on -log p.

    Args:
        network: see `CleanPredictor`.
        tokens: clean, (n, L).
        hidden: (n, L) bool.
        weight: (n,), as `hide_by_rate` and `hide_by_order` give with it.
        vocabulary: V.
    """
    logits = network(torch.where(hidden, vocabulary, tokens))
    nats = functional.cross_entropy(logits.transpose(1, 2), tokens.long(), reduction="none")
    return (torch.where(hidden, nats, 0.0).sum(dim=1) * weight).mean() / tokens.shape[1]


@dataclass(frozen=True)
class Unmasking:
    """A sampler of hidden tokens: from t to s each is revealed with probability (t - s) / t.

    Revealed tokens are drawn from the prediction and stay. Time is the share that is hidden, from
    1, where x is all hidden, to 0.

    Attributes:
        hidden: the id of hidden tokens, V.
    """

    hidden: int

    def step(
        self, now: Moment, prediction: Tensor, memory: Any, generator: torch.Generator | None
    ) -> tuple[Tensor, None]:
        """One step; the prediction is logits (n, L, V)."""
        shape, device = now.x.shape, now.x.device
        chance = torch.rand(shape, generator=generator, device=device)
        noise = torch.rand(prediction.shape, generator=generator, device=device)
        gumbel = -(-noise.clamp(min=1e-20).log()).log()
        drawn = (prediction.float() + gumbel).argmax(dim=-1)
        revealed = (now.x == self.hidden) & (chance < (now.t - now.s) / now.t)
        return torch.where(revealed, drawn, now.x), None


def all_hidden(n: int, length: int, vocabulary: int) -> Tensor:
    """(n, L) hidden tokens: where sampling starts."""
    return torch.full((n, length), vocabulary)


def even_times(steps: int) -> tuple[float, ...]:
    """The steps + 1 times of a run, evenly spaced from 1 down to 0.

    Raises:
        InputError: fewer than one step.
    """
    if steps < 1:
        raise InputError(f"a run has at least one step, got {steps}")
    return tuple(1 - k / steps for k in range(steps + 1))


def expected_evaluations(length: int, steps: int) -> float:
    """Evaluations of `policies.WhenChanged` in a run over `even_times`.

    1 + (K - 1)(1 - (1 - 1/K)^L): each place is revealed at one of the K steps alike, and every step
    but the last after which a token has changed calls for another evaluation. The paper counts the
    steps at which tokens change, K (1 - (1 - 1/K)^L); the first evaluation is made here before that
    is known, which is (1 - 1/K)^L evaluations more.
    """
    changed = 1 - (1 - 1 / steps) ** length
    return 1 + (steps - 1) * changed
