"""Weights from files and into files: recognised by keys and shapes alone; other layouts come back to the last bit."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models import create_model
from torch import Tensor, nn

from data_helpers import only_line
from electrodes import ELECTRODES, embedding_rows
from errors import InputError
from golden_recipe import eeg, fill, published_weights, table
from inference import weights
from inference.weights import export
from inference_helpers import TINY_MODELS, equal, random_module, saved
from modeling_vqnsp import load_tokenizer
from run_helpers import CLASSIFIER, call, checkpoint, labelled_file
from training import checkpoints

pytestmark = pytest.mark.filterwarnings("ignore")  # braindecode warns of every montage that is not all of its names
WHY = "braindecode is not installed (pip install --requirement benchmarks/requirements.txt)"
PAIR = ("O2", "FP1")
MANY = (*ELECTRODES[35:15:-1], "T2", "A1", "T5")
ODD = ("FTT9h", "TPP10h", "CFC8", "FP1-F7", "P8-O2")
DATA = {
    "name": "Schläfer 睡眠",
    "task": "multiclass",
    "classes": ["a", "b", "c"],
    "electrodes": ["C3", "C4"],
    "window_seconds": 5,
}
SETTINGS: list[tuple[str, dict[str, Any]]] = [  # that show in keys or shapes
    ("classifier", {"num_classes": 6, "qkv_bias": True, "num_electrodes": 136}),
    ("classifier", {"num_classes": 0, "use_mean_pooling": False, "use_abs_pos_emb": False, "init_values": 0.0}),
    ("classifier", {"num_classes": 3, "pool": "electrodes", "electrodes": 5, "seconds": 1}),
    ("classifier", {"num_classes": 1, "pool": "flatten", "electrodes": 5, "seconds": 4}),
    ("classifier", {"num_classes": 3, "pool": "attention"}),
    ("classifier", {"num_classes": 1, "pool": "spectrum", "electrodes": 5, "seconds": 1}),
    ("pretraining", {"vocab_size": 48, "init_values": 0.0, "use_abs_pos_emb": False}),
    ("tokenizer", {"n_code": 48, "code_dim": 12, "num_electrodes": 136}),
    ("tokenizer", {"n_code": 48, "code_dim": 12, "num_electrodes": 128, "phase_loss": "sincos"}),
]
VARIANTS: list[tuple[dict[str, Any], Sequence[str], int]] = [  # settings, electrodes, seconds
    ({}, MANY, 10),
    ({"use_mean_pooling": False, "qkv_bias": True}, ODD, 4),
    ({"init_values": 0.0, "use_abs_pos_emb": False}, PAIR, 16),
    ({"num_classes": 0}, ODD, 1),
]


def on_meta(name: str, **settings: Any) -> dict[str, Tensor]:
    """Return a model's state dict of shapes without numbers, which costs nothing at any size."""
    with torch.device("meta"):
        return create_model(name, **settings).state_dict()


def trained(stage: str = "classifier", **settings: Any) -> nn.Module:
    """Return a tiny model of a stage."""
    settings = {"num_classes": 3, **settings} if stage == "classifier" else settings
    return random_module(TINY_MODELS[stage], **settings)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """Checkpoint of a classifier with its data."""
    return saved(tmp_path / "ours.pth", trained(), data_set=DATA)


def refused(path: Path, *parts: Any, **options: Any) -> None:
    """Check that a file is refused in one line."""
    with pytest.raises(InputError) as caught:
        weights.load(path, **options)
    only_line(caught, path, *parts)


# Recognised


def test_every_stage_size_and_setting_is_recognised_by_keys_and_shapes() -> None:
    cases = [(stage, name, {}) for stage, sizes in weights.SIZES.items() for name in sizes]
    for stage, name, settings in (*cases, *((stage, TINY_MODELS[stage], settings) for stage, settings in SETTINGS)):
        state = on_meta(name, **settings)
        description = weights.recognise(state, "file.pth")
        assert (description.stage, description.model) == (stage, name)
        assert description.settings.items() >= settings.items()
        built = on_meta(description.model, **description.settings)
        assert {key: value.shape for key, value in built.items()} == {key: value.shape for key, value in state.items()}
    for name, content in table("state_dicts").items():
        state = {key: torch.empty(shape, device="meta") for key, shape in content["state_dict"].items()}
        assert weights.recognise(state, "file.pth").model == name, "the released keys"


def test_a_size_that_is_in_no_table_is_named_with_those_that_are() -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("classifier", {"heads": 5}, "width 200, depth 4, heads 5"),
        ("tokenizer", {"decoder_depth": 2}, "encoder_depth 4, decoder_depth 2, width 200"),
    ]
    for stage, sizes, error in cases:
        with pytest.raises(InputError) as caught:
            weights.recognise(on_meta(TINY_MODELS[stage], **sizes), "file.pth")
        only_line(caught, "file.pth", error, TINY_MODELS[stage])


@pytest.mark.parametrize(
    ("stage", "left_out", "added", "error"),
    [
        ("classifier", "blocks.0.attn.q_norm", {}, "lacks blocks.0.attn.q_norm.weight"),
        ("classifier", "cls_token", {}, "no LaBraM model (first keys: "),
        ("classifier", "head.weight", {"head.weight": (3,)}, "head.weight"),
        ("classifier", "-", {"blocks.0.attn.qkv.lora_A.default.weight": (2, 200)}, "model-merged.pth"),
        ("pretraining", "lm_head", {}, "lacks lm_head.weight"),
        ("pretraining", "student.time_embed", {}, "lacks time_embed"),
        ("tokenizer", "decoder.", {}, "decoder_depth 0"),
        ("tokenizer", "-", {"quantize.embedding.weight": (4,)}, "shape"),
    ],
)
def test_weights_that_are_cut_or_bent_are_an_error_of_one_line(
    stage: str, left_out: str, added: dict[str, tuple[int, ...]], error: str, tmp_path: Path
) -> None:
    state = {key: value for key, value in trained(stage).state_dict().items() if not key.startswith(left_out)}
    state |= {key: torch.zeros(shape) for key, shape in added.items()}
    torch.save({"model": state}, tmp_path / "file.pth")
    refused(tmp_path / "file.pth", error, as_features=True)


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
    assert equal(loaded.state_dict(), {key: value for key, value in state.items() if not key.startswith(unused)})


def test_data_that_no_checkpoint_holds_are_an_error_of_one_line(tmp_path: Path) -> None:
    for change in ({"task": "guessing"}, {"task": "binary"}, {"electrodes": None}):
        refused(saved(tmp_path / "file.pth", trained(), data_set=DATA | change), "data_set")


def test_a_runs_checkpoints_hold_their_data_averaged_weights_and_merged_adapters(tmp_path: Path) -> None:
    path, words = tmp_path / "sleep.hdf5", ["run_class_finetuning", *CLASSIFIER, "--dataset", tmp_path / "sleep.hdf5"]
    names, classes = ("C3", "CZ"), ("W", "N1", "N2")
    labelled_file(path, counts={"train": 8, "val": 4}, task="multiclass", classes=classes, electrodes=names)
    run = tmp_path / "run"
    assert call(*words, "--output_dir", run, "--model_ema") == 0
    assert call(*words, "--output_dir", tmp_path / "lora", "--lora", 2, "--pool", "flatten") == 0
    for file in (run / "checkpoint.pth", run / "checkpoint-best.pth", tmp_path / "lora" / "model-merged.pth"):
        loaded, found = weights.load(file)
        assert getattr(loaded, "pool", None) == ("mean" if file.parent == run else "flatten")
        assert (found.data_set, found.task, found.classes) == ("sleep", "multiclass", classes)
        assert (found.electrodes, found.window_seconds, found.settings["num_classes"]) == (names, 2, 3)
        if file.parent == run:
            assert equal(loaded.state_dict(), checkpoint(file)["model"])
    averaged = checkpoint(run / "checkpoint.pth")["extras"]["model_ema"]
    averaged = {key.removeprefix("module."): value for key, value in averaged.items()}
    assert equal(weights.load(run / "checkpoint.pth", averaged=True)[0].state_dict(), averaged)


# braindecode's model computes the same


@pytest.fixture(scope="module")
def labram() -> Any:
    """Return braindecode's class."""
    return pytest.importorskip("braindecode.models", reason=WHY).Labram


@torch.no_grad()
def compare(labram: Any, ours: Any, files: tuple[Path, Path], names: Sequence[str], seconds: int) -> None:
    """Features of patches, of CLS and of the window, and logits, on the same windows."""
    theirs = labram.from_config(json.loads(files[1].read_text())).eval()
    theirs.load_state_dict(load_file(files[0]))
    assert [channel["ch_name"] for channel in theirs.chs_info] == list(names)
    x, rows = eeg(7, (2, len(names), seconds, 200)), embedding_rows(names)
    flat, names = x.flatten(2), list(names)
    features = theirs(flat, return_features=True, ch_names=names)
    tokens = ours.forward_features(x, rows, return_all_tokens=True)
    torch.testing.assert_close(features["features"], tokens[:, 1:], rtol=0, atol=1e-4)
    torch.testing.assert_close(features["cls_token"], tokens[:, 0], rtol=0, atol=1e-4)
    torch.testing.assert_close(theirs(flat, ch_names=names), ours(x, rows), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("settings", "names", "seconds"), VARIANTS)
def test_braindecodes_model_computes_the_same_and_its_file_comes_back_to_the_last_bit(
    labram: Any, settings: dict[str, Any], names: Sequence[str], seconds: int, tmp_path: Path
) -> None:
    model = trained(**settings)
    path = saved(tmp_path / "ours.pth", model, data_set=DATA)
    output = tmp_path / "theirs.safetensors"
    files = export(path, to="braindecode", output=output, electrodes=names, seconds=seconds)
    compare(labram, model, files, names, seconds)
    back, found = weights.load(files[0])
    assert equal(back.state_dict(), model.state_dict()) and not back.training
    assert found == replace(weights.load(path)[1], window_seconds=seconds, electrodes=tuple(names))


def test_braindecodes_model_gives_the_features_of_the_published_masked_model(labram: Any, tmp_path: Path) -> None:
    path, name = tmp_path / "labram-base.pth", "labram_base_patch200_1600_8k_vocab"
    torch.save({"model": published_weights(name), "args": argparse.Namespace(model=name)}, path)
    files = export(path, to="braindecode", output=tmp_path / "t.safetensors", electrodes=MANY, seconds=4)
    trunk, _ = weights.load(path, as_features=True)
    compare(labram, trunk, files, MANY, 4)
    back, found = weights.load(files[0])
    assert equal(back.state_dict(), trunk.state_dict()) and found.stage == "classifier"


def test_hugging_faces_loader_reads_a_folder_with_its_names(labram: Any, ours: Path, tmp_path: Path) -> None:
    files = export(ours, to="braindecode", output=tmp_path / "mine" / "model.safetensors")
    assert [file.name for file in files] == ["model.safetensors", "config.json"]
    theirs = labram.from_pretrained(str(tmp_path / "mine"), local_files_only=True).eval()
    x, rows, names = eeg(7, (1, 2, 5, 200)), embedding_rows(["C3", "C4"]), ["C3", "C4"]
    with torch.no_grad():
        torch.testing.assert_close(theirs(x.flatten(2), ch_names=names), weights.load(ours)[0](x, rows))


def test_neuralbenchs_wrapper_reads_an_export_and_computes_the_same(tmp_path: Path) -> None:
    why = "neuraltrain, NeuralBench's models, is missing: pip install neuraltrain exca"
    wrapper = pytest.importorskip("neuraltrain.models.labram", reason=why)
    model: Any = trained(num_classes=3)
    names, output = ["C3", "Cz", "C4"], tmp_path / "mine" / "model.safetensors"
    export(saved(tmp_path / "ours.pth", model), to="braindecode", output=output, electrodes=names, seconds=4)
    channels = [{"ch_name": name} for name in ("O1", *names)]
    x, places = eeg(7, (2, 4, 500)), torch.zeros(2, 4, 3)
    places[:, 0] = wrapper.INVALID_POS_VALUE  # O1 is not in this recording
    theirs = wrapper.NtLabram(from_pretrained_name=str(output.parent)).build(n_times=500, chs_info=channels).eval()
    with torch.no_grad():
        patches = x[:, 1:, :400].unflatten(2, (2, 200))  # it cuts to whole seconds, and the time embedding to two
        tokens = model.forward_features(patches, embedding_rows(names), return_all_tokens=True)
        torch.testing.assert_close(theirs(x, places), model.head(tokens), rtol=0, atol=1e-4)  # of every token


def test_weights_that_braindecode_trained_load_here_with_rows_of_zeros_where_they_have_none(
    labram: Any, tmp_path: Path
) -> None:
    theirs = labram(n_times=800, n_outputs=4, n_chans=2, sfreq=200, num_layers=4, qkv_bias=True).eval()
    torch.save(fill(theirs).state_dict(), tmp_path / "theirs.pt")
    model: Any
    model, found = weights.load(tmp_path / "theirs.pt")
    assert (found.model, found.settings["num_classes"], found.window_seconds) == (TINY_MODELS["classifier"], 4, 4)
    assert model.time_embed[:, :5].abs().min() > 0 and not model.time_embed[:, 5:].any()
    x = eeg(7, (2, 2, 4, 200))
    with torch.no_grad():
        expected = theirs(x.flatten(2), ch_names=list(PAIR))
        torch.testing.assert_close(model(x, embedding_rows(PAIR)), expected, rtol=0, atol=1e-4)


# The files


def windows_of(files: tuple[Path, Path]) -> tuple[int, list[str]]:
    """Samples and electrodes that a JSON file gives a Labram."""
    config = json.loads(files[1].read_text())
    return config["n_times"], [channel["ch_name"] for channel in config["chs_info"]]


def test_windows_are_those_of_the_training_or_of_the_flags_or_as_long_as_256_patches_allow(
    ours: Path, tmp_path: Path
) -> None:
    output = tmp_path / "new" / "a.safetensors"
    assert windows_of(export(ours, to="braindecode", output=output)) == (1000, ["C3", "C4"])
    words = ["export", "--checkpoint", ours, "--to", "braindecode", "--output", output]
    assert call("run_inference", *words, "--electrodes", "EEG Fp1-REF", "o2", "--time_window", 3) == 0
    assert windows_of((output, output.with_suffix(".json"))) == (600, ["FP1", "O2"])
    unknown = saved(tmp_path / "unknown.pth", trained())
    for names, seconds in ((None, 2), (MANY, 11), (PAIR, 16)):
        files = export(unknown, to="braindecode", output=output, electrodes=names)
        assert windows_of(files) == (200 * seconds, list(names or ELECTRODES[:128]))


def test_exports_of_one_checkpoint_are_equal_byte_for_byte(ours: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.safetensors"
    # The library's own order differs within a process, too.
    (content,) = {export(ours, to="braindecode", output=output)[0].read_bytes() for _ in range(8)}
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == ["format", "time_embed", "data_set"], "in any process"
    with safe_open(output, "pt") as file:
        assert file.metadata() == header["__metadata__"]
        assert json.loads(file.metadata()["data_set"]) == DATA


def test_how_a_classifier_uses_unlabelled_windows_goes_along_into_every_layout(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = {"transductive": {"center": "subject", "center_windows": None}}
    path = saved(tmp_path / "ours.pth", trained(), data_set=DATA | entry)
    for to in ("safetensors", "braindecode"):
        file, _ = export(path, to=to, output=tmp_path / f"{to}.safetensors")
        assert weights.load(file)[1].transductive == entry["transductive"]
    assert "trained with --center subject" in caplog.text and "a Labram does not do this" in caplog.text


@pytest.mark.parametrize("stage", TINY_MODELS)
def test_a_model_of_every_stage_comes_back_from_safetensors_and_its_json_builds_it(stage: str, tmp_path: Path) -> None:
    model = trained(stage)
    averaged = {key: value + 1 for key, value in model.state_dict().items()}
    entries = {"data_set": DATA} if stage == "classifier" else {}
    path = saved(tmp_path / "ours.pth", model, extras={"model_ema": averaged}, **entries)
    file, config = export(path, to="safetensors", output=tmp_path / "a.safetensors")
    back, found = weights.load(file)
    assert equal(back.state_dict(), model.state_dict()) and found == weights.load(path)[1]
    assert file.stat().st_mode == config.stat().st_mode  # who may read them
    content = json.loads(config.read_text())
    create_model(content["model"], **content["settings"]).load_state_dict(load_file(file))
    assert content["stage"] == stage and content["classes"] == (DATA["classes"] if entries else [])
    fields = "stage model settings data_set task classes electrodes window_seconds transductive"
    assert list(content) == fields.split()
    file, _ = export(path, to="safetensors", output=tmp_path / "b.safetensors", averaged=True)
    assert equal(load_file(file), averaged)


def test_training_starts_from_a_safetensors_file_as_from_the_checkpoint(tmp_path: Path) -> None:
    paths = {stage: saved(tmp_path / f"{stage}.pth", trained(stage)) for stage in ("tokenizer", "pretraining")}
    files = {s: export(p, to="safetensors", output=p.with_suffix(".safetensors"))[0] for s, p in paths.items()}
    one, other = (
        load_tokenizer(TINY_MODELS["tokenizer"], checkpoints.read_model(path, stage="tokenizer"), where=path)
        for path in (files["tokenizer"], paths["tokenizer"])
    )
    assert equal(one.state_dict(), other.state_dict())
    task = labelled_file(tmp_path / "task.hdf5", counts={"train": 8})
    for folder, path in (("a", paths["pretraining"]), ("b", files["pretraining"])):
        words = ["--dataset", task, "--output_dir", tmp_path / folder, "--finetune", path]
        assert call("run_class_finetuning", *CLASSIFIER, *words) == 0
    one, other = (checkpoint(tmp_path / folder / "checkpoint.pth")["model"] for folder in "ab")
    assert equal(one, other)


# What is refused


@pytest.mark.parametrize(
    ("stage", "settings", "options", "error"),
    [
        ("classifier", {}, {"to": "onnx"}, "--to onnx: allowed are braindecode, safetensors"),
        ("classifier", {}, {"output": "file.pth"}, ".safetensors"),
        ("classifier", {}, {"seconds": 17}, "--time_window 17"),
        ("classifier", {}, {"to": "safetensors", "seconds": 4}, "--electrodes and --time_window"),
        ("classifier", {}, {"output": "ours.safetensors"}, "is the checkpoint itself"),
        ("classifier", {}, {"electrodes": ["C3", "nose"]}, "'nose'"),
        ("classifier", {}, {"electrodes": ["FP1-F3"]}, "no row for FP1-F3"),
        ("classifier", {}, {"output": "file/a.safetensors"}, "cannot be written"),
        ("classifier", {"num_electrodes": 136}, {}, "--to safetensors"),
        ("classifier", {"pool": "attention"}, {}, "cannot pool by attention as"),
        ("tokenizer", {}, {}, "needed here: a masked model of stage 2"),
    ],
)
def test_what_cannot_be_exported_is_an_error_of_one_line_and_writes_nothing(
    stage: str, settings: dict[str, Any], options: dict[str, Any], error: str, tmp_path: Path
) -> None:
    path = tmp_path / "ours.safetensors"
    save_file(trained(stage, **settings).state_dict(), path)
    (tmp_path / "file").write_text("no folder")
    before = sorted(tmp_path.iterdir())
    given = {"to": "braindecode", "output": "t.safetensors", **options}
    with pytest.raises(InputError) as caught:
        export(path, **{**given, "output": tmp_path / given["output"]})
    only_line(caught, error)
    assert sorted(tmp_path.iterdir()) == before


def test_windows_that_no_model_of_ours_takes_and_data_that_do_not_fit_are_refused(ours: Path, tmp_path: Path) -> None:
    file, _ = export(ours, to="braindecode", output=tmp_path / "t.safetensors")
    cases: list[tuple[dict[str, str], dict[str, Tensor], str]] = [
        ({"data_set": "TUAB"}, {}, "data_set"),
        ({}, {"temporal_embedding": torch.zeros(1, 18, 200)}, "(1, 18, 200)"),
    ]
    for texts, tensors, error in cases:
        save_file({**load_file(file), **tensors}, tmp_path / "changed.safetensors", texts)
        refused(tmp_path / "changed.safetensors", error)
