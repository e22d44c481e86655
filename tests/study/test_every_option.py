"""No option of a run file is dropped: it changes the model, or it is refused, whatever the model starts from."""

from __future__ import annotations

import copy
import hashlib
import os
from dataclasses import fields

import pytest
from study_samples import RUN

from scvi_tahoe import TahoeST
from scvi_tahoe.pretrained import LicenceNotAcceptedError
from scvi_tahoe.study import DataConfig, ModelConfig, StartConfig, TahoeRun
from scvi_tahoe.study._data import load_data
from scvi_tahoe.study._model import build_model

HUB = "someone/st-model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DATA = {"dataset": "simulated", "n_genes": 40, "cell_embedding_components": 6, "batch_key": "batch"}

#: For every option a value that is not that of the run without it.
START = {
    "checkpoint": "last", "revision": "f" * 40, "accept": ["new_input", "new_output"], "attention": "self_only",
    "genes": [f"other_{i}" for i in range(40)], "backbone_from": "the weights", "check_scale": True,
    "cache_dir": "/nowhere", "offline": True, "accept_license": False,
}  # fmt: skip
MODEL = {
    "size": "small", "representation": "embedding", "set_size": 9, "network": {"dropout": 0.25},
    "objective": {"terms": {"mse": 1.0}}, "prior": "mean", "batch_encoder": True,
    "criterion": "discrimination",
}  # fmt: skip
#: Where and with whose leave to look, which is no matter for weights that are here and ask for nothing.
NO_MATTER = {("export", "accept_license"), ("run", "accept_license"), ("arc", "accept_license")}


def values_of(start):
    values = copy.deepcopy(RUN) | {"data": dict(DATA), "start": start}
    values["model"] = {"set_size": 8} | ({} if start else {"size": RUN["model"]["size"]})
    return values


@pytest.fixture(scope="module")
def data():
    return load_data(TahoeRun.from_dict(values_of({})))


@pytest.fixture(scope="module")
def starts(finished, data, tmp_path_factory):
    """The `start` section of each kind."""
    folder = tmp_path_factory.mktemp("starts")
    TahoeST.setup_anndata(data.train, **data.config.keys)
    size = RUN["model"]["size"]
    ours = TahoeST(data.train, size=size, set_size=8, prior="none")
    ours.train(1, validate_every=1, batch_size=2, progress=False)
    ours.export(folder / "export")
    theirs = TahoeST(data.train, size=size, set_size=8, prior="none", network={"head": "hidden_residual"})
    theirs.train(1, validate_every=1, batch_size=2, progress=False)
    theirs.export(folder / "arc", format="arc")
    snapshot = folder / "hub" / f"models--{HUB.replace('/', '--')}" / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    os.symlink(folder / "export", snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    quiet = {"check_scale": False}
    return {
        "scratch": {},
        "run": {"source": str(finished)},
        "export": {"source": str(folder / "export"), **quiet},
        "arc": {"source": str(folder / "arc"), **quiet},
        "hub": {"source": HUB, "cache_dir": str(folder / "hub"), "offline": True, "accept_license": True, **quiet},
    }


def outcome(values, data):
    """Everything that a model is, or how it was refused."""
    try:
        model = build_model(TahoeRun.from_dict(values), data)
    except (ValueError, FileNotFoundError, LicenceNotAcceptedError) as error:
        return f"refused: {error}"
    state = hashlib.sha256(b"".join(t.numpy().tobytes() for t in model.module.state_dict().values())).hexdigest()
    parts = (model.module.config, model.module.objective.config, model.representation, model.prior, model.set_size)
    parts += (model.criterion,)
    report = model.loading_report_
    return repr((state, *parts, None if report is None else report.text()))


@pytest.fixture(scope="module")
def plain(starts, data):
    return {kind: outcome(values_of(start), data) for kind, start in starts.items()}


def test_every_option_of_start_and_model_is_walked_over():
    assert {f.name for f in fields(StartConfig)} == {*START, "source"}
    assert {f.name for f in fields(ModelConfig)} == {*MODEL}
    known = {f.name for f in fields(DataConfig)}
    assert known >= {"dose_key", "combination_separator", "embedding_files", "modalities"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["scratch", "run", "export", "arc", "hub"])
def test_an_option_changes_the_model_or_is_refused(kind, starts, plain, data, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.delenv("SCVI_TAHOE_ACCEPT_LICENSE", raising=False)
    assert not plain[kind].startswith("refused"), plain[kind]
    dropped = []
    for section, options in (("start", START), ("model", MODEL)):
        for name, value in options.items():
            values = values_of(dict(starts[kind]))
            if name == "backbone_from" and kind != "scratch":
                value = starts[kind]["source"]
            if (kind, name) == ("hub", "offline"):
                continue  # without it a network is needed
            if values[section].get(name) == value:
                value = None if name == "cache_dir" else not value
            if section == "model" and name == "size" and kind == "scratch":
                value = "mini"
            values[section] = values[section] | {name: value}
            if (kind, name) not in NO_MATTER and outcome(values, data) == plain[kind]:
                dropped.append(f"{section}.{name}")
    # the check of the scale has no effect on what passes it
    assert set(dropped) <= {"start.check_scale"}
