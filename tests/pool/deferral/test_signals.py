"""What answers give away about themselves."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.pool.deferral import (
    agreement,
    confidence,
    margin,
    token_log_probabilities,
    token_margins,
    verdict,
)

CHOICE = {
    "logprobs": {
        "content": [
            {
                "logprob": math.log(0.9),
                "top_logprobs": [{"logprob": math.log(0.05)}, {"logprob": math.log(0.9)}],
            },
            {
                "logprob": math.log(0.4),
                "top_logprobs": [{"logprob": math.log(0.5)}, {"logprob": math.log(0.4)}],
            },
            {"logprob": math.log(0.8), "top_logprobs": [{"logprob": math.log(0.8)}]},
        ]
    }
}


def test_log_probabilities_and_margins_are_read_off_a_choice() -> None:
    assert token_log_probabilities(CHOICE) == pytest.approx([math.log(p) for p in (0.9, 0.4, 0.8)])
    assert token_margins(CHOICE) == pytest.approx([0.85, 0.1])
    assert margin(token_margins(CHOICE)) == pytest.approx(0.475)


@pytest.mark.parametrize("choice", [{}, {"logprobs": None}, {"logprobs": {"content": None}}])
def test_a_choice_without_log_probabilities_tells_nothing(choice: dict[str, object]) -> None:
    assert confidence(token_log_probabilities(choice)) is None
    assert margin(token_margins(choice)) is None


def test_confidence_does_not_fall_with_the_length() -> None:
    assert confidence([math.log(0.8)]) == pytest.approx(0.8)
    assert confidence([math.log(0.8)] * 500) == pytest.approx(0.8)


def test_a_quantile_looks_at_the_least_sure_tokens() -> None:
    tokens = [math.log(p) for p in (0.9, 0.4, 0.8)]
    assert confidence(tokens, quantile=0) == pytest.approx(0.4)
    assert confidence(tokens, quantile=0.5) == pytest.approx(0.8)
    assert confidence(tokens, quantile=1) == pytest.approx(0.9)


@given(
    st.lists(st.floats(max_value=0) | st.just(math.nan), max_size=20), st.none() | st.floats(0, 1)
)
def test_confidence_is_a_probability_or_not_known(
    values: list[float], quantile: float | None
) -> None:
    found = confidence(values, quantile=quantile)
    assert found is None or 0 <= found <= 1


def test_agreement_is_the_share_of_the_commonest_answer() -> None:
    assert agreement(["42.", " 42 ", "7", "(42)"]) == (0.75, 0)
    assert agreement(["7", "42", "42"]) == (pytest.approx(2 / 3), 1)
    assert agreement(["a", "b"]) == (0.5, 0)
    assert agreement([]) == (None, 0)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("0.8", 0.8),
        ("Step 2 looks odd, but fine. Score: 8/10", 0.8),
        ("I would say 3 out of 4.", 0.75),
        ("Confidence: 65%", 0.65),
        ("First I thought 0.2, in the end 0.9", 0.9),
        ("Yes.", 1.0),
        ("It is not right, so no", 0.0),
        ("1", 1.0),
        ("17", None),
        ("no idea" + "?", 0.0),
        ("12/10", None),
        ("", None),
        ("maybe", None),
    ],
)
def test_a_verdict_is_read_from_what_a_verifier_wrote(text: str, score: float | None) -> None:
    found = verdict(text)
    assert found == (None if score is None else pytest.approx(score))


@given(st.text(max_size=200))
def test_any_text_gives_a_share_or_nothing(text: str) -> None:
    found = verdict(text)
    assert found is None or 0 <= found <= 1
