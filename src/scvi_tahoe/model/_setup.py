"""Registration of a screen, which is verified at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi.utils import setup_anndata_dsp

from scvi_tahoe._arguments import checked
from scvi_tahoe._compat import forget_manager_with_data
from scvi_tahoe.data import ScreenManager
from scvi_tahoe.model._fitted import FittedModel, keys_of_registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData

    from scvi_tahoe._compat import AnnOrMuData
    from scvi_tahoe.data import Combination, ScreenKeys


class SetupMixin(FittedModel):
    """``setup_anndata`` and ``setup_mudata``."""

    @classmethod
    @setup_anndata_dsp.dedent
    @checked()
    def setup_anndata(  # noqa: PLR0913
        cls,
        adata: AnnData,
        perturbation_key: str,
        control: str | float,
        layer: str | None = None,
        cell_embedding_key: str | None = None,
        perturbation_embedding_key: str | Sequence[str] | None = None,
        context_key: str | None = None,
        batch_key: str | None = None,
        dose_key: str | None = None,
        combination_separator: str | None = None,
        combination: Combination = "sum",
        source_key: str | None = None,
        weight_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Register a screen. It is verified at once, and not changed.

        Parameters
        ----------
        %(param_adata)s
        perturbation_key
            Column of ``obs`` with one perturbation label per cell.
        control
            The label of control cells. Every context with perturbed cells needs some.
        layer
            Layer with the expression, as log1p of normalised counts. If None, ``X``.
        cell_embedding_key
            Key of ``obsm`` with a cell embedding, for the representations that use one.
        perturbation_embedding_key
            Key of ``uns`` with one embedding row per label: a mapping of label to vector, a DataFrame with labels as
            index, or ``(names, matrix)``. A list of keys fuses tables: each is standardised and followed by a column
            that marks the labels it lacks. If None, labels are one-hot.
        context_key
            Column of ``obs`` with the biological setting: cell line, cell type, donor.
        batch_key
            Column of ``obs`` with the technical batch; controls are matched within it.
        dose_key
            Column of ``obs`` with the dose of each perturbed cell, a number above 0. A condition is then a perturbation
            at a dose with the label ``"Trametinib@10"``, and the network sees log10 of the dose; other doses can be
            predicted. Combinations have one dose per component, ``"1+10"``.
        combination_separator
            Separator of the perturbations in a label, e.g. ``"+"`` in ``"KLF1+MAP2K6"``. Rows of combinations
            are then composed of those of their components, in any order, and unmeasured combinations can be
            predicted.
        combination
            How rows of components are combined: ``'sum'`` adds them, with the number of further components as one
            more column (default); with ``'learned'`` the network encodes every component and sums the encodings.
        source_key
            Column of ``obs`` with the data set that a cell is from, one for each context, such as ``"source"`` of
            :func:`~scvi_tahoe.concat_screens`: contexts of one data set may have more in common than with those of
            others.
        weight_key
            Column of ``obs`` with a weight of 0 or more, one for each context, such as ``"source_weight"``. Training
            draws conditions in proportion to it. Below 1, the rest of the variance among its perturbations counts as
            noise in the response model; contexts of weight 0 are not learned from.

        Raises
        ------
        KeyError
            If a key does not exist.
        ValueError
            If control cells, embedding rows, names, labels or values do not meet the model's requirements.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        keys = keys_of_registry(setup_method_args)
        cls._register(adata, keys, setup_method_args, **kwargs)

    @classmethod
    @setup_anndata_dsp.dedent
    @checked()
    def setup_mudata(  # noqa: PLR0913
        cls,
        mdata: MuData,
        perturbation_key: str,
        control: str | float,
        modalities: dict[str, str] | None = None,
        layer: str | None = None,
        cell_embedding_key: str | None = None,
        perturbation_embedding_key: str | Sequence[str] | None = None,
        context_key: str | None = None,
        batch_key: str | None = None,
        dose_key: str | None = None,
        combination_separator: str | None = None,
        combination: Combination = "sum",
        source_key: str | None = None,
        weight_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Register a screen whose expression and cell embedding are modalities of a MuData.

        Parameters
        ----------
        %(param_mdata)s
        perturbation_key, control, layer, cell_embedding_key, perturbation_embedding_key, context_key
            As in :meth:`setup_anndata`. Columns are looked up in ``mdata.obs``, then in the expression modality.
            Without ``cell_embedding_key`` the embedding is ``X`` of its modality.
        dose_key, combination_separator, combination, source_key, weight_key
            As in :meth:`setup_anndata`.
        modalities
            Modalities by what they hold, e.g. ``{"expression": "rna", "cell_embedding": "state"}``.

        Raises
        ------
        KeyError, ValueError
            As :meth:`setup_anndata`, and if modalities are missing or hold different cells.
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        keys = keys_of_registry(setup_method_args)
        cls._register(mdata, keys, setup_method_args, **kwargs)

    @classmethod
    def _register(cls, data: AnnOrMuData, keys: ScreenKeys, setup_method_args: dict, **kwargs: Any) -> None:
        if data.is_view:
            raise ValueError("the data are a view of other data; run adata = adata.copy() first.")
        manager = ScreenManager.of(data, keys, setup_method_args, **kwargs)
        cls.register_manager(manager)
        forget_manager_with_data(cls, manager)

    @classmethod
    def setup_annbatch(cls, *args: Any, **kwargs: Any) -> None:
        """Raise an error: annbatch delivers single cells, and this model needs sets of them.

        Raises
        ------
        NotImplementedError
            Always; use backed AnnData or :func:`scvi_tahoe.read_store` for data larger than memory.
        """
        raise NotImplementedError(
            "TahoeST trains on sets of cells, which setup_annbatch cannot hand over; for data larger than memory "
            "register backed data: adata = sc.read_h5ad(path, backed='r')."
        )
