"""Files are whole or absent, and a labelled file holds what was appended."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dataset_maker.writers import LabelledWriter, PretrainingWriter, written_aside
from errors import InputError
from maker_helpers import noise

REPOSITORY = Path(__file__).resolve().parents[1]
REPORT: dict[str, Any] = {
    "sampling_rate": 200.0,
    "source_rate": 200.0,
    "l_freq": 0.1,
    "h_freq": 75.0,
    "notch": None,
    "notes": [],
}


# ---- files whole or absent


def test_a_killed_maker_leaves_no_file_that_looks_finished(tmp_path: Path) -> None:
    code = f"""
import os, signal, numpy as np
from pathlib import Path
from dataset_maker.writers import PretrainingWriter
with PretrainingWriter(Path({str(tmp_path)!r}), made={{}}) as writer:
    writer.add("a", np.ones((1, 400)), ["CZ"], {REPORT!r})
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == -9
    assert all(path.name.startswith(".") and path.suffix == ".part" for path in tmp_path.iterdir())
    assert not list(tmp_path.glob("*.hdf5"))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_writer_leaves_nothing_and_keeps_the_older_file(tmp_path: Path, error: type[BaseException]) -> None:
    with PretrainingWriter(tmp_path, made={}) as writer:
        name = writer.add("a", np.ones((1, 400)), ["CZ"], REPORT)
    older = (tmp_path / name).read_bytes()
    with pytest.raises(error), PretrainingWriter(tmp_path, made={}) as writer:
        writer.add("b", np.zeros((1, 400)), ["PZ"], REPORT)
        writer.add("c", np.zeros((2, 400)), ["CZ", "PZ"], REPORT)
        raise error
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [older]


def test_a_file_that_exists_is_not_replaced_by_other_recordings(tmp_path: Path) -> None:
    with PretrainingWriter(tmp_path, made={}) as writer:
        name = writer.add("a", np.ones((1, 400)), ["CZ"], REPORT)
    older = (tmp_path / name).read_bytes()
    with pytest.raises(InputError, match="exists already"), PretrainingWriter(tmp_path, made={}) as writer:
        writer.add("b", np.zeros((1, 400)), ["CZ"], REPORT)
    (tmp_path / "x.hdf5").write_bytes(b"older")
    with pytest.raises(InputError, match="exists already"), labelled(tmp_path / "x.hdf5", "binary", ["a", "b"]):
        pass
    assert (tmp_path / name).read_bytes() == older and (tmp_path / "x.hdf5").read_bytes() == b"older"


def test_written_aside_appears_under_its_name_only_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with written_aside(tmp_path / "new" / "a.bin") as part:
        part.write_bytes(b"whole")
        assert not (tmp_path / "new" / "a.bin").exists() and part.parent == tmp_path / "new"
    assert [path.read_bytes() for path in (tmp_path / "new").iterdir()] == [b"whole"]


# ---- labelled files


def labelled(path: Path, task: str, classes: list[str]) -> LabelledWriter:
    """Return a writer of one-electrode samples."""
    return LabelledWriter(
        path, name="X", task=task, classes=classes, electrodes=["CZ"], sampling_rate=200, made={"seed": 3}
    )


def test_a_labelled_file_holds_what_was_appended_per_split(tmp_path: Path) -> None:
    eeg = noise(5, 1, 200).reshape(5, 1, 200).astype(np.float32)
    with labelled(tmp_path / "x.hdf5", "multiclass", ["a", "b", "c"]) as writer:
        writer.append("train", eeg[:2], [0, 2], recording="r1", subject="Sü")
        writer.append("train", eeg[2:3], [1], recording="r2", subject="s2")
        writer.append("val", eeg[3:], [1, 1], recording="r3", subject="s3")
    assert writer.counts == {"train": 3, "val": 2}
    with h5py.File(tmp_path / "x.hdf5") as file:
        assert set(file) == {"train", "val"}
        train = file["train"]
        np.testing.assert_array_equal(train["eeg"][:], eeg[:3])
        assert train["eeg"].chunks == (1, 1, 200) and train["eeg"].dtype == np.float32
        assert train["label"].dtype == np.int64 and train["label"][:].tolist() == [0, 2, 1]
        assert train["recording"].asstr()[:].tolist() == ["r1", "r1", "r2"]
        assert train["subject"].asstr()[:].tolist() == ["Sü", "Sü", "s2"]
        assert (file.attrs["name"], file.attrs["task"], file.attrs["rsFreq"]) == ("X", "multiclass", 200)
        assert list(file.attrs["classes"]) == ["a", "b", "c"] and list(file.attrs["chOrder"]) == ["CZ"]
        assert json.loads(file.attrs["made"])["seed"] == 3


def test_regression_labels_are_float32_samples_by_outputs(tmp_path: Path) -> None:
    with labelled(tmp_path / "x.hdf5", "regression", ["angle", "speed"]) as writer:
        writer.append("test", np.zeros((2, 1, 200)), [[0.5, 1], [2, 3]], recording="r", subject="s")
    with h5py.File(tmp_path / "x.hdf5") as file:
        assert file["test/label"].dtype == np.float32 and file["test/label"][:].tolist() == [[0.5, 1], [2, 3]]


def test_labels_outside_the_classes_and_samples_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"r: labels \[2\]"), labelled(tmp_path / "x", "binary", ["a", "b"]) as writer:
        writer.append("train", np.zeros((2, 1, 200)), [1, 2], recording="r", subject="s")
    with (
        pytest.raises(InputError, match=r"r2: eeg \(1, 400\)"),
        labelled(tmp_path / "x", "binary", ["a", "b"]) as writer,
    ):
        writer.append("train", np.zeros((1, 1, 200)), [0], recording="r1", subject="s")
        writer.append("train", np.zeros((1, 1, 400)), [0], recording="r2", subject="s")
    assert not list(tmp_path.iterdir())
