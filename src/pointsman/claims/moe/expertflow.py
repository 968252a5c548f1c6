"""ExpertFlow: predict which experts tokens will take, group tokens by it, fetch experts ahead.

He et al., "ExpertFlow: Optimized Expert Activation and Token Allocation for Efficient
Mixture-of-Experts Inference" (2024, arXiv 2410.17954).

A small network predicts the experts of all layers from the tokens. Tokens of two batches are put
into two groups of equal size by the Hamming distance of their paths, so that each group needs few
experts. Predicted experts are brought into slots that layers get in proportion to the predictions,
before their layer runs; what is missed is loaded first.

What was settled:
- Memory is simulated: slots for half of all experts, one channel, an expert takes twice as long to
  load as to run. A hit is an expert that lies there when its layer begins. The paper's 2 to 10
  times the speed on one A40 is not measured; simulated seconds are shown.
- The baseline is the better of two least-recently-used caches, over all layers together or each
  layer with an equal part of the slots: a step asks for the layers in turn, and one cache for all
  hits nothing once a step asks for more than fits. Belady's rule is shown beside.
- Paths are those of a byte model of 4 layers with 16 experts, 2 a token, trained for 150 updates,
  which tells experts apart well enough; a step decodes one byte of 4 sequences. The predictor is a
  recurrent network, trained on 256 windows of training text and used on validation text.
- The scheduler is measured as in the fact sheet: 4 kinds of paths with 15% noise over 6 layers of
  16 experts, 2 batches of 16 tokens, one in ten predictions wrong, 40 draws a seed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import numpy as np
    import torch

    from pointsman.claims.language import LanguageModel
    from pointsman.moe.parallel.cluster import Flags

LAYERS, EXPERTS, K, BATCH = 4, 16, 2, 4
SLOTS, LOAD = LAYERS * EXPERTS // 2, 2.0
UPDATES, WINDOWS = 150, 256


def quick() -> None:
    """Groups are equal and change no output; foresight hits all; Belady hits least-recent's."""
    import numpy as np
    import torch
    from torch.testing import assert_close

    from pointsman.moe import FeedForwardExperts, MoE
    from pointsman.moe.parallel import Memory, fetched_ahead, on_demand, regroup
    from pointsman.select import top_k

    torch.manual_seed(0)
    router = torch.nn.Linear(8, EXPERTS, bias=False)
    layer = MoE(router, lambda s: top_k(s, K), FeedForwardExperts(EXPERTS, 8, 8)).double()
    x = torch.randn(32, 8, dtype=torch.float64)
    whole, routing = layer(x)
    second = torch.as_tensor(regroup(routing.route.mask()[:, None].numpy()))
    must(int(second.sum()) == 16, "two groups of one size")
    parts = torch.zeros_like(whole)
    for group in (~second, second):
        parts[group] = layer(x[group])[0]
    assert_close(parts, whole, rtol=0, atol=1e-12)

    needed = np.random.default_rng(0).random((40, LAYERS, EXPERTS)) < 0.2
    for slots in (8, 16, 32):
        recent = on_demand(needed, Memory(slots))
        belady = on_demand(needed, Memory(slots), look_ahead=True)
        must(recent.hits <= belady.hits, "no rule on demand beats looking ahead")
    room = Memory(LAYERS * EXPERTS, load=0.0)
    must(fetched_ahead(needed, needed, room).hit_rate == 1, "nothing is missed with foresight")
    blind = fetched_ahead(needed, np.zeros_like(needed), Memory(LAYERS * EXPERTS))
    must(blind.loads == int(needed.any(axis=0).sum()), "with room, each expert is loaded once")


def full(seed: int) -> Figures:
    """Hit rates and simulated seconds by rule, recall of the predictor, experts of two groups."""
    import torch

    from pointsman.claims import language
    from pointsman.moe.parallel import (
        Memory,
        PathPredictor,
        fetched_ahead,
        fit_predictor,
        on_demand,
    )

    text = language.corpus()
    model = language.LanguageModel(_layer, layers=LAYERS, seed=seed)
    language.train(model, text, seed=seed, updates=UPDATES)
    generator = torch.Generator().manual_seed(seed)
    ids, routed = _record(model, text.train, WINDOWS, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        predictor = PathPredictor(language.BYTES, LAYERS, EXPERTS)
    fit_predictor(predictor, ids, routed, seed=seed, updates=150)
    fresh, taken = _record(model, text.validation, 8 * BATCH, generator)
    guessed = predictor.predict(fresh, K)
    needed, predicted = _steps(taken), _steps(guessed)
    memory = Memory(SLOTS, load=LOAD)
    served = {
        "least recent, all layers": on_demand(needed, memory),
        "Belady": on_demand(needed, memory, look_ahead=True),
        "predicted": fetched_ahead(needed, predicted, memory),
        "perfect prediction": fetched_ahead(needed, needed, memory),
    }
    found = {f"{row}: hit rate": each.hit_rate for row, each in served.items()}
    found |= {f"{row}: simulated seconds": each.seconds for row, each in served.items()}
    part = Memory(SLOTS // LAYERS, load=LOAD)
    by_layer = [on_demand(needed[:, at : at + 1], part) for at in range(LAYERS)]
    hits, requests = (sum(getattr(s, name) for s in by_layer) for name in ("hits", "requests"))
    found["least recent, by layer: hit rate"] = hits / requests
    found["predictor: recall"] = float((guessed & taken).sum() / taken.sum())
    return found | _grouping(seed)


def _layer(_: int, width: int) -> "torch.nn.Module":
    from functools import partial

    from torch import nn

    from pointsman.moe import FeedForwardExperts, MoE
    from pointsman.moe.balance import switch
    from pointsman.select import top_k

    return MoE(
        nn.Linear(width, EXPERTS, bias=False),
        partial(top_k, k=K),
        FeedForwardExperts(EXPERTS, width, 16),
        balance=((0.01, switch),),
    )


def _record(
    model: "LanguageModel", stream: "torch.Tensor", count: int, generator: "torch.Generator"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Windows (n, S) of a stream, and which experts their bytes took (n, S, L, E)."""
    import torch

    long = model.context
    starts = torch.randint(len(stream) - long, (count,), generator=generator)
    ids = torch.stack([stream[start : start + long] for start in starts.tolist()]).long()
    with torch.no_grad():
        _, routings = model(ids)
    routed = torch.stack([routing.route.mask() for routing in routings], dim=1)
    return ids, routed.reshape(count, long, LAYERS, EXPERTS)


def _steps(routed: "torch.Tensor") -> "Flags":
    """(steps, L, E): what the bytes of a few sequences need that are decoded together."""
    batches = routed.reshape(-1, BATCH, *routed.shape[1:]).any(dim=1)
    needed: Flags = batches.reshape(-1, LAYERS, EXPERTS).numpy()
    return needed


def _grouping(seed: int, layers: int = 6, tokens: int = 16) -> dict[str, float]:
    """Experts that two batches need, as they came and grouped by predicted paths."""
    import numpy as np

    from pointsman.moe.parallel import regroup, touched

    rng = np.random.default_rng(seed)
    came = grouped = 0
    arrival = np.arange(2 * tokens) >= tokens
    for _ in range(40):
        kinds = rng.integers(EXPERTS, size=(4, layers))
        path = kinds[rng.integers(4, size=2 * tokens)]
        path = _redrawn(path, 0.15, rng)
        guess = _redrawn(path, 0.10, rng)
        real, predicted = (np.eye(EXPERTS, dtype=np.bool_)[each] for each in (path, guess))
        came += touched(real, arrival)
        grouped += touched(real, regroup(predicted))
    return {
        "two batches as they came: experts": came / 40,
        "two groups: experts": grouped / 40,
        "two groups: share of experts": grouped / came,
    }


def _redrawn(path: "np.ndarray", share: float, rng: "np.random.Generator") -> "np.ndarray":
    import numpy as np

    return np.where(rng.random(path.shape) < share, rng.integers(EXPERTS, size=path.shape), path)


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""

    def rate(row: str) -> float:
        return mean(measurements, f"{row}: hit rate")

    recent = max(rate("least recent, all layers"), rate("least recent, by layer"))
    return (
        rate("predicted") >= recent + 0.05
        and rate("perfect prediction") >= rate("predicted")
        and mean(measurements, "two groups: share of experts") <= 0.92
    )


CLAIM = Claim(
    slug="expertflow",
    paper="ExpertFlow: Optimized Expert Activation and Token Allocation for Efficient "
    "Mixture-of-Experts Inference",
    year=2024,
    arxiv="2410.17954",
    level="moe",
    claim="Fetching predicted experts before their layer runs hits more often than keeping the "
    "recent ones, and grouping tokens by predicted paths needs fewer experts.",
    baseline="The better of two least-recently-used caches (all layers together, or each with its "
    "part of the slots); batches as they came.",
    criterion="In the mean over the seeds: with slots for half of the experts, prediction hits at "
    "least 5 points more often than the better least-recently-used cache and no more often than "
    "perfect prediction, and grouping leaves at most 0.92 of the experts that two batches need.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.parallel.regroup",
    composition="path predictor · equal groups by Hamming distance · slots in proportion to "
    "predictions, fetched ahead",
    note="Fetching ahead hits less often than Belady's rule and still finishes sooner, because "
    "what it loads arrives while others run.",
    key={
        "hits, predicted": "predicted: hit rate",
        "least recent": "least recent, by layer: hit rate",
        "perfect": "perfect prediction: hit rate",
        "experts of two groups": "two groups: share of experts",
    },
)
