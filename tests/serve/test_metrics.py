"""Figures: counted once, labelled by what the operator chose, and merged from several processes."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pointsman.serve.metrics import Metrics, merge


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def value(text: str, name: str, **labels: str) -> float:
    return samples(text)[name, frozenset(labels.items())]


def made() -> Metrics:
    return Metrics()


def test_a_request_is_counted_by_model_point_and_status() -> None:
    metrics = made()
    for _ in range(3):
        metrics.request(
            model="small",
            point="cheap",
            status=200,
            seconds=0.3,
            decide_seconds=0.0004,
            cost=0.002,
            tokens={"prompt": 10, "answer": 5},
            predicted_quality=0.75,
        )
    metrics.request(model=None, point=None, status=429, seconds=0.001, error="insufficient_quota")
    text = metrics.text()
    labels = {"model": "small", "point": "cheap", "status": "200"}
    assert value(text, "pointsman_requests_total", **labels) == 3
    assert value(text, "pointsman_cost_usd_total", model="small") == pytest.approx(0.006)
    assert value(text, "pointsman_tokens_total", model="small", kind="prompt") == 30
    assert value(text, "pointsman_predicted_quality_total", model="small") == 2.25
    assert value(text, "pointsman_request_seconds_count", model="small") == 3
    assert value(text, "pointsman_request_seconds_bucket", model="small", le="0.25") == 0
    assert value(text, "pointsman_request_seconds_bucket", model="small", le="0.5") == 3
    assert value(text, "pointsman_decide_seconds_count") == 3
    labels = {"model": "none", "point": "none", "status": "429"}
    assert value(text, "pointsman_requests_total", **labels) == 1
    assert value(text, "pointsman_errors_total", code="insufficient_quota") == 1


def test_a_client_cannot_make_new_series() -> None:
    metrics = made()
    for i in range(100):
        metrics.request(model="small", point=f"cost={i}", status=200, seconds=0.1)
        metrics.request(model="small", point=f"0.{i}", status=200, seconds=0.1)
    labels = {"model": "small", "point": "other", "status": "200"}
    assert value(metrics.text(), "pointsman_requests_total", **labels) == 200
    for i in range(100):
        metrics.request(model="small", point=f"name{i}", status=200, seconds=0.1)
    assert metrics.text().count("pointsman_requests_total{") == 65


def test_feedback_is_counted_by_model() -> None:
    metrics = made()
    for quality in (0.5, 1.0):
        metrics.feedback("small", quality)
    assert value(metrics.text(), "pointsman_feedback_total", model="small") == 2
    assert value(metrics.text(), "pointsman_feedback_quality_total", model="small") == 1.5


def test_gauges_say_how_it_is_now() -> None:
    metrics = made()
    upstream = {"breaker": "open", "running": 3, "waiting": 2}
    bad = {"alarm": {"alarmed": True}, "shift": {"shifted": True}}
    metrics.state({"requests": 5, **bad, "upstreams": {"small": upstream}})
    text = metrics.text()
    assert value(text, "pointsman_requests_in_flight") == 5
    assert value(text, "pointsman_upstream_breaker", model="small") == 2
    assert value(text, "pointsman_upstream_in_flight", model="small") == 3
    assert value(text, "pointsman_upstream_queue", model="small") == 2
    assert value(text, "pointsman_certificate_alarm") == 1
    assert value(text, "pointsman_prediction_shift") == 1
    good = {"alarm": {"alarmed": False}, "shift": {"shifted": False}}
    metrics.state({"requests": 0, **good, "upstreams": {}})
    text = metrics.text()
    assert value(text, "pointsman_certificate_alarm") == 0
    assert value(text, "pointsman_prediction_shift") == 0
    assert "pointsman_upstream_breaker{" not in text


def test_two_processes_have_registries_of_their_own() -> None:
    one, other = made(), made()
    one.request(model="small", point="cheap", status=200, seconds=0.1)
    assert "pointsman_requests_total{" not in other.text()


def test_processes_are_told_apart_and_families_stay_together() -> None:
    one, other = made(), made()
    for metrics, count in ((one, 2), (other, 5)):
        for _ in range(count):
            metrics.request(model="small", point="cheap", status=200, seconds=0.1)
    other.request(model="large", point="cheap", status=500, seconds=0.1, error="internal")
    text = merge([("host:1", one.text()), ('h"o\\st:2', other.text())])
    labels = {"model": "small", "point": "cheap", "status": "200"}
    assert value(text, "pointsman_requests_total", process="host:1", **labels) == 2
    assert value(text, "pointsman_requests_total", process='h"o\\st:2', **labels) == 5
    assert value(text, "pointsman_errors_total", process='h"o\\st:2', code="internal") == 1
    assert value(text, "pointsman_requests_in_flight", process="host:1") == 0
    heads = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads))
    assert "_created" not in text


def test_a_text_that_is_empty_or_cut_adds_nothing_wrong() -> None:
    one = made()
    one.request(model="small", point="cheap", status=200, seconds=0.1)
    text = one.text()  # once: it tells the processor time used so far
    assert merge([("a", text), ("b", "")]) == merge([("a", text)])
    assert merge([]) == ""
