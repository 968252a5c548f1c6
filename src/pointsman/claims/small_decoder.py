"""A decoder of six blocks over bytes, trained in seconds: the testbed of language-model claims.

Legend: n windows, S places of a window, D width, H heads, d = D / H.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.claims.language import BYTES, corpus
from pointsman.learn.muon import Muon

WIDTH, HEADS, LAYERS, CONTEXT = 48, 4, 6, 64
BATCH = 16
RATE = 0.1  # of the matrices; all else learns at 3% of it, by AdamW


class Attention(nn.Module):
    """Causal self-attention; the width of a head is fixed, their number is read off the weights."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.per_head = width // heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, S, D) → (n, S, D)."""
        query, key, value = (
            make(x).unflatten(-1, (-1, self.per_head)).transpose(1, 2)
            for make in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result


class FeedForward(nn.Module):
    """Four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, S, D) → (n, S, D)."""
        result: Tensor = self.down(functional.gelu(self.up(x)))
        return result


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_1, self.attention = nn.RMSNorm(width), Attention(width, heads)
        self.norm_2, self.feed_forward = nn.RMSNorm(width), FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, S, D) → (n, S, D)."""
        x = x + self.attention(self.norm_1(x))
        result: Tensor = x + self.feed_forward(self.norm_2(x))
        return result


class SmallDecoder(nn.Module):
    """Bytes (n, S) → logits (n, S, 128) of the byte that follows each.

    Args:
        seed: of the weights.
        layers: blocks.
    """

    def __init__(self, seed: int = 0, layers: int = LAYERS) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.bytes = nn.Embedding(BYTES, WIDTH)
            self.places = nn.Embedding(CONTEXT, WIDTH)
            self.blocks = nn.ModuleList(Block(WIDTH, HEADS) for _ in range(layers))
            self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, BYTES, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(n, S) → (n, S, 128)."""
        x = self.bytes(ids) + self.places.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def windows(text: Tensor, count: int, seed: int) -> Tensor:
    """(count, CONTEXT + 1) bytes from random places of a text."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - CONTEXT, (count, 1), generator=generator)
    return text[starts + torch.arange(CONTEXT + 1)].long()


def next_byte(model: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    """Mean cross-entropy of windows (n, S + 1), in nats a byte."""
    return functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def nats(model: Callable[[Tensor], Tensor], ids: Tensor) -> float:
    """The same as a number."""
    return float(next_byte(model, ids))


def fit(model: nn.Module, text: Tensor, *, updates: int, seed: int, rate: float = RATE) -> None:
    """Train on random windows; the rate rises for ten updates and falls to 0 on a line.

    Args:
        model: changed in place; then in evaluation mode.
        text: bytes.
        updates: of the optimisers.
        seed: of the windows.
        rate: of the matrices.
    """
    matrices = [w for name, w in model.named_parameters() if w.ndim == 2 and "blocks" in name]
    others = [w for name, w in model.named_parameters() if w.ndim < 2 or "blocks" not in name]
    steps: list[torch.optim.Optimizer] = [
        Muon([{"params": matrices}], rate, momentum=0.9, matrix_from=2),
        torch.optim.AdamW(others, 0.03 * rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]

    def share(update: int) -> float:
        return min(1.0, (update + 1) / 10) * (1 - update / updates)

    rates = [torch.optim.lr_scheduler.LambdaLR(step, share) for step in steps]
    model.train()
    for update in range(updates):
        loss = next_byte(model, windows(text, BATCH, 10_000 * seed + update))
        for step in steps:
            step.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for step in steps:
            step.step()
        for falling in rates:
            falling.step()
    model.eval()


def trained(seed: int, updates: int) -> SmallDecoder:
    """A decoder trained on library sources."""
    model = SmallDecoder(seed)
    fit(model, corpus().train, updates=updates, seed=seed)
    return model


def held_out(count: int, seed: int, part: str) -> Tensor:
    """Windows of files that are not trained on: the "first" half of them or the "second"."""
    text = corpus().validation
    half = len(text) // 2
    return windows({"first": text[:half], "second": text[half:]}[part], count, seed)


def bits(nats: float) -> float:
    """Nats as bits."""
    return nats / math.log(2)
