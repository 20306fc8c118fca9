"""Weights from files: recognised by keys and shapes alone, of every stage and size, ours and the released ones."""

import argparse
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import create_model
from torch import Tensor, nn

from data_helpers import only_line
from electrodes import embedding_rows
from errors import InputError
from golden_recipe import eeg, fill, published_weights, table
from inference import weights
from run_helpers import CLASSIFIER, ELECTRODES, call, checkpoint, labelled_file
from test_checkpoints import SIZE_OF_STAGE, Executes
from training import checkpoints

NAMES = [(stage, name) for stage, sizes in weights.SIZES.items() for name in sizes]
SCRIPT = "run_class_finetuning"
MONTAGE = ("C3", "CZ", "C4")


def on_meta(name: str, **settings: Any) -> dict[str, Tensor]:
    """Return a model's state dict of shapes without numbers, which costs nothing at any size."""
    with torch.device("meta"):
        return create_model(name, **settings).state_dict()


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def trained(stage: str, **settings: Any) -> nn.Module:
    """Return a tiny model of a stage whose tensors are all different from each other and from a new model's."""
    return fill(create_model(SIZE_OF_STAGE[stage], **settings)).eval()


def saved(state: dict[str, Any], path: Path) -> Path:
    torch.save(state, path)
    return path


def same(model: nn.Module, expected: dict[str, Tensor]) -> bool:
    """Whether a model holds exactly these weights, to the last bit."""
    own = model.state_dict()
    return list(own) == list(expected) and all(torch.equal(own[key], expected[key]) for key in own)


# Recognised


@pytest.mark.parametrize(("stage", "name"), NAMES, ids=[name for _, name in NAMES])
def test_a_model_of_every_stage_and_size_is_recognised_by_keys_and_shapes(stage: str, name: str) -> None:
    state = on_meta(name)
    found = weights.recognise(state, "file.pth")
    assert (found.stage, found.model) == (stage, name)
    assert shapes(on_meta(name, **found.settings)) == shapes(state)


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("classifier", {"num_classes": 6, "qkv_bias": True}),
        ("classifier", {"num_classes": 0, "use_mean_pooling": False}),
        ("classifier", {"use_abs_pos_emb": False, "init_values": 0.0}),
        ("classifier", {"num_electrodes": 136}),
        ("pretraining", {"vocab_size": 48, "init_values": 0.0}),
        ("pretraining", {"vocab_size": 48, "use_abs_pos_emb": False}),
        ("pretraining", {"num_electrodes": 136}),
        ("tokenizer", {"n_code": 48, "code_dim": 12, "num_electrodes": 136}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_every_setting_that_shows_in_keys_or_shapes_is_recognised(stage: str, settings: dict[str, Any]) -> None:
    state = on_meta(SIZE_OF_STAGE[stage], **settings)
    found = weights.recognise(state, "file.pth")
    assert (found.stage, found.model) == (stage, SIZE_OF_STAGE[stage])
    assert found.settings.items() >= settings.items()
    assert shapes(on_meta(found.model, **found.settings)) == shapes(state)


@pytest.mark.parametrize("name", table("state_dicts"))
def test_a_file_with_exactly_the_released_keys_is_recognised(name: str) -> None:
    keys = table("state_dicts")[name]["state_dict"]
    found = weights.recognise({key: torch.empty(shape, device="meta") for key, shape in keys.items()}, "file.pth")
    assert found.model == name


def test_heads_are_told_by_the_width_of_the_norm_over_queries() -> None:
    state = on_meta(SIZE_OF_STAGE["classifier"])
    for key in [key for key in state if "q_norm" in key or "k_norm" in key]:
        state[key] = torch.empty(40, device="meta")  # 5 heads of width 40
    with pytest.raises(InputError) as error:
        weights.recognise(state, "file.pth")
    only_line(error, "width 200, depth 4, heads 5")


@pytest.mark.parametrize(
    ("stage", "sizes", "said"),
    [
        ("classifier", {"depth": 5}, "width 200, depth 5, heads 10"),
        ("pretraining", {"width": 300, "heads": 12}, "width 300, depth 4, heads 12"),
        ("tokenizer", {"decoder_depth": 2}, "encoder_depth 4, decoder_depth 2, width 200"),
        ("tokenizer", {"width": 400}, "width 400"),
    ],
)
def test_a_size_that_is_in_no_table_is_named_with_those_that_are(stage: str, sizes: dict[str, int], said: str) -> None:
    with pytest.raises(InputError) as error:
        weights.recognise(on_meta(SIZE_OF_STAGE[stage], **sizes), "file.pth")
    only_line(error, "file.pth", checkpoints.STAGES[stage], said, SIZE_OF_STAGE[stage], "add a row to SIZES")


def without(*starts: str) -> Callable[[dict[str, Tensor]], None]:
    def change(state: dict[str, Tensor]) -> None:
        for key in [key for key in state if key.startswith(starts)]:
            del state[key]

    return change


def reshaped(key: str, *shape: int) -> Callable[[dict[str, Tensor]], None]:
    def change(state: dict[str, Tensor]) -> None:
        state[key] = torch.zeros(shape)

    return change


@pytest.mark.parametrize(
    ("stage", "change", "said"),
    [
        ("classifier", without("fc_norm"), "no final norm"),
        ("classifier", without("blocks.0.attn.q_norm"), "lacks blocks.0.attn.q_norm.weight"),
        ("classifier", without("time_embed"), "time_embed is missing"),
        ("classifier", without("blocks.2.mlp"), "blocks.2.mlp.fc1.weight is missing"),
        ("classifier", without("cls_token"), "no LaBraM model"),
        ("classifier", reshaped("head.weight", 3), "head.weight is (3,)"),
        ("classifier", reshaped("cls_token"), "cls_token is ()"),
        ("classifier", reshaped("blocks.0.attn.q_norm.weight", 0), "q_norm.weight is (0,)"),
        ("classifier", reshaped("time_embed", 1, 9, 200), "time_embed is (1, 9, 200)"),
        ("classifier", reshaped("blocks.x.weight", 1), "blocks.x.weight is not in the model"),
        ("pretraining", without("lm_head"), "lacks lm_head.weight"),
        ("pretraining", without("student.cls_token"), "lacks student.cls_token"),
        ("tokenizer", without("encoder.pos_embed"), "lacks encoder.pos_embed"),
        ("tokenizer", without("decoder."), "decoder_depth 0"),
        ("tokenizer", reshaped("quantize.embedding.weight", 4), "quantize.embedding.weight is (4,)"),
    ],
)
def test_weights_that_are_cut_or_bent_are_an_error_of_one_line(
    stage: str, change: Callable[[dict[str, Tensor]], None], said: str, tmp_path: Path
) -> None:
    state = trained(stage).state_dict()
    change(state)
    path = saved({"model": state}, tmp_path / "file.pth")
    with pytest.raises(InputError) as error:
        weights.load(path)
    only_line(error, path, said)


# Loaded


@pytest.mark.parametrize("stage", checkpoints.STAGES)
@pytest.mark.parametrize("layout", ["model", "module", "alone", "distributed"])
def test_a_file_of_every_stage_and_layout_gives_its_model_in_evaluation_mode(
    stage: str, layout: str, tmp_path: Path
) -> None:
    model = trained(stage)
    state: dict[str, Any] = model.state_dict()
    state = {"module": {"module": state}, "alone": state}.get(layout, {"model": state, "epoch": 3})
    if layout == "distributed":
        state["model"] = {f"module.{key}": value for key, value in state["model"].items()}
    loaded, found = weights.load(saved(state, tmp_path / "file.pth"))
    assert type(loaded) is type(model) and same(loaded, model.state_dict()) and not loaded.training
    assert (found.stage, found.classes, found.task, found.electrodes, found.window_seconds) == (stage, (), "", (), 0)


@pytest.mark.parametrize(
    "name", ["vqnsp_encoder_base_decoder_3x200x12", "labram_base_patch200_1600_8k_vocab", "labram_base_patch200_200"]
)
def test_a_released_file_with_a_namespace_inside_loads_with_its_weights(name: str, tmp_path: Path) -> None:
    state = published_weights(name)
    args = argparse.Namespace(lr=5e-4, model=name, output_dir="./checkpoints", opt_betas=[0.9, 0.98])
    released = {"model": state, "optimizer": {}, "epoch": 49, "scaler": {}, "args": args}
    loaded, found = weights.load(saved(released, tmp_path / "labram.pth"))
    unused = ("student.lm_head.", "projection_head.")
    assert found.model == name
    assert same(loaded, {key: value for key, value in state.items() if not key.startswith(unused)})


def test_weights_in_half_or_double_precision_become_float32(tmp_path: Path) -> None:
    state = {key: value.double() for key, value in trained("classifier").state_dict().items()}
    loaded, _ = weights.load(saved(state, tmp_path / "file.pth"))
    assert same(loaded, trained("classifier").state_dict())
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("stage", checkpoints.STAGES)
def test_a_file_of_a_stage_that_will_not_do_is_refused(stage: str, tmp_path: Path) -> None:
    path = saved({"model": trained(stage).state_dict()}, tmp_path / "file.pth")
    others = [other for other in checkpoints.STAGES if other != stage]
    with pytest.raises(InputError) as error:
        weights.load(path, stages=others)
    only_line(error, path, f"holds {checkpoints.STAGES[stage]}", "needed here", checkpoints.STAGES[others[0]])
    assert weights.load(path, stages=[stage])[1].stage == stage


def test_averaged_weights_are_taken_where_asked_for_and_missed_where_there_are_none(tmp_path: Path) -> None:
    model = trained("classifier")
    averaged = {key: value + 1 for key, value in model.state_dict().items()}
    extras = {"model_ema": {f"module.{key}": value for key, value in averaged.items()}}
    path = saved({"model": model.state_dict(), "extras": extras}, tmp_path / "file.pth")
    assert same(weights.load(path)[0], model.state_dict())
    assert same(weights.load(path, averaged=True)[0], averaged)
    plain = saved({"model": model.state_dict(), "extras": {}}, tmp_path / "plain.pth")
    with pytest.raises(InputError) as error:
        weights.load(plain, averaged=True)
    only_line(error, plain, "no averaged weights", "--model_ema")


def test_adapters_that_are_not_merged_are_refused_with_the_file_to_take(tmp_path: Path) -> None:
    state = {**trained("classifier").state_dict(), "blocks.0.attn.qkv.lora_A.default.weight": torch.ones(2, 200)}
    path = saved({"model": state}, tmp_path / "checkpoint.pth")
    with pytest.raises(InputError) as error:
        weights.load(path)
    only_line(error, path, "model-merged.pth")


def test_a_file_that_would_execute_code_is_refused_and_does_not(tmp_path: Path) -> None:
    state = {"model": trained("classifier").state_dict(), "args": Executes(tmp_path / "trace")}
    path = saved(state, tmp_path / "bad.pth")
    with pytest.raises(InputError) as error:
        weights.load(path)
    only_line(error, path, "no readable checkpoint")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_that_is_cut_short_is_an_error_of_one_line(share: float, tmp_path: Path) -> None:
    path = saved({"model": trained("classifier").state_dict()}, tmp_path / "cut.pth")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError) as error:
        weights.load(path)
    only_line(error, path)


def test_a_foreign_model_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = saved(nn.Sequential(nn.Linear(2, 2)).state_dict(), tmp_path / "foreign.pth")
    with pytest.raises(InputError) as error:
        weights.load(path)
    only_line(error, path, "no LaBraM model (first keys: 0.weight, 0.bias)")


# Features


def masked_file(path: Path) -> tuple[nn.Module, Path]:
    """A masked model whose CLS position is the same by both rules, stage 2's and stage 3's."""
    model: Any = trained("pretraining", vocab_size=16)
    with torch.no_grad():
        model.student.pos_embed[:, 0] = model.student.pos_embed[:, embedding_rows(MONTAGE)[1]]
    return model, saved({"model": model.state_dict()}, path)


def test_patch_features_of_a_masked_model_are_what_its_own_head_sees(tmp_path: Path) -> None:
    masked, path = masked_file(tmp_path / "file.pth")
    trunk: Any
    trunk, found = weights.load(path, as_features=True)
    assert (found.stage, found.model, found.settings["num_classes"]) == ("pretraining", SIZE_OF_STAGE["classifier"], 0)
    x, rows = eeg(1, (2, 3, 4, 200)), embedding_rows(MONTAGE)
    with torch.no_grad():
        torch.testing.assert_close(trunk(x, rows, return_patch_tokens=True), masked.student(x, rows))  # type: ignore


def test_a_windows_feature_of_a_masked_model_is_its_norm_of_the_mean_patch(tmp_path: Path) -> None:
    masked: Any
    masked, path = masked_file(tmp_path / "file.pth")
    trunk, _ = weights.load(path, as_features=True)
    x, rows = eeg(1, (2, 3, 4, 200)), embedding_rows(MONTAGE)
    with torch.no_grad():
        tokens = masked.student.run_blocks(masked.student.embed(x, rows))[:, 1:]
        torch.testing.assert_close(trunk(x, rows), masked.student.norm(tokens.mean(1)))


def test_cls_of_the_features_has_row_0_as_in_fine_tuning(tmp_path: Path) -> None:
    _, path = masked_file(tmp_path / "file.pth")
    trunk: Any = weights.load(path, as_features=True)[0]
    x, rows = eeg(1, (1, 3, 2, 200)), embedding_rows(MONTAGE)
    with torch.no_grad():
        before = trunk(x, rows)
        trunk.pos_embed[:, 0] += torch.linspace(-1, 1, 200)
        assert not torch.allclose(trunk(x, rows), before)


@pytest.mark.parametrize("pooling", [True, False])
def test_features_of_a_classifier_are_what_its_head_sees(pooling: bool, tmp_path: Path) -> None:
    model: Any = trained("classifier", num_classes=4, use_mean_pooling=pooling)
    trunk, found = weights.load(saved(model.state_dict(), tmp_path / "file.pth"), as_features=True)
    assert found.settings["num_classes"] == 0 and found.settings["use_mean_pooling"] is pooling
    x, rows = eeg(1, (2, 3, 2, 200)), embedding_rows(MONTAGE)
    with torch.no_grad():
        assert torch.equal(trunk(x, rows), model.forward_features(x, rows))


def test_a_tokenizer_has_no_such_features(tmp_path: Path) -> None:
    path = saved(trained("tokenizer").state_dict(), tmp_path / "file.pth")
    with pytest.raises(InputError) as error:
        weights.load(path, as_features=True)
    only_line(error, path, "holds a tokenizer", "needed here")


def test_features_want_every_weight(tmp_path: Path) -> None:
    state = trained("pretraining").state_dict()
    del state["student.time_embed"]
    path = saved(state, tmp_path / "file.pth")
    with pytest.raises(InputError) as error:
        weights.load(path, as_features=True)
    only_line(error, path, "lacks time_embed")


def test_features_leave_out_and_name_what_no_model_has(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = {**trained("pretraining").state_dict(), "student.blocks.x.weight": torch.zeros(1)}
    caplog.set_level("INFO")
    weights.load(saved(state, tmp_path / "file.pth"), as_features=True)
    assert (
        "missing: none; unexpected: mask_token, blocks.x.weight; dropped: lm_head.weight, lm_head.bias" in caplog.text
    )


# The published files


def test_the_published_files_are_known_by_the_ids_that_git_gives_them() -> None:
    assert weights.PUBLISHED == {
        "221148b5af403e9178629bb61e94b2e7d89ef172": "labram-base.pth",
        "4ba4be5cc403143f8370bf9c57b6b10b4c2b3727": "vqnsp.pth",
    }


@pytest.mark.parametrize("content", [b"", b"hello\n", bytes(3_000_000)], ids=["empty", "short", "blocks"])
def test_a_published_file_is_recognised_by_its_blob_id(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    blob = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True).stdout.strip()
    assert weights.verify_published(path) is None
    monkeypatch.setattr(weights, "PUBLISHED", {blob: "vqnsp.pth"})
    assert weights.verify_published(path) == "vqnsp.pth"
    path.write_bytes(content + b"x")
    assert weights.verify_published(path) is None


def test_a_file_that_is_not_there_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        weights.verify_published(tmp_path / "absent.pth")
    only_line(error, "absent.pth cannot be read", "correct the path")


@pytest.mark.parametrize("published", [True, False])
def test_loading_says_that_a_file_is_a_published_one(
    published: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved({"model": published_weights("labram_base_patch200_1600_8k_vocab")}, tmp_path / "mine.pth")
    blob = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True).stdout.strip()
    if published:
        monkeypatch.setattr(weights, "PUBLISHED", {blob: "labram-base.pth"})
    caplog.set_level("INFO")
    weights.load(path)
    assert (f"{path} is the published labram-base.pth." in caplog.text) is published


# What a classifier was trained on

DATA = {
    "name": "TUAB",
    "task": "binary",
    "classes": ["normal", "abnormal"],
    "electrodes": ["FP1", "FP2"],
    "window_seconds": 10,
}


def test_what_a_checkpoint_says_of_its_data_is_in_the_description(tmp_path: Path) -> None:
    path = saved({"model": trained("classifier").state_dict(), "data_set": DATA}, tmp_path / "file.pth")
    found = weights.load(path)[1]
    assert (found.data_set, found.task, found.window_seconds) == ("TUAB", "binary", 10)
    assert (found.classes, found.electrodes) == (("normal", "abnormal"), ("FP1", "FP2"))
    assert found.data == DATA and json.loads(json.dumps(found.data)) == DATA


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "guessing"}, "is not what a checkpoint says"),
        ({"classes": "normal"}, "is not what a checkpoint says"),
        ({"classes": ["normal", 1]}, "is not what a checkpoint says"),
        ({"window_seconds": -1}, "is not what a checkpoint says"),
        ({"electrodes": None}, "is not what a checkpoint says"),
        ({"task": "multiclass"}, "its head has 1 outputs, its entry data_set 2 classes of a multiclass task"),
    ],
)
def test_data_that_cannot_be_are_an_error_of_one_line(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = saved({"model": trained("classifier").state_dict(), "data_set": DATA | change}, tmp_path / "file.pth")
    with pytest.raises(InputError) as error:
        weights.load(path)
    only_line(error, path, said)


def test_data_that_are_no_table_are_an_error_of_one_line(tmp_path: Path) -> None:
    path = saved({"model": trained("classifier").state_dict(), "data_set": [1, 2]}, tmp_path / "file.pth")
    with pytest.raises(InputError) as error:
        weights.load(path)
    only_line(error, path, "data_set")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("task") / "sleep.hdf5"
    return labelled_file(path, counts={"train": 8, "val": 4}, task="multiclass", classes=("W", "N1", "N2"))


def of_sleep(found: weights.Description) -> bool:
    data = (found.data_set, found.task, found.classes, found.electrodes, found.window_seconds)
    return data == ("sleep", "multiclass", ("W", "N1", "N2"), ELECTRODES, 2)


def test_a_runs_checkpoints_say_what_they_were_trained_on(task: Path, tmp_path: Path) -> None:
    assert call(SCRIPT, *CLASSIFIER, "--dataset", task, "--output_dir", tmp_path, "--model_ema") == 0
    for name in ("checkpoint.pth", "checkpoint-best.pth"):
        loaded, found = weights.load(tmp_path / name)
        assert of_sleep(found) and found.settings["num_classes"] == 3
        assert same(loaded, checkpoint(tmp_path / name)["model"])
    averaged = checkpoint(tmp_path / "checkpoint.pth")["extras"]["model_ema"]
    assert same(
        weights.load(tmp_path / "checkpoint.pth", averaged=True)[0],
        {key.removeprefix("module."): value for key, value in averaged.items()},
    )


def test_loras_merged_file_says_what_it_was_trained_on(task: Path, tmp_path: Path) -> None:
    assert call(SCRIPT, *CLASSIFIER, "--dataset", task, "--output_dir", tmp_path, "--lora", 2) == 0
    assert of_sleep(weights.load(tmp_path / "model-merged.pth")[1])
    with pytest.raises(InputError) as error:
        weights.load(tmp_path / "checkpoint.pth")
    only_line(error, "model-merged.pth")


def test_a_run_goes_on_from_a_checkpoint_that_does_not_say_it_as_from_one_that_does(task: Path, tmp_path: Path) -> None:
    flags = ["--dataset", task, "--drop_path", 0.3, "--output_dir"]
    assert call(SCRIPT, *CLASSIFIER, *flags, tmp_path / "new", "--epochs", 2) == 0
    assert call(SCRIPT, *CLASSIFIER, *flags, tmp_path / "old", "--epochs", 2, "--save_ckpt_freq", 1) == 0
    first = checkpoint(tmp_path / "old" / "checkpoint-0.pth")
    del first["data_set"]
    for path in (tmp_path / "old").iterdir():
        path.unlink()
    torch.save(first, tmp_path / "old" / "checkpoint.pth")
    assert call(SCRIPT, *CLASSIFIER, *flags, tmp_path / "old", "--epochs", 2, "--save_ckpt_freq", 1) == 0
    loaded, found = weights.load(tmp_path / "old" / "checkpoint.pth")
    assert of_sleep(found) and same(loaded, checkpoint(tmp_path / "new" / "checkpoint.pth")["model"])
