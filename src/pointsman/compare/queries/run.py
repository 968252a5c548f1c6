"""A comparison of strategies on an evaluation log.

split → encode → fit on train → settings on validation → is it worth it? → certify on calibration
→ measure on test → results
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pointsman import __version__
from pointsman.compare import results as written
from pointsman.compare.progress import Progress, Silent
from pointsman.compare.queries.choice import Choice, Mixture, choose, mixed, mixtures
from pointsman.compare.queries.findings import Findings, Measured
from pointsman.compare.queries.offers import TASK, Offer, offers
from pointsman.compare.queries.verdict import judge
from pointsman.compare.request import Request
from pointsman.compare.state import State
from pointsman.frontier import Knob, Outcomes, Pick
from pointsman.pool.features import TextEncoder, VectorEncoder
from pointsman.pool.features.features import Encoder, Features
from pointsman.pool.log import Log
from pointsman.pool.policy import PoolPolicy, expectations
from pointsman.pool.reading import split_log
from pointsman.pool.strategies.strategy import outcomes

PARTS = ("validation", "calibration", "test")


def compare_log(
    log: Log,
    request: Request,
    out: Path,
    *,
    reference: str | None = None,
    encoder: Encoder | None = None,
    examples: int = 5,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Try every strategy on an evaluation log; write and give the results.

    Args:
        log: from `pointsman.pool.reading.read_log`.
        request: of it are read max_drop, confidence, seed and command.
        out: folder for results.json, report.html, frontier.png and .svg, and policy/.
        reference: model whose quality is to be kept; None: the best on train and validation.
        encoder: queries to features; None: words and characters, or the log's vectors where it has
            no texts. Nothing is downloaded.
        examples: how many queries sent up and down the report shows; 0 shows none.
        progress: told what is being done.

    Raises:
        InputError: a log or options that cannot be used, or a folder that cannot.
    """
    request = request.check("queries")
    if reference is not None:
        log.model(reference)
    start, watch = time.monotonic(), progress or Silent()
    with State(out).claimed():
        written.refuse_foreign(out)
        comparison = _Comparison(log, request, encoder or _encoder(log), reference, watch)
        found, policy = comparison.run(examples)
        found["made_by"]["seconds"] = round(time.monotonic() - start, 1)
        found["made_by"]["pointsman"] = __version__
        written.write(found, policy, out)
    return found


def _encoder(log: Log) -> Encoder:
    if log.vectors is not None and not any(query.strip() for query in log.queries):
        return VectorEncoder()
    return TextEncoder()


@dataclass(frozen=True, eq=False)
class _Part:
    """One part of the log with its features."""

    log: Log
    features: Features


class _Comparison:
    """One run over one log: what its steps share."""

    def __init__(
        self,
        log: Log,
        request: Request,
        encoder: Encoder,
        reference: str | None,
        progress: Progress,
    ) -> None:
        self.log, self.request, self.progress = log, request, progress
        split = split_log(log, request.seed)
        self.offers = offers(log, tasks=TASK in log.groups)
        progress.plan(len(self.offers) + 2)
        progress.begin("encoding queries")
        self.encoder = encoder.fit(split["train"])
        self.parts = {name: _Part(part, encoder.transform(part)) for name, part in split.items()}
        progress.advance(1)
        self.reference = self._reference() if reference is None else log.model(reference)

    def run(self, examples: int) -> tuple[dict[str, Any], PoolPolicy]:
        """Every step, in order."""
        measured = [self._measure(offer) for offer in self.offers]
        self.progress.begin("measuring")
        alone, tried = measured[0], measured[1:]
        verdict = judge(
            [each.outcomes["validation"] for each in measured],
            [each.outcomes["calibration"] for each in measured],
            [each.offer.strategy.title for each in tried],
        )
        by_chance = mixtures(alone.outcomes["validation"])
        chosen = self._choose(measured, by_chance, routable=verdict.routable)
        findings = Findings(
            self.log.name,
            {name: part.log for name, part in self.parts.items()},
            self.reference,
            measured,
            by_chance,
            verdict,
            *chosen,
        )
        return findings.results(self.request, examples), self._policy(findings)

    def _reference(self) -> int:
        """The model of best mean quality on complete queries of train and validation."""
        known = [self.parts[name].log for name in ("train", "validation")]
        quality = np.concatenate([part.quality[part.complete()] for part in known])
        means = quality.mean(axis=0)
        costs = self.parts["validation"].log.mean_cost()
        return min(range(len(means)), key=lambda at: (-means[at], costs[at]))

    def _measure(self, offer: Offer) -> Measured:
        """Fit a strategy on train, find its settings on validation, and try them on every part."""
        strategy = offer.strategy
        self.progress.begin(f"fitting {strategy.title}")
        start = time.monotonic()
        train = self.parts["train"]
        strategy.fit(train.log, train.features)
        seconds = time.monotonic() - start
        predictions = {name: strategy.predict(self.parts[name].features) for name in PARTS}
        settings = strategy.settings(self.parts["validation"].log, predictions["validation"])
        reached = {
            name: outcomes(
                self.parts[name].log, strategy, predictions[name], settings, self.reference
            )
            for name in PARTS
        }
        self.progress.advance(1)
        return Measured(offer, settings, predictions, reached, seconds)

    def _choose(
        self, measured: list[Measured], by_chance: list[Mixture], *, routable: bool
    ) -> Choice:
        """The pick: of all settings, or only of those that do not look at the query."""
        alone = measured[0]
        candidates = {
            name: [each.outcomes[name] for each in measured]
            + ([mixed(alone.outcomes[name], by_chance)] if by_chance else [])
            for name in ("validation", "calibration")
        }
        blind = {*alone.outcomes["validation"].knobs, *(mixture.knob for mixture in by_chance)}
        return choose(
            candidates["validation"],
            candidates["calibration"],
            f"{alone.offer.strategy.name}: {self.log.models[self.reference]}",
            self.request.max_drop,
            self.request.confidence,
            among=None if routable else blind,
        )

    def _policy(self, findings: Findings) -> PoolPolicy:
        """The models alone and one strategy, at every point that both together reach.

        One strategy, so that a server computes one prediction a query: the picked one, or the best
        where a model alone was picked although looking at the query pays.
        """
        chosen = findings.picked
        if (chosen is None or chosen is findings.alone) and findings.verdict.routable:
            chosen = findings.best
        kept = [findings.alone]
        if chosen is not None and chosen is not findings.alone:
            kept.append(chosen)
        watched = kept[-1]
        return PoolPolicy.make(
            encoder=self.encoder,
            models=self.log.models,
            strategies=[(each.offer.strategy, each.settings) for each in kept],
            validation=Outcomes.join([each.outcomes["validation"] for each in kept]),
            reference=self.log.models[self.reference],
            certified=self._certified(findings),
            certificate=findings.pick.certificate.to_dict(),
            recommendation=findings.verdict.words(findings.baseline()),
            expected=expectations(
                self.parts["calibration"].log,
                watched.predictions["calibration"],
                self.log.models[self.reference],
            ),
        )

    def _certified(self, findings: Findings) -> Pick | dict[Knob, float]:
        """The pick, or what it mixes."""
        for mixture in findings.by_chance:
            if mixture.knob == findings.pick.knob:
                return {mixture.low: 1 - mixture.share, mixture.high: mixture.share}
        return findings.pick
