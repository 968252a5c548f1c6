"""Models of transformers as rows of layers: bit for bit the model, whatever its family."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.depth.trunks import TransformerTrunk, Trunk, layers_of, trunk_of
from pointsman.depth.trunks.rows import take_rows
from pointsman.depth.trunks.walking import walk
from pointsman.errors import InputError

transformers = pytest.importorskip("transformers")

PAD = 0
TOKENS = {
    "vocab_size": 50,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
GPT = {"n_embd": 16, "n_layer": 3, "n_head": 2}
IMAGES = {**SMALL, "image_size": 8, "patch_size": 4}
GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
OPT = {"ffn_dim": 24, "word_embed_proj_dim": 8}
DISTIL = {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24}
BLOOM = {"hidden_size": 16, "n_layer": 3, "n_head": 2}
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
SLIDING = {"sliding_window": 3, "layer_types": KINDS}
T5 = {"d_model": 8, "num_layers": 2, "num_heads": 2, "d_ff": 8, "d_kv": 4}
MAMBA = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
CONVNEXT = {"hidden_sizes": [4, 8], "depths": [1, 2], "num_stages": 2, "patch_size": 2}

# family and task, options of its configuration, the list of its layers
TEXT = [
    ("Bert", "ForSequenceClassification", SMALL, "bert.encoder.layer"),
    ("DistilBert", "ForSequenceClassification", DISTIL, "distilbert.transformer.layer"),
    ("ModernBert", "ForSequenceClassification", SMALL, "model.layers"),
    ("Electra", "ForSequenceClassification", SMALL, "electra.encoder.layer"),
    ("Bert", "ForMaskedLM", SMALL, "bert.encoder.layer"),
    ("Llama", "ForCausalLM", SMALL, "model.layers"),
    ("GPT2", "LMHeadModel", GPT, "transformer.h"),
    ("GPT2", "ForSequenceClassification", GPT, "transformer.h"),
    ("OPT", "ForCausalLM", {**SMALL, **OPT}, "model.decoder.layers"),
    ("Bloom", "ForCausalLM", BLOOM, "transformer.h"),
    ("GPTNeoX", "ForCausalLM", SMALL, "gpt_neox.layers"),
    ("Gemma3", "ForCausalLM", {**SMALL, **GROUPED, **SLIDING}, "model.layers"),
    ("Mamba", "ForCausalLM", MAMBA, "backbone.layers"),
]
PICTURES = [
    ("ViT", IMAGES, "vit.layers"),
    ("DeiT", IMAGES, "deit.layers"),
    ("Beit", IMAGES, "beit.layers"),
    ("Dinov2", IMAGES, "dinov2.encoder.layer"),
    ("ConvNext", CONVNEXT, "convnext.encoder.stages"),
]


def built(family, task, options):
    torch.manual_seed(0)
    config = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
    fixed = {} if task == "ForImageClassification" else TOKENS
    labels = {"num_labels": 3} if "Classification" in task else {}
    settings = getattr(transformers, config)(**{**fixed, **options, **labels})
    net = getattr(transformers, family + task)(settings)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.eval()


def padded(rows=4, tokens=6):
    """Ids with a mask, rows of different lengths."""
    ids = torch.randint(3, 50, (rows, tokens), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    mask[3, 2:] = 0
    return {"input_ids": ids.where(mask.bool(), PAD), "attention_mask": mask}


def images(rows=4):
    return torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def halfway(trunk, x, rows):
    """Logits of some rows, of which the others leave after the first block."""
    state = take_rows(trunk.block(0, trunk.begin(x)), rows)
    for at in range(1, len(trunk.names)):
        state = trunk.block(at, state)
    return trunk.finish(state)


def check(net, x, layers):
    trunk = trunk_of(net, x)
    assert isinstance(trunk, TransformerTrunk)
    assert isinstance(trunk, Trunk)
    assert trunk.names == tuple(f"{layers}.{at}" for at in range(len(layers_of(net)[1])))
    with torch.no_grad():
        whole = net(**x).logits if isinstance(x, dict) else net(x).logits
        assert_close(walk(trunk, x), whole, rtol=0, atol=0)
        rows = torch.tensor([3, 1])
        assert_close(halfway(trunk, x, rows), whole[rows])
        assert halfway(trunk, x, rows[:0]).shape == (0, *whole.shape[1:])
        assert walk(trunk, take_rows(x, rows[:0])).shape == (0, *whole.shape[1:])
        features = trunk.features(trunk.begin(x))
        assert len(features) == 4
        assert (
            features.shape[trunk.channels]
            == trunk.begin(x)["hidden"].shape[1 if features.ndim == 4 else -1]
        )


@pytest.mark.parametrize(("family", "task", "options", "layers"), TEXT)
def test_a_text_model_run_layer_by_layer_is_the_model(family, task, options, layers):
    check(built(family, task, options), padded(), layers)


@pytest.mark.parametrize(("family", "options", "layers"), PICTURES)
def test_a_vision_model_run_layer_by_layer_is_the_model(family, options, layers):
    check(built(family, "ForImageClassification", options), images(), layers)


def bert(**options):
    return built("Bert", "ForSequenceClassification", {**SMALL, **options})


def test_ids_alone_do_and_so_does_another_length():
    net = bert()
    trunk = trunk_of(net, padded()["input_ids"])
    longer = torch.randint(3, 50, (3, 9))
    with torch.no_grad():
        assert_close(walk(trunk, longer), net(longer).logits, rtol=0, atol=0)


def test_a_mask_that_the_example_did_not_have_is_heeded():
    """Where a mask hides nothing, some models hand their layers none at all."""
    net = built("Llama", "ForCausalLM", SMALL)
    trunk = trunk_of(net, padded()["input_ids"])
    x = padded()
    with torch.no_grad():
        assert_close(walk(trunk, x), net(**x).logits, rtol=0, atol=0)
        rows = torch.tensor([1])
        assert_close(halfway(trunk, x, rows), net(**x).logits[rows])


def test_as_many_tokens_as_inputs_confuse_nothing():
    x = padded(rows=6)
    net = built("GPT2", "LMHeadModel", GPT)
    trunk = trunk_of(net, x)
    rows = torch.tensor([5, 0, 3])
    with torch.no_grad():
        assert_close(halfway(trunk, x, rows), net(**x).logits[rows])


def test_layers_that_run_several_times_are_several_blocks():
    net = built("Albert", "ForSequenceClassification", SMALL)
    trunk = trunk_of(net, padded())
    assert trunk.names == tuple(f"albert.encoder.albert_layer_groups.0#{k}" for k in (1, 2, 3))
    with torch.no_grad():
        assert_close(walk(trunk, padded()), net(**padded()).logits, rtol=0, atol=0)


def test_features_are_what_the_models_own_head_reads():
    x = padded()
    hidden = torch.randn(4, 6, 16)
    found = {}
    for family, options in [("Bert", SMALL), ("GPT2", GPT)]:
        trunk = trunk_of(built(family, "ForSequenceClassification", options), x)
        found[family] = trunk.features({**trunk.begin(x), "hidden": hidden})
    assert_close(found["Bert"], hidden[:, 0])
    last = torch.stack([hidden[0, 5], hidden[1, 3], hidden[2, 5], hidden[3, 1]])
    assert_close(found["GPT2"], last)


def test_a_mean_leaves_padding_out():
    x = padded()
    trunk = TransformerTrunk(bert(), x, reads="mean")
    hidden = torch.randn(4, 6, 16)
    found = trunk.features({**trunk.begin(x), "hidden": hidden})
    assert_close(found[3], hidden[3, :2].mean(dim=0))
    assert_close(found[0], hidden[0].mean(dim=0))


def test_gradients_reach_embeddings_layers_and_head():
    net = bert()
    trunk = trunk_of(net, padded()).train()
    walk(trunk, padded()).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name


def test_the_model_itself_is_left_as_it_was():
    net = bert().train()
    net.bert.pooler.eval()
    before = copy.deepcopy(net.state_dict())
    trunk = trunk_of(net, padded())
    walk(trunk, padded())
    assert net.training
    assert not net.bert.pooler.training
    assert isinstance(net.bert.encoder.layer, nn.ModuleList)
    assert_close(net.state_dict(), before)
    assert trunk.model is net
    net.classifier = nn.Linear(16, 5)  # what is put in later is what runs
    assert walk(trunk, padded()).shape == (4, 5)


def test_a_deep_copy_is_independent():
    trunk = trunk_of(bert(), padded())
    twin = copy.deepcopy(trunk)
    with torch.no_grad():
        before = walk(trunk, padded())
        for parameter in trunk.parameters():
            parameter.zero_()
        assert_close(walk(twin, padded()), before)


class Linked(nn.Module):
    """Layers that hand each other more than the hidden state."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        x = first = self.embed(x)
        for layer in self.layers:
            x = layer(x) + first
        return x


def test_layers_that_are_linked_outside_of_them_are_refused():
    with pytest.raises(InputError, match="Linked run block by block answers differently"):
        TransformerTrunk(Linked(), torch.randn(3, 4))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: layers_of(nn.Linear(2, 2)), "Linear keeps no layers in an nn.ModuleList"),
        (lambda: trunk_of(bert(), torch.zeros(0, 4, dtype=torch.long)), "at least one input"),
        (lambda: TransformerTrunk(bert(), (torch.ones(2, 4).long(),)), "tensor .input_ids. or a d"),
        (
            lambda: layers_of(built("T5", "ForConditionalGeneration", T5)),
            "several lists of layers, encoder.block, decoder.block.*model.encoder",
        ),
    ],
)
def test_what_cannot_be_walked_is_refused_in_one_line(call, text):
    with pytest.raises(InputError, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)
