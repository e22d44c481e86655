"""Forged and damaged files are refused with one line, and nothing of them is run."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from scvi_tahoe.pretrained import UnsafeFileError, export_model, plan_warm_start, read_arc_folder, write_arc_folder

CHECKPOINT = "checkpoints/final.ckpt"
DEAD_TABLE = "transformer_backbone.embed_tokens.weight"


# Code.


@pytest.mark.parametrize("place", ["hyper", "state", "beside", "tensor"])
def test_code_in_a_checkpoint_is_not_run(arc, payload, refused, place):
    folder, top = arc(), {}
    if place == "hyper":
        folder.hyper["loss_fn"] = payload
    elif place == "state":
        folder.state["x"] = payload
    elif place == "beside":
        top["callbacks"] = [{"deep": (payload,)}]
    else:
        tensor = torch.ones(20)
        tensor.attribute = payload
        folder.state["pert_encoder.0.bias"] = torch.nn.Parameter(tensor)
        top["hook"] = tensor
    refused(folder.write(**top), "refused|damaged|checkpoint")


def test_a_module_in_the_settings_is_refused_by_name(arc, refused):
    folder = arc()
    folder.hyper["loss_fn"] = torch.nn.MSELoss()
    refused(folder.write(), "torch.nn.modules.loss.MSELoss")


@pytest.mark.parametrize("name", ["var_dims.pkl", "batch_onehot_map.pkl", "cell_type_onehot_map.pkl"])
def test_code_in_a_pickle_is_not_run(golden, payload, refused, name):
    folder = golden("expr_all_feat").folder.write(maps="pkl")
    (folder / name).write_bytes(pickle.dumps({"gene_names": payload, "K562": payload}))
    refused(folder, r"posix\.system")


@pytest.mark.parametrize("name", ["pert_onehot_map.pt", "batch_onehot_map.torch", "cell_type_onehot_map.torch"])
def test_code_in_a_map_is_not_run(golden_folder, payload, refused, name):
    folder = golden_folder()
    torch.save({"GENE0": payload}, folder / name)
    refused(folder, r"posix\.system")


def test_code_in_the_storage_of_a_pickled_tensor_is_not_run(golden, payload, refused):
    folder = golden("expr_all_feat").folder.write(maps="pkl")
    inner = io.BytesIO()
    torch.save(payload, inner, _use_new_zipfile_serialization=False)

    class Storage:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (inner.getvalue(),)

    class Vector:
        def __reduce__(self):
            from torch._utils import _rebuild_tensor_v2

            return _rebuild_tensor_v2, (Storage(), 0, (3,), (1,), False, None)

    (folder / "batch_onehot_map.pkl").write_bytes(pickle.dumps({"b0": Vector()}))
    refused(folder, "refused|damaged")


@pytest.mark.parametrize(
    "text",
    [
        "cell_set_len: !!python/object/apply:os.system ['touch {trace}']",
        "cell_set_len: !!python/object/new:os.system ['touch {trace}']",
        "cell_set_len: !!python/name:os.system",
        "cell_set_len: !!python/object/apply:numpy._core.multiarray.scalar [!!python/name:os.system , 1]",
        "cell_set_len: !!python/object/apply:numpy.dtype {{args: [O]}}",
        "!!python/object/apply:os.system ['touch {trace}']",
        pytest.param("a: " + "[" * 5000, id="brackets without end"),
        pytest.param("a: &x [1]\nb: [" + "*x, " * 5000 + "]", id="references without end"),
    ],
)
def test_code_in_yaml_is_not_run(arc, payload, refused, text):
    folder = arc()
    folder.hyper = {}
    path = folder.write()
    (path / "hparams.yaml").write_text(text.format(trace=payload.trace))
    refused(path, "hparams.yaml")


@pytest.mark.parametrize("code", [b"O8", b"V100", b"i8,i8", b"U9999999"])
def test_a_forged_numpy_dtype_is_refused(golden_folder, refused, code):
    folder = golden_folder()
    honest = pickle.dumps({"n": np.int64(3)}, protocol=2)
    forged = honest.replace(b"X\x02\x00\x00\x00i8", b"X" + struct.pack("<I", len(code)) + code)
    assert forged != honest
    (folder / "var_dims.pkl").write_bytes(forged)
    refused(folder, "var_dims.pkl")


# Size.


def test_a_zip_bomb_is_refused(golden_folder, refused):
    path = golden_folder() / CHECKPOINT
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
    assert path.stat().st_size < 100_000
    refused(path.parent.parent, "compressed records")


def test_records_that_overlap_are_refused(golden_folder, refused):
    path = golden_folder() / CHECKPOINT
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 100_000)
        first = archive.infolist()[0]
        for i in range(50):
            copy = zipfile.ZipInfo(f"archive/data/{i}")
            copy.header_offset, copy.CRC = first.header_offset, first.CRC
            copy.file_size = copy.compress_size = first.file_size
            archive.filelist.append(copy)
            archive._didModify = True
    refused(path.parent.parent, "more bytes than the file has")


def test_a_claim_of_ten_gigabytes_over_a_few_bytes_is_refused(arc, refused):
    folder = arc()
    folder.state["pert_encoder.0.weight"] = torch.zeros(1, 1).expand(50_000, 50_000)
    folder.perturbations = {"control": torch.zeros(1).expand(50_000)}
    refused(folder.write(), "claims|pert_onehot|contiguous")


def test_the_dead_table_is_never_materialised(arc, tmp_path):
    # A table of 2^60 numbers over four bytes: whoever made it real on the way would run out of memory.
    folder = arc()
    folder.state[DEAD_TABLE] = torch.zeros(1, 1).expand(2**30, 2**30)
    model = read_arc_folder(folder.write())
    assert not [name for name in model.state_dict if "embed" in name]
    model.build()
    start = plan_warm_start(model, model.config, model.labels)
    assert [r.source_shape for r in start.report.records if r.status == "dropped"] == [(2**30, 2**30)]
    export_model(model, tmp_path / "ours")
    write_arc_folder(model, tmp_path / "theirs")
    written = torch.load(tmp_path / "theirs" / CHECKPOINT, weights_only=True)["state_dict"][DEAD_TABLE]
    assert written.shape == (32_000, 20)
    assert written.untyped_storage().nbytes() == 4
    assert (tmp_path / "theirs" / CHECKPOINT).stat().st_size < written.numel() * 4 / 10


# Places.


def link_out(folder, name):
    outside = folder.parent / "elsewhere"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)


def link_to(target):
    def change(path):
        path.unlink()
        path.symlink_to(target)

    return change


def pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", [CHECKPOINT, "checkpoints"])
def test_a_link_out_of_the_folder_is_refused(golden_folder, refused, name):
    folder = golden_folder()
    link_out(folder, name)
    refused(folder, "leads out of the model folder")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param(pipe, "ordinary file", id="a pipe"),
        pytest.param(link_to("var_dims.pkl"), "leads to itself", id="links in a circle"),
        pytest.param(link_to("/dev/zero"), "leads out", id="a link to a device"),
    ],
)
def test_what_is_no_file_is_refused(golden_folder, refused, change, match):
    folder = golden_folder("hvg_causal")
    change(folder / "var_dims.pkl")
    refused(folder, match)


def test_a_link_inside_the_folder_is_followed(golden_folder):
    folder = golden_folder()
    (folder / CHECKPOINT).rename(folder / "checkpoints" / "step=7.ckpt")
    (folder / CHECKPOINT).symlink_to("step=7.ckpt")
    assert read_arc_folder(folder, "final").set_size == 16


def test_a_snapshot_of_the_hub_may_link_to_its_blobs(golden_folder, tmp_path):
    folder = golden_folder()
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "abc"
    (snapshot / "checkpoints").mkdir(parents=True)
    for i, path in enumerate(path for path in folder.rglob("*") if path.is_file()):
        blob = cache / "blobs" / str(i)
        path.rename(blob)
        (snapshot / path.relative_to(folder)).symlink_to(blob)
    assert read_arc_folder(snapshot).set_size == 16


@pytest.mark.parametrize("name", ["/etc/passwd", "../../secret.ckpt", "checkpoints/../../x.ckpt"])
def test_a_checkpoint_outside_the_folder_is_refused(golden_folder, name):
    with pytest.raises(UnsafeFileError, match="inside the folder"):
        read_arc_folder(golden_folder(), name)


# Damage.


@pytest.mark.parametrize("name", [CHECKPOINT, "pert_onehot_map.pt", "batch_onehot_map.torch", "var_dims.pkl"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.98])
def test_a_truncated_file_is_refused(golden_folder, refused, name, kept):
    folder = golden_folder()
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(kept * len(content))])
    refused(folder, (folder / name).name)


def test_flipped_bits_never_pass_as_weights(golden_folder):
    folder = golden_folder("hvg_causal")
    path = folder / CHECKPOINT
    content = path.read_bytes()
    honest = read_arc_folder(folder).state_dict
    rng = np.random.default_rng(0)
    n_refused = 0
    for position in rng.integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        try:
            state = read_arc_folder(folder).state_dict
        except (UnsafeFileError, FileNotFoundError):
            n_refused += 1
        else:
            # The bit lay in padding, in the optimizer state, or in a table of zeros' name.
            assert all(torch.equal(state[name], honest[name]) for name in honest)
    assert n_refused > 20


def test_what_is_not_in_the_zip_format_of_torch_is_refused(arc, refused):
    folder = arc()
    path = folder.write()
    (path / CHECKPOINT).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(path, "not in torch's zip format")
    torch.save({"state_dict": folder.state}, path / CHECKPOINT, _use_new_zipfile_serialization=False)
    refused(path, "not in torch's zip format")


NO_MAPS = {
    "empty": {},
    "matrix": {"a": torch.ones(2, 2)},
    "two widths": {"a": torch.ones(2), "b": torch.ones(3)},
    "text": {"a": "x"},
    "list": [1],
    "not finite": {"a": torch.full((5,), torch.nan)},
}


@pytest.mark.parametrize("content", NO_MAPS.values(), ids=list(NO_MAPS))
def test_a_map_that_is_none_is_refused(golden_folder, refused, content):
    folder = golden_folder("hvg_causal")
    torch.save(content, folder / "pert_onehot_map.pt")
    refused(folder, "pert_onehot_map")
