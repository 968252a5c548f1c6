"""BlockFFN: ReLU routing of one size, trained so that a stretch of tokens needs few experts.

Song et al., "BlockFFN: Towards End-Side Acceleration-Friendly Mixture-of-Experts with Chunk-Level
Activation Sparsity" (2025, arXiv 2507.08771).

Scores pass a ReLU, which decides who answers, and an RMS norm with a learned gain, which gives the
weights: so pressure on the scores changes the pattern and not the size of the output. The locality
loss draws the on/off patterns of neighbours together, the chunk loss lowers the share of experts
that a chunk needs. Sparsity of a chunk of 8 is the share of experts that none of its tokens uses.
The parts are `balance.NormedWeights`, `locality` and `chunk_sparsity`.

What was settled:
- Sequences of 64 tokens whose topic changes every 16; the target is the topic's linear map of the
  token, 8 topics, 32 experts. Tokens do not tell their topic alone: they lie near its centre.
- Sharpness 20 and loss weights 0.3 and 1, all constant; the paper adapts one of the weights in a
  way that we have not read.
- Top-k takes as many experts as BlockFFN does in the mean, rounded, with a switch loss of 0.01.
- The paper's gain in quality did not show at this size when this check was designed; both errors
  are given. What is asked for is the sparsity of chunks at equal sparsity of tokens.
- The kernels are not here.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import torch

    from pointsman.claims.worlds import Mixture
    from pointsman.moe import MoE
    from pointsman.route import Route

EXPERTS, TOPICS = 32, 8
WIDTH, HIDDEN = 16, 8
LENGTH, STAY, CHUNK = 64, 16, 8
BATCH = 8  # sequences
UPDATES = 600


def quick() -> None:
    """Weights do not change when scores grow; equal neighbours cost nothing and share experts."""
    import torch
    from torch.testing import assert_close

    from pointsman.moe.systems.balanced import blockffn

    torch.manual_seed(0)
    layer = blockffn(WIDTH, HIDDEN, EXPERTS, length=LENGTH).double()
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    _, routing = layer(x)
    weight = layer.router.get_parameter("weight")
    with torch.no_grad():
        weight.mul_(100.0)
    louder = layer(x)[1]
    assert_close(louder.route.to_dense(), routing.route.to_dense(), rtol=1e-3, atol=1e-3)
    must(torch.equal(louder.route.mask(), (routing.scores > 0)), "an expert is off at score zero")
    alike = layer(x[:, :1].expand(-1, LENGTH, -1))[1]
    must(
        float(alike.losses["locality"].detach())
        < 1e-3
        < float(routing.losses["locality"].detach()),
        "equal neighbours cost nothing",
    )
    must(_chunk_sparsity(alike.route) > 2 * _chunk_sparsity(routing.route), "and share experts")


def full(seed: int) -> Figures:
    """Sparsity of tokens and of chunks, and errors, of BlockFFN and of top-k as sparse."""
    from functools import partial

    import torch

    from pointsman.claims import worlds
    from pointsman.moe import FeedForwardExperts, MoE
    from pointsman.moe.balance import switch
    from pointsman.moe.systems.balanced import blockffn
    from pointsman.select import top_k

    mixture = worlds.mixture(seed, clusters=TOPICS, width=WIDTH)
    torch.manual_seed(seed)
    ours = blockffn(WIDTH, HIDDEN, EXPERTS, length=LENGTH, chunk=CHUNK, sharpness=20.0)
    found = _measured("BlockFFN", ours, mixture, seed)
    k = max(1, round((1 - found["BlockFFN: sparsity of tokens"]) * EXPERTS))
    torch.manual_seed(seed)
    theirs = MoE(
        torch.nn.Linear(WIDTH, EXPERTS, bias=False),
        partial(top_k, k=k, renormalize=k > 1),
        FeedForwardExperts(EXPERTS, WIDTH, HIDDEN, activation="silu"),
        balance=((0.01, switch),),
    )
    return found | _measured("top-k", theirs, mixture, seed)


def _measured(row: str, layer: "MoE", mixture: "Mixture", seed: int) -> dict[str, float]:
    """Train, then read sparsity and error on fresh sequences."""
    import torch
    from torch.nn import functional

    optimiser = torch.optim.Adam(layer.parameters(), 3e-3)
    for update in range(UPDATES):
        x, y = _sequences(mixture, BATCH, seed=(seed + 1) * 1_000_003 + update)
        answer, routing = layer(x)
        loss = functional.mse_loss(answer, y) + routing.loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    layer.eval()
    x, y = _sequences(mixture, 64, seed=2_000_000_011 + seed)
    with torch.no_grad():
        answer, routing = layer(x)
    return {
        f"{row}: sparsity of tokens": 1 - len(routing.route) / (64 * LENGTH * EXPERTS),
        f"{row}: sparsity of chunks": _chunk_sparsity(routing.route),
        f"{row}: relative error": float(functional.mse_loss(answer, y) / y.var()),
    }


def _sequences(mixture: "Mixture", count: int, seed: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """(count, LENGTH, WIDTH) tokens and targets, whose cluster changes every STAY places."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    topic = torch.randint(TOPICS, (count, LENGTH // STAY), generator=generator)
    topic = topic.repeat_interleave(STAY, dim=1)
    noise = torch.randn(count, LENGTH, WIDTH, generator=generator)
    x = mixture.centres_CD[topic] + mixture.spread * noise
    return x, torch.einsum("nsd,nsdo->nso", x, mixture.maps_CDO[topic])


def _chunk_sparsity(route: "Route") -> float:
    """Share of experts that no token of a chunk uses."""
    used = route.mask().reshape(-1, CHUNK, route.num_branches).any(dim=1)
    return 1 - float(used.double().mean())


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""

    def of(row: str, column: str) -> float:
        return mean(measurements, f"{row}: {column}")

    gap = abs(of("BlockFFN", "sparsity of tokens") - of("top-k", "sparsity of tokens"))
    gain = of("BlockFFN", "sparsity of chunks") / of("top-k", "sparsity of chunks")
    return gap <= 0.02 and gain >= 1.4


CLAIM = Claim(
    slug="blockffn",
    paper="BlockFFN: Towards End-Side Acceleration-Friendly Mixture-of-Experts with Chunk-Level "
    "Activation Sparsity",
    year=2025,
    arxiv="2507.08771",
    level="moe",
    claim="With ReLU routing, normed weights and two losses on neighbouring tokens, a chunk of "
    "tokens needs far fewer experts than with top-k, at the same number of experts a token.",
    baseline="Top-k with a switch loss and as many experts a token, on the same sequences.",
    criterion="On fresh sequences and in the mean over the seeds: the share of experts that a "
    "chunk of 8 tokens does not need is at least 1.4 times that of top-k, while the share that a "
    "token does not need is the same within 0.02.",
    quick=quick,
    full=full,
    decide=decide,
    note="Missed narrowly: chunks were 1.38 times as sparse as with top-k. The error was several "
    "times that of top-k, as the two losses were weighed for sparsity.",
    entry="pointsman.moe.systems.blockffn",
    composition="linear router · ReLU · RMS-normed weights · small feed-forward experts · locality "
    "and chunk losses",
    key={
        "chunks": "BlockFFN: sparsity of chunks",
        "chunks, top-k": "top-k: sparsity of chunks",
        "tokens": "BlockFFN: sparsity of tokens",
        "error": "BlockFFN: relative error",
    },
)
