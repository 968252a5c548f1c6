"""The tags in which a routing language model writes: parsed strictly, because rewards hang on it.

Two small languages are known. Zhang et al., "Router-R1" (2025, arXiv 2506.09033), a whole episode:

    <think>…</think> <search>Model: sub-question</search> <information>reply</information>
    … <think>…</think> <answer>…</answer>

and Peng et al., "Learning to Route Queries Across Knowledge Bases" (R1-Router, 2025, arXiv
2505.22095), one turn at a time:

    <think>…</think> <sub-question>…</sub-question> <ret>knowledge base</ret>
    <think>…</think> <answer>…</answer>

A text that breaks a rule gives a `Breach` and no exception: a policy that is learning breaks rules
all the time, and is told so by its reward.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

EPISODE_TAGS = ("think", "search", "information", "answer")
PLAN_TAGS = ("think", "sub-question", "ret")
ANSWER_TAGS = ("think", "answer")
NOWHERE = "None"  # the knowledge base that ends an R1-Router episode


@dataclass(frozen=True)
class Breach:
    """A text that is not in the language: `rule` says which rule it breaks, and where."""

    rule: str


class Block(NamedTuple):
    """One pair of tags and the text between, without the spaces around."""

    tag: str
    text: str


class Search(NamedTuple):
    """A model that was asked, and what it was asked."""

    model: str
    question: str


@dataclass(frozen=True)
class Episode:
    """A whole episode of Router-R1 in order.

    Attributes:
        searches: what was asked of whom.
        replies: one for each search.
        answer: the final one.
    """

    searches: tuple[Search, ...]
    replies: tuple[str, ...]
    answer: str


class Plan(NamedTuple):
    """A planning turn of R1-Router: the next sub-question and where to look; "None": nowhere."""

    question: str
    base: str


class _BrokenError(Exception):
    """Carries the rule from where it is broken to where a Breach is made."""


def parse_episode(text: str, models: Collection[str]) -> Episode | Breach:
    """Read an episode of Router-R1.

    Rules: tags are closed and not nested; the first block is a thought and every search follows
    one; each search is "model: question" with a known model, and is answered by the information
    right after it; there is exactly one answer, it is not empty, and nothing follows it. Text
    between blocks is passed over.

    Args:
        text: all that was written, by the policy and by the environment.
        models: names that may be asked.
    """
    try:
        return _episode(_blocks(text, EPISODE_TAGS), models)
    except _BrokenError as broken:
        return Breach(str(broken))


def parse_plan(text: str, bases: Collection[str]) -> Plan | Breach:
    """Read a planning turn of R1-Router: one thought, one sub-question, one known base, in order.

    Args:
        text: what the policy wrote.
        bases: names of knowledge bases; "None" is always allowed, and needs no sub-question.
    """
    try:
        _, question, base = _exactly(_blocks(text, PLAN_TAGS), PLAN_TAGS)
        if base != NOWHERE and base not in bases:
            raise _BrokenError(f"there is no knowledge base {base!r}")
        if base != NOWHERE and not question:
            raise _BrokenError("the sub-question is empty")
    except _BrokenError as broken:
        return Breach(str(broken))
    return Plan(question, base)


def parse_answer(text: str) -> str | Breach:
    """Read an answering turn of R1-Router: one thought and one answer that is not empty."""
    try:
        _, answer = _exactly(_blocks(text, ANSWER_TAGS), ANSWER_TAGS)
        if not answer:
            raise _BrokenError("the answer is empty")
    except _BrokenError as broken:
        return Breach(str(broken))
    return answer


def _episode(blocks: Sequence[Block], models: Collection[str]) -> Episode:
    if not blocks or blocks[0].tag != "think":
        raise _BrokenError("an episode begins with a thought")
    answers = [at for at, block in enumerate(blocks) if block.tag == "answer"]
    if len(answers) != 1:
        raise _BrokenError(f"there is exactly one answer, got {len(answers)}")
    if answers[0] != len(blocks) - 1:
        raise _BrokenError("nothing follows the answer")
    if not blocks[-1].text:
        raise _BrokenError("the answer is empty")
    searches, replies = [], []
    for before, block in pairwise(blocks):
        if (before.tag == "search") != (block.tag == "information"):
            raise _BrokenError("each search is followed by its information, and nothing else is")
        if block.tag == "search":
            if before.tag != "think":
                raise _BrokenError("a search follows a thought")
            searches.append(_search(block.text, models))
        elif block.tag == "information":
            replies.append(block.text)
    return Episode(tuple(searches), tuple(replies), blocks[-1].text)


def _search(text: str, models: Collection[str]) -> Search:
    # Names such as "llama:8b" have a colon of their own: the longest known name counts.
    for model in sorted(models, key=len, reverse=True):
        rest = text.removeprefix(model).lstrip()
        if text.startswith(model) and rest.startswith(":") and rest[1:].strip():
            return Search(model, rest[1:].strip())
    name, colon, question = (part.strip() for part in text.partition(":"))
    if not colon or not question or name in models:
        raise _BrokenError(f'a search is "model: question", got {text!r}')
    raise _BrokenError(f"there is no model {name!r}")


def _exactly(blocks: Sequence[Block], tags: Sequence[str]) -> list[str]:
    """The texts of blocks that must be these, in order."""
    found = [block.tag for block in blocks]
    if found != list(tags):
        raise _BrokenError(f"a turn is {', '.join(tags)}, got {', '.join(found) or 'nothing'}")
    return [block.text for block in blocks]


def _blocks(text: str, tags: Sequence[str]) -> list[Block]:
    """Blocks in order; tags of other names are plain text."""
    pattern = re.compile(rf"<(/?)({'|'.join(map(re.escape, tags))})>")
    blocks: list[Block] = []
    opened: tuple[str, int] | None = None
    for match in pattern.finditer(text):
        closes, tag = bool(match[1]), match[2]
        if not closes:
            if opened is not None:
                raise _BrokenError(f"<{tag}> stands inside <{opened[0]}>")
            opened = tag, match.end()
        elif opened is None or opened[0] != tag:
            raise _BrokenError(f"</{tag}> closes nothing")
        else:
            blocks.append(Block(tag, text[opened[1] : match.start()].strip()))
            opened = None
    if opened is not None:
        raise _BrokenError(f"<{opened[0]}> is not closed")
    return blocks
