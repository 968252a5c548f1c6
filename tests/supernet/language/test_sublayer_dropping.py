import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from pointsman.claims.language import LanguageModel
from pointsman.errors import InputError
from pointsman.supernet.language import SublayerDropping

IDS = torch.randint(128, (2, 9), generator=torch.Generator().manual_seed(0))


def decoder(layers=2):
    def feed_forward(layer, width):
        return nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))

    return LanguageModel(feed_forward, layers=layers, context=16).eval()


def silence(block, attention):
    last = block.out if attention else block.feed_forward[2]
    with torch.no_grad():
        for weight in last.parameters():
            weight.zero_()


@pytest.mark.parametrize("unit", ["attention", "feed-forward", "either", "layer"])
def test_a_silent_unit_scores_0_and_goes_first_without_a_change(unit):
    model = decoder()
    for attention in (True, False):
        silence(model.blocks[1], attention)
    found = SublayerDropping(unit).fit(model, [IDS])
    first = found.order_[0]
    assert first.startswith("blocks.1")
    assert abs(found.scores_[first]) < 1e-6
    with torch.no_grad():
        assert_close(found.drop(1)(IDS)[0], model(IDS)[0])


def test_scores_are_one_minus_the_likeness_of_the_stream_before_and_after():
    model = decoder()
    with torch.no_grad():
        x = model.bytes(IDS) + model.places.weight[:9]
        block = model.blocks[0]
        after = x + block._attend(block.norm_1(x))[0]
        whole = after + block.feed_forward(block.norm_2(after))
    likeness = functional.cosine_similarity(x, after, dim=-1).mean()
    assert SublayerDropping("attention").fit(model, [IDS]).scores_["blocks.0.mix"] == pytest.approx(
        1 - float(likeness), abs=1e-6
    )
    likeness = functional.cosine_similarity(x, whole, dim=-1).mean()
    assert SublayerDropping("layer").fit(model, [IDS]).scores_["blocks.0"] == pytest.approx(
        1 - float(likeness), abs=1e-6
    )


def test_scores_are_means_over_all_batches():
    model = decoder()
    apart = [SublayerDropping().fit(model, [part]).scores_ for part in IDS.split(1)]
    both = SublayerDropping().fit(model, list(IDS.split(1))).scores_
    for name, score in both.items():
        assert score == pytest.approx((apart[0][name] + apart[1][name]) / 2, abs=1e-6)


def test_the_model_that_is_dropped_from_stays_as_it_is_and_the_new_one_is_smaller():
    model = decoder()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    small = SublayerDropping("layer").fit(model, [IDS]).drop(1)
    assert len(small.blocks) == 1
    for name, weight in model.state_dict().items():
        assert_close(weight, before[name], rtol=0, atol=0)


def test_scores_taken_again_are_those_of_the_model_without_what_went_first():
    model = decoder()
    found = SublayerDropping(again=True).fit(model, [IDS])
    assert found.order_[0] == min(found.scores_, key=found.scores_.__getitem__)
    assert sorted(found.order_) == sorted(found.scores_)
    left = SublayerDropping().fit(found.without(found.order_[:1]), [IDS]).scores_
    assert min(left, key=left.__getitem__) == found.order_[1]


def test_no_text_and_too_many_units_are_refused():
    with pytest.raises(InputError, match="at least one batch"):
        SublayerDropping().fit(decoder(), [])
    found = SublayerDropping("layer").fit(decoder(), [IDS])
    with pytest.raises(InputError, match="between 0 and 1 of 2"):
        found.drop(2)
    with pytest.raises(InputError, match="the units are"):
        found.without(["blocks.7"])
