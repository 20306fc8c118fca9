"""Files are whole or absent, and a labelled file holds what was appended."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from dataset_maker.pipeline import Prepared
from dataset_maker.writers import LabelledShard, PretrainingShards, join_shards, written_aside
from eeg_data.quality import SignalScan
from errors import InputError
from maker_helpers import noise

REPOSITORY = Path(__file__).resolve().parents[1]
DESCRIPTION = {"name": "X", "electrodes": ["CZ"], "rate": 200.0}


def add(shards: PretrainingShards, name: str, eeg: np.ndarray) -> str:
    """Write a recording of the electrodes CZ, PZ, ... as the pipeline does; return its file."""
    electrodes = ["CZ", "PZ", "OZ"][: len(eeg)]
    data = shards.store(name)(electrodes, 200.0, eeg.shape[1])
    data[:] = eeg
    report = {"source_rate": 200.0, "l_freq": 0.1, "h_freq": 75.0, "notch": None, "notes": []}
    scan = SignalScan(electrodes, 200)
    scan.add(eeg)
    return shards.finish(Prepared(electrodes, 200.0, eeg.shape[1], data, scan.result(), report))


# ---- files whole or absent


def test_a_killed_writer_leaves_no_file_that_looks_finished(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
import numpy as np
from pathlib import Path
sys.path[:0] = [{str(REPOSITORY / "tests")!r}, {str(REPOSITORY)!r}]
from test_writers import PretrainingShards, add
with PretrainingShards(Path({str(tmp_path)!r}), "1", made={{}}) as shards:
    add(shards, "a", np.ones((1, 400)))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == -9
    left = [path.name for path in tmp_path.iterdir()]
    assert left and all(name.startswith(".") and name.endswith(".part") for name in left), left


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_writer_leaves_nothing_and_keeps_the_older_file(tmp_path: Path, error: type[BaseException]) -> None:
    with PretrainingShards(tmp_path, "1", made={}) as shards:
        name = add(shards, "a", noise(1, 2, 200))
    older = (tmp_path / name).read_bytes()
    with pytest.raises(error), PretrainingShards(tmp_path, "1", made={}) as shards:
        add(shards, "b", noise(1, 2, 200))
        add(shards, "c", noise(2, 2, 200))
        raise error
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [older]


def test_a_recording_that_is_taken_back_leaves_nothing_and_its_montages_file_neither(tmp_path: Path) -> None:
    with PretrainingShards(tmp_path, "1", made={}) as shards:
        name = add(shards, "a", noise(1, 2, 200))
        shards.store("b")(["CZ"], 200.0, 400)
        shards.store("c")(["CZ", "PZ"], 200.0, 400)
        shards.discard("b")
        shards.discard("c")
        shards.discard("never begun")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with h5py.File(tmp_path / name) as file:
        assert list(file) == ["a"]


def test_a_pre_training_file_says_what_it_holds(tmp_path: Path) -> None:
    eeg = noise(2, 2.5, 200)
    eeg[:, 200:400] = 5.0  # no electrode moves
    with PretrainingShards(tmp_path, "1", made={"source": "tests"}) as shards:
        name = add(shards, "a", eeg)
    with h5py.File(tmp_path / name) as file:
        data = file["a/eeg"]
        np.testing.assert_array_equal(data[:], eeg.astype(np.float32))
        assert data.chunks == (2, 200) and list(data.attrs["chOrder"]) == ["CZ", "PZ"]
        assert [data.attrs[key] for key in ("rsFreq", "lFreq", "hFreq", "notch", "sourceFreq")] == [
            200,
            0.1,
            75,
            0,
            200,
        ]
        assert file["a/valid"][:].tolist() == [True, False, True]
        assert json.loads(data.attrs["quality"])["flat"] == {"CZ": 1, "PZ": 1}
        assert json.loads(file.attrs["made"])["source"] == "tests"


def test_written_aside_appears_under_its_name_only_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with written_aside(tmp_path / "new" / "a.bin") as part:
        part.write_bytes(b"whole")
        assert not (tmp_path / "new" / "a.bin").exists() and part.parent == tmp_path / "new"
    assert [path.read_bytes() for path in (tmp_path / "new").iterdir()] == [b"whole"]


# ---- labelled files


def labelled(path: Path, task: str, classes: list[str], dtype: str = "float32") -> LabelledShard:
    """Return a writer of one-electrode samples."""
    return LabelledShard(
        path, description=DESCRIPTION | {"task": task, "classes": classes}, made={"seed": 3}, dtype=dtype
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


def test_samples_that_are_taken_back_leave_the_earlier_ones(tmp_path: Path) -> None:
    with labelled(tmp_path / "x.hdf5", "binary", ["a", "b"]) as writer:
        writer.append("train", np.ones((2, 1, 200)), [0, 1], recording="r1", subject="s")
        before = dict(writer.counts)
        writer.append("train", np.zeros((1, 1, 200)), [0], recording="r2", subject="s")
        writer.append("val", np.zeros((1, 1, 200)), [0], recording="r2", subject="s")
        writer.roll_back(before)
        writer.append("train", np.full((1, 1, 200), 3.0), [1], recording="r3", subject="s")
    with h5py.File(tmp_path / "x.hdf5") as file:
        assert list(file) == ["train"] and file["train/recording"].asstr()[:].tolist() == ["r1", "r1", "r3"]
        assert file["train/eeg"][:, 0, 0].tolist() == [1, 1, 3] and file["train/valid"].shape == (3, 1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_shards_join_to_the_file_that_one_writer_would_have_made(tmp_path: Path, dtype: str) -> None:
    eeg = noise(7, 1, 200).reshape(7, 1, 200)
    scan = SignalScan(["CZ"], 200)
    scan.add(eeg[0])

    def append(writer: LabelledShard, first: int, last: int, split: str) -> None:
        labels = np.arange(first, last) % 2
        writer.append(split, eeg[first:last], labels, recording=f"r{first}", subject="s")
        writer.describe(split, scan.result(), ["no notch at 50 Hz: the source has 100 Hz"])

    with labelled(tmp_path / "whole.hdf5", "binary", ["a", "b"], dtype) as writer:
        for first, last, split in ((0, 3, "train"), (3, 4, "val"), (4, 7, "train")):
            append(writer, first, last, split)
    with labelled(tmp_path / "1.hdf5", "binary", ["a", "b"], dtype) as writer:
        append(writer, 0, 3, "train")
        append(writer, 3, 4, "val")
    with labelled(tmp_path / "2.hdf5", "binary", ["a", "b"], dtype) as writer:
        append(writer, 4, 7, "train")
    description = DESCRIPTION | {"task": "binary", "classes": ["a", "b"]}
    parts = [tmp_path / "1.hdf5", tmp_path / "2.hdf5"]
    join_shards(parts, tmp_path / "x.hdf5", description=description, made={"seed": 3}, totals={"train": 6, "val": 1})
    with h5py.File(tmp_path / "whole.hdf5") as whole, h5py.File(tmp_path / "x.hdf5") as joined:
        assert dict(whole["train"].attrs) == dict(joined["train"].attrs)
        assert json.loads(joined["train"].attrs["notes"]) == {"no notch at 50 Hz: the source has 100 Hz": 2}
        assert {k: str(v) for k, v in whole.attrs.items()} == {k: str(v) for k, v in joined.attrs.items()}
        for split in ("train", "val"):
            assert set(whole[split]) == set(joined[split])
            for key, column in whole[split].items():
                np.testing.assert_array_equal(column[:], joined[split][key][:])
                assert (column.dtype, column.chunks) == (joined[split][key].dtype, joined[split][key].chunks)
