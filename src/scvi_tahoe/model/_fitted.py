"""Every saved attribute of a model other than its weights, the only place that writes one, and a model on disk."""

from __future__ import annotations

import os
import warnings
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from anndata import AnnData
from scvi.model.base import BaseModelClass, UnsupervisedTrainingMixin

from scvi_tahoe._arguments import checked
from scvi_tahoe._compat import history_as_frames, history_as_lists
from scvi_tahoe._constants import REGISTRY
from scvi_tahoe._labels import verify_unique
from scvi_tahoe._messages import warn
from scvi_tahoe.data import DataSpec, EmbeddingTable, EmbeddingTableField, ScreenKeys
from scvi_tahoe.files import atomic_write, only_weights, restore, updated_folder, verify_model_file, verify_space
from scvi_tahoe.pretrained import LoadingReport, is_export

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvi_tahoe._compat import AnnOrMuData
    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.data import Representation, Screen, ScreenManager
    from scvi_tahoe.response import Criterion, Prior


@dataclass(init=False, repr=False, eq=False)
class FittedState:
    """Attributes that are saved with a model in addition to its weights, and their values in a new one."""

    #: Names of the parameters that hold values from a pretraining or an earlier training; only these can be frozen.
    pretrained_parameters_: list[str] = field(default_factory=list)
    #: Layers, rank and alpha of the adapters that ``recipe='lora'`` attached; None without adapters.
    adapters_: dict[str, Any] | None = None
    #: What the prior keeps of its training cells, as plain values and arrays; None before it is learned.
    prior_: dict[str, Any] | None = None
    #: Weight of the gene decoder that training measured where ``decoder_weight='auto'``; None otherwise.
    decoder_weight_: float | None = None
    #: Mean cosine between the observed deltas of the training data, by context; the measure for collapsed predictions.
    observed_cosine_: dict[str, float] = field(default_factory=dict)
    #: Largest cosine of two of them, and squared length that sampling adds to a delta; absent from version 0.1.
    observed_noise_: dict[str, dict[str, float]] = field(default_factory=dict)
    #: What became of every pretrained tensor, and how labels matched; None for a model from scratch.
    loading_report_: LoadingReport | None = None
    #: Where pretrained weights come from, as plain values; None for a model from scratch.
    provenance_: dict[str, Any] | None = None
    #: Objective that pretrained weights were trained with, as options; None for a model from scratch.
    weights_objective_: dict[str, Any] | None = None
    #: Labels of one-hot weights and of the data together, where both are one-hot. If None, the registered table.
    one_hot_labels_: list[str] | None = None
    #: Split of the latest training, as plain values.
    split_: dict[str, Any] | None = None
    #: Options and outcome of the latest training, as plain values.
    training_config_: dict[str, Any] | None = None
    #: Logged values of all trainings: one DataFrame a metric.
    history_: Any = None
    #: Whether the weights come from a training or a pretraining.
    is_trained_: bool = False


#: names of scvi-tools for a model's files
_WEIGHTS, _DATA = "model.pt", ("adata.h5ad", "mdata.h5mu")
#: fraction of the genes that data may lack in a prediction by default
_MISSING_GENES = 0.1
_SAVED = frozenset(f.name for f in fields(FittedState))


def new_state() -> dict[str, Any]:
    """Return the values of all saved attributes in a new model."""
    return {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(FittedState)}


class FittedModel(FittedState, UnsupervisedTrainingMixin, BaseModelClass):
    """Base of :class:`~scvi_tahoe.TahoeST` and its mixins: what a model has, and what follows from it."""

    module: TahoeSTModule
    representation: Representation
    prior: Prior
    criterion: Criterion
    set_size: int

    def _adopt(self, **values: Any) -> None:
        """Take over values of saved attributes; nothing else writes them.

        Raises
        ------
        AttributeError
            If a name is not one of :class:`FittedState`.
        """
        if unknown := sorted(set(values) - _SAVED):
            raise AttributeError(f"{unknown} are no attributes of FittedState; name there what is saved with a model.")
        for name, value in values.items():
            setattr(self, name, value)

    def _get_user_attributes(self) -> list[tuple[str, Any]]:
        """Return what is saved: attributes that end with ``_``, in types that every supported pandas can read."""
        return [(name, _plain(name, value)) for name, value in sorted(vars(self).items())]

    @checked()
    def save(
        self,
        dir_path: str | Path,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save the model, as in scvi-tools; the file is readable by every supported scvi-tools and pandas.

        The folder is complete or what it was before, whatever interrupts the writing.

        Parameters
        ----------
        dir_path
            Folder.
        prefix
            Prefix of the names of the files.
        overwrite
            Whether to replace a model that was saved there; other files of the folder stay.
        save_anndata
            Whether to save the data as well.
        **kwargs
            Further arguments of :meth:`scvi.model.base.BaseModelClass.save`.

        Raises
        ------
        ValueError
            If the folder exists and ``overwrite`` is False.
        OSError
            If the disk has no room for the model.
        UnsafeFileError
            If the model was given options that :meth:`load` would refuse, e.g. objects of other packages.
        """
        folder = Path(dir_path)
        restore(folder)
        if os.path.lexists(folder) and not (overwrite and folder.is_dir()):
            raise ValueError(f"{dir_path} exists; give overwrite=True to replace it, or another folder.")
        size = sum(tensor.numel() * tensor.element_size() for tensor in self.module.state_dict().values())
        verify_space(folder, size, "the model")
        names = [f"{prefix or ''}{name}" for name in (_WEIGHTS, *(_DATA if save_anndata else ()))]
        with updated_folder(folder, written=names) as partial:
            super().save(str(partial), prefix=prefix, overwrite=True, save_anndata=save_anndata, **kwargs)
            verify_model_file(partial / names[0], verify=False)

    @classmethod
    @checked()
    def load(
        cls, dir_path: str | Path, adata: AnnOrMuData | bool | None = None, *, verify: bool = True, **kwargs: Any
    ) -> Self:
        """Load a model saved with :meth:`save`. Nothing in its file is run.

        Parameters
        ----------
        dir_path
            Folder.
        adata
            Data with the columns of the training data, genes in any order; False loads without data.
        verify
            Whether to compare the file with the checksums in it, which reads it once more.
        **kwargs
            Arguments of :meth:`scvi.model.base.BaseModelClass.load`.

        Returns
        -------
        The model, in eval mode.

        Raises
        ------
        ValueError
            If the folder is one of :meth:`export`, which :meth:`from_pretrained` reads, or holds no model, or if the
            data lack most of the model's genes.
        UnsafeFileError
            If the file is damaged, or refers to more than tensors, plain values and arrays of numbers or text.
        """
        if is_export(dir_path):
            raise ValueError(
                f"{dir_path} was written by export(), not by save(); read it with TahoeST.from_pretrained."
            )
        path = _model_file(dir_path, kwargs.get("prefix"), kwargs.get("backup_url"))
        verify_model_file(path, verify=verify)
        if isinstance(adata, AnnData):
            verify_unique(adata.var_names, "gene", "; call adata.var_names_make_unique()")
        with warnings.catch_warnings(), only_weights():
            # genes are matched by name, so another order of them is nothing to warn about
            warnings.filterwarnings("ignore", message="`var_names` for the loaded `model` does not match")
            model = super().load(str(dir_path), adata, **kwargs)
        if model.adata is not None:
            _verify_genes(model.genes, model._own_screen().genes)
        if vars(model).pop("calibration_", None) is not None:  # of version 0.1
            warn(
                f"the model in {dir_path} was calibrated, which this version no longer does: it predicts the effects "
                "that its network says."
            )
        report = model.loading_report_
        model._adopt(
            history_=history_as_frames(model.history_),
            loading_report_=None if report is None else LoadingReport.from_dict(report),
        )
        if getattr(model, "decoder_weight_", None) is not None:
            model.module.objective.decoder_weight = model.decoder_weight_
        return model

    @staticmethod
    @checked()
    def load_registry(dir_path: str | Path, prefix: str | None = None) -> dict:
        """Return the registry of a saved model, see :meth:`scvi.model.base.BaseModelClass.load_registry`.

        Parameters
        ----------
        dir_path
            Folder of the model.
        prefix
            Prefix of the names of its files.

        Raises
        ------
        ValueError
            If the folder holds no model; UnsafeFileError if its file is refused, as in :meth:`load`.
        """
        verify_model_file(_model_file(dir_path, prefix, None))
        with only_weights():
            return BaseModelClass.load_registry(str(dir_path), prefix)

    @staticmethod
    def view_setup_args(dir_path: str | Path, prefix: str | None = None) -> None:
        """Print the arguments that the data of a saved model were registered with.

        Parameters
        ----------
        dir_path
            Folder of the model.
        prefix
            Prefix of the names of its files.
        """
        verify_model_file(_model_file(dir_path, prefix, None))
        with only_weights():
            BaseModelClass.view_setup_args(str(dir_path), prefix)

    @classmethod
    def convert_legacy_save(cls, *args: Any, **kwargs: Any) -> None:
        """Raise an error: the files of scvi-tools before 0.15 are pickles, and no model of this class is one.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError(
            "TahoeST has no models in the format of scvi-tools before 0.15, whose files run code when they are read."
        )

    @property
    def keys(self) -> ScreenKeys:
        """Where a screen keeps its parts: the arguments of the setup method."""
        return keys_of_registry(self.registry_)

    @property
    def genes(self) -> np.ndarray:
        """Names of the model's genes."""
        return np.asarray(self.state_registry(REGISTRY.EXPRESSION)["column_names"]).astype(str)

    @property
    def perturbation_table(self) -> EmbeddingTable:
        """Embedding rows of all perturbations that the model can predict."""
        table = EmbeddingTableField.table(self.state_registry(REGISTRY.PERTURBATION_EMBEDDING))
        return (
            table if self.one_hot_labels_ is None else table.reindexed(EmbeddingTable.one_hot_of(self.one_hot_labels_))
        )

    @checked()
    def state_registry(self, key: str) -> dict[str, Any]:
        """Return what the registry stored for a field, also without data."""
        return self.registry_["field_registries"][key]["state_registry"]

    def _spec(self, **changes: Any) -> DataSpec:
        """Return what the model fixes about its data.

        Raises
        ------
        ValueError
            If the network looks at technical batches and none are registered.
        """
        config, batches = self.module.config, None
        if config.n_batches or config.batch_token:
            if REGISTRY.BATCH not in self.registry_["field_registries"]:
                raise ValueError(
                    "the network looks at technical batches, and none are registered; register them with batch_key."
                )
            batches = tuple(str(name) for name in self.state_registry(REGISTRY.BATCH)["names"])
        values = {
            "keys": self.keys, "genes": self.genes, "table": self.perturbation_table, "batches": batches,
            "representation": self.representation, "set_size": self.set_size,
        }  # fmt: skip
        return DataSpec(**{**values, **changes})

    def _own_screen(self, *, for_training: bool = False) -> Screen:
        """Return the model's own data, verified once unless they change."""
        manager: ScreenManager = self.adata_manager
        return manager.screen(self.keys, for_training=for_training)

    def _training_screen(self) -> Screen:
        if self.adata is None:
            raise ValueError("this model was loaded without data; load it with TahoeST.load(path, adata) to train it.")
        self._validate_anndata()
        screen = self._own_screen(for_training=True)
        table = self.perturbation_table.with_composed(screen.perturbation.names)
        unknown = sorted(n for n in screen.perturbation.names if table.known_name(n) not in table.names)
        if unknown:
            raise ValueError(f"the model has no embedding row for these perturbations of the data: {unknown[:5]}.")
        return screen

    @classmethod
    def _registered(cls, adata: AnnOrMuData) -> dict[str, Any]:
        """Return the registry of registered data."""
        return cls._get_most_recent_anndata_manager(adata, required=True).registry


def _model_file(folder: str | Path, prefix: str | None, url: str | None) -> Path:
    """Return the file of a saved model; download it if asked, and put back what a killed process had put aside."""
    restore(folder)
    path = Path(folder) / f"{prefix or ''}{_WEIGHTS}"
    if url is not None and not path.exists():
        with atomic_write(path) as partial:
            torch.hub.download_url_to_file(url, str(partial), progress=False)
    if not path.is_file():
        found = sorted(p.name for p in path.parent.iterdir())[:5] if path.parent.is_dir() else "no such folder"
        raise ValueError(f"{folder} holds no saved model ({path.name}); it has {found}.")
    return path


def _verify_genes(genes: np.ndarray, found: np.ndarray) -> None:
    """Refuse data without most of a model's genes, and warn where prediction would refuse them by default."""
    missing = genes[~np.isin(genes, found)]
    if len(missing) <= _MISSING_GENES * len(genes):
        return
    message = (
        f"the data lack {len(missing):,} of the model's {len(genes):,} genes, e.g. {missing[:3].tolist()}; they have "
        f"e.g. {found[:3].tolist()}"
    )
    if len(missing) > len(genes) / 2:
        raise ValueError(
            f"{message}. If these are other identifiers, set var_names to the model's; a model is also loaded without "
            "data, TahoeST.load(folder, False)."
        )
    warn(f"{message}: predict takes these data only with a larger max_missing_genes.")


def keys_of_registry(registry: Mapping[str, Any]) -> ScreenKeys:
    """Return where registered data keep their parts."""
    return ScreenKeys(**{name: value for name, value in registry["setup_args"].items() if value is not None})


def _plain(name: str, value: Any) -> Any:
    if name == "history_":
        return history_as_lists(value)
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
