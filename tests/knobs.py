"""Networks with knobs to save and load: new kernels at random, the base kept."""

import tunable_ops
from tests.modules.networks import perturb
from tunable_ops.modules.fold import base_network


def turn(base, rank=1, seed=0, names=("texture",), **options):
    """Return a conversion whose new kernels, biases and phi are random, its base and what is not tunable kept."""
    net = tunable_ops.convert(base, len(names), domain="box", rank=rank, names=list(names), **options)
    state = {name: value.clone() for name, value in base.state_dict().items()}
    perturb(net, seed)
    trained = {name: value.clone() for name, value in net.state_dict().items()}
    tunable_ops.load_plain(net, state)  # puts base and norms back, but clears the new kernels
    own = net.state_dict()
    for name, value in trained.items():
        if name.endswith(("original1", "original2")) or "tuning" in name:
            own[name].copy_(value)
        elif name in own and own[name].dim() and own[name].shape[0] == 1 + len(names) and "norm" not in name:
            own[name][1:] = value[1:]
    net.load_state_dict(own)
    return net


def new_kernels(net, lam):
    """Return what every plain parameter is at `lam`, minus the base."""
    folded, plain = tunable_ops.fold(net, lam).state_dict(), base_network(net).state_dict()
    return {name: folded[name] - plain[name] for name in plain if plain[name].is_floating_point()}
