"""Where weights come from and go to: a folder, or the Hugging Face hub, pinned, checked, cached, with its licence."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from scvi_tahoe._arguments import checked
from scvi_tahoe.files import UnsafeFileError, file_sha256
from scvi_tahoe.pretrained._arc_files import choose_checkpoint, list_checkpoints
from scvi_tahoe.pretrained._format_export import export_model, is_export, read_export
from scvi_tahoe.pretrained._licence import (
    LicenceNotAcceptedError,
    is_arcs,
    is_permissive,
    mention_licence,
    show_licence,
    stated_licence,
    verify_licence,
)
from scvi_tahoe.pretrained._model_card import describe
from scvi_tahoe.pretrained._pretrained_model import FORMATS, PretrainedModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scvi_tahoe.nn import AttentionName

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(/[\w.=-]+)*")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SIDE_FILES = (
    "config.yaml", "config.json", "*.pkl", "*.pt", "*.torch", "version_*/hparams.yaml", "hparams.yaml", "*.safetensors",
    "README.md", "LICENSE*",
)  # fmt: skip
#: Evaluation results: hundreds of megabytes that no model needs.
_SKIPPED = ("eval*/*", "*.h5ad", "*.csv", "*.npy")
#: What an export is made of. Anything else, a pickle above all, stays here.
_ALLOWED = (".safetensors", ".json", ".md")
_LICENCE = "LICENSE"
_MOST_PATHS = 20_000  # of a folder that is not a model, in which models are looked for
_SHOWN = 12  # models of a repository that an error names


class SourceFolder(NamedTuple):
    """A model folder on this machine, what it is known as, and its commit on the hub."""

    folder: Path
    name: str
    revision: str | None = None


@checked()
def read_pretrained(
    source: str | Path | PretrainedModel,
    checkpoint: str | None = None,
    *,
    revision: str | None = None,
    accept_license: bool | None = None,
    attention: AttentionName | None = None,
    genes: Sequence[str] | None = None,
    base: PretrainedModel | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
) -> PretrainedModel:
    """Return a model from a folder in any format, local or on the hub.

    Parameters
    ----------
    source
        An existing folder or checkpoint file; a name on the Hugging Face hub, ``'owner/name'``, with ``'/folder'``
        behind it where one repository holds several models; or a model that was read before, returned as it is.
    checkpoint, attention, genes
        See :func:`read_arc_folder`; for folders in Arc's format. Of a hub, only that checkpoint is downloaded.
    revision
        Branch, tag or commit of the hub, resolved to a commit. If None, the main branch.
    accept_license
        Accept the licence of downloaded weights. If None, ``SCVI_TAHOE_ACCEPT_LICENSE`` decides.
    base
        The model whose backbone an export refers to, if it does.
    cache_dir
        Cache of the hub. If None, that of the Hugging Face client.
    offline
        Use the cache and no network. So does the variable ``HF_HUB_OFFLINE=1`` of the hub's client.

    Raises
    ------
    FileNotFoundError
        If there is no such folder or checkpoint, or offline and not in the cache.
    LicenceNotAcceptedError
        If the licence was not accepted.
    UnsafeFileError
        If a file is damaged, forged, or does not have the hash the hub states. It is a ``ValueError``.
    ValueError
        If an option is not for this format, or a part of the model is not supported.
    ImportError
        If ``huggingface_hub`` is needed and not installed.
    """
    options: dict[str, Any] = {"checkpoint": checkpoint, "attention": attention, "genes": genes, "base": base}
    if isinstance(source, PretrainedModel):
        if any(value is not None for value in (revision, *options.values())):
            raise ValueError(f"{', '.join(options)} and revision are for reading weights, and these were read before.")
        return source
    place = resolve_source(
        source, checkpoint, revision=revision, accept_license=accept_license, cache_dir=cache_dir, offline=offline
    )
    found = next((f for f in FORMATS.values() if f.matches is not None and f.matches(place.folder)), None)
    if found is None and place.folder.is_dir() and not list_checkpoints(place.folder):
        paths = islice(place.folder.rglob("*"), _MOST_PATHS)  # it may be anybody's home
        if inside := model_folders(path.relative_to(place.folder).as_posix() for path in paths):
            raise FileNotFoundError(_several(place.name, inside))
    model = (found or next(f for f in FORMATS.values() if f.matches is None)).read(place.folder, **options)
    origin = model.provenance
    if place.revision is None:
        mention_licence(origin, accept_license)
        return model
    root = next((parent for parent in place.folder.parents if parent.name == place.revision), None)
    licence = stated_licence(place.folder, root)
    # Weights of other authors in Arc's format may derive from Arc's, unless their licence says otherwise.
    free = origin.format == "arc" and is_permissive(licence) and not is_arcs(place.name)
    origin = replace(
        origin, source=place.name, revision=place.revision, licence=licence,
        non_commercial=origin.non_commercial and not free,
    )  # fmt: skip
    show_licence(origin)
    return replace(model, provenance=origin)


def model_folders(files: Iterable[str]) -> list[str]:
    """Return the folders that hold a model, of the paths of all files of a repository or folder."""
    found = set()
    for path in map(PurePosixPath, files):
        if path.suffix == ".ckpt":
            found.add(path.parent.parent if path.parent.name == "checkpoints" else path.parent)
        elif path.name == "model.safetensors":
            found.add(path.parent)
    return sorted(folder.as_posix() for folder in found if folder.as_posix() != ".")


def _several(name: str, folders: Sequence[str]) -> str:
    shown = ", ".join(f"{name}/{folder}" for folder in folders[:_SHOWN])
    more = f", and {len(folders) - _SHOWN} more" if len(folders) > _SHOWN else ""
    return f"{name} holds {len(folders)} models in folders; take one of them as the source: {shown}{more}."


@checked()
def inspect_folder(folder: str | Path, checkpoint: str | None = None) -> str:
    """Return a description of a model folder: network, attention, labels, tensors, loss, licence.

    Parameters
    ----------
    folder
        A folder in any format.
    checkpoint
        Which checkpoint of a folder in Arc's format.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`read_pretrained` does.
    """
    text = describe(read_pretrained(folder, checkpoint))
    found = list_checkpoints(Path(folder)) if Path(folder).is_dir() else []
    return f"{text}\ncheckpoints     {', '.join(found)}" if found else text


def resolve_source(
    source: str | Path,
    checkpoint: str | None = None,
    *,
    revision: str | None = None,
    accept_license: bool | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    files: Sequence[str] = _SIDE_FILES,
) -> SourceFolder:
    """Return the folder of a model, downloading its ``files`` if need be; arguments as of :func:`read_pretrained`."""
    if _is_local(source):
        return SourceFolder(Path(source), Path(source).resolve().name)
    if not _HUB_NAME.fullmatch(str(source)):
        raise FileNotFoundError(f"{str(source)[:200]} is neither a folder here nor a name on the hub ('owner/name').")
    owner, name, *inside = str(source).split("/")
    repository, subfolder = f"{owner}/{name}", "/".join(inside)
    import_hub()
    verify_licence(repository, accept_license)
    snapshot = _snapshot(
        repository, subfolder, checkpoint, revision=revision, cache_dir=cache_dir, offline=offline, files=files
    )
    folder = snapshot / subfolder
    if not folder.is_dir():
        raise FileNotFoundError(_no_folder(snapshot, repository, subfolder, offline=offline))
    verify_blobs(snapshot)
    return SourceFolder(folder, str(source), snapshot.name)


def _no_folder(snapshot: Path, repository: str, subfolder: str, *, offline: bool) -> str:
    found = model_folders(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*"))
    known = f"; it has {', '.join(found[:_SHOWN])}" if found else ""
    return f"{repository} has no folder {subfolder!r}" + (" in the cache" if offline else "") + f"{known}."


def reject_hub_options(*sources: object, **given: object) -> None:
    """Raise a ``ValueError`` if options of the hub are given and none of the sources is on it."""
    places = [source for source in sources if isinstance(source, str | Path)]
    names = [name for name, value in given.items() if value not in (None, False) and (places or name != "revision")]
    if names and all(map(_is_local, places)):
        where = f"{str(places[0])[:200]} is a folder here" if places else "these weights were read before"
        raise ValueError(f"{', '.join(names)}: options of the hub, and {where}; leave them out.")


def _is_local(source: str | Path) -> bool:
    with suppress(OSError, ValueError):  # a name that is too long, or that no file can have
        return Path(source).exists()
    return False


def verify_blobs(snapshot: Path) -> None:
    """Compare the files of a hub snapshot with their hashes, which are their names in the cache."""
    for path in sorted(snapshot.rglob("*")):
        blob = path.resolve()
        if not path.is_symlink() or not blob.is_file() or not _HASH.fullmatch(blob.name):
            continue
        if len(blob.name) == 64:
            hashes = [file_sha256(blob)]
        else:  # a small file: git's SHA-1 behind a header, or, from some mirrors, without it
            content = blob.read_bytes()
            parts = (b"blob %d\0" % len(content) + content, content)
            hashes = [hashlib.sha1(part, usedforsecurity=False).hexdigest() for part in parts]
        if blob.name not in hashes:
            raise UnsafeFileError(f"{path.name} does not have the hash the hub states; delete {blob} and try again.")


def _snapshot(
    repository: str,
    subfolder: str,
    checkpoint: str | None,
    *,
    revision: str | None,
    cache_dir: Any,
    offline: bool,
    files: Sequence[str],
) -> Path:
    hub = import_hub()
    prefix = f"{subfolder}/" if subfolder else ""
    wanted = [prefix + pattern for pattern in files]
    commit = None
    offline = offline or hub.constants.HF_HUB_OFFLINE
    if not offline:
        try:
            info = hub.HfApi().model_info(repository, revision=revision)
        except Exception as error:
            error.add_note(f"{repository} was requested from the hub; offline=True reads only the cache.")
            raise
        commit, there = info.sha, [file.rfilename for file in info.siblings or []]
        if not any(file.startswith(prefix) and file.endswith(".safetensors") for file in there):
            if not (here := _checkpoints(there, prefix)):
                inside = model_folders(f.removeprefix(prefix) for f in there if f.startswith(prefix))
                if inside:
                    raise FileNotFoundError(_several(f"{repository}/{subfolder}".rstrip("/"), inside))
            wanted.append(prefix + checkpoint_on_hub(here, checkpoint))
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


def _checkpoints(files: Iterable[str], prefix: str) -> list[str]:
    """Return the checkpoints of the model's folder ``prefix``, relative to it."""
    names = [file.removeprefix(prefix) for file in files if file.startswith(prefix) and file.endswith(".ckpt")]
    return [name for name in names if "/" not in name.removeprefix("checkpoints/")]


def checkpoint_on_hub(names: list[str], checkpoint: str | None) -> str:
    """Return the one checkpoint to download."""
    if (name := choose_checkpoint(names, checkpoint)) is None:
        wanted = "no checkpoint" if checkpoint is None else f"no checkpoint {checkpoint!r}"
        raise FileNotFoundError(f"The model on the hub has {wanted}; it has {names}.")
    return name


def import_hub() -> Any:
    """Return ``huggingface_hub``, or raise ``ImportError`` saying how to install it."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise ImportError("The hub needs huggingface_hub: pip install 'scvi-tahoe[hub]'.") from None
    return huggingface_hub


def push_model(
    model: PretrainedModel,
    repository: str,
    *,
    accept_license: bool | None = None,
    license_file: str | Path | None = None,
    share_cells: bool = False,
    private: bool = True,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
    base: PretrainedModel | None = None,
) -> str:
    """Export a model into a temporary folder, upload that as one commit and return the commit.

    Arguments and errors as of :meth:`~scvi_tahoe.TahoeST.push_to_hub`; ``base`` as of :func:`export_model`.
    """
    hub = import_hub()
    if model.provenance.non_commercial:
        verify_licence(model.provenance.source, accept_license)
        show_licence(model.provenance)
        if not private and license_file is None:
            raise LicenceNotAcceptedError(
                "Publishing weights that derive from Arc's needs the text of their licence: give license_file=, the "
                "file that came with the weights, or keep the repository private."
            )
    n_cells = 0 if model.prior is None else len(model.prior.get("donor_condition", ()))
    if n_cells and not share_cells:
        raise PermissionError(
            f"The prior of this model holds {n_cells:,} cells of the training data. Pass share_cells=True if they may "
            "be passed on, or push a model of prior='none' or 'transfer'."
        )
    if license_file is not None and not Path(license_file).is_file():
        raise FileNotFoundError(f"There is no file {license_file} with the text of a licence.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "export"
        export_model(model, folder, base=base)
        if license_file is not None:
            shutil.copyfile(license_file, folder / _LICENCE)
        files = verify_uploadable(folder, base=base)
        api = hub.HfApi(token=token)
        try:
            known = api.model_info(repository)
        except hub.errors.RepositoryNotFoundError:
            api.create_repo(repository, private=private, exist_ok=True)
            known = api.model_info(repository)
        if private and not known.private:
            other = "Pass private=False to publish, or give another name."
            raise PermissionError(f"{repository} is public; nothing was uploaded. {other}")
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=files,
            revision=revision,
            commit_message=message or "Weights, labels and model card, written by scvi-tahoe",
        )
    return str(commit.oid)


def verify_uploadable(folder: Path, *, base: PretrainedModel | None = None) -> list[str]:
    """Return the names of the files of an export, after reading it as its users will."""
    if not is_export(folder):
        raise ValueError(f"{folder} is not an export of scvi-tahoe; write one with model.export(folder).")
    files = sorted(path.name for path in folder.iterdir())
    if strange := [name for name in files if not name.endswith(_ALLOWED) and name != _LICENCE]:
        raise ValueError(f"{folder} holds {strange}, which no export has; nothing was uploaded.")
    model = read_export(folder, base=base)
    if model.provenance.non_commercial and "LICENSE_NOTICE.md" not in files:
        raise ValueError(f"{folder} lacks LICENSE_NOTICE.md, which weights that derive from Arc's need.")
    return files
