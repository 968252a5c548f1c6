"""RoMA: routers tuned so that samples of alike tasks are routed like those answered well.

Li et al., "Routing Manifold Alignment Improves Generalization of Mixture-of-Experts LLMs" (2025,
arXiv 2511.07419).

All but the routers is frozen. Each sample's routing probabilities are drawn towards those of its
nearest neighbours, in the space of an embedding of the task, among the samples that the model
answers correctly; the loss of its own answer is kept. The composition is
`moe.systems.rerouted.roma`.

What was settled:
- A sample is never its own neighbour, neighbours are successful ones, weights of the neighbours sum
  to one, and the routing vector is the softmax over all experts before the choice.
- Whether the neighbours' routing moves along in tuning is not stated: here it is stored before.
- The world: 6 latent tasks, each a map of its own from features to classes; a token shows its task
  by noisy features. A model of 8 experts is trained, its router is damaged by noise, and the router
  alone is tuned on 240 samples. The embedding of a sample is its task, one-hot, with noise.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import torch

TASKS, EXPERTS, CHOSEN, WIDTH, HIDDEN, CLASSES = 6, 8, 2, 16, 32, 4
UPDATES, TUNING, SAMPLES, DAMAGE = 1000, 250, 240, 1.0
ROWS = ("aligned", "random neighbours", "loss alone")


def quick() -> None:
    """Neighbours are others, near and correct; the loss is zero on them; only routers move."""
    import torch
    from torch.testing import assert_close

    from pointsman.moe.systems.rerouted import manifold_loss, roma, successful_neighbours

    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(40, 3, generator=generator)
    correct = torch.rand(40, generator=generator) > 0.4
    index, weights = successful_neighbours(embeddings, correct, k=3)
    must(bool(correct[index].all()), "neighbours were answered correctly")
    must(bool((index != torch.arange(40)[:, None]).all()), "no sample is its own neighbour")
    assert_close(weights.sum(dim=1), torch.ones(40))
    must(bool((weights[:, 0] >= weights[:, 2]).all()), "nearer neighbours count more")
    vectors = torch.rand(40, 5, generator=generator)
    alike = vectors[:, None].expand(-1, 3, -1)
    must(float(manifold_loss(vectors, alike, weights)) == 0, "no loss where all are alike")
    world = _world(0)
    model, draw = _model(0), _draw(world, 40, generator)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    roma(model.router.parameters(), _run(model, draw), (index, weights), updates=3, batch=8)
    for name, weight in model.named_parameters():
        changed = not torch.equal(weight, before[name])
        must(changed == name.startswith("router."), f"{name}: the router alone is tuned")


def full(seed: int) -> Figures:
    """Accuracy on fresh samples: whole, damaged, and after three ways to tune the router."""
    import copy

    import torch

    from pointsman.moe.systems.rerouted import roma, successful_neighbours

    world, model = _world(seed), _model(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(UPDATES):
        draw = _draw(world, 128, generator)
        logits, routing = model(draw.x)
        loss = torch.nn.functional.cross_entropy(logits, draw.y) + routing.loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    test, samples = _draw(world, 4096, generator), _draw(world, SAMPLES, generator)
    found = {"undamaged: accuracy": _accuracy(model, test)}
    with torch.no_grad():
        weight = model.router.weight
        noise = torch.randn(weight.shape, generator=generator)
        weight.add_(DAMAGE * weight.std() * noise)
        correct = model(samples.x)[0].argmax(dim=1) == samples.y
    found["damaged: accuracy"] = _accuracy(model, test)
    near = successful_neighbours(samples.embedding, correct, k=3)
    anyone = successful_neighbours(torch.randn(SAMPLES, 8, generator=generator), correct, k=3)
    ways = {"aligned": (near, 1.0), "random neighbours": (anyone, 1.0), "loss alone": (near, 0.0)}
    for row in ROWS:
        tuned, (neighbours, strength) = copy.deepcopy(model), ways[row]
        roma(
            tuned.router.parameters(),
            _run(tuned, samples),
            neighbours,
            weight=strength,
            updates=TUNING,
            rate=1e-2,
            generator=torch.Generator().manual_seed(seed),
        )
        found[f"{row}: accuracy"] = _accuracy(tuned, test)
    return found


class _World(NamedTuple):
    """Centres of the tasks, (G, D), and a map to the classes of each, (G, D, C)."""

    centres: "torch.Tensor"
    maps: "torch.Tensor"


class _Draw(NamedTuple):
    x: "torch.Tensor"
    y: "torch.Tensor"
    embedding: "torch.Tensor"


def _world(seed: int) -> _World:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return _World(
        torch.randn(TASKS, WIDTH, generator=generator),
        torch.randn(TASKS, WIDTH, CLASSES, generator=generator),
    )


def _draw(world: _World, count: int, generator: "torch.Generator") -> _Draw:
    import torch
    from torch.nn.functional import one_hot

    task = torch.randint(TASKS, (count,), generator=generator)
    noise = torch.randn(count, WIDTH, generator=generator)
    y = torch.einsum("nd,ndc->nc", noise, world.maps[task]).argmax(dim=1)
    embedding = one_hot(task, TASKS) + 0.2 * torch.randn(count, TASKS, generator=generator)
    return _Draw(world.centres[task] + 0.5 * noise, y, embedding)


def _model(seed: int) -> Any:
    from functools import partial

    import torch
    from torch import nn

    from pointsman.moe import FeedForwardExperts, MoE
    from pointsman.moe.balance import switch
    from pointsman.select import top_k

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MoE(
            nn.Linear(WIDTH, EXPERTS),
            partial(top_k, k=CHOSEN),
            FeedForwardExperts(EXPERTS, WIDTH, HIDDEN, out=CLASSES),
            balance=((0.01, switch),),
        )


def _run(model: Any, draw: _Draw) -> Any:
    from torch.nn.functional import cross_entropy

    from pointsman.moe.systems.rerouted import routing_vectors

    def run(rows: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        logits, routing = model(draw.x[rows])
        return cross_entropy(logits, draw.y[rows]), routing_vectors([routing])

    return run


def _accuracy(model: Any, draw: _Draw) -> float:
    from pointsman.claims import testbeds

    return testbeds.accuracy(model(draw.x)[0], draw.y)


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    margins = [
        figures["aligned: accuracy"] - figures["random neighbours: accuracy"]
        for figures in measurements
    ]
    better = mean(measurements, "aligned: accuracy") > mean(measurements, "loss alone: accuracy")
    return min(margins) >= 0.05 and better


CLAIM = Claim(
    slug="roma",
    paper="Routing Manifold Alignment Improves Generalization of Mixture-of-Experts LLMs",
    year=2025,
    arxiv="2511.07419",
    level="moe",
    claim="Tuning routers so that samples of alike tasks are routed like their successful "
    "neighbours generalises better than tuning them on the answers alone.",
    baseline="The same tuning with neighbours taken at random, and with the loss of the answers "
    "alone; equal updates and samples.",
    criterion="For a damaged router of 8 experts over 6 latent tasks, tuned on 240 samples: "
    "accuracy on fresh samples is at least 5 points above that with random neighbours in every "
    "seed, and above that of the loss alone in the mean over the seeds.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.roma",
    composition="linear router (tuned alone) · top-2 · feed-forward experts · manifold loss",
    key={
        "aligned": "aligned: accuracy",
        "random neighbours": "random neighbours: accuracy",
        "loss alone": "loss alone: accuracy",
        "damaged": "damaged: accuracy",
    },
    note="Alignment is best in every seed, by 4 to 8 points over random neighbours; the 5 points "
    "asked for are missed in one seed of three. Random neighbours hurt where the damage was small.",
)
