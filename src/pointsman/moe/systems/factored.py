"""Systems that factor a small network: mixtures in a row, patches that experts pick, a trellis.

Legend: T tokens, n images, S patches of one, D width, E experts, K chosen, C classes.
"""

import warnings
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.errors import DegenerateWarning, InputError, RouteError
from pointsman.moe.experts import FeedForwardExperts, LinearExperts
from pointsman.moe.layer import MoE, Routing
from pointsman.route import Route
from pointsman.select import Guarantee, guarantees, top_k
from pointsman.select.checks import check_count, check_scores


class EvenShares(nn.Module):
    """Every expert for every token, weighed by softmax, with those far ahead of the mean left out.

    While it is constrained, running totals of the weights are kept (`after_step`), and an expert
    whose total is more than the margin above the mean total gets nothing until the others have
    caught up. The totals are those of the weights as constrained. Some expert always stays, as not
    every total can be above the mean.

    Source: Eigen et al. 2013, arXiv 1312.4314.

    Args:
        num_experts: E.
        margin: by which a total may exceed the mean, in tokens; not negative.

    Attributes:
        constrained: set it to False for the second phase of training.
        total_E: (E,) buffer.

    Raises:
        InputError: a size below one, or a negative margin.
    """

    guarantee = Guarantee(batch_independent=True, causal=True)

    def __init__(self, num_experts: int, margin: float) -> None:
        super().__init__()
        if num_experts < 1 or not margin >= 0:
            raise InputError(
                "EvenShares needs at least one expert and a margin of at least 0, "
                f"got {num_experts} and {margin!r}"
            )
        self.margin, self.constrained = margin, True
        self.total_E: Tensor
        self.register_buffer("total_E", torch.zeros(num_experts))

    def forward(self, scores: Tensor) -> Route:
        """Scores (T, E) → every expert within the margin, weights summing to one.

        Raises:
            RouteError: another number of experts, or scores that cannot be routed.
        """
        if scores.ndim != 2 or scores.shape[1] != len(self.total_E):
            raise RouteError(
                f"EvenShares weighs {len(self.total_E)} experts, got scores of shape "
                f"{tuple(scores.shape)}"
            )
        if self.constrained and self.training:
            ahead_E = self.total_E - self.total_E.mean() > self.margin
            scores = scores.masked_fill(ahead_E, -torch.inf)
        return top_k(scores, k=scores.shape[1])

    def after_step(self, routings: Sequence[Routing]) -> None:
        """Add the weights that experts got to their totals; only while constrained."""
        if not (self.constrained and self.training):
            return
        for routing in routings:
            route = routing.route
            weights = route.weights.detach().to(self.total_E.dtype)
            self.total_E.index_add_(0, route.branches, weights)


class RectifiedLinearExperts(LinearExperts):
    """E maps x → relu(W_e x + b_e), one layer each; arguments as for `LinearExperts`."""

    def forward(self, rows_ND: Tensor, offsets: Tensor) -> Tensor:
        """Rows sorted by expert → (N, O)."""
        return functional.relu(super().forward(rows_ND, offsets))


def deep_moe(
    sizes: Sequence[int], num_experts: int, gates: Sequence[int], *, margin: float = 200.0
) -> nn.ModuleList:
    """Dense mixtures one after the other: every pair of experts, one of each, is a path of its own.

    Each layer sums softmax-gated relu(W x) over all of its experts, and its gate is a two-layer
    network on that layer's own input. A running total keeps any expert from running away at first.

    Where we depart: layer sizes and the margin were not found, and totals move once a step instead
    of once an example. Set `layer.select.constrained = False` for the second phase.

    Args:
        sizes: input width, then the width after each layer.
        num_experts: of each layer.
        gates: hidden units of each gate.
        margin: see `EvenShares`.

    Returns:
        One layer a size but the first, to be called in turn; a linear classifier follows.

    Source: Eigen et al. 2013, "Learning factored representations in a deep mixture of experts",
    arXiv 1312.4314.
    """
    layers = nn.ModuleList()
    for width, out, units in zip(sizes[:-1], sizes[1:], gates, strict=True):
        gate = nn.Sequential(nn.Linear(width, units), nn.ReLU(), nn.Linear(units, num_experts))
        experts = RectifiedLinearExperts(num_experts, width, out)
        layers.append(MoE(gate, EvenShares(num_experts, margin), experts))
    return layers


@guarantees(batch_independent=False, causal=False)
def patch_choice(scores: Tensor, patches: int, chosen: int) -> Route:
    """Each expert takes its best patches of every image, and weighs them by softmax over these.

    Guarantee: exactly `chosen` patches of each image for each expert. A patch depends on the other
    patches of its image, and on no other image. Images are whole: no patch may be padding or -inf.
    (Chowdhury et al. 2023, arXiv 2306.04073.)

    Args:
        scores: (T, E) floating point, T = n * patches with the patches of an image together.
        patches: S of an image.
        chosen: K patches that an expert takes of an image, 1 to S.

    Raises:
        RouteError: tokens that are no whole images, or more patches chosen than there are.
    """
    check_scores(scores)
    check_count(patches, "patches", 1)
    check_count(chosen, "chosen", 1)
    if chosen > patches:
        raise RouteError(f"an image has {patches} patches, got chosen={chosen}: choose fewer")
    if len(scores) % patches:
        raise RouteError(
            f"images of {patches} patches are routed whole, got scores of shape "
            f"{tuple(scores.shape)}"
        )
    images, experts = len(scores) // patches, scores.shape[1]
    best_nKE, place_nKE = scores.reshape(images, patches, experts).topk(chosen, dim=1)
    first_n11 = torch.arange(images, device=scores.device)[:, None, None] * patches
    return Route.from_triples(
        (place_nKE + first_n11).flatten(),
        torch.arange(experts, device=scores.device).expand_as(place_nKE).flatten(),
        torch.softmax(best_nKE, dim=1).flatten(),
        num_inputs=len(scores),
        num_branches=experts,
    )


def patch_level(
    width: int,
    patches: int,
    num_experts: int = 8,
    filters: int = 5,
    chosen: int = 6,
    *,
    router_std: float = 1e-4,
    filter_std: float = 1e-2,
) -> MoE:
    """Each expert looks only at the few patches of an image that its router likes best.

    The answer for an image, one number for two classes, is the sum of the layer's output over its
    patches. What an expert adds up, a_r relu(w_r x) over its filters r and chosen patches, has
    fixed random signs a; filters and router learn. Both start small, because a large router locks
    on to wrong patches.

    Where we depart: the division by the number of chosen patches is left out, as weights of a
    softmax have it in them. The softmax is over the chosen patches, as in the paper; its code takes
    one over all patches.

    Args:
        width: D, numbers in a patch.
        patches: S of an image.
        num_experts: E.
        filters: of each expert.
        chosen: K, patches that an expert takes of an image.
        router_std: of the router's first weights.
        filter_std: of the filters' first weights.

    Source: Chowdhury et al. 2023, "Patch-level routing in mixture-of-experts is provably
    sample-efficient for convolutional neural networks", arXiv 2306.04073.
    """
    router = nn.Linear(width, num_experts, bias=False)
    experts = FeedForwardExperts(num_experts, width, filters, activation="relu", bias=False, out=1)
    with torch.no_grad():
        router.weight.normal_(std=router_std)
        experts.up_EFD.normal_(std=filter_std)
        experts.down_EDF.sign_()
    experts.down_EDF.requires_grad_(False)
    return MoE(router, partial(patch_choice, patches=patches, chosen=chosen), experts)


def information_gain(
    scores: Tensor, labels: Tensor, num_classes: int, *, temperature: float = 1.0, even: float = 1.0
) -> Tensor:
    """How much a route tells about the class, in nats: even * H(route) + H(class) - H(both).

    Entropies are those of the batch's joint distribution of classes and softmax(scores /
    temperature). Maximise it: a loss is its negative. Without weight on H(route), one route takes
    all; a temperature that is low too early stops the gradient, and small batches are biased.
    (Bicici et al. 2024, arXiv 2402.08345.)

    Args:
        scores: (T, E) of a router.
        labels: (T,) int64.
        num_classes: C.
        temperature: of the softmax.
        even: weight of H(route); at 1 the value is the mutual information.

    Returns:
        Scalar, 0 for no input.

    Raises:
        InputError: labels of another shape or type.
    """
    if labels.shape != scores.shape[:1] or labels.dtype != torch.int64:
        raise InputError(
            f"labels must be int64 of shape ({len(scores)},), "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    share_TE = torch.softmax(scores / temperature, dim=1) / max(len(scores), 1)
    joint_CE = scores.new_zeros(num_classes, scores.shape[1]).index_add(0, labels, share_TE)
    entropy = _entropy(joint_CE.sum(dim=0))
    return even * entropy + _entropy(joint_CE.sum(dim=1)) - _entropy(joint_CE)


def trellis(
    width: int, hidden: int, routes: Sequence[int], *, router_width: int = 128
) -> nn.ModuleList:
    """Layers of parallel blocks; at each, a router sends a sample to one block, whatever its path.

    Routing is hard and passes no gradient of the task: routers learn from `information_gain` of
    their scores and the labels alone, which inference does not need. In the warm-up, call layers
    with `select=` a random choice and the gain loss on.

    Args:
        width: D, of samples between layers.
        hidden: of a block, a feed-forward with ReLU here; the paper's are parts of a ResNet.
        routes: blocks of each layer; 2 and 2, or 2 and 4, after a shared first layer.
        router_width: hidden units of a router.

    Source: Bicici et al. 2024, "Conditional information gain trellis", arXiv 2402.08345.
    """
    layers = nn.ModuleList()
    for blocks in routes:
        router = nn.Sequential(
            nn.Linear(width, router_width), nn.ReLU(), nn.Linear(router_width, blocks)
        )
        experts = FeedForwardExperts(blocks, width, hidden, activation="relu")
        with warnings.catch_warnings():  # that the task teaches the router nothing is intended
            warnings.simplefilter("ignore", DegenerateWarning)
            layers.append(MoE(router, partial(top_k, k=1), experts))
    return layers


def _entropy(share: Tensor) -> Tensor:
    # The logarithm of a harmless 1 instead of 0 keeps the gradient finite.
    return -(share * torch.where(share > 0, share, 1).log()).sum()
