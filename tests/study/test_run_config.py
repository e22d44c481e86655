from __future__ import annotations

import inspect
from importlib.resources import files

import pytest
import yaml

from scvi_tahoe import TahoeST
from scvi_tahoe.study import TahoeRun
from scvi_tahoe.study._plain_values import plain
from scvi_tahoe.study._schema import SCHEMA, run_schema, schema_text


def changed(values, path, value):
    *parents, key = path.split(".")
    section = values
    for name in parents:
        section = section.setdefault(name, {})
    section[key] = value
    return values


def test_a_run_survives_its_file_which_spells_out_defaults(values, tmp_path):
    run = TahoeRun.from_dict(values)
    run.to_yaml(tmp_path / "run.yaml")
    assert TahoeRun.from_yaml(tmp_path / "run.yaml") == run
    written = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert written["train"]["recipe"] == "freeze_then_unfreeze"
    assert written["train"]["loggers"] == []


@pytest.mark.parametrize("path", ["train.lr", "train.plan.weight_decay", "model.network.dropout"])
def test_numbers_that_yaml_reads_as_text_are_numbers(values, path):
    values["model"]["network"] = {}
    values["train"]["plan"] = {}
    run = TahoeRun.from_dict(changed(values, path, "1e-4"))
    found = {"train.lr": run.train.lr, **{f"train.plan.{k}": v for k, v in run.train.plan.items()},
             **{f"model.network.{k}": v for k, v in run.model.network.items()}}  # fmt: skip
    assert found[path] == 1e-4


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("trian", {}, "did you mean 'train'"),
        ("train.learning", 1, "train has no key 'learning'"),
        ("train.max_step", 1, "did you mean 'max_steps'"),
        ("train.plan.weight_decya", 0.1, "did you mean 'weight_decay'"),
        ("train.plan.lr", 0.1, "train.plan repeats"),
        ("train.plan.warmup", 3.0, "warmup=3.0 must be a fraction"),
        ("train.max_steps", 0, "train.max_steps is 0; it must be 1 or more"),
        ("train.max_steps", "many", "train.max_steps is 'many'; allowed is a whole number"),
        ("train.max_steps", 1.5, "train.max_steps is 1.5"),
        ("train.batch_size", True, "train.batch_size is True"),
        ("train.recipe", "headz", "allowed is 'freeze_then_unfreeze' or 'full' or 'heads'"),
        ("train.loggers", ["wandbb"], "did you mean 'wandb'"),
        ("train.freeze_backbone", 9, "must lie in the run"),
        ("data.path", "a.h5ad", "data takes either path"),
        ("data.control", "x", "brings perturbation_key and control along"),
        ("data.cell_embedding_key", "X", "not both"),
        ("data.cell_embedding_components", 0, "must be 1 or more"),
        ("start.accept", ["new_imput"], "did you mean 'new_input'"),
        ("start.checkpoint", "last", "start.source is missing"),
        ("model.representation", "pca", "model.representation is 'pca'"),
        ("model.objective.terms", {"energie": 1.0}, "objective terms"),
        ("model.set_size", 0, "model.set_size is 0"),
        ("split.kind", "by_hand", "There is no split 'by_hand'"),
        ("score.preset", "vcc", "score.preset is 'vcc'"),
        ("name", "a/b", "it names a folder"),
        ("seed", -1, "seed is -1"),
        ("model", "mini", "model is 'mini'; allowed is a mapping"),
        ("model.prior", "cell", "model.prior is 'cell'; allowed is 'auto' or 'none'"),
        ("model.network.dropuot", 0.2, "did you mean 'dropout'"),
        ("model.network.dropout", "much", "model.network.dropout is 'much'; allowed is a number"),
        ("model.network.gene_decoder.hidden", ["wide"], r"model.network.gene_decoder.hidden is \['wide'\]"),
        ("model.size", {"hidden": 16}, r"model.size lacks \['n_layers'"),
        ("model.objective.terms", ["energy"], "model.objective.terms is .*allowed is a mapping"),
        ("model.objective.terms.energy", "x", "model.objective.terms.energy is 'x'; allowed is a number"),
        ("train.plan.warmup", "long", "train.plan.warmup is 'long'; allowed is a number"),
        ("train.threads", 100_000, "train.threads is 100000; it must be at most 1,024"),
        ("train.precision", "bf17", "train.precision is 'bf17'; it is one of auto"),
        ("score.baseline", "mean", "score.baseline is 'mean'; it is one of auto, control"),
    ],
)
def test_a_mistake_in_a_file_is_named(values, path, value, message):
    with pytest.raises(ValueError, match=message):
        TahoeRun.from_dict(changed(values, path, value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"data": None}, "lacks the key 'data'", id="missing section"),
        pytest.param({"data": {"path": "a.h5ad"}}, r"data.path needs perturbation_key", id="cells without labels"),
        pytest.param({"data": {"dataset": "simulated"}, "model": {"representation": "embedding"}},
                     "the data have no cell embedding", id="embedding model without embedding"),
        pytest.param({"model": {"representation": "embedding", "prior": "mean"}}, "a prior is made of expression",
                     id="prior of embeddings"),
        pytest.param({"data": {"dataset": "norman_k562", "n_genes": 10}}, "for dataset: simulated only",
                     id="number of genes of a screen"),
        pytest.param({"data": {"dataset": "norman_k562", "simulation": {"seed": 1}}}, "for dataset: simulated only",
                     id="simulation of a screen"),
        pytest.param({"data": {"dataset": "simulated", "simulation": {"n_context": 5}}}, "did you mean 'n_contexts'",
                     id="unknown option of a simulation"),
        pytest.param({"train": {"freeze_backbone": 3}}, "so train.max_steps is needed", id="step without a length"),
        pytest.param({"score": {"preset": "vcc2026"}}, "score.counts_layer names the layer", id="counts without layer"),
    ],
)  # fmt: skip
def test_parts_that_do_not_go_together_are_named(values, changes, message):
    with pytest.raises(ValueError, match=message):
        TahoeRun.from_dict({name: part for name, part in (values | changes).items() if part is not None})


def test_paths_count_from_the_folder_of_the_file(values, tmp_path, monkeypatch):
    (tmp_path / "cells.h5ad").touch()
    values["data"] = {"path": "cells.h5ad", "perturbation_key": "p", "control": "c", "cell_embedding_key": "X"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir("/")
    assert TahoeRun.from_yaml(tmp_path / "run.yaml").data.path == str(tmp_path / "cells.h5ad")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"[1, 2", "is not a YAML file", id="broken"),
        pytest.param(b"- a\n- b\n", "not hold a mapping", id="list"),
        pytest.param(b"\xff\x00\x80", "is not a text file", id="binary"),
        pytest.param(b"name: a\nname: b\n", "has the key 'name' twice", id="a key twice"),
        pytest.param(b"name: 2020-99-99\n", "is not a YAML file", id="no date"),
        pytest.param(b"seed: " + b"9" * 5000, "is not a YAML file: Exceeds the limit", id="long number"),
        pytest.param(b"a: " + b"[" * 5000, "nested more than 60 deep", id="deep"),
        pytest.param(
            b"".join(b"a%d: &a%d [%s]\n" % (i, i, b",".join([b"*a%d" % (i - 1)] * 9) if i else b"x") for i in range(9)),
            "it stands for more than 2,000,000 values",
            id="bomb",
        ),
    ],
)
def test_a_file_that_is_no_mapping_of_plain_values_is_refused(tmp_path, content, message):
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        TahoeRun.from_yaml(tmp_path / "run.yaml")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*run\.yaml"):
        TahoeRun.from_yaml(tmp_path / "run.yaml")


#: Options of public methods -> where they stand in a run file under another name, or None: the run decides.
ELSEWHERE = {
    "train": {"split": ("split",), "plan_kwargs": ("train", "plan"), "seed": ("seed",), "logger": ("train", "loggers"),
              "save_dir": None, "resume_from": None, "progress": None},
    "start": {"adata": None, "seed": ("seed",)}
    | {name: ("model", name) for name in ("representation", "batch_encoder", "set_size", "network", "objective",
                                          "prior", "criterion")},
    "model": {"adata": None, "registry": None, "seed": ("seed",)},
    "data": {"adata": None},
    "score": {"reference": None, "prediction": None, "seed": ("seed",), "progress": None},
}  # fmt: skip


@pytest.mark.parametrize(
    ("part", "method"),
    [
        ("train", TahoeST.train),
        ("start", TahoeST.from_pretrained),
        ("model", TahoeST.__init__),
        ("data", TahoeST.setup_anndata),
        ("score", TahoeST.evaluate),
    ],
)
def test_every_option_of_a_method_has_its_place_in_a_run_file(values, part, method):
    whole = TahoeRun.from_dict(values).to_dict()
    for name, option in inspect.signature(method).parameters.items():
        place = ELSEWHERE[part].get(name, (part, name))
        if option.kind is option.VAR_KEYWORD or name in ("self", "cls") or place is None:
            continue
        *parents, key = place
        section = whole
        for parent in parents:
            section = section[parent]
        assert key in section, f"{name} of {method.__name__} has no place in a run file"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.save_steps", 4),
        ("train.compile", False),
        ("train.compile", "auto"),
        ("train.shrink_correction", False),
        ("train.precision", "bf16-mixed"),
        ("score.representation_check", "off"),
        ("score.control_cells", "predicted"),
        ("data.combination_separator", "+"),
        ("data.perturbation_embedding_key", ["esm", "go"]),
        ("score", {"preset": "vcc2026", "counts_layer": "counts"}),
    ],
)
def test_an_option_of_a_method_is_an_option_of_a_run_file(values, tmp_path, path, value):
    run = TahoeRun.from_dict(changed(values, path, value))
    run.to_yaml(tmp_path / "run.yaml")
    found = plain(TahoeRun.from_yaml(tmp_path / "run.yaml"))
    for name in path.split("."):
        found = found[name]
    assert found.items() >= value.items() if isinstance(value, dict) else found == value


def test_the_schema_for_editors_is_that_of_the_signatures():
    shipped = (files("scvi_tahoe.study") / SCHEMA).read_text("utf-8")
    assert shipped == schema_text(), "python -m scvi_tahoe.study._schema writes it anew"


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"split": {"kind": "listed_conditions", "test": {"HepG2": "all"}}}, True),
        ({"data": {"path": ["a.h5ad", "b.h5ad"], "perturbation_key": "p", "control": "c"}}, True),
        ({"train": {"max_step": 3}}, False),
        ({"split": {"kind": "by_hand"}}, False),
    ],
)
def test_the_schema_takes_what_a_run_file_takes(values, changes, fits):
    jsonschema = pytest.importorskip("jsonschema")
    values = values | changes
    assert jsonschema.Draft202012Validator(run_schema()).is_valid(values) == fits
    if fits:
        assert TahoeRun.from_dict(values)
        assert jsonschema.Draft202012Validator(run_schema()).is_valid(TahoeRun.from_dict(values).to_dict())
