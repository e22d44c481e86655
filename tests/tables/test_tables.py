"""Tables are made of files in the formats of their publishers, say where they come from, and find labels by aliases."""

from __future__ import annotations

import bz2
import gzip

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from typer.testing import CliRunner

from scvi_tahoe import TahoeST, tables
from scvi_tahoe.cli import app
from scvi_tahoe.datasets import simulate_screen
from scvi_tahoe.response import ResponseModel

GENES = [f"G{i}" for i in range(24)]


def _cosine(table):
    unit = table.to_numpy() / np.linalg.norm(table.to_numpy(), axis=1, keepdims=True)
    return pd.DataFrame(unit @ unit.T, index=table.index, columns=table.index)


@pytest.fixture
def gmt(tmp_path):
    """Two groups of genes that share their sets, and two sets that are too small or too large."""
    rng = np.random.default_rng(0)
    lines = [f"tiny\thttp://x\t{GENES[0]}", "all\thttp://x\t" + "\t".join(GENES)]
    for i in range(20):
        group = GENES[:12] if i % 2 else GENES[12:]
        lines.append(f"set{i}\tna\t" + "\t".join(rng.choice(group, 6, replace=False)))
    (tmp_path / "sets.gmt").write_text("\n".join(lines) + "\n\n")
    return tmp_path / "sets.gmt"


def test_genes_of_the_same_sets_are_alike_and_small_sets_weigh_more(gmt):
    table = tables.gene_sets(gmt, n_components=8, max_size=20, licence="CC BY 4.0")
    assert list(table.index) == sorted(GENES)
    assert table.shape == (24, 8)
    assert table.dtypes.eq(np.float32).all()
    alike = _cosine(table)
    assert alike.loc[GENES[:12], GENES[:12]].to_numpy().mean() > 0.3
    assert abs(alike.loc[GENES[:12], GENES[12:]].to_numpy()).max() < 1e-3
    assert table.attrs["detail"].startswith("20 of 22 sets")
    pd.testing.assert_frame_equal(tables.gene_sets([gmt], n_components=8, max_size=20), table)


def test_weights_of_sets_are_their_inverse_document_frequency(tmp_path):
    (tmp_path / "two.gmt").write_text("a\t\tx\ty\nb\t\tx\tz\tw\tv\n")
    full = tables.gene_sets(tmp_path / "two.gmt", n_components=1, min_size=2)
    idf = np.log(5 / np.array([2, 4]))
    rows = np.array([idf, [idf[0], 0], [0, idf[1]]])  # x, y, z
    expected = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    matrix = np.vstack([expected, expected[2:], expected[2:]])  # w and v are as z
    left, values, _ = np.linalg.svd(matrix, full_matrices=False)
    np.testing.assert_allclose(abs(full.loc[["x", "y", "z"]].to_numpy()[:, 0]), abs(left[:3, 0] * values[0]), atol=1e-5)


@pytest.fixture
def string(tmp_path):
    """Two cliques, each link twice as STRING writes it, and a weak link between them."""
    lines = ["protein1 protein2 combined_score"]
    for group in (GENES[:12], GENES[12:]):
        lines += [f"9606.P{a} 9606.P{b} 900" for a in group for b in group if a != b]
    lines += ["9606.PG0 9606.PG12 150", "9606.PG12 9606.PG0 150"]
    with gzip.open(tmp_path / "links.txt.gz", "wt") as file:
        file.write("\n".join(lines))
    info = ["#string_protein_id\tpreferred_name\tprotein_size"] + [f"9606.P{g}\t{g}\t1" for g in GENES]
    (tmp_path / "info.txt").write_text("\n".join(info))
    return tmp_path


def test_proteins_that_interact_are_alike_and_weak_links_are_left_out(string):
    table = tables.string_links(string / "links.txt.gz", info=string / "info.txt", n_components=4)
    alike = _cosine(table)
    assert alike.loc[GENES[:12], GENES[:12]].to_numpy().min() > 0.9
    assert abs(alike.loc[GENES[:12], GENES[12:]].to_numpy()).max() < 0.1
    assert table.attrs["detail"] == "132 links from score 400"
    assert "PG0" in tables.string_links(string / "links.txt.gz", n_components=2).index
    assert "133 links" in tables.string_links(string / "links.txt.gz", min_score=100, n_components=2).attrs["detail"]


def test_genes_that_matter_in_the_same_lines_are_alike_however_strong(tmp_path):
    rng = np.random.default_rng(0)
    need = rng.normal(size=(30, 2))
    effects = np.stack([need[:, i % 2] * (1 + i) + 0.1 * rng.normal(size=30) for i in range(10)], axis=1)
    effects[:, 0] = 1.0  # the same everywhere
    frame = pd.DataFrame(effects, index=[f"ACH-{i}" for i in range(30)], columns=[f"S{i} ({i})" for i in range(10)])
    frame.iloc[:20, 1] = np.nan
    frame.iloc[:2, 2] = np.nan
    frame.to_csv(tmp_path / "effects.csv")
    table = tables.gene_effects(tmp_path / "effects.csv", n_components=4)
    assert list(table.index) == [f"S{i}" for i in range(2, 10)]
    alike = _cosine(table)
    assert alike.loc["S2", "S8"] > 0.8 > 0.5 > alike.loc["S2", "S9"]
    assert table.attrs["detail"] == "30 cell lines; 2 genes left out"


def test_proteins_of_the_same_words_are_alike(tmp_path):
    first, second = "MKTAYIAKQRQISFVKSHFSRQ", "GGGPLLWCCHHDDNNEEWWYYTT"
    entries = [
        ">sp|P1|A_HUMAN Protein OS=Homo sapiens GN=A PE=1", first, ">sp|P1-2|A_HUMAN Isoform GN=A", first[:5],
        ">B some protein", first[3:] + "LLV", ">C", second.lower()[:10], second[10:],
    ]  # fmt: skip
    (tmp_path / "proteins.fasta").write_text("\n".join(entries))
    table = tables.protein_kmers(tmp_path / "proteins.fasta", n_components=2, licence="CC BY 4.0 (UniProt)")
    assert list(table.index) == ["A", "B", "C"]
    assert _cosine(table).loc["A", "B"] > 0.8 > 0.3 > abs(_cosine(table).loc["A", "C"])
    with gzip.open(tmp_path / "proteins.fasta.gz", "wt") as file:
        file.write("\n".join(entries))
    pd.testing.assert_frame_equal(tables.protein_kmers(tmp_path / "proteins.fasta.gz", n_components=2), table)


def test_drugs_are_read_from_a_mapping_or_a_file(tmp_path):
    pytest.importorskip("rdkit", reason="needs pip install 'scvi-tahoe[chem]'")
    smiles = {"ethanol": "CCO", "propanol": "CCCO", "benzene": "c1ccccc1"}
    table = tables.drug_structures(smiles, n_bits=256)
    pd.DataFrame({"drug": smiles, "x": 1, "SMILES": smiles}).drop(columns="drug").to_csv(tmp_path / "drugs.csv")
    pd.testing.assert_frame_equal(tables.drug_structures(tmp_path / "drugs.csv", n_bits=256), table, check_names=False)
    assert _cosine(table).loc["ethanol", "propanol"] > _cosine(table).loc["ethanol", "benzene"]


ALIASES = """hgnc_id\tsymbol\talias_symbol\tprev_symbol\tensembl_gene_id
HGNC:1\tSTAT1\t"ISGF-3|STAT91"\t\tENSG00000115415
HGNC:2\tNSD2\tMMSET|shared\tWHSC1\tENSG00000109685
HGNC:3\tKMT2D\tshared\tMLL2\tENSG00000167548
HGNC:4\tWHSC1L\tSTAT1\t\t
"""


@pytest.fixture
def aliases(tmp_path):
    (tmp_path / "hgnc.txt").write_text(ALIASES)
    return tables.read_aliases(tmp_path / "hgnc.txt")


def test_other_names_mean_the_current_one_unless_they_mean_several(aliases, tmp_path):
    assert aliases["WHSC1"] == aliases["MMSET"] == aliases["ENSG00000109685"] == "NSD2"
    assert aliases["STAT91"] == "STAT1"
    assert "shared" not in aliases
    assert "STAT1" not in aliases  # a current name means itself
    (tmp_path / "two.csv").write_text("old,new\nWHSC1,NSD2\n")
    assert tables.read_aliases(tmp_path / "two.csv") == {"WHSC1": "NSD2"}


def test_labels_are_found_to_the_letter_by_aliases_in_either_direction_and_the_rest_is_reported(aliases):
    table = pd.DataFrame(np.eye(3), index=["STAT1", "WHSC1", "ENSG00000167548.12"])
    table.attrs = {"kind": "test"}
    found = tables.match_labels(table, ["ENSG00000115415.3", "NSD2", "KMT2D", "STAT1", "NOPE"], aliases)
    assert list(found.table.index) == ["ENSG00000115415.3", "NSD2", "KMT2D", "STAT1"]
    np.testing.assert_array_equal(found.table.to_numpy().argmax(1), [0, 1, 2, 0])
    assert found.report["how"].tolist() == ["alias", "alias", "alias", "exact", "missing"]
    assert found.table.attrs == {"kind": "test"}
    with pytest.raises(ValueError, match=r"none of 1 labels .*\(did you mean 'STAT1'\?\)"):
        tables.match_labels(table, ["stat1"])


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".tsv", ".npz"])
def test_a_table_is_written_and_read_and_parquet_keeps_its_origin(gmt, tmp_path, ending):
    table = tables.gene_sets(gmt, n_components=3, licence="CC BY 4.0")
    tables.write_table(table, tmp_path / f"table{ending}")
    found = tables.read_table(tmp_path / f"table{ending}")
    np.testing.assert_allclose(found.loc[table.index].to_numpy(), table.to_numpy(), rtol=1e-6)
    kept = "CC BY 4.0" if ending == ".parquet" else "not stated"
    assert kept in tables.describe_table(found)
    assert tables.read_table(tmp_path / f"table{ending}", licence="mine").attrs["licence"] == "mine"


def test_a_shuffled_table_has_the_same_rows_under_other_names(gmt):
    table = tables.gene_sets(gmt, n_components=3)
    other = tables.shuffled_table(table, seed=1)
    assert (other.index == table.index).all()
    assert (other.to_numpy() != table.to_numpy()).any(1).mean() > 0.8
    np.testing.assert_allclose(np.sort(other.to_numpy(), 0), np.sort(table.to_numpy(), 0))
    assert other.attrs["kind"] == "gene sets, shuffled"


def test_a_table_is_what_setup_anndata_and_the_response_model_take(gmt):
    table = tables.gene_sets(gmt, n_components=3)
    adata = simulate_screen(n_genes=20, n_cells=10, seed=0)
    labels = [str(p) for p in adata.obs["perturbation"].unique() if p != "control"]
    named = table.iloc[: len(labels)].set_axis(labels[: len(table)], axis=0)
    adata = adata[adata.obs["perturbation"].isin(["control", *named.index])].copy()
    adata.uns["sets"] = named
    TahoeST.setup_anndata(adata, "perturbation", "control", context_key="context", perturbation_embedding_key="sets")
    rng = np.random.default_rng(0)
    changes = AnnData(rng.normal(size=(12, 5)).astype(np.float32), obs=pd.DataFrame({"gene": GENES[:12]}, dtype=str))
    model = ResponseModel.fit(changes, perturbation_key="gene", tables={"sets": table}, progress=False)
    assert model.predict([GENES[20]]).X.shape == (1, 5)


BAD = {
    "no file": (tables.gene_sets, "gone.gmt", None, "there is no file"),
    "a line that is no set": (tables.gene_sets, "x.gmt", "name\tonly", "line 1 of x.gmt is not a gene set"),
    "too few sets": (tables.gene_sets, "x.gmt", "a\t\tx\ty", "0 of 1 sets have 5 to 500 genes"),
    "no links": (tables.string_links, "x.txt", "a b\n1 2\n", "not a links file of STRING"),
    "weak links": (tables.string_links, "x.txt", "protein1 protein2 combined_score\na b 3\n", "no link with a score"),
    "text for effects": (tables.gene_effects, "x.csv", "line,A\nl1,high\n", "not a table of gene effects"),
    "few lines": (tables.gene_effects, "x.csv", "line,A\nl1,1\n", "3 of each are needed"),
    "no FASTA": (tables.protein_kmers, "x.fa", "A,B\n1,2\n", "line 1 of x.fa is not part of a FASTA file"),
    "short proteins": (tables.protein_kmers, "x.fa", ">A\nMK\n>B\nMK\n", "0 sequences of 3 or more"),
    "no SMILES": (tables.drug_structures, "x.csv", "name,formula\na,H2O\n", "no column smiles"),
    "no aliases": (tables.read_aliases, "x.csv", "a,b,c\n1,2,3\n", "no column symbol"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "name", "text", "message"), BAD.values(), ids=BAD)
def test_a_file_of_another_kind_is_refused_with_what_is_needed(tmp_path, make, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make(tmp_path / name)


def _run(*arguments):
    return CliRunner().invoke(app, ["tables", *map(str, arguments)])


def test_the_command_makes_a_table_of_labels_and_says_what_is_missing(gmt, tmp_path):
    (tmp_path / "labels.txt").write_text("G1\nG2\nabsent\nold\n")
    (tmp_path / "aliases.csv").write_text("other,symbol\nold,G3\n")
    options = ["--labels", tmp_path / "labels.txt", "--aliases", tmp_path / "aliases.csv", "--n-components", 3]
    done = _run("gene-sets", gmt, "-o", tmp_path / "sets.parquet", "--licence", "CC BY 4.0", *options)
    assert done.exit_code == 0, done.output
    assert "1 labels were not found: absent" in done.output
    assert "licence  CC BY 4.0" in done.output
    assert list(tables.read_table(tmp_path / "sets.parquet").index) == ["G1", "G2", "old"]
    again = _run("gene-sets", gmt, "-o", tmp_path / "sets.parquet")
    assert (again.exit_code, "--overwrite" in again.stderr) == (2, True)
    assert "--k has no effect on gene-sets" in _run("gene-sets", gmt, "-o", tmp_path / "b.csv", "--k", 2).stderr


def test_drugs_of_the_same_targets_are_alike_and_rare_targets_weigh_more(tmp_path):
    (tmp_path / "drugs.csv").write_text(
        "drug,target,mechanism\na,MEK1|MEK2,kinase inhibitor\nb,MEK1; MEK2,kinase inhibitor\n"
        "c,HDAC1,HDAC inhibitor\nd,HDAC1,hdac inhibitor\ne,EGFR,kinase inhibitor\nf,,\ng,NA,NA\nh,NA,\n"
    )
    table = tables.drug_targets(tmp_path / "drugs.csv", n_components=4)
    alike = _cosine(table)
    assert not {"f", "g", "h"} & {*table.index}  # nothing is known of them
    packed = bz2.compress((tmp_path / "drugs.csv").read_bytes())
    (tmp_path / "drugs.csv.bz2").write_bytes(packed)
    assert tables.drug_targets(tmp_path / "drugs.csv.bz2", n_components=4).equals(table)
    assert alike.loc["a", "b"] == pytest.approx(1, abs=1e-4) == alike.loc["c", "d"]
    assert abs(alike.loc["a", "c"]) < 1e-4 < alike.loc["a", "e"] < 0.9
    with pytest.raises(KeyError, match="did you mean 'target'"):
        tables.drug_targets(tmp_path / "drugs.csv", columns=["targets"])
    (tmp_path / "few.csv").write_text("drug,target\na,X\nb,Y\n")
    with pytest.raises(ValueError, match="2 are needed"):
        tables.drug_targets(tmp_path / "few.csv")


def test_a_protein_language_model_in_a_folder_gives_the_mean_of_its_residues(tmp_path):
    transformers = pytest.importorskip("transformers")
    import torch

    (tmp_path / "vocab.txt").write_text(
        "\n".join(["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWC", "<mask>"])
    )
    config = transformers.EsmConfig(
        vocab_size=25, mask_token_id=24, pad_token_id=1, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, position_embedding_type="rotary", token_dropout=False,
    )  # fmt: skip
    torch.manual_seed(0)
    network = transformers.EsmModel(config, add_pooling_layer=False).eval()
    network.save_pretrained(tmp_path / "model")
    tokenizer = transformers.EsmTokenizer(tmp_path / "vocab.txt")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "p.fasta").write_text(">A\nMKLV\n>B\nMKLVAGSERTIDPKQ\n")
    table = tables.protein_embeddings(tmp_path / "p.fasta", tmp_path / "model", progress=False, device="cpu")
    with torch.no_grad():
        alone = network(**tokenizer("MKLV", return_tensors="pt")).last_hidden_state[0, 1:-1].mean(0)
    np.testing.assert_allclose(table.loc["A"], alone.numpy(), atol=1e-5)
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        tables.protein_embeddings(tmp_path / "p.fasta", tmp_path / "none")


def test_gene_sets_are_read_by_name(gmt):
    sets = tables.read_gene_sets(gmt)
    assert sets["tiny"] == GENES[:1]
    assert len(sets) == 22


_NO_TEXT = {
    "empty": b"", "UTF-16": "s\tu\tA\n".encode("utf-16"), "UTF-16 BE": "s\tA\n".encode("utf-16-be"),
    "gzip": gzip.compress(b"a"), "late": b">A\tB\n" * 300_000 + b"\xff",
}  # fmt: skip


@pytest.mark.parametrize("content", _NO_TEXT.values(), ids=_NO_TEXT)
@pytest.mark.parametrize(
    "read",
    [tables.read_gene_sets, tables.read_aliases, tables.drug_targets, tables.gene_effects, tables.protein_kmers,
     tables.string_links, tables.read_table],
)  # fmt: skip
def test_a_file_that_is_empty_or_no_utf8_is_named(tmp_path, read, content):
    (tmp_path / "a.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tsv (is empty|was refused: it holds bytes that are no text)"):
        read(tmp_path / "a.tsv")


def test_a_packed_file_that_was_cut_short_is_named(tmp_path):
    (tmp_path / "p.fasta.gz").write_bytes(gzip.compress(b">A\nMKLVAG\n" * 99)[:-9])
    with pytest.raises(ValueError, match=r"p\.fasta\.gz is damaged"):
        tables.protein_kmers(tmp_path / "p.fasta.gz")


@pytest.mark.parametrize("score", ["inf", "nan", "9" * 400, ""], ids=["infinite", "missing", "huge", "empty"])
def test_a_link_without_a_finite_score_is_refused(tmp_path, score):
    (tmp_path / "links.txt").write_text(f"protein1 protein2 combined_score\n9606.A 9606.B 900\n9606.B 9606.C {score}\n")
    with pytest.raises(ValueError, match="links.txt"):
        tables.string_links(tmp_path / "links.txt")


def test_a_gene_that_is_called_NA_keeps_its_name(tmp_path):
    (tmp_path / "a.csv").write_text("symbol,alias\nNA,None\nG1,old\n")
    assert tables.read_aliases(tmp_path / "a.csv") == {"None": "NA", "old": "G1"}
    (tmp_path / "d.csv").write_text("drug,target\nNA,X|Y\nnan,X\nc,Y|Z\nd,Z\n")
    assert list(tables.drug_targets(tmp_path / "d.csv").index) == ["NA", "c", "d", "nan"]
