"""A subnet as a program for other runtimes, checked for equal outputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pointsman.errors import InputError, reason
from pointsman.modules import evaluating
from pointsman.supernet.channels import call_with

RELATIVE, ABSOLUTE = 1e-3, 1e-4  # differences that kernels may make


def export_program(subnet: nn.Module, example: Any, file: str | Path) -> float:
    """Write a `torch.export` program (.pt2), load it again, and compare its outputs.

    Args:
        subnet: an ordinary module, as `extract` gives; in evaluation mode meanwhile.
        example: inputs of one call, as for `make_elastic`, of the sizes that inputs will have. The
            first dimension of every tensor may differ later where the network allows it; for that
            the example has two rows at least.
        file: to write to.

    Returns:
        The largest difference of an output from the module's.

    Raises:
        InputError: torch cannot export the module, or the program's outputs differ from its own.
    """
    with evaluating(subnet), torch.no_grad():
        program = _exported(subnet, example)
        torch.export.save(program, file)
        found = torch.export.load(file).module()(*_named(example).values())
        return _difference(subnet, example, found, str(file))


def export_onnx(subnet: nn.Module, example: Any, file: str | Path) -> float:
    """Write an ONNX file, run it by onnxruntime on the CPU, and compare its outputs.

    Args:
        subnet: as for `export_program`.
        example: likewise.
        file: to write to.

    Returns:
        The largest difference of an output from the module's.

    Raises:
        InputError: onnx, onnxscript or onnxruntime is missing, torch cannot export the module, or
            the outputs differ.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter needs it, and says so less clearly
    except ImportError as error:
        raise InputError(
            f"ONNX files need {error.name}: pip install onnx onnxscript onnxruntime"
        ) from error
    with evaluating(subnet), torch.no_grad():
        program = _exported(subnet, example)
        try:
            torch.onnx.export(program, (), str(file), dynamo=True, verbose=False)
        except Exception as error:  # of many kinds
            raise InputError(f"torch cannot write this module as ONNX ({reason(error)})") from error
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        inputs = (x for x in _named(example).values() if isinstance(x, Tensor))
        feed = {at.name: x.numpy() for at, x in zip(session.get_inputs(), inputs, strict=True)}
        found = [torch.from_numpy(x) for x in session.run(None, feed)]
        return _difference(subnet, example, found, str(file))


class _Outputs(nn.Module):
    """The module with its inputs in order and the tensors among its outputs as a tuple."""

    def __init__(self, module: nn.Module, example: Any) -> None:
        super().__init__()
        self.module = module
        self.names = list(example) if isinstance(example, Mapping) else None

    def forward(self, *inputs: Any) -> tuple[Tensor, ...]:
        if self.names is None:
            return _tensors(self.module(*inputs))
        return _tensors(self.module(**dict(zip(self.names, inputs, strict=True))))


def _named(example: Any) -> dict[str, Any]:
    if isinstance(example, Mapping):
        return dict(example)
    values = example if isinstance(example, tuple | list) else (example,)
    return {str(at): value for at, value in enumerate(values)}


def _tensors(output: Any) -> tuple[Tensor, ...]:
    if isinstance(output, Tensor):
        return (output,)
    values = output.values() if isinstance(output, Mapping) else output
    return tuple(value for value in values if isinstance(value, Tensor))


def _exported(subnet: nn.Module, example: Any) -> Any:
    inputs = tuple(_named(example).values())
    any_rows = {0: torch.export.Dim.AUTO}
    shapes = tuple(any_rows if isinstance(x, Tensor) and x.ndim else None for x in inputs)
    try:
        module = _Outputs(subnet, example)
        return torch.export.export(module, inputs, dynamic_shapes=(shapes,))
    except Exception as error:  # of many kinds
        raise InputError(
            f"torch cannot export {type(subnet).__name__} ({reason(error)}): see torch.export's "
            "limits"
        ) from error


def _difference(subnet: nn.Module, example: Any, found: Any, file: str) -> float:
    wanted = _tensors(call_with(subnet, example))
    most = 0.0
    for one, other in zip(_tensors(found), wanted, strict=True):
        if one.shape != other.shape or not torch.allclose(one, other, RELATIVE, ABSOLUTE):
            raise InputError(
                f"a program gives the outputs of its module, {file} gives others: do not use it"
            )
        most = max(most, float((one - other).abs().max())) if one.numel() else most
    return most
