"""The four parts of a data set, and the preparation fitted on one of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from pointsman.compare.data import PARTS, Dataset, Part, split
from pointsman.compare.prepare import Preparation
from pointsman.errors import InputError


def tagged(counts: list[int], **given_parts: Part) -> Dataset:
    """Rows whose first feature is their own number, with so many of each class."""
    y = np.repeat(np.arange(len(counts)), counts)
    y = np.random.default_rng(0).permutation(y)
    x = np.column_stack([np.arange(len(y)), y]).astype(np.float32)
    classes = tuple(f"c{i}" for i in range(len(counts)))
    return Dataset("tagged", "features", {"train": Part(x, y), **given_parts}, classes)


def test_the_four_parts_are_disjoint_and_lose_no_row() -> None:
    parts = split(tagged([150, 50, 100]), seed=3)
    tags = np.concatenate([part.x[:, 0] for part in parts.values()])
    assert tuple(parts) == PARTS
    assert_array_equal(np.sort(tags), np.arange(300))


def test_labels_stay_with_their_rows() -> None:
    for part in split(tagged([60, 60]), seed=0).values():
        assert_array_equal(part.x[:, 1], part.y)


def test_every_part_holds_the_classes_in_their_shares() -> None:
    for part in split(tagged([300, 100]), seed=1).values():
        assert abs(np.mean(part.y == 0) - 0.75) <= 1 / len(part)


def test_a_split_depends_on_the_seed_alone() -> None:
    data = tagged([80, 80])
    first, again, other = (split(data, seed)["test"].x for seed in (0, 0, 1))
    assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_given_test_part_is_left_as_it_is() -> None:
    test = Part(np.array([[7.0, 0.0], [5.0, 1.0], [6.0, 0.0]], np.float32), np.array([0, 1, 0]))
    parts = split(tagged([100, 100], test=test), seed=0)
    assert parts["test"] is test
    assert sum(len(part) for part in parts.values()) == 200 + 3


def test_the_group_of_an_input_goes_with_it() -> None:
    data = tagged([100, 100])
    train = data.given["train"]
    grouped = Part(train.x, train.y, group=train.x[:, 0].astype(np.int64) * 2)
    for part in split(Dataset("g", "features", {"train": grouped}, ("a", "b")), 0).values():
        assert part.group is not None
        assert_array_equal(part.group, part.x[:, 0] * 2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(8, 60), min_size=2, max_size=40), st.integers(0, 5))
def test_any_classes_of_eight_rows_or_more_can_be_split(counts: list[int], seed: int) -> None:
    counts[0] += 100
    data = tagged(counts)
    parts = split(data, seed)
    assert sum(map(len, parts.values())) == sum(counts)
    for part in parts.values():
        assert len(part) >= len(counts)


def test_two_hundred_small_classes_can_be_split() -> None:
    parts = split(tagged([8] * 200), seed=0)
    assert min(len(np.unique(part.y)) for part in parts.values()) > 150


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([5, 5], "at least 100 labelled rows .* found 10: bring more"),
        ([200, 0], "at least two classes .* found only 'c0'"),
        ([200, 7], "class 'c1' has 7: merge or leave out"),
        ([200, 200, 0], "class 'c2' has 0"),
    ],
)
def test_too_few_rows_are_refused(counts: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        split(tagged(counts), seed=0)


def test_an_empty_given_part_is_refused() -> None:
    empty = Part(np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    with pytest.raises(InputError, match=r"the part test is given but has no rows"):
        split(tagged([100, 100], test=empty), seed=0)


def test_the_digest_tells_data_apart() -> None:
    data = tagged([60, 60])
    train = data.given["train"]
    changed = train.x.copy()
    changed[3, 0] += 1
    relabelled = train.y.copy()
    relabelled[0] = 1 - relabelled[0]
    digests = {
        Dataset("d", "features", {"train": part}, data.classes).fingerprint()
        for part in (train, Part(changed, train.y), Part(train.x, relabelled))
    }
    assert len(digests) == 3
    assert data.fingerprint() in digests


def test_features_are_standardised_by_the_training_part() -> None:
    x = np.random.default_rng(0).normal(3, 5, size=(1_000, 4)).astype(np.float32)
    prepared = Preparation.fit("features", x).inputs(x).numpy()
    assert_allclose(prepared.mean(axis=0), 0, atol=1e-5)
    assert_allclose(prepared.std(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e30])
def test_features_of_any_size_are_standardised(scale: float) -> None:
    x = (np.random.default_rng(0).normal(size=(500, 2)) * scale).astype(np.float32)
    prepared = Preparation.fit("features", x).inputs(x)
    assert prepared.isfinite().all()
    assert_allclose(prepared.std(dim=0, correction=0).numpy(), 1, rtol=1e-3)


@pytest.mark.parametrize("value", [0.0, 7.1, -1e30, 1e-30])
def test_a_constant_feature_becomes_zero(value: float) -> None:
    x = np.full((100, 2), value, dtype=np.float32)
    prepared = Preparation.fit("features", x).inputs(x)
    assert_allclose(prepared.numpy(), 0, atol=1e-6)


def test_images_become_channels_first_standardised_by_channel() -> None:
    x = np.random.default_rng(0).integers(0, 255, (50, 6, 5, 3)).astype(np.uint8)
    prepared = Preparation.fit("images", x).inputs(x)
    assert prepared.shape == (50, 3, 6, 5)
    assert prepared.is_contiguous(memory_format=torch.channels_last)
    assert_allclose(prepared.mean(dim=(0, 2, 3)).numpy(), 0, atol=1e-5)
    expected = (x[4, 1, 2, 0] - x[..., 0].mean()) / x[..., 0].std()
    assert_allclose(prepared[4, 0, 1, 2], expected, rtol=1e-5)


@pytest.mark.filterwarnings("error")
def test_arrays_that_must_not_be_written_to_are_taken() -> None:
    x, y = np.ones((9, 2), np.float32), np.zeros(9, np.int64)
    for array in (x, y):
        array.setflags(write=False)
    preparation = Preparation.fit("features", x)
    preparation.inputs(x)[0] = 3
    preparation.targets(Part(x, y))[0] = 3
    assert x.all()
    assert not y.any()


def test_text_windows_give_bytes_and_the_bytes_that_follow() -> None:
    x = np.arange(20, dtype=np.uint8).reshape(2, 10)
    preparation = Preparation.fit("text", x)
    assert_array_equal(preparation.inputs(x), x[:, :-1])
    assert_array_equal(preparation.targets(Part(x, np.zeros(2, np.int64))), x[:, 1:])
