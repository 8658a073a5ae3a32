"""Export a tunable network as a package for a program without Python (main.cpp), with lambda as an ordinary input.

python export.py network.pt2                                              # a small untrained network
python export.py network.pt2 --checkpoint runs/demo/model.safetensors     # a trained one
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

import tunable_ops
from tunable_ops import reference
from tunable_ops.backends import unavailable_reason
from tunable_ops.models import DnCNN
from tunable_ops.reference.activation import TABLE

OP = torch.ops.tunable_ops.tunable_conv2d_cpp.default


def fresh_network() -> tunable_ops.TunableModel:
    """Return a small DnCNN with perturbed kernels, because the kernels of a fresh conversion are all equal."""
    torch.manual_seed(0)
    net = tunable_ops.convert(DnCNN(features=16, depth=4, mean=0.5), num_params=2)
    with torch.no_grad():
        for layer in net.layers:
            layer.weight.add_(0.05 * torch.randn_like(layer.weight))
    return net


def export(net: tunable_ops.TunableModel) -> ExportedProgram:
    """Return the graph of ``net(picture, lam)`` for one picture [1, 3, H, W] in channels_last and lam [p], float32.

    The C++ operator computes the layers that it supports. Other operators of tunable_ops are decomposed into PyTorch's
    own, which the package compiles.
    """
    if (reason := unavailable_reason("tunable_conv2d", "cpp")) is not None:
        raise RuntimeError(f"export: the backend 'cpp' must be available; got {reason}")
    net = net.eval().to(memory_format=torch.channels_last)
    step = getattr(net.network, "downscale", 1)
    picture = torch.rand(1, 3, 32 * step, 48 * step).contiguous(memory_format=torch.channels_last)
    rows, columns = Dim("rows", min=8, max=4096), Dim("columns", min=8, max=4096)
    shapes = ({2: step * rows, 3: step * columns}, None) if step > 1 else ({2: rows, 3: columns}, None)
    with torch.no_grad():
        program = torch.export.export(net, (picture, torch.tensor(net.spec.defaults)), dynamic_shapes=shapes)
    table = torch.export.default_decompositions()
    table[torch.ops.tunable_ops.tunable_conv2d_torch.default] = _definition
    table[torch.ops.tunable_ops.tunable_parameter_torch.default] = reference.tunable_parameter
    return program.run_decompositions(table)


def _definition(*arguments: Any) -> torch.Tensor:
    """Compute tunable_conv2d by its definition, given the arguments of the operator."""
    *tensors, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, activation = arguments
    geometry = ((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), groups)
    return reference.tunable_conv2d(*tensors, *geometry, activation=TABLE[activation].name)


def operators(program: ExportedProgram) -> Counter[str]:
    """Count the calls of each operator in the graph."""
    return Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")


def main() -> None:
    """Parse the command line and write the package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the output file, .pt2")
    parser.add_argument("--checkpoint", type=Path, help="a tunable network, .safetensors")
    args = parser.parse_args()
    if args.checkpoint:
        from tunable_ops.serialization import load

        net = load(args.checkpoint)
    else:
        net = fresh_network()
    program = export(net)
    count = operators(program)[str(OP)]
    if count == 0:
        raise RuntimeError("export: the C++ operator must support at least one layer of the network; got none")
    print(f"{count} of {len(net.layers)} tunable layers run on the C++ operator, the others on PyTorch's")
    torch._inductor.aoti_compile_and_package(program, package_path=str(args.package))
    print(args.package)


if __name__ == "__main__":
    main()
