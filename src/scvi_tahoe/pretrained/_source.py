"""Where weights come from: a folder, or a name on the Hugging Face hub, pinned, checked and cached."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvi_tahoe.files import UnsafeFileError
from scvi_tahoe.pretrained._arc_reader import read_arc_folder
from scvi_tahoe.pretrained._checkpoints import choose_checkpoint
from scvi_tahoe.pretrained._export import is_export, read_export
from scvi_tahoe.pretrained._licence import verify_licence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi_tahoe.pretrained._arc_settings import Attention
    from scvi_tahoe.pretrained._pretrained_model import PretrainedModel

__all__ = ["SourceFolder", "import_hub", "read_pretrained", "resolve_source"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[\w.=-]+)*")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SIDE_FILES = (
    "config.yaml",
    "config.json",
    "*.pkl",
    "*.pt",
    "*.torch",
    "version_*/hparams.yaml",
    "hparams.yaml",
    "*.safetensors",
    "README.md",
    "LICENSE*",
)
#: Evaluation results: hundreds of megabytes that no model needs.
_SKIPPED = ("eval*/*", "*.h5ad", "*.csv", "*.npy")


@dataclass(frozen=True, kw_only=True)
class SourceFolder:
    """A model folder on this machine and what it is known as.

    Parameters
    ----------
    folder
        Its path.
    name
        Hub name, or name of the folder.
    revision
        Commit on the hub, or ``None`` for a local folder.
    """

    folder: Path
    name: str
    revision: str | None = None


def read_pretrained(
    source: str | Path,
    checkpoint: str | None = None,
    *,
    revision: str | None = None,
    accept_license: bool | None = None,
    attention: Attention | None = None,
    genes: Sequence[str] | None = None,
    base: PretrainedModel | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
) -> PretrainedModel:
    """Return a model from a folder in Arc's format or in ours, local or on the hub.

    Parameters
    ----------
    source, revision, accept_license, cache_dir, offline
        See :func:`resolve_source`.
    checkpoint, attention, genes
        See :func:`read_arc_folder`; for folders in Arc's format.
    base
        See :func:`read_export`; for exports that refer to another model's backbone.

    Raises
    ------
    FileNotFoundError, ValueError, LicenceNotAcceptedError
        As those functions do.
    """
    place = resolve_source(
        source,
        checkpoint,
        revision=revision,
        accept_license=accept_license,
        cache_dir=cache_dir,
        offline=offline,
    )
    if is_export(place.folder):
        if checkpoint is not None or attention is not None:
            raise ValueError(
                f"{place.name} is in our own format, which has one set of weights and states its attention."
            )
        model = read_export(place.folder, base=base)
        model = model if genes is None else model.with_genes(genes)
    else:
        model = read_arc_folder(place.folder, checkpoint, attention=attention, genes=genes)
    if place.revision is None:
        return model
    return replace(model, provenance=replace(model.provenance, source=place.name, revision=place.revision))


def resolve_source(
    source: str | Path,
    checkpoint: str | None = None,
    *,
    revision: str | None = None,
    accept_license: bool | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
) -> SourceFolder:
    """Return the folder of a model, downloading it if need be.

    A transfer that breaks off is resumed where it stopped, by the hub's client and within the call. After a call that
    failed, files that are whole stay in the cache; whether the beginning of the broken one does is up to the release of
    ``huggingface_hub`` (2.4 discards it).

    Parameters
    ----------
    source
        An existing folder (or checkpoint file), or a name on the Hugging Face hub: ``'owner/name'``, with
        ``'/folder'`` behind it where one repository holds several models.
    checkpoint
        The checkpoint that will be read; only that one is downloaded.
    revision
        Branch, tag or commit of the hub. It is resolved to a commit, which is returned. ``None``: the main branch.
    accept_license
        Accept the licence of downloaded weights; ``None``: what ``SCVI_TAHOE_ACCEPT_LICENSE`` says.
    cache_dir
        Cache of the hub; ``None``: its default.
    offline
        Use the cache and no network. So does the variable ``HF_HUB_OFFLINE=1`` of the hub's client.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or offline and not in the cache.
    ImportError
        If ``huggingface_hub`` is not installed.
    LicenceNotAcceptedError
        If the licence was not accepted.
    UnsafeFileError
        If a downloaded file does not have the hash the hub states.
    """
    local = Path(source)
    if _exists(local):
        return SourceFolder(folder=local, name=local.resolve().name)
    if not _HUB_NAME.fullmatch(str(source)):
        raise FileNotFoundError(f"{str(source)[:200]} is neither a folder here nor a name on the hub ('owner/name').")
    hub = import_hub()
    owner, name, *inside = str(source).split("/")
    repository, subfolder = f"{owner}/{name}", "/".join(inside)
    verify_licence(repository, accept_license)
    snapshot = _snapshot(
        hub, repository, subfolder, checkpoint, revision=revision, cache_dir=cache_dir, offline=offline
    )
    folder = snapshot / subfolder
    if not folder.is_dir():
        raise FileNotFoundError(f"{repository} has no folder {subfolder!r}" + (" in the cache." if offline else "."))
    verify_blobs(snapshot)
    return SourceFolder(folder=folder, name=str(source), revision=snapshot.name)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or that no file can have
        return False


def verify_blobs(snapshot: Path) -> None:
    """Compare the files of a hub snapshot with their hashes, which are their names in the cache.

    That is the SHA-256 of a large file, and what git calls the hash of a small one: the SHA-1 behind a header, or, from
    some mirrors, without it.

    Raises
    ------
    UnsafeFileError
        If one differs.
    """
    for path in sorted(snapshot.rglob("*")):
        blob = path.resolve()
        if path.is_symlink() and blob.is_file() and _HASH.fullmatch(blob.name) and blob.name not in _hashes(blob):
            raise UnsafeFileError(f"{path.name} does not have the hash the hub states; delete {blob} and try again.")


def _hashes(blob: Path) -> set[str]:
    if len(blob.name) == 64:
        with blob.open("rb") as stream:
            return {hashlib.file_digest(stream, "sha256").hexdigest()}
    content = blob.read_bytes()
    header = b"blob %d\0" % len(content)
    return {hashlib.sha1(part + content, usedforsecurity=False).hexdigest() for part in (header, b"")}


def _snapshot(
    hub: Any,
    repository: str,
    subfolder: str,
    checkpoint: str | None,
    *,
    revision: str | None,
    cache_dir: str | Path | None,
    offline: bool,
) -> Path:
    prefix = f"{subfolder}/" if subfolder else ""
    wanted = [prefix + pattern for pattern in _SIDE_FILES]
    commit = None
    offline = offline or hub.constants.HF_HUB_OFFLINE
    if not offline:
        try:
            info = hub.HfApi().model_info(repository, revision=revision)
        except Exception as error:
            error.add_note(f"{repository} was asked for on the hub; offline=True reads what is in the cache.")
            raise
        commit, files = info.sha, [file.rfilename for file in info.siblings or []]
        if not any(file.startswith(prefix) and file.endswith(".safetensors") for file in files):
            wanted.append(prefix + checkpoint_on_hub(files, prefix, checkpoint))
    try:
        # Asked for by branch, so that the cache remembers which commit the branch was at for later offline use.
        folder = hub.snapshot_download(
            repository,
            revision=revision,
            cache_dir=cache_dir,
            allow_patterns=wanted,
            ignore_patterns=[prefix + pattern for pattern in _SKIPPED],
            local_files_only=offline,
        )
    except hub.errors.LocalEntryNotFoundError:
        raise FileNotFoundError(f"{repository} (revision {revision or 'main'}) is not in the cache.") from None
    if commit is not None and Path(folder).name != commit:
        raise FileNotFoundError(f"{repository} changed during the download; try again, or pin a revision.")
    return Path(folder)


def checkpoint_on_hub(files: list[str], prefix: str, checkpoint: str | None) -> str:
    """Return the one checkpoint to download, relative to the model's folder ``prefix``.

    Raises
    ------
    FileNotFoundError
        If the hub does not have it; the message lists what it has.
    """
    names = [file.removeprefix(prefix) for file in files if file.startswith(prefix) and file.endswith(".ckpt")]
    names = [name for name in names if "/" not in name.removeprefix("checkpoints/")]
    name = choose_checkpoint(names, checkpoint)
    if name is None:
        raise FileNotFoundError(f"The hub has no checkpoint {checkpoint or ''!r} under {prefix!r}; it has {names}.")
    return name


def import_hub() -> Any:
    """Return ``huggingface_hub``, or raise ``ImportError`` saying how to install it."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise ImportError(
            "The hub needs huggingface_hub: pip install 'scvi-tahoe[hub]'. A local folder does not."
        ) from None
    return huggingface_hub
