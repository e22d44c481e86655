"""Fine-tune State Transition models on your own perturbation screens, in the style of scvi-tools."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scvi_tahoe._messages import show_messages

if TYPE_CHECKING:
    from scvi_tahoe import datasets, evaluate, pl
    from scvi_tahoe._module import TahoeSTModule
    from scvi_tahoe.data import (
        FewShotContext,
        FractionSplit,
        HeldOutConditions,
        HeldOutContexts,
        HeldOutPerturbations,
        ListedConditions,
        dose_label,
        read_store,
        screen_quality,
        smiles_fingerprints,
        write_store,
    )
    from scvi_tahoe.evaluate import EvaluationReference, EvaluationResult, baseline_prediction, submission
    from scvi_tahoe.model import TahoeEnsemble, TahoeST, suggest_decoder_weight
    from scvi_tahoe.nn import SIZES
    from scvi_tahoe.pretrained import read_embedding_table
    from scvi_tahoe.response import concat_screens

    __version__: str

__all__ = [
    "SIZES",
    "EvaluationReference",
    "EvaluationResult",
    "FewShotContext",
    "FractionSplit",
    "HeldOutConditions",
    "HeldOutContexts",
    "HeldOutPerturbations",
    "ListedConditions",
    "TahoeEnsemble",
    "TahoeST",
    "TahoeSTModule",
    "baseline_prediction",
    "concat_screens",
    "datasets",
    "dose_label",
    "evaluate",
    "pl",
    "read_embedding_table",
    "read_store",
    "screen_quality",
    "smiles_fingerprints",
    "submission",
    "suggest_decoder_weight",
    "write_store",
]

show_messages(__name__)

# Names and folders are imported when they are first used, so that importing the package is quick.
_FOLDERS = (
    *("data", "datasets", "demo", "evaluate", "model", "nn", "pl"),
    *("effects", "prediction", "pretrained", "response", "study", "tables", "train", "training"),
)
_MODULES = {
    "_module": ("TahoeSTModule",),
    "data": (
        *("FewShotContext", "FractionSplit", "HeldOutConditions", "HeldOutContexts", "HeldOutPerturbations"),
        *("ListedConditions",),
        *("dose_label", "read_store", "screen_quality", "smiles_fingerprints", "write_store"),
    ),
    "evaluate": ("EvaluationReference", "EvaluationResult", "baseline_prediction", "submission"),
    "model": ("TahoeEnsemble", "TahoeST", "suggest_decoder_weight"),
    "nn": ("SIZES",),
    "pretrained": ("read_embedding_table",),
    "response": ("concat_screens",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _FOLDERS:
        return import_module(f"{__name__}.{name}")
    if name == "__version__":
        value = import_module("importlib.metadata").version("scvi-tahoe")
    elif name in _MODULE_OF:
        value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), "__version__", *__all__, *_FOLDERS})
