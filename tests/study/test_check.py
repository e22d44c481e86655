from __future__ import annotations

import pytest
import yaml
from study_samples import embedding_config, expression_config, with_key, write_config

from scvi_tahoe.study import TahoeRun, check_config

BACKBONE = "model.kwargs.transformer_backbone_kwargs"
CLIP, LENGTH = "training.gradient_clip_val", "model.kwargs.cell_set_len"
INIT, FREEZE = "model.kwargs.init_from", "model.kwargs.freeze_pert_backbone"
SPACE, TAHOE = "data.kwargs.embed_key", "/weights/ST-Tahoe/final.ckpt"


def checked(folder, keys=None, config=expression_config):
    """Check a configuration with some keys set, or left out where they are ``...``."""
    content = config()
    for key, value in (keys or {}).items():
        with_key(content, key, value)
    return check_config(write_config(content, folder))


def test_nothing_is_said_of_a_configuration_that_is_obeyed(tmp_path):
    found = checked(tmp_path)
    assert found.findings == ()
    assert "nothing to say" in str(found)
    assert found.exit_code(strict=True) == 0


@pytest.mark.parametrize(
    ("key", "value", "rule", "level"),
    [
        ("training.loss_fn", "mse", "loss_fn", "warning"),
        ("training.weight_decay", 0.001, "ignored", "warning"),
        ("training.lr_scheduler", "cosine", "ignored", "warning"),
        ("training.warmup_ratio", 0.1, "ignored", "warning"),
        ("training.min_lr_ratio", 0.1, "ignored", "warning"),
        ("training.precision", "bf16-mixed", "ignored", "warning"),
        ("training.accumulate_grad_batches", 8, "ignored", "warning"),
        ("training.ckpt_every_n_steps", 100, "ignored", "note"),
        ("training.gradient_clip_val", 10, "clipping", "warning"),
        ("model.kwargs.softplus", True, "ignored", "warning"),
        ("model.kwargs.decoder_loss_weight", 0.5, "ignored", "warning"),
        ("model.kwargs.cell_set_len", 32, "set_length", "error"),
        ("data.kwargs.map_controls", True, "ignored", "note"),
        ("data.kwargs.n_basal_samples", 3, "ignored", "note"),
    ],
)
def test_a_key_without_effect_is_named_with_its_line(tmp_path, key, value, rule, level):
    findings = checked(tmp_path, {key: value}).findings
    finding = next(f for f in findings if f.rule == rule and f.where == key)
    assert finding.level == level
    assert finding.instead
    line = (tmp_path / "config.yaml").read_text().splitlines()[finding.line - 1]
    assert line.strip().startswith(key.rsplit(".", 1)[1])


@pytest.mark.parametrize("key", ["training.weight_decay", "training.lr_scheduler", "model.kwargs.softplus"])
def test_what_is_switched_off_is_not_complained_of(tmp_path, key):
    assert not checked(tmp_path, {key: None}).findings


@pytest.mark.parametrize(
    ("config", "keys", "rule", "where", "level", "text"),
    [
        pytest.param(expression_config, {CLIP: ...}, "clipping", CLIP, "warning", "the default is 10", id="no clip"),
        pytest.param(expression_config, {f"{BACKBONE}.bidirectional_attention": ...}, "bidirectional",
                     f"{BACKBONE}.bidirectional_attention", "warning", "the flag is missing", id="attention"),
        pytest.param(embedding_config, {}, "scored_space", SPACE, "error", "weight 0.3", id="scored on genes"),
        pytest.param(embedding_config, {"model.kwargs.decoder_weight": 0.0}, "random_decoder", SPACE, "error",
                     "stays random", id="random decoder"),
        pytest.param(embedding_config, {"data.kwargs.output_space": "embedding"}, "no_genes", SPACE, "error",
                     "would be meaningless", id="no genes at the output"),
        pytest.param(embedding_config, {"model.kwargs.gene_decoder_bool": False}, "no_genes", SPACE, "error",
                     "would be meaningless", id="no decoder"),
        pytest.param(embedding_config, {"model.kwargs.decoder_loss_weight": 0.9}, "decoder_weight",
                     "model.kwargs.decoder_loss_weight", "warning",
                     "its value is 0.9, but decoder_weight is 0.3", id="two decoder weights"),
        pytest.param(expression_config, {INIT: TAHOE}, "shorter_sets", LENGTH, "warning", "probably trained with 512",
                     id="sets shorter than those of ST-Tahoe"),
        pytest.param(expression_config, {INIT: "/a/best.ckpt", "model.kwargs.lora": {"enable": True}}, "lora",
                     "model.kwargs.lora.enable", "error", "random backbone", id="LoRA on loaded weights"),
        pytest.param(expression_config, {FREEZE: True}, "frozen_random", FREEZE, "error", "frozen weights are random",
                     id="random weights frozen"),
        pytest.param(expression_config, {FREEZE: True, INIT: TAHOE}, "frozen_random", FREEZE, "warning",
                     "and is frozen", id="random last layer frozen"),
    ],
)  # fmt: skip
def test_what_would_surprise_its_author_is_named(tmp_path, config, keys, rule, where, level, text):
    found = checked(tmp_path, keys, config)
    finding = next(f for f in found.findings if (f.rule, f.where) == (rule, where))
    assert finding.level == level
    assert text in finding.message
    assert found.exit_code() == (level == "error" or config is embedding_config)
    assert found.exit_code(strict=True) == 1


def test_a_missing_flag_of_attention_is_shown_at_its_section(tmp_path):
    (finding,) = checked(tmp_path, {f"{BACKBONE}.bidirectional_attention": ...}).findings
    assert "transformer_backbone_kwargs" in (tmp_path / "config.yaml").read_text().splitlines()[finding.line - 1]
    assert "diagnose_attention" in finding.instead


@pytest.mark.parametrize(("space", "head"), [("all", "down_up"), ("embedding", "hidden_residual")])
@pytest.mark.parametrize("config", [expression_config, embedding_config], ids=["expression", "embedding"])
def test_the_output_space_decides_on_the_head(tmp_path, space, head, config):
    assert checked(tmp_path, {"data.kwargs.output_space": space}, config).run.model.network["head"] == head


def test_sets_shorter_than_those_of_the_weights_are_named(tmp_path):
    source = tmp_path / "earlier"
    (source / "checkpoints").mkdir(parents=True)
    checked(source, {LENGTH: 128})
    found = checked(tmp_path, {INIT: str(source / "checkpoints" / "best.ckpt")}).findings
    assert any("were trained with 128" in f.message for f in found if f.rule == "shorter_sets")


def test_a_start_that_resumes_from_the_last_checkpoint_is_named(tmp_path):
    found = checked(tmp_path, {INIT: "/runs/a/checkpoints/last.ckpt"}).findings
    assert {f.rule for f in found} == {"init_from_resumes", "starts_from_last"}


def test_the_run_is_what_the_author_meant(tmp_path):
    keys = {
        "training.weight_decay": "1e-3",
        "training.accumulate_grad_batches": 4,
        INIT: "/runs/a/checkpoints/last.ckpt",
    }
    run = checked(tmp_path, keys, embedding_config).run
    assert (run.name, run.seed, run.data.control) == ("study-of-ours", 7, "ntc")
    assert (run.data.cell_embedding_key, run.model.representation) == ("X_cells", "embedding")
    assert run.model.size["hidden"] == 96
    assert run.model.objective == {"terms": {"energy": 1.0}, "decoder_weight": 0.3}
    assert run.model.network["gene_decoder"]["hidden"] == [32, 48]
    assert (run.train.plan["weight_decay"], run.train.accumulate) == (1e-3, 4)
    assert (run.start.source, run.start.checkpoint) == ("/runs/a", None)  # the best one, if there is one
    run.to_yaml(tmp_path / "run.yaml")
    assert TahoeRun.from_yaml(tmp_path / "run.yaml").train.max_steps == 500


def test_two_losses_become_two_terms(tmp_path):
    terms = checked(tmp_path, {"model.kwargs.loss": "se"}).run.model.objective["terms"]
    assert terms == {"energy": 1.0, "sinkhorn": 0.01}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{name: x, data: {}, start: {}}", "It is a run of ours", id="our run"),
        pytest.param("{model: {name: state}, data: {kwargs: {}}}", "lacks model.kwargs or training", id="incomplete"),
        pytest.param("{model: {name: cpa, kwargs: {}}, data: {kwargs: {}}, training: {}}", "of the model 'cpa'",
                     id="another model"),
        pytest.param("model: !!python/object/apply:os.system ['touch harm']\ndata: {}", "is not a YAML file",
                     id="tags of Python"),
        pytest.param(yaml.safe_dump(with_key(expression_config(), "training.lr", "fast")),
                     r"line \d+: training.lr is 'fast'", id="text for a number"),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        check_config(tmp_path / "config.yaml")


def test_a_mismatch_of_spaces_stops_unless_it_is_allowed(tmp_path):
    found = checked(tmp_path, config=embedding_config)
    assert (found.exit_code(), found.exit_code(allow_mismatch=True)) == (1, 0)
    assert found.exit_code(allow_mismatch=True, strict=True) == 1
    random = checked(tmp_path, {"model.kwargs.decoder_weight": 0.0}, embedding_config)
    assert random.exit_code(allow_mismatch=True) == 1


@pytest.fixture
def table(tmp_path):
    """A table of arc-state with two files: one context predicted, another one with few shots."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.h5ad").touch()
    (tmp_path / "starter.toml").write_text(
        '[datasets]\nx = "{a,b}.h5ad"\nunused = "no.h5ad"\n[training]\nx = "train"\n[zeroshot]\n"x.HepG2" = "test"\n'
        '[fewshot."x.RPE1"]\nval = ["A"]\ntest = ["C", "B"]\n'
    )
    return tmp_path / "starter.toml"


def test_a_written_run_has_the_files_and_the_split_of_the_table(tmp_path, table):
    written = checked(tmp_path, {"data.kwargs.toml_config_path": table.name}).write(tmp_path / "run.yaml")
    assert written.data.path == (str(tmp_path / "a.h5ad"), str(tmp_path / "b.h5ad"))
    assert written.split == {
        "kind": "listed_conditions", "validation": {"RPE1": ["A"]}, "test": {"HepG2": "all", "RPE1": ["B", "C"]}
    }  # fmt: skip
    assert written.data.embedding_files == {"perturbation_features": "/data/features.pt"}
    assert written.model.batch_encoder is True
    assert TahoeRun.from_yaml(tmp_path / "run.yaml") == written
    with pytest.raises(ValueError, match="exists; give the name of a new file"):
        checked(tmp_path).write(tmp_path / "run.yaml")


def test_what_is_not_here_is_said_in_comments_and_expected_of_the_published_weights(tmp_path):
    keys = {INIT: TAHOE, "data.kwargs.toml_config_path": "/no/starter.toml", "model.kwargs.use_basal_projection": False}
    checked(tmp_path, keys, embedding_config).write(tmp_path / "run.yaml")
    text = (tmp_path / "run.yaml").read_text()
    first, *_ = text.splitlines()
    assert first.startswith("# yaml-language-server: $schema=")
    assert "# /no/starter.toml is not here" in text
    assert "  - new_batch_encoder  # a batch encoder is added" in text
    assert "  - other_control_encoder  # " in text
    assert {"new_input", "new_gene_decoder", "other_head"} <= set(
        TahoeRun.from_yaml(tmp_path / "run.yaml").start.accept
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[datasets", "is not a TOML file"),
        ("[training]\nx = 'train'", r"has no \[datasets\]"),
        ("[datasets]\nx = 'no.h5ad'\n[training]\nx = 'train'", "no such file"),
        ("[datasets]\nx = 'a.h5ad'\n[zeroshot]\n'y.K562' = 'test'", r"uses the data sets \['y'\]"),
    ],
    ids=["damaged", "no files", "missing file", "unknown data set"],
)
def test_a_table_that_means_nothing_is_refused(tmp_path, table, text, message):
    table.write_text(text)
    with pytest.raises(ValueError, match=message):
        checked(tmp_path, {"data.kwargs.toml_config_path": str(table)}).write(tmp_path / "run.yaml")
