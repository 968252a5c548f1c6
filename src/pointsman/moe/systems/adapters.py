"""Systems of low-rank updates beside frozen layers: mixed for each task, or made of shards.

Legend: T tokens, R rank, D width, O width of answers, G tasks, H heads, S skills, L layers,
P shards of a pool, d and o their lengths.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import InputError
from pointsman.moe.experts import LoRAExperts, freeze
from pointsman.moe.experts.linear import grouped_linear
from pointsman.route import Route


class TaskMixedAdapter(nn.Module):
    """A low-rank update for each task, whose A and B are mixtures of an inventory, by heads.

    The input of A and the output of B are split into H blocks, and block h of a task's A and B is
    sum_s alpha[task, h, s] times that of the skills, with alpha a sigmoid over its sum. So the
    update holds cross terms B_i A_j; it is no mixture of the skills' own updates.

    Args:
        base: frozen, runs on every token.
        num_tasks: G.
        skills: S, of the inventory.
        heads: H, divides both widths of the base layer.
        rank: of a skill.
        alpha: scale is alpha / rank; None means 1.

    Attributes:
        inventory: the skills, a bank of `LoRAExperts`.
        logits_GHS: of alpha.

    Raises:
        InputError: heads that do not divide the widths.
    """

    def __init__(
        self,
        base: nn.Linear,
        num_tasks: int,
        skills: int,
        heads: int,
        rank: int,
        *,
        alpha: float | None = None,
    ) -> None:
        super().__init__()
        width, out = base.in_features, base.out_features
        if heads < 1 or width % heads or out % heads:
            raise InputError(f"heads must divide {width} inputs and {out} outputs, got {heads}")
        self.base, self.heads = freeze(base), heads
        self.inventory = LoRAExperts(skills, width, out, rank, alpha=alpha)
        self.logits_GHS = nn.Parameter(torch.empty(num_tasks, heads, skills).uniform_(-1e-3, 1e-3))

    def mixed(self) -> tuple[Tensor, Tensor]:
        """A (G, R, D) and B (G, O, R) of every task, the scale in B; gradients flow."""
        share_GHS = self.logits_GHS.sigmoid()
        share_GHS = share_GHS / share_GHS.sum(dim=2, keepdim=True)
        a, b = self.inventory.a_ERD, self.inventory.b_EOR * self.inventory.scale
        a_SRHd = a.reshape(*a.shape[:2], self.heads, -1)
        b_SHoR = b.reshape(len(b), self.heads, -1, b.shape[2])
        a_GRHd = torch.einsum("ghs,srhd->grhd", share_GHS, a_SRHd)
        b_GHoR = torch.einsum("ghs,shor->ghor", share_GHS, b_SHoR)
        return a_GRHd.flatten(2), b_GHoR.flatten(1, 2)

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        """(..., D) → (..., O).

        Args:
            x: tokens.
            task: (...) int64, of each token.

        Raises:
            InputError: tasks of another shape, or a task that is not known (looked for on a CPU).
        """
        known = len(self.logits_GHS)
        if task.shape != x.shape[:-1]:
            raise InputError(
                f"each token needs a task, {tuple(x.shape[:-1])}, got {tuple(task.shape)}"
            )
        if task.device.type == "cpu" and task.numel() and not 0 <= task.min() <= task.max() < known:
            raise InputError(f"a task is a number from 0 to {known - 1}, got {task.tolist()}")
        x_TD, (a_GRD, b_GOR) = x.reshape(-1, x.shape[-1]), self.mixed()
        ones = x_TD.new_ones(len(x_TD), 1)
        route = Route.from_indices(task.reshape(-1, 1), ones, num_branches=known)
        sizes = route.load().tolist()
        rows = grouped_linear(grouped_linear(route.dispatch(x_TD), sizes, a_GRD), sizes, b_GOR)
        y_TO = self.base(x_TD) + route.combine(rows, weighted=False)
        answer: Tensor = y_TO.reshape(*x.shape[:-1], y_TO.shape[1])
        return answer

    def for_new_tasks(self, num_tasks: int = 1) -> "TaskMixedAdapter":
        """A copy for other tasks in which fresh routing is all that is trained (MHR-z)."""
        new = deepcopy(self)
        freeze(new.inventory)
        _, heads, skills = self.logits_GHS.shape
        new.logits_GHS = nn.Parameter(
            self.logits_GHS.new_empty(num_tasks, heads, skills).uniform_(-1e-3, 1e-3)
        )
        return new

    def averaged(self) -> LoRAExperts:
        """One low-rank expert from the mean of all skills, without routing, to tune (MHR-mu)."""
        skills = self.inventory
        width, out = skills.a_ERD.shape[2], skills.b_EOR.shape[1]
        one = LoRAExperts(1, width, out, skills.rank, alpha=skills.scale * skills.rank)
        one.a_ERD = nn.Parameter(skills.a_ERD.detach().mean(dim=0, keepdim=True))
        one.b_EOR = nn.Parameter(skills.b_EOR.detach().mean(dim=0, keepdim=True))
        return one


def multi_head_routing(
    base: nn.Linear, num_tasks: int, *, skills: int = 8, heads: int = 8, rank: int = 1
) -> TaskMixedAdapter:
    """Each task mixes the blocks of an inventory of adapters, by learned routing per task.

    `heads=1` is Polytropon (Ponti et al. 2022); `for_new_tasks` is the variant that trains routing
    alone (z), `averaged` the one that drops it (mu).

    Where we depart: no sampling of the gates in training, which is an option of the paper's code.

    Args:
        base: the layer that is adapted; it is frozen.
        num_tasks: G.
        skills: of the inventory.
        heads: blocks that are mixed by themselves.
        rank: of a skill.

    Source: Caccia et al. 2022, "Multi-head adapter routing for cross-task generalization", arXiv
    2211.03831.
    """
    return TaskMixedAdapter(base, num_tasks, skills, heads, rank)


class ShardPool(nn.Module):
    """Shards of vectors that all layers draw from; A and B have pools and draws of their own.

    Args:
        width: D, of the layers.
        out: O, of the layers.
        layers: L.
        budget: vectors a layer that the pool pays for, of each side.
        shards: into which a vector is cut; divides both widths.
        private: vectors a layer whose shards no other layer sees, at most the budget.

    Raises:
        InputError: shards that do not divide the widths, or more private than paid for.
    """

    def __init__(
        self, width: int, out: int, layers: int, budget: int, shards: int, private: int
    ) -> None:
        super().__init__()
        if shards < 1 or width % shards or out % shards:
            raise InputError(f"shards must divide {width} inputs and {out} outputs, got {shards}")
        if not 0 <= private <= budget:
            raise InputError(f"private vectors are 0 to the budget of {budget}, got {private}")
        count, bound = layers * budget * shards, width**-0.5
        self.shards, self.private, self.layers = shards, private, layers
        self.a_Pd = nn.Parameter(torch.empty(count, width // shards).uniform_(-bound, bound))
        self.b_Po = nn.Parameter(torch.zeros(count, out // shards))

    def draw(self, layer: int, rank: int) -> Tensor:
        """(rank, shards) int64: own private shards first, then public ones drawn at random."""
        own, public = self.private * self.shards, self.layers * self.private * self.shards
        needed, offered = rank * self.shards - own, len(self.a_Pd) - public
        if needed and not offered:
            raise InputError(f"a rank of {rank} needs public shards: lower `private` below it")
        # Each public shard once before any twice, so that the rank is as large as it can be.
        rounds = [torch.randperm(offered) for _ in range(-(-needed // max(offered, 1)))]
        drawn = torch.cat(
            [torch.arange(layer * own, (layer + 1) * own), *[r + public for r in rounds]]
        )
        return drawn[: rank * self.shards].reshape(rank, self.shards)


class ShardedLinear(nn.Module):
    """A frozen linear layer with a low-rank update that is assembled from a pool of shards.

    Args:
        base: frozen.
        pool: shared with other layers; state dicts name its weights once for each.
        index_a: (rank, shards) of the pool, fixed.
        index_b: likewise.
        scale: of the update.
    """

    index_a: Tensor
    index_b: Tensor

    def __init__(
        self, base: nn.Linear, pool: ShardPool, index_a: Tensor, index_b: Tensor, scale: float
    ) -> None:
        super().__init__()
        self.base, self.pool, self.scale = freeze(base), pool, scale
        self.register_buffer("index_a", index_a)
        self.register_buffer("index_b", index_b)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (R, D) and B (R, O), whose rows are shards side by side."""
        return self.pool.a_Pd[self.index_a].flatten(1), self.pool.b_Po[self.index_b].flatten(1)

    def delta(self) -> Tensor:
        """(O, D): the update, to be merged into the base layer."""
        a_RD, b_RO = self.factors()
        return self.scale * b_RO.T @ a_RD

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) → (..., O)."""
        a_RD, b_RO = self.factors()
        y: Tensor = self.base(x) + self.scale * functional.linear(x, a_RD) @ b_RO
        return y


def mixture_of_shards(
    bases: Sequence[nn.Linear],
    budget: int = 2,
    rank: int = 8,
    *,
    shards: int = 4,
    private: int = 0,
    alpha: float | None = None,
    subsets: bool = True,
) -> nn.ModuleList:
    """The low-rank updates of all layers are assembled from one pool of shards, drawn once.

    There are as many trained numbers as in updates of rank `budget`, but a layer's update has rank
    `rank`. Despite the name nothing hangs on the input. With `private` = `budget` = `rank` and one
    shard a vector this is ordinary LoRA.

    Where we depart: the paper's way to draw was not seen; here private shards come first, and of
    the public ones none is drawn twice by one layer before all were drawn once.

    Args:
        bases: layers of one shape; they are frozen.
        budget: e, vectors a layer that are paid for.
        rank: r, vectors that a layer assembles.
        shards: l, of a vector.
        private: p of the vectors of the budget, for one layer alone.
        alpha: scale is alpha / rank; None means 1.
        subsets: each layer draws its own shards; False makes all take the same, which is plain
            sharing.

    Raises:
        InputError: layers of several shapes, or sizes that do not fit.

    Source: Wang et al. 2024, "MoS: unleashing parameter efficiency of low-rank adaptation with
    mixture of shards", arXiv 2410.00938.
    """
    shapes = {(base.in_features, base.out_features) for base in bases}
    if len(shapes) != 1:
        raise InputError(f"one pool serves layers of one shape, got {sorted(shapes)}")
    (width, out), scale = shapes.pop(), 1.0 if alpha is None else alpha / rank
    pool = ShardPool(width, out, len(bases), budget, shards, private)
    draws = [(pool.draw(at, rank), pool.draw(at, rank)) for at in range(len(bases))]
    chosen = draws if subsets else draws[:1] * len(bases)
    layers = zip(bases, chosen, strict=True)
    return nn.ModuleList(ShardedLinear(base, pool, *draw, scale) for base, draw in layers)
