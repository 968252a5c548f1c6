import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.claims.language import LanguageModel
from pointsman.errors import InputError
from pointsman.supernet.language import SkipSublayers, find_sublayers, tidy
from pointsman.supernet.language.calling import call, logits_of
from pointsman.supernet.making import make_elastic

SIZES = {"vocab_size": 64, "num_attention_heads": 4}
WIDE = {"hidden_size": 16, "intermediate_size": 24}
IDS = torch.randint(60, (2, 7), generator=torch.Generator().manual_seed(0))


def transformers_model(name, layers=2):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config, model, sizes = {
        "llama": ("LlamaConfig", "LlamaForCausalLM", {**WIDE, "num_key_value_heads": 2}),
        "gpt2": ("GPT2Config", "GPT2LMHeadModel", {"hidden_size": 16, "n_positions": 32}),
        "opt": ("OPTConfig", "OPTForCausalLM", {"hidden_size": 16, "ffn_dim": 24}),
        "phi": ("PhiConfig", "PhiForCausalLM", WIDE),
    }[name]
    if name == "opt":
        sizes |= {"word_embed_proj_dim": 16, "max_position_embeddings": 32}
    made = getattr(transformers, config)(num_hidden_layers=layers, **SIZES, **sizes)
    return getattr(transformers, model)(made).eval()


def own_model(layers=2):
    def feed_forward(layer, width):
        return nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))

    return LanguageModel(feed_forward, layers=layers, context=16).eval()


def model_of(name):
    return own_model() if name == "own" else transformers_model(name)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "phi", "own"])
def test_each_layer_has_an_attention_and_a_feed_forward(name):
    found = find_sublayers(model_of(name), IDS)
    assert [each.kind for each in found] == ["attention", "feed-forward"] * 2
    assert [each.layer for each in found] == [0, 0, 1, 1]


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "phi", "own"])
def test_a_subnet_without_sublayers_is_the_model_with_zeros_in_their_place(name):
    model = model_of(name)
    net = make_elastic(model, IDS, [SkipSublayers()]).eval()
    genotype = (0, 1, 1, 0)
    net.use(genotype)
    gone = [
        each for each, kept in zip(find_sublayers(model, IDS), genotype, strict=True) if not kept
    ]
    for each in gone:  # what is added is silenced where it comes out

        def silent(module, inputs, output):
            return (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0

        model.get_submodule(each.pieces[-1].name).register_forward_hook(silent)
    with torch.no_grad():
        expected = logits_of(call(model, IDS))
        assert_close(logits_of(call(net, IDS)), expected)
        assert_close(logits_of(call(tidy(net.extract(genotype)), IDS)), expected)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_model_without_its_first_attention_writes_with_its_cache_as_without(name):
    net = make_elastic(transformers_model(name, layers=3), IDS, [SkipSublayers()]).eval()
    small = tidy(net.extract((0, 1, 1, 1, 0, 0)))
    assert small.config.num_hidden_layers == 2
    about = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with_cache = small.generate(IDS[:1], use_cache=True, **about)
    assert torch.equal(with_cache, small.generate(IDS[:1], use_cache=False, **about))


def test_only_one_kind_becomes_elastic_where_asked_for():
    net = make_elastic(own_model(), IDS, [SkipSublayers("attention")])
    assert [choice.name for choice in net.space.choices] == [
        f"blocks.{at}.mix.kept" for at in range(2)
    ]


class _Normed(nn.Module):
    """A layer that is no sum of its input and something."""

    def __init__(self):
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        return self.norm(x + self.inner(x))


def test_layers_that_normalise_after_the_sum_are_refused_by_name():
    model = nn.Sequential(nn.Embedding(64, 8), nn.ModuleList())
    stack = nn.Module()
    stack.layers = nn.ModuleList([_Normed(), _Normed()])
    stack.forward = lambda x: stack.layers[1](stack.layers[0](x))
    model[1] = stack
    with pytest.raises(InputError, match="layers.0 .*pre-norm"):
        find_sublayers(model, IDS)


def test_one_token_is_too_few_to_tell_attention():
    with pytest.raises(InputError, match="at least 2 tokens"):
        find_sublayers(own_model(), IDS[:, :1])


def test_a_model_without_a_list_of_layers_is_refused():
    with pytest.raises(InputError, match="ModuleList"):
        find_sublayers(nn.Linear(4, 4), torch.rand(2, 4))


def test_leaving_out_everything_is_refused():
    net = make_elastic(own_model(), IDS, [SkipSublayers()])
    with pytest.raises(InputError, match="at least one"):
        tidy(net.extract([0] * 4))
