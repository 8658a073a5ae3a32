"""The least time of a launch by arithmetic: what it moves at each level of the memory, and what it computes.

`roofline_kernels` counts the work of our kernels from problem and tile sizes; `seconds` divides the counts by the rates
of a device and takes the largest. Nothing here needs triton or a GPU, and nothing is measured: these are predictions.

Two sets of rates bound the H100 SXM. Where they are from:

memory     3.0 TB/s of HBM3 that a copy reaches (datasheet: 3.35)
tensor     800 TFLOP/s of dense fp16 or bf16 that large products reach (datasheet: 989), half of it for tf32
lanes      60 TFLOP/s of fp32 (datasheet: 67)
l2         24 to 38 bytes per clock and multiprocessor: 5.5 TB/s over 114 multiprocessors in published tests of the
           PCIe card gives 27
shared     128 bytes per clock and multiprocessor: 32 banks of 4 bytes
trip       clocks until a load from L2 arrives: about 260 in arXiv 2402.13499; a load from memory takes two of them
launch     3 to 5 us from the start of one small kernel to that of the next in a replayed graph; an estimate
"""

from typing import NamedTuple

from tunable_ops.triton_kernels.launch import cdiv


class Device(NamedTuple):
    """Rates of a GPU: seconds, bytes and floating-point operations."""

    multiprocessors: int
    clock: float
    memory: float
    tensor: float  # fp16 and bf16; tf32 has half of it
    lanes: float
    l2: float  # per clock and multiprocessor
    shared: float  # likewise
    cache: int  # bytes of L2
    trip: int  # clocks
    launch: float


FAST = Device(132, 1.755e9, 3.0e12, 800e12, 60e12, 38, 128, 50 << 20, 260, 3e-6)
SLOW = FAST._replace(l2=24, launch=5e-6)
# A load that misses L2 takes about this many trips.
MEMORY_TRIPS = 2


class Work(NamedTuple):
    """What one launch does.

    Attributes:
        kernel: Name of the kernel.
        blocks: Number of blocks.
        memory: Bytes to and from HBM, each tensor once.
        l2: Bytes between L2 and the multiprocessors, reads again counted again.
        shared: Bytes written to and read from shared memory.
        products: Multiply-adds in the shape of a matrix product, partial tiles in full.
        lanes: Multiply-adds and conversions outside of it.
        chain: Trips to L2 that a block waits for one after the other.
        workspace: Bytes that stay in L2 if it holds them; else they count as memory.
        dtype: Dtype of the product.
        resident: Blocks that a multiprocessor holds at a time.
    """

    kernel: str
    blocks: int
    memory: int = 0
    l2: int = 0
    shared: int = 0
    products: int = 0
    lanes: int = 0
    chain: int = 0
    workspace: int = 0
    dtype: str = "bfloat16"
    resident: int = 2


def parts(work: Work, device: Device) -> dict[str, float]:
    """Return the seconds that each resource is busy, without the launch; the fullest multiprocessor decides."""
    count = device.multiprocessors
    rate = {"float32": device.lanes, "tf32": device.tensor / 2}.get(work.dtype, device.tensor) / 2
    # The fullest multiprocessor has this many times the average.
    share = cdiv(work.blocks, count) * count / work.blocks
    per_clock = count * device.clock
    outside = work.workspace if work.workspace > device.cache else 0
    return {
        "memory": (work.memory + outside) / device.memory,
        "l2": share * work.l2 / (device.l2 * per_clock),
        "shared": share * work.shared / (device.shared * per_clock),
        "product": share * work.products / rate,
        "lanes": share * work.lanes / (device.lanes / 2),
        "latency": cdiv(work.blocks, count * work.resident) * work.chain * device.trip / device.clock,
    }


def seconds(work: Work, device: Device) -> float:
    """Return the least time of a launch, launching included."""
    return device.launch + max(parts(work, device).values())


def limit(work: Work, device: Device) -> str:
    """Return what decides that time: "launch" or a name of `parts`."""
    busy = parts(work, device)
    most = max(busy, key=lambda name: busy[name])
    return most if busy[most] > device.launch else "launch"
