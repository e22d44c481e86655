"""Folders and hub names: what is found, what is downloaded, and whose licence is accepted. No test uses a network."""

from __future__ import annotations

import hashlib
import os

import pytest

from scvi_tahoe.pretrained import (
    LicenceNotAcceptedError,
    LicenceWarning,
    UnsafeFileError,
    read_pretrained,
    resolve_source,
)
from scvi_tahoe.pretrained._hub import checkpoint_on_hub

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


def offline(cache, name=NAME, **options):
    return read_pretrained(name, cache_dir=cache, offline=True, **options)


def test_a_folder_here_is_itself_and_needs_no_licence(golden_folder):
    folder = golden_folder()
    place = resolve_source(folder)
    assert place.folder == folder
    assert place.revision is None


@pytest.mark.filterwarnings("ignore::scvi_tahoe.pretrained.LicenceWarning")
def test_the_cache_serves_offline_and_states_the_commit(cache):
    model = offline(cache, accept_license=True)
    assert model.provenance.revision == COMMIT
    assert model.provenance.source == NAME


@pytest.mark.filterwarnings("ignore::scvi_tahoe.pretrained.LicenceWarning")
def test_one_repository_may_hold_several_models(cache):
    model = offline(cache, f"{NAME}/zeroshot/jurkat", accept_license=True)
    assert model.provenance.source == f"{NAME}/zeroshot/jurkat"
    with pytest.raises(FileNotFoundError, match="no folder 'fewshot/k562'"):
        offline(cache, f"{NAME}/fewshot/k562", accept_license=True)


def test_the_licence_must_be_accepted_and_is_shown(cache, monkeypatch):
    with pytest.raises(LicenceNotAcceptedError, match=r"non-commercial.*accept_license=True"):
        offline(cache)
    with pytest.raises(LicenceNotAcceptedError):
        offline(cache, accept_license=False)
    with pytest.warns(LicenceWarning, match="every model fine-tuned"):
        offline(cache, accept_license=True)
    monkeypatch.setenv("SCVI_TAHOE_ACCEPT_LICENSE", "1")
    with pytest.warns(LicenceWarning):
        offline(cache)


@pytest.mark.filterwarnings("ignore::scvi_tahoe.pretrained.LicenceWarning")
def test_what_is_not_in_the_cache_is_not_found_offline(cache):
    with pytest.raises(FileNotFoundError, match="not in the cache"):
        offline(cache, "someone/else", accept_license=True)
    with pytest.raises(FileNotFoundError, match="not in the cache"):
        offline(cache, revision="f" * 40, accept_license=True)


@pytest.mark.filterwarnings("ignore::scvi_tahoe.pretrained.LicenceWarning")
def test_a_download_with_a_wrong_hash_is_refused(cache):
    blob = max(cache.rglob("blobs/*"), key=lambda path: path.stat().st_size)
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(bytes(content))
    with pytest.raises(UnsafeFileError, match="hash the hub states"):
        offline(cache, accept_license=True)


@pytest.mark.filterwarnings("ignore::scvi_tahoe.pretrained.LicenceWarning")
def test_small_files_are_compared_with_the_hash_that_git_gives_them(cache):
    content = b"data: {}\n"
    blob = next(cache.rglob("blobs")) / hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    blob.write_bytes(content)
    link = next(cache.rglob("snapshots")) / COMMIT / "config.yaml"
    link.symlink_to(os.path.relpath(blob, link.parent))
    assert offline(cache, accept_license=True).provenance.revision == COMMIT
    blob.write_bytes(content + b"more: {}\n")
    with pytest.raises(UnsafeFileError, match=r"config\.yaml does not have the hash the hub states"):
        offline(cache, accept_license=True)


@pytest.mark.parametrize("source", ["nowhere", "/no/such/folder", "a b/c", "../x/y/.."])
def test_what_is_neither_folder_nor_name_is_refused(source):
    with pytest.raises(FileNotFoundError, match="neither a folder here nor a name"):
        resolve_source(source)


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
    assert checkpoint_on_hub(FILES, prefix, checkpoint) == expected


def test_without_named_checkpoints_the_highest_step_is_downloaded():
    assert checkpoint_on_hub(FILES[3:5], "", None) == FILES[4]


def test_a_checkpoint_the_hub_lacks_is_refused_with_those_there_are():
    with pytest.raises(FileNotFoundError, match=r"last.*best\.ckpt"):
        checkpoint_on_hub(FILES, "", "last")
