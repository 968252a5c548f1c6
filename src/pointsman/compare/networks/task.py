"""What compare trains on each kind of data: the ladder, one network a way, and the recipe."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pointsman.compare.data import Dataset
from pointsman.compare.metric import ACCURACY, BITS_PER_BYTE, Metric
from pointsman.compare.networks import features, images, skips, text
from pointsman.compare.networks.build import Spec
from pointsman.compare.training import Recipe


@dataclass(frozen=True)
class Task:
    """All that depends on the kind of data."""

    metric: Metric
    recipe: Recipe
    epochs: int
    ladder: tuple[Spec, ...]
    networks: dict[str, Spec]  # by way: exits, nested, moe, ...
    threads: int


def task_for(data: Dataset, train_rows: int) -> Task:
    """The task that suits a data set."""
    make = {"features": _features, "images": _images, "text": _text}[data.kind]
    return make(data, train_rows)


def _features(data: Dataset, rows: int) -> Task:
    base = {"kind": "features", "inputs": data.example_shape()[0], "classes": len(data.classes)}
    small = rows < 20_000
    recipe = Recipe(batch=64 if small else 512, rate=4e-3, weight_decay=0.02)
    return Task(
        ACCURACY,
        recipe,
        # About 2 million examples seen; small sets 100 times, large ones at least 4 times.
        epochs=max(4, min(100, 2_000_000 // rows)),
        ladder=tuple(
            {**base, "form": "dense", "name": "mlp " + "-".join(map(str, hidden)), "hidden": hidden}
            for hidden in map(list, features.LADDER)
        ),
        networks={
            "exits": {**base, "form": "exits", "hidden": list(features.EXIT_SIZES)},
            "skips": {
                **base,
                "form": "skips",
                "width": skips.FEATURE_SIZE[0],
                "inner": skips.FEATURE_SIZE[1],
                "blocks": skips.FEATURE_BLOCKS,
            },
            "nested": {
                **base,
                "form": "nested",
                "hidden": list(features.NESTED_SIZES),
                "widths": list(features.WIDTHS),
            },
            "moe": {
                **base,
                "form": "routed",
                "width": 48,
                "hidden": 48,
                "experts": 16,
                "used": list(features.EXPERTS_USED),
            },
        },
        threads=1,  # such small products are slower on several
    )


def _images(data: Dataset, rows: int) -> Task:
    high, wide, channels = data.example_shape()
    base: dict[str, Any] = {
        "kind": "images",
        "channels": channels,
        "side": [high, wide],
        "classes": len(data.classes),
    }
    recipe = Recipe(batch=128, rate=1e-2, weight_decay=0.05, augment=shift_and_flip)
    return Task(
        ACCURACY,
        recipe,
        epochs=max(3, min(60, 180_000 // rows)),
        ladder=tuple(
            {**base, "form": "dense", "name": f"convnet {width}", "width": width}
            for width in images.LADDER
        ),
        networks={
            "exits": {**base, "form": "exits", "width": images.EXIT_SIZE},
            "skips": {
                **base,
                "form": "skips",
                "width": skips.IMAGE_SIZE,
                "blocks": skips.IMAGE_BLOCKS,
            },
            "nested": {
                **base,
                "form": "nested",
                "width": images.NESTED_SIZE,
                "widths": list(images.WIDTHS),
            },
            "moe": {
                **base,
                "form": "routed",
                "width": images.ROUTED_SIZE,
                "experts": 16,
                "used": list(images.EXPERTS_USED),
            },
        },
        threads=0,
    )


def _text(data: Dataset, rows: int) -> Task:
    base = {"kind": "text", "context": data.example_shape()[0] - 1}
    width, layers = text.NESTED_SIZE
    routed_width, routed_layers = text.ROUTED_SIZE
    return Task(
        BITS_PER_BYTE,
        Recipe(batch=32, rate=4e-3, weight_decay=0.05),
        epochs=max(1, min(8, 20_000 // rows)),
        ladder=tuple(
            {**base, "form": "dense", "name": f"transformer {w}x{n}", "width": w, "layers": n}
            for w, n in text.LADDER
        ),
        networks={
            "exits": {**base, "form": "exits", "width": width, "layers": layers},
            "skips": {**base, "form": "skips", "width": width, "blocks": layers},
            "nested": {
                **base,
                "form": "nested",
                "width": width,
                "layers": layers,
                "widths": list(text.WIDTHS),
            },
            "moe": {
                **base,
                "form": "routed",
                "width": routed_width,
                "layers": routed_layers,
                "experts": 8,
                "used": list(text.EXPERTS_USED),
            },
            "fine-moe": {
                **base,
                "form": "fine",
                "width": routed_width,
                "layers": routed_layers,
                "experts": text.FINE_EXPERTS,
                "used": list(text.FINE_USED),
            },
            "relu-moe": {
                **base,
                "form": "relu",
                "width": routed_width,
                "layers": routed_layers,
                "experts": text.FINE_EXPERTS,
                "used": list(text.RELU_SHARES),
            },
        },
        threads=0,
    )


def shift_and_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random mirror image of each input, and one random shift of the batch by up to 1/10."""
    most = min(x.shape[-2:]) - 1  # reflection cannot reach further
    reach = min(max(1, x.shape[-1] // 10), most)
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    down, right = (int(v) for v in torch.randint(0, 2 * reach + 1, (2,), generator=generator))
    padded = functional.pad(x, (reach,) * 4, mode="reflect")
    shifted = padded[..., down : down + x.shape[2], right : right + x.shape[3]]
    return shifted.contiguous(memory_format=torch.channels_last)
