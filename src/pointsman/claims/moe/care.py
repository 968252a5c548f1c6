"""CaRE: class-incremental learning in which the surest old routers choose the experts.

Lou et al., "Scaling Continual Learning to 300+ Tasks with Bi-Level Routing Mixture-of-Experts"
(2026, arXiv 2602.03473).

Beside a frozen block every task brings an expert, a router over the experts so far, and a head for
its classes; all older ones are frozen. For a sample, the routers whose heads are surest (least
entropy) are kept, and each spreads weight over the few best of its experts. The composition is
`moe.systems.continual.bi_level_routing`.

What was settled:
- The full learner (a vision transformer, a cosine classifier aligned after each task) is not
  rebuilt. What is measured is its first level: whether the entropy of a head knows the task.
- Digits, 5 tasks of 2 classes in order, learned one after the other on frozen random features of
  one layer; an expert and a head a task, 150 updates each with the head's cross-entropy.
- A head alone never saw other tasks' digits, so nothing but its doubt can tell it that a sample is
  none of its own. Guessing finds the task in 1 of 5 cases, and in the best two in 2 of 5.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import Tensor

TASKS, CLASSES, FEATURES = 5, 2, 128
UPDATES, BATCH, RATE = 150, 128, 3e-3


def quick() -> None:
    """Older parts never change; the surest routers are kept; weights are those of a loop."""
    import torch
    from torch.testing import assert_close

    from pointsman.moe.systems.continual import bi_level_routing

    torch.manual_seed(0)
    layer, x = bi_level_routing(8, expert=4, shared=6, routers=2, experts=2), torch.randn(7, 3, 8)
    for _ in range(4):
        layer.add_task(2)
        optimiser = torch.optim.Adam([w for w in layer.parameters() if w.requires_grad], 0.01)
        old = layer.experts[:-1], layer.routers[:-1], layer.heads[:-1], layer.anchor
        shared = [w.clone() for w in layer.shared.parameters()]
        before = [w.clone() for part in old[:3] for w in part.parameters()]
        for _ in range(2):
            y, found = layer(x)
            loss = y.square().sum() + found.logits[-1].square().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        stepped = list(layer.shared.parameters())
        wanted = [0.999 * a + 0.001 * b for a, b in zip(shared, stepped, strict=True)]
        layer.after_step()
        for weight, each in zip(layer.shared.parameters(), wanted, strict=True):
            assert_close(weight, each, rtol=1e-5, atol=1e-5)
        after = [w for part in old[:3] for w in part.parameters()]
        must(all(map(torch.equal, before, after)), "what older tasks brought never changes")
    layer.eval()
    y, found = layer(x)
    kept = found.doubt.argsort(dim=1)[:, :2]
    outputs = [expert(x) for expert in layer.experts]
    for sample in range(7):
        weights = torch.zeros(4)
        for router in kept[sample].tolist():
            scores = layer.routers[router](outputs[router][sample, 0])
            best = scores.topk(min(2, router + 1))
            weights[best.indices] += best.values.softmax(dim=0)
        assert_close(found.routing.scores[sample], weights)
        mixed = sum(weights[e] * outputs[e][sample] for e in range(4))
        assert_close(y[sample], mixed + layer.shared(x)[sample])
    layer.train()
    training = layer(x)[1].routing.scores
    assert_close(training.sum(dim=1), torch.full((7,), 2.0))


def full(seed: int) -> Figures:
    """How often the surest head, and one of the surest two, is that of the sample's task."""
    import torch

    from pointsman.claims import testbeds
    from pointsman.moe.systems.continual import bi_level_routing

    torch.manual_seed(seed)
    data = testbeds.digits(seed)
    frozen = torch.randn(64, FEATURES) / 8

    def features(x: "Tensor") -> "Tensor":
        hidden = torch.relu(x @ frozen)
        return ((hidden - hidden.mean(dim=1, keepdim=True)) / hidden.std(dim=1, keepdim=True))[
            :, None
        ]

    layer = bi_level_routing(FEATURES, shared=16)
    generator = torch.Generator().manual_seed(seed)
    for task in range(TASKS):
        layer.add_task(CLASSES)
        layer.train()
        own = (data.train.y // CLASSES == task).nonzero().squeeze(1)
        weights = [weight for weight in layer.parameters() if weight.requires_grad]
        optimiser = torch.optim.Adam(weights, RATE)
        for _ in range(UPDATES):
            rows = own[torch.randint(len(own), (BATCH,), generator=generator)]
            _, found = layer(features(data.train.x[rows]))
            target = data.train.y[rows] % CLASSES
            loss = torch.nn.functional.cross_entropy(found.logits[-1], target)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            layer.after_step()
    layer.eval()
    with torch.no_grad():
        _, found = layer(features(data.test.x))
    task_N = data.test.y // CLASSES
    surest = found.doubt.argsort(dim=1)
    inside = torch.stack(found.logits).argmax(dim=2)[task_N, torch.arange(len(task_N))]
    right = inside == data.test.y % CLASSES
    return {
        "surest head: is the task's": float((surest[:, 0] == task_N).float().mean()),
        "two surest heads: hold the task's": float(
            (surest[:, :2] == task_N[:, None]).any(dim=1).float().mean()
        ),
        "the task's own head: accuracy inside the task": float(right.float().mean()),
        "guessing: is the task's": 1 / TASKS,
        "guessing: two hold the task's": 2 / TASKS,
    }


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    one = mean(measurements, "surest head: is the task's")
    two = mean(measurements, "two surest heads: hold the task's")
    return one > 1.5 / TASKS and two > 0.6


CLAIM = Claim(
    slug="care",
    paper="Scaling Continual Learning to 300+ Tasks with Bi-Level Routing Mixture-of-Experts",
    year=2026,
    arxiv="2602.03473",
    level="moe",
    claim="The entropy of small heads, each trained on its own task alone, tells which task's "
    "router to ask.",
    baseline="Guessing among as many tasks.",
    criterion="After 5 digit tasks of 2 classes, in the mean over the seeds: the surest head is "
    "that of the sample's task in more than 30% of the test samples (chance: 20%), and one of the "
    "two surest in more than 60% (chance: 40%).",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.bi_level_routing",
    composition="a router and a head a task, the two surest heads · top-3 of each router, weights "
    "added · an adapter a task, older frozen · slow shared adapter",
    key={
        "surest head": "surest head: is the task's",
        "two surest": "two surest heads: hold the task's",
        "inside the task": "the task's own head: accuracy inside the task",
    },
)
