"""The saved policy of a pool: points, decisions, and a file in which nothing can change unseen."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from pointsman.errors import InputError, PolicyError
from pointsman.frontier import Outcomes, certify
from pointsman.pool import policy_file
from pointsman.pool.features.features import Features
from pointsman.pool.log import Log
from pointsman.pool.policy import PoolPolicy, expectations
from pointsman.pool.routers.router import Prediction
from pointsman.pool.strategies import BeforeCall, Chain, RoutedCascade, Single
from pointsman.pool.strategies.mixing import mixture
from pointsman.pool.strategies.strategy import Setting, outcomes

MODELS = ("small", "middle", "large")


class Words:
    """Three features of a query: its length, its share of a, whether it is a question."""

    def fit(self, log: Log) -> Self:
        return self

    def transform(self, log: Log) -> Features:
        return self.encode(list(log.queries))

    def encode(self, queries: Any, tasks: Any = None) -> Features:
        rows = [[len(q) / 50, q.count("a") / (len(q) + 1), q.endswith("?")] for q in queries]
        length = np.array([len(q) for q in queries], dtype=np.float32)
        return Features(np.array(rows, dtype=np.float32), None, length)

    def to_state(self) -> Any:
        return {}, {}

    @classmethod
    def from_state(cls, plain: Any, arrays: Any) -> Self:
        return cls()


class Lines:
    """A straight line for each model; enough of a router to be kept and brought back."""

    name, title = "lines", "Straight lines"

    def fit(self, features: Features, quality: Any, cost: Any) -> Self:
        x = np.concatenate([features.dense, np.ones((len(features), 1))], axis=1)
        self.quality_ = np.linalg.lstsq(x, quality, rcond=None)[0]
        self.cost_ = cost.mean(axis=0)
        return self

    def predict(self, features: Features) -> Prediction:
        found = np.tile(self.quality_[-1], (len(features), 1))
        for place in range(features.dense.shape[1]):
            found = found + features.dense[:, [place]] * self.quality_[place]
        return Prediction(found, np.tile(self.cost_, (len(features), 1)))

    def to_state(self) -> Any:
        return {}, {"quality": self.quality_, "cost": self.cost_}

    @classmethod
    def from_state(cls, plain: Any, arrays: Any) -> Self:
        router = cls()
        router.quality_, router.cost_ = arrays["quality"], arrays["cost"]
        return router


def made_up(n: int, seed: int) -> Log:
    rng = np.random.default_rng(seed)
    ask = rng.random(n) < 0.5
    lengths = rng.integers(5, 90, size=n)
    queries = [
        "".join(rng.choice(list("abcd "), size=length)) + ("?" if a else ".")
        for length, a in zip(lengths, ask, strict=True)
    ]
    chance = np.stack([0.8 - 0.5 * ask, 0.75 - 0.2 * ask, np.full(n, 0.85)], axis=1)
    quality = (rng.random((n, 3)) < chance).astype(float)
    return Log(
        queries=np.array(queries, dtype=object),
        models=MODELS,
        quality=quality,
        cost=np.tile([1.0, 3.0, 10.0], (n, 1)) * rng.uniform(0.8, 1.2, size=(n, 1)),
        signals={"sure": quality + rng.normal(size=(n, 3)) * 0.6},
        signal_cost={"sure": np.full((n, 3), 0.1)},
    )


Fitted = tuple[list[tuple[Any, Any]], Outcomes]


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    train, held = made_up(600, 1), made_up(400, 2)
    seen, other = Words().transform(train), Words().transform(held)
    parts, found = [], []
    for strategy in (
        Single(),
        BeforeCall(Lines()),
        Chain("sure"),
        RoutedCascade(Lines(), "sure"),
    ):
        strategy.fit(train, seen)
        prediction = strategy.predict(other)
        tried = strategy.settings(held, prediction)
        parts.append((strategy, tried))
        found.append(outcomes(held, strategy, prediction, tried, 2))
    return parts, Outcomes.join(found)


@pytest.fixture
def make(fitted: Fitted, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PoolPolicy]:
    """Makes a policy; the made-up parts count as exported while the test runs."""
    from pointsman.pool import features, routers

    for home, kind in ((features, Words), (routers, Lines)):
        monkeypatch.setattr(home, kind.__name__, kind, raising=False)
        monkeypatch.setattr(home, "__all__", [*home.__all__, kind.__name__])

    def made(**changed: Any) -> PoolPolicy:
        parts, validation = fitted
        given = {
            "encoder": Words(),
            "models": MODELS,
            "strategies": parts,
            "validation": validation,
            "reference": "large",
        }
        return PoolPolicy.make(**{**given, **changed})

    return made


Make = Callable[..., PoolPolicy]
QUERIES = ("aaa bbb?", "what is this", "a" * 300, "", "ünïcödé?")


def test_two_independent_loads_decide_alike_to_the_last_bit(make: Make, tmp_path: Path) -> None:
    policy = make()
    file = policy.save(tmp_path / "out")
    assert file == tmp_path / "out" / "policy.safetensors"
    loads = [PoolPolicy.load(file), PoolPolicy.load(tmp_path / "out")]
    assert loads[0].describe() == loads[1].describe() == policy.describe()
    for point in [*policy.named, 0.3, "0.77", "cost=4.2", "quality=0.7"]:
        for place, query in enumerate(QUERIES):
            first = policy.decide(query, point=point, chance=place / 5)
            for load in loads:
                again = load.decide(query, point=point, chance=place / 5)
                assert again.step == first.step
                assert again.setting == first.setting
                assert again.probabilities == first.probabilities
                assert (again.prediction.quality == first.prediction.quality).all()
                assert (again.prediction.cost == first.prediction.cost).all()
            for signal in (None, 0.1, 0.9):
                if not first.step.ask:
                    break
                told = [first.after(signal)]
                for load in loads:
                    other = load.decide(query, point=point, chance=place / 5)
                    for _, earlier in first.asked:
                        step = other.after(earlier)
                    told.append(step)
                assert told[0] == told[1] == told[2]


def test_saving_twice_gives_the_same_parts(make: Make, tmp_path: Path) -> None:
    first = make().save(tmp_path / "a.safetensors")
    second = PoolPolicy.load(first).save(tmp_path / "b.safetensors")
    one, other = (policy_file.read(path) for path in (first, second))
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert all((one[1][name] == other[1][name]).all() for name in one[1])


def test_corners_rise_and_named_points_lie_on_them(make: Make) -> None:
    policy = make()
    assert policy.named["cheap"].cost == policy.points[0].cost
    assert policy.named["best"].quality == policy.points[-1].quality
    assert policy.named["certified"].words() == "single: large"
    assert policy.named["reference"].words() == "single: large"
    assert policy.point("0").cost == pytest.approx(policy.named["cheap"].cost)
    assert policy.point(1).quality == pytest.approx(policy.named["best"].quality)


def test_points_between_corners_are_mixed_to_the_cost_and_quality_asked_for(make: Make) -> None:
    policy = make()
    low, high = policy.points[0], policy.points[-1]
    for share in np.linspace(0, 1, 23):
        cost = low.cost + share * (high.cost - low.cost)
        for point in (policy.point(float(share)), policy.at_cost(cost)):
            assert point.cost == pytest.approx(cost)
            assert sum(part.share for part in point.mix) == pytest.approx(1)
            assert policy.point(f"quality={point.quality!r}").cost == pytest.approx(cost)
    assert policy.at_cost(0).cost == low.cost
    assert policy.at_cost(1e9).cost == high.cost
    assert policy.point("quality=0").cost == low.cost


@pytest.mark.parametrize(
    "name",
    ["dear", "1.2", "-0.1", "nan", "inf", "cost=", "cost=nan", "cost=0.001", "quality=0.9999",
     "price=3", "=", "", "quality=x", "cost=-1", "x" * 5000],
)  # fmt: skip
def test_a_point_that_is_not_there_is_refused_in_one_line(make: Make, name: str) -> None:
    with pytest.raises(InputError) as caught:
        make().point(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_chance_picks_settings_by_their_shares_and_the_propensity_says_so(make: Make) -> None:
    policy = make()
    point = policy.point(0.37)
    counts: dict[str, int] = dict.fromkeys(MODELS, 0)
    for chance in (np.arange(2000) + 0.5) / 2000:
        decision = policy.decide("is this a question?", point=point, chance=float(chance))
        counts[decision.model] += 1
        assert decision.probability == decision.probabilities[decision.model]
    for model, probability in decision.probabilities.items():
        assert counts[model] / 2000 == pytest.approx(probability, abs=1e-3)
    assert sum(decision.probabilities.values()) == pytest.approx(1)


@pytest.mark.parametrize("chance", [-0.1, 1.0, float("nan")])
def test_a_chance_out_of_range_is_refused(make: Make, chance: float) -> None:
    with pytest.raises(InputError, match=r"chance must lie in \[0, 1\)"):
        make().decide("x", chance=chance)


def test_a_decision_is_followed_to_its_answer(make: Make, fitted: Fitted) -> None:
    policy = make()
    name = "cascade by sure"
    setting = next(s for s in fitted[0][2][1] if len(s.parameters["models"]) > 1)
    point = replace(
        policy.named["cheap"],
        mix=(replace(policy.named["cheap"].mix[0], strategy=name, setting=setting),),
    )
    policy = replace(policy, strategies={**policy.strategies, name: fitted[0][2][0]})
    decision = policy.decide("some query", point=point)
    assert decision.signal == "sure"
    assert decision.step.ask
    assert not decision.step.final
    first = decision.model
    kept = policy.decide("some query", point=point)
    assert kept.after(1e9).ask is False
    assert kept.model == first
    with pytest.raises(InputError, match="the decision is made"):
        kept.after(0.5)
    step = decision.after(None)
    while not step.final:
        step = decision.after(-1e9)
    last = decision.after(None)
    assert (last.ask, decision.model) == (False, MODELS[step.model])
    assert decision.asked[0] == (MODELS.index(first), None)


def test_another_model_may_stand_in(make: Make) -> None:
    decision = make().decide("hm", point="reference")
    assert decision.model == "large"
    assert set(decision.alternatives()) == {"small", "middle"}
    step = decision.replaced("middle")
    assert (decision.model, step.ask) == ("middle", False)
    with pytest.raises(InputError, match="there is no model 'huge'"):
        make().decide("hm").replaced("huge")


def test_a_certified_pick_becomes_the_certified_point(make: Make, fitted: Fitted) -> None:
    knob = "told before"
    validation = fitted[1]
    easy = mixture(validation, {"single: large": 0.9, "single: middle": 0.1}, knob)
    pick = certify(easy, 0.2, 0.9)
    assert pick.certificate.certified
    policy = make(
        certified={"single: large": 0.9, "single: middle": 0.1},
        certificate=pick.certificate.to_dict(),
        recommendation="Serve the mixture.",
        expected={"queries": 5},
    )
    assert policy.named["certified"].cost == pytest.approx(easy.cost.mean())
    assert policy.named["certified"].quality == pytest.approx(easy.quality.mean())
    assert policy.words().startswith("Routes among 3 models (small, middle, large)")
    assert "loses at most 20.00% of quality against large, at 90% confidence" in policy.words()
    assert policy.words().endswith("Serve the mixture.")
    assert json.loads(json.dumps(policy.describe()))["expected"] == {"queries": 5}
    alone = certify(validation.choose(["single: large", "single: middle"]), 0.3, 0.9)
    assert make(certified=alone).certificate["certified"] is True
    failed = certify(validation.choose(["single: small"]), 0.0, 0.99)
    assert make(certified=failed).named["certified"].words() == "single: large"
    assert "Nothing is certified" in make(certified=failed).words()


def test_only_strategies_that_a_point_uses_are_kept(make: Make, fitted: Fitted) -> None:
    policy = make(validation=fitted[1].choose([f"single: {model}" for model in MODELS]))
    assert list(policy.strategies) == ["single"]


def test_expectations_are_measured_model_by_model() -> None:
    log = made_up(300, 3)
    prediction = Prediction(np.full((300, 3), 0.5), np.ones((300, 3)))
    found = expectations(log, prediction, "large")
    assert found["queries"] == 300
    assert found["models"]["large"]["drop"] == 0
    assert found["models"]["small"]["drop"] == pytest.approx(
        log.quality[:, 2].mean() - log.quality[:, 0].mean()
    )


def test_parts_that_do_not_fit_are_refused(make: Make, fitted: Fitted) -> None:
    parts, validation = fitted
    single = parts[0]
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"reference": "huge"}, "needs the reference 'huge'"),
        ({"strategies": parts[1:]}, "needs the reference 'large'"),
        ({"strategies": [single, single]}, "different names"),
        ({"strategies": [single]}, "no strategy of the policy has the setting"),
        ({"models": MODELS[:1]}, "none of the models"),
        ({"models": ("large", "a", "a")}, "models must have different names"),
        ({"models": ("large", "b")}, "cannot take the setting|asks model"),
        ({"certified": {"single: large": 0.5}}, "sum to 1"),
        ({"certified": {"nobody": 1.0}}, "has the setting 'nobody'"),
    ]
    for changed, words in refusals:
        with pytest.raises((InputError, PolicyError), match=words) as caught:
            make(**changed)
        assert "\n" not in str(caught.value)
    assert validation is fitted[1]


def test_an_encoder_that_cannot_be_kept_is_refused_on_saving(make: Make, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="object has no to_state"):
        make(encoder=object()).save(tmp_path)
    with pytest.raises(PolicyError, match="plain JSON"):
        make(expected={"mean": float("nan")}).save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def saved() -> bytes:
    """A small policy file: what is read from it does not matter here."""
    arrays = {"a": np.arange(40.0), "b": np.arange(7, dtype=np.int8)}
    return policy_file.to_bytes({"models": ["x"], "text": 'quoted "sha256":"000"'}, arrays)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_flip_of_a_bit_goes_unseen(saved: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(saved) - 1))
    changed = bytearray(saved)
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(PolicyError) as caught:
        policy_file.from_bytes(bytes(changed))
    assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_cut_and_no_addition_goes_unseen(saved: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(saved) - 1))
    more = data.draw(st.binary(min_size=1, max_size=20))
    for changed in (saved[:at], saved + more, saved[:at] + more + saved[at:], more):
        if changed != saved:
            with pytest.raises(PolicyError):
                policy_file.from_bytes(changed)


def test_a_changed_policy_file_is_refused_in_one_line(make: Make, tmp_path: Path) -> None:
    file = make().save(tmp_path)
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), size=40):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(changed)
        with pytest.raises(PolicyError) as caught:
            PoolPolicy.load(file)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)
    for size in (0, 5, 8, 200, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(PolicyError):
            PoolPolicy.load(file)


def test_the_digest_of_an_unchanged_file_is_accepted(saved: bytes) -> None:
    body, arrays = policy_file.from_bytes(saved)
    assert body["models"] == ["x"]
    assert arrays["a"].tolist() == list(range(40))
    assert arrays["b"].dtype == np.int8


def test_a_newer_version_says_to_install_a_newer_pointsman(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_file, "VERSION", 7)
    policy_file.write(tmp_path, {}, {})
    monkeypatch.undo()
    with pytest.raises(PolicyError, match=r"version 7, .* up to 1: install a newer pointsman"):
        PoolPolicy.load(tmp_path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read"):
        PoolPolicy.load(tmp_path / "missing.safetensors")
    with pytest.raises(PolicyError, match="cannot be read"):
        PoolPolicy.load(tmp_path)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"w": np.ones(3)}, foreign)
    with pytest.raises(PolicyError, match="not a whole policy file"):
        PoolPolicy.load(foreign)
    save_file(
        {"w": np.ones(3)}, foreign, {"format": "pt", "version": "1", "sha256": "", "policy": ""}
    )
    with pytest.raises(PolicyError, match="not a policy of a pool, its format is 'pt'"):
        PoolPolicy.load(foreign)
    foreign.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(PolicyError):
        PoolPolicy.load(foreign)


def test_a_whole_file_of_parts_that_this_version_lacks_is_refused(make: Make) -> None:
    body, arrays = make()._state()
    wrong: list[dict[str, Any]] = [
        {**body, "encoder": {"class": "Popen", "state": {}}},
        {**body, "encoder": {"class": "Encoder", "state": {}}},
        {**body, "points": []},
        {**body, "models": ["large"]},
        {name: part for name, part in body.items() if name != "named"},
    ]
    for changed in wrong:
        with pytest.raises(PolicyError):
            PoolPolicy._restored_from(changed, arrays, "here")


def test_serving_a_policy_needs_neither_torch_nor_pandas(tmp_path: Path) -> None:
    from pointsman.pool.features import TextEncoder
    from pointsman.pool.routers import Constant

    log = made_up(120, 1)
    encoder = TextEncoder().fit(log)
    seen, parts, found = encoder.transform(log), [], []
    for strategy in (Single(), BeforeCall(Constant()), RoutedCascade(Constant(), "sure")):
        strategy.fit(log, seen)
        prediction = strategy.predict(seen)
        tried = strategy.settings(log, prediction)
        parts.append((strategy, tried))
        found.append(outcomes(log, strategy, prediction, tried, 2))
    policy = PoolPolicy.make(
        encoder=encoder,
        models=MODELS,
        strategies=parts,
        validation=Outcomes.join(found),
        reference="large",
    )
    first = policy.decide("what is it?", point=0.5, chance=0.4)
    file = policy.save(tmp_path)
    code = (
        "import sys; from pointsman.pool.policy import PoolPolicy; "
        f"d = PoolPolicy.load({str(file)!r}).decide('what is it?', point=0.5, chance=0.4); "
        "print(d.step.quality.hex(), d.prediction.cost.tobytes().hex(), "
        "[m for m in ('torch', 'pandas', 'matplotlib', 'scipy.stats') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    cells = first.prediction.cost.tobytes().hex()
    assert ran.stdout.split(" ", 2) == [first.step.quality.hex(), cells, "[]\n"]


def test_a_policy_on_vectors_takes_them_with_the_request(make: Make, tmp_path: Path) -> None:
    from pointsman.pool.features import VectorEncoder

    log = replace(made_up(600, 1), vectors=np.random.default_rng(0).random((600, 3), np.float32))
    encoder = VectorEncoder().fit(log)
    file = make(encoder=encoder).save(tmp_path)
    policy = PoolPolicy.load(file)
    found = policy.decide("any", point=0.5, vector=[0.1, 0.2, 0.9], chance=0.5)
    assert found.model in MODELS
    for wrong in (None, [0.1, 0.2], [0.1, 0.2, float("nan")], [[0.1, 0.2, 0.3]], 0.5):
        with pytest.raises(InputError):
            policy.decide("any", point=0.5, vector=wrong)
    with pytest.raises(InputError, match="reads no vectors"):
        make().decide("any", vector=[0.1, 0.2, 0.9])


def test_a_setting_is_kept_as_it_is(make: Make, tmp_path: Path) -> None:
    policy = make()
    again = PoolPolicy.load(policy.save(tmp_path))
    assert [corner.setting for corner in again.points] == [
        Setting(corner.setting.knob, dict(corner.setting.parameters)) for corner in policy.points
    ]
