"""Which layers a decoder keeps, and how wide the feed-forward of each is, as one supernet.

Sarah et al., "LLaMA-NAS: Efficient Neural Architecture Search for Large Language Models" (2024,
arXiv 2405.18377): the space that is fine-tuned once as a supernet (`finetune_elastic`) and then
searched by predictor-assisted alternation without further training.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from pointsman.supernet.elastic.choices import Skip
from pointsman.supernet.elastic.widths import Width
from pointsman.supernet.language.sublayers import find_sublayers, layer_list
from pointsman.supernet.making import Importance, magnitude, make_elastic
from pointsman.supernet.supernet import Supernet


def layers_and_widths(
    model: nn.Module,
    example: Any,
    *,
    shares: Sequence[float] = (0.5, 1.0),
    keep: Sequence[int] = (),
    importance: Importance | None = magnitude,
) -> Supernet:
    """A decoder of which any layers can be left out, and any feed-forward narrowed.

    Args:
        model: pre-norm, as `find_sublayers` takes; stays as it is.
        example: inputs of one call, as for `make_elastic`.
        shares: of the hidden units that a feed-forward may keep.
        keep: numbers of the layers that always stay, such as the first and the last.
        importance: puts hidden units that matter in front; None: they stay as they are.

    Raises:
        InputError: a model whose layers cannot be left out, or whose feed-forwards cannot be
            narrowed.
    """
    name, layers = layer_list(model)
    only = [at for at in range(len(layers)) if at not in set(keep)]
    inner = [each for each in find_sublayers(model, example) if each.kind == "feed-forward"]
    # What a feed-forward is made of is named by its parts where it has no module of its own.
    widths = [Width(each.pieces[0].name, shares=shares) for each in inner]
    return make_elastic(model, example, [Skip(name, only=only), *widths], importance=importance)
