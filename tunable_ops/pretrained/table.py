"""The table of what ships: published networks, the bases, and the networks made of them by knobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BASES", "NETWORKS", "Base", "Network"]


@dataclass(frozen=True)
class Base:
    """A published network, whose weights are the file NAME.safetensors, bare and in full precision.

    Args:
        architecture: Name in `models.ARCHITECTURES`.
        licence: Of the weights; its text is in LICENSES.txt.
        source: Authors, paper and repository.
        pictures: What its authors say that it was trained on.
        arguments: Of the architecture.
        spec: Of the parameters that the network reads itself, as in `LambdaSpec.create`; empty where it reads none.
        grey_noise: How many times as strong noise on a grey picture is for it, where that is not sqrt(3) (see
            `tunable_ops.grey.stronger`).
    """

    architecture: str
    licence: str
    source: str
    pictures: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    spec: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    grey_noise: float | None = None


@dataclass(frozen=True)
class Network:
    """A network that ships: a base with its knobs, the files NAME.KNOB.safetensors.

    Args:
        purpose: What it is for, in one line.
        base: Name in `BASES`.
        knobs: Their files, in the order of their parameters in lambda; one file may have several (keep_deblur).
        replaced: Names that its parameters had before, with what they are now.
    """

    purpose: str
    base: str
    knobs: tuple[str, ...] = ()
    replaced: Mapping[str, str] = field(default_factory=dict)


BASES = {
    "carn_m": Base(
        "carn",
        "MIT, copyright 2018 Namhyuk Ahn",
        "CARN-M of Ahn, Kang and Sohn, ECCV 2018 (arXiv 1803.08664); github.com/nmhkahn/CARN-pytorch",
        "DIV2K, by its authors",
        {"scale": 2},
    ),
    "ffdnet_color": Base(
        "ffdnet",
        "MIT, copyright 2019 Kai Zhang",
        "FFDNet of Zhang, Zuo and Zhang, IEEE TIP 2018 (arXiv 1710.04026); github.com/cszn/KAIR",
        "parts of the Berkeley segmentation data set, ImageNet and the Waterloo database, by its authors",
        {"knob": 0},
        {"names": ["sigma"], "ranges": [[0, 50]], "defaults": [25], "units": ["of 255"]},
        grey_noise=1.65,  # best of 1.55 to 1.73 on ten grey photographs at sigma 15, 25 and 50
    ),
    "rlfn_x4": Base(
        "rlfn",
        "MIT, copyright 2022 Yawei Li",
        "RLFN of Kong et al., CVPR workshops 2022 (arXiv 2205.07514); github.com/ofsoundof/NTIRE2022_ESR, team 04",
        "DIV2K and Flickr2K, by its authors",
    ),
}
"""The published networks by name."""

NETWORKS = {
    "denoise": Network(
        "removes white noise of a known strength from photographs, grey ones too; with fine texture or without",
        "ffdnet_color",
        ("texture",),
    ),
    "denoise_deblur": Network(
        "sharpens noisy photographs with a Gaussian blur of unknown width; how much noise and blur is left are knobs",
        "ffdnet_color",
        ("keep_deblur",),
    ),
    "super_resolution_x2": Network(
        "doubles the size of photographs: from the smallest error to the sharpest look",
        "carn_m",
        ("perceptual",),
        {"accurate": "1 - perceptual, so that accurate=1 is perceptual=0"},
    ),
    "super_resolution_x4": Network(
        "enlarges photographs four times: from the smallest error to the sharpest look",
        "rlfn_x4",
        ("perceptual",),
    ),
}
"""The networks that ship by name."""
