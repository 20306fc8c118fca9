"""Every bad input ends a script with one line that names it, the exit code, and a finished run left as it was."""

import builtins
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from run_helpers import (
    CLASSIFIER,
    MASKED,
    ROOT,
    STAGES,
    TOKENIZER,
    call,
    checkpoint,
    contents,
    labelled_file,
    pretraining_file,
    start,
)

TRAIN, PRETRAIN, FINETUNE = STAGES
USAGE, DATA = 2, 1  # exit codes
BIPOLAR = ("FP1-F3", "P4-O2")  # numbers 129 and 136 of 136; the published tables hold 128


class Executes:
    """Pickles as a call of print: what a malicious checkpoint would do, harmlessly."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (builtins.print, ("executed",))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good data and a finished run of each stage."""
    folder = tmp_path_factory.mktemp("world")
    pretraining_file(folder / "train" / "a.hdf5", seconds=(8,))
    labelled_file(folder / "task.hdf5", counts={"train": 4, "val": 4})
    for script in STAGES:
        assert call(script, *good_words(script, folder), "--output_dir", folder / script) == 0
    return folder


def good_words(script: str, world: Path) -> list[Any]:
    """Return flags with which a script runs."""
    if script == FINETUNE:
        return [*CLASSIFIER, "--dataset", world / "task.hdf5"]
    own = TOKENIZER if script == TRAIN else [*MASKED, "--tokenizer_weight", world / TRAIN / "checkpoint.pth"]
    return [*own, "--train_data", world / "train"]


def text(folder: Path) -> Path:
    path = folder / "text.hdf5"
    path.write_text("EEG")
    return path


def cut(path: Path) -> Path:
    """Cut a file short."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def damaged(file: Path, dataset: str) -> Path:
    """Overwrite a compressed dataset's chunks: the file opens and reading fails."""
    with h5py.File(file) as opened:
        places = [opened[dataset].id.get_chunk_info(i) for i in range(opened[dataset].id.get_num_chunks())]
    content = bytearray(file.read_bytes())
    for place in places:
        content[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    file.write_bytes(content)
    return file


def changed(file: Path, change: Callable[[h5py.File], Any]) -> Path:
    """Change an HDF5 file."""
    with h5py.File(file, "r+") as opened:
        change(opened)
    return file


def all_nan(file: h5py.File) -> None:
    file["recording0/eeg"][:] = np.nan


def two_rates(folder: Path) -> Path:
    pretraining_file(folder / "data" / "a.hdf5")
    return pretraining_file(folder / "data" / "b.hdf5", rate=250).parent


def two_sets(folder: Path) -> Path:
    labelled_file(folder / "data" / "a.hdf5", counts={"train": 4})  # the sets' names are the files'
    return labelled_file(folder / "data" / "b.hdf5", counts={"train": 4}).parent


# Wrong data: flag, what makes it, what the line names.
PRETRAINING_DATA: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "nowhere": (lambda f: f / "nowhere", ["nowhere", "--train_data"]),
    "empty folder": (lambda f: f, ["--train_data"]),
    "no HDF5": (text, ["text.hdf5"]),
    "cut short": (lambda f: cut(pretraining_file(f / "a.hdf5")), ["a.hdf5"]),
    "labelled file": (lambda f: labelled_file(f / "a.hdf5", counts={"train": 4}), ["a.hdf5"]),
    "unknown electrode": (lambda f: pretraining_file(f / "a.hdf5", electrodes=("C3", "CZZ")), ["CZZ", "a.hdf5"]),
    "no row": (lambda f: pretraining_file(f / "a.hdf5", electrodes=BIPOLAR), ["P4-O2", "--num_electrodes 136"]),
    "too short": (lambda f: pretraining_file(f / "a.hdf5", seconds=(1.5,)), ["a.hdf5", "1.5 s", "--time_window"]),
    "damaged": (
        lambda f: damaged(pretraining_file(f / "a.hdf5", seconds=(8,), compression="gzip"), "recording0/eeg"),
        ["a.hdf5", "recording0"],
    ),
    "no rate": (
        lambda f: changed(pretraining_file(f / "a.hdf5"), lambda h: h["recording1/eeg"].attrs.pop("rsFreq")),
        ["a.hdf5", "recording1", "rsFreq"],
    ),
    "two rates": (two_rates, ["b.hdf5", "250 Hz", "200 Hz"]),
    "nothing but NaN": (lambda f: changed(pretraining_file(f / "a.hdf5", seconds=(8,)), all_nan), ["finite"]),
}
LABELLED_DATA: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "unknown name": (lambda f: "TUXY", ["TUXY", "TUAB", "TUEV"]),
    "not in its place": (lambda f: "TUAB", ["data/TUAB.hdf5", "dataset_maker"]),
    "no HDF5": (text, ["text.hdf5"]),
    "cut short": (lambda f: cut(labelled_file(f / "a.hdf5", counts={"train": 4})), ["a.hdf5"]),
    "pre-training file": (lambda f: pretraining_file(f / "a.hdf5"), ["a.hdf5", "dataset_maker"]),
    "unknown electrode": (
        lambda f: labelled_file(f / "a.hdf5", counts={"train": 4}, electrodes=("C3", "OO1")),
        ["OO1", "a.hdf5"],
    ),
    "damaged": (
        lambda f: damaged(labelled_file(f / "a.hdf5", counts={"train": 4}, compression="gzip"), "train/eeg"),
        ["a.hdf5", "train"],
    ),
    "label too large": (
        lambda f: labelled_file(f / "a.hdf5", counts={"train": 4}, labels=np.array([0, 1, 2, 0])),
        ["a.hdf5", "train", "label 2"],
    ),
    "negative label": (
        lambda f: labelled_file(f / "a.hdf5", counts={"train": 4}, task="multiclass", labels=np.array([0, -1, 1, 0])),
        ["a.hdf5", "train", "label -1"],
    ),
    "targets not finite": (
        lambda f: labelled_file(
            f / "a.hdf5", counts={"train": 2}, task="regression", classes=("age",), labels=np.full((2, 1), np.nan)
        ),
        ["a.hdf5", "finite"],
    ),
    "one class": (
        lambda f: labelled_file(f / "a.hdf5", counts={"train": 4, "val": 4}, labels=np.zeros(4, int)),
        ["a.hdf5", "normal"],
    ),
    "two sets": (two_sets, ["a.hdf5", "b.hdf5", "name"]),
    "long window": (lambda f: labelled_file(f / "a.hdf5", counts={"train": 2}, seconds=17), ["a.hdf5", "3400", "3200"]),
}
FLAGS: dict[str, tuple[str, str, int, list[str]]] = {  # script, flags, exit code, what the line names
    "window too long": (TRAIN, "--time_window 17", USAGE, ["--time_window 17", "16 s"]),
    "window of nothing": (PRETRAIN, "--time_window 0", USAGE, ["--time_window 0"]),
    "input too long": (FINETUNE, "--input_size 3400", USAGE, ["--input_size", "3400", "3200"]),
    "input no whole second": (TRAIN, "--input_size 250", USAGE, ["--input_size", "250"]),
    "unknown device": (TRAIN, "--device gpu", USAGE, ["--device gpu", "cpu"]),
    "no epochs": (PRETRAIN, "--epochs 0", USAGE, ["--epochs 0"]),
    "text for a number": (PRETRAIN, "--epochs many", USAGE, ["--epochs"]),
    "unknown precision": (PRETRAIN, "--precision fp16", USAGE, ["--precision fp16"]),
    "unknown optimizer": (PRETRAIN, "--opt adamx", USAGE, ["--opt adamx"]),
    "unknown flag": (PRETRAIN, "--no_such_flag", USAGE, ["--no_such_flag"]),
    "metric of another task": (FINETUNE, "--select_by r2", USAGE, ["--select_by r2", "roc_auc"]),
    "outputs of another task": (FINETUNE, "--nb_classes 6", DATA, ["--nb_classes 6", "task.hdf5"]),
    "no validation data": (PRETRAIN, "--val_data nowhere", DATA, ["nowhere", "--val_data"]),
    "other codebook": (TRAIN, "--codebook_n_emd 32", DATA, ["codebook", "16", "32"]),
    "codebook of another size": (PRETRAIN, "--codebook_size 8192", DATA, ["--codebook_size 16", "8192"]),
    "tokenizer of another size": (
        *(PRETRAIN, "--tokenizer_model vqnsp_encoder_base_decoder_3x200x12", DATA),
        ["checkpoint.pth", "encoder.blocks.4."],
    ),
    "evaluate nothing": (FINETUNE, "--eval --output_dir none", DATA, ["none"]),
    "averages never kept": (FINETUNE, "--eval --model_ema", DATA, ["--model_ema"]),
}
OTHER_STAGE = [  # script, flag, whose checkpoint it gets
    (PRETRAIN, "--tokenizer_weight", PRETRAIN),
    (FINETUNE, "--finetune", TRAIN),
    (TRAIN, "--resume", PRETRAIN),
    (PRETRAIN, "--resume", FINETUNE),
]


@pytest.fixture
def fails(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs a script, which must fail with one line and leave a finished run as it was."""
    monkeypatch.chdir(tmp_path)

    def run(script: str, *words: Any, code: int, says: list[str]) -> None:
        output = tmp_path / "finished"
        shutil.copytree(world / script, output)
        before = contents(output)
        assert {"checkpoint.pth", "log.txt"} <= before.keys()
        own = [] if "--output_dir" in words else ["--output_dir", output]
        capfd.readouterr()
        assert call(script, *good_words(script, world), "--epochs", "2", *own, *words) == code
        assert contents(output) == before, "a finished run was changed"
        shown, errors = capfd.readouterr()
        assert "Traceback" not in errors and "executed" not in shown
        lines = [line for line in errors.splitlines() if line.startswith("error:")]
        assert len(lines) == 1 and errors.splitlines()[-1] == lines[0], errors
        assert not [word for word in says if word not in lines[0]], lines[0]

    return run


def new_run(kind: str) -> list[str]:
    """Return the flags of a new run where the data are read only after a run to resume is compared."""
    return ["--output_dir", "new"] if kind in ("damaged", "nothing but NaN") else []


@pytest.mark.parametrize("kind", PRETRAINING_DATA)
def test_wrong_pretraining_data(kind: str, fails: Any, tmp_path: Path) -> None:
    make, says = PRETRAINING_DATA[kind]
    (tmp_path / "in").mkdir()
    fails(TRAIN, "--train_data", make(tmp_path / "in"), *new_run(kind), code=DATA, says=says)


@pytest.mark.parametrize("kind", LABELLED_DATA)
def test_wrong_labelled_data(kind: str, fails: Any, tmp_path: Path) -> None:
    make, says = LABELLED_DATA[kind]
    (tmp_path / "in").mkdir()
    fails(FINETUNE, "--dataset", make(tmp_path / "in"), *new_run(kind), code=DATA, says=says)


@pytest.mark.parametrize("kind", FLAGS)
def test_flags_that_cannot_be_right(kind: str, fails: Any) -> None:
    script, words, code, says = FLAGS[kind]
    fails(script, *words.split(), code=code, says=says)


@pytest.mark.parametrize(("script", "flag"), [(TRAIN, "--output_dir"), (PRETRAIN, "--log_dir")])
def test_an_output_folder_that_cannot_be_written(script: str, flag: str, fails: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    fails(script, flag, tmp_path / "file" / "below", code=USAGE, says=[flag, str(tmp_path / "file" / "below")])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: asking for it is no mistake")
def test_a_gpu_where_none_is(fails: Any) -> None:
    fails(TRAIN, "--device", "cuda", code=USAGE, says=["--device cuda", "--device cpu"])


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_that_a_loading_process_finds_is_one_line_too(workers: int, fails: Any, tmp_path: Path) -> None:
    file = damaged(pretraining_file(tmp_path / "a.hdf5", seconds=(8,), compression="gzip"), "recording0/eeg")
    words = ("--train_data", file, "--num_workers", workers, *new_run("damaged"))
    fails(TRAIN, *words, code=DATA, says=["a.hdf5", "recording0"])


@pytest.mark.parametrize(
    ("script", "flag", "name", "stage"),
    [(PRETRAIN, "--tokenizer_weight", "vqnsp", TRAIN), (FINETUNE, "--finetune", "labram-base", PRETRAIN)],
)
def test_missing_weights_with_the_nearest_candidate(
    script: str, flag: str, name: str, stage: str, fails: Any, world: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints" / name.replace("-", "_")  # README's copy has another sign
    shutil.copytree(world / stage, folder)
    missing = tmp_path / "checkpoints" / f"{name}.pth"
    fails(script, flag, missing, code=DATA, says=[str(missing), f"cp {folder / 'checkpoint.pth'}"])


@pytest.mark.parametrize(("script", "flag", "stage"), OTHER_STAGE)
def test_a_checkpoint_of_another_stage(script: str, flag: str, stage: str, fails: Any, world: Path) -> None:
    path = world / stage / "checkpoint.pth"
    fails(script, flag, path, code=DATA, says=[str(path), "stage"])


@pytest.mark.parametrize("kind", ["text", "empty", "tensor", "no weights", "executes", "old pickle", "cut short"])
def test_a_file_that_is_no_checkpoint(kind: str, fails: Any, world: Path, tmp_path: Path) -> None:
    path, model = tmp_path / "bad.pth", checkpoint(world / PRETRAIN / "checkpoint.pth")["model"]
    contents = {"tensor": torch.zeros(3), "no weights": {"epoch": 3}, "executes": {"model": model, "args": Executes()}}
    if kind in ("text", "empty"):
        path.write_text("weights" if kind == "text" else "")
    elif kind == "old pickle":
        path.write_bytes(pickle.dumps({"model": Executes()}))
    else:
        torch.save(contents.get(kind, {"model": model}), path)
    fails(FINETUNE, "--finetune", cut(path) if kind == "cut short" else path, code=DATA, says=[str(path)])


def test_resuming_from_weights_alone(fails: Any, world: Path, tmp_path: Path) -> None:
    torch.save({"model": checkpoint(world / PRETRAIN / "checkpoint.pth")["model"]}, tmp_path / "weights.pth")
    fails(PRETRAIN, "--resume", tmp_path / "weights.pth", code=DATA, says=["weights.pth"])


def test_a_checkpoint_of_129_rows_grows_to_the_larger_table(world: Path, tmp_path: Path) -> None:
    file = labelled_file(tmp_path / "bipolar.hdf5", counts={"train": 4}, electrodes=("C3", "P4-O2"))
    words = [*CLASSIFIER, "--dataset", file, "--num_electrodes", "136", "--lr", "0", "--min_lr", "0"]
    words += ["--finetune", world / PRETRAIN / "checkpoint.pth", "--output_dir", tmp_path / "out"]
    assert call(FINETUNE, *words) == 0
    grown = checkpoint(tmp_path / "out" / "checkpoint.pth")["model"]["pos_embed"]
    old = checkpoint(world / PRETRAIN / "checkpoint.pth")["model"]["student.pos_embed"]
    assert grown.shape == (1, 137, 200) and torch.equal(grown[:, :129], old)
    assert float(grown[:, 129:].std()) == pytest.approx(0.02, rel=0.2), "new rows are freshly initialised"


@pytest.mark.parametrize(("words", "code"), [(["--device", "gpu"], 2), (["--dataset", "x"], 1)])
def test_a_real_process_ends_with_one_line_and_the_exit_code(words: list[str], code: int, tmp_path: Path) -> None:
    ended = start([ROOT / f"{FINETUNE}.py", *words, "--output_dir", tmp_path / "out"], cwd=tmp_path, check=False)
    assert ended.returncode == code and ended.stdout == ""
    assert ended.stderr.startswith("error:") and ended.stderr.count("\n") == 1
