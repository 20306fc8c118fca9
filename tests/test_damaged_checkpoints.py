"""Damaged checkpoints: refused and fallen back from, or equal; never other weights.

The hundred copies are of a run's checkpoint with its tensors cut to a few values, so that every part of the file's
structure is hit, not its numbers only.
"""

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from errors import InputError
from recovery import differences
from run_helpers import CLASSIFIER, call, checkpoint, labelled_file, log
from training import checkpoints

EPOCHS = 3
COPIES = 50  # of each kind of damage
VALUES = 8  # of a tensor that are kept


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_file(tmp_path_factory.mktemp("task") / "task.hdf5", counts={"train": 16, "val": 6})


def train(folder: Path, task: Path, *words: Any) -> int:
    flags = ["--output_dir", folder, "--dataset", task, "--epochs", EPOCHS, "--drop_path", 0.3, "--save_ckpt_freq", 1]
    return call("run_class_finetuning", *CLASSIFIER, *flags, *words)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, task: Path) -> Path:
    """Return the folder of a run that ended: three numbered checkpoints, the latest, the one before it."""
    folder = tmp_path_factory.mktemp("run") / "run"
    assert train(folder, task) == 0
    return folder


def cut(value: Any) -> Any:
    """Return the same structure with small tensors."""
    if isinstance(value, torch.Tensor):
        return value.flatten()[:VALUES].clone()
    if isinstance(value, dict):
        return {key: cut(entry) for key, entry in value.items()}
    return [cut(entry) for entry in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    """Return a folder as a run has it, its checkpoints of a few hundred kilobytes."""
    folder = tmp_path_factory.mktemp("small")
    for epoch in range(EPOCHS):
        state = cut(checkpoint(run / f"checkpoint-{epoch}.pth"))
        checkpoints.save(state, folder / "checkpoint.pth", keep=folder / "checkpoint.previous.pth")
    return folder


def truncated(content: bytes, random: np.random.Generator) -> bytes:
    return content[: int(random.integers(len(content)))]


def flipped(content: bytes, random: np.random.Generator) -> bytes:
    """Flip a bit: every second time in the last tenth, the archive's list of contents."""
    start = int(random.integers(2)) * len(content) * 9 // 10
    place, changed = int(random.integers(start, len(content))), bytearray(content)
    changed[place] ^= 1 << int(random.integers(8))
    return bytes(changed)


Damage = Callable[[bytes, np.random.Generator], bytes]
damages = pytest.mark.parametrize("damage", [truncated, flipped])


def same(one: Any, other: Any) -> bool:
    return not list(differences(one, other))


@damages
def test_a_damaged_latest_checkpoint_is_named_and_the_one_before_is_read(
    damage: Damage, small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = (small / "checkpoint.pth").read_bytes()
    before = checkpoint(small / "checkpoint.previous.pth")
    for number in range(COPIES):
        folder = tmp_path / str(number)
        shutil.copytree(small, folder)
        (folder / "checkpoint.pth").write_bytes(damage(whole, np.random.default_rng(number)))
        caplog.clear()
        found = checkpoints.read_newest(folder)
        assert found is not None
        warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        # Each copy differs from what was written, and its SHA-256 with it.
        assert same(found[1], before), number
        assert len(warnings) == 1 and str(folder / "checkpoint.pth") in warnings[0], number
        shutil.rmtree(folder)


@damages
def test_a_damaged_file_without_a_digest_is_refused_or_holds_what_the_whole_one_does(
    damage: Damage, small: Path, tmp_path: Path
) -> None:
    whole = (small / "checkpoint.pth").read_bytes()
    state, refused = checkpoint(small / "checkpoint.pth"), 0
    path = tmp_path / "copy.pth"
    for number in range(COPIES):
        path.write_bytes(damage(whole, np.random.default_rng(1000 + number)))
        try:
            assert same(checkpoints.read(path), state), number
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > COPIES // 4, "the damage damages nothing: this test would prove nothing"


def test_torch_alone_would_load_other_numbers(small: Path, tmp_path: Path) -> None:
    """Why there is a digest."""
    state = checkpoint(small / "checkpoint.pth")
    whole = (small / "checkpoint.pth").read_bytes()
    weight = next(value for value in state["model"].values() if value.numel() == VALUES).numpy().tobytes()
    place = whole.index(weight)
    changed = bytearray(whole)
    changed[place] ^= 1
    path = tmp_path / "copy.pth"
    path.write_bytes(changed)
    assert not same(checkpoint(path), state)
    with pytest.raises(InputError, match=r"copy\.pth is damaged"):
        checkpoints.read(path)


def test_a_part_that_is_marked_as_a_folder_is_refused(small: Path, tmp_path: Path) -> None:
    """A single bit of the archive's list of contents, for which torch leaves a tensor uninitialised."""
    changed = bytearray((small / "checkpoint.pth").read_bytes())
    entries = [match.start() for match in re.finditer(rb"PK\x01\x02", changed)]
    assert len(entries) > 10
    changed[entries[len(entries) // 2] + 38] ^= 0x10  # of its external attributes
    path = tmp_path / "copy.pth"
    path.write_bytes(changed)
    with pytest.raises(InputError, match=r"copy\.pth is damaged"):
        checkpoints.read(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 80, b"0" * 64 + b"  checkpoint.pth\n", b"\xff\xfe\n"])
def test_a_damaged_digest_never_gives_other_weights(
    content: bytes, small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small, folder)
    (folder / "checkpoint.pth.sha256").write_bytes(content)
    found = checkpoints.read_newest(folder)
    assert found is not None and same(found[1], checkpoint(small / "checkpoint.previous.pth"))
    assert str(folder / "checkpoint.pth") in caplog.text


def test_of_several_damaged_checkpoints_each_is_named_and_the_newest_whole_one_is_read(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    damaged = ["checkpoint.pth", "checkpoint.previous.pth", "checkpoint-2.pth"]
    for name in damaged:
        path = folder / name
        path.write_bytes(path.read_bytes()[:-1])
    found = checkpoints.read_newest(folder)
    assert found is not None and same(found[1], checkpoint(run / "checkpoint-1.pth"))
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert sorted(str(folder / name) for name in damaged) == sorted(text.split(" ")[0] for text in warnings)


def test_where_all_checkpoints_are_damaged_the_run_ends_with_a_line_and_nothing_is_changed(
    run: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for path in folder.glob("checkpoint*.pth"):
        path.write_bytes(path.read_bytes()[:-1])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert train(folder, task) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "damaged" in lines[0] and str(folder) in lines[0]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@damages
def test_a_run_with_a_damaged_checkpoint_ends_as_one_without(
    damage: Damage, run: Path, task: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for name in ("checkpoint.pth", "checkpoint-2.pth"):  # both hold the last epoch
        path = folder / name
        path.write_bytes(damage(path.read_bytes(), np.random.default_rng(7)))
    assert train(folder, task) == 0
    assert f"{folder / 'checkpoint.pth'} is damaged" in caplog.text
    for name in ("model", "optimizer", "extras", "epoch", "step"):
        states = [checkpoint(one / "checkpoint.pth")[name] for one in (run, folder)]
        assert same(*states), name
    assert [line["epoch"] for line in log(folder)] == list(range(EPOCHS))
    assert [line["train_loss"] for line in log(folder)] == [line["train_loss"] for line in log(run)]


@pytest.mark.parametrize("flag", ["--resume", "--finetune"])
@damages
def test_a_damaged_file_that_a_flag_names_is_refused(
    damage: Damage, flag: str, run: Path, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "copy.pth"
    path.write_bytes(damage((run / "checkpoint.pth").read_bytes(), np.random.default_rng(1)))
    assert train(tmp_path / "run", task, flag, path) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and str(path) in lines[0]
    assert not (tmp_path / "run" / "checkpoint.pth").exists()
