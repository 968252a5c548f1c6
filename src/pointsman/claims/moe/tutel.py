"""Tutel: tokens go to slots of experts by counting, and the number of slots follows the load.

Hwang et al., "Tutel: Adaptive Mixture-of-Experts at Scale" (2022, arXiv 2206.03382).

A token's slot in its expert is the number of choices before it, all first choices before any second
one. Rows are copied to their slots and read back, weighted: work that grows with tokens and width,
where the einsum of GShard (Lepikhin et al. 2020, arXiv 2006.16668) multiplies with a one-hot table
of tokens times experts times slots. The number of slots is a rule of the tokens, or what the
busiest expert needs, or that with a bound. The composition is `moe.systems.tutel`.

What was settled:
- One process: the parallel layouts and the exchange between devices are not checked. Chunks, which
  the paper pipelines, are: the experts run on parts of their slots, one after the other.
- Work is counted as multiply-adds or copied numbers for sending out and reading back; time is
  measured for the same two, forward, at 2048 tokens, 64 experts and width 64, as CPU time.
- The ratio of times decides only in that it must be above 5. It is far above that, so that another
  machine will find the same.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, must

if TYPE_CHECKING:
    from torch import Tensor

    from pointsman.moe import FeedForwardExperts, MoE
    from pointsman.route import Route

TOKENS, EXPERTS, WIDTH, K = 2048, 64, 64, 2


def one_hot(route: "Route", slots: int) -> "Tensor":
    """(T, E, C): GShard's table, in which a pair has its weight where its slot is."""
    from pointsman.moe.systems.grouped import places

    table = route.weights.new_zeros(route.num_inputs, route.num_branches, slots)
    return table.index_put((route.inputs, route.branches, places(route)), route.weights)


def on_slots(bank: "FeedForwardExperts", slots_ECD: "Tensor", chunks: int = 1) -> "Tensor":
    """(E, C, D): the experts on every slot, or on parts of their slots one after the other."""
    import torch

    parts = []
    for part_EcD in slots_ECD.chunk(chunks, dim=1):
        experts, slots, _ = part_EcD.shape
        offsets = torch.arange(experts + 1) * slots
        parts.append(bank(part_EcD.flatten(0, 1), offsets).unflatten(0, (experts, slots)))
    return torch.cat(parts, dim=1)


def ways(
    bank: "FeedForwardExperts", route: "Route", slots: int, x_TD: "Tensor"
) -> "dict[str, Tensor]":
    """Answers (T, D) by slots, by slots in four chunks, by the dense einsum and by sorted rows."""
    import torch

    from pointsman.moe.systems.grouped import decode, encode

    sent_ECD = encode(x_TD, route, slots)
    table_TEC = one_hot(route, slots)
    dense_ECD = on_slots(bank, torch.einsum("tec,td->ecd", (table_TEC != 0).to(x_TD), x_TD))
    rows = bank(route.dispatch(x_TD), route.by_branch().offsets)
    return {
        "sparse": decode(on_slots(bank, sent_ECD), route),
        "chunked": decode(on_slots(bank, sent_ECD, chunks=4), route),
        "einsum": torch.einsum("tec,ecd->td", table_TEC, dense_ECD),
        "sorted": route.combine(rows),
    }


def layer(seed: int, width: int, experts: int, factor: float) -> "MoE":
    """The composition."""
    import torch

    from pointsman.moe.systems.grouped import tutel

    torch.manual_seed(seed)
    return tutel(width, 2 * width, experts, k=K, factor=factor)


def differences(seed: int) -> dict[str, float]:
    """Largest difference to the einsum, of outputs and all gradients, in double precision."""
    import torch

    from pointsman.moe import FeedForwardExperts
    from pointsman.moe.systems.grouped import first_choices_first, places

    moe = layer(seed, 8, 6, factor=1.0).double()
    bank = moe.experts
    assert isinstance(bank, FeedForwardExperts)
    x_TD = torch.randn(48, 8, dtype=torch.float64, requires_grad=True)
    scores_TE = moe.router(x_TD)
    route = first_choices_first(scores_TE, K, factor=1.0)
    slots = -(-(int(places(route).max()) + 1) // 4) * 4
    learning = (x_TD, *moe.parameters())
    probe_TD = torch.randn(48, 8, dtype=torch.float64)
    results = {}
    for name, y_TD in ways(bank, route, slots, x_TD).items():
        grads = torch.autograd.grad((y_TD * probe_TD).sum(), learning, retain_graph=True)
        results[name] = (y_TD.detach(), *grads)
    found = {}
    for name in ("sparse", "chunked", "sorted"):
        pairs = zip(results[name], results["einsum"], strict=True)
        found[f"{name}: difference"] = max(float((a - b).abs().max()) for a, b in pairs)
    return found


def quick() -> None:
    """Slots by counting equal the dense einsum, first choices go first, the capacity rule holds.

    The rule: a positive factor fixes the slots, 0 drops nothing, a negative one is a bound; and the
    layer as composed gives what slots laid out give.
    """
    import torch

    from pointsman.moe.systems.grouped import first_choices_first, places, slots_per_expert
    from pointsman.route import Route

    for name, difference in differences(0).items():
        must(difference < 1e-6, f"{name} to the einsum, got {difference:g}")
    # Expert 0 is everybody's second choice but the last token's, whose first it is.
    route = Route.from_indices(torch.tensor([[1, 0], [2, 0], [0, 1]]), num_branches=3)
    must(places(route).tolist() == [0, 1, 0, 2, 0, 1], "second choices come after all first ones")
    rule = {1.0: 16, 0.5: 8, 1.3: 20, 0.0: 29, -1.0: 16, -4.0: 29}
    for factor, slots in rule.items():
        found = slots_per_expert(60, 8, K, factor, busiest=29)
        must(found == slots, f"factor {factor} gives {slots} slots, got {found}")
    must(slots_per_expert(60, 8, K, 0.0, busiest=29, multiple=4) == 32, "rounded up to chunks")
    scores_TE = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    for factor in rule:
        load_E = (route := first_choices_first(scores_TE, K, factor=factor)).load()
        wanted_E = first_choices_first(scores_TE, K, factor=0.0).load()
        must(int(wanted_E.sum()) == 60 * K, "factor 0 drops nothing")
        room = slots_per_expert(60, 8, K, factor, busiest=int(wanted_E.max()))
        must(torch.equal(load_E, wanted_E.clamp(max=room)), f"experts are filled, {factor}")
        must(
            len(set(zip(route.branches.tolist(), places(route).tolist(), strict=True)))
            == len(route),
            "no slot is given twice",
        )


def seconds(seed: int) -> dict[str, float]:
    """CPU time of sending out and reading back, the median of seven turns."""
    import time
    from statistics import median

    import torch

    from pointsman.moe.systems.grouped import decode, encode, first_choices_first, slots_per_expert

    generator = torch.Generator().manual_seed(seed)
    x_TD = torch.randn(TOKENS, WIDTH, generator=generator)
    scores_TE = torch.randn(TOKENS, EXPERTS, generator=generator)
    route = first_choices_first(scores_TE, K, factor=1.0)
    slots = slots_per_expert(TOKENS, EXPERTS, K, 1.0, busiest=0)
    table_TEC = one_hot(route, slots)
    sent_TEC = (table_TEC != 0).float()

    def sparse() -> object:
        return decode(encode(x_TD, route, slots), route)

    def einsum() -> object:
        out = torch.einsum("tec,td->ecd", sent_TEC, x_TD)
        return torch.einsum("tec,ecd->td", table_TEC, out)

    taken: dict[str, list[float]] = {"sparse": [], "einsum": []}
    for _ in range(7):
        for run in (sparse, einsum):
            start = time.process_time()
            run()
            taken[run.__name__].append(time.process_time() - start)
    copied = 2 * TOKENS * K * WIDTH
    return {
        "sparse: milliseconds": 1e3 * median(taken["sparse"]),
        "einsum: milliseconds": 1e3 * median(taken["einsum"]),
        "sparse: work": copied,
        "einsum: work": 2 * TOKENS * EXPERTS * slots * WIDTH,
        "einsum: time ratio": median(taken["einsum"]) / median(taken["sparse"]),
    }


def full(seed: int) -> Figures:
    """Largest differences, tokens' choices dropped at three factors, work and time."""
    import torch

    from pointsman.moe.systems.grouped import first_choices_first

    found = {**differences(seed), **seconds(seed)}
    scores_TE = torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(seed))
    for factor in (0.0, 1.0, -1.0):
        route = first_choices_first(scores_TE, K, factor=factor)
        found[f"factor {factor:g}: dropped"] = 1 - len(route) / (TOKENS * K)
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """See `criterion`."""
    return all(
        all(figures[f"{way}: difference"] < 1e-6 for way in ("sparse", "chunked", "sorted"))
        and figures["factor 0: dropped"] == 0
        and figures["einsum: time ratio"] > 5
        for figures in measurements
    )


CLAIM = Claim(
    slug="tutel",
    paper="Tutel: Adaptive Mixture-of-Experts at Scale",
    year=2022,
    arxiv="2206.03382",
    level="moe",
    claim="Sending tokens to slots by counting gives what the dense einsum gives, for a small part "
    "of its work, and slots that follow the load drop nothing.",
    baseline="The dense dispatch and combine einsum of GShard with the same slots.",
    criterion="In every seed: outputs and gradients by slots, by slots in four chunks and by "
    "sorted rows are within 1e-6 of the einsum; a factor of 0 drops no choice; and at 2048 tokens, "
    "64 experts and width 64 the einsum takes more than five times the CPU time.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.tutel",
    composition="linear router · top-2, first choices first, adaptive capacity · feed-forward "
    "experts · switch loss",
    key={
        "time ratio": "einsum: time ratio",
        "dropped at 0": "factor 0: dropped",
        "dropped at 1": "factor 1: dropped",
        "difference": "sparse: difference",
    },
)
