"""Weights in other formats: braindecode's model computes the same with them, and they come back to the last bit."""

import argparse
import errno
import json
import re
import warnings
from collections.abc import Sequence
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
from errors import InputError, UsageError
from golden_recipe import eeg, fill, published_weights
from inference import conversion, weights
from modeling_vqnsp import load_tokenizer
from run_helpers import CLASSIFIER, ROOT, call, checkpoint, labelled_file
from test_checkpoints import SIZE_OF_STAGE
from training import checkpoints

WHY = "braindecode is not installed (pip install --requirement benchmarks/requirements.txt)"
PAIR = ("O2", "FP1")
MANY = (*ELECTRODES[35:15:-1], "T2", "A1", "T5")
ODD = ("FTT9h", "TPP10h", "CFC8", "FP1-F7", "P8-O2")
BASE_MASKED = "labram_base_patch200_1600_8k_vocab"
DATA = {
    "name": "TUAB",
    "task": "multiclass",
    "classes": ["a", "b", "c"],
    "electrodes": ["C3", "C4"],
    "window_seconds": 5,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "pooled": {},
    "cls": {"use_mean_pooling": False},
    "biased": {"qkv_bias": True},
    "unscaled": {"init_values": 0.0},
    "unplaced": {"use_abs_pos_emb": False},
    "headless": {"num_classes": 0},
}


@pytest.fixture(scope="module")
def labram() -> Any:
    """Return braindecode's class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("braindecode.models", reason=WHY).Labram


def trained(stage: str = "classifier", **settings: Any) -> nn.Module:
    """Return a tiny model of a stage whose tensors are all different from each other and from a new model's."""
    settings = {"num_classes": 3, **settings} if stage == "classifier" else settings
    return fill(create_model(SIZE_OF_STAGE[stage], **settings)).eval()


def saved(model: nn.Module, path: Path, **entries: Any) -> Path:
    torch.save({"model": model.state_dict(), **entries}, path)
    return path


def braindecode_model(labram: Any, files: tuple[Path, Path]) -> Any:
    """Return what a user of braindecode makes of the two files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every montage that is not all of its 128 names
        model = labram.from_config(json.loads(files[1].read_text()))
    model.load_state_dict(load_file(files[0]))
    return model.eval()


def equal(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(
        torch.equal(state[key], other[key]) and state[key].dtype == other[key].dtype for key in state
    )


# braindecode's model computes the same


@torch.no_grad()
def compare(labram: Any, ours: Any, files: tuple[Path, Path], names: Sequence[str], seconds: int) -> None:
    """Features of patches, of CLS and of the window, and logits, on the same windows."""
    theirs = braindecode_model(labram, files)
    assert [channel["ch_name"] for channel in theirs.chs_info] == list(names)
    x, rows = eeg(7, (2, len(names), seconds, 200)), embedding_rows(names)
    flat, names = x.flatten(2), list(names)
    found = theirs(flat, return_features=True, ch_names=names)
    tokens = ours.forward_features(x, rows, return_all_tokens=True)
    torch.testing.assert_close(found["features"], tokens[:, 1:], rtol=0, atol=1e-4)
    torch.testing.assert_close(found["cls_token"], tokens[:, 0], rtol=0, atol=1e-4)
    torch.testing.assert_close(theirs(flat, ch_names=names), ours(x, rows), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("names", "seconds"), [(PAIR, 1), (MANY, 10), (ODD, 4), (PAIR, 15), (PAIR, 16)])
def test_braindecodes_model_gives_the_same_features_and_logits(
    labram: Any, names: Sequence[str], seconds: int, tmp_path: Path
) -> None:
    ours = trained()
    path = saved(ours, tmp_path / "ours.pth")
    files = conversion.export(
        path, to="braindecode", output=tmp_path / "theirs.safetensors", electrodes=names, seconds=seconds
    )
    compare(labram, ours, files, names, seconds)


@pytest.mark.parametrize("variant", VARIANTS)
def test_braindecodes_model_gives_the_same_for_every_kind_of_classifier(
    labram: Any, variant: str, tmp_path: Path
) -> None:
    ours = trained(**VARIANTS[variant])
    path = saved(ours, tmp_path / "ours.pth")
    files = conversion.export(path, to="braindecode", output=tmp_path / "t.safetensors", electrodes=ODD, seconds=3)
    compare(labram, ours, files, ODD, 3)


def test_braindecodes_model_gives_the_features_of_the_published_masked_model(labram: Any, tmp_path: Path) -> None:
    state = {"model": published_weights(BASE_MASKED), "args": argparse.Namespace(model=BASE_MASKED)}
    torch.save(state, tmp_path / "labram-base.pth")
    files = conversion.export(
        tmp_path / "labram-base.pth",
        to="braindecode",
        output=tmp_path / "t.safetensors",
        electrodes=MANY,
        seconds=4,
    )
    ours: Any = weights.load(tmp_path / "labram-base.pth", as_features=True)[0]
    compare(labram, ours, files, MANY, 4)


@torch.no_grad()
def test_every_tensor_matters_so_that_a_wrong_name_for_any_would_be_seen(labram: Any, tmp_path: Path) -> None:
    path = saved(trained(qkv_bias=True), tmp_path / "ours.pth")
    files = conversion.export(path, to="braindecode", output=tmp_path / "t.safetensors", electrodes=PAIR, seconds=2)
    model = braindecode_model(labram, files)
    x = eeg(7, (1, 2, 400))
    before = model(x, ch_names=list(PAIR))
    silent = []
    for name, parameter in model.named_parameters():
        original = parameter.clone()
        parameter += 0.5 * torch.linspace(-1, 1, parameter.numel()).view_as(parameter)
        if (model(x, ch_names=list(PAIR)) - before).abs().max() < 3e-4:
            silent.append(name)
        parameter.copy_(original)
    # What is added to all keys of a query changes no softmax.
    assert [name for name in silent if "k_norm.bias" not in name] == []


def test_hugging_faces_loader_reads_a_folder_with_its_names(labram: Any, tmp_path: Path) -> None:
    ours: Any = trained()
    path = saved(ours, tmp_path / "ours.pth", data_set=DATA)
    files = conversion.export(path, to="braindecode", output=tmp_path / "mine" / "model.safetensors")
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
    fill(theirs)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    ours: Any
    ours, found = weights.load(tmp_path / "theirs.pt")
    assert (found.model, found.settings["num_classes"], found.window_seconds) == (SIZE_OF_STAGE["classifier"], 4, 4)
    x = eeg(7, (2, 2, 4, 200))
    with torch.no_grad():
        expected = theirs(x.flatten(2), ch_names=list(PAIR))
        torch.testing.assert_close(ours(x, embedding_rows(PAIR)), expected, rtol=0, atol=1e-4)


def test_the_product_does_not_import_braindecode() -> None:
    importing = [
        path.name
        for path in [*ROOT.glob("*.py"), *(ROOT / "dataset_maker").glob("*.py")]
        if re.search(r"^\s*(import|from) braindecode\b", path.read_text(), re.MULTILINE)
    ]
    assert importing == []


# What the files say


def test_the_windows_are_those_of_the_training_unless_said_otherwise(tmp_path: Path) -> None:
    path = saved(trained(), tmp_path / "ours.pth", data_set=DATA)
    _, config = conversion.export(path, to="braindecode", output=tmp_path / "a.safetensors")
    said = json.loads(config.read_text())
    assert (said["n_times"], [channel["ch_name"] for channel in said["chs_info"]]) == (1000, ["C3", "C4"])
    _, config = conversion.export(
        path, to="braindecode", output=tmp_path / "b.safetensors", electrodes=["EEG Fp1-REF", "o2"], seconds=3
    )
    said = json.loads(config.read_text())
    assert (said["n_times"], [channel["ch_name"] for channel in said["chs_info"]]) == (600, ["FP1", "O2"])


@pytest.mark.parametrize(("names", "seconds"), [(None, 2), (MANY, 11), (PAIR, 16)])
def test_without_a_word_of_the_training_windows_are_as_long_as_256_patches_allow(
    names: Sequence[str] | None, seconds: int, tmp_path: Path
) -> None:
    path = saved(trained(), tmp_path / "ours.pth")
    _, config = conversion.export(path, to="braindecode", output=tmp_path / "a.safetensors", electrodes=names)
    said = json.loads(config.read_text())
    expected = list(names or ELECTRODES[:128])
    assert (said["n_times"], [channel["ch_name"] for channel in said["chs_info"]]) == (200 * seconds, expected)


def test_the_json_beside_safetensors_builds_the_model(tmp_path: Path) -> None:
    ours = trained()
    path = saved(ours, tmp_path / "ours.pth", data_set=DATA)
    file, config = conversion.export(path, to="safetensors", output=tmp_path / "a.safetensors")
    said = json.loads(config.read_text())
    assert config == tmp_path / "a.json"
    assert (said["stage"], said["classes"], said["window_seconds"]) == ("classifier", ["a", "b", "c"], 5)
    model = create_model(said["model"], **said["settings"])
    model.load_state_dict(load_file(file))
    assert equal(model.state_dict(), ours.state_dict())


def test_a_whole_file_has_its_digest_beside_and_damage_is_seen(tmp_path: Path) -> None:
    path = saved(trained(), tmp_path / "ours.pth")
    file, _ = conversion.export(path, to="safetensors", output=tmp_path / "a.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.json",
        "a.safetensors",
        "a.safetensors.sha256",
        "ours.pth",
    ]
    assert file.stat().st_mode == (tmp_path / "a.json").stat().st_mode  # who may read them
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError) as error:
        weights.load(file)
    only_line(error, file, "is damaged", "SHA-256")


# And back


@pytest.mark.parametrize(
    ("variant", "seconds"),
    [("pooled", 1), ("pooled", 15), ("pooled", 16), *((variant, 4) for variant in VARIANTS)],
)
def test_what_went_to_braindecode_comes_back_to_the_last_bit(variant: str, seconds: int, tmp_path: Path) -> None:
    ours = trained(**VARIANTS[variant])
    path = saved(ours, tmp_path / "ours.pth", data_set=DATA)
    file, _ = conversion.export(path, to="braindecode", output=tmp_path / "t.safetensors", seconds=seconds)
    back, found = weights.load(file)
    assert equal(back.state_dict(), ours.state_dict()) and not back.training
    assert found.data == {**DATA, "window_seconds": seconds}
    assert (found.model, found.settings) == (weights.load(path)[1].model, weights.load(path)[1].settings)
    again, _ = conversion.export(file, to="safetensors", output=tmp_path / "again.safetensors")
    assert equal(load_file(again), ours.state_dict())


@pytest.mark.parametrize("stage", checkpoints.STAGES)
def test_a_model_of_every_stage_comes_back_from_safetensors_to_the_last_bit(stage: str, tmp_path: Path) -> None:
    ours = trained(stage)
    entries = {"data_set": DATA} if stage == "classifier" else {}
    path = saved(ours, tmp_path / "ours.pth", **entries)
    file, _ = conversion.export(path, to="safetensors", output=tmp_path / "a.safetensors")
    back, found = weights.load(file)
    assert equal(back.state_dict(), ours.state_dict())
    assert found == weights.load(path)[1]


def test_a_masked_model_comes_back_from_braindecode_as_its_features(tmp_path: Path) -> None:
    path = saved(trained("pretraining"), tmp_path / "ours.pth")
    file, _ = conversion.export(path, to="braindecode", output=tmp_path / "t.safetensors", electrodes=PAIR, seconds=4)
    back, found = weights.load(file)
    expected, _ = weights.load(path, as_features=True)
    assert equal(back.state_dict(), expected.state_dict()) and found.stage == "classifier"


def test_rows_that_a_foreign_file_lacks_are_zero(tmp_path: Path) -> None:
    ours = trained()
    path = saved(ours, tmp_path / "ours.pth")
    file, _ = conversion.export(path, to="braindecode", output=tmp_path / "t.safetensors", seconds=4)
    torch.save(load_file(file), tmp_path / "foreign.pt")  # without our texts
    back: Any = weights.load(tmp_path / "foreign.pt")[0]
    expected = ours.state_dict()["time_embed"].clone()
    expected[:, 5:] = 0
    assert torch.equal(back.time_embed, expected)


def test_averaged_weights_are_exported_where_asked_for(tmp_path: Path) -> None:
    ours = trained()
    averaged = {key: value + 1 for key, value in ours.state_dict().items()}
    path = saved(ours, tmp_path / "ours.pth", extras={"model_ema": averaged})
    file, _ = conversion.export(path, to="safetensors", output=tmp_path / "a.safetensors", averaged=True)
    assert equal(load_file(file), averaged)


def test_pre_training_takes_a_tokenizer_from_a_safetensors_file(tmp_path: Path) -> None:
    path = saved(trained("tokenizer", n_code=48), tmp_path / "ours.pth")
    file, _ = conversion.export(path, to="safetensors", output=tmp_path / "a.safetensors")
    name = SIZE_OF_STAGE["tokenizer"]
    one, other = (load_tokenizer(name, checkpoints.read_model(p, stage="tokenizer"), where=p) for p in (file, path))
    assert equal(one.state_dict(), other.state_dict())


def test_fine_tuning_starts_from_a_safetensors_file_as_from_the_checkpoint(tmp_path: Path) -> None:
    path = saved(trained("pretraining"), tmp_path / "masked.pth")
    file, _ = conversion.export(path, to="safetensors", output=tmp_path / "masked.safetensors")
    task = labelled_file(tmp_path / "task.hdf5", counts={"train": 8})
    for folder, start in (("a", path), ("b", file)):
        words = ["--dataset", task, "--output_dir", tmp_path / folder, "--finetune", start]
        assert call("run_class_finetuning", *CLASSIFIER, *words) == 0
    one, other = (checkpoint(tmp_path / folder / "checkpoint.pth")["model"] for folder in "ab")
    assert equal(one, other)


# The command


def words(*given: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    conversion.add_arguments(parser)
    return parser.parse_args([str(word) for word in given])


def test_the_command_writes_what_its_flags_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = saved(trained(), tmp_path / "ours.pth")
    output = tmp_path / "new" / "t.safetensors"
    caplog.set_level("INFO")
    args = words("--checkpoint", path, "--to", "braindecode", "--output", output)
    conversion.run(argparse.Namespace(**{**vars(args), "electrodes": ["cz", "pz"], "time_window": 6}))
    said = json.loads(output.with_suffix(".json").read_text())
    assert (said["n_times"], [channel["ch_name"] for channel in said["chs_info"]]) == (1200, ["CZ", "PZ"])
    assert "windows of 2 electrodes and 6 s" in caplog.text and f"Wrote {output}" in caplog.text
    flags = words(
        *("--checkpoint", path, "--to", "safetensors", "--output", "f", "--averaged", "--time_window", 3),
        *("--electrodes", "C3", "C4"),
    )
    assert (flags.averaged, flags.time_window, flags.electrodes) == (True, 3, ["C3", "C4"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"to": "onnx"}, "--to onnx: allowed are braindecode, safetensors"),
        ({"output": "file.pth"}, "must end with .safetensors"),
        ({"seconds": 0}, "--time_window 0: allowed are whole seconds from 1 to 16"),
        ({"seconds": 17}, "--time_window 17"),
        ({"to": "safetensors", "seconds": 4}, "--electrodes and --time_window belong to --to braindecode"),
        ({"to": "safetensors", "electrodes": ["C3"]}, "belong to --to braindecode"),
        ({"output": "ours.safetensors"}, "is the checkpoint itself"),
        ({"electrodes": ["C3", "nose"]}, "unknown electrode names: 'nose'"),
        ({"electrodes": ["FP1-F3"]}, "no row for FP1-F3"),
        ({"output": "file/a.safetensors"}, "cannot be written"),
        ({"output": "folder.safetensors"}, "cannot be written"),
    ],
)
def test_flags_that_cannot_be_are_an_error_of_one_line_and_write_nothing(
    options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "ours.safetensors"
    save_file(trained().state_dict(), path)
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "folder.safetensors").mkdir()
    before = sorted(tmp_path.iterdir())
    given = {"to": "braindecode", "output": "t.safetensors", **options}
    with pytest.raises(InputError) as error:
        conversion.export(path, **{**given, "output": tmp_path / given["output"]})
    only_line(error, said)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("stage", "settings", "said"),
    [
        ("tokenizer", {}, "holds a tokenizer of stage 1"),
        ("classifier", {"num_electrodes": 136}, "braindecode's Labram 128: it cannot hold this model"),
    ],
)
def test_what_braindecode_has_no_model_for_is_refused(
    stage: str, settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = saved(trained(stage, **settings), tmp_path / "ours.pth")
    with pytest.raises(InputError) as error:
        conversion.export(path, to="braindecode", output=tmp_path / "t.safetensors")
    only_line(error, said)
    assert [file.name for file in tmp_path.iterdir()] == ["ours.pth"]


def test_a_write_that_fails_half_way_leaves_the_old_files_whole_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(trained(), tmp_path / "ours.pth")
    conversion.export(path, to="safetensors", output=tmp_path / "a.safetensors")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def write_half(file: Path, data: bytes) -> None:
        with file.open("wb") as opened:
            opened.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(UsageError) as error:
        conversion.export(path, to="braindecode", output=tmp_path / "a.safetensors")
    only_line(error, "a.safetensors cannot be written", "No space left on device")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


# Damaged and foreign files


def rewritten(path: Path, texts: dict[str, str], **changed: Tensor) -> Path:
    with safe_open(path, "pt") as file:
        metadata = {**file.metadata(), **texts}
    target = path.with_name("rewritten.safetensors")
    save_file({**load_file(path), **changed}, target, metadata)
    return target


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"data_set": "{"}, "its text data_set is no JSON"),
        ({"data_set": "3"}, "its entry data_set"),
        ({"time_embed": "[[1, 2]]"}, "its entry time_embed does not fit"),
        ({"time_embed": '{"a": 1}'}, "its entry time_embed does not fit"),
        ({"time_embed": "5"}, "its entry time_embed does not fit"),
        ({"time_embed": f"[{10**400}]"}, "its entry time_embed does not fit"),
    ],
)
def test_texts_that_cannot_be_are_an_error_of_one_line(texts: dict[str, str], said: str, tmp_path: Path) -> None:
    path = saved(trained(), tmp_path / "ours.pth", data_set=DATA)
    file, _ = conversion.export(path, to="braindecode", output=tmp_path / "t.safetensors")
    with pytest.raises(InputError) as error:
        weights.load(rewritten(file, texts))
    only_line(error, "rewritten.safetensors", said)


@pytest.mark.parametrize("shape", [(1, 1, 200), (1, 18, 200), (5, 200), (2, 5, 200)])
def test_a_time_embedding_that_no_model_has_is_an_error_of_one_line(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = saved(trained(), tmp_path / "ours.pth")
    file, _ = conversion.export(path, to="braindecode", output=tmp_path / "t.safetensors")
    with pytest.raises(InputError) as error:
        weights.load(rewritten(file, {}, temporal_embedding=torch.zeros(shape)))
    only_line(error, f"temporal_embedding is {shape}", "2 to 17 rows")


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5])
def test_a_safetensors_file_that_is_cut_short_is_an_error_of_one_line(share: float, name: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    save_file(trained().state_dict(), whole)
    data = whole.read_bytes()
    (tmp_path / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError) as error:
        weights.load(tmp_path / name)
    only_line(error, name, "no readable checkpoint")


def test_a_safetensors_file_is_known_by_its_contents_under_any_name(tmp_path: Path) -> None:
    ours = trained()
    save_file(ours.state_dict(), tmp_path / "file.pth")
    assert equal(weights.load(tmp_path / "file.pth")[0].state_dict(), ours.state_dict())


def test_a_checkpoint_under_a_safetensors_name_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = saved(trained(), tmp_path / "file.safetensors")
    with pytest.raises(InputError) as error:
        weights.load(path)
    only_line(error, path, "no readable checkpoint")
