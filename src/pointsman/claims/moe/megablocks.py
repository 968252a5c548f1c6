"""MegaBlocks: experts as one sparse product, so that no token is dropped or padded.

Gale et al., "MegaBlocks: Efficient Sparse Training with Mixture-of-Experts" (2022,
arXiv 2211.15841).

Rows are sorted by expert, and the feed-forward layers of all experts are one product with a block
diagonal matrix whose blocks follow the load: an expert's rows are filled up to whole blocks only.
Nothing has to be dropped, and an expert without tokens is a block that is not there. The
composition is `moe.systems.megablocks`.

What was settled:
- The speed is that of GPU kernels and is not checked. What is: that grouped and blocked computation
  equal a loop over tokens, forward and backward, and how many rows are computed for nothing.
- Blocks of 16 rows, a dense product for each block, stand for the block-sparse kernels.
- Three loads: random ones of Zipf shares, all tokens to one expert, and half of the experts without
  any. Waste is counted on the first, in 2048 tokens and 16 experts, best expert only.
- "Capacity" gives each expert as many slots as the busiest one needs, which drops nothing either.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, must

if TYPE_CHECKING:
    from torch import Tensor

    from pointsman.moe import FeedForwardExperts, MoE
    from pointsman.route import Route

TOKENS, EXPERTS, WIDTH, HIDDEN, BLOCK = 2048, 16, 16, 24, 16
LOADS = ("random", "all to one", "half empty")


def routes(seed: int, tokens: int) -> "dict[str, Route]":
    """A route of each load, with weights that learn."""
    import torch

    from pointsman.route import Route

    generator = torch.Generator().manual_seed(seed)
    shares_E = 1 / torch.arange(1.0, EXPERTS + 1)
    shares = {
        "random": shares_E,
        "all to one": torch.eye(EXPERTS)[3],
        "half empty": shares_E * (torch.arange(EXPERTS) % 2),
    }
    found = {}
    for name, share_E in shares.items():
        branches_T1 = torch.multinomial(share_E, tokens, replacement=True, generator=generator)
        weights_T1 = torch.rand(tokens, 1, generator=generator).requires_grad_()
        found[name] = Route.from_indices(branches_T1[:, None], weights_T1, num_branches=EXPERTS)
    return found


def by_token(bank: "FeedForwardExperts", route: "Route", x_TD: "Tensor") -> "Tensor":
    """One token after the other through its expert."""
    import torch

    rows = []
    for pair in range(len(route)):
        x, e = x_TD[route.inputs[pair]], route.branches[pair]
        hidden = bank.activation(torch.mv(bank.up_EFD[e], x))
        rows.append(route.weights[pair] * torch.mv(bank.down_EDF[e], hidden))
    return torch.stack(rows)


def grouped(bank: "FeedForwardExperts", route: "Route", x_TD: "Tensor") -> "Tensor":
    """The library's own: rows sorted by expert, of any number."""
    answers: Tensor = bank(route.dispatch(x_TD), route.by_branch().offsets)
    return route.combine(answers)


def blocked(bank: "FeedForwardExperts", route: "Route", x_TD: "Tensor") -> "Tensor":
    """The paper's: each expert's rows filled up to whole blocks, one dense product a block."""
    import torch

    order, inputs, _, offsets = route.by_branch()
    load_E = offsets.diff()
    blocks_E = -(-load_E // BLOCK)
    begins_E = (blocks_E.cumsum(0) - blocks_E) * BLOCK
    owner_N = route.branches[order]
    slot_N = begins_E[owner_N] + torch.arange(len(route)) - offsets[owner_N]
    total = int(blocks_E.sum())
    padded = x_TD.new_zeros(total * BLOCK, x_TD.shape[1]).index_copy(0, slot_N, x_TD[inputs])
    expert_B = torch.arange(EXPERTS).repeat_interleave(blocks_E)
    hidden = torch.bmm(padded.reshape(total, BLOCK, -1), bank.up_EFD[expert_B].transpose(1, 2))
    answers = torch.bmm(bank.activation(hidden), bank.down_EDF[expert_B].transpose(1, 2))
    return route.combine(answers.flatten(0, 1)[slot_N])


def layer(seed: int) -> "MoE":
    """The composition, at the size of this claim."""
    import torch

    from pointsman.moe.systems.grouped import megablocks

    torch.manual_seed(seed)
    return megablocks(WIDTH, HIDDEN, EXPERTS)


def differences(seed: int, tokens: int) -> dict[str, float]:
    """Largest difference to the loop over tokens, of outputs and all gradients."""
    import torch

    from pointsman.moe import FeedForwardExperts

    bank = layer(seed).experts
    assert isinstance(bank, FeedForwardExperts)
    found = {}
    for load, route in routes(seed, tokens).items():
        x_TD = torch.randn(tokens, WIDTH, requires_grad=True)
        learning = (x_TD, route.weights, *bank.parameters())
        probe_TD = torch.randn(tokens, WIDTH)
        results = {}
        for run in (by_token, grouped, blocked):
            y_TD = run(bank, route, x_TD)
            grads = torch.autograd.grad((y_TD * probe_TD).sum() / tokens, learning)
            results[run.__name__] = (y_TD.detach(), *grads)
        for name in ("grouped", "blocked"):
            pairs = zip(results[name], results["by_token"], strict=True)
            found[f"{load}: {name}"] = max(float((a - b).abs().max()) for a, b in pairs)
    return found


def quick() -> None:
    """Grouped and blocked experts equal a loop over tokens for three loads, and nothing is dropped.

    The layer as composed takes every token, also where all go to one expert.
    """
    import torch

    from pointsman.moe.systems.grouped import padded_rows

    for name, difference in differences(0, 96).items():
        must(difference < 1e-5, f"{name} equals the loop, got {difference:g}")
    moe = layer(0)
    x_TD = torch.rand(64, WIDTH)
    with torch.no_grad():
        moe.router.weight[5] = 100.0  # type: ignore[operator]
        y_TD, routing = moe(x_TD)
    must(routing.route.load().tolist() == [64 * (e == 5) for e in range(EXPERTS)], "all to one")
    must(not routing.route.dropped().any(), "no token is dropped")
    must(bool(y_TD.any(dim=1).all()), "every token is answered")
    for load in ([0, 0], [1, 16], [17, 0], [32, 48]):
        waste = padded_rows(torch.tensor(load), BLOCK) - sum(load)
        must(0 <= waste < BLOCK * len(load), f"blocks waste less than one an expert, got {waste}")


def full(seed: int) -> Figures:
    """Largest differences, and rows computed for nothing as a share of the rows that came."""
    from pointsman.moe.systems.grouped import padded_rows

    found = differences(seed, 256)
    load_E = routes(seed, TOKENS)["random"].load()
    for name, rows in (
        ("grouped", TOKENS),
        ("blocked", padded_rows(load_E, BLOCK)),
        ("capacity", int(load_E.max()) * EXPERTS),
    ):
        found[f"{name}: waste"] = (rows - TOKENS) / TOKENS
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """See `criterion`."""
    bound = EXPERTS * BLOCK / TOKENS
    return all(
        all(figures[f"{load}: {way}"] < 1e-5 for load in LOADS for way in ("grouped", "blocked"))
        and figures["grouped: waste"] == 0
        and figures["blocked: waste"] < bound < figures["capacity: waste"]
        for figures in measurements
    )


CLAIM = Claim(
    slug="megablocks",
    paper="MegaBlocks: Efficient Sparse Training with Mixture-of-Experts",
    year=2022,
    arxiv="2211.15841",
    level="moe",
    claim="Experts as one block-sparse product compute every token exactly, without dropping any "
    "and with little padding.",
    baseline="A loop over tokens for the results; for the padding, slots for every expert as many "
    "as the busiest one needs, which drops nothing either.",
    criterion="In every seed: outputs and gradients are within 1e-5 of the loop for random loads, "
    "all tokens to one expert, and half of the experts empty; grouped rows waste nothing, blocks "
    "of 16 waste fewer than 16 rows an expert, and slots for the busiest waste more than that.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.megablocks",
    composition="linear router · top-1 · feed-forward experts, grouped rows · switch loss",
    key={
        "waste, blocks": "blocked: waste",
        "waste, slots": "capacity: waste",
        "difference": "random: grouped",
    },
)
