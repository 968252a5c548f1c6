"""Systems whose idea is the router: what it reads, remembers, or is made of.

Each is a function that puts parts together; what a paper does beside the layer (its model, its
schedule) is left to the caller. Where a paper adds the usual load-balancing loss, its weight is an
argument.

Legend: E experts, D width, O width of the answers, V ids, G tasks, A attributes.
"""

from functools import partial

import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.moe.balance import switch
from pointsman.moe.experts import FeedForwardExperts, LinearExperts, LoRAExperts
from pointsman.moe.layer import MoE
from pointsman.moe.routers import (
    AttentionRouter,
    ConditionalRouter,
    CosineRouter,
    HyperRouter,
    KANRouter,
    KMeansRouter,
    LinearRouter,
    MaskedRouter,
    RecurrentRouter,
    SmoothedRouter,
    SummedRouter,
    TaskRouter,
)
from pointsman.moe.routers.common import unit
from pointsman.select import top_k


def online_k_means(
    width: int, hidden: int, num_experts: int, k: int = 2, *, momentum: float = 0.95
) -> MoE:
    """No router weights: an expert gets the tokens nearest in angle to those it got before.

    Where we depart: averaging rule, temperature and start were not found in what was read of the
    paper; see `KMeansRouter` for those used. Call `layer.after_step` after each update.

    Args:
        width: D.
        hidden: of an expert.
        num_experts: E.
        k: experts a token.
        momentum: share of a centroid that is kept at an update.

    Source: Ahrac et al. 2026, "Routers learn the geometry of their experts", arXiv 2605.12476.
    """
    return MoE(
        KMeansRouter(width, num_experts, momentum=momentum),
        partial(top_k, k=k, renormalize=k > 1),
        FeedForwardExperts(num_experts, width, hidden, activation="silu", gated=True),
    )


def rmoe(
    width: int,
    hidden: int,
    num_experts: int,
    k: int = 2,
    *,
    layers: int,
    state: int = 256,
    weight: float = 0.001,
) -> nn.ModuleList:
    """Routers that carry a state of each token from layer to layer, through one shared GRU cell.

    Give each layer but the first `Context(state=routing.state)` with the routing of the layer
    before it.

    Where we depart: nowhere in the router; the layers stand in no model here.

    Args:
        width: D.
        hidden: of an expert.
        num_experts: E.
        k: experts a token.
        layers: how many, at least one.
        state: width of the state.
        weight: of the load-balancing loss of each layer.

    Raises:
        InputError: no layer.

    Source: Qiu et al. 2024, "Layerwise recurrent router for mixture-of-experts", arXiv 2408.06793.
    """
    if layers < 1:
        raise InputError(f"rmoe makes at least one layer, got {layers}")
    cell = nn.GRUCell(state, state)
    return nn.ModuleList(
        MoE(
            RecurrentRouter(width, num_experts, cell),
            partial(top_k, k=k),
            FeedForwardExperts(num_experts, width, hidden, activation="silu", gated=True),
            balance=((weight, switch),),
        )
        for _ in range(layers)
    )


def hyperrouter(width: int, hidden: int, num_experts: int, k: int = 2) -> MoE:
    """Router weights made by a frozen random network of one trained embedding.

    Where we depart: the frozen network starts at a scale under which scores have about unit
    variance (see `HyperRouter`); for inference, put `layer.router.fixed()` in its place.

    Args:
        width: D, also of the embedding.
        hidden: of an expert.
        num_experts: E, 16 in the paper.
        k: experts a token.

    Source: Do et al. 2023, "HyperRouter: towards efficient training and inference of sparse mixture
    of experts", arXiv 2312.07035.
    """
    return MoE(
        HyperRouter(width, num_experts),
        partial(top_k, k=k),
        FeedForwardExperts(num_experts, width, hidden, activation="relu"),
    )


def attention_router(width: int, hidden: int, num_experts: int = 32, k: int = 2) -> MoE:
    """A token's score for an expert depends on its scores for all, through attention between them.

    Where we depart: the router starts at unit variance, so that its scores do not tie.

    Args:
        width: D.
        hidden: of an expert.
        num_experts: E.
        k: experts a token.

    Source: Wu et al. 2024, "Yuan 2.0-M32: mixture of experts with attention router",
    arXiv 2405.17976.
    """
    return MoE(
        AttentionRouter(width, num_experts),
        partial(top_k, k=k),
        FeedForwardExperts(num_experts, width, hidden, activation="silu", gated=True),
    )


def kamoe(width: int, hidden: int, num_experts: int = 4, *, out: int | None = None) -> MoE:
    """Every expert, each under a sigmoid gate made of Kolmogorov-Arnold layers.

    Where we depart: experts are small feed-forward networks; the paper clones any template.

    Args:
        width: D.
        hidden: of an expert.
        num_experts: E, all of them run.
        out: width of the answers, also of the gate's first layer; None means D.

    Source: Inzirillo and Genet 2024, "A gated residual Kolmogorov-Arnold networks for mixtures of
    experts", arXiv 2409.15161.
    """
    return MoE(
        KANRouter(width, num_experts, hidden=out),
        partial(top_k, k=num_experts, weigh=torch.sigmoid, renormalize=False),
        FeedForwardExperts(num_experts, width, hidden, out=out),
    )


def similarity_aware(
    width: int,
    hidden: int,
    num_experts: int,
    k: int = 2,
    *,
    attention: bool = False,
    causal: bool = False,
    temperature: float = 1.0,
    weight: float = 0.01,
) -> MoE:
    """Tokens of a sequence that are alike, or attend to each other, share their expert choice.

    Where we depart: whether the paper mixes probabilities or scores was not found; probabilities
    are mixed here. `causal` leaves later tokens out, as a decoder must.

    Args:
        width: D.
        hidden: of an expert.
        num_experts: E.
        k: experts a token.
        attention: mix by `context.attention` of the layer below instead of a learned similarity.
        causal: leave later tokens out.
        temperature: of the learned similarity.
        weight: of the load-balancing loss.

    Source: Nguyen et al. 2025, "Improving routing in sparse mixture of experts with graph of
    tokens", arXiv 2505.00792.
    """
    read = None if attention else width
    inner = LinearRouter(width, num_experts)
    return MoE(
        SmoothedRouter(inner, read, temperature=temperature, causal=causal),
        partial(top_k, k=k, renormalize=k > 1),
        FeedForwardExperts(num_experts, width, hidden),
        balance=((weight, switch),),
        causal=causal,
    )


def maskmoe(width: int, hidden: int, eligible_VE: Tensor, *, weight: float = 0.01) -> MoE:
    """Rare vocabulary ids see one fixed expert, frequent ones choose among some.

    The layer needs `Context(ids=...)`, at inference too.

    Where we depart: nowhere, except that `frequency_mask`, which draws the table, evens out the
    expected load where the paper draws uniformly.

    Args:
        width: D.
        hidden: of an expert.
        eligible_VE: (V, E) bool, from `routers.frequency_mask`.
        weight: of the load-balancing loss over the open experts.

    Source: Su et al. 2024, "MaskMoE: boosting token-level learning via routing mask in
    mixture-of-experts", arXiv 2407.09816.
    """
    num_experts = eligible_VE.shape[-1]
    return MoE(
        MaskedRouter(LinearRouter(width, num_experts), eligible_VE),
        partial(top_k, k=1, renormalize=False),
        FeedForwardExperts(num_experts, width, hidden),
        balance=((weight, switch),),
    )


def task_aware(width: int, hidden: int, num_experts: int, num_tasks: int, k: int = 1) -> MoE:
    """One pool of experts, and which of them a token has depends on its task.

    The layer needs `Context(task=...)`. For a new task, put `router.with_task_like(related)` in the
    router's place.

    Where we depart: the paper's exact gate was not found; the gate here reads the task alone, the
    form that does best in the claim; `TaskRouter` has two that read the token too.

    Args:
        width: D.
        hidden: of an expert.
        num_experts: E.
        num_tasks: G.
        k: experts a token.

    Source: Gupta et al. 2022, "Sparsely activated mixture-of-experts are robust multi-task
    learners", arXiv 2204.07689.
    """
    return MoE(
        TaskRouter(width, num_experts, num_tasks, gate="nothing"),
        partial(top_k, k=k, renormalize=k > 1),
        FeedForwardExperts(num_experts, width, hidden),
    )


def conditional(
    attributes_GA: Tensor, width: int, out: int, num_experts: int = 8, k: int = 2
) -> MoE:
    """A linear layer made of linear experts, chosen by attributes of the task instead of tokens.

    It takes the place of one linear map of a network (`Context(task=...)` says which task);
    `merged_by_task` turns it into one such map for each task.

    Where we depart: the second map of a feed-forward makes its own choice.

    Args:
        attributes_GA: (G, A), such as bits that describe what a task reads and writes.
        width: D.
        out: O.
        num_experts: E.
        k: experts of a task.

    Source: Zhu et al. 2022, "Uni-Perceiver-MoE: learning sparse generalist models with conditional
    MoEs", arXiv 2206.04674.
    """
    return MoE(
        ConditionalRouter(attributes_GA, num_experts),
        partial(top_k, k=k, renormalize=k > 1),
        LinearExperts(num_experts, width, out),
    )


@torch.no_grad()
def merged_by_task(layer: MoE) -> list[nn.Linear]:
    """One plain linear layer for each task, which answers like the conditional mixture.

    Args:
        layer: as `conditional` makes it.

    Raises:
        InputError: another router or other experts: tokens must not matter, and maps be linear.
    """
    router, experts = layer.router, layer.experts
    if not isinstance(router, ConditionalRouter) or not isinstance(experts, LinearExperts):
        raise InputError(
            "only linear experts under a ConditionalRouter merge into one map a task, "
            f"got {type(experts).__name__} under {type(router).__name__}"
        )
    weights_GE = layer.select(router.of_tasks()).to_dense()
    matrices_GOD, biases_GO = experts.merged(weights_GE)
    made = []
    for task, matrix_OD in enumerate(matrices_GOD):
        out, width = matrix_OD.shape
        linear = nn.Linear(width, out, bias=biases_GO is not None).to(matrix_OD)
        linear.weight.copy_(matrix_OD)
        if biases_GO is not None:
            linear.bias.copy_(biases_GO[task])
        made.append(linear)
    return made


def phatgoose_gate(base: nn.Module, expert: LoRAExperts) -> MoE:
    """One trained low-rank expert under a sigmoid gate: train `router.weight`, the gate's vector.

    Where we depart: nowhere.

    Args:
        base: the layer that the expert adapts, frozen by the caller.
        expert: one expert, frozen by the caller.

    Source: Muqeeth et al. 2024, "Learning to route among specialized experts for zero-shot
    generalization", arXiv 2402.05859.
    """
    return MoE(
        LinearRouter(expert.a_ERD.shape[2], 1, std=0.0),
        partial(top_k, k=1, renormalize=False, weigh=torch.sigmoid),
        expert,
        shared=base,
    )


def glider(
    base: nn.Module,
    experts: LoRAExperts,
    gates_ED: Tensor,
    instructions_EA: Tensor,
    queries_GA: Tensor,
    k: int = 2,
    *,
    alpha: float = 3.0,
) -> MoE:
    """Independently trained low-rank experts, found by token (a gate) and by task (instructions).

    Scores are LN(x) LN(g_e) / sqrt(D) + alpha cos(query, instruction of e). Nothing is trained.
    The layer needs `Context(task=...)`, the row of the query.

    Where we depart: the embeddings of instructions are given; the paper has a language model write
    the instructions and a text encoder embed them.

    Args:
        base: the layer that the experts adapt.
        experts: one for each task that was trained.
        gates_ED: vectors of `phatgoose_gate`, one for each expert.
        instructions_EA: embedded instruction of each expert's task.
        queries_GA: embedded instruction of each task that will be asked.
        k: experts a token.
        alpha: weight of the instructions; the authors' scripts use 100 for tasks that an expert was
            trained on and 3 for others.

    Raises:
        InputError: gates or instructions for another number of experts.

    Source: Li et al. 2024, "Glider: global and local instruction-driven expert router",
    arXiv 2410.07172.
    """
    count, width = gates_ED.shape
    if not count == len(instructions_EA) == experts.num_experts:
        raise InputError(
            "glider needs a gate and an instruction for every expert, got "
            f"{count} and {len(instructions_EA)} for {experts.num_experts}"
        )
    # Two layer norms and their product over sqrt(D) are a correlation times sqrt(D).
    local = CosineRouter(width, count, center=True, temperature=width**-0.5)
    overall = TaskRouter(width, count, len(queries_GA), gate="nothing")
    with torch.no_grad():
        local.prototypes.copy_(gates_ED)
        overall.bias.copy_(unit(queries_GA) @ unit(instructions_EA).T)
    router = SummedRouter((1.0, local), (alpha, overall)).to(gates_ED).requires_grad_(False)
    return MoE(router, partial(top_k, k=k), experts, shared=base)
