"""What answers at an exit: shapes, shared unembeddings, clear refusals."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.depth import EarlyExit
from pointsman.depth.decoder import Decoder
from pointsman.depth.heads import (
    ChannelMean,
    LanguageHead,
    convolution_head,
    hidden_head,
    pooled_linear,
)
from pointsman.depth.trunks import trunk_of
from pointsman.depth.trunks.walking import walk
from pointsman.errors import InputError

MAPS = torch.randn(4, 6, 5, 5)


@pytest.mark.parametrize(
    ("maker", "features"),
    [
        (pooled_linear, MAPS),
        (pooled_linear, MAPS.double()),
        (partial(pooled_linear, channels=-1), MAPS[:, :, :, 0]),
        (partial(hidden_head, hidden=7), MAPS),
        (partial(hidden_head, hidden=7, channels=-1), MAPS[:, :, 0]),
        (partial(convolution_head, width=8), MAPS),
        (partial(convolution_head, width=8, grid=2), MAPS.double()),
    ],
)
def test_a_head_gives_logits_in_the_type_of_the_features(maker, features):
    logits = maker(features, 3).eval()(features)
    assert logits.shape == (4, 3)
    assert logits.dtype == features.dtype


def test_means_are_taken_over_all_but_inputs_and_channels():
    x = torch.randn(2, 3, 4, 5)
    assert_close(ChannelMean()(x), x.mean(dim=(2, 3)))
    assert_close(ChannelMean(-1)(x), x.mean(dim=(1, 2)))
    assert_close(ChannelMean(-1)(x[:, :, 0, 0]), x[:, :, 0, 0])


def test_a_maker_of_heads_is_asked_once_for_each_exit():
    seen = []

    def maker(features, classes):
        seen.append((tuple(features.shape), classes))
        return hidden_head(features, classes, hidden=5)

    backbone = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3))
    net = EarlyExit(backbone, [0, 1], example=torch.randn(2, 4), heads=maker)
    assert seen == [((2, 8), 3), ((2, 6), 3)]
    assert [part.shape for part in net(torch.randn(5, 4))] == [(5, 3)] * 3


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    net = Decoder(vocabulary=11, width=8, layers=3, heads=2, context=12).eval()
    nn.init.normal_(net.norm.weight)
    return net


def ids(rows=3):
    return torch.randint(11, (rows, 6), generator=torch.Generator().manual_seed(0))


def after_all(trunk, x):
    state = trunk.begin(x)
    for at in range(len(trunk.names)):
        state = trunk.block(at, state)
    return state


def test_a_language_head_has_the_norm_of_its_own_and_the_models_unembedding(decoder):
    head = LanguageHead(decoder, after_all(decoder, ids()))
    hidden = torch.randn(2, 6, 8)
    assert_close(head(hidden), decoder.finish(hidden), rtol=0, atol=0)
    assert {name for name, _ in head.named_parameters()} == {"own.0.weight", "own.0.bias"}
    assert head.own[0].weight is not decoder.norm.weight
    with torch.no_grad():
        decoder.head.weight.mul_(2)
    assert_close(head(hidden), decoder.finish(hidden), rtol=0, atol=0)


def test_a_language_model_gets_language_heads(decoder):
    net = EarlyExit(decoder, [0, 1], example=ids())
    assert all(isinstance(head, LanguageHead) for head in net.heads)
    outputs = net(ids())
    assert [part.shape for part in outputs] == [(3, 6, 11)] * 3
    assert net.num_classes == 11
    assert_close(outputs[-1], decoder(ids()))
    answer = net.run(ids(), 2.0, lambda logits: logits.softmax(-1).amax(-1).mean(-1))
    assert_close(answer.output, decoder(ids()))
    twin = copy.deepcopy(net)
    with torch.no_grad():
        decoder.head.weight.zero_()
    assert float(net(ids())[0].abs().sum()) == 0
    assert_close(twin(ids())[0], outputs[0])  # a copy's heads use the copy's unembedding


FAMILIES = [
    ("LlamaForCausalLM", "LlamaConfig",
     {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}),
    ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 16, "n_layer": 2, "n_head": 2}),
    ("OPTForCausalLM", "OPTConfig",
     {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 8,
      "word_embed_proj_dim": 16}),
]  # fmt: skip


@pytest.mark.parametrize(("model", "config", "sizes"), FAMILIES)
def test_causal_models_of_transformers_get_language_heads(model, config, sizes):
    transformers = pytest.importorskip("transformers")
    tokens = {"vocab_size": 11, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    net = getattr(transformers, model)(getattr(transformers, config)(**tokens, **sizes)).eval()
    exits = EarlyExit(net, [0], example=ids())
    with torch.no_grad():
        outputs = exits(ids())
        assert_close(outputs[-1], net(ids()).logits, rtol=0, atol=0)
        assert outputs[0].shape == outputs[1].shape
        # the head of the last block itself would give what the model gives
        trunk = trunk_of(net, ids())
        assert_close(exits.heads[0](trunk.features(after_all(trunk, ids()))), walk(trunk, ids()))
    assert all(not name.endswith("lm_head.weight") for name, _ in exits.heads.named_parameters())


class Scaled(Decoder):
    def finish(self, state):
        return 3 * super().finish(state)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: pooled_linear(torch.zeros(3), 2), "default head needs features"),
        (lambda: hidden_head(MAPS, 2, hidden=0), "at least one unit, got 0"),
        (lambda: convolution_head(MAPS[:, :, 0], 2, width=8), r"maps|\(4, 6, 5\)"),
        (lambda: convolution_head(MAPS, 2, width=0), "from 1, got .* 0 and 1"),
        (
            lambda: EarlyExit(
                Scaled(vocabulary=11, width=8, layers=2, heads=2, context=12), [0], example=ids()
            ),
            "more than run LayerNorm, Linear: give heads of your own",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call, text):
    with pytest.raises(InputError, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)
