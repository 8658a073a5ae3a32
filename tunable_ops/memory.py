"""How this process keeps the memory that tensors free."""

import ctypes
import sys

__all__ = ["keep_freed_memory"]


def keep_freed_memory() -> bool:
    """Make glibc's allocator keep freed memory, as a GPU's caching allocator does; return False without glibc.

    Otherwise tensors of megabytes may be mapped anew at every call, page by page: 10 % of a convolution's time, and
    of a training step's on a CPU (docs/performance.md). It holds for the process and cannot be taken back, so that
    commands do it, and no other function. Tensors of more than 32 MB are mapped anew all the same.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    options = ((mmap_threshold, 32 << 20), (trim_threshold, -1), (top_pad, 64 << 20))
    done = [mallopt(option, value) == 1 for option, value in options]  # every one, whatever the others gave
    return all(done)
