"""Networks made elastic by declarations: one's own, and those of transformers."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pointsman.errors import InputError
from pointsman.supernet.elastic import (
    Bits,
    Declaration,
    Depth,
    Experts,
    Heads,
    Kernel,
    NamedWidth,
    Operation,
    Skip,
    Width,
)
from pointsman.supernet.making import broken_choices, magnitude, make_elastic
from pointsman.supernet.supernet import Supernet


class Block(nn.Module):
    """x + a convolution through a wider layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.norm = nn.Conv2d(width, 2 * width, 1), nn.BatchNorm2d(2 * width)
        self.spread = nn.Conv2d(2 * width, 2 * width, 5, padding=2, groups=2 * width)
        self.down = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(self.spread(self.norm(self.up(x)).relu()).relu())
        return out


class ConvNet(nn.Module):
    """A stem, blocks, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(8) for _ in range(3)))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return out


class Patches(nn.Module):
    """torch's own transformer over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 4, 12, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(x).mean(1))
        return out


class Mixture(nn.Module):
    """The best two of several experts."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.top_k = 4, 2
        self.router = nn.Linear(6, 4)
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weight, taken = self.router(x).softmax(-1).topk(self.top_k, dim=-1)
        every = torch.stack([self.experts[at](x) for at in range(self.num_experts)], dim=1)
        rows = torch.arange(len(x))[:, None]
        return (weight[..., None] * every[rows, taken]).sum(dim=1)


IMAGES = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
DECLARED: dict[str, list[Declaration]] = {
    "depth": [Depth(counts=(1, 3))],
    "depth in another order": [Depth("blocks", counts=(0, 1, 2, 3), order=(2, 0, 1))],
    "blocks skipped": [Skip(only=(0, 2))],
    "kernels": [Kernel("blocks.*.spread", sizes=(1, 3, 5))],
    "one kernel": [Kernel("blocks.*.spread", sizes=(3, 5), together=True)],
    "inner width": [Width("blocks.*", shares=(0.25, 1))],
    "width of a residual stream": [Width("stem", counts=(3, 8))],
    "one inner width": [Width("blocks.*.up", shares=(0.5, 1), together=True)],
    "named width": [
        NamedWidth("inner", ["blocks.1.up", "blocks.1.norm", "blocks.1.spread"],
                   ["blocks.1.down"], counts=(4, 16))
    ],
    "bits": [Bits("blocks.*.down", options=(4, 32))],
    "operations": [Operation("blocks.*.spread", {"nothing": lambda there: nn.Identity()})],
    "everything": [
        Width("blocks.*", shares=(0.5, 1)), Width("stem", shares=(0.5, 1)), Depth(counts=(1, 2, 3)),
        Kernel("blocks.*.spread", sizes=(3, 5)), Bits("head", options=(8, 32)),
    ],
}  # fmt: skip


def convnet() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet().eval()


def some(net: Supernet, count: int = 4) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(0)
    least = net.space.canonical([0] * len(net.space.choices))
    return [least, *(net.space.sample(rng) for _ in range(count))]


@pytest.mark.parametrize("declared", DECLARED.values(), ids=DECLARED)
def test_a_network_is_whole_at_first_and_every_subnet_equals_what_is_extracted(
    declared: list[Declaration],
) -> None:
    model = convnet()
    net = make_elastic(model, IMAGES, declared).eval()
    torch.testing.assert_close(net(IMAGES), model(IMAGES))
    size = sum(p.numel() for p in model.parameters())
    for genotype in some(net):
        net.use(genotype)
        plain = net.extract(genotype)
        torch.testing.assert_close(plain(IMAGES), net(IMAGES))
        assert sum(p.numel() for p in plain.parameters()) <= size
    outputs = [net.extract(g)(IMAGES) for g in dict.fromkeys(some(net))]
    assert len(outputs) < 2 or not torch.equal(outputs[0], outputs[1])


def test_choices_inside_a_block_matter_only_where_the_block_runs() -> None:
    net = make_elastic(
        convnet(), IMAGES, [Kernel("blocks.*.spread", (3, 5)), Depth(counts=(1, 2, 3))]
    )
    assert net.space.names[0] == "blocks.depth"
    assert net.space.count() == 2 + 4 + 8
    assert net.space.choices[3].when == ("blocks.depth", (3,))


def test_a_named_width_is_the_width_that_is_found() -> None:
    named = make_elastic(convnet(), None, DECLARED["named width"])
    found = make_elastic(convnet(), IMAGES, [Width("blocks.1", counts=(4, 16))])
    for net in (named, found):
        net.eval().use((0,))
    torch.testing.assert_close(named(IMAGES), found(IMAGES))


def test_units_sorted_by_importance_keep_the_whole_and_put_the_strong_first() -> None:
    model = convnet()
    net = make_elastic(model, IMAGES, [Width("stem", counts=(3, 8))], importance=magnitude)
    torch.testing.assert_close(net.eval()(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-5)
    sizes = net.body.body.stem.weight.flatten(1).square().sum(1)  # type: ignore[union-attr]
    head = net.body.body.head.weight.square().sum(0)  # type: ignore[union-attr]
    assert (sizes + head)[:3].sum() > (sizes + head)[-3:].sum()


def test_fewer_experts_are_a_smaller_mixture() -> None:
    torch.manual_seed(0)
    net = make_elastic(
        nn.Sequential(Mixture()), torch.randn(5, 6), [Experts("0", counts=(1, 3, 4))]
    )
    plain = net.extract((0,))[0]
    assert (plain.num_experts, plain.top_k, len(plain.experts)) == (1, 1, 1)
    x = torch.randn(5, 6)
    torch.testing.assert_close(plain(x), plain.experts[0](x))
    assert net.extract((1,))[0].router.out_features == 3


def test_the_gradient_goes_through_the_rounding() -> None:
    net = make_elastic(
        nn.Sequential(nn.Linear(4, 3)), None, [Bits("0", options=(2, 32), activations=False)]
    )
    net.use((0,))
    x = torch.randn(6, 4)
    net(x).sum().backward()
    weight = net.body[0].layer.weight
    assert weight.grad is not None
    assert weight.grad.abs().min() > 0
    levels = net.extract((0,))[0].weight.detach()
    assert all(len(row.abs().unique()) <= 2 for row in levels)  # nothing, and one size


def transformers_model(kind: str) -> tuple[nn.Module, dict[str, Any], str]:
    """A tiny model with random weights, an example, and where its feed-forwards are."""
    library = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": 40, "max_position_embeddings": 12}
    ids = {"input_ids": torch.randint(0, 40, (1, 6))}
    if kind == "ViT":
        config = library.ViTConfig(image_size=8, patch_size=4, intermediate_size=24, **sizes)
        image = {"pixel_values": torch.randn(1, 3, 8, 8)}
        return library.ViTForImageClassification(config), image, "**.mlp"
    if kind == "Bert":
        config = library.BertConfig(intermediate_size=24, **text)
        model = library.BertForSequenceClassification(config)
        return model, ids, "**.intermediate.dense"
    if kind == "GPT2":
        config = library.GPT2Config(vocab_size=40, n_positions=12, n_embd=16, n_layer=2, n_head=4,
                                    bos_token_id=0, eos_token_id=0)  # fmt: skip
    elif kind == "Llama":
        config = library.LlamaConfig(intermediate_size=24, num_key_value_heads=2, **text)
    else:
        config = library.OPTConfig(ffn_dim=24, word_embed_proj_dim=16, **text)
    where = "**.fc1" if kind == "OPT" else "**.mlp"
    return library.AutoModelForCausalLM.from_config(config), ids, where


@pytest.mark.parametrize("kind", ["Bert", "ViT", "GPT2", "Llama", "OPT"])
def test_a_transformer_is_elastic_in_depth_heads_and_feed_forward(kind: str) -> None:
    model, example, where = transformers_model(kind)
    model.eval()
    declared = [Depth(counts=(1, 2)), Heads(shares=(0.5, 1)), Width(where, shares=(0.25, 1))]
    net = make_elastic(model, example, declared, importance=magnitude).eval()
    assert len(net.space.choices) == 5
    torch.testing.assert_close(net(**example).logits, model(**example).logits, rtol=1e-4, atol=1e-5)
    for genotype in some(net, 2):
        net.use(genotype)
        plain = net.extract(genotype)
        assert type(plain) is type(model)
        torch.testing.assert_close(plain(**example).logits, net(**example).logits)
        depth = net.space.decode(genotype)[net.space.names[0]]
        assert plain.config.num_hidden_layers == depth
        if hasattr(plain, "generate") and kind in ("GPT2", "Llama", "OPT"):
            longer = plain.generate(**example, max_new_tokens=2, do_sample=False, pad_token_id=0)
            assert longer.shape == (1, 8)


def test_a_layer_in_the_middle_may_go_and_the_cache_still_fits() -> None:
    model, example, _ = transformers_model("Llama")
    net = make_elastic(model.eval(), example, [Skip()]).eval()
    plain = net.extract(net.space.encode(dict(zip(net.space.names, (False, True), strict=True))))
    longer = plain.generate(**example, max_new_tokens=3, do_sample=False, pad_token_id=0)
    again = plain.generate(
        **example, max_new_tokens=3, do_sample=False, pad_token_id=0, use_cache=False
    )
    assert torch.equal(longer, again)


def test_timm_models_are_elastic_in_the_same_way() -> None:
    timm = pytest.importorskip("timm", exc_type=ImportError)
    model = timm.create_model("resnet10t", num_classes=3).eval()
    x = torch.randn(1, 3, 32, 32)
    net = make_elastic(model, x, [Width("layer4", shares=(0.5, 1))]).eval()
    plain = net.extract([0] * len(net.space.choices))
    net.use([0] * len(net.space.choices))
    torch.testing.assert_close(plain(x), net(x))


class Rigid(nn.Sequential):
    """Asks for all its inner units."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self[0](x)
        if hidden.shape[1] != 6:
            raise ValueError("six, please")
        out: Tensor = self[1](hidden)
        return out


def test_a_choice_with_which_the_network_does_not_run_is_named() -> None:
    model = Rigid(nn.Linear(3, 6), nn.Linear(6, 2))
    width = NamedWidth("hidden", ["0"], ["1"], counts=(4, 6))
    with pytest.raises(InputError, match=r"'hidden.width' at 4 \(ValueError: six, please\)"):
        make_elastic(model, torch.randn(1, 3), [width])
    net = make_elastic(model, None, [width])
    found = broken_choices(net, torch.randn(1, 3))
    assert list(found) == [("hidden.width", 4)]
    assert net.in_force == (1,)


def test_the_model_that_was_given_stays_as_it_was() -> None:
    model = convnet()
    before = copy.deepcopy(model.state_dict())
    net = make_elastic(model, IMAGES, DECLARED["everything"])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert repr(model) == repr(convnet())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("declared", "what"),
    [
        ([], "nothing was declared"),
        ([Depth("stem", counts=(1,))], "got Conv2d at 'stem'"),
        ([Depth("nowhere", counts=(1,))], "'nowhere' matches none"),
        ([Depth(counts=(1, 4))], r"counts lie between 0 and 3, got \[1, 4\]"),
        ([Depth(counts=(1,), order=(0, 0, 1))], "each of the 3 blocks of 'blocks' once"),
        ([Kernel("stem", (3, 5))], "odd sizes up to that"),
        ([Kernel("stem", (2, 3))], "odd sizes up to that"),
        ([Width("blocks.*", shares=(0.0, 1))], r"shares lie in \(0, 1\], got \[0.0, 1\]"),
        ([Width("blocks.*")], "shares or counts"),
        ([Width("head", shares=(0.5, 1))], "the units that may be cut in this network"),
        ([Heads(shares=(0.5, 1))], "the attention heads that may be cut .* none"),
        ([Width(shares=(0.5, 1)), Width("stem", shares=(0.5, 1))], "declared twice"),
        ([Bits("stem", options=(1, 8))], "bits are 2 or more"),
        ([Experts("blocks", counts=(1,))], "'blocks' has 0 lists"),
        ([NamedWidth("w", ["stem"], ["blocks"], counts=(1,))], "got Sequential at 'blocks'"),
    ],
)
def test_declarations_that_do_not_fit_are_refused(declared: list[Declaration], what: str) -> None:
    with pytest.raises(InputError, match=what):
        make_elastic(convnet(), IMAGES, declared)


def test_nothing_declared_makes_every_width_and_all_heads_elastic_in_quarters() -> None:
    torch.manual_seed(0)
    model, x = Patches().eval(), torch.randn(3, 6, 8)
    net = make_elastic(model, x).eval()
    assert {choice.name: choice.options for choice in net.space.choices} == {
        **{f"encoder.layers.{at}.linear1.width": (3, 6, 9, 12) for at in range(2)},
        **{f"encoder.layers.{at}.self_attn.heads": (1, 2, 3, 4) for at in range(2)},
    }
    torch.testing.assert_close(net(x), model(x))
    for genotype in [(0, 0, 0, 0), (2, 1, 0, 3)]:
        net.use(genotype)
        alone = net.extract(genotype).eval()
        torch.testing.assert_close(net(x), alone(x))
        assert sum(p.numel() for p in alone.parameters()) < sum(
            p.numel() for p in model.parameters()
        )


def test_a_network_without_units_is_refused() -> None:
    with pytest.raises(InputError, match="the units that may be cut in this network"):
        make_elastic(nn.Linear(4, 3), torch.zeros(1, 4))
