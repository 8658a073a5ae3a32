"""Add modules to a network without changing its code: a forward hook passes a module's output through the addition."""

import copy
import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

# The addition becomes a child of this name of the module that it follows, so the network's own keys do not change.
NAME = "knob"


def check_network(method: str, network: nn.Module) -> None:
    """Refuse what is not a module.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"{method}: network must be an nn.Module; got {type(network).__name__}")


def copy_plain(method: str, network: nn.Module) -> nn.Module:
    """Return a copy of the network to work on.

    Raises:
        TypeError: `network` is not a module.
    """
    check_network(method, network)
    return copy.deepcopy(network)


def find(method: str, network: nn.Module, after: Sequence[str] | None, kind: type[nn.Module]) -> dict[str, nn.Module]:
    """Find the modules that match the patterns or, if `after` is None, all of a kind; return them by name.

    Raises:
        TypeError: `after` is a string.
        ValueError: A pattern matches nothing, or the network has no module of that kind.
    """
    modules = {name: module for name, module in network.named_modules() if name}
    if after is None:
        found = {name: module for name, module in modules.items() if isinstance(module, kind)}
        if not found:
            raise ValueError(f"{method}: network must have a {kind.__name__}; got {type(network).__name__}")
        return found
    if isinstance(after, str):
        raise TypeError(f"{method}: after must be a sequence of patterns; got the string {after!r}")
    for pattern in after:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in modules):
            some = ", ".join(list(modules)[:8])
            raise ValueError(f"{method}: after must match a module; got {pattern!r}; there are {some}, ...")
    return {
        name: module for name, module in modules.items() if any(fnmatch.fnmatchcase(name, pattern) for pattern in after)
    }


def out_channels(method: str, name: str, module: nn.Module) -> int:
    """Return the number of channels of a module's output: that of its last convolution.

    Raises:
        ValueError: The module has no convolution.
    """
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)]
    if not convolutions:
        raise ValueError(f"{method}: after must name modules with a convolution; got {name!r} without one")
    return convolutions[-1].out_channels


def add(module: nn.Module, addition: nn.Module, hook: Callable[..., Any]) -> None:
    """Add `addition` as the child `knob` of `module`, and let a forward hook change the module's output with it."""
    module.add_module(NAME, addition)
    module.register_forward_hook(hook)


def on_output(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """Pass the output of `module` through its addition."""
    return module.get_submodule(NAME)(output)


def on_input_and_output(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """Pass the input and the output of `module` to its addition."""
    return module.get_submodule(NAME)(inputs[0], output)
