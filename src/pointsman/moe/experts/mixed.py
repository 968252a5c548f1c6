"""Mixed experts: different widths, whole banks, any module, identity and skipping, in one dispatch.

Legend: N routed rows sorted by expert, E experts in all, D width.
"""

from collections.abc import Iterable
from itertools import accumulate

import torch
from torch import Tensor, nn

from pointsman.errors import InputError


class Identity(nn.Module):
    """An expert that gives its rows back, for no product."""

    def forward(self, rows: Tensor) -> Tensor:
        """Rows as they are."""
        return rows


class Zero(nn.Module):
    """An expert that adds nothing, so that choosing it is skipping, for no product.

    Its weight still gets the gradient of an answer of zero, which is zero.
    """

    def forward(self, rows: Tensor) -> Tensor:
        """Zeros in the shape of the rows."""
        return torch.zeros_like(rows)


class MixedExperts(nn.Module):
    """Experts of different kinds behind one router; each costs what it runs, and no more.

    Parts are put side by side: a bank (a module with `num_experts`) owns as many consecutive
    experts as it holds, any other module is one expert, called with its rows alone. Rows come
    sorted by expert, so every part owns one range of them and nothing is moved again. Parts without
    rows are not called.

    Args:
        parts: banks and modules, in the order of their experts; all must give answers of one shape.
            `Identity()` and `Zero()` are experts that cost nothing. An expert that runs on every
            token is no part: give it as `MoE(shared=)`.

    Attributes:
        num_experts: E, of all parts together.
        first: of each part, the number of its first expert.

    Raises:
        InputError: no part, or in `forward` answers of different shapes.
    """

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        if not len(self.parts):
            raise InputError("MixedExperts needs at least one part, got none")
        # None: a module that is one expert.
        self._banks: list[int | None] = [getattr(part, "num_experts", None) for part in self.parts]
        counts = [1 if count is None else count for count in self._banks]
        *self.first, self.num_experts = accumulate(counts, initial=0)

    def forward(self, rows: Tensor, offsets: Tensor) -> Tensor:
        """Rows (N, ...) sorted by expert → (N, ...); expert e owns offsets[e] to offsets[e + 1]."""
        bounds = offsets[[*self.first, self.num_experts]].tolist()
        answers = []
        for at, (part, count) in enumerate(zip(self.parts, self._banks, strict=True)):
            begin, end = bounds[at], bounds[at + 1]
            # An empty call runs one part, which knows the shape and type of the answers.
            if begin == end and (len(rows) or at):
                continue
            own, first = rows[begin:end], self.first[at]
            if count is None:
                answers.append(part(own))
            else:
                answers.append(part(own, offsets[first : first + count + 1] - begin))
        return _joined(answers)


def _joined(answers: list[Tensor]) -> Tensor:
    shapes = sorted({tuple(answer.shape[1:]) for answer in answers})
    if len(shapes) > 1:
        raise InputError(
            "all parts of MixedExperts must give answers of one shape, got "
            + " and ".join(str(shape) for shape in shapes)
        )
    return answers[0] if len(answers) == 1 else torch.cat(answers)
