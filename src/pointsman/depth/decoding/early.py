"""Decoding in which every token leaves at the first exit that is sure enough.

A token that leaves early has no keys and values at the deeper layers, which later tokens want to
attend to. There are two ways out, and `keep` chooses:

    "exact"      The hidden states of tokens that left wait at their exit. When a later token of the
                 same text goes deeper, they go with it in one batch, each at its own position. So
                 every layer that runs sees exactly what it would see without exits: the logits of
                 each exit are those that the full network has at this exit for the same text so
                 far. What is saved is the layers after the last token that went deep, and time:
                 several tokens go through the deeper layers at once. The prompt waits likewise.
    "propagate"  The deeper layers take keys and values from the hidden state with which the token
                 left, and do not run for it (Schuster et al., "Confident Adaptive Language
                 Modeling", 2022, arXiv 2207.07061). That is what saves work for good. It is exact
                 in a weaker sense: later tokens see a network in which this token's state did not
                 change after its exit. The prompt, apart from its last token, runs at full depth.

Both are tested against runs without a cache that recompute every text from its start.

Legend: n texts, m of them run now, q tokens of each, E exits, L layers, D width, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pointsman.depth.cache import KeyValueCache
from pointsman.depth.decoding.exits import LanguageExits
from pointsman.depth.decoding.text import Choose, Decoded, Ints, Tally, Writing, greedy
from pointsman.errors import InputError
from pointsman.modules import evaluating
from pointsman.run import Confidence, Stage, State, StoppingRule, Thresholds, run_staged
from pointsman.select import max_probability

Keep = Literal["exact", "propagate"]
KEEPS: tuple[Keep, ...] = ("exact", "propagate")


def decode(
    model: LanguageExits,
    prompts: Tensor | Sequence[Tensor],
    new: int,
    thresholds: Thresholds | Callable[[int], Thresholds] = math.inf,
    *,
    confidence: Confidence | StoppingRule = max_probability,
    keep: Keep = "exact",
    choose: Choose = greedy,
    end: int | None = None,
) -> Decoded:
    """Continue texts, each token from the first exit that is sure enough of it.

    In evaluation mode and without gradients.

    Args:
        model: with exits.
        prompts: (n, P) ids, or n rows of any lengths from 1.
        new: tokens to add to each text, from 0.
        thresholds: as for `run_staged`, one number or one per exit; inf: full depth, and no early
            head runs. Or a function of the number of tokens written so far, see `falling`.
        confidence: logits (m, V) → (m,), higher is surer; or a stopping rule, whose memory goes
            from exit to exit of one token.
        keep: what deeper layers know of tokens that left before them, see above.
        choose: logits (m, V) → ids (m,); greedy unless given.
        end: the token that ends a text; None: none does.

    Raises:
        InputError: prompts that are empty or do not fit the context with what is to be added, or
            another `keep`.
    """
    if keep not in KEEPS:
        raise InputError(f"keep is one of {', '.join(KEEPS)}, got {keep!r}")
    text = Writing.start(prompts, new, end, model.trunk.context)
    run = _Run(model, text, keep)
    with evaluating(model), torch.no_grad():
        step = 0
        while len(text.growing):
            limits = thresholds(step) if callable(thresholds) else thresholds
            run.step(limits, confidence, choose)
            step += 1
    return run.tally.decoded(text, len(model))


def falling(threshold: float, temperature: float, length: int) -> Callable[[int], float]:
    """A threshold that starts higher and falls: early mistakes disturb all that follows.

    0.9 λ + 0.1 exp(-τ t / N) at token t, as in Schuster et al. (2022), equation 5.

    Args:
        threshold: λ.
        temperature: τ, at least 0.
        length: N.
    """
    if temperature < 0 or length < 1:
        raise InputError(
            f"temperature is at least 0 and length at least 1, got {temperature}, {length}"
        )
    return lambda step: 0.9 * threshold + 0.1 * math.exp(-temperature * step / length)


class _Run:
    """One call of `decode`: the cache, and hidden states that wait at the exits."""

    def __init__(self, model: LanguageExits, text: Writing, keep: Keep) -> None:
        self.model, self.text, self.keep = model, text, keep
        self.trunk = model.trunk
        self.cache: KeyValueCache = self.trunk.cache(len(text.ids))
        self.tally = Tally(len(self.trunk.names), len(model))
        # tokens of each text that came as far as each exit, (E + 1, n); [0]: embedded
        self.reached = np.zeros((len(model) + 1, len(text.ids)), dtype=np.int64)
        self.waiting: list[Tensor | None] = [None] * len(model)  # (n, P + N, D) before a segment
        self.last: tuple[Ints, Ints, Tensor, Tensor] | None = None  # see `_places`
        self.left: Tensor | None = None  # (n, D) with which each text's last token came furthest

    def step(
        self, limits: Thresholds, confidence: Confidence | StoppingRule, choose: Choose
    ) -> None:
        """One token more for every growing text."""
        text, rows = self.text, self.text.growing
        device = text.ids.device
        if self.keep == "propagate" and not self.reached[0].any():
            self._prefill(text.lengths - 1)
        state = {"rows": torch.from_numpy(rows).to(device), "last": text.last()}
        stages = [
            Stage(partial(self._answer, at), partial(self._advance, at))
            for at in range(len(self.model))
        ]
        found = run_staged(stages, state, limits, confidence)
        exits = found.stage
        if self.keep == "propagate":
            self._propagate(rows, exits.cpu().numpy())
        self.tally.rounds += 1
        text.append(choose(found.output)[:, None], exits[:, None])

    def _answer(self, exit_: int, state: State) -> Tensor:
        self.tally.asked[exit_] += len(state["rows"])
        return self.model.answer(exit_, state["last"])[:, 0]

    def _advance(self, segment: int, state: State) -> State:
        """Run a segment for the last token of each row, and for all that wait before it."""
        rows = state["rows"]
        chosen: Ints = rows.cpu().numpy()
        if segment == 0:
            self.reached[0, chosen] = self.text.lengths[chosen]
        start, stop = self.reached[segment + 1, chosen], self.reached[segment, chosen]
        tokens = int((stop - start).max(initial=0))
        rows, positions = self._places(rows, chosen, start, stop, tokens)
        if segment == 0:
            ids = self.text.ids[rows[:, None], positions.clamp(min=0)]
            x = self.trunk.begin(ids, positions)
        elif tokens == 1:
            x = state["last"]
        else:
            waiting = self.waiting[segment]
            assert waiting is not None
            x = waiting[rows[:, None], positions.clamp(min=0)]
        x = self._blocks(segment, x, positions, rows, int((stop - start).sum()))
        self.reached[segment + 1, chosen] = stop
        if segment + 1 < len(self.model) and self.keep == "exact":
            self._keep_waiting(segment + 1, x, positions, rows)
        if tokens != 1:
            ends = torch.from_numpy(stop - start - 1).to(rows.device)
            x = x[torch.arange(len(rows), device=rows.device), ends][:, None]
        if self.keep == "propagate":
            self.left = x.new_zeros(len(self.text.ids), x.shape[2]) if segment == 0 else self.left
            assert self.left is not None
            self.left[rows] = x[:, 0]
        return {"rows": rows, "last": x}

    def _places(
        self, rows: Tensor, chosen: Ints, start: Ints, stop: Ints, tokens: int
    ) -> tuple[Tensor, Tensor]:
        """Rows and positions (m, q), the same tensors as before where they say the same.

        What layers work out from positions is kept by tensor, not by value.
        """
        places = start[:, None] + np.arange(tokens)
        places = np.where(places < stop[:, None], places, -1)
        if self.last is not None:
            last_chosen, last_places, kept_rows, kept = self.last
            if np.array_equal(chosen, last_chosen) and np.array_equal(places, last_places):
                return kept_rows, kept
        positions = torch.from_numpy(places).to(rows.device)
        self.last = chosen.copy(), places.copy(), rows, positions
        return rows, positions

    def _blocks(
        self, segment: int, x: Tensor, positions: Tensor, rows: Tensor, count: int
    ) -> Tensor:
        """Hidden states (m, q, D) through one segment."""
        of = None if len(rows) == len(self.text.ids) else rows
        for at in range(*self.model.bounds[segment : segment + 2]):
            x = self.trunk.block(at, x, positions, self.cache, of)
            self.tally.ran[at] += count
        return x

    def _keep_waiting(self, segment: int, x: Tensor, positions: Tensor, rows: Tensor) -> None:
        """Keep hidden states for the segment that comes next, should a later token need it."""
        if self.waiting[segment] is None:
            shape = (len(self.text.ids), self.text.ids.shape[1], x.shape[2])
            self.waiting[segment] = x.new_zeros(shape)
        waiting = self.waiting[segment]
        assert waiting is not None
        if x.shape[1] == 1:
            waiting[rows, positions[:, 0]] = x[:, 0]
        else:
            real = positions >= 0
            waiting[rows[:, None].expand_as(positions)[real], positions[real]] = x[real]

    def _prefill(self, lengths: Ints) -> None:
        """The first tokens of each text through all layers."""
        rows = torch.arange(len(lengths), device=self.text.ids.device)
        tokens = int(lengths.max(initial=0))
        chosen: Ints = rows.cpu().numpy()
        rows, positions = self._places(rows, chosen, lengths * 0, lengths, tokens)
        self.reached[:] = lengths
        if tokens:
            ids = self.text.ids[rows[:, None], positions.clamp(min=0)]
            x = self.trunk.begin(ids, positions)
            for segment in range(len(self.model)):
                x = self._blocks(segment, x, positions, rows, int(lengths.sum()))

    def _propagate(self, rows: Ints, exits: Ints) -> None:
        """Keys and values of the deeper layers from the states with which tokens left."""
        device = self.text.ids.device
        places = self.text.lengths[rows] - 1
        for segment in range(1, len(self.model)):
            gone = exits < segment
            if not gone.any():
                continue
            assert self.left is not None
            chosen = torch.from_numpy(rows[gone]).to(device)
            positions = torch.from_numpy(places[gone]).to(device)[:, None]
            x = self.left[chosen][:, None]
            of = None if len(chosen) == len(self.text.ids) else chosen
            for layer in range(*self.model.bounds[segment : segment + 2]):
                self.trunk.store(layer, x, positions, self.cache, of)
                self.tally.stored[layer] += len(chosen)
            self.reached[segment + 1, rows[gone]] = places[gone] + 1
