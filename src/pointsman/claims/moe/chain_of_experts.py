"""Chain-of-Experts: several rounds over one pool of experts, so that experts build on each other.

Wang et al., "Chain-of-Experts: Unlocking the Communication Power of Mixture-of-Experts Models"
(2025, arXiv 2506.18945).

Inside one layer a token passes C times through the same pool: x_t = x_{t-1} + sum_i g_{t,i}
E_i(x_{t-1}), with a router for each round and the K / C largest softmax weights, not renormalised.
Expert calls and weights are those of one layer with K, but for the further routers. The
composition is `moe.systems.stacked.chain_of_experts`.

What was settled:
- What becomes of the block's own residual connection was not found; the layer answers x_C - x_0 and
  the block adds it once.
- Character-level model of 2 blocks, width 32, on library sources; 32 experts of hidden width 16, 8
  calls a token: at once, or 4 in each of two rounds. 400 updates of 10 windows, for the time it
  takes.
- The sheet reports that the result turns over with fewer experts (16, 4 calls), so this says little
  of other sizes. No balancing loss in either network.
"""

from collections.abc import Sequence

from pointsman.claims.frame import Claim, Figures, mean, must

EXPERTS, CALLS, HIDDEN = 32, 8, 16
UPDATES, BATCH = 400, 10


def quick() -> None:
    """One round is an ordinary layer, rounds compose, and a token's choices multiply."""
    from math import comb

    import torch
    from torch.testing import assert_close

    from pointsman.moe.systems.stacked import chain_of_experts

    torch.manual_seed(0)
    x = torch.randn(50, 8, dtype=torch.float64)
    once = chain_of_experts(8, 4, 6, 4, rounds=1).double()
    assert_close(once(x)[0], once.layers[0](x)[0])
    chain = chain_of_experts(8, 4, 6, 4, rounds=2).double()
    first, _ = chain.layers[0](x)
    second, _ = chain.layers[1](x + first)
    y, routings = chain(x)
    assert_close(y, first + second)
    calls = sum(len(routing.route) for routing in routings)
    must(calls == 50 * 4, f"a token makes k calls over all rounds, got {calls / 50}")
    must(chain.layers[0].experts is chain.layers[1].experts, "all rounds have one pool")
    must(chain.layers[0].router is not chain.layers[1].router, "each round has its own router")
    weights = [sum(w.numel() for w in layer.parameters()) for layer in (once, chain)]
    must(weights[1] - weights[0] == 6 * 8, "a round more costs one router more")
    sets = comb(EXPERTS, CALLS // 2) ** 2 / comb(EXPERTS, CALLS)
    must(sets > 100, f"two rounds offer 123 times as many sets of experts, got {sets:.0f}")


def full(seed: int) -> Figures:
    """Validation nats a byte of all calls at once, and of two rounds."""
    from torch import nn

    from pointsman.claims import language
    from pointsman.moe.systems.stacked import chain_of_experts

    corpus, found = language.corpus(), {}
    for name, rounds in (("one round", 1), ("two rounds", 2)):

        def make(layer: int, width: int, rounds: int = rounds) -> nn.Module:
            return chain_of_experts(width, HIDDEN, EXPERTS, CALLS, rounds=rounds)

        model = language.LanguageModel(make, seed=seed)
        language.train(model, corpus, seed=seed, updates=UPDATES, batch=BATCH)
        found[f"{name}: nats a byte"] = language.nats(model, corpus, batches=16)
    return found


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    name = "nats a byte"
    return mean(measurements, f"two rounds: {name}") < mean(measurements, f"one round: {name}")


CLAIM = Claim(
    slug="chain-of-experts",
    paper="Chain-of-Experts: Unlocking the Communication Power of Mixture-of-Experts Models",
    year=2025,
    arxiv="2506.18945",
    level="moe",
    claim="With as many expert calls and weights, two rounds over one pool with a router each give "
    "a lower loss than all calls at once.",
    baseline="The same layer with all calls in one round; equal experts, calls, updates and data.",
    criterion="In a byte-level model with 32 experts and 8 calls a token, after 400 updates and in "
    "the mean over the seeds: two rounds of 4 calls have a lower validation loss than one of 8.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.chain_of_experts",
    composition="a linear router a round · top-4, not renormalised · one pool of SwiGLU experts · "
    "two rounds, residual",
    note="The difference is smaller than the spread over the seeds either way.",
    key={"two rounds": "two rounds: nats a byte", "one round": "one round: nats a byte"},
)
