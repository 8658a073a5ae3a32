"""The methods by which a network goes to folders and hubs and comes back; `tunable_ops.hub` does the work."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from typing_extensions import Self


class SharedNetwork:
    """`save_pretrained`, `push_to_hub` and `from_pretrained` (the extra `[hub]`; docs/sharing.md).

    The package that knows files and hubs stands above this one: `tunable_ops` says here how to import it.
    """

    _hub: ClassVar[Callable[[], Any]]

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        architecture: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        purpose: str | None = None,
        licence: str | None = None,
        measured: Mapping[str, Any] | None = None,
        base_model: str | None = None,
    ) -> None:
        """Write the network to a folder: config.json, model.safetensors and a model card, README.md.

        Args:
            save_directory: Made if it is missing. A README.md that is there stays.
            architecture: Name in `models.ARCHITECTURES`. Default: what the network was loaded as; else the name of its
                class, and whoever loads it passes ``network=``.
            arguments: Arguments of the architecture; JSON values.
            purpose: What it is for, in a sentence; default: its note "purpose".
            licence: For instance "MIT"; default: its note "licence".
            measured: Quality over lambda, for the card: what `tunable-ops eval --json` writes, or positions with
                numbers.
            base_model: Repository of the network that it was made of.

        Warns:
            UserWarning: The architecture is none of `models`: whoever loads it must pass ``network=``.

        Raises:
            ModuleNotFoundError: huggingface_hub is not installed.
            TypeError: As `serialization.save`; a text or `measured` of another type.
            ValueError: As `serialization.save`; a network of `models` that was not loaded, without `arguments`.
        """
        about = {"purpose": purpose, "licence": licence, "measured": measured, "base_model": base_model}
        hub = type(self)._hub()
        hub.NetworkFile(self, architecture=architecture, arguments=arguments, **about).save_pretrained(save_directory)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        architecture: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        purpose: str | None = None,
        licence: str | None = None,
        measured: Mapping[str, Any] | None = None,
        base_model: str | None = None,
        **options: Any,
    ) -> str:
        """Upload what `save_pretrained` writes, in one commit.

        Args:
            repo_id: "owner/name"; made if it is missing. A README.md that is there stays; a warning says where the
                card would be another.
            architecture: As for `save_pretrained`, and so the five that follow.
            arguments: As there.
            purpose: As there.
            licence: As there.
            measured: As there.
            base_model: As there.
            options: commit_message, private, token, branch, create_pr, and the other options of
                `huggingface_hub.ModelHubMixin.push_to_hub`.

        Returns:
            The address of the commit.

        Raises:
            ModuleNotFoundError, TypeError, ValueError: As for `save_pretrained`.
            huggingface_hub.errors.HfHubHTTPError: The hub refuses.
        """
        about = {"purpose": purpose, "licence": licence, "measured": measured, "base_model": base_model}
        hub = type(self)._hub()
        shared = hub.NetworkFile(self, architecture=architecture, arguments=arguments, **about)
        address: str = shared.push_to_hub(repo_id, **options)
        return address

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **options: Any) -> Self:
        """Load the network of a folder or a repository, in evaluation mode, on the CPU.

        Only config.json and safetensors are read. Python code, pickles and other files are named in a warning; nothing
        in them is run.

        Args:
            source: Folder that `save_pretrained` wrote, or a repository "owner/name".
            options: network, revision, token, cache_dir, force_download and local_files_only, as for
                `tunable_ops.hub.load`.

        Raises:
            ModuleNotFoundError: huggingface_hub is not installed.
            FileNotFoundError, ValueError, huggingface_hub.errors.HfHubHTTPError: As for `tunable_ops.hub.load`.
        """
        net: Self = cls._hub().load(source, **options)
        return net
