"""The tag languages: what is in them, every way to be out of them, and no exception ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pointsman.pool.reasoning.tags import (
    Breach,
    Episode,
    Plan,
    Search,
    parse_answer,
    parse_episode,
    parse_plan,
)

MODELS = ("small", "large 2:0")
GOOD = (
    "<think>first</think> <search>small: who wrote it?</search>"
    "<information>Ada</information>\n<think>now</think><search>large: when: day?</search>"
    "<information>a < b</information><think>done</think><answer> 1843 </answer>\n"
)


def test_an_episode_is_read_in_order():
    assert parse_episode(GOOD, ("small", "large")) == Episode(
        (Search("small", "who wrote it?"), Search("large", "when: day?")), ("Ada", "a < b"), "1843"
    )


def test_an_answer_without_any_search_is_an_episode():
    assert parse_episode("<think>easy</think><answer>4</answer>", MODELS) == Episode((), (), "4")


def test_names_of_models_may_hold_a_colon():
    text = "<think>t</think><search>large 2:0: why: so?</search><information>r</information>"
    found = parse_episode(text + "<think>t</think><answer>4</answer>", ("large", *MODELS))
    assert found.searches == (Search("large 2:0", "why: so?"),)


def test_text_between_blocks_and_other_tags_are_plain_text():
    text = "Well, <think>a <b>bold</b> thought</think> so <answer><i>4</i></answer> ok?"
    assert parse_episode(text, MODELS) == Episode((), (), "<i>4</i>")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "begins with a thought"),
        ("4", "begins with a thought"),
        ("<answer>4</answer>", "begins with a thought"),
        ("<search>small: q</search><information>r</information>", "begins with a thought"),
        ("<think>a", "<think> is not closed"),
        ("<think>a</think></answer>", "</answer> closes nothing"),
        ("<think>a</answer>", "</answer> closes nothing"),
        ("<think>a<answer>4</answer></think>", "<answer> stands inside <think>"),
        ("<think>a<think>b</think></think>", "<think> stands inside <think>"),
        ("<think>a</think>", "exactly one answer, got 0"),
        ("<think>a</think><answer>4</answer><answer>5</answer>", "exactly one answer, got 2"),
        ("<think>a</think><answer>4</answer><think>b</think>", "nothing follows the answer"),
        ("<think>a</think><answer> </answer>", "the answer is empty"),
        ("<think>a</think><search>small: q</search><answer>4</answer>", "its information"),
        ("<think>a</think><information>r</information><answer>4</answer>", "its information"),
        (
            "<think>a</think><search>small: q</search><search>small: q</search>"
            "<information>r</information><information>r</information><answer>4</answer>",
            "its information",
        ),
        (
            "<think>a</think><search>small: q</search><information>r</information>"
            "<search>small: q</search><information>r</information><answer>4</answer>",
            "a search follows a thought",
        ),
        (
            "<think>a</think><search>tiny: q</search><information>r</information>"
            "<answer>4</answer>",
            "no model 'tiny'",
        ),
        (
            "<think>a</think><search>small q</search><information>r</information>"
            "<answer>4</answer>",
            "model: question",
        ),
        (
            "<think>a</think><search>small: </search><information>r</information>"
            "<answer>4</answer>",
            "model: question",
        ),
    ],
)
def test_a_broken_rule_is_named(text, rule):
    found = parse_episode(text, MODELS)
    assert isinstance(found, Breach)
    assert rule in found.rule


def test_a_plan_is_a_thought_a_question_and_a_base():
    text = "<think>t</think><sub-question>who?</sub-question> <ret>Text</ret>"
    assert parse_plan(text, ("Text", "Table")) == Plan("who?", "Text")
    end = "<think>t</think><sub-question></sub-question><ret>None</ret>"
    assert parse_plan(end, ("Text",)) == Plan("", "None")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("<think>t</think><sub-question>q</sub-question><ret>Web</ret>", "no knowledge base 'Web'"),
        ("<think>t</think><sub-question></sub-question><ret>Text</ret>", "sub-question is empty"),
        ("<sub-question>q</sub-question><ret>Text</ret>", "got sub-question, ret"),
        ("<think>t</think><ret>Text</ret><sub-question>q</sub-question>", "a turn is think"),
        ("<think>t</think><sub-question>q<ret>Text</ret></sub-question>", "stands inside"),
        (
            "<think>t</think><sub-question>q</sub-question><ret>Text</ret><ret>Text</ret>",
            "ret, ret",
        ),
        ("plainly wrong", "got nothing"),
    ],
)
def test_a_broken_plan_is_named(text, rule):
    found = parse_plan(text, ("Text",))
    assert isinstance(found, Breach)
    assert rule in found.rule


def test_an_answering_turn_is_a_thought_and_an_answer():
    assert parse_answer("<think>t</think><answer> Paris </answer>") == "Paris"
    assert parse_answer("<think>t</think><answer></answer>") == Breach("the answer is empty")
    assert isinstance(parse_answer("<answer>Paris</answer>"), Breach)


TAGS = ("think", "search", "information", "answer", "ret")
PIECES = st.sampled_from(
    [*(f"<{tag}>" for tag in TAGS), *(f"</{tag}>" for tag in TAGS), "small: q", "x", " ", "<"]
)


@given(st.lists(PIECES, max_size=14).map("".join))
def test_any_text_is_either_an_episode_or_a_breach(text):
    found = parse_episode(text, MODELS)
    if isinstance(found, Episode):
        assert len(found.searches) == len(found.replies)
        assert text.count("<answer>") == text.count("</answer>") == 1
        assert text.count("<search>") == len(found.searches)
        assert found.answer
    else:
        assert found.rule
