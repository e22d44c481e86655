"""Downloads through the real client of the hub, from a server on this machine that speaks the hub's protocol."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hub_server import COMMIT, Repository, serve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SCRIPT = """
import json, sys
from scvi_tahoe.pretrained import read_pretrained
cache, offline = sys.argv[1], sys.argv[2] == "offline"
model = read_pretrained("someone/st-model", accept_license=True, cache_dir=cache, offline=offline)
print(json.dumps([model.provenance.revision, model.provenance.checkpoint, len(model.state_dict)]))
"""


@pytest.mark.slow
def test_a_download_is_pinned_sparing_and_kept(
    golden_folder: Callable[..., Path], run_with_hub: Callable[..., str], tmp_path: Path
) -> None:
    pytest.importorskip("huggingface_hub")
    folder = golden_folder("hvg_causal")
    (folder / "checkpoints" / "step=5.ckpt").write_bytes(b"not wanted")
    (folder / "eval_final").mkdir()
    (folder / "eval_final" / "adata_pred.h5ad").write_bytes(b"not wanted")
    repository, cache = Repository(folder), tmp_path / "hub"
    with serve(repository) as address:
        online = run_with_hub(address, SCRIPT, cache, "online")
        revision, checkpoint, n_tensors = json.loads(online.splitlines()[-1])
        assert (revision, checkpoint) == (COMMIT, "final.ckpt")
        assert n_tensors > 20
        asked = repository.asked
        assert "checkpoints/final.ckpt" in asked
        assert not [name for name in asked if name.startswith("eval") or "step=5" in name]
        n_asked = len(asked)
        offline = run_with_hub("http://127.0.0.1:9", SCRIPT, cache, "offline")
    assert json.loads(offline.splitlines()[-1])[0] == COMMIT
    assert len(asked) == n_asked
