"""RoE: passes that route at random around the router's choice, and the mean of what they predict.

Zibakhsh et al., "MoEs Are Stronger than You Think: Hyper-Parallel Inference Scaling with RoE"
(2025, arXiv 2509.17238).

In each pass, every routed layer takes the k experts of largest score plus a temperature times
Gumbel noise; the next-token probabilities of all passes are averaged. Nothing is trained. The
composition is `moe.systems.rerouted.roster_of_experts`.

What was settled:
- The first pass draws nothing, as in the paper. Weights of the drawn experts come from the scores
  without noise, as the part read does not say.
- The paper's cache keeps earlier tokens without noise and tunes a temperature for each layer. Here
  all places of a window are drawn anew in every pass, with one temperature for all layers, chosen
  on windows of their own.
- The gain is small, so the same windows and the same passes are compared, in nats a byte.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import torch

EXPERTS, CHOSEN, HIDDEN, PASSES = 16, 4, 16, 8
UPDATES = 300
TEMPERATURES = (0.1, 0.3, 0.5)


def quick() -> None:
    """No noise gives the model's own probabilities; draws follow the softmax; probabilities sum."""
    import torch
    from torch.testing import assert_close

    from pointsman.moe.systems.rerouted import roster_of_experts, sampled_routing, sampled_top_k
    from pointsman.select import top_k

    torch.manual_seed(0)
    layer = _layer(8).double()
    x_TD = torch.randn(30, 8, dtype=torch.float64)

    def run() -> torch.Tensor:
        y_TD: torch.Tensor = layer(x_TD)[0]
        return y_TD

    own = run().softmax(dim=1)
    same = roster_of_experts(layer, run, temperature=0.0, passes=4)
    assert_close(same, own, rtol=0, atol=1e-15)
    drawn = roster_of_experts(layer, run, temperature=1.0, passes=4)
    assert_close(drawn.sum(dim=1), torch.ones(30, dtype=torch.float64))
    must(not torch.equal(drawn, own), "noise changes who answers")
    before = layer.select
    with sampled_routing(layer, 1.0):
        pass
    must(layer.select is before, "the model's own selection is put back")
    scores = torch.tensor([[1.0, 0.0, -1.0]]).expand(20_000, -1)
    generator = torch.Generator().manual_seed(0)
    route = sampled_top_k(scores, 1, temperature=1.0, generator=generator)
    assert_close(route.load() / 20_000, scores[0].softmax(dim=0), rtol=0, atol=0.015)
    plain, none = top_k(scores[:5], 2), sampled_top_k(scores[:5], 2, temperature=0.0)
    must(torch.equal(plain.branches, none.branches), "temperature zero is plain top-k")
    must(torch.equal(plain.weights, none.weights), "with its weights")


def full(seed: int) -> Figures:
    """Nats a byte of one pass, of a roster at the best temperature, and of one at temperature 1."""
    import torch

    from pointsman.claims import language

    text = language.corpus()
    model = language.LanguageModel(lambda _, width: _layer(width), seed=seed)
    language.train(model, text, seed=seed, updates=UPDATES)
    generator = torch.Generator().manual_seed(12345)
    starts = torch.randint(len(text.validation) - 64, (2, 96, 1), generator=generator)
    tune, test = text.validation[starts + torch.arange(65)]
    by_heat = {heat: _nats(model, tune, heat) for heat in TEMPERATURES}
    best = min(by_heat, key=lambda heat: by_heat[heat])
    return {
        "one pass: nats a byte": _nats(model, test, 0.0, passes=1),
        "roster: nats a byte": _nats(model, test, best),
        "temperature 1: nats a byte": _nats(model, test, 1.0),
        "roster: temperature": best,
    }


def _layer(width: int) -> Any:
    from functools import partial

    from pointsman.moe import FeedForwardExperts, MoE
    from pointsman.moe.balance import switch
    from pointsman.moe.routers import LinearRouter
    from pointsman.select import top_k

    return MoE(
        LinearRouter(width, EXPERTS),
        partial(top_k, k=CHOSEN),
        FeedForwardExperts(EXPERTS, width, HIDDEN),
        balance=((0.01, switch),),
    )


def _nats(
    model: "torch.nn.Module", windows: "torch.Tensor", heat: float, passes: int = PASSES
) -> float:
    import torch

    from pointsman.moe.systems.rerouted import roster_of_experts

    generator = torch.Generator().manual_seed(0)
    probabilities = roster_of_experts(
        model,
        lambda: model(windows[:, :-1])[0],
        temperature=heat,
        passes=passes,
        generator=generator,
    )
    right = probabilities.gather(2, windows[:, 1:, None].long())
    return float(-right.log().mean())


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    one = mean(measurements, "one pass: nats a byte")
    hot = mean(measurements, "temperature 1: nats a byte")
    return mean(measurements, "roster: nats a byte") < one < hot


CLAIM = Claim(
    slug="roster-of-experts",
    paper="MoEs Are Stronger than You Think: Hyper-Parallel Inference Scaling with RoE",
    year=2025,
    arxiv="2509.17238",
    level="moe",
    claim="Averaging the probabilities of several passes, which draw their experts around the "
    "router's choice, predicts better than one pass of the same model, without training.",
    baseline="One pass of the same trained model.",
    criterion="In a two-layer byte model of 16 experts, 4 a token, with 8 passes at the best of "
    "the temperatures 0.1, 0.3 and 0.5 on other windows, in the mean over the seeds: the held-out "
    "loss is below that of one pass, and at temperature 1 it is above.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.roster_of_experts",
    composition="linear router · top-4 of scores with Gumbel noise · feed-forward experts · "
    "probabilities averaged over passes",
    key={
        "roster": "roster: nats a byte",
        "one pass": "one pass: nats a byte",
        "temperature 1": "temperature 1: nats a byte",
    },
)
