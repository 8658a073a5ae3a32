"""Training: a configuration, pictures, degradations, objectives under lambda, and a loop that resumes exactly.

    config = load_config("demo", ["optim.steps=200"])
    outcome = train(config, "runs/mine")

Needs the extra ``[train]``.
"""

from tunable_ops.train.config import Config, load_config, packaged_configs
from tunable_ops.train.trainer import MODEL, STATE, Outcome, train

__all__ = ["MODEL", "STATE", "Config", "Outcome", "load_config", "packaged_configs", "train"]
