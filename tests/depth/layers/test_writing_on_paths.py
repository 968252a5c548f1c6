import math

import pytest
import torch
from torch.testing import assert_close

from pointsman.depth.decoder import Decoder
from pointsman.depth.layers.execute import run_paths
from pointsman.depth.layers.network import SkipNetwork, likelihood
from pointsman.depth.layers.routers import FirstStateRouters, WindowRouters
from pointsman.depth.layers.writing import write_on_paths
from pointsman.depth.trunks.build import trunk_of
from pointsman.errors import InputError


def scattered(routers):
    """Routers that decide differently for different texts."""
    torch.manual_seed(4)
    for weight in routers.parameters():
        torch.nn.init.normal_(weight)
    return routers.double()


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    made = Decoder(vocabulary=11, width=8, layers=4, heads=2, context=14).double().eval()
    with torch.no_grad():
        made.embedding.weight.mul_(10)
        made.head.weight.mul_(10)
    return made


@pytest.mark.parametrize("kind", [WindowRouters, FirstStateRouters])
def test_tokens_are_those_of_the_same_path_without_a_cache(decoder, kind):
    network = SkipNetwork(decoder, scattered(kind(4, 8, hidden=6)))
    ids = torch.randint(11, (5, 6), generator=torch.Generator().manual_seed(0))
    answer = write_on_paths(network, ids, 8)
    assert len(answer.runs.unique(dim=0)) > 1
    assert {0, 2} <= set(answer.runs.flatten().tolist())
    assert torch.equal(answer.runs, network.run(ids).runs)
    text = ids
    for _ in range(8):
        logits = run_paths(decoder, text, answer.runs).output[:, -1]
        text = torch.cat([text, logits.argmax(dim=-1)[:, None]], dim=1)
    assert torch.equal(answer.output, text)


def test_at_price_minus_infinity_the_whole_decoder_writes(decoder):
    network = SkipNetwork(decoder, scattered(WindowRouters(4, 8)))
    ids = torch.randint(11, (2, 3))
    text = ids
    for _ in range(5):
        text = torch.cat([text, decoder(text)[:, -1].argmax(dim=-1)[:, None]], dim=1)
    assert torch.equal(write_on_paths(network, ids, 5, price=-math.inf).output, text)
    end = int(text[0, 4])
    ended = write_on_paths(network, ids, 5, price=-math.inf, end=end).output[0]
    assert ended[4:].tolist() == [end] * 4
    assert torch.equal(write_on_paths(network, ids, 0).output, ids)
    with pytest.raises(InputError, match="14 positions|up to 14"):
        write_on_paths(network, ids, 13)
    with pytest.raises(InputError, match="at least one token"):
        write_on_paths(network, ids[:, :0], 1)


def test_likelihood_is_that_of_the_target_and_over_places_its_geometric_mean():
    logits = torch.tensor([[[0.5, 0.5], [0.2, 0.8]]]).log()
    assert_close(likelihood(logits[0], torch.tensor([0, 1])), torch.tensor([0.5, 0.8]))
    assert_close(likelihood(logits, torch.tensor([[0, 1]])), torch.tensor([0.4**0.5]))


def tiny(name):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if name == "llama":
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=17,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=3,
                num_attention_heads=2,
                max_position_embeddings=32,
            )
        )
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=17, n_embd=16, n_layer=3, n_head=2, n_positions=32)
    )


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_decoders_of_transformers_skip_and_repeat(name):
    model = tiny(name).double().eval()
    ids = torch.randint(17, (4, 6))
    trunk = trunk_of(model, ids)
    network = SkipNetwork(trunk, scattered(WindowRouters(3, 16, hidden=6)))
    with torch.no_grad():
        plain = model(ids).logits
    assert_close(network.run(ids, -math.inf).output, plain)
    runs = torch.tensor([[1, 1, 1], [0, 1, 2], [1, 0, 1], [2, 0, 0]])
    with torch.no_grad():
        together = run_paths(trunk, ids, runs).output
        for row in range(4):
            alone = run_paths(trunk, ids[row : row + 1], runs[row : row + 1]).output
            assert_close(together[row : row + 1], alone)
    assert_close(together[:1], plain[:1])
    costs = network.layer_costs(ids[:1])
    assert len(costs.blocks.amount) == 3
    assert float(costs.deciding) > 0
    answer = write_on_paths(network, ids, 3)
    assert answer.output.shape == (4, 9)
