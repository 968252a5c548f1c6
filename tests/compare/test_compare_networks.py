"""The networks that compare trains: built from plain data, each with its answers."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pointsman.compare.data import Dataset, Part
from pointsman.compare.networks import images, nested, skips
from pointsman.compare.networks.build import (
    Spec,
    build,
    channels_last,
    example_of,
    loss_of,
    stages_of,
    training_flops,
)
from pointsman.compare.networks.task import Task, shift_and_flip, task_for
from pointsman.cost import count_flops
from pointsman.depth.layers.network import SkipNetwork
from pointsman.errors import PolicyError
from pointsman.run import run_staged
from pointsman.supernet.supernet import Supernet


def with_subnets(spec: Spec) -> Spec:
    """The description once the subnets of an elastic network are known."""
    module = build(spec)
    if not isinstance(module, Supernet):
        return spec
    taken = [nested.sizes(module.space, genotype) for genotype in nested.even(module.space)]
    return {**spec, "subnets": taken}


def dataset(kind: str, *shape: int) -> Dataset:
    dtype = np.float32 if kind == "features" else np.uint8
    part = Part(np.zeros((200, *shape), dtype), np.arange(200) % 3)
    return Dataset("d", kind, {"train": part}, ("a", "b", "c"))  # type: ignore[arg-type]


TASKS = {
    "features": task_for(dataset("features", 6), 200),
    "two features": task_for(dataset("features", 2), 200),
    "images 32": task_for(dataset("images", 32, 32, 3), 200),
    "images 8": task_for(dataset("images", 8, 8, 1), 200),
    "images 4": task_for(dataset("images", 4, 4, 1), 200),
    "images 1": task_for(dataset("images", 1, 1, 4), 200),
    "images 2x30": task_for(dataset("images", 2, 30, 3), 200),
    "text": task_for(dataset("text", 17), 200),
}
SPECS = [
    pytest.param(spec, id=f"{kind}: {spec.get('name', spec['form'])}")
    for kind, task in TASKS.items()
    for spec in (*task.ladder[:2], *task.networks.values())
]


@pytest.mark.parametrize("spec", SPECS)
def test_a_network_is_plain_data_and_answers_in_every_stage(spec: Any) -> None:
    spec = with_subnets(spec)
    assert json.loads(json.dumps(spec)) == spec
    torch.manual_seed(0)
    module = channels_last(build(json.loads(json.dumps(spec)))).eval()
    stages = stages_of(spec, module)
    names = [name for name, _ in stages]
    assert len(set(names)) == len(names)
    state = example_of(spec, rows=5)
    with torch.no_grad():
        for _, stage in stages:
            state = stage.advance(state) if stage.advance is not None else state
            logits = stage.answer(state)
            expected = (5, 16, 256) if spec["kind"] == "text" else (5, 3)
            assert logits.shape == expected
            assert logits.isfinite().all()


@pytest.mark.parametrize("spec", SPECS)
def test_every_part_of_a_network_is_trained(spec: Any) -> None:
    torch.manual_seed(0)
    module = build(spec).train()
    x = example_of(spec, rows=24)
    x = torch.randint(0, 255, x.shape, dtype=torch.uint8) if spec["kind"] == "text" else x
    x = x if spec["kind"] == "text" else torch.randn(x.shape)
    y = torch.randint(0, 3, (24, 16) if spec["kind"] == "text" else (24,))
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):  # several widths and numbers of experts are drawn
        loss_of(spec, module, x, y, generator).backward()
    for name, parameter in module.named_parameters():
        if name.startswith("routers."):  # of a skip network, learned once it is trained
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("kind", ["features", "images", "text"])
def test_routers_learn_and_the_network_stays(kind: str) -> None:
    torch.manual_seed(0)
    small = {"width": 16, "inner": 8, "blocks": 2, "context": 16}
    spec = {**TASKS[{"images": "images 8"}.get(kind, kind)].networks["skips"], **small}
    module = build(spec).train()
    assert isinstance(module, SkipNetwork)
    x = example_of(spec, rows=24)
    x = (
        torch.randint(0, 255, x.shape, dtype=torch.uint8)
        if kind == "text"
        else torch.randn(x.shape)
    )
    y = torch.randint(0, 3, (24, 16) if kind == "text" else (24,))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    skips.learn_routers(module, x, y, kind=spec["kind"], seed=0)
    changed = {name for name, value in module.state_dict().items() if not value.equal(before[name])}
    assert changed == {name for name, _ in module.named_parameters() if name.startswith("routers.")}


def test_rows_for_the_routers_are_kept_from_the_network() -> None:
    learned, kept = skips.held_back(1000, seed=3)
    assert sorted([*learned.tolist(), *kept.tolist()]) == list(range(1000))
    assert len(kept) == 150
    assert len(skips.held_back(1_000_000, seed=0)[1]) == skips.ROUTER_ROWS


@torch.no_grad()
def test_what_a_skip_network_spends_follows_the_blocks_that_ran() -> None:
    spec = TASKS["features"].networks["skips"]
    torch.manual_seed(0)
    module = build(spec).eval()
    x = torch.randn(200, spec["inputs"])
    for name, stage in stages_of(spec, module):
        logits, spent = stage.answer.spend(x)
        torch.testing.assert_close(logits, stage.answer(x), rtol=0, atol=0)
        counted = float(count_flops(stage.answer, x)) / len(x)
        assert float(spent.mean()) == pytest.approx(counted, rel=1e-6), name


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_ladder_climbs_in_cost(task: Task) -> None:
    flops = [training_flops(spec) for spec in task.ladder]
    assert flops == sorted(flops)
    assert len(set(flops)) == len(flops)
    assert task.epochs >= 1


def test_routed_networks_spend_more_with_more_experts() -> None:
    from pointsman.compare.ways import stage_costs

    for kind in ("features", "images 8", "text"):
        for form in ("moe", "nested", "fine-moe", "relu-moe"):
            if form not in TASKS[kind].networks:
                continue
            spec = with_subnets(TASKS[kind].networks[form])
            module = build(spec).eval()
            stages = [stage for _, stage in stages_of(spec, module)]
            costs = stage_costs(stages, example_of(spec, rows=8), "MFLOPs").answer.amount
            assert (np.diff(np.asarray(costs)) > 0).all()


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"kind": "features"},
        {"kind": "features", "form": "dense", "inputs": 3},
        {"kind": "text", "form": "exits"},
        {"kind": "features", "form": "dense", "inputs": "3", "classes": 2, "hidden": [3]},
    ],
)
def test_a_description_of_no_network_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=r"no network is known by the description"):
        build(spec)


@pytest.mark.parametrize(("side", "halvings"), [(1, 0), (4, 0), (6, 0), (8, 1), (16, 2), (32, 3)])
def test_images_are_halved_until_they_are_small(side: int, halvings: int) -> None:
    assert images.stages(side) == halvings
    assert images.stages(10_000) == 4


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 30), (8, 8), (32, 32), (40, 3)])
def test_augmented_images_are_shifted_and_mirrored(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.arange(64.0)[:, None, None, None] + torch.rand(64, 2, *size)
    x = x.contiguous(memory_format=torch.channels_last)
    found = shift_and_flip(x, generator)
    assert found.shape == x.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.flatten(1).min(1).values.floor(), torch.arange(64.0))


def test_half_of_the_images_are_mirrored() -> None:
    x = torch.arange(8.0).expand(1_000, 1, 8, 8).contiguous()
    found = shift_and_flip(x, torch.Generator().manual_seed(0))
    rising = (found[:, 0, 4, 5] > found[:, 0, 4, 3]).float().mean()
    assert 0.44 < float(rising) < 0.56


def test_a_position_of_text_sees_only_what_came_before() -> None:
    for spec in (TASKS["text"].ladder[0], *TASKS["text"].networks.values()):
        spec = with_subnets(spec)
        module = build(spec).eval()
        x = torch.randint(0, 255, (3, 16), dtype=torch.uint8)
        changed = x.clone()
        changed[:, 9] += 1
        with torch.no_grad():
            before, after = (first_answer(spec, module, ids) for ids in (x, changed))
        torch.testing.assert_close(before[:, :9], after[:, :9])
        assert not torch.allclose(before[:, 9:], after[:, 9:])


def first_answer(spec: Spec, module: nn.Module, ids: Tensor) -> Tensor:
    stage = stages_of(spec, module)[0][1]
    state = ids if stage.advance is None else stage.advance(ids)
    return torch.log_softmax(stage.answer(state), dim=-1)


def test_exits_of_an_image_network_run_lazily() -> None:
    spec = TASKS["images 32"].networks["exits"]
    module = build(spec).eval()
    stages = [stage for _, stage in stages_of(spec, module)]
    x = torch.randn(20, 3, 32, 32)
    with torch.no_grad():
        early, late = (run_staged(stages, x, limit) for limit in (0.0, 2.0))
    assert early.stage.tolist() == [0] * 20
    assert late.stage.tolist() == [len(stages) - 1] * 20


def test_channels_last_changes_no_value(tmp_path: Path) -> None:
    spec = TASKS["images 8"].ladder[0]
    torch.manual_seed(0)
    one = build(spec).eval()
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        before = one(x)
        after = channels_last(one)(x)
    torch.testing.assert_close(before, after)


def test_fine_experts_are_balanced_by_a_bias_that_training_moves_and_no_answer_does() -> None:
    spec = TASKS["text"].networks["fine-moe"]
    torch.manual_seed(0)
    module = build(spec).train()
    x = torch.randint(0, 255, (24, 16), dtype=torch.uint8)
    biases = [block.feed_forward.select.bias for block in module.blocks]  # type: ignore[union-attr]
    with torch.no_grad():
        module(x, k=2)
    assert not any(bias.any() for bias in biases)
    loss_of(spec, module, x, x.long(), torch.Generator().manual_seed(0))
    assert all(bias.any() for bias in biases)


def test_the_knob_of_a_routed_network_picks_more_or_fewer_of_the_same_experts() -> None:
    x = torch.randint(0, 255, (4, 16), dtype=torch.uint8)
    for form, names in (
        ("fine-moe", ["2 experts", "6 experts", "14 experts"]),
        ("relu-moe", ["best score only", "scores from 50% of the best", "every positive score"]),
    ):
        spec = TASKS["text"].networks[form]
        torch.manual_seed(0)
        module = build(spec).eval()
        assert [name for name, _ in stages_of(spec, module)] == names
        with torch.no_grad():
            masks = [module(x, k=k)[1][0].route.mask() for k in spec["used"]]
        for few, many in pairwise(masks):
            assert (few <= many).all()
            assert few.sum() < many.sum()
