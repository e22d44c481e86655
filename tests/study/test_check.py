from __future__ import annotations

import pytest
import yaml
from study_samples import embedding_config, expression_config, with_key, write_config

from scvi_tahoe.study import TahoeRun, check_config

BACKBONE = "model.kwargs.transformer_backbone_kwargs"


def rules(config, folder):
    return {(f.rule, f.where): f for f in check_config(write_config(config, folder)).findings}


def test_nothing_is_said_of_a_configuration_that_is_obeyed(tmp_path):
    checked = check_config(write_config(expression_config(), tmp_path))
    assert checked.findings == ()
    assert "nothing to say" in str(checked)
    assert checked.exit_code(strict=True) == 0


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
    path = write_config(with_key(expression_config(), key, value), tmp_path)
    finding = next(f for f in check_config(path).findings if f.rule == rule and f.where == key)
    assert finding.level == level
    assert finding.instead
    line = path.read_text().splitlines()[finding.line - 1]
    assert line.strip().startswith(key.rsplit(".", 1)[1])


@pytest.mark.parametrize("key", ["training.weight_decay", "training.lr_scheduler", "model.kwargs.softplus"])
def test_what_is_switched_off_is_not_complained_of(tmp_path, key):
    assert not rules(with_key(expression_config(), key, None), tmp_path)


def test_the_default_clip_is_no_clip(tmp_path):
    config = expression_config()
    del config["training"]["gradient_clip_val"]
    assert "the default is 10" in rules(config, tmp_path)["clipping", "training.gradient_clip_val"].message


def test_a_missing_flag_of_attention_is_named(tmp_path):
    config = expression_config()
    del config["model"]["kwargs"]["transformer_backbone_kwargs"]["bidirectional_attention"]
    finding = rules(config, tmp_path)["bidirectional", f"{BACKBONE}.bidirectional_attention"]
    assert finding.line == check_config(tmp_path / "config.yaml").findings[0].line
    assert "diagnose_attention" in finding.instead


def test_embeddings_that_are_scored_on_genes_are_a_warning(tmp_path):
    finding = rules(embedding_config(), tmp_path)["scored_space", "data.kwargs.embed_key"]
    assert finding.level == "warning"
    assert "weight 0.3" in finding.message


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("data.kwargs.output_space", "embedding", "no_genes"),
        ("model.kwargs.gene_decoder_bool", False, "no_genes"),
        ("model.kwargs.decoder_weight", 0.0, "scored_space"),
    ],
)
def test_embeddings_without_a_trained_decoder_make_the_run_meaningless(tmp_path, key, value, rule):
    checked = check_config(write_config(with_key(embedding_config(), key, value), tmp_path))
    assert next(f for f in checked.findings if f.rule == rule).level == "error"
    assert checked.exit_code() == 1


@pytest.mark.parametrize(("space", "head"), [("all", "down_up"), ("embedding", "hidden_residual")])
def test_the_output_space_decides_on_the_head(tmp_path, space, head):
    for config in (expression_config(), embedding_config()):
        path = write_config(with_key(config, "data.kwargs.output_space", space), tmp_path)
        assert check_config(path).run.model.network["head"] == head


def test_of_two_decoder_weights_the_live_one_is_named(tmp_path):
    found = rules(with_key(embedding_config(), "model.kwargs.decoder_loss_weight", 0.9), tmp_path)
    message = found["decoder_weight", "model.kwargs.decoder_loss_weight"].message
    assert "0.9" in message
    assert "0.3: decoder_weight counts" in message


def test_sets_shorter_than_those_of_the_weights_are_named(tmp_path):
    source = tmp_path / "earlier"
    (source / "checkpoints").mkdir(parents=True)
    write_config(with_key(expression_config(), "model.kwargs.cell_set_len", 128), source)
    config = with_key(expression_config(), "model.kwargs.init_from", str(source / "checkpoints" / "best.ckpt"))
    assert "were trained with 128" in rules(config, tmp_path)["shorter_sets", "model.kwargs.cell_set_len"].message


def test_sets_shorter_than_those_of_st_tahoe_are_named(tmp_path):
    config = with_key(expression_config(), "model.kwargs.init_from", "/weights/ST-Tahoe/final.ckpt")
    assert "were trained with 512" in rules(config, tmp_path)["shorter_sets", "model.kwargs.cell_set_len"].message


def test_a_start_that_resumes_from_the_last_checkpoint_is_named(tmp_path):
    found = rules(with_key(expression_config(), "model.kwargs.init_from", "/runs/a/checkpoints/last.ckpt"), tmp_path)
    assert {rule for rule, _ in found} == {"init_from_resumes", "starts_from_last"}


def test_lora_on_loaded_weights_is_an_error(tmp_path):
    config = with_key(expression_config(), "model.kwargs.init_from", "/runs/a/checkpoints/best.ckpt")
    config = with_key(config, "model.kwargs.lora", {"enable": True})
    assert rules(config, tmp_path)["lora", "model.kwargs.lora.enable"].level == "error"


def test_freezing_random_weights_is_an_error(tmp_path):
    config = with_key(expression_config(), "model.kwargs.freeze_pert_backbone", True)
    assert rules(config, tmp_path)["frozen_random", "model.kwargs.freeze_pert_backbone"].level == "error"


def test_freezing_st_tahoe_with_all_genes_freezes_a_random_last_layer(tmp_path):
    config = with_key(expression_config(), "model.kwargs.freeze_pert_backbone", True)
    config = with_key(config, "model.kwargs.init_from", "/weights/ST-Tahoe/final.ckpt")
    assert "frozen at that" in rules(config, tmp_path)["frozen_random", "model.kwargs.freeze_pert_backbone"].message


def test_strict_makes_warnings_count(tmp_path):
    checked = check_config(write_config(with_key(expression_config(), "training.loss_fn", "mse"), tmp_path))
    assert (checked.exit_code(), checked.exit_code(strict=True)) == (0, 1)


def test_the_run_is_what_the_author_meant(tmp_path):
    config = with_key(embedding_config(), "training.weight_decay", "1e-3")
    config = with_key(config, "training.accumulate_grad_batches", 4)
    config = with_key(config, "model.kwargs.init_from", "/runs/a/checkpoints/last.ckpt")
    run = check_config(write_config(config, tmp_path)).run
    assert run.name == "study-of-ours"
    assert run.seed == 7
    assert run.data.control == "ntc"
    assert run.data.cell_embedding_key == "X_cells"
    assert run.model.representation == "embedding"
    assert run.model.size["hidden"] == 96
    assert run.model.objective == {"terms": {"energy": 1.0}, "decoder_weight": 0.3}
    assert run.model.network["gene_decoder"]["hidden"] == [32, 48]
    assert run.train.plan["weight_decay"] == 1e-3
    assert run.train.accumulate == 4
    assert (run.start.source, run.start.checkpoint) == ("/runs/a", "best")


def test_two_losses_become_two_terms(tmp_path):
    config = with_key(expression_config(), "model.kwargs.loss", "se")
    assert check_config(write_config(config, tmp_path)).run.model.objective["terms"] == {
        "energy": 1.0,
        "sinkhorn": 0.01,
    }


def test_the_converted_run_is_a_file_that_we_read(tmp_path):
    check_config(write_config(embedding_config(), tmp_path)).run.to_yaml(tmp_path / "run.yaml")
    assert TahoeRun.from_yaml(tmp_path / "run.yaml").train.max_steps == 500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"name": "x", "data": {}, "start": {}}, "It is a run of ours"),
        ({"model": {"name": "state"}, "data": {"kwargs": {}}}, "lacks model.kwargs or training"),
        ({"model": {"name": "cpa", "kwargs": {}}, "data": {"kwargs": {}}, "training": {}}, "of the model 'cpa'"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        check_config(write_config(content, tmp_path))


def test_text_where_a_number_is_needed_is_named_with_its_line(tmp_path):
    with pytest.raises(ValueError, match=r"line \d+: training.lr is 'fast'"):
        check_config(write_config(with_key(expression_config(), "training.lr", "fast"), tmp_path))


def test_tags_of_python_are_not_executed(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("model: !!python/object/apply:os.system ['touch harm']\n" + yaml.safe_dump({"data": {}}))
    with pytest.raises(ValueError, match="is not a YAML file"):
        check_config(path)
