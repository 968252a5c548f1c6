"""Cascade deferral: when a cheap model's confidence suffices, and when deferral must be learned.

Jitkrittum et al., "When Does Confidence-Based Cascade Deferral Suffice?" (2023, arXiv 2307.02764).

A cheap classifier answers or defers to a dear one. The best rule defers where the chance of the
dear one to be right exceeds that of the cheap one by more than its price. Deferring where the cheap
one is unsure orders inputs likewise only while the dear one is about as good on all of them; it
fails for a specialist, and under label noise. Post-hoc rules regress the difference on what the
cheap one said. The parts: `pool.deferral.LearnedDeferral` with its three targets, and the area
under the deferral curve of `frontier.metrics`.

What was settled:
- Digits under pixel noise. The cheap model is a logistic regression on 4x4 averages of the pixels,
  the dear one on all pixels; the specialist is trained on digits 0 to 4 only. Both are trained on
  the training part, deferral is learned on the calibration part, and areas are of the test part.
- The area is the mean accuracy over all shares of deferred inputs, 0 to 1: random deferral gives
  the mean of both models. The best possible order knows which model is right about which input.
- Label noise: half of the labels of digits 5 to 9 are drawn anew among those, in every part, so
  that nobody can be right about them. The effect is reported to be small, and decides nothing.
- "Learned" in the criterion is the first of the paper's targets, the difference of being right
  (Diff-01). The other two, the difference of probabilities (Diff-Prob) and the dear model's largest
  probability (MaxProb), are shown beside it. The regression is boosted trees, where the paper has a
  small network.
- The noise was set on other seeds, by the accuracy of the two models alone: about 80% and 94%.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pointsman.claims.frame import Claim, Figures, mean, must

if TYPE_CHECKING:
    import numpy as np

NOISE, SPECIAL, NOISY = 0.15, 5, 0.5
LEARNED = {"Diff-01": "correctness", "Diff-Prob": "probability", "MaxProb": "confidence"}
SETTINGS = ("specialist", "generalist", "label noise")


def quick() -> None:
    """Confidence orders best iff the second model is steady; else the gain has to be learned."""
    import numpy as np

    from pointsman.frontier import deferral_area
    from pointsman.pool.deferral import LearnedDeferral

    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1.0, size=4000)  # of a calibrated first model on two classes
    first = np.stack([sure, 1 - sure], axis=1)
    flip = rng.random(4000) < 0.5
    first[flip] = first[flip, ::-1]
    for steady in (True, False):
        chance = np.full(4000, 0.9) if steady else np.where(flip, 0.95, 0.05)
        order = deferral_area(chance - sure, sure, chance)
        confidence = deferral_area(-sure, sure, chance)
        must(confidence <= order + 1e-12, "no order beats that of the difference of chances")
        must((order - confidence < 1e-9) == steady, "confidence is as good iff the other is steady")
    labels = np.where(rng.random(4000) < sure, first.argmax(axis=1), 1 - first.argmax(axis=1))
    leads = first.argmax(axis=1)
    right = rng.random(4000) < np.where(leads == 1, 0.95, 0.05)  # knows one class only
    said = np.where(right, labels, 1 - labels)
    second = np.eye(2)[said] * 0.8 + 0.1
    score = LearnedDeferral().fit(first[:3000], second[:3000], labels[:3000]).score(first[3000:])
    weak, strong = (each[3000:].astype(float) for each in (leads == labels, right))
    learned, plain = (deferral_area(s, weak, strong) for s in (score, -sure[3000:]))
    must(learned > plain + 0.05, "the learned rule finds what the second model is good at")
    must(bool(score[leads[3000:] == 1].min() > score[leads[3000:] == 0].max()), "and defers those")


def full(seed: int) -> Figures:
    """Area under the deferral curve of each rule in three settings; accuracies of the models."""
    from pointsman.claims import testbeds

    found: dict[str, float] = {}
    data = testbeds.digits(seed, NOISE)
    parts = {
        name: (part.x.numpy().astype(float), part.y.numpy())
        for name, part in (
            ("train", data.train),
            ("calibration", data.calibration),
            ("test", data.test),
        )
    }
    for setting in SETTINGS:
        for name, value in _setting(parts, setting, seed).items():
            found[f"{setting}, {name}"] = value
    return found


def _setting(parts: dict[str, tuple[Any, Any]], setting: str, seed: int) -> dict[str, float]:
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    from pointsman.frontier import deferral_area
    from pointsman.pool.deferral import LearnedDeferral

    rng = np.random.default_rng(seed)
    if setting == "label noise":
        parts = {name: (x, _noisy(y, rng)) for name, (x, y) in parts.items()}
    x, y = parts["train"]
    own = y < SPECIAL if setting == "specialist" else np.full(len(y), True)
    cheap = LogisticRegression(C=1.0, max_iter=500).fit(_pooled(x), y)
    dear = LogisticRegression(C=0.3, max_iter=500).fit(x[own], y[own])
    said = {
        name: (cheap.predict_proba(_pooled(part)), _all_classes(dear, part), labels)
        for name, (part, labels) in parts.items()
    }
    first, second, labels = said["test"]
    weak = (first.argmax(axis=1) == labels).astype(float)
    strong = (second.argmax(axis=1) == labels).astype(float)
    scores = {"random": np.zeros(len(labels)), "confidence": -first.max(axis=1)}
    for name, target in LEARNED.items():
        rule = LearnedDeferral(target, seed=seed)  # type: ignore[arg-type]
        scores[name] = rule.fit(*said["calibration"]).score(first)
    scores["best possible"] = strong - weak
    found = {f"{name}: area": deferral_area(each, weak, strong) for name, each in scores.items()}
    return {
        **found,
        "cheap model: accuracy": float(weak.mean()),
        "dear model: accuracy": float(strong.mean()),
    }


def _pooled(x: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """(N, 16) averages of 2x2 pixels."""
    pooled: np.ndarray[Any, Any] = x.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16)
    return pooled


def _all_classes(model: Any, x: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """(N, 10) probabilities, 0 for classes that the model never saw."""
    import numpy as np

    found = np.zeros((len(x), 10))
    found[:, model.classes_] = model.predict_proba(x)
    return found


def _noisy(y: "np.ndarray[Any, Any]", rng: "np.random.Generator") -> "np.ndarray[Any, Any]":
    import numpy as np

    anew = (y >= SPECIAL) & (rng.random(len(y)) < NOISY)
    return np.where(anew, rng.integers(SPECIAL, 10, size=len(y)), y)


def decide(measurements: Sequence[Figures]) -> bool:
    """The criterion."""
    gain = {
        setting: mean(measurements, f"{setting}, Diff-01: area")
        - mean(measurements, f"{setting}, confidence: area")
        for setting in ("specialist", "generalist")
    }
    return gain["specialist"] >= 0.02 and abs(gain["generalist"]) <= 0.005


CLAIM = Claim(
    slug="cascade-deferral",
    paper="When Does Confidence-Based Cascade Deferral Suffice?",
    year=2023,
    arxiv="2307.02764",
    level="pool",
    claim="Confidence decides well when to ask a second model that is about as good on all inputs; "
    "where that one is a specialist, learning the gain after both were trained does much better.",
    baseline="Deferral by the cheap model's largest probability, and at random; the best possible "
    "order as the other end.",
    criterion="Area under the deferral curve on digits, in the mean over seeds: learned deferral "
    "(Diff-01) is at least 2 points above confidence with a specialist as second model, and within "
    "half a point of it with a generalist.",
    quick=quick,
    full=full,
    decide=decide,
    composition="two classifiers · regression of the gain on what the first one said · deferral "
    "curve and its area",
    entry="pointsman.pool.deferral.LearnedDeferral",
    key={
        "specialist: learned": "specialist, Diff-01: area",
        "confidence": "specialist, confidence: area",
        "generalist: learned": "generalist, Diff-01: area",
        "confidence, generalist": "generalist, confidence: area",
    },
)
