"""Multi-head adapter routing: each task mixes blocks of an inventory of adapters by itself.

Caccia et al., "Multi-Head Adapter Routing for Cross-Task Generalization" (2022, arXiv 2211.03831).

The A and B of a task's low-rank update are mixtures of an inventory of S skills, with weights from
a sigmoid of task logits over its sum. In H blocks of the input of A and of the output of B each
block has logits of its own; with one block this is Polytropon. Variants train routing alone for a
new task (z), or average the skills and drop routing (mu). The composition is
`moe.systems.adapters.multi_head_routing`.

What was settled:
- 24 linear tasks on R^16. Each task's update is made of 4 hidden skills of rank 1, mixed anew in
  each of 4 blocks, which only blockwise routing can express; so this asserts that the freedom is
  learned from data, not that real tasks have it.
- The same inventory, of 4 skills of rank 1, for 1, 4 and 8 blocks; task logits have ten times the
  rate of the skills, for all of them, as the sheet advises.
- As a test of the z variant, 8 further tasks of the same skills are learned by new logits alone.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    from torch import Tensor

    from pointsman.moe.systems.adapters import TaskMixedAdapter

TASKS, NEW, WIDTH, SKILLS, BLOCKS = 24, 8, 16, 4, 4
HEADS = (1, 4, 8)
UPDATES, BATCH, RATE = 700, 480, 1e-2


def quick() -> None:
    """One head is Polytropon; blocks are mixed by themselves; each variant trains its own part."""
    import torch
    from torch import nn
    from torch.testing import assert_close

    from pointsman.moe.systems.adapters import multi_head_routing

    torch.manual_seed(0)
    base, x = nn.Linear(8, 6), torch.randn(10, 8)
    task = torch.randint(3, (10,))

    def made(heads: int) -> "TaskMixedAdapter":
        adapter = multi_head_routing(base, 3, skills=5, heads=heads, rank=2)
        nn.init.normal_(adapter.inventory.b_EOR)
        nn.init.normal_(adapter.logits_GHS)
        return adapter

    one = made(1)
    share = one.logits_GHS[:, 0].sigmoid()
    share = share / share.sum(1, keepdim=True)
    a = torch.einsum("gs,srd->grd", share, one.inventory.a_ERD)
    b = torch.einsum("gs,sor->gor", share, one.inventory.b_EOR)
    wanted = [base(row) + b[t] @ a[t] @ row for row, t in zip(x, task, strict=True)]
    assert_close(one(x, task), torch.stack(wanted))
    two = made(2)
    a_GRD, _ = two.mixed()
    with torch.no_grad():
        two.logits_GHS[:, 1] += torch.randn(3, 5)
    changed, _ = two.mixed()
    must(torch.equal(a_GRD[..., :4], changed[..., :4]), "a head's logits reach its block only")
    must(not torch.equal(a_GRD[..., 4:], changed[..., 4:]), "and do reach that")
    fresh = two.for_new_tasks()
    trained = [name for name, weight in fresh.named_parameters() if weight.requires_grad]
    must(trained == ["logits_GHS"], f"the z variant trains logits alone, got {trained}")
    with torch.no_grad():
        two.logits_GHS.zero_()
    mean_of_skills, offsets = two.averaged(), torch.tensor([0, 10])
    assert_close(two(x, task), base(x) + mean_of_skills(x, offsets))


def _updates(seed: int) -> "Tensor":
    """(TASKS + NEW, O, D): what each task adds to the base, from common skills mixed in blocks."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    a_SBd = torch.randn(SKILLS, BLOCKS, WIDTH // BLOCKS, generator=generator)
    b_SBo = torch.randn(SKILLS, BLOCKS, WIDTH // BLOCKS, generator=generator)
    # One skill leads in each block: even mixtures of all would make the tasks alike.
    share = (3 * torch.randn(TASKS + NEW, BLOCKS, SKILLS, generator=generator)).softmax(dim=2)
    a_GD = torch.einsum("gbs,sbd->gbd", share, a_SBd).flatten(1)
    b_GO = torch.einsum("gbs,sbo->gbo", share, b_SBo).flatten(1)
    return b_GO[:, :, None] * a_GD[:, None, :]


def _fit(adapter: "TaskMixedAdapter", updates_GOD: "Tensor", seed: int) -> float:
    """Train on all tasks at once; the squared error that is left, over that of no update."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    groups = [{"params": [adapter.logits_GHS], "lr": 10 * RATE}]
    skills = [weight for weight in adapter.inventory.parameters() if weight.requires_grad]
    if skills:
        groups.append({"params": skills, "lr": RATE})
    optimiser = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, UPDATES)
    count = len(updates_GOD)

    def loss(size: int) -> "tuple[Tensor, Tensor]":
        task = torch.arange(count).repeat(-(-size // count))
        x = torch.randn(len(task), WIDTH, generator=generator)
        with torch.no_grad():
            added = torch.einsum("god,ngd->ngo", updates_GOD, x.reshape(-1, count, WIDTH))
            y = adapter.base(x) + added.flatten(0, 1)
        error = (adapter(x, task) - y).square().mean()
        return error, added.square().mean()

    for _ in range(UPDATES):
        optimiser.zero_grad()
        loss(BATCH)[0].backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        error, size = loss(4000)
    return float(error / size)


def full(seed: int) -> Figures:
    """Relative error on the tasks trained on, and on new ones with routing alone, by heads."""
    import torch
    from torch import nn

    from pointsman.moe.systems.adapters import multi_head_routing

    torch.manual_seed(seed)
    base, updates = nn.Linear(WIDTH, WIDTH), _updates(seed)
    found = {}
    for heads in HEADS:
        name = f"{heads} heads" if heads > 1 else "1 head"
        adapter = multi_head_routing(base, TASKS, skills=SKILLS, heads=heads, rank=1)
        found[f"{name}: error"] = _fit(adapter, updates[:TASKS], seed)
        new = adapter.for_new_tasks(NEW)
        found[f"{name}: error on new tasks, routing alone"] = _fit(new, updates[TASKS:], seed)
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    return mean(measurements, "4 heads: error") <= 0.5 * mean(measurements, "1 head: error")


CLAIM = Claim(
    slug="mhr",
    paper="Multi-Head Adapter Routing for Cross-Task Generalization",
    year=2022,
    arxiv="2211.03831",
    level="moe",
    claim="Routing blocks of adapters by themselves fits related tasks better than routing whole "
    "adapters of the same inventory.",
    baseline="Polytropon, the same with one head: equal skills, updates, data and rates.",
    criterion="On 24 linear tasks whose updates mix 4 hidden skills in 4 blocks, in the mean over "
    "the seeds: the relative error with 4 heads is at most half of that with one head.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.multi_head_routing",
    composition="a table of logits a task and head · sigmoid over its sum · inventory of low-rank "
    "experts, A and B merged by blocks · frozen shared base",
    key={
        "4 heads": "4 heads: error",
        "1 head": "1 head: error",
        "new tasks, 4 heads": "4 heads: error on new tasks, routing alone",
        "new tasks, 1 head": "1 head: error on new tasks, routing alone",
    },
)
