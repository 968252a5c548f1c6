"""A small language model over bytes with any feed-forward, and text that is always there.

The text is the running Python's own standard library sources, taken in the order of their paths,
so that it is the same on every run of one Python. Bytes beyond ASCII, of which the sources have
next to none, are all read as 127: half as many values, and a quicker last layer.

Legend: n windows, S places of a window, D width, V byte values (0 to 127), H heads.
"""

import inspect
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.moe import Context, Routing

BYTES = 128
HELD_OUT = 5  # one file in five is for validation


@dataclass(frozen=True, eq=False)
class Corpus:
    """Two streams of bytes (N,) uint8 that share no file."""

    train: Tensor
    validation: Tensor


@cache
def corpus(size: int = 400_000) -> Corpus:
    """Library sources: `size` bytes to train on, and a quarter of that for validation.

    Args:
        size: in bytes.
    """
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in library.rglob("*.py") if not _foreign(path, library))
    validation = [path for place, path in enumerate(files) if place % HELD_OUT == 0]
    train = [path for place, path in enumerate(files) if place % HELD_OUT]
    return Corpus(_stream(train, size), _stream(validation, size // 4))


def _foreign(path: Path, library: Path) -> bool:
    """Installed packages and test suites, which are not sources of the library."""
    return bool({"site-packages", "test", "tests"} & set(path.relative_to(library).parts))


def _stream(files: list[Path], size: int) -> Tensor:
    found = bytearray()
    for path in files:
        found += path.read_bytes() + b"\n"
        if len(found) >= size:
            break
    return torch.frombuffer(found[:size], dtype=torch.uint8).clamp(max=BYTES - 1)


class LanguageModel(nn.Module):
    """Causal transformer over bytes whose feed-forwards are given: dense, routed or anything else.

    A feed-forward that takes `context` (every `MoE`) is given the bytes, the state that the routed
    layer before passed on, and the attention of its own block. It may answer with rows alone, with
    (rows, Routing), or with (rows, several Routings).

    Args:
        make: (layer, width) → a feed-forward from (n, S, width) to the same shape.
        width: D.
        layers: blocks.
        heads: H, must divide the width.
        context: the longest window, S.
        seed: of all weights, those that `make` draws too.
    """

    def __init__(
        self,
        make: Callable[[int, int], nn.Module],
        *,
        width: int = 32,
        layers: int = 2,
        heads: int = 2,
        context: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.bytes = nn.Embedding(BYTES, width)
            self.places = nn.Embedding(context, width)
            for embedding in (self.bytes, self.places):
                nn.init.normal_(embedding.weight, std=0.1)
            blocks = [Block(width, heads, make(layer, width)) for layer in range(layers)]
            self.blocks = nn.ModuleList(blocks)
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, BYTES, bias=False)
        self.context = context

    def forward(self, ids_nS: Tensor) -> tuple[Tensor, list[Routing]]:
        """Logits (n, S, V) of the byte that follows each, and the routings of the layers.

        Args:
            ids_nS: integers from 0 to 127.
        """
        ids_nS = ids_nS.long()
        x_nSD = self.bytes(ids_nS) + self.places.weight[: ids_nS.shape[1]]
        routings: list[Routing] = []
        for block in self.blocks:
            state = routings[-1].state if routings else None
            x_nSD, found = block(x_nSD, ids_nS, state)
            routings.extend(found)
        return self.head(self.norm(x_nSD)), routings

    def after_step(self, routings: list[Routing]) -> None:
        """Tell each feed-forward of the routings of its own last call, in order."""
        remaining = iter(routings)
        for block in self.blocks:
            assert isinstance(block, Block)
            own = list(islice(remaining, block.routed))
            step = getattr(block.feed_forward, "after_step", None)
            if step is not None and own:
                step(own)


class Block(nn.Module):
    """Causal attention, then a feed-forward, each added to its own input."""

    def __init__(self, width: int, heads: int, feed_forward: nn.Module) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.heads, self.feed_forward = heads, feed_forward
        self.mix = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.asks = "context" in inspect.signature(feed_forward.forward).parameters
        self.routed = 0  # routings of the last call

    def forward(
        self, x_nSD: Tensor, ids_nS: Tensor, state: Tensor | None
    ) -> tuple[Tensor, list[Routing]]:
        """(n, S, D) → (n, S, D), and what the feed-forward decided."""
        mixed_nSD, attention_nSS = self._attend(self.norm_1(x_nSD))
        x_nSD = x_nSD + mixed_nSD
        tokens = self.norm_2(x_nSD)
        if self.asks:
            about = Context(ids=ids_nS, state=state, attention=attention_nSS)
            found = self.feed_forward(tokens, context=about)
        else:
            found = self.feed_forward(tokens)
        y_nSD, routing = found if isinstance(found, tuple) else (found, [])
        routings = [routing] if isinstance(routing, Routing) else list(routing)
        self.routed = len(routings)
        return x_nSD + y_nSD, routings

    def _attend(self, x_nSD: Tensor) -> tuple[Tensor, Tensor]:
        """What attention brings, and how much each place attends to each, mean over heads."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.mix(x_nSD).chunk(3, dim=-1)
        )
        scores_nHSS = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
        later = x_nSD.new_full(scores_nHSS.shape[-2:], -torch.inf).triu(1)
        attention_nHSS = (scores_nHSS + later).softmax(dim=-1)
        mixed = (attention_nHSS @ value).transpose(1, 2).flatten(2)
        return self.out(mixed), attention_nHSS.mean(dim=1)


def train(
    model: LanguageModel,
    corpus: Corpus,
    *,
    seed: int,
    updates: int = 600,
    batch: int = 16,
    rate: float = 6e-3,
    extra: Callable[[list[Routing]], Tensor] | None = None,
) -> None:
    """Train with AdamW and a rate that falls to 0 along a cosine; then evaluation mode.

    Each routing's own loss is added, and the layers are told of each step (`after_step`).

    Args:
        model: changed in place.
        corpus: its training stream is used.
        seed: of the windows, and of torch's own generator meanwhile (noise of routers).
        updates: of the optimiser.
        batch: windows an update, drawn with replacement.
        rate: at the start.
        extra: a further loss of the routings of one batch.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, rate, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(updates):
            windows = _windows(corpus.train, batch, model.context, generator)
            loss, routings = _loss(model, windows)
            loss = loss + sum(routing.loss for routing in routings)
            if extra is not None:
                loss = loss + extra(routings)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            schedule.step()
            model.after_step(routings)
    model.eval()


@torch.no_grad()
def nats(model: LanguageModel, corpus: Corpus, *, batches: int = 8) -> float:
    """Mean cross-entropy a byte, in nats, on validation windows that are always the same.

    Args:
        model: in the mode it is in.
        corpus: its validation stream is used.
        batches: of 32 windows.
    """
    losses = [float(_loss(model, windows)[0]) for windows in _held_out(model, corpus, batches)]
    return sum(losses) / len(losses)


@torch.no_grad()
def routings(model: LanguageModel, corpus: Corpus, *, batches: int = 2) -> list[list[Routing]]:
    """What each layer decided, [batch][layer], on the first windows that `nats` reads.

    Args:
        model: in the mode it is in.
        corpus: its validation stream is used.
        batches: of 32 windows.
    """
    return [model(windows[:, :-1])[1] for windows in _held_out(model, corpus, batches)]


def _loss(model: LanguageModel, windows: Tensor) -> tuple[Tensor, list[Routing]]:
    logits_nSV, routings = model(windows[:, :-1])
    loss = functional.cross_entropy(logits_nSV.flatten(0, 1), windows[:, 1:].flatten().long())
    return loss, routings


def _held_out(model: LanguageModel, corpus: Corpus, batches: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [_windows(corpus.validation, 32, model.context, generator) for _ in range(batches)]


def _windows(stream: Tensor, count: int, context: int, generator: torch.Generator) -> Tensor:
    """(count, context + 1) bytes from random places: inputs, and each one's successor."""
    starts = torch.randint(len(stream) - context, (count, 1), generator=generator)
    return stream[starts + torch.arange(context + 1)]
