import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.testing import assert_close

from pointsman.claims.small_decoder import SmallDecoder
from pointsman.errors import InputError
from pointsman.supernet.channels import channel_groups
from pointsman.supernet.language import PerturbationPruning
from pointsman.supernet.language.perturbation import draw_masks, mask_effects, weighted_inputs

IDS = torch.randint(128, (2, 9), generator=torch.Generator().manual_seed(0))


def units_left(model):
    return sum(w.numel() for n, w in model.named_parameters() if "attention" in n or "feed" in n)


@pytest.mark.parametrize("paired", [True, False])
def test_masks_switch_off_half_and_those_of_low_prior_more_often(paired):
    prior = np.arange(10.0)
    masks = draw_masks(prior, 400, np.random.default_rng(0), paired=paired)
    assert masks.shape == (400, 10)
    assert set(masks.sum(axis=1)) == {5.0}
    if paired:
        assert_close(masks[::2] + masks[1::2], np.ones((200, 10)))
    else:
        assert masks[:, 0].mean() < 0.3 < 0.7 < masks[:, 9].mean()


@pytest.mark.parametrize("paired", [True, False])
def test_planted_effects_are_recovered_from_three_masks_a_candidate(paired):
    rng = np.random.default_rng(1)
    planted = rng.normal(size=30)
    masks = draw_masks(rng.random(30), 90, rng, paired=paired)
    utility = masks @ planted + 3
    assert spearmanr(mask_effects(masks, utility), planted).statistic > 0.95


def test_a_useless_unit_goes_and_a_useful_one_stays():
    model = SmallDecoder(0, layers=1)
    group = next(g for g in channel_groups(model, IDS) if g.name == "blocks.0.feed_forward.up")
    whole = dict(model.named_parameters())["blocks.0.feed_forward.up.weight"].detach().clone()

    def utility(net):  # units 0 to 9 are worth something, the others nothing
        alive = net.blocks[0].feed_forward.up.weight.abs().sum(dim=1) > 0
        return float(alive[:10].sum())

    small = PerturbationPruning(0.5, step=0.25, masks=60, paired=False)
    small.fit(model, IDS, utility, [group])
    kept = small.kept_[group.name]
    assert set(range(10)) <= set(kept)
    assert len(kept) == group.size // 2
    assert_close(small.pruned_.blocks[0].feed_forward.up.weight, whole[kept])
    assert_close(model.blocks[0].feed_forward.up.weight, whole)


def test_the_share_asked_for_goes_and_the_smaller_model_is_the_one_with_zeros():
    model = SmallDecoder(0, layers=2)
    found = PerturbationPruning(0.3, step=0.1, masks=4).fit(model, IDS, lambda net: 0.0)
    assert units_left(found.pruned_) / units_left(model) == pytest.approx(
        0.7, abs=0.045
    )  # one head
    assert found.evaluations_ == 3 * 4
    with torch.no_grad():
        for group in channel_groups(model, IDS):
            gone = sorted(
                set(range(group.size)) - set(found.kept_.get(group.name, range(group.size)))
            )
            for part in group.slices:
                rows = part.rows_UR[gone].flatten()
                dict(model.named_parameters())[part.name].index_fill_(part.dim, rows, 0)
        assert_close(found.pruned_(IDS), model(IDS))


def test_the_prior_is_weights_times_the_size_of_what_they_read():
    model = SmallDecoder(0, layers=1)
    group = next(g for g in channel_groups(model, IDS) if g.name == "blocks.0.feed_forward.up")
    down = model.blocks[0].feed_forward.down.weight.detach().double()
    size = torch.arange(192).double()
    found = weighted_inputs(model, group, {"blocks.0.feed_forward.down": size})
    assert_close(found, down.abs().sum(dim=0) * size)


def test_bad_settings_and_utilities_are_refused():
    with pytest.raises(InputError, match="share lies in"):
        PerturbationPruning(1.0)
    with pytest.raises(InputError, match="finite"):
        PerturbationPruning(masks=4).fit(SmallDecoder(0, layers=1), IDS, lambda net: float("nan"))
    with pytest.raises(InputError, match="lower the share"):
        PerturbationPruning(0.999, step=0.5, masks=0).fit(
            SmallDecoder(0, layers=1), IDS, lambda net: 0.0
        )
