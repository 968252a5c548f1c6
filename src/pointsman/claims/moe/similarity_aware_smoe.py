"""Similarity-aware routing: tokens of a sequence that are alike share their expert choice.

Nguyen et al., "Improving Routing in Sparse Mixture of Experts with Graph of Tokens" (2025,
arXiv 2505.00792).

A router's probabilities p_j are mixed over the tokens of a sequence, p'_i = sum over j of A_ij p_j,
before experts are chosen. A is a learned similarity, or the attention of the layer below. So a
token that sits near a border between experts follows its likes, and small changes move it less.
The part is `moe.routers.SmoothedRouter`, the composition `moe.systems.routed.similarity_aware`.

What was settled:
- Probabilities are mixed, not scores; the similarity starts at x_i x_j / sqrt(D).
- The paper's theorem is of lower entropy of the choice in its own graphical model. The entropy of a
  mixture of distributions is never below their mixed entropy, so that is no test of the mixed
  probabilities; what is tested is what it is for, fewer routing fluctuations.
- The routers are random: 64 tokens of 8 clusters are one sequence, and the first choice of each is
  compared before and after fresh noise on every token.
"""

from collections.abc import Sequence

from pointsman.claims.frame import Claim, Figures, mean, must

WIDTH, EXPERTS, CLUSTERS, TOKENS, NOISE, REPEATS = 16, 8, 8, 64, 0.5, 40
ROWS = ("plain", "similarity-aware", "attention-aware")


def quick() -> None:
    """Sharp similarity gives the plain router, an even one a common choice; entropy never drops."""
    import torch
    from torch.testing import assert_close

    from pointsman.moe import Context
    from pointsman.moe.routers import LinearRouter, SmoothedRouter

    torch.manual_seed(0)
    shape = torch.Size((2, 5))
    x_TD = torch.randn(10, WIDTH, dtype=torch.float64)
    inner = LinearRouter(WIDTH, EXPERTS).double()
    plain_TE = inner(x_TD).softmax(dim=1)

    def mixed(router: SmoothedRouter, attention: torch.Tensor | None = None) -> torch.Tensor:
        context = Context(attention=attention).of_tokens(shape, None, x_TD.device)
        scores: torch.Tensor = router.double()(x_TD, context).scores
        return scores.exp()

    same = torch.eye(5, dtype=torch.float64).expand(2, 5, 5)
    assert_close(mixed(SmoothedRouter(inner), same), plain_TE)
    assert_close(mixed(SmoothedRouter(inner, WIDTH, temperature=1e-3)), plain_TE)
    common_nE = plain_TE.reshape(2, 5, EXPERTS).mean(dim=1)
    even = mixed(SmoothedRouter(inner, WIDTH, temperature=1e9)).reshape(2, 5, EXPERTS)
    assert_close(even, common_nE[:, None].expand(2, 5, EXPERTS))
    weights = torch.rand(2, 5, 5, dtype=torch.float64)
    weights = weights / weights.sum(dim=2, keepdim=True)
    smooth_TE = mixed(SmoothedRouter(inner), weights)
    assert_close(smooth_TE.sum(dim=1), torch.ones(10, dtype=torch.float64))
    entropy_T, smooth_T = (torch.special.entr(p).sum(dim=1) for p in (plain_TE, smooth_TE))
    least_T = (weights @ entropy_T.reshape(2, 5, 1)).flatten()
    must(bool((smooth_T >= least_T - 1e-12).all()), "mixing never lowers the mixed entropy")


def full(seed: int) -> Figures:
    """Share of tokens whose first choice flips under noise, and the entropy of the choice."""
    import torch

    from pointsman.claims import worlds
    from pointsman.moe import Context
    from pointsman.moe.routers import LinearRouter, SmoothedRouter

    flips = dict.fromkeys(ROWS, 0.0)
    entropy = dict.fromkeys(ROWS, 0.0)
    torch.manual_seed(seed)
    for repeat in range(REPEATS):
        world = worlds.mixture(1000 * seed + repeat, clusters=CLUSTERS, width=WIDTH, spread=0.3)
        inner = LinearRouter(WIDTH, EXPERTS)
        routers = {
            "plain": inner,
            "similarity-aware": SmoothedRouter(inner, WIDTH),
            "attention-aware": SmoothedRouter(inner),
        }
        x_TD = world.draw(TOKENS, seed=repeat).x
        noisy_TD = x_TD + NOISE * torch.randn(x_TD.shape)
        query, key = (torch.randn(WIDTH, WIDTH) * WIDTH**-0.5 for _ in range(2))
        for row in ROWS:
            choices = []
            for tokens in (x_TD, noisy_TD):
                attention = ((tokens @ query) @ (tokens @ key).T / WIDTH**0.5).softmax(dim=1)
                about = Context(attention=attention[None])
                context = about.of_tokens(torch.Size((1, TOKENS)), None, tokens.device)
                with torch.no_grad():
                    scored = routers[row](tokens, context)
                scores_TE = scored if isinstance(scored, torch.Tensor) else scored.scores
                choices.append(scores_TE.argmax(dim=1))
            flips[row] += float((choices[0] != choices[1]).float().mean()) / REPEATS
            probabilities = scores_TE.softmax(dim=1)
            entropy[row] += float(torch.special.entr(probabilities).sum(dim=1).mean()) / REPEATS
    return {
        **{f"{row}: share of choices that flip": flips[row] for row in ROWS},
        **{f"{row}: entropy of the choice": entropy[row] for row in ROWS},
    }


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    plain = mean(measurements, "plain: share of choices that flip")
    return mean(measurements, "similarity-aware: share of choices that flip") <= 0.8 * plain


CLAIM = Claim(
    slug="similarity-aware-smoe",
    paper="Improving Routing in Sparse Mixture of Experts with Graph of Tokens",
    year=2025,
    arxiv="2505.00792",
    level="moe",
    claim="When tokens that are alike share their expert choice, small changes of the tokens flip "
    "fewer choices.",
    baseline="The same router, each token by itself.",
    criterion="For random routers over sequences of 64 tokens from 8 clusters, in the mean over "
    "the seeds: noise of standard deviation 0.5 on every token flips at most 0.8 times as many "
    "first choices as under the plain router.",
    quick=quick,
    full=full,
    decide=decide,
    entry="pointsman.moe.systems.similarity_aware",
    composition="smoothed linear router · top-2 · feed-forward experts · balancing loss",
    key={
        "flips, similarity": "similarity-aware: share of choices that flip",
        "attention": "attention-aware: share of choices that flip",
        "plain": "plain: share of choices that flip",
    },
)
