"""Training of language-model exits: layer dropout and losses that rise with depth.

After Elhoushi et al., "LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding"
(2024, arXiv 2404.16710). Layers are left out for single sequences, the later the more often, and
each exit adds its own cross entropy, the later the more heavily, so that the model learns to decide
early without unlearning to decide late. With s the scale of the exits,

    p(l) = p_max (exp(l ln 2 / (L-1)) - 1)
    e(l) = s (0 + 1 + … + l)              for l < L - 1
    e(L-1) = L - 1 + s (0 + 1 + … + L-2)

and losses are weighted by e over their sum. Where we depart: only the exits that are there have a
loss (the paper has one at every layer), l counts from 1 so that an exit after the first layer
learns too, and rates are constant over the run, without the paper's curricula.

Legend: L layers, E exits, n windows, S tokens of a window, N tokens of the text.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.depth.decoding.exits import LanguageExits
from pointsman.depth.early_exit import joint_loss
from pointsman.errors import InputError

WARM_UP = 0.05  # share of the updates in which the rate rises


def rising_dropout(layers: int, most: float) -> tuple[float, ...]:
    """p(l) of each layer: 0 at the first, `most` at the last.

    Raises:
        InputError: no layer, or a probability outside [0, 1).
    """
    if layers < 1 or not 0 <= most < 1:
        raise InputError(f"layers are at least 1 and dropout below 1, got {layers}, {most}")
    last = max(layers - 1, 1)
    return tuple(most * (math.exp(at * math.log(2) / last) - 1) for at in range(layers))


def rising_weights(model: LanguageExits, scale: float) -> tuple[float, ...]:
    """e(l) of each exit over their sum; at scale 0 only the last exit has a weight.

    Raises:
        InputError: a negative scale.
    """
    if scale < 0:
        raise InputError(f"the scale of the exits' losses is at least 0, got {scale}")
    *early, last = model.bounds[1:]
    raw = [scale * depth * (depth + 1) / 2 for depth in early]
    raw.append(last + scale * last * (last - 1) / 2)
    return tuple(weight / sum(raw) for weight in raw)


def exit_loss(
    model: LanguageExits,
    ids: Tensor,
    weights: Sequence[float] | None = None,
    dropout: Sequence[float] | None = None,
) -> Tensor:
    """Weighted cross entropy of every exit on every next token; a scalar, in nats.

    Args:
        model: as it is; layers are left out in training mode only.
        ids: (n, S + 1): each token but the last is read, each but the first predicted.
        weights: of the E exits; None: all 1.
        dropout: of the L layers, see `rising_dropout`.
    """
    outputs = model(ids[:, :-1], dropout if model.training else None)
    target = ids[:, 1:].long().flatten()
    return joint_loss([logits.flatten(0, 1) for logits in outputs], target, weights)


def fit_text(
    model: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    text: Tensor,
    *,
    updates: int,
    window: int,
    batch: int = 16,
    rate: float = 2e-3,
    seed: int = 0,
    on_update: Callable[[int, float], None] | None = None,
) -> None:
    """Train any language model on windows of a text; then evaluation mode.

    AdamW (weight decay 0.01, gradients clipped to 1), a rate that rises in the first twentieth of
    the updates and falls along a cosine.

    Args:
        model: changed in place.
        loss_of: windows (n, S + 1) → a scalar in nats.
        text: (N,) token ids.
        updates: of the optimiser.
        window: S.
        batch: n, windows an update, drawn with replacement.
        rate: the highest.
        seed: of the windows, and of torch's own generator meanwhile.
        on_update: called with (update, loss).

    Raises:
        InputError: a text that is shorter than a window.
    """
    if len(text) < window + 2:
        raise InputError(f"the text needs more than {window + 1} tokens, got {len(text)}")
    generator = torch.Generator().manual_seed(seed)
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(parameters, rate, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda at: _share(at, updates))
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for update in range(updates):
            starts = torch.randint(len(text) - window, (batch, 1), generator=generator)
            loss = loss_of(text[starts + torch.arange(window + 1)].long())
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            if on_update is not None:
                on_update(update, float(loss.detach()))
    model.eval()


def fit_language(
    model: LanguageExits,
    text: Tensor,
    *,
    updates: int,
    window: int | None = None,
    scale: float = 0.2,
    dropout: float = 0.1,
    **options: Any,
) -> None:
    """Train model and exits together on windows of a text, see `fit_text`.

    Args:
        model: changed in place.
        text: (N,) token ids.
        updates: of the optimiser.
        window: S; None: the model's context.
        scale: of the exits' losses, see `rising_weights`.
        dropout: of the last layer, see `rising_dropout`.
        **options: of `fit_text`.

    Raises:
        InputError: a text that is shorter than a window, or a scale or dropout out of range.
    """
    weights = rising_weights(model, scale)
    rates = rising_dropout(len(model.trunk.names), dropout)
    window = model.trunk.context if window is None else window
    loss_of = partial(exit_loss, model, weights=weights, dropout=rates)
    fit_text(model, loss_of, text, updates=updates, window=window, **options)


def _share(update: int, updates: int) -> float:
    """Of the highest rate."""
    warm = max(1, round(WARM_UP * updates))
    if update < warm:
        return (update + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (update - warm) / max(1, updates - warm)))
