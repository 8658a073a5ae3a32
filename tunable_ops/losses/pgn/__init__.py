"""Perceptual gradient networks: the gradient of a perceptual loss from a small network (Nikulin et al., 2021).

pgn = PGN.pretrained()
g = pgn.gradient(x, y)                            # the field per sample, no pass through VGG
objective = losses.PerceptualGradient(pgn)        # as an objective of losses.MultiLoss

`tunable_ops.train` trains one (its task "perceptual_gradient").
"""

from tunable_ops.losses.pgn.network import PGN

__all__ = ["PGN"]
