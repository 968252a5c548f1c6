"""Figures for Prometheus: counters and histograms of one process, and those of its siblings.

Several processes may serve behind one address, where a scrape reaches any of them. So every sample
carries the label `process`, each process publishes its figures in the store now and then, and
whichever is asked gives its own fresh ones and the last published ones of the others. Sums over
`process` are then right, and a process that restarts is a new series, as Prometheus wants it.

No label has values that a client may choose freely: models are those of the configuration, and a
point counts under its name only where it has one; "cost=0.002" is such as clients make up.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
MOST = 64  # names of points
BREAKER = {"closed": 0, "probing": 1, "open": 2}

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
DECIDING = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05)


class Metrics:
    """The figures of one process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._points: set[str] = set()

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"pointsman_{name}", words, labels, registry=self.registry)

        def gauge(name: str, words: str, *labels: str) -> Gauge:
            return Gauge(f"pointsman_{name}", words, labels, registry=self.registry)

        self._requests = counter(
            "requests", "Requests that ended, by HTTP status.", "model", "point", "status"
        )
        self._errors = counter("errors", "Requests that failed, by code.", "code")
        self._cost = counter("cost_usd", "US$ that requests cost.", "model")
        self._tokens = counter("tokens", "Tokens of answers and prompts.", "model", "kind")
        self._predicted = counter(
            "predicted_quality", "Sum of the qualities predicted of answered requests.", "model"
        )
        self._feedback = counter("feedback", "Answers that were judged.", "model")
        self._quality = counter("feedback_quality", "Sum of the qualities given.", "model")
        self._seconds = Histogram(
            "pointsman_request_seconds",
            "From the request's arrival to its last byte.",
            ["model"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._decide = Histogram(
            "pointsman_decide_seconds",
            "That deciding took.",
            buckets=DECIDING,
            registry=self.registry,
        )
        self._running = gauge("requests_in_flight", "Requests that are being served.")
        self._breaker = gauge(
            "upstream_breaker", "0 closed, 1 probing, 2 open: the model is left alone.", "model"
        )
        self._asked = gauge("upstream_in_flight", "Requests that the model works on.", "model")
        self._queue = gauge("upstream_queue", "Requests that wait for the model.", "model")
        self._alarm = gauge("certificate_alarm", "1 where feedback says that it does not hold.")
        self._shift = gauge("prediction_shift", "1 where what the router expects has moved.")
        ProcessCollector(registry=self.registry)

    def request(
        self,
        *,
        model: str | None,
        point: str | None,
        status: int,
        seconds: float,
        decide_seconds: float = 0.0,
        cost: float = 0.0,
        tokens: Mapping[str, int] | None = None,
        predicted_quality: float | None = None,
        error: str | None = None,
    ) -> None:
        """Count a request that has ended.

        Args:
            model: that answered, or None.
            point: of the policy, or None.
            status: of HTTP; 499 where the client left.
            seconds: from its arrival to its last byte.
            decide_seconds: that deciding took; 0: it was not decided.
            cost: US$.
            tokens: by kind: "prompt", "cached", "answer".
            predicted_quality: of the answer, or None.
            error: code of what went wrong, or None.
        """
        who = "none" if model is None else model
        where = "none" if point is None else self._point(point)
        self._requests.labels(who, where, str(status)).inc()
        self._seconds.labels(who).observe(seconds)
        if decide_seconds > 0:
            self._decide.observe(decide_seconds)
        if cost > 0:
            self._cost.labels(who).inc(cost)
        for kind, count in (tokens or {}).items():
            self._tokens.labels(who, kind).inc(count)
        if predicted_quality is not None:
            self._predicted.labels(who).inc(max(0.0, predicted_quality))
        if error is not None:
            self._errors.labels(error).inc()

    def feedback(self, model: str, quality: float) -> None:
        """Count an answer that was judged."""
        self._feedback.labels(model).inc()
        self._quality.labels(model).inc(quality)

    def state(self, snapshot: Mapping[str, Any]) -> None:
        """Take over what a snapshot (see `serve.status`) says of this moment."""
        self._running.set(snapshot["requests"])
        self._alarm.set(bool(snapshot["alarm"]["alarmed"]))
        self._shift.set(bool(snapshot["shift"]["shifted"]))
        for gauge in (self._breaker, self._asked, self._queue):
            gauge.clear()
        for name, upstream in snapshot["upstreams"].items():
            self._breaker.labels(name).set(BREAKER[upstream["breaker"]])
            self._asked.labels(name).set(upstream["running"])
            self._queue.labels(name).set(upstream["waiting"])

    def _point(self, point: str) -> str:
        """A point's name if it has one, for so many as a policy may have."""
        if point not in self._points:
            if not NAME.fullmatch(point) or len(self._points) >= MOST:
                return OTHER
            self._points.add(point)
        return point

    def text(self) -> str:
        """The figures of this process, without a label for it."""
        return generate_latest(self.registry).decode()


def merge(texts: Sequence[tuple[str, str]]) -> str:
    """One exposition from those of several processes.

    Args:
        texts: name of each process, and its figures as `Metrics.text` gives them.

    Returns:
        Every sample with the label `process`, families kept together as the format demands.
    """
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for process, text in texts:
        label = 'process="{}"'.format(re.sub(r'(["\\])', r"\\\1", process).replace("\n", " "))
        family, first = "", False
        for line in text.splitlines():
            if line.startswith("#"):
                name = line.split(" ", 3)[2]
                if name != family:
                    family, first = name, name not in heads
                if first:
                    heads.setdefault(family, []).append(line)
            elif line and not family.endswith("_created"):  # moments, which nobody plots
                samples.setdefault(family, []).append(_labelled(line, label))
    return "".join(
        "\n".join([*head, *samples[family]]) + "\n"
        for family, head in heads.items()
        if family in samples
    )


def _labelled(line: str, label: str) -> str:
    """A sample with one more label, in front of those it has."""
    match = re.match(r"[A-Za-z_:][A-Za-z0-9_:]*", line)
    assert match is not None
    name, rest = match.group(), line[match.end() :]
    return f"{name}{{{label},{rest[1:]}" if rest.startswith("{") else f"{name}{{{label}}}{rest}"
