"""Weights in other layouts: braindecode's model computes the same with them, and they come back to the last bit."""

import argparse
import json
import warnings
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
from golden_recipe import eeg, fill, published_weights
from inference import weights
from inference.weights import export
from inference_helpers import TINY_MODELS, command, equal, saved
from modeling_vqnsp import load_tokenizer
from run_helpers import CLASSIFIER, call, checkpoint, labelled_file
from training import checkpoints

WHY = "braindecode is not installed (pip install --requirement benchmarks/requirements.txt)"
PAIR = ("O2", "FP1")
MANY = (*ELECTRODES[35:15:-1], "T2", "A1", "T5")
ODD = ("FTT9h", "TPP10h", "CFC8", "FP1-F7", "P8-O2")
DATA = {
    "name": "TUAB",
    "task": "multiclass",
    "classes": ["a", "b", "c"],
    "electrodes": ["C3", "C4"],
    "window_seconds": 5,
}
VARIANTS: list[tuple[dict[str, Any], Sequence[str], int]] = [  # settings, electrodes, seconds
    ({}, MANY, 10),
    ({"use_mean_pooling": False, "qkv_bias": True}, ODD, 4),
    ({"init_values": 0.0, "use_abs_pos_emb": False}, PAIR, 16),
    ({"num_classes": 0}, ODD, 1),
]


@pytest.fixture(scope="module")
def labram() -> Any:
    """Return braindecode's class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("braindecode.models", reason=WHY).Labram


def trained(stage: str = "classifier", **settings: Any) -> nn.Module:
    """Return a tiny model of a stage whose tensors are all different from each other and from a new model's."""
    settings = {"num_classes": 3, **settings} if stage == "classifier" else settings
    return fill(create_model(TINY_MODELS[stage], **settings)).eval()


def braindecode_model(labram: Any, files: tuple[Path, Path]) -> Any:
    """Build the model as a user of braindecode does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every montage that is not all of its 128 names
        model = labram.from_config(json.loads(files[1].read_text()))
    model.load_state_dict(load_file(files[0]))
    return model.eval()


# braindecode's model computes the same


@torch.no_grad()
def compare(labram: Any, ours: Any, files: tuple[Path, Path], names: Sequence[str], seconds: int) -> None:
    """Features of patches, of CLS and of the window, and logits, on the same windows."""
    theirs = braindecode_model(labram, files)
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
    ours = trained(**settings)
    path = saved(tmp_path / "ours.pth", ours, data_set=DATA)
    output = tmp_path / "theirs.safetensors"
    files = export(path, to="braindecode", output=output, electrodes=names, seconds=seconds)
    compare(labram, ours, files, names, seconds)
    back, found = weights.load(files[0])
    assert equal(back.state_dict(), ours.state_dict()) and not back.training
    assert found == replace(weights.load(path)[1], window_seconds=seconds, electrodes=tuple(names))


def test_braindecodes_model_gives_the_features_of_the_published_masked_model(labram: Any, tmp_path: Path) -> None:
    path, name = tmp_path / "labram-base.pth", "labram_base_patch200_1600_8k_vocab"
    torch.save({"model": published_weights(name), "args": argparse.Namespace(model=name)}, path)
    files = export(path, to="braindecode", output=tmp_path / "t.safetensors", electrodes=MANY, seconds=4)
    compare(labram, weights.load(path, as_features=True)[0], files, MANY, 4)


def test_hugging_faces_loader_reads_a_folder_with_its_names(labram: Any, tmp_path: Path) -> None:
    ours: Any = trained()
    path = saved(tmp_path / "ours.pth", ours, data_set=DATA)
    files = export(path, to="braindecode", output=tmp_path / "mine" / "model.safetensors")
    assert [file.name for file in files] == ["model.safetensors", "config.json"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = labram.from_pretrained(str(tmp_path / "mine"), local_files_only=True).eval()
    x = eeg(7, (1, 2, 5, 200))
    with torch.no_grad():
        torch.testing.assert_close(theirs(x.flatten(2), ch_names=["C3", "C4"]), ours(x, embedding_rows(["C3", "C4"])))


def test_weights_that_braindecode_trained_load_here(labram: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = labram(n_times=800, n_outputs=4, n_chans=2, sfreq=200, num_layers=4, qkv_bias=True).eval()
    torch.save(fill(theirs).state_dict(), tmp_path / "theirs.pt")
    ours: Any
    ours, found = weights.load(tmp_path / "theirs.pt")
    assert (found.model, found.settings["num_classes"], found.window_seconds) == (TINY_MODELS["classifier"], 4, 4)
    x = eeg(7, (2, 2, 4, 200))
    with torch.no_grad():
        expected = theirs(x.flatten(2), ch_names=list(PAIR))
        torch.testing.assert_close(ours(x, embedding_rows(PAIR)), expected, rtol=0, atol=1e-4)


# The files


def windows_of(files: tuple[Path, Path]) -> tuple[int, list[str]]:
    """Samples and electrodes that a JSON file gives a Labram."""
    config = json.loads(files[1].read_text())
    return config["n_times"], [channel["ch_name"] for channel in config["chs_info"]]


def test_windows_are_those_of_the_training_or_of_the_flags_or_as_long_as_256_patches_allow(tmp_path: Path) -> None:
    path, output = saved(tmp_path / "ours.pth", trained(), data_set=DATA), tmp_path / "new" / "a.safetensors"
    assert windows_of(export(path, to="braindecode", output=output)) == (1000, ["C3", "C4"])
    words = ["export", "--checkpoint", path, "--to", "braindecode", "--output", output]
    assert command(*words, "--electrodes", "EEG Fp1-REF", "o2", "--time_window", 3) == 0
    assert windows_of((output, output.with_suffix(".json"))) == (600, ["FP1", "O2"])
    unknown = saved(tmp_path / "unknown.pth", trained())
    for names, seconds in ((None, 2), (MANY, 11), (PAIR, 16)):
        files = export(unknown, to="braindecode", output=output, electrodes=names)
        assert windows_of(files) == (200 * seconds, list(names or ELECTRODES[:128]))


def test_the_json_beside_safetensors_builds_the_model(tmp_path: Path) -> None:
    ours = trained()
    path = saved(tmp_path / "ours.pth", ours, data_set=DATA)
    file, config = export(path, to="safetensors", output=tmp_path / "a.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.safetensors", "ours.pth"]
    assert file.stat().st_mode == config.stat().st_mode  # who may read them
    content = json.loads(config.read_text())
    assert (content["stage"], content["classes"], content["window_seconds"]) == ("classifier", ["a", "b", "c"], 5)
    model = create_model(content["model"], **content["settings"])
    model.load_state_dict(load_file(file))
    assert equal(model.state_dict(), ours.state_dict())


def test_exports_of_one_checkpoint_are_equal_byte_for_byte(tmp_path: Path) -> None:
    data = {**DATA, "name": "Schläfer 睡眠"}
    path, output = saved(tmp_path / "ours.pth", trained(), data_set=data), tmp_path / "o.safetensors"
    contents = set()
    for _ in range(8):  # the library's own order differs within a process, too
        contents.add(export(path, to="braindecode", output=output)[0].read_bytes())
    (content,) = contents
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == ["format", "time_embed", "data_set"], "in any process"
    with safe_open(output, "pt") as file:
        assert file.metadata() == header["__metadata__"]
        assert json.loads(file.metadata()["data_set"])["name"] == data["name"]


# And back


@pytest.mark.parametrize("stage", TINY_MODELS)
def test_a_model_of_every_stage_comes_back_from_safetensors_to_the_last_bit(stage: str, tmp_path: Path) -> None:
    ours = trained(stage)
    averaged = {key: value + 1 for key, value in ours.state_dict().items()}
    entries = {"data_set": DATA} if stage == "classifier" else {}
    path = saved(tmp_path / "ours.pth", ours, extras={"model_ema": averaged}, **entries)
    file, _ = export(path, to="safetensors", output=tmp_path / "a.safetensors")
    back, found = weights.load(file)
    assert equal(back.state_dict(), ours.state_dict()) and found == weights.load(path)[1]
    file, _ = export(path, to="safetensors", output=tmp_path / "b.safetensors", averaged=True)
    assert equal(load_file(file), averaged)


def test_a_masked_model_comes_back_from_braindecode_as_its_features(tmp_path: Path) -> None:
    path = saved(tmp_path / "ours.pth", trained("pretraining"))
    file, _ = export(path, to="braindecode", output=tmp_path / "t.safetensors", electrodes=PAIR, seconds=4)
    back, found = weights.load(file)
    expected, _ = weights.load(path, as_features=True)
    assert equal(back.state_dict(), expected.state_dict()) and found.stage == "classifier"


def test_rows_that_a_foreign_file_lacks_are_zero(tmp_path: Path) -> None:
    ours = trained()
    file, _ = export(saved(tmp_path / "o.pth", ours), to="braindecode", output=tmp_path / "t.safetensors", seconds=4)
    torch.save(load_file(file), tmp_path / "foreign.pt")  # without our texts
    back: Any = weights.load(tmp_path / "foreign.pt")[0]
    expected = ours.state_dict()["time_embed"].clone()
    expected[:, 5:] = 0
    assert torch.equal(back.time_embed, expected)


def test_training_starts_from_a_safetensors_file_as_from_the_checkpoint(tmp_path: Path) -> None:
    tokenizer, masked = (
        saved(tmp_path / "t.pth", trained("tokenizer")),
        saved(tmp_path / "m.pth", trained("pretraining")),
    )
    file, _ = export(tokenizer, to="safetensors", output=tmp_path / "t.safetensors")
    one, other = (
        load_tokenizer(TINY_MODELS["tokenizer"], checkpoints.read_model(path, stage="tokenizer"), where=path)
        for path in (file, tokenizer)
    )
    assert equal(one.state_dict(), other.state_dict())
    file, _ = export(masked, to="safetensors", output=tmp_path / "m.safetensors")
    task = labelled_file(tmp_path / "task.hdf5", counts={"train": 8})
    for folder, weights_file in (("a", masked), ("b", file)):
        words = ["--dataset", task, "--output_dir", tmp_path / folder, "--finetune", weights_file]
        assert call("run_class_finetuning", *CLASSIFIER, *words) == 0
    one, other = (checkpoint(tmp_path / folder / "checkpoint.pth")["model"] for folder in "ab")
    assert equal(one, other)


# What is refused


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"to": "onnx"}, "--to onnx: allowed are braindecode, safetensors"),
    ({"output": "file.pth"}, ".safetensors"),
    ({"seconds": 17}, "--time_window 17"),
    ({"to": "safetensors", "seconds": 4}, "--electrodes and --time_window"),
    ({"output": "ours.safetensors"}, "is the checkpoint itself"),
    ({"electrodes": ["C3", "nose"]}, "'nose'"),
    ({"electrodes": ["FP1-F3"]}, "no row for FP1-F3"),
    ({"output": "file/a.safetensors"}, "cannot be written"),
    ({"output": "folder.safetensors"}, "is a folder"),
]


@pytest.mark.parametrize(
    ("stage", "settings", "cases"),
    [
        ("classifier", {}, REFUSED),
        ("classifier", {"num_electrodes": 136}, [({}, "--to safetensors")]),
        ("tokenizer", {}, [({}, "holds a tokenizer of stage 1")]),
    ],
)
def test_what_cannot_be_exported_is_an_error_of_one_line_and_writes_nothing(
    stage: str, settings: dict[str, Any], cases: list[tuple[dict[str, Any], str]], tmp_path: Path
) -> None:
    path = tmp_path / "ours.safetensors"
    save_file(trained(stage, **settings).state_dict(), path)
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "folder.safetensors").mkdir()
    before = sorted(tmp_path.iterdir())
    for options, error in cases:
        given = {"to": "braindecode", "output": "t.safetensors", **options}
        with pytest.raises(InputError) as caught:
            export(path, **{**given, "output": tmp_path / given["output"]})
        only_line(caught, error)
        assert sorted(tmp_path.iterdir()) == before


def test_windows_that_no_model_of_ours_takes_and_data_that_do_not_fit_are_an_error_of_one_line(tmp_path: Path) -> None:
    path = saved(tmp_path / "ours.pth", trained(), data_set=DATA)
    file, _ = export(path, to="braindecode", output=tmp_path / "t.safetensors")
    cases: list[tuple[dict[str, str], dict[str, Tensor], str]] = [
        ({"data_set": "TUAB"}, {}, "data_set"),
        ({}, {"temporal_embedding": torch.zeros(1, 18, 200)}, "(1, 18, 200)"),
    ]
    for texts, tensors, error in cases:
        save_file({**load_file(file), **tensors}, tmp_path / "changed.safetensors", texts)
        with pytest.raises(InputError) as caught:
            weights.load(tmp_path / "changed.safetensors")
        only_line(caught, "changed.safetensors", error)
