"""The network of a command: what its options name."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunable_ops.restorer import Restorer

__all__ = ["load_restorer", "sets_grey"]


def load_restorer(args: argparse.Namespace, device: Any) -> Restorer:
    """Load the network of --model, --knob and --network.

    Raises:
        ValueError: It is none for pictures, or it is a plain one and --lam or --sweep is given.
    """
    from tunable_ops.cli import lam as lambdas
    from tunable_ops.cli.network import build_network
    from tunable_ops.restorer import channels_of, load, make_restorer

    net, spec, fixed = load(args.model, args.knob, build_network(args.network, args.model, args.knob))
    if fixed is not None and (args.lam is not None or args.sweep is not None):
        option = "--lam" if args.lam is not None else "--sweep"
        at = f", fixed at {lambdas.describe(spec, fixed)}" if fixed else ""
        raise ValueError(f"{option} must be left out for a plain network; got {args.model!r}{at}")
    if channels_of(net) not in (1, 3):
        raise ValueError(f"--model must be a network for images of 1 or 3 channels; got {channels_of(net)} channels")
    return make_restorer(net, spec, fixed, device, args.tile, args.overlap)


def sets_grey(args: argparse.Namespace, spec: Any) -> bool:
    """Return True if the command says itself what the parameter "grey" is."""
    from tunable_ops.cli.lam import sets
    from tunable_ops.grey import PARAMETER

    if args.sweep is not None and (spec.num_params == 1 or args.sweep.name == PARAMETER):
        return True
    return args.lam is not None and sets(args.lam, PARAMETER, spec)
