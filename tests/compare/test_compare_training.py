"""Training: the same recipe for all, stopped and continued to the same result."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pointsman.compare.training import Recipe, Trained, fit
from pointsman.errors import InputError, PointsmanError

RECIPE = Recipe(batch=32, rate=1e-2, weight_decay=0.01)


class Stop(BaseException):
    """Cuts training off."""


def loss(module: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(x.shape, generator=generator) * 0.1
    return functional.cross_entropy(module(x + noise), y)


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


@pytest.fixture
def trained() -> Callable[..., Trained]:
    """Trains on fixed data; keywords go to `fit`."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    usual: dict[str, Any] = {"name": "net", "epochs": 6, "seed": 0}
    return lambda **changes: fit(make, loss, x, y, RECIPE, **{**usual, **changes})


def weights(found: Trained) -> dict[str, Tensor]:
    return dict(found.module.state_dict())


def equal(one: Trained, other: Trained) -> bool:
    ours, theirs = weights(one), weights(other)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_training_depends_on_seed_and_name_alone(trained: Any) -> None:
    torch.manual_seed(1)
    first = trained()
    torch.manual_seed(2)
    assert equal(first, trained())
    assert not equal(first, trained(seed=1))
    assert not equal(first, trained(name="other"))


def test_training_learns_and_ends_in_evaluation_mode(trained: Any) -> None:
    losses: list[float] = []
    found = trained(epochs=20, on_epoch=lambda _, mean: losses.append(mean))
    assert losses[-1] < 0.6 * losses[0]
    assert len(losses) == found.epochs == 20
    assert not found.module.training


@pytest.mark.parametrize("at", [1, 3, 5])
def test_training_cut_off_goes_on_to_the_same_weights(
    at: int, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pointsman.compare.training.SECONDS_BETWEEN_SAVES", -1.0)
    epochs: list[int] = []

    def stop(epoch: int, _: float) -> None:
        if epoch == at:
            raise Stop

    with pytest.raises(Stop):
        trained(checkpoint=tmp_path / "net.pt", on_epoch=stop)
    resumed = trained(
        checkpoint=tmp_path / "net.pt", on_epoch=lambda epoch, _: epochs.append(epoch)
    )
    assert epochs == list(range(at + 1, 7))
    assert equal(resumed, trained())


def test_a_finished_network_is_not_trained_again(trained: Any, tmp_path: Path) -> None:
    first = trained(checkpoint=tmp_path / "net.pt")
    again = trained(checkpoint=tmp_path / "net.pt", on_epoch=lambda *_: pytest.fail("trained"))
    assert equal(first, again)
    assert again.seconds == pytest.approx(first.seconds)
    assert not again.module.training


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_very_short_training_works(epochs: int) -> None:
    x, y = torch.randn(40, 5), torch.arange(40) % 3
    for batch in (64, 8):  # one batch an epoch, and five
        recipe = Recipe(batch=batch, rate=1e-2, weight_decay=0.0)
        found = fit(make, loss, x, y, recipe, name="short", epochs=epochs, seed=0)
        assert all(weight.isfinite().all() for weight in weights(found).values())


def test_a_loss_that_is_not_finite_names_network_and_epoch(trained: Any) -> None:
    def broken(*given: Any, count: list[int]) -> Tensor:
        count[0] += 1
        return loss(*given) * (float("nan") if count[0] > 6 else 1.0)

    x, y = torch.randn(96, 5), torch.arange(96) % 3
    with pytest.raises(PointsmanError, match=r"training of odd diverged in epoch 3: .*nan"):
        fit(make, partial(broken, count=[0]), x, y, RECIPE, name="odd", epochs=9, seed=0)


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_damaged_checkpoint_is_named(content: bytes | None, trained: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    if content is None:  # of another network
        torch.save({"module": {}}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"net.pt: this part of the unfinished run is damaged"):
        trained(checkpoint=path)


def test_a_checkpoint_that_cannot_be_written_is_an_error(trained: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"was its folder removed"):
        trained(checkpoint=tmp_path / "gone" / "net.pt")


def test_a_recipe_may_change_what_it_trains_on() -> None:
    seen: list[Tensor] = []

    def augment(x: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    def judge(module: nn.Module, x: Tensor, y: Tensor, _: torch.Generator) -> Tensor:
        assert not x.any()
        return functional.cross_entropy(module(x), y)

    recipe = Recipe(batch=20, rate=1e-2, weight_decay=0.0, augment=augment)
    x, y = torch.randn(60, 5), torch.arange(60) % 3
    fit(make, judge, x, y, recipe, name="net", epochs=2, seed=0)
    assert len(seen) == 6
