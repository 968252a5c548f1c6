"""The language model of `supernet_text.py`, its text, and how it is trained.

Streams share no byte, and held-out files are none that the model was trained on:

    train     files that the model learns from
    tune      the first 40% of the held-out bytes: calibration and search look there
    test      the rest of the held-out bytes: everything is reported there

Legend: n windows, S bytes of a window.
"""

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.claims.language import BYTES, corpus
from pointsman.learn.muon import Muon

WIDTH, HEADS, LAYERS, INNER, CONTEXT = 160, 5, 6, 432, 256
SIZE = 8_000_000  # bytes of the training text
TUNE = 0.4  # of the held-out bytes
BATCH = 16
WARM_UP = 10  # updates

Loss = Callable[[nn.Module, Tensor], Tensor]  # (model, windows (n, S + 1)) -> scalar in nats


def language_model(seed: int = 0) -> Any:
    """A Llama of `transformers`, 1.9 million weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=BYTES,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        use_cache=False,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def next_byte(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean cross-entropy of windows (n, S + 1), in nats a byte."""
    logits = model(windows[:, :-1]).logits
    return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def optimisers(weights: Iterable[tuple[str, nn.Parameter]], rate: float) -> list[Any]:
    """Muon for the matrices of the layers, AdamW at 3% of its rate for all else."""
    matrices, others = [], []
    for name, weight in weights:
        (matrices if weight.ndim == 2 and "layers" in name else others).append(weight)
    muon = Muon([{"params": matrices}], rate, momentum=0.9, matrix_from=2)
    return [muon, torch.optim.AdamW(others, 0.03 * rate, betas=(0.9, 0.95), weight_decay=0.0)]


def fit(
    model: nn.Module,
    updates: int,
    *,
    loss: Loss = next_byte,
    rate: float = 0.1,
    seed: int = 0,
    say: str = "",
) -> float:
    """Train on random windows; the rate rises for ten updates and falls to 0. Seconds of CPU."""
    text, start = corpus(SIZE).train, time.process_time()
    generator = torch.Generator().manual_seed(seed)
    steps = optimisers(model.named_parameters(), rate)

    def share(update: int) -> float:
        return min(1.0, (update + 1) / WARM_UP) * (1 - update / updates)

    rates = [torch.optim.lr_scheduler.LambdaLR(step, share) for step in steps]
    recent: list[float] = []
    for update in range(updates):
        starts = torch.randint(len(text) - CONTEXT, (BATCH, 1), generator=generator)
        found = loss(model, text[starts + torch.arange(CONTEXT + 1)].long())
        for step in steps:
            step.zero_grad()
        found.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each in (*steps, *rates):
            each.step()
        recent.append(float(found.detach()))
        if say and update % 20 == 19:
            nats = sum(recent[-20:]) / len(recent[-20:])
            seconds = time.process_time() - start
            print(f"{say} {update + 1:5d}  {nats:.3f} nats  {seconds:.0f} s", flush=True)
    return time.process_time() - start


def kept(name: str, folder: Path, make: Callable[[], Any]) -> Any:
    """What a file of the folder holds, or what `make` gives, which is then kept there."""
    path = folder / f"{name}.pt"
    if not path.exists():
        found = make()
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(found, path)
    return torch.load(path, weights_only=True)


def pretrained(folder: Path, updates: int) -> Any:
    """The model, trained where it is not there yet."""

    def make() -> Any:
        model = language_model()
        seconds = fit(model, updates, say="pre-training")
        return {"model": model.state_dict(), "updates": updates, "seconds": seconds}

    model = language_model()
    model.load_state_dict(kept("pretrained", folder, make)["model"])
    return model.eval()


def stream(name: str) -> Tensor:
    """The bytes of one stream."""
    held_out = corpus(SIZE).validation
    cut = int(TUNE * len(held_out))
    return {"train": corpus(SIZE).train, "tune": held_out[:cut], "test": held_out[cut:]}[name]


def windows(name: str, count: int, offset: float = 0.0) -> Tensor:
    """Windows (count, CONTEXT + 1) of a stream, evenly spread."""
    text = stream(name)
    starts = ((torch.arange(count) + offset) * (len(text) - CONTEXT - 1) / (count + 1)).long()
    return torch.stack([text[at : at + CONTEXT + 1].long() for at in starts.tolist()])


@torch.no_grad()
def bits(model: nn.Module, ids: Tensor) -> float:
    """Bits per byte of windows (n, S + 1)."""
    losses = [float(next_byte(model, part)) for part in ids.split(16)]
    return sum(losses) / len(losses) / math.log(2)
