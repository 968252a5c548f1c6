"""LLM-Drop: sub-layers whose output resembles their input are left out, without training.

He et al., "What Matters in Transformers? Not All Attention is Needed" (2024, arXiv 2406.15786).

How much a sub-layer matters is one minus the cosine between the residual stream before and after
it, on calibration text; those that matter least go. The part: `SublayerDropping`.

What was settled:
- A byte-level decoder of six blocks, trained for seconds, instead of models of 7 to 70 billion
  weights: twelve sub-layers.
- Scores are taken on files of the training text's kind that are held out; losses on others.
- Random choices: for each k, 20 sets of k sub-layers, drawn once for each seed.
- That attention is more redundant than feed-forwards is reported and decides nothing: it may not
  hold at this size.
"""

from collections.abc import Sequence

from pointsman.claims.frame import Claim, Figures, mean, must

UPDATES, CALIBRATION, TEST, DRAWS = 150, 32, 48, 20
DROPPED = (1, 2, 3)


def quick() -> None:
    """A sub-layer that adds nothing scores 0, goes first, and is not missed."""
    import torch

    from pointsman.claims.small_decoder import SmallDecoder, windows
    from pointsman.supernet.language import SublayerDropping

    model = SmallDecoder(0, layers=2)
    with torch.no_grad():
        for weight in (model.blocks[0].feed_forward.down, model.blocks[1].attention.out):  # type: ignore[union-attr]
            weight.weight.zero_()  # type: ignore[union-attr, operator]
    ids = windows(torch.arange(2000) % 128, 4, 0)[:, :-1]
    found = SublayerDropping().fit(model, [ids])
    silent = {"blocks.0.feed_forward", "blocks.1.attention"}
    must(set(found.order_[:2]) == silent, "the silent ones go first")
    must(all(abs(found.scores_[name]) < 1e-9 for name in silent), "they score 0")
    must(min(found.scores_[name] for name in found.order_[2:]) > 1e-6, "others score more")
    with torch.no_grad():
        must(torch.allclose(found.drop(2)(ids), model(ids), atol=1e-5), "nothing changes")


def full(seed: int) -> Figures:
    """Nats without k sub-layers: least score, random, most score; and the rank correlation."""
    import numpy as np
    from scipy.stats import spearmanr

    from pointsman.claims.small_decoder import held_out, nats, trained
    from pointsman.supernet.language import SublayerDropping

    model = trained(seed, UPDATES)
    calibration, test = held_out(CALIBRATION, seed, "first"), held_out(TEST, seed, "second")
    found = SublayerDropping().fit(model, [calibration[:, :-1]])
    net, order = found.supernet_, found.order_

    def loss(names: Sequence[str]) -> float:
        net.use(found.genotype(names))
        return nats(net, test)

    whole = loss([])
    alone = {name: loss([name]) - whole for name in order}
    rng = np.random.default_rng(seed)
    figures = {"whole: nats": whole}
    for count in DROPPED:
        drawn = [list(rng.choice(order, count, replace=False)) for _ in range(DRAWS)]
        figures[f"{count} dropped: least score"] = loss(order[:count])
        figures[f"{count} dropped: random"] = float(np.mean([loss(names) for names in drawn]))
        figures[f"{count} dropped: most score"] = loss(order[-count:])
    scores = [found.scores_[name] for name in order]
    rank = float(spearmanr(scores, [alone[name] for name in order]).statistic)
    figures["scores: rank correlation with loss"] = rank
    for kind in ("attention", "feed_forward"):
        lost = [added for name, added in alone.items() if name.endswith(kind)]
        figures[f"one dropped: nats lost, {kind.replace('_', '-')}"] = float(np.mean(lost))
    return figures


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion, over all seeds."""
    return mean(measurements, "scores: rank correlation with loss") > 0.5 and all(
        mean(measurements, f"{count} dropped: least score")
        <= min(
            mean(measurements, f"{count} dropped: {other}") for other in ("random", "most score")
        )
        for count in DROPPED
    )


CLAIM = Claim(
    slug="llm-drop",
    paper="What Matters in Transformers? Not All Attention is Needed",
    year=2024,
    arxiv="2406.15786",
    level="supernet",
    claim="The likeness of a sub-layer's input and output tells which sub-layers of a trained "
    "transformer can be left out, without any training.",
    baseline="As many sub-layers drawn by chance, and those of the highest score.",
    criterion="Without 1, 2 and 3 of 12 sub-layers, in the mean over the seeds: the held-out loss "
    "without those of the lowest scores is at most that without random ones and that without those "
    "of the highest; and Spearman's rank correlation of score and loss of single sub-layers is "
    "above 0.5.",
    quick=quick,
    full=full,
    decide=decide,
    composition="sub-layers found by running · cosine of the residual stream before and after · "
    "the lowest scores left out",
    entry="pointsman.supernet.language.SublayerDropping",
    key={
        "least score, 3": "3 dropped: least score",
        "random, 3": "3 dropped: random",
        "rank correlation": "scores: rank correlation with loss",
    },
)
