"""Additions to a network that nobody changes: a module's output goes through an addition before anyone sees it."""

import copy
import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

# The addition's name under the module that it follows: the main network's own keys stay as they were.
NAME = "knob"


def copy_plain(method: str, network: nn.Module) -> nn.Module:
    """A copy to work on.

    Raises:
        TypeError: `network` is not a module.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"{method}: network must be an nn.Module; got {type(network).__name__}")
    return copy.deepcopy(network)


def find(method: str, network: nn.Module, after: Sequence[str] | None, kind: type[nn.Module]) -> dict[str, nn.Module]:
    """The modules that the patterns name, or all of a kind for None, by name.

    Raises:
        TypeError: `after` is a string.
        ValueError: A pattern matches nothing, or there is no such module.
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
    """The channels of a module's output, as its last convolution has them.

    Raises:
        ValueError: It has none.
    """
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.ConvTranspose2d)]
    if not convolutions:
        raise ValueError(f"{method}: after must name modules with a convolution; got {name!r} without one")
    return convolutions[-1].out_channels


def insert(module: nn.Module, addition: nn.Module, call: Callable[..., Any]) -> None:
    """Makes `module` return ``call(addition, input, output)``; the addition is its child `knob`."""
    module.add_module(NAME, addition)
    module.register_forward_hook(call)


def on_output(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """The addition of `module` on its output."""
    return module.get_submodule(NAME)(output)


def beside(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """The addition of `module` on its input and output."""
    return module.get_submodule(NAME)(inputs[0], output)
