"""Wrong inputs for ``hardening.py``: what public calls, run files and the command line make of them."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import linecache
import random
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
import yaml

import scvi_tahoe
from scvi_tahoe import TahoeEnsemble, TahoeST, datasets, effects, evaluate, pl, pretrained, response, study, tables

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL = {"hidden": 8, "n_layers": 1, "intermediate": 16, "n_heads": 2}
KEYS = {"perturbation_key": "perturbation", "control": "control", "context_key": "context"}
USER_ERRORS = (ValueError, TypeError, KeyError, OSError, NotImplementedError, ImportError)
SLOW_SECONDS = 10.0

#: Values, and the words of annotations that allow them.
WRONG: list[tuple[str, Any]] = [
    *(("int float", value) for value in (3, -7, 10**30)),
    *(("str Literal", "no such thing"), ("str", ""), ("Path str", Path("/no/such/place")), ("float", 2.5)),
    *(("Sequence list tuple Iterable ndarray NDArray", value) for value in ([1, 2], ())),
    *(("Sequence list tuple Iterable", value) for value in (["A", "B"], {1, 2}, frozenset())),
    *(("Mapping dict", {"a": 1}), ("Mapping dict Options", {})),
    *(("bool", value) for value in (True, np.bool_(False))),
    *(("DataFrame", pd.DataFrame({"a": [1]})), ("Iterable", iter([]))),
    *(("", value) for value in (float("nan"), float("inf"), float("-inf"), 1j, b"bytes", object(), Ellipsis, int)),
    *(("", value) for value in (np.datetime64("2020-01-01"), pd.NaT, pd.NA, slice(1), range, type)),
    *(("", value) for value in (torch.ones(2, 2), bytearray(b"x"), memoryview(b"x"), np.complex64(1), property())),
    *(("", value) for value in (np.timedelta64(1, "D"), warnings, NotImplemented, Exception("x"), super)),
    *(("Sequence list tuple Iterable ndarray NDArray", np.array(["a"])), ("ndarray NDArray", np.array([[1.0]]))),
    *(("", value) for value in (sp.eye(2).tocsr(), lambda: None, Path, Counter, time, json.JSONDecoder())),
]
_LABELS = {"perturbation_key": "perturbation", "control": "control"}
#: Values that belong nowhere in a run file or in a configuration where a number or a text is.
NOWHERE = (
    float("nan"),
    float("inf"),
    float("-inf"),
    [[1]],
    {"a": {"b": [1]}},
    np.datetime64("2020-01-01").item(),
    b"x",
)


def public_calls(cells: Any) -> list[tuple[Callable[..., Any], dict[str, Any]]]:
    """Return public calls with arguments that are right, of which one at a time is replaced."""
    TahoeST.setup_anndata(cells, **KEYS)
    model = TahoeST(cells, size=SMALL, set_size=4)
    model.train(max_steps=2, batch_size=2, progress=False)
    members = TahoeEnsemble([model, model])
    result = model.evaluate(cells, preset="quick", allow_train=True, progress=False)
    changes = model.predict_effects(as_adata=True)
    keys = {name: KEYS[name] for name in ("perturbation_key", "context_key")}
    learned = response.ResponseModel.fit(changes, **keys, progress=False)
    table = pd.DataFrame(np.eye(4, 3), index=list("ABCD"))
    splits = (scvi_tahoe.FractionSplit, scvi_tahoe.HeldOutPerturbations, scvi_tahoe.HeldOutContexts)
    drawings = (pl.bars, pl.cells, pl.deltas, pl.ranks, pl.similarity)
    reference = evaluate.EvaluationReference.from_adata(cells, **KEYS)
    run = Path("run.yaml")
    return [
        (model.predict, {}), (model.train, {}), (model.evaluate, {"reference": cells}), (model.save, {"dir_path": "x"}),
        (model.export, {"folder": "x"}), (TahoeST.load, {"dir_path": "x"}), (TahoeST, {"adata": cells}),
        (TahoeST.setup_anndata, {"adata": cells, **KEYS}), (TahoeST.from_pretrained, {"source": "x"}),
        (model.save_adapters, {"folder": "x"}), (model.load_adapters, {"folder": "x"}), (model.memory_plan, {}),
        (model.predict_effects, {}), (model.plan_next, {}), (model.prior_report, {}), (model.find_learning_rate, {}),
        (model.diagnose_attention, {}), (model.push_to_hub, {"repository": "a/b"}),
        (members.predict, {}), (members.evaluate, {"reference": cells}), (members.save, {"dir_path": "x"}),
        (TahoeEnsemble.load, {"dir_path": "x"}), (TahoeEnsemble, {"models": [model, model]}),
        (TahoeEnsemble.train, {"data": cells}),
        (scvi_tahoe.evaluate, {"prediction": cells, "reference": cells, **KEYS}), (datasets.simulate_screen, {}),
        (evaluate.EvaluationReference.from_adata, {"adata": cells, **KEYS}),
        (result.plot, {}), (result.save, {"folder": "x"}), (result.to_html, {"path": "x.html"}), (result.strata, {}),
        (result.compare, {"other": result}), (evaluate.EvaluationResult.load, {"folder": "x"}),
        (evaluate.compare_results, {"results": {"a": result}}),
        (evaluate.baseline_results, {"reference": reference}), (evaluate.metric_info, {"name": "pearson_delta"}),
        (evaluate.paired_differences, {"scores": result.per_perturbation, "baselines": result.per_perturbation}),
        (scvi_tahoe.baseline_prediction, {"name": "control", "held_out": cells, **KEYS}),
        (scvi_tahoe.submission, {"prediction": cells, "path": "x.h5ad", "year": 2026, "genes": list(cells.var_names)}),
        (scvi_tahoe.screen_quality, {"adata": cells, **KEYS, "n_permutations": 0, "progress": False}),
        *((drawing, {"result": result}) for drawing in drawings), (pl.comparison, {"results": {"a": result}}),
        (pl.draw, {"kind": "bars", "result": result}), (pl.volcano, {"effects": changes, "condition": "x"}),
        (pl.fold_changes, {"result": result, "perturbation": "perturbation_1"}),
        (pl.dose_response, {"effects": changes, "fits": table, "gene": "g", "dose_key": "d", "perturbation_key": "p"}),
        (pl.interactions, {"pairs": changes}), (pl.knock_downs, {"report": table}),
        (effects.dose_response, {"effects": changes, "genes": ["gene_1"]}),
        (effects.interactions, {"effects": changes}),
        (effects.effects_adata, {"effects": model.predict_effects()}),
        (effects.rank_reversals, {"effects": changes, "signature": {"gene_1": 1.0}}),
        (effects.cells_needed, {"sd": np.ones(3), "change": 0.5}),
        (effects.power, {"sd": np.ones(3), "n_cells": 10, "change": 0.5}),
        (effects.gene_set_scores, {"effects": changes, "gene_sets": {"a": list(cells.var_names[:9])}}),
        (effects.condition_embedding, {"effects": changes}), (pl.ranked, {"effects": changes, "condition": "x"}),
        (tables.protein_embeddings, {"path": "x.fasta", "model": "x"}), (tables.drug_targets, {"path": "x.csv"}),
        (tables.read_gene_sets, {"path": "x.gmt"}), (evaluate.read_split, {"path": "x.json", "adata": cells}),
        (evaluate.write_scperturbench, {"prediction": cells, "observed": cells, "path": "x", **_LABELS}),
        (effects.hill, {"dose": np.ones(3), "emax": 1.0, "ec50": 1.0, "slope": 1.0}),
        (response.ResponseModel.fit, {"adata": changes, **keys}), (response.ResponseModel.load, {"path": "x"}),
        (learned.predict, {}), (learned.plan_next, {}), (learned.report, {}), (learned.save, {"path": "x"}),
        (response.effects_table, {"adata": cells, **KEYS}),
        (scvi_tahoe.concat_screens, {"screens": {"a": cells, "b": cells}, **KEYS}),
        (scvi_tahoe.read_embedding_table, {"path": "x.csv"}), (scvi_tahoe.read_store, {"folder": "x"}),
        (scvi_tahoe.write_store, {"files": "x.h5ad", "folder": "x", **KEYS}), (scvi_tahoe.smiles_fingerprints, {}),
        (scvi_tahoe.dose_label, {"perturbation": "a", "dose": 1.0}),
        (scvi_tahoe.suggest_decoder_weight, {"adata": cells}), *((split, {}) for split in splits),
        (scvi_tahoe.ListedConditions, {}), (scvi_tahoe.FewShotContext, {"context": "context_1"}),
        (scvi_tahoe.nn.NetworkConfig, {"n_input": 4, "n_output": 4, "n_perturbation": 4}),
        (scvi_tahoe.nn.ObjectiveConfig, {}), (scvi_tahoe.training.PlanConfig, {"max_steps": 5, "lr": 0.1}),
        (tables.gene_sets, {"paths": "x.gmt"}), (tables.string_links, {"path": "x.txt"}),
        (tables.gene_effects, {"path": "x.csv"}), (tables.protein_kmers, {"path": "x.fasta"}),
        (tables.drug_structures, {"smiles": "x.csv"}), (tables.read_table, {"path": "x.csv"}),
        (tables.read_aliases, {"path": "x.csv"}), (tables.write_table, {"table": table, "path": "x.parquet"}),
        (tables.match_labels, {"table": table, "labels": ["A"]}), (tables.shuffled_table, {"table": table, "seed": 0}),
        (pretrained.read_pretrained, {"source": "x"}), (pretrained.read_arc_folder, {"folder": "x"}),
        (pretrained.inspect_folder, {"folder": "x"}), (pretrained.read_state_embedding, {"source": "x"}),
        (pretrained.embed_cells, {"adata": cells, "source": "x"}),
        (study.finetune, {"run": run}), (study.run_study, {}), (study.compare_runs, {"first": "x", "second": "y"}),
        (study.check_config, {"path": "x.yaml"}), (study.inspect_path, {"path": "x"}), (study.diagnose, {"logs": []}),
    ]  # fmt: skip


def tries_of(function: Callable[..., Any], right: dict[str, Any]) -> list[tuple[Any, dict[str, Any], str]]:
    """Return calls of a function, each with one wrong argument, and the name of that."""
    tries = []
    for name, parameter in inspect.signature(function).parameters.items():
        words = str(parameter.annotation)
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or name in ("registry", "control"):
            continue
        if "Any" in words.replace("[str, Any]", "") or "object" in words or "ArrayLike" in words:
            continue
        for allowed, value in WRONG:
            if not any(word in words for word in allowed.split()) and not ("Callable" in words and callable(value)):
                tries.append((function, {**right, name: value}, name))
    near = f"{next(iter(inspect.signature(function).parameters))}x"
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
    return tries if takes_any else [*tries, (function, {**right, near: 1}, near)]


def is_ours(error: BaseException) -> bool:
    """Return whether an error was raised on purpose: by a ``raise`` in the package."""
    if not isinstance(error, USER_ERRORS):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    lines = [linecache.getline(last.filename, n) for n in range(max(1, (last.lineno or 1) - 4), (last.lineno or 1) + 1)]
    return "scvi_tahoe" in last.filename and any(line.strip().startswith("raise") for line in lines)


def shown(function: Any, arguments: dict[str, Any], name: str) -> str:
    """Return a call for a message."""
    return f"{getattr(function, '__qualname__', function)}({name}={arguments[name]!r})".replace("\n", " ")[:110]


def wrong_arguments(n: int, part: int, parts: int) -> Counter[str]:
    """Give wrong values to every argument of public calls, in turn, and count the answers."""
    found: Counter[str] = Counter()
    cells = datasets.simulate_screen(2, 4, n_genes=30, n_cells=8, n_control_cells=20)
    Path("run.yaml").write_text(yaml.safe_dump(RUN))
    tries = [one for function, right in public_calls(cells) for one in tries_of(function, right)]
    random.Random(0).shuffle(tries)
    for function, arguments, name in tries[:n][part::parts]:
        start = time.perf_counter()
        found["tried"] += 1
        label = shown(function, arguments, name)
        try:
            function(**arguments)
        except Exception as error:  # noqa: BLE001  counted
            if not isinstance(error, USER_ERRORS) or not (name in str(error) or name.rstrip("s") in str(error)):
                found["foreign"] += 1
                print(f"foreign: {label}: {type(error).__name__}: {str(error)[:120]!r}")
        else:
            found["silent"] += 1
            print(f"silent: {label}")
        if (seconds := time.perf_counter() - start) > SLOW_SECONDS:
            found["slow"] += 1
            print(f"slow: {label}: {seconds:.0f} s")
    return found


def odd_screens() -> dict[str, Callable[[ad.AnnData], ad.AnnData]]:
    """Return changes to a screen that no call can make sense of."""

    def values(change: Callable[[np.ndarray], Any]) -> Callable[[ad.AnnData], ad.AnnData]:
        def make(cells: ad.AnnData) -> ad.AnnData:
            found = cells.copy()
            found.X = change(cells.X.toarray() if sp.issparse(cells.X) else np.array(cells.X))
            return found

        return make

    def put(value: Any) -> Callable[[ad.AnnData], ad.AnnData]:
        def change(x: np.ndarray) -> np.ndarray:
            x[1, 2] = value
            return x

        return values(change)

    def sparse(part: str, place: int, value: int) -> Callable[[ad.AnnData], ad.AnnData]:
        def change(x: np.ndarray) -> Any:
            matrix = sp.csr_matrix(x)
            getattr(matrix, part)[place] = value
            return matrix

        return values(change)

    def obs(change: Callable[[pd.DataFrame], Any]) -> Callable[[ad.AnnData], ad.AnnData]:
        def make(cells: ad.AnnData) -> ad.AnnData:
            found = cells.copy()
            found.obs = change(found.obs.astype(str))
            return found

        return make

    def twice_named(cells: ad.AnnData) -> ad.AnnData:
        found = cells.copy()
        found.var_names = ["twice"] * found.n_vars
        return found

    return {
        "NaN": put(np.nan), "infinite": put(np.inf), "negative": values(lambda x: x - 5), "huge": put(3e38),
        "zeros": values(lambda x: x * 0), "counts": values(lambda x: np.round(np.expm1(x))),
        "logged twice": values(np.log1p), "log2": values(lambda x: x / np.log(2)),
        "scaled": values(lambda x: x - x.mean(0)),
        "text": values(lambda x: x.astype(str)), "complex": values(lambda x: x.astype(complex)),
        "objects": values(lambda x: x.astype(object)), "index below": sparse("indices", 0, -1),
        "index above": sparse("indices", 0, 10**6), "rows backwards": sparse("indptr", 3, 10**6),
        "no cells": lambda c: c[:0].copy(), "no genes": lambda c: c[:, :0].copy(),
        "no expression": lambda c: ad.AnnData(obs=c.obs, var=c.var), "genes twice": twice_named,
        "no perturbation": obs(lambda o: o.drop(columns="perturbation")),
        "no context": obs(lambda o: o.drop(columns="context")),
        "labels missing": obs(lambda o: o.assign(perturbation=o["perturbation"].where(np.arange(len(o)) != 5))),
        "no controls": lambda c: c[(c.obs["perturbation"] != "control").to_numpy()].copy(),
        "only controls": lambda c: c[(c.obs["perturbation"] == "control").to_numpy()].copy(),
    }  # fmt: skip


def wrong_screens() -> Counter[str]:
    """Give screens that make no sense to every call that takes cells, and count the answers."""
    found: Counter[str] = Counter()
    whole = datasets.simulate_screen(2, 4, n_genes=30, n_cells=8, n_control_cells=20)
    whole.uns.clear()
    model_data = whole.copy()
    TahoeST.setup_anndata(model_data, **KEYS)
    model = TahoeST(model_data, size=SMALL, set_size=4)
    model.train(max_steps=2, batch_size=2, progress=False)
    quick = {**KEYS, "preset": "quick", "progress": False}

    def fitted(cells: ad.AnnData) -> None:
        TahoeST.setup_anndata(cells, **KEYS)
        TahoeST(cells, size=SMALL, set_size=4).train(max_steps=1, batch_size=2, progress=False)

    def stored(cells: ad.AnnData) -> None:
        with contextlib.suppress(TypeError):  # no h5ad holds objects; the store then finds no file
            Path("odd.h5ad").unlink(missing_ok=True)
            cells.write_h5ad("odd.h5ad")
        scvi_tahoe.write_store("odd.h5ad", "odd.zarr", **KEYS, overwrite=True)

    calls: dict[str, Callable[[ad.AnnData], Any]] = {
        "setup and train": fitted, "predict": lambda c: model.predict(c, progress=False, n_cells=8),
        "reference": lambda c: scvi_tahoe.evaluate(whole, c, **quick),
        "prediction": lambda c: scvi_tahoe.evaluate(c, whole, **quick),
        "baseline": lambda c: scvi_tahoe.evaluate(whole, whole, baseline_from=c, baseline="train_mean", **quick),
        "quality": lambda c: scvi_tahoe.screen_quality(c, **KEYS, n_permutations=0, progress=False), "store": stored,
        "adapt": lambda c: model.predict_effects(c), "table": lambda c: response.effects_table(c, **KEYS),
    }  # fmt: skip
    harmless = {
        "predict": ("only controls", "no perturbation"), "adapt": ("only controls",),
        "prediction": ("only controls", "no controls"),
        "table": ("NaN", "no controls", "negative",
                   "scaled", "counts", "log2", "logged twice"), "quality": ("only controls",),
        "reference": ("only controls",), "baseline": ("no controls",),
        "store": ("no controls", "only controls", "genes twice"),
    }  # fmt: skip
    for call, function in calls.items():
        for kind, change in odd_screens().items():
            if kind in harmless.get(call, ()):
                continue
            found["tried"] += 1
            try:
                odd = change(whole)
            except Exception:  # noqa: BLE001  anndata takes no such thing
                found["tried"] -= 1
                continue
            begin = time.perf_counter()
            try:
                function(odd)
            except Exception as error:  # noqa: BLE001  counted
                if not is_ours(error):
                    found["foreign"] += 1
                    print(f"foreign: {call} of {kind}: {type(error).__name__}: {str(error)[:120]!r}")
            else:
                found["silent"] += 1
                print(f"silent: {call} of {kind}")
            found["slow"] += time.perf_counter() - begin > SLOW_SECONDS
    return found


#: A run, and a configuration of arc-state, that are right.
RUN: dict[str, Any] = {
    "name": "tiny", "seed": 3, "data": {"dataset": "simulated", "n_genes": 40, "cell_embedding_components": 6},
    "split": {"kind": "few_shot_context", "context": "context_1", "validation": ["perturbation_01"],
              "test": ["perturbation_03"]},
    "model": {"size": {"hidden": 16, "n_layers": 1, "intermediate": 32, "n_heads": 2}, "set_size": 8, "prior": "none"},
    "train": {"max_steps": 6, "batch_size": 2, "validate_every": 2, "accelerator": "cpu", "lr": 0.01},
    "score": {"preset": "quick"},
}  # fmt: skip
ARC: dict[str, Any] = {
    "data": {"name": "PerturbationDataModule", "kwargs": {
        "embed_key": None, "output_space": "all", "pert_col": "gene", "cell_type_key": "line", "batch_col": "plate",
        "control_pert": "ntc", "perturbation_features_file": "/data/features.pt",
    }},
    "model": {"name": "state", "kwargs": {
        "cell_set_len": 64, "loss": "energy", "predict_residual": True, "n_encoder_layers": 2, "n_decoder_layers": 2,
        "batch_encoder": True, "init_from": None, "transformer_backbone_key": "llama", "dropout": 0.1,
        "transformer_backbone_kwargs": {
            "bidirectional_attention": True, "max_position_embeddings": 64, "hidden_size": 96, "intermediate_size": 192,
            "num_hidden_layers": 2, "num_attention_heads": 4,
        },
    }},
    "training": {"batch_size": 4, "lr": 2.0e-4, "max_steps": 500, "train_seed": 7, "val_freq": 50,
                  "gradient_clip_val": 1.0},
    "name": "a-study", "use_wandb": False,
}  # fmt: skip


def places_of(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where a configuration holds anything: sections, lists and values."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [(*path, key) for key, _ in inside] + [p for key, value in inside for p in places_of(value, (*path, key))]


def with_value(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a configuration with one value replaced."""
    found = copy.deepcopy(content)
    place = found
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return found


def wrong_files(n: int) -> Counter[str]:
    """Put values that belong nowhere into run files and configurations, and look at exit code and message."""
    from typer.testing import CliRunner

    from scvi_tahoe.cli._app import app

    found: Counter[str] = Counter()
    odd = (
        *NOWHERE,
        -7,
        10**30,
        "",
        "no such thing",
        None,
        True,
        [],
        {},
        ["a", 1],
        "${oc.env:HOME}",
        "!!python/name:os.system",
    )
    tries = [
        (kind, base, path, value)
        for kind, base in (("run", RUN), ("arc", ARC))
        for path in places_of(base)
        for value in odd
    ]
    runner = CliRunner()
    tries = random.Random(0).sample(tries, min(n, len(tries)))
    tries += [("run", RUN, ("name",), "right"), ("arc", ARC, ("name",), "right")]
    for kind, base, path, value in tries:
        file = Path(f"wrong-{kind}.yaml")
        file.write_text(yaml.safe_dump(with_value(base, path, value)))
        arguments = ["check", str(file)] if kind == "arc" else ["finetune", str(file), "--dry-run"]
        begin = time.perf_counter()
        result = runner.invoke(app, arguments)
        found["tried"] += 1
        label = f"{kind} {'.'.join(map(str, path))}: {value!r}"[:80]
        if not (result.exception is None or isinstance(result.exception, SystemExit)) or result.exit_code not in (
            0,
            1,
            2,
        ):
            found["foreign"] += 1
            print(f"foreign: {label}: exit code {result.exit_code}, {result.exception!r}"[:250])
        elif result.exit_code == 0 and kind == "run" and any(value is one for one in NOWHERE):
            found["silent"] += 1
            print(f"silent: {label}")
        elif value == "right" and result.exit_code != 0:
            found["broken"] += 1
            print(f"refused: {label}: {result.output[-200:]}")
        elif result.exit_code == 2 and not result.output.strip():
            found["silent"] += 1
            print(f"no message: {label}")
        if (seconds := time.perf_counter() - begin) > SLOW_SECONDS:
            found["slow"] += 1
            print(f"slow: {label}: {seconds:.0f} s")
    return found
