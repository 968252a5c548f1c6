"""Texts that grow token by token: prompts of any lengths, an end token, what ran for them.

Legend: n sequences, m of them still growing, P tokens of the longest prompt, N new tokens at most,
V vocabulary, L layers, E exits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pointsman.errors import InputError
from pointsman.route import Route

Ints = npt.NDArray[np.int64]
Choose = Callable[[Tensor], Tensor]  # logits (m, V) → ids (m,)


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token, the first of equals: (m, V) → (m,)."""
    return logits.argmax(dim=-1)


@dataclass(frozen=True, eq=False)
class Decoded:
    """What was written, and what ran for it.

    Attributes:
        ids: (n, P + N) prompts and new tokens; 0 after each text's end.
        lengths: (n,) tokens of each, prompt included.
        exits: (n, N) the exit that each new token came from; -1 where there is none. After
            speculative decoding: 0 a draft that was right, 1 the full model.
        num_exits: E.
        ran: (L,) int64, tokens that went through each layer, those of the prompts, of drafts and
            those caught up later included.
        stored: (L,) int64, tokens of which a layer took keys and values without running.
        asked: (E,) int64, tokens whose logits each exit worked out.
        drafted: tokens that were proposed, 0 without speculation.
        accepted: of these, how many the full model agreed with.
        rounds: steps of the loop; in each every layer ran at most once, apart from drafting.
    """

    ids: Tensor
    lengths: Tensor
    exits: Tensor
    num_exits: int
    ran: Tensor
    stored: Tensor
    asked: Tensor
    drafted: int = 0
    accepted: int = 0
    rounds: int = 0

    @property
    def route(self) -> Route:
        """New tokens, text after text, over the exits they passed; weight 1 at the one they left.

        Exits passed have weight 0.
        """
        answered = self.exits[self.exits >= 0]
        stage = torch.arange(self.num_exits, device=answered.device)
        weights = (stage == answered[:, None]).to(torch.get_default_dtype())
        return Route.from_dense(weights, stage <= answered[:, None])

    def texts(self) -> list[Tensor]:
        """Each text without what fills its row."""
        return [row[:length] for row, length in zip(self.ids, self.lengths.tolist(), strict=True)]


@dataclass(eq=False)
class Writing:
    """Texts being written; counts are kept on the host, where the loops run."""

    ids: Tensor  # (n, P + N)
    lengths: Ints  # (n,)
    limits: Ints  # (n,) lengths at which they end
    prompts: Ints  # (n,)
    end: int | None
    exits: Ints  # (n, N)
    growing: Ints = field(init=False)  # (m,) rows

    def __post_init__(self) -> None:
        self.growing = np.flatnonzero(self.lengths < self.limits)

    @classmethod
    def start(
        cls, prompts: Tensor | Sequence[Tensor], new: int, end: int | None, context: int
    ) -> "Writing":
        """Room for `new` tokens after each prompt.

        Raises:
            InputError: an empty prompt, ids that are not whole numbers, or texts that do not fit
                the context.
        """
        rows = list(prompts)
        for at, row in enumerate(rows):
            if row.ndim != 1 or not len(row) or row.is_floating_point():
                raise InputError(
                    f"a prompt is a row of at least one token id, got shape {tuple(row.shape)} of "
                    f"{row.dtype} at {at}"
                )
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        longest = int(lengths.max(initial=0))
        # the last token is written, but nothing follows it: it needs no position
        if new < 0 or longest + new - 1 > context:
            raise InputError(
                f"the model tells {context} positions apart, a prompt of {longest} tokens and "
                f"{new} new ones need {longest + new - 1}: shorten the prompt, or ask for fewer"
            )
        device = rows[0].device if rows else torch.device("cpu")
        ids = torch.zeros(len(rows), longest + new, dtype=torch.int64, device=device)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = row
        exits = np.full((len(rows), new), -1, dtype=np.int64)
        return cls(ids, lengths.copy(), lengths + new, lengths, end, exits)

    def rows(self) -> Tensor | None:
        """The growing rows, (m,); None: all."""
        if len(self.growing) == len(self.ids):
            return None
        return torch.from_numpy(self.growing).to(self.ids.device)

    def last(self) -> Tensor:
        """(m, 1) the last token of each growing row."""
        at = torch.from_numpy(self.lengths[self.growing] - 1).to(self.ids.device)
        rows = torch.from_numpy(self.growing).to(self.ids.device)
        return self.ids[rows, at][:, None]

    def append(self, tokens: Tensor, exits: Tensor, counts: Ints | None = None) -> Ints:
        """Write tokens (m, k) that came from exits (m, k); rows that end stop growing.

        Args:
            tokens: ids.
            exits: of each token.
            counts: (m,) how many of the k each row takes; None: all k.

        Returns:
            (m,) how many each row took: fewer where it ended.
        """
        given, left = tokens.cpu().numpy(), exits.cpu().numpy()
        m, k = given.shape
        rows = self.growing
        taken = np.full(m, k) if counts is None else counts
        taken = np.minimum(taken, self.limits[rows] - self.lengths[rows])
        ended = np.zeros(m, dtype=bool)
        if self.end is not None:
            is_end = (given == self.end) & (np.arange(k) < taken[:, None])
            ended = is_end.any(axis=1)
            taken = np.where(ended, is_end.argmax(axis=1) + 1, taken)
        here = np.arange(k) < taken[:, None]
        at_row = np.broadcast_to(rows[:, None], (m, k))[here]
        at = (self.lengths[rows][:, None] + np.arange(k))[here]
        device = self.ids.device
        place = torch.from_numpy(at_row).to(device), torch.from_numpy(at).to(device)
        self.ids[place] = torch.from_numpy(given[here]).to(device)
        self.exits[at_row, at - self.prompts[at_row]] = left[here]
        self.lengths[rows] += taken
        self.growing = rows[~ended & (self.lengths[rows] < self.limits[rows])]
        return np.asarray(taken, dtype=np.int64)


class Tally:
    """How many tokens each layer ran or stored, and each exit answered."""

    def __init__(self, layers: int, exits: int) -> None:
        self.ran = np.zeros(layers, dtype=np.int64)
        self.stored = np.zeros(layers, dtype=np.int64)
        self.asked = np.zeros(exits, dtype=np.int64)
        self.drafted = self.accepted = self.rounds = 0

    def decoded(self, text: Writing, exits: int) -> Decoded:
        """The result, with what was counted."""
        return Decoded(
            ids=text.ids,
            lengths=torch.from_numpy(text.lengths),
            exits=torch.from_numpy(text.exits),
            num_exits=exits,
            ran=torch.from_numpy(self.ran),
            stored=torch.from_numpy(self.stored),
            asked=torch.from_numpy(self.asked),
            drafted=self.drafted,
            accepted=self.accepted,
            rounds=self.rounds,
        )
