"""Convolutional experts: E kernels with stacked weights, for rows that are images.

Legend: N routed images sorted by expert, E experts, C channels, O channels of the answers, H and W
their height and width, K side of the kernel.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from pointsman.errors import InputError
from pointsman.moe.experts.linear import check_rows, check_sizes


class ConvolutionExperts(nn.Module):
    """E convolutions with stacked weights, each on its own images; for `MoE(..., input_dims=3)`.

    Args:
        num_experts: E, at least one.
        channels_in: C.
        channels_out: O; None means C.
        kernel: K, the side of the square kernel.
        stride: of the kernel.
        padding: zeros around the image; None keeps the size where the kernel is odd and the stride
            is 1.
        groups: into which the channels are split.
        bias: whether each expert has a bias.

    Attributes:
        weight_EOCKK: (E, O, C / groups, K, K) parameter, drawn like that of an `nn.Conv2d`.
        bias_EO: (E, O) parameter, None without bias.

    Raises:
        InputError: a size below one; in `forward`, images that do not fit.
    """

    def __init__(
        self,
        num_experts: int,
        channels_in: int,
        channels_out: int | None = None,
        kernel: int = 3,
        *,
        stride: int = 1,
        padding: int | None = None,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        out = channels_in if channels_out is None else channels_out
        sizes = {"channels_in": channels_in, "channels_out": out, "kernel": kernel}
        check_sizes("ConvolutionExperts", num_experts=num_experts, stride=stride, **sizes)
        check_sizes("ConvolutionExperts", groups=groups)
        if channels_in % groups or out % groups:
            raise InputError(
                "ConvolutionExperts needs groups that divide the channels, "
                f"got {groups} for {channels_in} and {out}"
            )
        self.num_experts, self.channels_in, self.groups = num_experts, channels_in, groups
        self.stride, self.padding = stride, kernel // 2 if padding is None else padding
        shape = (num_experts, out, channels_in // groups, kernel, kernel)
        bound = (shape[2] * kernel * kernel) ** -0.5
        self.weight_EOCKK = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        drawn = torch.empty(num_experts, out).uniform_(-bound, bound) if bias else None
        self.bias_EO = None if drawn is None else nn.Parameter(drawn)

    def forward(self, rows_NCHW: Tensor, offsets: Tensor) -> Tensor:
        """Images sorted by expert → (N, O, H', W'); expert e owns offsets[e] to offsets[e + 1]."""
        weight = self.weight_EOCKK
        check_rows("ConvolutionExperts", rows_NCHW, self.channels_in, weight, dims=4)
        # unbind once: indexing the stack for each expert would make its backward build a zero
        # tensor of the whole stack every time.
        weights = weight.unbind(0)
        biases = [None] * self.num_experts if self.bias_EO is None else self.bias_EO.unbind(0)
        pieces = torch.split(rows_NCHW, torch.diff(offsets).tolist())
        used = [at for at, images in enumerate(pieces) if len(images)] or [0]
        answers = [
            conv2d(pieces[at], weights[at], biases[at], self.stride, self.padding, 1, self.groups)
            for at in used
        ]
        return torch.cat(answers)
