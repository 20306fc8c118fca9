"""Weights from files: recognised by keys and shapes alone, of every stage and size, ours and the released ones."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.models import create_model
from torch import Tensor, nn

from data_helpers import only_line
from errors import InputError
from golden_recipe import fill, published_weights, table
from inference import weights
from inference_helpers import DATA, TINY_MODELS, equal, saved
from run_helpers import CLASSIFIER, ELECTRODES, call, checkpoint, labelled_file

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
    return fill(create_model(TINY_MODELS[stage], **settings)).eval()


# Recognised


def test_a_model_of_every_stage_and_size_is_recognised_by_keys_and_shapes() -> None:
    for stage, name in NAMES:
        description = weights.recognise(on_meta(name), "file.pth")
        assert (description.stage, description.model) == (stage, name)


def test_every_setting_that_shows_in_keys_or_shapes_is_recognised() -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("classifier", {"num_classes": 6, "qkv_bias": True, "num_electrodes": 136}),
        ("classifier", {"num_classes": 0, "use_mean_pooling": False, "use_abs_pos_emb": False, "init_values": 0.0}),
        ("pretraining", {"vocab_size": 48, "init_values": 0.0, "use_abs_pos_emb": False}),
        ("tokenizer", {"n_code": 48, "code_dim": 12, "num_electrodes": 136}),
    ]
    for stage, settings in cases:
        state = on_meta(TINY_MODELS[stage], **settings)
        description = weights.recognise(state, "file.pth")
        assert (description.stage, description.model) == (stage, TINY_MODELS[stage])
        assert description.settings.items() >= settings.items()
        assert shapes(on_meta(description.model, **description.settings)) == shapes(state)


def test_files_with_exactly_the_released_keys_are_recognised() -> None:
    for name, content in table("state_dicts").items():
        state = {key: torch.empty(shape, device="meta") for key, shape in content["state_dict"].items()}
        assert weights.recognise(state, "file.pth").model == name


def test_a_size_that_is_in_no_table_is_named_with_those_that_are() -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("classifier", {"depth": 5}, "width 200, depth 5, heads 10"),
        ("classifier", {"heads": 5}, "width 200, depth 4, heads 5"),
        ("tokenizer", {"decoder_depth": 2}, "encoder_depth 4, decoder_depth 2, width 200"),
    ]
    for stage, sizes, error in cases:
        with pytest.raises(InputError) as caught:
            weights.recognise(on_meta(TINY_MODELS[stage], **sizes), "file.pth")
        only_line(caught, "file.pth", error, TINY_MODELS[stage])


def without(start: str) -> Callable[[dict[str, Tensor]], None]:
    def change(state: dict[str, Tensor]) -> None:
        for key in [key for key in state if key.startswith(start)]:
            del state[key]

    return change


def with_shape(key: str, *shape: int) -> Callable[[dict[str, Tensor]], None]:
    def change(state: dict[str, Tensor]) -> None:
        state[key] = torch.zeros(shape)

    return change


def test_weights_that_are_cut_or_bent_are_an_error_of_one_line(tmp_path: Path) -> None:
    cases: list[tuple[str, Callable[[dict[str, Tensor]], None], str]] = [
        ("classifier", without("blocks.0.attn.q_norm"), "lacks blocks.0.attn.q_norm.weight"),
        ("classifier", without("cls_token"), "no LaBraM model (first keys: "),
        ("classifier", with_shape("head.weight", 3), "head.weight"),
        ("classifier", with_shape("blocks.0.attn.qkv.lora_A.default.weight", 2, 200), "model-merged.pth"),
        ("pretraining", without("lm_head"), "lacks lm_head.weight"),
        ("tokenizer", without("decoder."), "decoder_depth 0"),
        ("tokenizer", with_shape("quantize.embedding.weight", 4), "shape"),
    ]
    for stage, change, error in cases:
        state = trained(stage).state_dict()
        change(state)
        torch.save({"model": state}, tmp_path / "file.pth")
        with pytest.raises(InputError) as caught:
            weights.load(tmp_path / "file.pth")
        only_line(caught, tmp_path / "file.pth", error)


# Loaded


@pytest.mark.parametrize("stage", TINY_MODELS)
def test_a_file_of_every_stage_and_layout_gives_its_model_in_evaluation_mode(stage: str, tmp_path: Path) -> None:
    model, path = trained(stage), tmp_path / "file.pth"
    state = model.state_dict()
    layouts: list[dict[str, Any]] = [
        {"module": state},
        state,
        {"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 3},
        {"model": {key: value.double() for key, value in state.items()}},
        {},
    ]
    for layout in layouts:
        if layout:
            torch.save(layout, path)
        else:
            save_file(state, path)  # safetensors are known by their contents under any name
        loaded, description = weights.load(path)
        assert type(loaded) is type(model) and equal(loaded.state_dict(), state) and not loaded.training
        assert description.stage == stage and description.window_seconds == 0 and not description.classes


@pytest.mark.parametrize("name", ["vqnsp_encoder_base_decoder_3x200x12", "labram_base_patch200_1600_8k_vocab"])
def test_a_released_file_with_a_namespace_inside_loads(name: str, tmp_path: Path) -> None:
    state, path = published_weights(name), tmp_path / "mine.pth"
    args = argparse.Namespace(lr=5e-4, model=name, output_dir="./checkpoints", opt_betas=[0.9, 0.98])
    torch.save({"model": state, "optimizer": {}, "epoch": 49, "scaler": {}, "args": args}, path)
    loaded, description = weights.load(path)
    unused = ("student.lm_head.", "projection_head.")
    assert description.model == name
    expected = {key: value for key, value in state.items() if not key.startswith(unused)}
    assert equal(loaded.state_dict(), expected)


# Features


def test_features_want_every_weight_of_a_trunk(tmp_path: Path) -> None:
    state = trained("pretraining").state_dict()
    del state["student.time_embed"]
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(InputError) as caught:
        weights.load(tmp_path / "file.pth", as_features=True)
    only_line(caught, "file.pth", "lacks time_embed")


# The data that a classifier was trained on


def test_what_a_checkpoint_holds_of_its_data_is_in_the_description(tmp_path: Path) -> None:
    description = weights.load(saved(tmp_path / "file.pth", trained("classifier"), data_set=DATA))[1]
    assert description.data == DATA and json.loads(json.dumps(description.data)) == DATA


def test_data_that_no_checkpoint_holds_are_an_error_of_one_line(tmp_path: Path) -> None:
    for change in ({"task": "guessing"}, {"task": "multiclass"}, {"electrodes": None}):
        path = saved(tmp_path / "file.pth", trained("classifier"), data_set=DATA | change)
        with pytest.raises(InputError) as caught:
            weights.load(path)
        only_line(caught, path, "data_set")


def test_a_runs_checkpoints_hold_their_data_averaged_weights_and_merged_adapters(tmp_path: Path) -> None:
    path = tmp_path / "sleep.hdf5"
    labelled_file(path, counts={"train": 8, "val": 4}, task="multiclass", classes=("W", "N1", "N2"))
    expected = ("sleep", "multiclass", ("W", "N1", "N2"), ELECTRODES, 2)
    run = tmp_path / "run"
    assert call(SCRIPT, *CLASSIFIER, "--dataset", path, "--output_dir", run, "--model_ema") == 0
    assert call(SCRIPT, *CLASSIFIER, "--dataset", path, "--output_dir", tmp_path / "lora", "--lora", 2) == 0
    for file in (run / "checkpoint.pth", run / "checkpoint-best.pth", tmp_path / "lora" / "model-merged.pth"):
        loaded, found = weights.load(file)
        values = (found.data_set, found.task, found.classes, found.electrodes, found.window_seconds)
        assert values == expected and found.settings["num_classes"] == 3
        if file.parent == run:
            assert equal(loaded.state_dict(), checkpoint(file)["model"])
    averaged = checkpoint(run / "checkpoint.pth")["extras"]["model_ema"]
    averaged = {key.removeprefix("module."): value for key, value in averaged.items()}
    assert equal(weights.load(run / "checkpoint.pth", averaged=True)[0].state_dict(), averaged)
