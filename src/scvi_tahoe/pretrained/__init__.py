"""Pretrained weights: where they come from, what is in them, and how a new network starts from them."""

from __future__ import annotations

import scvi_tahoe._names as _names
from scvi_tahoe.files import UnsafeFileError
from scvi_tahoe.pretrained._arc_files import list_checkpoints
from scvi_tahoe.pretrained._arc_settings import ArcColumns
from scvi_tahoe.pretrained._diagnosis import (
    AttentionDiagnosis,
    ScaleCheck,
    compare_scale,
    diagnose_attention,
    verify_scale,
)
from scvi_tahoe.pretrained._embed_cells import EmbeddingReport, embed_cells
from scvi_tahoe.pretrained._format_arc import arc_refusals, read_arc_folder, write_arc_folder
from scvi_tahoe.pretrained._format_export import export_model, is_export, read_export
from scvi_tahoe.pretrained._hub import (
    SourceFolder,
    inspect_folder,
    push_model,
    read_pretrained,
    reject_hub_options,
    resolve_source,
)
from scvi_tahoe.pretrained._licence import LicenceNotAcceptedError, LicenceWarning, licence_notice, licence_text
from scvi_tahoe.pretrained._model_card import describe, model_card
from scvi_tahoe.pretrained._new_model import (
    fitted_values,
    for_other_cells,
    objective_of,
    reason_to_leave_prior,
    registry_in_order,
    registry_of,
    start_options,
    united_table,
    with_numbered_genes,
)
from scvi_tahoe.pretrained._pretrained_model import (
    FORMATS,
    AxisLabels,
    LossSettings,
    ModelFormat,
    PretrainedModel,
    Provenance,
)
from scvi_tahoe.pretrained._report import LabelMatch, LoadingReport, TensorRecord
from scvi_tahoe.pretrained._run_weights import holds_run, run_checkpoint
from scvi_tahoe.pretrained._state_embedding import StateEmbedding, read_state_embedding
from scvi_tahoe.pretrained._tables import flat_table, read_embedding_table, table_settings
from scvi_tahoe.pretrained._warm_start import DECISIONS, DecisionsNeededError, WarmStart, match_labels, plan_warm_start

__all__ = [
    "DECISIONS",
    "FORMATS",
    "AttentionDiagnosis",
    "DecisionsNeededError",
    "EmbeddingReport",
    "LicenceNotAcceptedError",
    "LicenceWarning",
    "LoadingReport",
    "ModelFormat",
    "PretrainedModel",
    "Provenance",
    "StateEmbedding",
    "UnsafeFileError",
    "diagnose_attention",
    "embed_cells",
    "inspect_folder",
    "read_arc_folder",
    "read_pretrained",
    "read_state_embedding",
]

_names.import_files(__name__, "_format_")
