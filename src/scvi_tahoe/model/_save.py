"""A model on disk, as scvi-tools writes it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Self

from scvi_tahoe._compat import history_as_frames
from scvi_tahoe.model._fitted import FittedModel
from scvi_tahoe.pretrained import LoadingReport, is_export

if TYPE_CHECKING:
    from pathlib import Path

    from scvi_tahoe._compat import AnnOrMuData


class SaveMixin(FittedModel):
    """``save`` and ``load``."""

    def save(self, dir_path: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save the model, as in scvi-tools; the file is readable by every supported scvi-tools and pandas.

        Parameters
        ----------
        dir_path
            Folder.
        *args, **kwargs
            Arguments of :meth:`scvi.model.base.BaseModelClass.save`.
        """
        super().save(str(dir_path), *args, **kwargs)

    @classmethod
    def load(cls, dir_path: str | Path, adata: AnnOrMuData | bool | None = None, **kwargs: Any) -> Self:
        """Load a model saved with :meth:`save`.

        Parameters
        ----------
        dir_path
            Folder.
        adata
            Data with the columns of the training data, genes in any order; False loads without data.
        **kwargs
            Arguments of :meth:`scvi.model.base.BaseModelClass.load`.

        Returns
        -------
        The model, in eval mode.

        Raises
        ------
        ValueError
            If the folder is one of :meth:`export`, which :meth:`from_pretrained` reads, or holds no model.
        """
        if is_export(dir_path):
            raise ValueError(
                f"{dir_path} was written by export(), not by save(); read it with TahoeST.from_pretrained."
            )
        with warnings.catch_warnings():
            # genes are matched by name, so another order of them is nothing to warn about
            warnings.filterwarnings("ignore", message="`var_names` for the loaded `model` does not match")
            model = super().load(str(dir_path), adata, **kwargs)
        if vars(model).pop("calibration_", None) is not None:  # of version 0.1
            warnings.warn(
                f"the model in {dir_path} was calibrated, which this version no longer does: it predicts the effects "
                "that its network says.",
                UserWarning,
                stacklevel=2,
            )
        report = model.loading_report_
        model._adopt(
            history_=history_as_frames(model.history_),
            loading_report_=None if report is None else LoadingReport.from_dict(report),
        )
        if getattr(model, "decoder_weight_", None) is not None:
            model.module.objective.decoder_weight = model.decoder_weight_
        return model
