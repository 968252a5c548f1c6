import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman.errors import InputError
from pointsman.supernet.space import Choice, Space

NESTED = Space(
    [
        Choice("depth", (1, 2, 3)),
        Choice("first", (8, 16)),
        Choice("second", (8, 16, 32), when=("depth", (2, 3))),
        Choice("kernel", (3, 5), when=("second", (16, 32))),
        Choice("bits", (4,)),
    ]
)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    choices: list[Choice] = []
    for place in range(draw(st.integers(1, 5))):
        when = None
        if choices and draw(st.booleans()):
            parent = draw(st.sampled_from(choices))
            taken = draw(st.sets(st.sampled_from(parent.options), min_size=0))
            when = (parent.name, tuple(sorted(taken)))
        choices.append(Choice(f"c{place}", tuple(range(draw(st.integers(1, 4)))), when))
    return Space(choices)


@given(spaces())
@settings(max_examples=60, deadline=None)
def test_enumeration_is_complete_canonical_sorted_and_as_long_as_the_count(space: Space) -> None:
    members = list(space.enumerate())
    assert len(members) == len(set(members)) == space.count()
    assert members == sorted(members)
    every = np.ndindex(*(len(choice.options) for choice in space.choices))
    assert set(members) == {space.canonical(genotype) for genotype in every}


@given(spaces(), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_whatever_is_drawn_changed_or_crossed_is_a_member(space: Space, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = space.sample(rng), space.sample(rng)
    for member in (one, other, space.mutate(one, rng), space.cross(one, other, rng)):
        assert member in space
        assert space.encode(space.decode(member)) == member
    for neighbour in space.neighbours(one):
        assert neighbour in space
        assert neighbour != one


def test_a_mutation_changes_something_where_something_can_change() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        member = NESTED.sample(rng)
        assert NESTED.mutate(member, rng, rate=0.0) != member
    single = Space([Choice("only", (1,))])
    assert single.mutate((0,), rng) == (0,)
    assert list(single.neighbours((0,))) == []


def test_a_choice_that_does_not_matter_is_neither_decoded_nor_a_feature() -> None:
    assert NESTED.canonical((0, 1, 2, 1, 0)) == (0, 1, 0, 0, 0)
    assert NESTED.decode((0, 1, 2, 1, 0)) == {"depth": 1, "first": 16, "bits": 4}
    assert NESTED.features([(0, 1, 0, 0, 0)]).sum() == 3
    assert NESTED.features([(2, 1, 1, 1, 0)]).sum() == 5
    assert NESTED.encode({"depth": 1, "first": 16, "bits": 4}) == (0, 1, 0, 0, 0)


def test_a_child_takes_each_choice_from_one_of_its_parents() -> None:
    rng = np.random.default_rng(0)
    space = Space([Choice(str(i), (0, 1)) for i in range(30)])
    child = space.cross((0,) * 30, (1,) * 30, rng)
    assert 5 < sum(child) < 25


def test_the_digest_tells_spaces_apart() -> None:
    same = Space(NESTED.choices)
    assert same.digest == NESTED.digest
    for change in (
        Choice("bits", (8,)),
        Choice("bit", (4,)),
        Choice("bits", (4,), when=("depth", (1,))),
    ):
        assert Space([*NESTED.choices[:-1], change]).digest != NESTED.digest


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Space([]), "at least one choice"),
        (lambda: Space([Choice("a", (1,)), Choice("a", (2,))]), "'a' stands twice"),
        (lambda: Space([Choice("b", (1,), when=("a", (1,)))]), "no earlier choice"),
        (lambda: Choice("a", ()), "distinct options"),
        (lambda: Choice("a", (1, 1)), "distinct options"),
        (lambda: Choice("a", (None,)), "a number, a text"),
        (lambda: NESTED.canonical((0, 0)), "has 5 choices, got 2"),
        (lambda: NESTED.canonical((0, 0, 0, 0, 7)), "'bits' has 1 options, got index 7"),
        (lambda: NESTED.encode({"depth": 2}), "no option for 'first'"),
        (lambda: NESTED.encode({"depth": 9}), "'depth' is one of [1, 2, 3], got 9"),
        (lambda: NESTED.encode({"width": 9}), "'width' too"),
    ],
)
def test_what_is_no_space_choice_or_genotype_is_refused(make, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError) as caught:
        make()
    assert words in str(caught.value)
