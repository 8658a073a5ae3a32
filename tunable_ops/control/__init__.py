"""Other methods for a network with a knob, with the same ``net(x, lam)``: DNI, AdaFM, Dynamic-Net, CFSNet.

Each starts from a plain network and trains in phases, one objective after another; points in between are never trained.
lambda is on the simplex: (1, 0, ...) is the main network, lambda_k the coefficient of objective k.
"""

from tunable_ops.control.attach import METHODS, attach
from tunable_ops.control.phased import PhasedModel

__all__ = ["METHODS", "PhasedModel", "attach"]
