"""Saved policies: the same answers again, or one refusal; nothing in a file is ever run."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from pointsman.compare import Policy, load, load_policy
from pointsman.compare.data import split
from pointsman.errors import InputError, PolicyError
from pointsman.policy_folder import DESCRIPTION, WEIGHTS, _described


@pytest.fixture
def folder(own_run: Path) -> Path:
    """A policy that a test may damage."""
    return own_run / "run" / "policy"


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the description, and make its digests right again, as a forger would."""
    document = json.loads((folder / DESCRIPTION).read_text())
    change(document["body"])
    weights = (folder / WEIGHTS).read_bytes()
    forged = _described(document["body"], weights, document["format"], document["version"])
    (folder / DESCRIPTION).write_bytes(forged)


def test_a_saved_policy_answers_as_before(folder: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(5_000, 6)).astype(np.float32)
    first = load_policy(folder)
    first.save(tmp_path / "again")
    second = load_policy(tmp_path / "again")
    assert (folder / DESCRIPTION).read_bytes() == (tmp_path / "again" / DESCRIPTION).read_bytes()
    assert (folder / WEIGHTS).read_bytes() == (tmp_path / "again" / WEIGHTS).read_bytes()
    one, other = first.predict(x), second.predict(x)
    assert_array_equal(one.classes, other.classes)
    assert_array_equal(one.confidence, other.confidence)
    assert_array_equal(one.stage, other.stage)
    assert_array_equal(one.cost.amount, other.cost.amount)


def test_predictions_are_probabilities_stages_and_costs(folder: Path) -> None:
    policy = load_policy(folder)
    x = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    found = policy.predict(x)
    assert set(np.unique(found.classes)) <= {0, 1, 2}
    assert ((found.confidence > 1 / 3) & (found.confidence <= 1)).all()
    assert found.stage.max() < len(policy.stage_names)
    paid = np.cumsum(np.asarray(policy.costs.per_stage(policy.thresholds).amount))
    assert_allclose(found.cost.amount, paid[found.stage])
    assert policy.predict(x[:0]).classes.shape == (0,)


def test_rows_are_answered_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(1).normal(size=(120, 6)).astype(np.float32)
    policy = load_policy(folder)
    whole = policy.predict(x)
    monkeypatch.setattr("pointsman.compare.policy.ROWS_AT_ONCE", 7)
    pieces = policy.predict(x)
    assert_array_equal(whole.classes, pieces.classes)
    assert_array_equal(whole.stage, pieces.stage)
    assert_allclose(whole.confidence, pieces.confidence, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 5), (4, 7), (4,), (4, 6, 1)])
def test_inputs_of_another_shape_are_refused(shape: tuple[int, ...], folder: Path) -> None:
    with pytest.raises(InputError, match=r"takes features of shape \(n, 6\), got"):
        load_policy(folder).predict(np.zeros(shape, np.float32))


def places(content: bytes, count: int) -> list[int]:
    return [len(content) * i // count for i in range(count)] + [len(content) - 1]


def test_no_changed_byte_of_the_description_passes(folder: Path) -> None:
    path = folder / DESCRIPTION
    content = path.read_bytes()
    at = places(content, 40)
    for mark in (b'"version": ', b'"format": "', b'"body": "', b'"weights": "', b'"thresholds": ['):
        at += [content.index(mark), content.index(mark) + len(mark)]
    at += [content.index(b"\n"), content.index(b"\n") + 1, content.index(b": ") + 1]  # spaces
    for place in at:
        for changed in {b"0", b" ", b"\n", b"2", b"\xff"} - {content[place : place + 1]}:
            path.write_bytes(content[:place] + changed + content[place + 1 :])
            with pytest.raises(PolicyError) as refusal:
                load_policy(folder)
            assert str(folder) in str(refusal.value)
            assert "\n" not in str(refusal.value)
    path.write_bytes(content)
    load_policy(folder)


def test_no_changed_byte_of_the_weights_passes(folder: Path) -> None:
    path = folder / WEIGHTS
    content = path.read_bytes()
    for place in [*range(12), *places(content, 40)]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(PolicyError, match=f"{WEIGHTS}: the file is damaged or was changed"):
            load_policy(folder)


@pytest.mark.parametrize("name", [DESCRIPTION, WEIGHTS])
@pytest.mark.parametrize("change", ["cut", "longer", "empty", "gone"])
def test_files_that_are_not_whole_are_refused(change: str, name: str, folder: Path) -> None:
    path = folder / name
    content = path.read_bytes()
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-5], "longer": content + b" ", "empty": b""}[change])
    with pytest.raises(PolicyError, match=name):
        load_policy(folder)


@pytest.mark.parametrize("version", [3, 99])
def test_a_policy_of_a_newer_version_asks_for_a_newer_pointsman(version: int, folder: Path) -> None:
    text = (folder / DESCRIPTION).read_text()
    (folder / DESCRIPTION).write_text(text.replace('"version": 2', f'"version": {version}', 1))
    with pytest.raises(PolicyError, match=f"version {version}, .*install a newer pointsman"):
        load_policy(folder)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "7",
        "null",
        '{"format": "pointsman-policy"}',
        '{"format": "other", "version": 1}',
        '{"format": "pointsman-policy", "version": "1"}',
        '{"format": "pointsman-policy", "version": true}',
        '{"format": "pointsman-policy", "version": 1, "digests": 3, "body": {}}',
        '{"format": "pointsman-policy", "version": 1, "digests": ["body"], "body": null}',
        "[" * 100_000,
        '{"format": "pointsman-policy", "version": ' + "9" * 5_000 + "}",
    ],
)
def test_a_description_of_something_else_is_refused(text: str, folder: Path) -> None:
    (folder / DESCRIPTION).write_text(text)
    with pytest.raises(PolicyError, match=r"policy"):
        load_policy(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"policy.json: the policy cannot be read"):
        load_policy(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(PolicyError, match=r"cannot be read"):
        load_policy(tmp_path / "file")


def drop(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda body: body.pop(key)


def put(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda body: body.__setitem__(key, value)


def network(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda body: body["networks"][0].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        *(drop(key) for key in ("made_for", "networks", "costs", "thresholds", "stages")),
        put("networks", []),
        put("networks", "x"),
        put("thresholds", [0.5] * 7),
        put("thresholds", ["text"]),
        put("stages", ["one"] * 9),
        put("costs", {"unit": "MFLOPs", "advance": [-1.0], "answer": [1.0]}),
        network(kind="unheard of"),
        network(hidden=[9]),
        network(hidden=[10**9, 10**9]),  # would take all the memory there is
        network(id="another"),
    ],
)
def test_a_forged_description_is_refused(
    change: Callable[[dict[str, Any]], object], folder: Path
) -> None:
    rewritten(folder, change)
    with pytest.raises(PolicyError, match=r"do not belong together .*run compare again"):
        load_policy(folder)


def test_loading_runs_no_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        pytest.fail("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(np, "load", refuse)
    policy = load_policy(folder)
    policy.predict(np.zeros((3, 6), np.float32))
    monkeypatch.undo()

    class Bomb:
        def __reduce__(self) -> Any:
            return pytest.fail, ("exploded",)

    (folder / WEIGHTS).write_bytes(pickle.dumps(Bomb()))
    rewritten(folder, lambda body: None)
    with pytest.raises(PolicyError, match=r"do not belong together"):
        load_policy(folder)


def test_saving_replaces_a_policy_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(folder)
    (folder / "stray").touch()
    policy.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == [DESCRIPTION, WEIGHTS]

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pointsman.policy_folder.write_atomically", full)
    with pytest.raises(OSError, match=r"No space"):
        policy.save(folder)
    assert not folder.with_name("policy.part").exists()
    load_policy(folder)


def test_a_policy_says_what_it_is(finished_run: Path) -> None:
    policy: Policy = load_policy(finished_run / "run" / "policy")
    results = json.loads((finished_run / "run" / "results.json").read_text())
    assert (policy.way, policy.knob) == (results["pick"]["way"], results["pick"]["knob"])
    assert policy.data["classes"] == results["data"]["classes"]
    assert policy.data["columns"] == [f"f{i}" for i in range(6)]
    assert policy.data["target"] == "label"
    certificate = {k: v for k, v in results["certificate"].items() if k != "words"}
    assert policy.certificate == certificate
    test = split(load(str(finished_run / "data.csv")), seed=0)["test"]
    found = policy.predict(test.x)
    assert np.mean(found.classes == test.y) == pytest.approx(results["pick"]["quality"])
