"""Groups of transformers' networks: heads, feed-forward units and the residual stream."""

import pytest
import torch

from pointsman.supernet.channels import channel_groups, narrow

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
TOKENS = {"vocab_size": 20, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
IDS = torch.arange(6).unsqueeze(0)


def bert():
    config = transformers.BertConfig(vocab_size=20, intermediate_size=24, **SMALL)
    return transformers.BertForSequenceClassification(config), {"input_ids": IDS}, 4, 24


def vit():
    config = transformers.ViTConfig(intermediate_size=24, image_size=8, patch_size=4, **SMALL)
    return transformers.ViTForImageClassification(config), torch.rand(1, 3, 8, 8), 4, 24


def gpt2():
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=4, n_positions=8, **TOKENS)
    return transformers.GPT2LMHeadModel(config), IDS, 4, 64


def llama():
    config = transformers.LlamaConfig(
        intermediate_size=24, num_key_value_heads=2, **SMALL, **TOKENS
    )
    return transformers.LlamaForCausalLM(config), IDS, 2, 24


def opt():
    config = transformers.OPTConfig(
        ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=8, **SMALL, **TOKENS
    )
    return transformers.OPTForCausalLM(config), IDS, 4, 24


@pytest.mark.parametrize("build", [bert, vit, gpt2, llama, opt])
def test_heads_and_units_are_cut_exactly_and_the_residual_stream_at_all(build):
    torch.manual_seed(0)
    model, example, heads, units = build()
    model.eval()
    groups = channel_groups(model, example)
    exact = {group: [0, *range(2, group.size, 2)] for group in groups if group.exact}
    sizes = [group.size for group in exact]
    assert heads in sizes
    assert units in sizes
    narrow(model, {group: kept[: group.size // 2] for group, kept in exact.items()}, example)
    stream = next(group for group in groups if not group.exact)
    assert stream.size == 16
    narrow(model, {stream: range(12)}, example)
