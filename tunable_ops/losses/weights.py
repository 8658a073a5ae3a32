"""Find, check and read the published weights that the perceptual losses need.

Files are searched in this order: the given path, or the published names in the given folder;
``$TUNABLE_OPS_DATA/weights/``; the folder ``checkpoints`` of
`torch.hub.get_dir`, where torchvision keeps its downloads. Nothing is downloaded or initialised at random unless
requested ("download", "random"). A file with one of the names in `FILES` must have the checksum listed there.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

DATA_VARIABLE = "TUNABLE_OPS_DATA"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_TORCHVISION = "https://download.pytorch.org/models/"
_BGR_MEAN = (104.0, 117.0, 123.0)  # of SqueezeNet's authors, in 0..255


def _from_bgr(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the weights of a network for BGR pictures, ``255 * x - mean``, for normalised RGB ones.

    With ``x = std * n + mean_n`` the first convolution takes ``255 * std`` in its weights and ``255 * mean_n - mean``
    in its bias; it must not pad, or the border would differ.
    """
    weight, bias = (tensors[f"features.0.{key}"].double() for key in ("weight", "bias"))
    std, mean = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (IMAGENET_STD, IMAGENET_MEAN))
    weight = weight.flip(1)  # [O, C, kh, kw], to RGB
    shift = 255 * mean - torch.tensor(_BGR_MEAN, dtype=torch.float64).flip(0).view(3, 1, 1)
    bias = bias + (weight * shift).sum((1, 2, 3))
    weight = weight * (255 * std)
    return {**tensors, "features.0.weight": weight.float(), "features.0.bias": bias.float()}


@dataclass(frozen=True)
class WeightFile:
    """A published file.

    Attributes:
        name: Of the file.
        sha256: Its SHA-256, or the published prefix of it.
        url: Where it comes from.
        adapt: Makes its tensors those of a network for RGB pictures with ImageNet's normalisation; None if they are.
    """

    name: str
    sha256: str
    url: str | None = None
    adapt: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None


FILES: dict[str, tuple[WeightFile, ...]] = {
    "vgg16": (
        WeightFile(
            "vgg16_features_fp16.safetensors", "4e8224e21720211b19ee1794113308772a0f4f88dd50451347a3a75490de9524"
        ),
        WeightFile("vgg16-397923af.pth", "397923af", _TORCHVISION + "vgg16-397923af.pth"),
    ),
    "vgg19": (WeightFile("vgg19-dcbb9e9d.pth", "dcbb9e9d", _TORCHVISION + "vgg19-dcbb9e9d.pth"),),
    "alexnet": (
        WeightFile(
            "alexnet_features_fp16.safetensors", "1e79dbde62a13caeaf6d1d6491a66ee816a833dfa42fb3532b5a74ed1cda2da2"
        ),
        WeightFile("alexnet-owt-7be5be79.pth", "7be5be79", _TORCHVISION + "alexnet-owt-7be5be79.pth"),
    ),
    "squeezenet": (
        WeightFile(
            "squeezenet1_1-b8a52dc0.pth",
            "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
            _TORCHVISION + "squeezenet1_1-b8a52dc0.pth",
        ),
        WeightFile(
            "squeezenet11_caffe_fp16.safetensors",
            "fd870fec25ccca1672f519fce4521be4417e56fb22c8f85b3fb295d6388f6036",
            adapt=_from_bgr,
        ),
    ),
    "lpips": (
        WeightFile("lpips_heads.safetensors", "ae7d9103460be08bfe10f17225f10fbe1ffa4e1ee9967a93cc45ed478a5974e5"),
    ),
    "dists": (
        WeightFile("dists_alpha_beta.safetensors", "50980d68bc38b2fcc738b1a8c3ae77a87cb73883b230951c2c57190855bdb52f"),
    ),
}
"""The files of every network, the preferred one first."""

_HOW = {
    "lpips": "they are the linear heads of the package lpips, version 0.1, in one file with the keys "
    "<net>.lin<k>.model.1.weight, where net is alex, vgg or squeeze",
    "dists": "they are alpha and beta of the package DISTS-pytorch, each [1, 1475, 1, 1], in one file",
}


def read_weights(
    op: str, network: str, wanted: Iterable[str], weights: str | os.PathLike[str] | None
) -> dict[str, Tensor]:
    """Find, check and read the weights of a network.

    Args:
        op: Name of the caller, for messages.
        network: Key of `FILES`.
        wanted: Names of the tensors; others in the file are ignored.
        weights: None to search, "download" for torchvision's file (kept by torch.hub), a folder that holds one of
            `FILES`, or the path of a safetensors file or of a state dict written by torch.save (read without unpickling
            objects).

    Returns:
        Dict name -> tensor on the CPU, float32.

    Raises:
        FileNotFoundError: No file was found; the message lists where it was looked for and how to get it.
        ValueError: The checksum is wrong, or the file is unreadable or lacks some of the tensors.
        RuntimeError: The download failed.
    """
    path = _find(op, network, weights)
    known = _check(op, path)
    tensors = _read(op, path)
    wanted = list(wanted)
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise ValueError(
            f"{op}: weights must hold {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}; got {str(path)!r} "
            f"without them; is it the file of another network?"
        )
    if known is not None and known.adapt is not None:
        tensors = known.adapt(tensors)
    return {name: tensors[name].float() for name in wanted}


def _find(op: str, network: str, weights: str | os.PathLike[str] | None) -> Path:
    files = FILES[network]
    if weights == "download":
        return _download(op, network)
    looked = []
    if weights is not None and Path(weights).is_dir():
        for file in files:
            if (Path(weights) / file.name).is_file():
                return Path(weights) / file.name
        listed = " or ".join(file.name for file in files)
        raise FileNotFoundError(f"{op}: weights must be a folder that holds {listed}; got {str(weights)!r}")
    if weights is not None:
        path = Path(weights)
        if not path.is_file():
            raise FileNotFoundError(
                f'{op}: weights must be a file, a folder, "download" or "random"; got {str(path)!r}'
            )
        return path
    data = os.environ.get(DATA_VARIABLE)
    folders = ([Path(data, "weights")] if data else []) + [Path(torch.hub.get_dir(), "checkpoints")]
    for folder in folders:
        for file in files:
            if (folder / file.name).is_file():
                return folder / file.name
        looked.append(f"{folder} ({' or '.join(file.name for file in files)})")
    unset = "" if data else f" (${DATA_VARIABLE} is not set)"
    how = _HOW.get(network) or (
        'get them with weights="download", or pass weights=PATH of a file with torchvision\'s keys '
        '(weights="random" is for testing code)'
    )
    raise FileNotFoundError(f"{op}: could not find the weights of {network} in {', '.join(looked)}{unset}; {how}")


def _download(op: str, network: str) -> Path:
    file = next((file for file in FILES[network] if file.url), None)
    if file is None or file.url is None:
        raise ValueError(f'{op}: weights must be a path; got "download", which {network} lacks: {_HOW[network]}')
    try:
        torch.hub.load_state_dict_from_url(file.url, map_location="cpu", check_hash=True, weights_only=True)
    except OSError as error:
        raise RuntimeError(f"{op}: could not download the weights from {file.url}: {error}") from error
    return Path(torch.hub.get_dir(), "checkpoints", file.name)


def _check(op: str, path: Path) -> WeightFile | None:
    """Reject a file that has a published name but other contents; return what is known of it."""
    known = next((file for files in FILES.values() for file in files if file.name == path.name), None)
    if known is None:
        return None
    with open(path, "rb") as stream:
        digest = hashlib.sha256(stream.read()).hexdigest()
    if not digest.startswith(known.sha256):
        raise ValueError(
            f"{op}: weights must have the published SHA-256 {known.sha256}; got {digest} in {str(path)!r}: the file is "
            f"damaged or a different one; download it again, or rename it if it is your own"
        )
    return known


def _read(op: str, path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors: Mapping[str, Tensor] = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # on damaged files the readers raise almost anything
        raise ValueError(
            f"{op}: weights must be a safetensors file or a state dict; got {str(path)!r}: {error}"
        ) from error
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{op}: weights must be a state dict, name to tensor; got something else in {str(path)!r}")
    return tensors
