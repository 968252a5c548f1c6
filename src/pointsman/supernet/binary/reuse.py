"""A binary layer that computes its outputs along a tree: the readable form of what hardware does.

On a processor with matrix products this is slower than the product; what it saves are operations on
single bits, which is what such networks are built into hardware for.

Legend: T inputs, O outputs, N positions, L places of a filter.
"""

from torch import Tensor, nn
from torch.nn import functional

from pointsman.supernet.binary.layers import Binary, sign
from pointsman.supernet.binary.spanning_tree import SpanningTree, spanning_tree


class Reused(nn.Module):
    """Products with weights of +1 and -1, each output computed from its parent in the tree.

    Only the root's weights and, for each other output, the positions where it differs from its
    parent are kept, with their signs.

    Args:
        signs_ON: of +1 and -1.
        tree: None: the minimum spanning tree.
    """

    root: Tensor

    def __init__(self, signs_ON: Tensor, tree: SpanningTree | None = None) -> None:
        super().__init__()
        signs_ON = signs_ON.detach()
        self.tree = tree or spanning_tree(signs_ON)
        self.outputs = len(signs_ON)
        self.register_buffer("root", signs_ON[self.tree.order[0]].clone())
        self.levels = 1 + self.tree.depth
        for level in range(1, self.levels):
            children = (self.tree.level == level).nonzero().flatten()
            parents = self.tree.parent[children]
            which, positions = (signs_ON[children] != signs_ON[parents]).nonzero(as_tuple=True)
            for name, value in (
                ("children", children),
                ("parents", parents),
                ("which", which),
                ("positions", positions),
                ("signs", signs_ON[children][which, positions]),
            ):
                self.register_buffer(f"{name}_{level}", value)

    def forward(self, x_TN: Tensor) -> Tensor:
        """(T, N) -> (T, O), what `x_TN @ signs_ON.T` gives."""
        y_TO = x_TN.new_zeros(len(x_TN), self.outputs)
        y_TO[:, self.tree.order[0]] = x_TN @ self.root.to(x_TN)
        for level in range(1, self.levels):
            children, parents, which, positions, signs = (
                self.get_buffer(f"{name}_{level}")
                for name in ("children", "parents", "which", "positions", "signs")
            )
            change = x_TN.new_zeros(len(x_TN), len(children))
            change.index_add_(1, which, x_TN[:, positions] * signs.to(x_TN))
            y_TO[:, children] = y_TO[:, parents] + 2 * change
        return y_TO


def reuse(layer: Binary) -> nn.Module:
    """A binary layer whose outputs are computed along their tree; the same outputs."""
    return _ReusedLayer(layer)


class _ReusedLayer(nn.Module):
    def __init__(self, layer: Binary) -> None:
        super().__init__()
        self.products = Reused(layer.signs)
        self.inputs = layer.inputs
        self.register_buffer("scale", layer.scale.clone())
        convolution = isinstance(layer.layer, nn.Conv2d)
        self.window = (
            {n: getattr(layer.layer, n) for n in ("kernel_size", "dilation", "padding", "stride")}
            if convolution
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives."""
        x = sign(x) if self.inputs else x
        scale = self.get_buffer("scale")
        if self.window is None:
            summed: Tensor = self.products(x.reshape(-1, x.shape[-1]))
            return (summed * scale).reshape(*x.shape[:-1], -1)
        patches_TNL = functional.unfold(x, **self.window)
        batch, _, places = patches_TNL.shape
        summed = self.products(patches_TNL.transpose(1, 2).flatten(0, 1)) * scale
        height = _places(x.shape[-2], 0, self.window)
        side_by_side = summed.reshape(batch, places, -1).transpose(1, 2)
        return side_by_side.reshape(batch, -1, height, places // height)


def _places(size: int, side: int, window: dict[str, tuple[int, ...]]) -> int:
    reach = window["dilation"][side] * (window["kernel_size"][side] - 1) + 1
    return (size + 2 * window["padding"][side] - reach) // window["stride"][side] + 1
