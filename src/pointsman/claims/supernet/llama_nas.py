"""LLaMA-NAS: which layers a language model keeps and how wide each is, searched after one tuning.

Sarah et al., "LLaMA-NAS: Efficient Neural Architecture Search for Large Language Models" (2024,
arXiv 2405.18377). The sheet it is built from is rated medium: the values of the paper's space
and the sizes of its search are recalled.

A pretrained decoder is fine-tuned once as a supernet over a mask of its layers and the width of
each feed-forward; then predictor-assisted alternation finds subnets, which are used without further
training. The parts: `layers_and_widths`, `finetune_elastic` and the engine `linas`.

What was settled:
- A byte-level decoder of six blocks; any layer can be left out, each feed-forward halved: 729
  subnets. Parameters are the cost, counted and never predicted.
- The budget is what the network without its last two blocks has, two thirds of the blocks'
  parameters.
- Quality in the search is the loss on some held-out files; everything is reported on others.
- Random search draws 100 subnets within the budget, none twice, judged on the same windows.
- Throughput, quantisation and large models are not checked here.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import Tensor

    from pointsman.supernet.search.engine import Engine
    from pointsman.supernet.space import Genotype
    from pointsman.supernet.supernet import Supernet

PRETRAINING, UPDATES, BATCH, RATE, JUDGED, TEST, EVALUATIONS = 100, 60, 16, 3e-3, 16, 48, 100


def quick() -> None:
    """Left-out layers add nothing, halved feed-forwards are sliced, and subnets stand alone."""
    import torch

    from pointsman.claims.small_decoder import SmallDecoder, windows

    model = SmallDecoder(0, layers=2)
    net = _supernet(model)
    must(net.space.count() == 3**2, "two layers: gone, halved or whole")
    ids = windows(torch.arange(2000) % 128, 2, 0)[:, :-1]
    with torch.no_grad():
        must(torch.allclose(net(ids), model(ids), atol=1e-5), "sorting its units changes nothing")
    taken = net.space.encode(_uniform(net, 1.0) | {"blocks.1.kept": False})
    taken = net.space.canonical(taken)
    small: Any = net.extract(taken)
    must(len(small.blocks) == 1, "a layer is gone")
    net.use(taken)
    with torch.no_grad():
        must(torch.allclose(net(ids), small(ids), atol=1e-5), "the subnet stands alone")
    half: Any = net.extract(net.space.encode(_uniform(net, 0.5)))
    must(half.blocks[0].feed_forward.up.out_features == 96, "feed-forwards are halved")


def _supernet(model: Any) -> "Supernet":
    import torch

    from pointsman.supernet.language import layers_and_widths

    return layers_and_widths(model, torch.arange(8)[None])


def _uniform(net: "Supernet", share: float) -> dict[str, Any]:
    """Every layer, with this share of each feed-forward."""
    return {
        choice.name: True if choice.name.endswith("kept") else int(share * int(choice.options[-1]))
        for choice in net.space.choices
    }


def full(seed: int) -> Figures:
    """Nats within the budget: search, the last blocks dropped, halves everywhere, random masks."""
    from pointsman.claims.small_decoder import held_out, nats, trained
    from pointsman.supernet.costs import count_parameters
    from pointsman.supernet.search.engines.random_search import random_search
    from pointsman.supernet.search.problem import Problem
    from pointsman.supernet.search.run import search

    net = _supernet(trained(seed, PRETRAINING))
    _finetune(net, seed)
    judged, test = held_out(JUDGED, seed, "first"), held_out(TEST, seed, "second")
    cost = count_parameters(net)

    def loss(genotype: "Genotype", ids: "Tensor") -> float:
        net.use(genotype)
        return nats(net, ids)

    whole = net.space.canonical([len(choice.options) - 1 for choice in net.space.choices])
    gone = {"blocks.4.kept": False, "blocks.5.kept": False}
    full_width = _uniform(net, 1.0)
    last = net.space.encode(full_width | gone)
    half = net.space.encode(_uniform(net, 0.5))
    budget = max(cost(last), cost(half))
    problem = Problem(net.space, lambda g: -loss(g, judged), cost, "parameters", budget)

    def best(engine: "Engine") -> "Genotype":
        found = search(problem, engine, EVALUATIONS, seed=seed)
        return max(found, key=lambda each: each.quality).genotype

    chosen = {
        "whole": whole,
        "search": best(_engine()),
        "last blocks dropped": last,
        "halves everywhere": half,
        "best of 100 random": best(random_search),
    }
    figures = {f"{name}: nats": loss(genotype, test) for name, genotype in chosen.items()}
    figures["search: share of the parameters"] = cost(chosen["search"]) / cost(whole)
    return figures


def _engine() -> "Engine":
    from pointsman.supernet.search.engines.linas import linas

    return linas


def _finetune(net: "Supernet", seed: int) -> None:
    from pointsman.claims.language import corpus
    from pointsman.claims.small_decoder import CONTEXT
    from pointsman.supernet.language import next_token_losses
    from pointsman.supernet.training import RandomBatches
    from pointsman.supernet.training.elastic_finetuning import finetune_elastic

    every = corpus().train.long().unfold(0, CONTEXT + 1, 1)
    batches = RandomBatches(every[:, :-1], every[:, 1:], size=BATCH, seed=seed)
    options: dict[str, Any] = {"updates": UPDATES, "rate": RATE, "seed": seed}
    finetune_elastic(net, batches, task=next_token_losses, **options)


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    found = mean(measurements, "search: nats")
    return (
        found < mean(measurements, "last blocks dropped: nats")
        and found < mean(measurements, "halves everywhere: nats")
        and found <= mean(measurements, "best of 100 random: nats")
    )


CLAIM = Claim(
    slug="llama-nas",
    paper="LLaMA-NAS: Efficient Neural Architecture Search for Large Language Models",
    year=2024,
    arxiv="2405.18377",
    level="supernet",
    claim="Fine-tuned once as a supernet over layers and feed-forward widths, a language model has "
    "smaller subnets, found by search without further training, that are better than those cut "
    "by rule.",
    baseline="The same supernet without its last two blocks; with every feed-forward halved; and "
    "the best of 100 random subnets of the same budget.",
    criterion="Within the parameters left when the last two of six blocks are dropped, in the mean "
    "over the seeds: the held-out loss of the subnet found in 100 evaluations is below that of "
    "dropping the last blocks and that of halving every feed-forward, and at most that of the best "
    "of 100 random subnets.",
    quick=quick,
    full=full,
    decide=decide,
    composition="a mask of layers and a width a feed-forward · elastic fine-tuning · "
    "predictor-assisted alternation with counted costs",
    entry="pointsman.supernet.language.layers_and_widths",
    key={
        "search": "search: nats",
        "last dropped": "last blocks dropped: nats",
        "halves": "halves everywhere: nats",
        "random": "best of 100 random: nats",
    },
    note="Halving every feed-forward, one of the 729 subnets and within the budget, is better than "
    "the subnet that the search found: 2.373 against 2.387 nats a byte in the mean, 2.386 against "
    "2.384, 2.348 against 2.378 and 2.383 against 2.398 on seeds 0, 1 and 2 (the whole network: "
    "2.350). The search is better than dropping the last blocks on every seed (2.422 in the mean), "
    "and than random subnets on one; on the other two both end at the same loss.",
)
