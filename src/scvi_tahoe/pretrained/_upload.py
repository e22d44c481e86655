"""Passing a model on through the Hugging Face hub: an export, with its card and its licence, in one commit."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvi_tahoe.pretrained._export import export_model, is_export, read_export
from scvi_tahoe.pretrained._licence import LicenceNotAcceptedError, verify_licence
from scvi_tahoe.pretrained._source import import_hub

if TYPE_CHECKING:
    from scvi_tahoe.pretrained._pretrained_model import PretrainedModel

__all__ = ["push_model"]

#: What an export is made of. Anything else, a pickle above all, stays here.
_ALLOWED = (".safetensors", ".json", ".md")
_LICENCE = "LICENSE"


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
    """Export a model into a temporary folder and upload that folder as one commit.

    Parameters
    ----------
    model, base
        See :func:`export_model`.
    repository
        ``'owner/name'`` on the hub; created if it does not exist.
    accept_license
        Accept the licence of the weights that the model derives from; ``None``: what ``SCVI_TAHOE_ACCEPT_LICENSE``
        says. Asked for weights that derive from Arc's only.
    license_file
        Text of the licence, which goes along as ``LICENSE``. Needed to publish weights that derive from Arc's.
    share_cells
        Upload a prior that holds cells of the training data.
    private
        Visibility of a new repository. One that exists and is public is refused unless this is ``False``.
    revision, message, token
        Branch, title of the commit, and token; ``None``: main, a title, and the token of the hub's own login.

    Returns
    -------
    Commit, to be given as ``revision`` to :meth:`~scvi_tahoe.TahoeST.from_pretrained`.

    Raises
    ------
    LicenceNotAcceptedError
        If the weights derive from Arc's and the licence was not accepted, or its text is missing where it is needed.
    PermissionError
        If the prior holds cells and ``share_cells`` does not allow it, or the repository is public unasked.
    FileNotFoundError
        If there is no such ``license_file``.
    ImportError
        If ``huggingface_hub`` is not installed.
    """
    hub = import_hub()
    if model.provenance.non_commercial:
        verify_licence(model.provenance.source, accept_license)
        if not private and license_file is None:
            raise LicenceNotAcceptedError(
                "Publishing weights that derive from Arc's needs the text of their licence beside them; give "
                "license_file=, the file that came with the weights, or keep the repository private."
            )
    n_cells = 0 if model.prior is None else len(model.prior["donor_condition"])
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
        _verify_repository(hub, api, repository, private=private)
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
    """Return the names of the files of an export, after reading it as its users will.

    Raises
    ------
    ValueError
        If it is no export, is damaged, or holds a file of another kind than exports have.
    """
    if not is_export(folder):
        raise ValueError(f"{folder} is no export of scvi-tahoe; write one with model.export(folder).")
    files = sorted(path.name for path in folder.iterdir())
    strange = [name for name in files if not name.endswith(_ALLOWED) and name != _LICENCE]
    if strange:
        raise ValueError(f"{folder} holds {strange}, which no export has; nothing was uploaded.")
    model = read_export(folder, base=base)
    if model.provenance.non_commercial and "LICENSE_NOTICE.md" not in files:
        raise ValueError(f"{folder} lacks LICENSE_NOTICE.md, which weights that derive from Arc's need.")
    return files


def _verify_repository(hub: Any, api: Any, repository: str, *, private: bool) -> None:
    """Create the repository, or see to it that the one there is is as private as was asked for."""
    try:
        known = api.model_info(repository)
    except hub.errors.RepositoryNotFoundError:
        api.create_repo(repository, private=private, exist_ok=True)
        known = api.model_info(repository)
    if private and not known.private:
        raise PermissionError(
            f"{repository} is public; nothing was uploaded. Pass private=False to publish, or give another name."
        )
