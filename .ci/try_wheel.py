"""Try an installed wheel: import it, call the operators, convert and fold. Nothing but torch is needed.

python .ci/try_wheel.py [--compiled | --pure]
"""

import sys

import torch

import tunable_ops
from tunable_ops import backends


def main(words: list[str]) -> int:
    """Return 0, or raise."""
    x = torch.rand(2, 3, 12, 13).contiguous(memory_format=torch.channels_last)
    weight, bias, alpha = torch.rand(2, 16, 3, 3, 3), torch.rand(2, 16), torch.rand(2, 2)
    expected = tunable_ops.tunable_conv2d(x, weight, bias, alpha, padding=1, backend="reference")
    found = backends.select("tunable_conv2d", None, x, weight, alpha)
    torch.testing.assert_close(tunable_ops.tunable_conv2d(x, weight, bias, alpha, padding=1), expected)
    net = tunable_ops.convert(
        torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 3, 3)), 2
    )
    net(x, [0.25, 0.75]).sum().backward()
    with torch.inference_mode():
        torch.testing.assert_close(tunable_ops.fold(net, [0.25, 0.75])(x), net(x, [0.25, 0.75]))
    missing = backends.unavailable_reason("tunable_conv2d", "cpp")
    if "--compiled" in words and found != "cpp":
        raise SystemExit(f"try_wheel: the C++ operators must serve the call; got {found!r}: {missing}")
    if "--pure" in words and (found == "cpp" or "start/install.md" not in str(missing)):
        raise SystemExit(f"try_wheel: the wheel must be pure Python and say how to build; got {found!r}: {missing}")
    print(f"tunable_ops {tunable_ops.__version__}, torch {torch.__version__}, {sys.platform}: {found}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
