"""Folders and hub names: what is found, what is downloaded, and whose licence is accepted. No test uses a network."""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path

import pytest

from scvi_tahoe.pretrained import (
    LicenceNotAcceptedError,
    LicenceWarning,
    UnsafeFileError,
    read_pretrained,
    resolve_source,
)
from scvi_tahoe.pretrained._hub import _checkpoints, checkpoint_on_hub, model_folders

NAME = "someone/st-model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(golden_folder, tmp_path, monkeypatch):
    """A hub cache as a download leaves it: blobs named by hash, a snapshot of links, a reference to the commit."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.delenv("SCVI_TAHOE_ACCEPT_LICENSE", raising=False)
    folder = golden_folder("expr_all_feat")
    repository = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(blob)
        for place in ("", "zeroshot/jurkat"):
            link = snapshot / place / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    return tmp_path / "hub"


quiet = pytest.mark.filterwarnings("ignore::scvi_tahoe.pretrained.LicenceWarning")


def offline(cache, name=NAME, **options):
    return read_pretrained(name, cache_dir=cache, offline=True, **options)


@pytest.mark.parametrize(
    "source", ["nowhere", "/no/such/folder", "a b/c", "../x/y/..", "a" * 5_000, "/a" * 5_000, "a\0b"]
)
def test_a_source_is_a_folder_here_or_a_name_on_the_hub(golden_folder, source):
    folder = golden_folder()
    assert resolve_source(folder)[::2] == (folder, None)
    with pytest.raises(FileNotFoundError, match="neither a folder here nor a name") as caught:
        resolve_source(source)
    assert len(str(caught.value)) < 300


@quiet
def test_the_cache_serves_offline_and_states_the_commit(cache):
    for name in (NAME, f"{NAME}/zeroshot/jurkat"):  # one repository may hold several models
        provenance = offline(cache, name, accept_license=True).provenance
        assert (provenance.source, provenance.revision) == (name, COMMIT)
    for name, revision, message in (
        (f"{NAME}/fewshot/k562", None, "no folder 'fewshot/k562'"),
        ("someone/else", None, "not in the cache"),
        (NAME, "f" * 40, "not in the cache"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            offline(cache, name, revision=revision, accept_license=True)


def test_the_licence_must_be_accepted_and_is_shown(cache, monkeypatch):
    with pytest.raises(LicenceNotAcceptedError, match=r"(?i)non-commercial.*accept_license=True"):
        offline(cache)
    with pytest.raises(LicenceNotAcceptedError):
        offline(cache, accept_license=False)
    with pytest.warns(LicenceWarning, match="someone/st-model.*If they.*every model fine-tuned"):
        offline(cache, accept_license=True)
    monkeypatch.setenv("SCVI_TAHOE_ACCEPT_LICENSE", "1")
    with pytest.warns(LicenceWarning):
        offline(cache)
    links = next(cache.rglob("snapshots")) / COMMIT
    (links / "README.md").write_text("---\ntags: [x]\nlicense: mit\n---\n# Ours\n")
    with pytest.warns(LicenceWarning, match="state the licence mit"):
        origin = offline(cache, f"{NAME}/zeroshot/jurkat").provenance
    assert (origin.licence, origin.non_commercial) == ("mit", False)


def test_what_arc_did_not_publish_is_not_announced_as_arcs(cache):
    with pytest.raises(LicenceNotAcceptedError, match="the licence that its authors state") as error:
        offline(cache)
    assert "Arc's State Model" not in str(error.value)
    with pytest.raises(LicenceNotAcceptedError, match="Arc's State Model Non-Commercial"):
        offline(cache, "arcinstitute/ST-Tahoe")


def test_a_local_folder_in_arcs_format_says_its_licence_once(golden_folder, caplog, monkeypatch):
    monkeypatch.delenv("SCVI_TAHOE_ACCEPT_LICENSE", raising=False)
    folder = golden_folder().rename(golden_folder().parent / "weights_of_unknown_origin")
    for accept in (True, None, None):
        read_pretrained(folder, accept_license=accept)
    (line,) = [r.message for r in caplog.records if "weights_of_unknown_origin" in r.message]
    assert "accept_license=True or SCVI_TAHOE_ACCEPT_LICENSE=1 accepts it" in line


def test_a_repository_of_several_models_names_them(cache, golden_folder, tmp_path):
    assert model_folders(FILES[-1:]) == ["zeroshot/k562"]
    folder = golden_folder()
    folder.rename(tmp_path / "inside")
    folder.mkdir()
    (tmp_path / "inside").rename(folder / "fewshot")
    with pytest.raises(FileNotFoundError, match=r"holds 1 models in folders.*expr_all_feat/fewshot"):
        read_pretrained(folder)


def test_a_huge_folder_without_a_model_is_not_searched_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "rglob", lambda self, _: itertools.repeat(self / "photo.jpg"))
    with pytest.raises(FileNotFoundError, match=r"holds no \*\.ckpt file"):
        read_pretrained(tmp_path)


@quiet
def test_a_download_with_a_wrong_hash_is_refused(cache):
    content = b"data: {}\n"  # small files have the hash that git gives them
    small = next(cache.rglob("blobs")) / hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    small.write_bytes(content)
    link = next(cache.rglob("snapshots")) / COMMIT / "config.yaml"
    link.symlink_to(os.path.relpath(small, link.parent))
    assert offline(cache, accept_license=True).provenance.revision == COMMIT
    small.write_bytes(content + b"more: {}\n")
    with pytest.raises(UnsafeFileError, match=r"config\.yaml does not have the hash the hub states"):
        offline(cache, accept_license=True)
    small.write_bytes(content)
    large = max(cache.rglob("blobs/*"), key=lambda path: path.stat().st_size)
    damaged = bytearray(large.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    large.write_bytes(bytes(damaged))
    with pytest.raises(UnsafeFileError, match=r"\.ckpt does not have the hash the hub states"):
        offline(cache, accept_license=True)


FILES = [
    "config.yaml",
    "final_from_preprint.ckpt",
    "checkpoints/best.ckpt",
    "checkpoints/step=900.ckpt",
    "checkpoints/step=10000-val_loss=0.2.ckpt",
    "zeroshot/k562/checkpoints/final.ckpt",
]


@pytest.mark.parametrize(
    ("prefix", "checkpoint", "expected"),
    [
        ("", None, "checkpoints/best.ckpt"),
        ("", "final_from_preprint", "final_from_preprint.ckpt"),
        ("", "step=10000", "checkpoints/step=10000-val_loss=0.2.ckpt"),
        ("", "step=900.ckpt", "checkpoints/step=900.ckpt"),
        ("zeroshot/k562/", None, "checkpoints/final.ckpt"),
    ],
)
def test_only_the_checkpoint_that_will_be_read_is_downloaded(prefix, checkpoint, expected):
    assert checkpoint_on_hub(_checkpoints(FILES, prefix), checkpoint) == expected
    assert checkpoint_on_hub(FILES[3:5], None) == FILES[4]  # the highest step, where none has a name
    with pytest.raises(FileNotFoundError, match=r"last.*best\.ckpt"):
        checkpoint_on_hub(_checkpoints(FILES, ""), "last")
