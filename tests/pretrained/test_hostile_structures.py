"""Files that run nothing and still do harm: a kilobyte that stands for billions of values, nesting without end, lies.

Each was a hang, a crash of the interpreter or a traceback before it was refused.
"""

from __future__ import annotations

import json
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict

import pytest
import torch
import yaml

from scvi_tahoe.files._pickle_files import verify_pickle
from scvi_tahoe.files._plain_values import verify_expanded
from scvi_tahoe.pretrained import UnsafeFileError, export_model, read_arc_folder, read_export

CHECKPOINT = "checkpoints/final.ckpt"
HEAD, BIAS, TABLE = "project_out.0.weight", "pert_encoder.0.bias", "transformer_backbone.embed_tokens.weight"


# YAML.


def laughs(first, one, n=10):
    """Lines of which each refers to the one before ten times."""
    lines = [f"b0: &b0 {first}", *(f"b{i}: &b{i} {one.format(', '.join([f'*b{i - 1}'] * 10))}" for i in range(1, n))]
    return "\n".join(lines) + "\n"


YAML = {
    "references": (laughs("[lol]", "[{}]") + "activation: *b9", "stands for more than"),
    "merge keys": (laughs("{a: 1}", "{{<<: [{}]}}"), "not a plain word"),
    "keys made of references": (laughs("[1, 1]", "!!python/tuple [{}]", 40) + "x: {? *b39 : 1}", "not a plain word"),
    "question marks": ("? " * 100_000 + "a", "nested"),
    "dashes and question marks": ("- ? " * 100_000 + "a", "nested"),
    "brackets closed in a text": ('a: "' + "] " * 4_000 + '"\nb: ' + "[" * 4_000, "nested"),
    "a number in base sixty": ("a: 1" + ":1" * 100_000, "200,001 characters"),
    "many values": ("a:\n" + "- b\n" * 400_000, "more than 300,000"),
    "a list in itself": ("a: &a [*a]", "contains itself"),
    "a key twice": ("cell_set_len: 8\ncell_set_len: 16", "'cell_set_len' twice"),
}


@pytest.mark.parametrize(("text", "match"), YAML.values(), ids=list(YAML))
def test_yaml_that_stands_for_more_than_it_is_is_refused(arc, text, match, refused):
    folder = arc()
    hyper, folder.hyper = folder.hyper, {}
    path = folder.write()
    rest = {key: value for key, value in hyper.items() if f"{key}:" not in text}
    start = "" if text.startswith(("?", "-")) else yaml.safe_dump(rest)
    (path / "hparams.yaml").write_text(start + text)
    refused(path, match)


# Pickle.


def tuples_of_tuples(n, join=b"\x86"):
    """A program that pairs the last value with itself, ``n`` times."""
    return b"N" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + join for i in range(n))


PROGRAMS = {
    "a key of tuples of tuples": (b"\x80\x02}" + tuples_of_tuples(60) + b"K\x01s.", "repeat each other"),
    "the same by copies of the top": (b"\x80\x02}N" + b"2\x86" * 60 + b"K\x01s.", "DUP"),
    "lists in lists": (b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".", "nested"),
    "a mapping with methods of its own": (
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb.", "damaged",
    ),
    "an old instance": (b"(S'true'\nios\nsystem\n.", "INST"),
    "a name from the stack": (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.", r"posix\.system"),
    "state for a function": (b"\x80\x02c_codecs\nencode\n}X\x09\x00\x00\x00_functionK\x01sb.", "damaged"),
    "an object of a function": (b"\x80\x02c_codecs\nencode\n)\x81.", "damaged"),
    "another codec": (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00bz2\x86R.", "encodes"),
    "a frame that is not there": (b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.", "damaged"),
    "a huge memo": (b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b".", "memo"),
    "a huge string": (b"\x80\x04\x8e" + struct.pack("<Q", 10**10) + b"x.", "var_dims.pkl"),
    "a terabyte of bytes": (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.", "damaged"),
}  # fmt: skip


@pytest.mark.parametrize(("program", "match"), PROGRAMS.values(), ids=list(PROGRAMS))
def test_a_pickle_that_needs_no_name_to_do_harm_is_refused(golden_folder, program, match, refused):
    folder = golden_folder("hvg_causal")
    (folder / "var_dims.pkl").write_bytes(program)
    refused(folder, match)


def test_a_pickle_without_end_is_refused(golden_folder, monkeypatch, refused):
    folder = golden_folder("hvg_causal")
    (folder / "var_dims.pkl").write_bytes(b"\x80\x02" + b"N0" * 6_000 + b"N.")
    monkeypatch.setitem(verify_pickle.__kwdefaults__, "limit", 10_000)
    refused(folder, "more than 10,000 operations")


def test_references_of_honest_pickles_are_followed():
    shared = ("K562", 1.0)
    verify_pickle(pickle.dumps([shared] * 10_000))
    verify_pickle(pickle.dumps({"gene_names": [f"G{i}" for i in range(60_000)]}, protocol=2))


def test_many_vectors_over_one_piece_of_memory_are_counted(golden, refused):
    folder = golden("expr_all_feat").folder
    row = torch.zeros(2_000_000, dtype=torch.float64)
    folder.perturbations = {f"p{i}": row for i in range(1_000)}
    refused(folder.write(), "claims a table of 8,000,000,000 bytes")


@pytest.mark.parametrize("label", ["a\nb", "\x1b[31mred", "\ud800", "x" * 5_000], ids=["line", "ansi", "half", "long"])
def test_a_label_that_cannot_be_printed_is_refused(arc, tmp_path, label, refused):
    folder = arc()
    folder.perturbations = dict(zip(["control", "P0", "P1", "P2", label], torch.eye(5), strict=True))
    refused(folder.write(), "label .* cannot be printed")
    genes = arc()
    genes.hyper["gene_names"][3] = label
    refused(genes.write(tmp_path / "genes"), "gene name .* cannot be printed")


# Checkpoints.


def rewrite(path, edit):
    with zipfile.ZipFile(path) as archive:
        records = [(record.filename, archive.read(record)) for record in archive.infolist()]
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        warnings.simplefilter("ignore")  # zipfile says that a name occurs twice
        for name, content in edit(records):
            archive.writestr(name, content)


@pytest.mark.parametrize("ending", ["data.pkl", "data/0"])
def test_two_records_of_one_name_are_refused(golden_folder, ending, refused):
    folder = golden_folder("hvg_causal")
    rewrite(folder / CHECKPOINT, lambda records: [*records, *(r for r in records if r[0].endswith(ending))])
    refused(folder, "two records of the same name")


def test_an_index_of_tuples_of_tuples_is_refused(golden_folder, refused):
    folder = golden_folder("hvg_causal")
    forged = b"\x80\x02}" + tuples_of_tuples(60) + b"K\x01s."
    rewrite(folder / CHECKPOINT, lambda records: [(n, forged if n.endswith("data.pkl") else d) for n, d in records])
    refused(folder, "repeat each other")


def test_a_directory_that_would_fill_the_memory_is_refused_unread(golden_folder, refused):
    folder, n = golden_folder("hvg_causal"), 2_000_000
    entry = b"PK\x01\x02" + struct.pack("<HHHHHHIIIHHHHHII", 20, 20, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    size = n * len(entry)
    wide = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, n, n, size, 0)
    wide += b"PK\x06\x07" + struct.pack("<IQI", 0, size, 1)
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (folder / CHECKPOINT).write_bytes(entry * n + wide + end)
    refused(folder, "directory")


@pytest.mark.parametrize(
    ("name", "offset", "value"),
    [
        ("data.pkl", 42, 2**31),
        ("data/0", 42, 2**31),
        ("data/0", 42, 0),
        ("data/0", 24, 2**31),
        ("data/0", 42, 2**32 - 1),
    ],
)
def test_a_directory_that_lies_about_place_or_size_is_refused(golden_folder, name, offset, value, refused):
    folder = golden_folder("hvg_causal")
    content, place = bytearray((folder / CHECKPOINT).read_bytes()), 0
    while True:
        place = content.find(b"PK\x01\x02", place)
        length = struct.unpack_from("<H", content, place + 28)[0]
        if content[place + 46 : place + 46 + length].endswith(name.encode()):
            break
        place += 4
    struct.pack_into("<I", content, place + offset, value)
    (folder / CHECKPOINT).write_bytes(bytes(content))
    refused(folder, "final.ckpt|checksum")


TENSORS = {
    "float8": (BIAS, lambda t: t.to(torch.float8_e4m3fn)),
    "complex": (BIAS, lambda t: t.to(torch.complex64)),
    "whole numbers": (BIAS, lambda t: t.long()),
    "doubles beyond single precision": (BIAS, lambda t: t.double() + 1e300),
    "quantised": (HEAD, lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)),
    "transposed": (HEAD, lambda t: t.T),
    "without memory": (HEAD, lambda t: t.to("meta")),
    "sparse table": (
        TABLE,
        lambda t: torch.sparse_coo_tensor(torch.zeros(2, 0, dtype=torch.long), torch.zeros(0), (2**40, 2**20)),
    ),
    "quantised table": (TABLE, lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)),
    "nested table": (TABLE, lambda t: torch.nested.nested_tensor([t, t[:3]])),
    "compressed table": (TABLE, lambda t: t.to_sparse_csr()),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "change"), TENSORS.values(), ids=list(TENSORS))
def test_a_tensor_of_another_kind_is_refused(arc, name, change, refused):
    folder = arc()
    folder.state[name] = change(folder.state[name])
    refused(folder.write(), name.replace(".", r"\."))


def test_parameters_come_without_their_gradients(arc):
    folder = arc()
    folder.state[BIAS] = torch.nn.Parameter(folder.state[BIAS])
    state = read_arc_folder(folder.write()).state_dict
    assert not any(tensor.requires_grad for tensor in state.values())
    assert torch.equal(state["perturbation_encoder.layers.0.bias"], folder.state[BIAS].detach())


def test_a_state_dict_may_have_torchs_own_attribute_and_no_other(arc, tmp_path, refused):
    folder = arc()
    state = OrderedDict(folder.state)
    state._metadata = OrderedDict(version=1)
    folder.state = state
    assert read_arc_folder(folder.write(tmp_path / "honest")).config.hidden == 20
    state.get = 5
    refused(folder.write(tmp_path / "forged"), "replaces")


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ([f"transformer_backbone.layers.{i}.input_layernorm.weight" for i in range(2, 3_000)], "3,00[0-9] layers"),
        ([f"pert_encoder.{3 * i}.weight" for i in range(2, 3_000)], "3,00[0-9] layers"),
        (["pert_encoder." + "9" * 5_000 + ".weight"], "no known meaning"),
        (["pert_encoder.٣.weight"], "no known meaning"),
    ],
    ids=["blocks", "encoder", "digits", "other digits"],
)
def test_layers_without_end_are_refused_before_a_network_is_described(arc, names, match, refused):
    folder, tensor = arc(), torch.zeros(20)
    folder.state.update(dict.fromkeys(names, tensor))
    refused(folder.write(), match)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mask_attn", "no"), ("predict_residual", "false"), ("embed_key", 5), ("decoder_weight", 10**400),
        ("mmd_num_chunks", float("inf")), ("mmd_num_chunks", -3), ("blur", float("nan")), ("lr", -1.0),
    ],
)  # fmt: skip
def test_a_setting_that_means_nothing_is_refused(arc, name, value, refused):
    folder = arc()
    folder.hyper[name] = value
    refused(folder.write(), ".")


def test_a_long_value_is_cut_in_the_message(arc, refused):
    folder = arc()
    folder.hyper["transformer_backbone_kwargs"]["head_dim"] = "x\n" * 1_000_000
    refused(folder.write(), "head_dim")


# Our own format.


@pytest.fixture
def export(arc, tmp_path):
    export_model(read_arc_folder(arc(batch_encoder=True).write(tmp_path / "arc")), tmp_path / "ours")
    return tmp_path / "ours"


def sign(folder, content=None, edit=str):
    """Write the configuration with the right hashes, as a forger would."""
    import hashlib

    content = content or json.loads((folder / "config.json").read_text())
    content["sha256"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in content["sha256"]}
    (folder / "config.json").write_text(edit(json.dumps(content)))


FIELDS = {
    "width": ("network", {"hidden": 10**9}),
    "depth": ("network", {"n_layers": 10**9}),
    "overflow": ("network", {"hidden": 10**18}),
    "text for genes": ("labels", {"genes": "x" * 24}),
    "few genes": ("labels", {"genes": ["a", "b"]}),
    "equal genes": ("labels", {"genes": ["a"] * 24}),
    "few batches": ("labels", {"batches": ["a"]}),
    "negative sets": ("labels", {"set_size": -4}),
    "a list for control": ("labels", {"control": ["a"]}),
    "a number for embedding": ("labels", {"embedding": 5}),
    "loss": ("loss", {"loss": "zzz"}),
    "text for blur": ("loss", {"blur": "a"}),
    "lines in the source": ("provenance", {"source": "a\nb"}),
    "a list of keys": ("extra", {"keys": [1]}),
    "a number for objective": ("extra", {"objective": 5}),
}


@pytest.mark.parametrize(("part", "change"), FIELDS.values(), ids=list(FIELDS))
def test_a_configuration_that_cannot_be_is_refused_though_signed(export, part, change, refused):
    content = json.loads((export / "config.json").read_text())
    content[part].update(change)
    sign(export, content)
    refused(export, ".", read_export)


@pytest.mark.parametrize("extra", [{"composition": {"n_rows": 10**9}}, {"fusion": {"a": [[1]]}}])
def test_a_table_that_cannot_be_made_is_refused(export, extra, refused):
    from scvi_tahoe import TahoeST

    content = json.loads((export / "config.json").read_text())
    content["extra"].update(extra)
    sign(export, content)
    refused(export, "how its table was made", TahoeST.from_pretrained)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda text: text[:-1] + ',"format":"scvi-tahoe"}', "'format' twice"),
        (lambda text: text[:-1] + ',"x":' + "[" * 100_000 + "]" * 100_000 + "}", "damaged|nested"),
        (lambda text: text[:-1] + ',"x":[' + "[]," * 20_000 + "1]}", "more than 10,000 values"),
    ],
    ids=["twice", "deep", "wide"],
)
def test_json_without_end_is_refused(export, edit, match, monkeypatch, refused):
    sign(export, edit=edit)
    monkeypatch.setitem(verify_expanded.__kwdefaults__, "limit", 10_000)
    refused(export, match, read_export)


HEADERS = {
    "overlap": lambda entry, _: {**entry, "data_offsets": [0, 80]},
    "beyond": lambda entry, end: {**entry, "data_offsets": [end, end + 80]},
    "huge": lambda entry, _: {**entry, "shape": [2**62]},
    "type": lambda entry, _: {**entry, "dtype": "I32"},
    "a hundred gigabytes": lambda entry, end: {**entry, "shape": [25 * 10**9], "data_offsets": [end, end + 10**11]},
}


@pytest.mark.parametrize("change", HEADERS.values(), ids=list(HEADERS))
def test_a_header_of_weights_that_lies_is_refused_before_hashing(export, change, refused):
    path, name = export / "model.safetensors", "control_encoder.layers.0.bias"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header[name] = change(header[name], len(data))
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    # not signed again: the header is looked at first
    refused(export, "model.safetensors (is damaged|and config.json disagree)", read_export)


def test_weights_that_grew_by_a_hundred_gigabytes_of_nothing_are_refused(export, refused):
    with (export / "model.safetensors").open("r+b") as stream:
        stream.truncate(10**11)
    refused(export, "damaged", read_export)


def test_weights_that_are_not_finite_are_refused_though_signed(export, refused):
    path = export / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4:] = struct.pack("<f", float("nan"))
    path.write_bytes(bytes(content))
    sign(export)
    refused(export, "not finite", read_export)


# Places.


@pytest.mark.parametrize("name", ["a\nb", "\U0001f600 [x]*?", "-rf", "ü\u202e"])
def test_a_folder_may_have_any_name(golden_folder, tmp_path, name, refused):
    folder = golden_folder("hvg_causal").rename(tmp_path / name)
    source = read_arc_folder(folder).provenance.source
    assert source.isprintable()
    (folder / CHECKPOINT).write_bytes(b"x")
    refused(folder, "zip format")


def test_content_is_looked_at_once_whatever_refers_to_it():
    inner = list(range(1_000))
    verify_expanded({"a": [inner] * 1_000, "b": inner})
    with pytest.raises(UnsafeFileError, match="stands for more"):
        verify_expanded([[inner] * 1_000] * 10)
