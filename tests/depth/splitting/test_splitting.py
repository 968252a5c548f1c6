import math
import os
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from pointsman.depth.decoder import Decoder
from pointsman.depth.splitting import (
    Cut,
    Device,
    Link,
    PartnerError,
    Pipeline,
    Split,
    front,
    joined,
    measure_cuts,
    partner,
    parts_of,
    predict,
    profile,
    serve,
)
from pointsman.depth.splitting.cuts import part_mflops
from pointsman.errors import InputError

CUTS = ("input", "begin", "wide", "skip", "narrow", "output")


class Net(nn.Module):
    """A Trunk with a wide block, one whose state carries a skip, and a narrow one."""

    names = ("wide", "skip", "narrow")

    def __init__(self, fails=False):
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList([nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 2)])
        self.head = nn.Linear(2, 3)
        self.fails = fails

    def begin(self, x):
        return x * 2

    def block(self, at, state):
        if at == 0:
            return self.parts[0](state).relu()
        if at == 1:
            return {"x": self.parts[1](state).relu(), "kept": state}
        if self.fails:
            raise RuntimeError("the narrow block is broken")
        return self.parts[2](state["x"] + state["kept"])

    def features(self, state):
        return state

    def finish(self, state):
        return self.head(state)

    def forward(self, x):
        state = self.begin(x)
        for at in range(3):
            state = self.block(at, state)
        return self.finish(state)


def batch(n=4, seed=0):
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))


def test_every_cut_gives_the_answers_of_the_whole_network_in_order():
    net = Net()
    batches = [batch(seed=seed) for seed in range(12)]
    with partner(net) as address, Split(net, address, example=batch()) as split:
        for cut, name in enumerate(CUTS):
            found = list(split.stream(iter(batches), cut if cut % 2 else name))
            for x, logits in zip(batches, found, strict=True):
                assert_close(logits, net(x))
        assert_close(split.run(batch(0), "wide"), net(batch(0)))
        with pytest.raises(InputError, match="cuts are input, begin, wide, skip, narrow, output"):
            split.run(batch(), "wise")


def test_a_decoder_is_split_too():
    torch.manual_seed(0)
    net = Decoder(vocabulary=9, width=8, layers=2, heads=2, context=8).eval()
    ids = torch.randint(9, (2, 5))
    with partner(net) as address, Split(net, address, example=ids) as split, torch.no_grad():
        assert_close(split.run(ids, "blocks.0"), net(ids))


def test_measured_pipelines_of_slow_devices_on_a_slow_line_are_no_better_than_predicted():
    """Waiting makes both devices and the line slow; a busy machine can only add to that."""
    net, x = Net(), batch(64)
    link = Link(bandwidth=4e5, round_trip=0.02)
    mflops = sum(part_mflops(net, x))
    first, second = Device(mflops / 0.06), Device(mflops / 0.03)
    predicted = [predict(cut, link, 64) for cut in profile(net, x, first=first, second=second)]
    chosen = ["wide", "narrow"]
    measured = measure_cuts(
        net, x, link, cuts=chosen, first=first, second=second, batches=4, repeats=1
    )
    by_name = {p.cut: p for p in predicted}
    assert [p.cut for p in measured] == chosen
    for found in measured:
        expected = by_name[found.cut]
        assert found.latency >= 0.95 * expected.latency
        assert found.throughput <= 1.05 * expected.throughput
    assert by_name["narrow"].latency < by_name["wide"].latency, "narrow sends a 32nd of the bytes"


def test_a_partner_that_fails_says_why_and_serves_on():
    with partner(Net(fails=True)) as address:
        net = Net()
        with Split(net, address, example=batch()) as split:
            for _ in range(2):
                with pytest.raises(PartnerError, match="failed: RuntimeError: the narrow block"):
                    split.run(batch(), "wide")
            assert_close(split.run(batch(), "narrow"), net(batch()))


def test_a_partner_that_dies_is_an_error_that_says_so():
    net, found = Net(), []

    def dies(state):
        os._exit(1)

    mine = Net()
    mine.parts[2].register_forward_pre_hook(lambda *_: dies(None))
    with partner(mine) as address, Split(net, address, example=batch()) as split:
        stream = split.stream((batch() for _ in range(3)), "wide")
        with pytest.raises(PartnerError, match="went away"):
            found.extend(stream)
        with pytest.raises(PartnerError, match="went away"):
            split.run(batch(), "wide")
    assert not found
    with pytest.raises(PartnerError, match="nobody answers at"):
        Split(net, address, example=batch(), patience=2)


def test_other_weights_on_the_second_device_are_noticed():
    other = Net()
    with torch.no_grad():
        other.head.bias += 1
    address, threads = _served(other, connections=1)
    with pytest.raises(PartnerError, match="different networks or weights"):
        Split(Net(), address, example=batch())
    threads.join(10)
    assert not threads.is_alive()


def _served(net, connections):
    known, addresses = threading.Event(), []

    def ready(address):
        addresses.append(address)
        known.set()

    thread = threading.Thread(
        target=serve, args=(net,), kwargs={"connections": connections, "ready": ready}
    )
    thread.start()
    assert known.wait(10)
    return addresses[0], thread


def test_the_line_is_probed_for_its_bandwidth_and_round_trip():
    address, thread = _served(Net(), connections=1)
    with Split(Net(), address, example=batch(), link=Link(4e6, 0.05)) as split:
        found = split.probe(repeats=1)
    thread.join(10)
    assert found.round_trip >= 0.04
    assert found.bandwidth <= 6e6


def test_the_profile_counts_bytes_and_shares_out_the_parts():
    net, x = Net(), batch(16)
    cuts = profile(net, x, repeats=1)
    assert tuple(cut.name for cut in cuts) == CUTS
    sent = {cut.name: cut.sent for cut in cuts}
    about = 16 * 64 * 4
    assert about < sent["wide"] < sent["skip"] < 2 * about + 400
    assert 2 * about < sent["skip"], "what a skip connection needs is sent along"
    assert sent["output"] == 0
    firsts = [cut.first for cut in cuts[:-1]]
    assert cuts[0].second > cuts[-1].second == 0
    assert firsts[-1] > firsts[0] > 0, "packing the input is paid even with no part"
    both = profile(net, x, first=Device(1e-3), repeats=1)
    assert joined(both, cuts)[2].second == cuts[2].second
    assert joined(both, cuts)[2].first == both[2].first > 1
    with pytest.raises(InputError, match="of one network and one batch"):
        joined(cuts, profile(net, batch(8), repeats=1))


def test_the_formula_of_latency_and_throughput():
    cut = Cut("a", 2, first=0.1, second=0.3, sent=2000, returned=500)
    found = predict(cut, Link(bandwidth=1000, round_trip=0.05), inputs=8)
    assert found.latency == pytest.approx(0.1 + 2 + 0.05 + 0.3 + 0.5)
    assert found.throughput == pytest.approx(8 / 2)
    quick = predict(cut, Link(), inputs=8)
    assert (quick.latency, quick.throughput) == (pytest.approx(0.4), pytest.approx(8 / 0.3))
    alone = Cut("output", 3, first=0.5, second=0.0, sent=0, returned=0)
    assert predict(alone, Link(1, 9), 8) == Pipeline("output", 0.5, 16)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=12))
def test_the_front_is_what_no_other_beats_ties_included(pairs):
    found = front([Pipeline(str(at), late, rate) for at, (late, rate) in enumerate(pairs)])
    by_hand = {
        (late, rate)
        for late, rate in pairs
        if not any(a <= late and b >= rate and (a, b) != (late, rate) for a, b in pairs)
    }
    assert {(p.cost, p.quality) for p in found.points} == by_hand
    assert len(found.points) == len(by_hand), "of equal cuts one stays"


def test_less_bandwidth_moves_the_quickest_cut_to_smaller_states():
    cuts = [
        Cut("early", 1, 0.01, 0.2, 40_000, 100),
        Cut("middle", 2, 0.1, 0.15, 10_000, 100),
        Cut("late", 3, 0.4, 0.01, 1_000, 100),
    ]
    sent = []
    for bandwidth in (1e8, 3e5, 1e4):
        found = [predict(cut, Link(bandwidth), 8) for cut in cuts]
        best = min(found, key=lambda p: p.latency)
        sent.append(next(cut.sent for cut in cuts if cut.name == best.cut))
    assert sent == [40_000, 10_000, 1_000]


def test_what_is_no_network_and_no_device_is_refused():
    with pytest.raises(InputError, match="speed is MFLOPs per second"):
        Device(0)
    with pytest.raises(InputError, match="speed is MFLOPs per second"):
        Device(math.nan)

    class Bare:
        names = ()
        begin = block = features = finish = None

    with pytest.raises(InputError, match="a Trunk and a module, got Bare"):
        profile(Bare(), batch())
    assert parts_of(Net())[0] == CUTS


def test_an_encoder_of_transformers_is_split_between_its_layers():
    transformers = pytest.importorskip("transformers")
    from pointsman.depth.trunks import trunk_of

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
        num_labels=3,
    )
    model = transformers.BertForSequenceClassification(config).eval()
    ids = torch.randint(1, 20, (3, 6))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    net = trunk_of(model, batch)
    with partner(net) as address, Split(net, address, example=batch) as split, torch.no_grad():
        whole = model(**batch).logits
        for cut in net.names:
            assert_close(split.run(batch, cut), whole)
        assert split.measure(batch, net.names[0], batches=1, repeats=1).throughput > 0
