"""Downloads through the real client of the hub, from a server on this machine that speaks the hub's protocol."""

from __future__ import annotations

import pytest
import torch
from hub_server import COMMIT, Repository, serve

from scvi_tahoe import TahoeST
from scvi_tahoe.pretrained import LicenceNotAcceptedError, UnsafeFileError, read_arc_folder, read_pretrained

CHECKPOINT = "checkpoints/final.ckpt"

pytestmark = pytest.mark.filterwarnings("ignore::scvi_tahoe.pretrained.LicenceWarning")


@pytest.fixture
def repository(golden_folder, use_hub):
    """A repository that the hub's client of this process asks for."""
    hub = Repository(golden_folder("hvg_causal"))
    with serve(hub) as address:
        use_hub(address)
        yield hub


@pytest.fixture
def download(tmp_path):
    def download(**options):
        return read_pretrained("someone/st-model", accept_license=True, cache_dir=tmp_path / "hub", **options)

    return download


def test_a_download_is_pinned_sparing_and_kept(repository, download, use_hub):
    (repository.folder / "checkpoints" / "step=5.ckpt").write_bytes(b"not wanted")
    (repository.folder / "eval_final").mkdir()
    (repository.folder / "eval_final" / "adata_pred.h5ad").write_bytes(b"not wanted")
    online = download()
    assert (online.provenance.revision, online.provenance.checkpoint) == (COMMIT, "final.ckpt")
    assert CHECKPOINT in repository.asked
    assert not [name for name in repository.asked if name.startswith("eval") or "step=5" in name]
    n_asked = len(repository.asked)
    use_hub("http://127.0.0.1:9")
    with pytest.raises(Exception, match="refused") as unreachable:
        download()
    assert "offline=True" in unreachable.value.__notes__[0]
    offline = download(offline=True)
    assert offline.provenance.revision == COMMIT
    assert all(torch.equal(offline.state_dict[name], tensor) for name, tensor in online.state_dict.items())
    assert len(repository.asked) == n_asked


@pytest.fixture
def large(golden, repository):
    """The tensors of a checkpoint of more than two of the pieces that the client writes at once (10 MB)."""
    golden("hvg_causal").folder.write(repository.folder, optimizer_states=[torch.zeros(6_000_000)])
    return read_arc_folder(repository.folder).state_dict


def test_a_download_that_breaks_off_goes_on_where_it_stopped(repository, download, large):
    repository.cut[CHECKPOINT] = 1
    model = download()
    first, second = (start for name, start in repository.sent if name == CHECKPOINT)
    assert first == 0 < 10_000_000 < second
    assert all(torch.equal(model.state_dict[name], tensor) for name, tensor in large.items())


def test_a_download_that_failed_is_completed_by_the_next_call(repository, download, large):
    repository.cut[CHECKPOINT] = 1
    repository.refused.add(CHECKPOINT)
    with pytest.raises(OSError, match="503"):
        download()
    with pytest.raises(FileNotFoundError):
        download(offline=True)
    repository.refused.clear()
    model = download()
    assert all(torch.equal(model.state_dict[name], tensor) for name, tensor in large.items())
    whole = [name for name, _ in repository.sent if name != CHECKPOINT]
    assert len(whole) == len(set(whole)), "a file that was whole is not sent again"


def test_bytes_that_differ_from_the_listed_hash_are_refused(repository, download):
    content = bytearray((repository.folder / CHECKPOINT).read_bytes())
    content[len(content) // 2] ^= 1
    repository.forged[CHECKPOINT] = bytes(content)
    for offline in (False, True):
        with pytest.raises(UnsafeFileError, match="hash the hub states"):
            download(offline=offline)


def test_an_export_may_refer_to_a_backbone_of_the_hub(repository, tmp_path):
    name = "someone/st-model"
    model = TahoeST.from_pretrained(name, accept_license=True)
    with pytest.raises(LicenceNotAcceptedError):
        model.export(tmp_path / "small", backbone_from=name)
    model.export(tmp_path / "small", backbone_from=name, accept_license=True)
    again = TahoeST.from_pretrained(tmp_path / "small", backbone_from=name, accept_license=True)
    expected, found = (m.module.network.state_dict() for m in (model, again))
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
    assert repository.commit in (tmp_path / "small" / "config.json").read_text()


def test_the_variable_of_the_client_that_forbids_the_network_is_heeded(repository, download, use_hub, monkeypatch):
    download()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    use_hub("http://127.0.0.1:9")
    assert download().provenance.revision == COMMIT
