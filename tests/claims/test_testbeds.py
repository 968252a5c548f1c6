"""The small worlds: splits that share no image, noise that is fresh, training that repeats."""

import torch
from torch.testing import assert_close

from pointsman.claims import testbeds


def test_parts_share_no_image_and_hold_them_all():
    data = testbeds.digits(3)
    parts = [data.train, data.calibration, data.test]
    assert [len(part.x) for part in parts] == [1000, 397, 400]
    seen = torch.cat([part.x for part in parts])
    from sklearn.datasets import load_digits

    whole = torch.as_tensor(load_digits().data, dtype=torch.float32) / 16
    assert_close(seen.sum(dim=1).sort().values, whole.sum(dim=1).sort().values)


def test_noise_keeps_the_split_and_repeats_what_is_held_out():
    clean, noisy = testbeds.digits(0), testbeds.digits(0, noise=0.5)
    assert torch.equal(clean.train.y, noisy.train.y)
    assert torch.equal(clean.test.y.repeat(testbeds.HELD_OUT_COPIES), noisy.test.y)
    added = noisy.test.x - clean.test.x.repeat(testbeds.HELD_OUT_COPIES, 1)
    assert_close(added.std(), torch.tensor(0.5), rtol=0, atol=0.01)
    first, second = added[:400], added[400:800]
    assert not torch.equal(first, second)


def test_the_same_seed_trains_the_same_network_and_frozen_weights_stay():
    part = testbeds.digits(0).train
    nets = [testbeds.mlp(64, 8, 10, seed=1) for _ in range(2)]
    for net in nets:
        net[0].requires_grad_(False)
        testbeds.fit(net, part, seed=2, updates=20, noise=0.1)
    assert torch.equal(nets[0][2].weight, nets[1][2].weight)
    start = testbeds.mlp(64, 8, 10, seed=1)
    assert torch.equal(nets[0][0].weight, start[0].weight)
    assert not torch.equal(nets[0][2].weight, start[2].weight)


def test_building_a_network_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    testbeds.mlp(4, 4, 2, seed=9)
    assert torch.equal(torch.rand(1), expected)


def test_training_learns():
    data = testbeds.digits(0)
    net = testbeds.mlp(64, 32, 10, seed=0)
    testbeds.fit(net, data.train, seed=0, updates=80, rate=1e-2)
    assert testbeds.accuracy(net(data.test.x), data.test.y) > 0.9
