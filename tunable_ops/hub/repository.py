"""A network or a knob file as a repository: what `save_pretrained`, `push_to_hub` and `from_pretrained` do."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RevisionNotFoundError
from torch import nn

from tunable_ops import models, pretrained
from tunable_ops.hub import card
from tunable_ops.hub.contents import CONFIG, FILES, LIBRARY, Found, Place, find
from tunable_ops.knob_files import load_knob, read_knob_metadata, whole_fingerprint
from tunable_ops.modules import TunableModel
from tunable_ops.serialization import FORMAT, KNOB_FORMAT, VERSION, read_metadata, save
from tunable_ops.serialization import load as load_file

__all__ = ["KnobFile", "NetworkFile", "load"]


class _Repository(ModelHubMixin, library_name=LIBRARY):
    """What networks and knobs have in common.

    Args:
        about: For the model card.
    """

    format = ""

    def __init__(self, about: card.About) -> None:
        self.about = about
        self._hub_mixin_config = None  # `_save_pretrained` writes config.json itself
        self._repo_id: str | None = None  # while uploading: where to, and the card that is there
        self._there: bytes | None = None

    def _metadata(self, file: Path) -> dict[str, Any]:
        raise NotImplementedError

    def _write(self, file: Path) -> None:
        raise NotImplementedError

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> str | None:  # type: ignore[override]
        """Write config.json, the file of tensors and, unless there is one, README.md to a folder.

        Args:
            save_directory: Made if it is missing. What else it holds stays.
            options: Of `huggingface_hub.ModelHubMixin.save_pretrained`.
        """
        if os.path.exists(save_directory) and not os.path.isdir(save_directory):
            raise ValueError(f"hub: save_directory must be a folder; got the file {os.fspath(save_directory)!r}")
        return super().save_pretrained(Path(save_directory), **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # type: ignore[override]
        """Upload what `save_pretrained` writes, in one commit; the repository is made if it is missing.

        Args:
            repo_id: "owner/name". A README.md that is there stays.
            options: commit_message, private, token, branch, create_pr, and the other options of
                `huggingface_hub.ModelHubMixin.push_to_hub`.

        Returns:
            The address of the commit.

        Warns:
            UserWarning: The README.md that is there is not the card that would be written now.
        """
        options.setdefault("commit_message", f"Upload with {LIBRARY}")
        inspect.signature(super().push_to_hub).bind(repo_id, **options)  # before anything is made
        api = HfApi(token=options.get("token"))
        self._repo_id = api.create_repo(repo_id, private=options.get("private"), exist_ok=True).repo_id
        try:
            self._there = _card_on_the_hub(self._repo_id, options.get("branch"), options.get("token"))
            return super().push_to_hub(self._repo_id, **options)
        finally:
            self._repo_id = self._there = None

    def _save_pretrained(self, save_directory: Path) -> None:
        file = save_directory / FILES[self.format]
        self._write(file)
        metadata = self._metadata(file)
        config = {
            "library_name": LIBRARY,
            "format": self.format,
            "version": VERSION,
            "architecture": metadata["architecture"],
            "arguments": metadata["arguments"],
            "lambda": metadata["spec"],
        }
        if self.format == KNOB_FORMAT:
            config["base"] = whole_fingerprint(metadata["base"])
        (save_directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        self._card = card.write(metadata, self.about, self._repo_id or save_directory.resolve().name, self._repo_id)
        if self._there is not None:
            (save_directory / "README.md").write_bytes(self._there)  # the mixin leaves it and uploads it unchanged
            if self._there.decode(errors="replace").split() != self._card.split():
                warnings.warn(
                    f"hub: README.md of {self._repo_id!r} stays as it is; delete it to have the card written anew",
                    stacklevel=2,
                )

    def generate_model_card(self, *_: Any, **__: Any) -> ModelCard:
        """Return the card of what `_save_pretrained` has just written."""
        return ModelCard(self._card, ignore_metadata_errors=True)


class NetworkFile(_Repository):
    """A whole network as a repository, model.safetensors; `TunableModel.save_pretrained` and `push_to_hub` make one.

    Args:
        net: Made by `convert`, `load_knob`, `control.attach`, or loaded.
        architecture: Name in `models.ARCHITECTURES`. Default: what the network was loaded as; else the name of its
            class, and whoever loads it passes ``network=``.
        arguments: Arguments of the architecture; JSON values.
        about: purpose, licence, measured and base_model (`card.About`).

    Warns:
        UserWarning: What is written can only be read with ``network=``; when it is written.

    Raises:
        TypeError: `net` is not a TunableModel.
        ValueError: It was constructed directly, or is a network of `models` that was not loaded, without its
            arguments.
    """

    format = FORMAT

    def __init__(
        self,
        net: TunableModel,
        *,
        architecture: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        **about: Any,
    ) -> None:
        if not isinstance(net, TunableModel):
            raise TypeError(f"hub: net must be a TunableModel; got {type(net).__name__}")
        super().__init__(card.About(**about))
        if net.conversion is None:
            raise ValueError(
                "hub: net must come from convert, load_knob or control.attach; got a TunableModel that was constructed "
                "directly: save its state_dict"
            )
        self.net = net
        self.architecture, self.arguments = _built_as(net, architecture, arguments)

    def _write(self, file: Path) -> None:
        if self.architecture not in models.ARCHITECTURES:
            warnings.warn(
                f"hub: {self.architecture!r} is no architecture of tunable_ops.models, so that what is written can "
                "only be read together with the plain network: TunableModel.from_pretrained(source, network=plain), or "
                "--network package.module:Class on the command line; share its code too",
                stacklevel=2,
            )
        save(self.net, file, architecture=self.architecture, arguments=self.arguments)

    def _metadata(self, file: Path) -> dict[str, Any]:
        return read_metadata(file)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], *, revision: str | None = None, **options: Any) -> Any:  # type: ignore[override]
        """Return the network of a folder or a repository, as a NetworkFile; arguments as for `load`."""
        return cls(load(source, revision=revision, **options))


class KnobFile(_Repository):
    """A knob file (docs/knob_files.md) as a repository, knob.safetensors; the object stands for the path of the file.

    Args:
        path: File that `tunable_ops.save_knob` or `tunable-ops knob` wrote.
        about: purpose, licence (default: that of the file), measured and base_model (`card.About`).

    Raises:
        FileNotFoundError, ValueError: As for `tunable_ops.load_knob`, of a file that is no knob.

    Example:
        >>> import tempfile
        >>> import tunable_ops
        >>> plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3))
        >>> net = tunable_ops.convert(plain, 1, domain="box", names=["texture"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tunable_ops.save_knob(net, f"{folder}/file.safetensors")
        ...     _ = KnobFile(f"{folder}/file.safetensors", licence="MIT").save_pretrained(f"{folder}/texture")
        ...     tunable_ops.load_knob(plain, KnobFile.from_pretrained(f"{folder}/texture")).spec.names
        ('texture',)
    """

    format = KNOB_FORMAT

    def __init__(self, path: str | os.PathLike[str], **about: Any) -> None:
        super().__init__(card.About(**about))
        self.path = Path(path)
        read_knob_metadata(path)

    def __fspath__(self) -> str:
        return str(self.path)

    __str__ = __fspath__  # messages, and functions that take text

    def _write(self, file: Path) -> None:
        if self.path.resolve() != file.resolve():
            shutil.copyfile(self.path, file)

    def _metadata(self, file: Path) -> dict[str, Any]:
        return read_knob_metadata(file)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], *, revision: str | None = None, **options: Any) -> Any:  # type: ignore[override]
        """Return the knob file of a folder or a repository; arguments and errors as for `load`."""
        found = find(Place(source, revision, **options))
        if found.format != KNOB_FORMAT:
            raise ValueError(
                f"hub: source must hold a knob; got a whole network in {os.fspath(source)!r}: use "
                "tunable_ops.TunableModel.from_pretrained"
            )
        return cls(found.file)


def load(
    source: str | os.PathLike[str],
    *,
    network: nn.Module | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> TunableModel:
    """Load the network of a folder or a repository, in evaluation mode, on the CPU.

    Args:
        source: Folder that `save_pretrained` wrote, or a repository "owner/name".
        network: The plain network, where its architecture is not in `models.ARCHITECTURES`, with any weights; for a
            repository of a knob its base, unless that ships with the package.
        revision: Branch, tag or commit of a repository; only a commit always stands for the same network.
        token: For private repositories; default: that of `hf auth login`.
        cache_dir: Where downloads are kept.
        force_download: Download again what is in the cache.
        local_files_only: Take everything from the cache.

    Warns:
        UserWarning: The repository holds files that are not used, such as Python code or pickles.

    Raises:
        FileNotFoundError: `source` is neither a folder nor the name of a repository.
        ValueError: It holds nothing of this package, or something damaged; as `serialization.load` and `load_knob`.
        huggingface_hub.errors.HfHubHTTPError: The hub refuses, or has no such repository or revision.
    """
    options = {"token": token, "cache_dir": cache_dir, "force_download": force_download}
    found = find(Place(source, revision, local_files_only=local_files_only, **options))
    if found.format == FORMAT:
        return load_file(found.file, network)
    return load_knob(network, found.file) if network is not None else _on_a_shipped_base(found, os.fspath(source))


def _card_on_the_hub(repo_id: str, branch: str | None, token: str | bool | None) -> bytes | None:
    """Return the README.md of a repository, None where it has none."""
    try:
        return Path(hf_hub_download(repo_id, "README.md", revision=branch, token=token)).read_bytes()
    except LocalEntryNotFoundError:  # no connection: nobody knows whether it has one
        raise
    except (EntryNotFoundError, RevisionNotFoundError):
        return None


def _on_a_shipped_base(found: Found, source: str) -> TunableModel:
    name = pretrained.shipped_base(found.file)
    if name is not None:
        return pretrained.load(name, [found.file])
    wanted = read_knob_metadata(found.file)
    arguments = ", ".join(f"{key}={value!r}" for key, value in (wanted["arguments"] or {}).items())
    raise ValueError(
        f"hub: network must be given for a knob whose base does not ship; got the knob {source!r} for "
        f"{wanted['architecture']}({arguments}) with fingerprint {whole_fingerprint(wanted['base'])}"
    )


def _built_as(
    net: TunableModel, architecture: str | None, arguments: Mapping[str, Any] | None
) -> tuple[str, Mapping[str, Any]]:
    """Return architecture and arguments of a network: as given, as it was loaded, or the name of its class."""
    # torch gives a module with parametrised tensors a class of its own
    kind = next(each for each in type(net.network).__mro__ if not each.__name__.startswith("Parametrized"))
    known = next((name for name, each in models.ARCHITECTURES.items() if each is kind), None)
    if architecture is None and net.built_as is not None:
        built = net.built_as
        return built["architecture"], built["arguments"] if arguments is None else arguments
    if arguments is None and (architecture or known) in models.ARCHITECTURES:
        raise ValueError(
            f"hub: arguments must be given for {architecture or known!r}, with which it was built; got None: for "
            "instance net.save_pretrained(folder, arguments={}) where all are the defaults"
        )
    return architecture or known or kind.__name__, arguments or {}
