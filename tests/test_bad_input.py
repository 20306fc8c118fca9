"""Every bad input ends a script with one line that names it, the exit code, and a finished run left as it was."""

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
    STAGES,
    TOKENIZER,
    call,
    checkpoint,
    contents,
    labelled_file,
    pretraining_file,
)

TRAIN, PRETRAIN, FINETUNE = STAGES
USAGE, DATA = 2, 1  # exit codes


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


def cut(path: Path) -> Path:
    """Cut a file short."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def damaged(file: Path) -> Path:
    """Overwrite a compressed dataset's chunks: the file opens and reading fails."""
    with h5py.File(file) as opened:
        data = opened["train/eeg" if "train" in opened else "recording0/eeg"].id
        places = [data.get_chunk_info(i) for i in range(data.get_num_chunks())]
    content = bytearray(file.read_bytes())
    for place in places:
        content[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    file.write_bytes(content)
    return file


def all_nan(file: Path) -> Path:
    with h5py.File(file, "r+") as opened:
        opened["recording0/eeg"][:] = np.nan
    return file


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def pre(**options: Any) -> Path:
    """Write a pre-training file into the working directory."""
    return pretraining_file(Path("a.hdf5").absolute(), **{"seconds": (8,), **options})


def lab(**options: Any) -> Path:
    """Write a labelled file into the working directory."""
    return labelled_file(Path("a.hdf5").absolute(), **{"counts": {"train": 4}, **options})


DATA_CASES: dict[str, tuple[str, Callable[[], Any], list[str]]] = {  # script, data, what the line names
    "nowhere": (TRAIN, lambda: Path("nowhere"), ["nowhere", "--train_data"]),
    "cut short": (TRAIN, lambda: cut(pre()), ["a.hdf5"]),
    "too short": (TRAIN, lambda: pre(seconds=(1,)), ["--train_data", "a.hdf5", "--time_window"]),
    "unknown electrode": (TRAIN, lambda: pre(electrodes=("C3", "CZZ")), ["CZZ", "a.hdf5"]),
    "damaged, loading thread": (TRAIN, lambda: damaged(pre(compression="gzip")), ["a.hdf5"]),
    "damaged, nothing but NaN": (TRAIN, lambda: all_nan(pre()), ["finite"]),
    "unknown name": (FINETUNE, lambda: "TUXY", ["TUXY", "TUAB", "TUEV"]),
    "not in its place": (FINETUNE, lambda: "TUAB", ["data/TUAB.hdf5", "dataset_maker"]),
    "damaged labelled": (FINETUNE, lambda: damaged(lab(compression="gzip")), ["a.hdf5", "train"]),
    "label too large": (FINETUNE, lambda: lab(labels=np.array([0, 1, 2, 0])), ["a.hdf5", "train", "label 2"]),
    "one class": (FINETUNE, lambda: lab(labels=np.zeros(4, int)), ["a.hdf5", "normal"]),
}
BASE = "vqnsp_encoder_base_decoder_3x200x12"
FLAGS: list[tuple[str, str, int, list[str]]] = [  # script, flags, exit code, what the line names
    (TRAIN, "--time_window 17", USAGE, ["--time_window 17", "16"]),
    (PRETRAIN, "--no_such_flag", USAGE, ["--no_such_flag"]),
    (FINETUNE, "--select_by r2", USAGE, ["--select_by r2", "roc_auc"]),
    (PRETRAIN, "--val_data nowhere", DATA, ["nowhere", "--val_data"]),
    (TRAIN, "--codebook_n_emd 32", DATA, ["16", "32"]),
    (PRETRAIN, f"--tokenizer_model {BASE}", DATA, ["checkpoint.pth", "encoder.blocks.4."]),
    (FINETUNE, "--eval --output_dir none", DATA, ["none"]),
]
WEIGHTS: dict[str, tuple[str, str, Callable[[Path], Path], list[str]]] = {  # script, flag, file, what the line names
    "another stage's model": (FINETUNE, "--finetune", lambda world: world / TRAIN / "checkpoint.pth", ["stage"]),
    "another stage's run": (TRAIN, "--resume", lambda world: world / PRETRAIN / "checkpoint.pth", ["stage"]),
    "missing run": (FINETUNE, "--resume", lambda world: Path("chekpoint-1.pth"), ["chekpoint-1.pth"]),
    "weights alone": (
        PRETRAIN,
        "--resume",
        lambda world: saved(Path("bad.pth"), {"model": checkpoint(world / PRETRAIN / "checkpoint.pth")["model"]}),
        ["bad.pth"],
    ),
    "cut short": (FINETUNE, "--finetune", lambda world: cut(saved(Path("bad.pth"), {"model": {}})), ["bad.pth"]),
}


@pytest.fixture
def fails(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs a script, which must fail with one line and leave a finished run as it was."""
    monkeypatch.chdir(tmp_path)

    def run(script: str, *words: Any, code: int, parts: list[str]) -> None:
        output = tmp_path / "finished"
        shutil.copytree(world / script, output)
        before = contents(output)
        assert {"checkpoint.pth", "log.txt"} <= before.keys()
        own = [] if "--output_dir" in words else ["--output_dir", output]
        capfd.readouterr()
        assert call(script, *good_words(script, world), "--epochs", "2", *own, *words) == code
        assert contents(output) == before, "a finished run was changed"
        errors = capfd.readouterr().err
        assert "Traceback" not in errors
        lines = [line for line in errors.splitlines() if line.startswith("error:")]
        assert len(lines) == 1 and errors.splitlines()[-1] == lines[0], errors
        assert not [word for word in parts if word not in lines[0]], lines[0]

    return run


@pytest.mark.parametrize("kind", DATA_CASES)
def test_wrong_data(kind: str, fails: Any) -> None:
    script, make, parts = DATA_CASES[kind]
    words = ["--dataset" if script == FINETUNE else "--train_data", make()]
    words += ["--num_workers", int("loading thread" in kind)]
    if kind.startswith("damaged"):  # found while reading, after a run to resume is compared: so in a new run
        words += ["--output_dir", "new"]
    fails(script, *words, code=DATA, parts=parts)


@pytest.mark.parametrize(("script", "words", "code", "parts"), FLAGS)
def test_flags_that_cannot_be_right(script: str, words: str, code: int, parts: list[str], fails: Any) -> None:
    fails(script, *words.split(), code=code, parts=parts)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_file_that_holds_no_fitting_weights(kind: str, fails: Any, world: Path) -> None:
    script, flag, make, parts = WEIGHTS[kind]
    fails(script, flag, make(world), code=DATA, parts=parts)
