import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pointsman.errors import InputError
from pointsman.supernet.elastic import OneOf
from pointsman.supernet.supernet import Supernet
from pointsman.supernet.training import RandomBatches, UniformPaths
from pointsman.supernet.training.elastic_finetuning import (
    DistillationLoss,
    LargestFirst,
    TaughtBatches,
    finetune_elastic,
)
from pointsman.supernet.training.loop import cross_entropy, soft_cross_entropy


def network():
    torch.manual_seed(0)
    small = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3))
    return Supernet(OneOf("layer", {"small": small, "whole": nn.Linear(4, 3)}))


def batches(seed=0):
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(seed))
    return RandomBatches(x, x[:, :3].argmax(dim=1), size=32)


def logits_and_targets():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 5, 4, generator=generator), torch.arange(5) % 4


def test_each_update_begins_with_the_whole_network():
    net = network()
    begun = []
    paths = LargestFirst(UniformPaths(net.space, count=2), net.space, lambda: begun.append(1))
    for update in range(3):
        drawn = paths.draw(update / 3)
        assert len(drawn) == 3
        assert drawn[0].genotype == (1,)
    assert len(begun) == 3


def test_the_first_path_learns_the_task_and_the_others_a_mixture_of_task_and_teacher():
    (whole, small, other), y = logits_and_targets()
    loss = DistillationLoss(share=0.25)
    for _ in range(2):  # the same targets twice are two updates
        loss.begin()
        assert_close(loss(whole, y), cross_entropy(whole, y))
        for logits in (small, other):
            expected = 0.75 * cross_entropy(logits, y) + 0.25 * soft_cross_entropy(logits, whole)
            assert_close(loss(logits, y), expected)
        whole = whole + 1


def test_an_outer_teacher_takes_the_place_of_the_whole_network():
    teacher = nn.Linear(4, 3)
    taught = TaughtBatches(batches(), teacher, lambda answer: answer)
    batch = taught.draw(0.0)
    assert_close(batch.y.teacher, teacher(batch.x).detach())
    loss = DistillationLoss(share=1.0)
    loss.begin()
    outputs = torch.zeros(32, 3)
    assert_close(loss(outputs, batch.y), cross_entropy(outputs, batch.y.y))
    assert_close(loss(outputs, batch.y), soft_cross_entropy(outputs, batch.y.teacher))
    taught.learn(batch, outputs)


def test_subnets_learn_beside_the_whole_network_and_not_without():
    def right(net, genotype):
        net.use(genotype)
        x = torch.randn(400, 4, generator=torch.Generator().manual_seed(9))
        return float((net(x).argmax(dim=1) == x[:, :3].argmax(dim=1)).float().mean())

    together, plain = network(), network()
    losses = finetune_elastic(together, batches(), updates=150, rate=0.05, subnets=1)
    finetune_elastic(plain, batches(), updates=150, rate=0.05, subnets=0)
    assert len(losses) == 150
    assert losses[-1] < losses[0]
    assert not together.training
    assert right(together, (1,)) > 0.9
    assert right(plain, (1,)) > 0.9
    assert right(together, (0,)) > right(plain, (0,)) + 0.1


def test_a_teacher_is_left_as_it_was():
    teacher = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).train()
    before = [weight.clone() for weight in teacher.parameters()]
    finetune_elastic(network(), batches(), updates=3, teacher=teacher)
    assert teacher.training
    for weight, old in zip(teacher.parameters(), before, strict=True):
        assert_close(weight, old, rtol=0, atol=0)


def test_a_share_beyond_1_is_refused():
    with pytest.raises(InputError, match="share of the distillation"):
        DistillationLoss(share=1.5)
