"""Self-speculative decoding: an early exit drafts, the full depth verifies, one cache serves both.

After Elhoushi et al., "LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding"
(2024, arXiv 2404.16710). In each round the layers up to an exit draft k tokens one by one; their
hidden states are kept, and the layers after the exit then run for all of them at once, which tells
what the full model says at every place:

    drafts d_1 … d_k agree with the model up to d_a  →  d_1 … d_a and the model's own next token

so each round writes a + 1 tokens, from 1 to k + 1, and they are those that the full model would
have written one by one. Early layers run once for each token, late layers in one batch; their keys
and values go into the same cache, from which rejected drafts are dropped again.

"The same tokens" is meant in exact arithmetic. A batch of k + 1 tokens and a single one are summed
up in different orders, so two logits that lie within rounding of each other may change places: in
float64 this has not been seen, in float32 it is as rare as such ties.

With a temperature drafts and tokens are drawn instead: a draft of probability q under the exit and
p under the model is kept with probability min(1, p / q), else a token is drawn from what p has more
than q (Leviathan et al. 2023, arXiv 2211.17192), so that texts are distributed exactly as the full
model's. Where we depart from LayerSkip: batches of texts, each with its own number of right drafts;
and after a round in which all drafts were right the next token comes with it for free.

Legend: n texts, m of them still growing, k drafts, E exits, L layers, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pointsman.depth.decoding.exits import LanguageExits
from pointsman.depth.decoding.text import Decoded, Ints, Tally, Writing
from pointsman.errors import InputError
from pointsman.modules import evaluating
from pointsman.run import Confidence
from pointsman.select import max_probability


def speculate(
    model: LanguageExits,
    prompts: Tensor | Sequence[Tensor],
    new: int,
    *,
    drafts: int = 4,
    exit_: int = 0,
    sure: float = 0.0,
    confidence: Confidence = max_probability,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    end: int | None = None,
) -> Decoded:
    """Continue texts as the full model would, with drafts from an early exit.

    In evaluation mode and without gradients.

    Args:
        model: with at least one early exit.
        prompts: (n, P) ids, or n rows of any lengths from 1.
        new: tokens to add to each text, from 0.
        drafts: k, the most tokens to draft in a round, at least 1.
        exit_: which exit drafts.
        sure: drafting ends for this round when no text's last draft was as sure as this.
        confidence: logits (m, V) → (m,), for `sure`.
        temperature: 0: the likeliest token each time; above 0: drawn.
        generator: of draws.
        end: the token that ends a text; None: none does.

    Returns:
        The texts. Tokens of `exits` 0 were drafts that the model agreed with, those of 1 its own.

    Raises:
        InputError: an exit that is not an early one, no draft, a negative temperature, or prompts
            that are empty or do not fit the context.
    """
    if not 0 <= exit_ < len(model) - 1:
        raise InputError(
            f"drafts come from one of the {len(model) - 1} early exits, counted from 0, got {exit_}"
        )
    if drafts < 1 or temperature < 0:
        raise InputError(
            f"drafts are at least 1 and the temperature at least 0, got {drafts}, {temperature}"
        )
    text = Writing.start(prompts, new, end, model.trunk.context)
    chance = _Chance(temperature, generator) if temperature else None
    run = _Speculation(model, text, exit_, chance)
    with evaluating(model), torch.no_grad():
        run.prefill()
        while len(text.growing):
            run.round(drafts, sure, confidence)
    return run.tally.decoded(text, 2)


@dataclass(frozen=True)
class _Chance:
    """Draws at a temperature."""

    temperature: float
    generator: torch.Generator | None

    def probabilities(self, logits: Tensor) -> Tensor:
        return (logits.double() / self.temperature).softmax(dim=-1)

    def draw(self, probabilities: Tensor) -> Tensor:
        flat = probabilities.flatten(0, -2)
        drawn = torch.multinomial(flat, 1, generator=self.generator)
        return drawn.reshape(probabilities.shape[:-1])

    def uniform(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=self.generator, dtype=like.dtype)


class _Speculation:
    """One call of `speculate`."""

    def __init__(
        self, model: LanguageExits, text: Writing, exit_: int, chance: _Chance | None
    ) -> None:
        self.model, self.text, self.exit, self.chance = model, text, exit_, chance
        self.trunk, self.cut = model.trunk, model.bounds[exit_ + 1]
        self.cache = self.trunk.cache(len(text.ids))
        self.tally = Tally(len(self.trunk.names), 2)

    def prefill(self) -> None:
        """All tokens of the prompts but the last through all layers."""
        lengths = self.text.lengths - 1
        tokens = int(lengths.max(initial=0))
        if not tokens or not len(self.text.growing):
            return
        places = np.broadcast_to(np.arange(tokens), (len(lengths), tokens))
        places = np.where(places < lengths[:, None], places, -1)
        positions = torch.from_numpy(places).to(self.text.ids.device)
        x = self.trunk.begin(self.text.ids[:, :tokens], positions)
        self._layers(0, len(self.trunk.names), x, positions, None, int(lengths.sum()))

    def round(self, drafts: int, sure: float, confidence: Confidence) -> None:
        """Draft, verify, and write what the full model agrees with."""
        text, rows = self.text, self.text.rows()
        start = text.lengths[text.growing] - 1  # positions of the last tokens, which none ran yet
        left = int((text.limits - text.lengths)[text.growing].max()) - 1
        drafts = max(0, min(drafts, left, self.trunk.context - 1 - int(start.max())))
        states, drafted, odds = self._draft(start, rows, drafts, sure, confidence)
        k = drafted.shape[1]
        positions = self._positions(start, k + 1)
        m = len(start)
        x = self._layers(self.cut, len(self.trunk.names), states, positions, rows, m * (k + 1))
        logits = self.trunk.finish(x)
        self.tally.asked += np.array([m * k, m * (k + 1)])
        tokens, right = self._verified(logits, drafted, odds)
        exits = (torch.arange(k + 1) >= right[:, None]).long()
        growing = text.growing
        taken = text.append(tokens, exits, right.numpy() + 1)
        self.tally.rounds += 1
        self.tally.drafted += m * k
        self.tally.accepted += int(np.minimum(taken, right.numpy()).sum())
        bound = np.full(len(text.ids), self.trunk.context, dtype=np.int64)
        bound[growing] = text.lengths[growing] - 1
        same = len(bound) == 1
        self.cache.forget_from(int(bound[0]) if same else torch.from_numpy(bound))

    def _draft(
        self, start: Ints, rows: Tensor | None, drafts: int, sure: float, confidence: Confidence
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Up to so many drafts of each text.

        Returns:
            The hidden states (m, k + 1, D) at the exit of the last token and of the k drafts, the
            drafts (m, k), and their probabilities (m, k, V) where they were drawn.
        """
        ids, states, drafted = self.text.last(), [], []
        odds: list[Tensor] = []
        last = drafts
        for at in range(drafts + 1):
            positions = self._positions(start + at, 1)
            x = self.trunk.begin(ids, positions)
            states.append(self._layers(0, self.cut, x, positions, rows, len(start)))
            if at == last:
                break
            logits = self.model.answer(self.exit, states[-1])[:, 0]
            if self.chance is None:
                ids = logits.argmax(dim=-1)[:, None]
            else:
                odds.append(self.chance.probabilities(logits))
                ids = self.chance.draw(odds[-1])[:, None]
            drafted.append(ids)
            if sure > 0 and not bool((confidence(logits) >= sure).any()):
                last = at + 1  # this draft still runs the early layers, to be verified
        found = torch.cat(drafted, dim=1) if drafted else ids[:, :0]
        return torch.cat(states, dim=1), found, torch.stack(odds, dim=1) if odds else None

    def _verified(
        self, logits: Tensor, drafted: Tensor, odds: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What the full model writes, (m, k + 1), and how many drafts were right, (m,)."""
        k = drafted.shape[1]
        if self.chance is None:
            tokens = logits.argmax(dim=-1)
            right = (tokens[:, :k] == drafted).long().cumprod(dim=1).sum(dim=1)
            return tokens, right.cpu()
        wanted = self.chance.probabilities(logits)  # (m, k + 1, V)
        if odds is None:
            return self.chance.draw(wanted), torch.zeros(len(wanted), dtype=torch.int64)
        at = drafted[:, :, None]
        p, q = wanted[:, :k].gather(2, at)[:, :, 0], odds.gather(2, at)[:, :, 0]
        kept = self.chance.uniform(p) * q < p
        right = kept.long().cumprod(dim=1).sum(dim=1)
        more = (wanted[:, :k] - odds).clamp(min=0)
        # where the two agree everywhere no draft is refused, and nothing is drawn from there
        more = torch.where(more.sum(dim=2, keepdim=True) > 0, more, wanted[:, :k])
        own = self.chance.draw(torch.cat([more, wanted[:, k:]], dim=1))
        tokens = torch.cat([drafted, own[:, k:]], dim=1)
        rows = torch.arange(len(tokens), device=tokens.device)
        tokens[rows, right] = own[rows, right]
        return tokens, right.cpu()

    def _layers(
        self, first: int, stop: int, x: Tensor, positions: Tensor, rows: Tensor | None, count: int
    ) -> Tensor:
        for at in range(first, stop):
            x = self.trunk.block(at, x, positions, self.cache, rows)
            self.tally.ran[at] += count
        return x

    def _positions(self, start: Ints, tokens: int) -> Tensor:
        places = start[:, None] + np.arange(tokens)
        return torch.from_numpy(places).to(self.text.ids.device)
