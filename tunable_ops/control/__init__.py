"""The other ways to get a knob, behind the same ``net(x, lam)``: DNI, AdaFM, Dynamic-Net, CFSNet.

Each starts from a plain network and is trained in phases, one objective after another; the points between are never
trained. lambda lives on the simplex: (1, 0, ...) is the main network, lambda_k the coefficient of objective k.
"""

from tunable_ops.control.attach import METHODS, attach
from tunable_ops.control.phased import PhasedModel

__all__ = ["METHODS", "PhasedModel", "attach"]
