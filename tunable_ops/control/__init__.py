"""Other methods for a network with a knob, with the same ``net(x, lam)``.

DNI, AdaFM, Dynamic-Net and CFSNet start from a plain network and train in phases, one objective after another; points
in between are never trained. Their lambda is on the simplex: (1, 0, ...) is the main network, lambda_k the coefficient
of objective k. FiLM, planes of lambda, CResMD and low-rank kernels are trained at all lambda under the multi-loss, as
tunable convolutions are, on the simplex or the box.
"""

from tunable_ops.control.attach import METHODS, PHASED, attach
from tunable_ops.control.phased import PhasedModel

__all__ = ["METHODS", "PHASED", "PhasedModel", "attach"]
