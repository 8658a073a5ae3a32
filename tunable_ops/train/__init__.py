"""Training: a configuration, pictures, a task, and a loop that resumes exactly.

    config = load_config("demo", ["optim.steps=200"])
    outcome = train(config, "runs/mine")

Two tasks: restoration networks under a multi-loss (`Config`), and perceptual gradient networks (`PGNConfig`). Needs
the extra ``[train]``.
"""

from tunable_ops.train.config import Config, PGNConfig, load_config, packaged_configs
from tunable_ops.train.trainer import MODEL, STATE, Outcome, train

__all__ = ["MODEL", "STATE", "Config", "Outcome", "PGNConfig", "load_config", "packaged_configs", "train"]
