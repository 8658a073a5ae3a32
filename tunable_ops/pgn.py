"""Former place of `tunable_ops.losses.pgn`."""

raise ImportError("tunable_ops.pgn is now tunable_ops.losses.pgn: from tunable_ops.losses import PGN")
