import pytest
import torch
from torch.testing import assert_close

from pointsman.claims.small_decoder import SmallDecoder
from pointsman.supernet.language import layers_and_widths

IDS = torch.randint(128, (2, 9), generator=torch.Generator().manual_seed(0))


def test_any_layer_can_go_and_any_feed_forward_be_narrowed():
    net = layers_and_widths(SmallDecoder(0, layers=2), IDS).eval()
    assert net.space.count() == 9
    small = net.extract(net.space.encode({"blocks.0.kept": False, **_widths(net, 1, 96)}))
    assert len(small.blocks) == 1
    assert small.blocks[0].feed_forward.up.out_features == 96


def _widths(net, block, units):
    (name,) = [n for n in net.space.names if n.startswith(f"blocks.{block}.") and "width" in n]
    return {f"blocks.{block}.kept": True, name: units}


def test_layers_that_are_to_stay_have_no_choice():
    net = layers_and_widths(SmallDecoder(0, layers=2), IDS, keep=[0])
    assert "blocks.0.kept" not in net.space.names
    assert "blocks.1.kept" in net.space.names


def test_the_whole_network_is_the_model_whatever_the_order_of_its_units():
    model = SmallDecoder(0, layers=1)
    with torch.no_grad():
        assert_close(layers_and_widths(model, IDS)(IDS), model(IDS))


def test_a_llama_of_transformers_keeps_running_when_cut():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    net = layers_and_widths(transformers.LlamaForCausalLM(config), {"input_ids": IDS}).eval()
    smallest = net.space.encode({"model.layers.0.kept": False, **_llama_width(net)})
    small = net.extract(smallest).eval()
    assert small.config.num_hidden_layers == 1
    net.use(smallest)
    with torch.no_grad():
        assert_close(small(IDS).logits, net(IDS).logits)


def _llama_width(net):
    (name,) = [n for n in net.space.names if n.startswith("model.layers.1.mlp")]
    return {"model.layers.1.kept": True, name: 12}
