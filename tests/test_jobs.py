"""Makers on many recordings: limits, crashes, kills, resumption, several processes, a Dask cluster."""

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import h5py
import numpy as np
import pytest

from dataset_maker import jobs, making, pool
from dataset_maker.jobs import plan_jobs
from dataset_maker.make_h5dataset_for_pretrain import convert_recordings
from dataset_maker.pipeline import Pipeline
from dataset_maker.writers import DataSet
from errors import InputError, UsageError
from odd_maker import signal_of
from waiting import children, wait_for, wait_until, wait_until_gone

FLAGS = {"jobs": 1, "dask": None, "time_limit": 120.0, "memory_limit": 2.0, "dtype": "float32"}  # no filters


def write(folder: Path, **words: str) -> list[Path]:
    """Write recordings that behave as their words say."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.odd" for name in words]
    for path, word in zip(paths, words.values(), strict=True):
        path.write_text(word)
    return paths


def convert(paths: list[Path], output: Path, **flags: Any) -> None:
    """Convert recordings into pre-training files."""
    args = argparse.Namespace(output=output, **(FLAGS | flags))
    convert_recordings(args, paths, maker="tests.odd_maker", source="tests")


def recordings(folder: Path) -> dict[str, np.ndarray]:
    """Return recording -> signal of all files of a folder; a recording that comes twice is an error."""
    signals: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.hdf5")):
        with h5py.File(path) as file:
            for name, group in file.items():
                assert name not in signals
                signals[name] = group["eeg"][:]
    return signals


def content(folder: Path) -> dict[str, bytes]:
    """Return name -> bytes of a folder's data files."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.hdf5"))}


def assert_whole(folder: Path, paths: list[Path]) -> None:
    """Check that a folder holds exactly these recordings with their values, and nothing unfinished."""
    signals = recordings(folder)
    assert signals.keys() == {path.stem for path in paths}
    for path in paths:
        np.testing.assert_allclose(signals[path.stem], signal_of(path), atol=1e-5)
    assert not list(folder.rglob("*.part")) and not list((folder / ".making/parts").iterdir())


def test_a_recording_that_kills_its_reader_costs_only_itself(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    reasons = {
        "crash": "makes its reader crash (exit code -11)",
        "hang": "--time_limit",
        "greedy": "--memory_limit",
        "fault": "cannot be converted (TypeError in odd_maker.py, line",
        "gone": "cannot be converted (FileNotFoundError in odd_maker.py, line",
    }
    paths = write(tmp_path / "in", a="fine", **{word: word for word in reasons}, z="fine")
    with pytest.raises(InputError, match="5 of 7 recordings were left out"):
        convert(paths, tmp_path / "out", jobs=2, time_limit=8.0)
    assert_whole(tmp_path / "out", [paths[0], paths[-1]])
    printed = capsys.readouterr()
    left_out = json.loads((tmp_path / "out.report.json").read_text())["left_out"]
    assert [entry["path"] for entry in left_out] == [str(path) for path in paths[1:-1]]
    assert sorted(printed.err.splitlines()) == sorted(f"left out: {entry['reason']}" for entry in left_out)
    for entry, path in zip(left_out, paths[1:-1], strict=True):
        assert entry["reason"].startswith(f"{path}: ") and reasons[path.stem] in entry["reason"]
    assert "Jane" not in printed.out + printed.err


def test_processes_that_cannot_start_stop_the_maker_and_blame_no_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_start_reader", os._exit)
    with pytest.raises(UsageError, match="--memory_limit"):
        convert(write(tmp_path / "in", a="fine"), tmp_path / "out")


def test_the_memory_limit_is_for_the_recording_and_not_for_what_was_mapped_before(tmp_path: Path) -> None:
    code = """
import mmap
from dataset_maker import pool
libraries = mmap.mmap(-1, 3 << 30)
pool._end_with_maker = lambda: None
pool._start_reader(1.0)
bytearray(1 << 29)
try:
    bytearray(2 << 30)
except MemoryError:
    raise SystemExit(3)
"""
    root = Path(pool.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 3


def test_a_recording_that_was_mended_is_converted_and_the_others_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    paths = write(tmp_path / "in", a="fine", b="broken", c="fine")
    with pytest.raises(InputError, match="1 of 3 recordings were left out"):
        convert(paths, tmp_path / "out")
    before = content(tmp_path / "out")
    paths[1].write_text("fine")
    more = sorted(paths + write(tmp_path / "in", d="fine"))
    convert(more, tmp_path / "out")
    assert_whole(tmp_path / "out", more)
    assert "2 of 4 recordings were converted before" in capsys.readouterr().out
    assert before.items() <= content(tmp_path / "out").items()
    assert json.loads((tmp_path / "out.report.json").read_text())["converted"] == 4


def test_a_recording_that_changed_or_other_flags_do_not_double_it(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", a="fine", b="fine")
    convert(paths, tmp_path / "out")
    with pytest.raises(InputError, match="other flags"):
        convert(paths, tmp_path / "out", l_freq=1.0)
    paths[0].write_text("fine ")
    with pytest.raises(InputError, match=r"holds .*a\.odd, which has changed"):
        convert(paths, tmp_path / "out")
    assert recordings(tmp_path / "out").keys() == {"a", "b"}


def test_a_shard_that_was_removed_or_cut_is_made_again_and_its_job_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "JOBS", 1)
    paths = write(tmp_path / "in", a="fine", b="swapped", c="fine")  # one job of two montages
    convert(paths, tmp_path / "out")
    first, second = sorted((tmp_path / "out").glob("*.hdf5"))
    second.write_bytes(second.read_bytes()[:1000])
    convert(sorted(paths + write(tmp_path / "in", d="others")), tmp_path / "out")
    assert recordings(tmp_path / "out").keys() == {"a", "b", "c", "d"} and not first.exists()


@pytest.mark.parametrize(("at", "shards"), [("converted", 0), ("joined", 1), ("noted", 1), ("removed", 1)])
def test_a_maker_that_is_stopped_anywhere_ends_with_the_files_of_one_never_stopped(
    at: str, shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "JOBS", 2)
    paths = write(tmp_path / "in", a="fine", b="fine", c="fine", d="fine")
    convert(paths, tmp_path / "once")
    joins: list[Any] = []

    def interrupted(real: Callable, calls: int) -> Callable:
        def call(*args: Any, **options: Any) -> Any:
            joins.append(args)
            if len(joins) == calls:
                raise KeyboardInterrupt
            return real(*args, **options)

        return call

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if at == "noted":  # the shard is written, its name is not given yet
            patch.setattr(jobs, "write_json", interrupted(jobs.write_json, 6))  # after 4 parts and a shard
        elif at == "removed":  # of the first shard's parts one is removed: 6 files were written aside before
            patch.setattr(Path, "unlink", interrupted(Path.unlink, 8))
        elif at == "joined":
            patch.setattr(jobs.writers, "join", interrupted(jobs.writers.join, 2))
        else:
            patch.setattr(jobs.pool, "result_of", interrupted(jobs.pool.result_of, 3))
        convert(paths, tmp_path / "out")
    assert len(content(tmp_path / "out")) == shards
    convert(paths, tmp_path / "out")
    assert_whole(tmp_path / "out", paths)
    assert content(tmp_path / "out") == content(tmp_path / "once")


SCRIPT = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background processes ignore
sys.path[:0] = [{root!r}, {tests!r}]
from errors import run_script
from test_jobs import convert
run_script(lambda args: convert(sorted(Path({inputs!r}).glob("*.odd")), Path({output!r}), jobs=2), None)
"""


def start(inputs: Path, output: Path) -> subprocess.Popen:
    """Start a maker in a process of its own."""
    tests = Path(__file__).parent
    code = SCRIPT.format(root=str(tests.parent), tests=str(tests), inputs=str(inputs), output=str(output))
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes below a process."""
    return [one for child in children(pid) for one in (child, *descendants(child))]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_killed_maker_takes_its_readers_along_and_goes_on_where_it_was(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    held = dict.fromkeys(("r03", "r04"), "held")  # so that it cannot end before
    paths = write(tmp_path / "in", r00="fine", r01="fine", r02="fine", **held)
    folder = tmp_path / "out" / ".making" / "parts"
    with start(tmp_path / "in", tmp_path / "out") as process:
        wait_until(lambda: len(list(folder.glob("*.json"))) == 3, "three recordings")
        readers = descendants(process.pid)
        process.send_signal(number)
        assert process.wait(60) == code
        assert process.stderr
        lines = process.stderr.read().splitlines()
    assert len(lines) == 1 or number == signal.SIGKILL, lines
    for reader in readers:  # though nobody frees what they wait for
        wait_until_gone(reader)
    for name in held:
        (tmp_path / "in" / f"{name}.free").touch()
    parts = {path: path.stat().st_mtime_ns for path in folder.glob("*.hdf5")}
    assert len(parts) == 3 and not content(tmp_path / "out")
    convert(paths, tmp_path / "out")
    assert_whole(tmp_path / "out", paths)
    stamps = {path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.hdf5")}
    assert set(parts.values()) <= stamps  # they were renamed, not made again


def test_two_makers_do_not_write_into_one_folder_at_once(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", a="held", b="fine")
    with start(tmp_path / "in", tmp_path / "out") as process:
        try:
            wait_for(tmp_path / "in" / "a.read")
            with pytest.raises(InputError, match="another maker is at work here"):
                convert(paths, tmp_path / "out")
        finally:
            (tmp_path / "in" / "a.free").touch()
        assert process.wait(120) == 0
    assert_whole(tmp_path / "out", paths)


def test_any_number_of_processes_and_any_run_give_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "JOBS", 2)
    paths = write(tmp_path / "in", **{f"r{n}": "fine" for n in range(5)})
    for folder, processes in (("a", 1), ("b", 2), ("c", 3)):
        convert(paths, tmp_path / folder, jobs=processes)
    assert content(tmp_path / "a") == content(tmp_path / "b") == content(tmp_path / "c")
    assert list(recordings(tmp_path / "a")) == [path.stem for path in paths]  # files sort as their recordings


def test_a_recording_whose_name_is_no_utf_8_is_converted_and_known_again(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / os.fsdecode(b"M\xfcller.odd")
    path.write_text("fine")
    for _ in range(2):
        convert([path], tmp_path / "out")
    assert "1 of 1 recordings were converted before" in capsys.readouterr().out
    assert recordings(tmp_path / "out").keys() == {"M_ller"}


def test_no_space_left_stops_the_maker_and_blames_no_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        convert(write(tmp_path / "in", a="full"), tmp_path / "out")
    assert not content(tmp_path / "out")
    # The file cannot even be begun.
    monkeypatch.setattr(jobs, "PretrainingShard", Mock(side_effect=OSError(errno.ENOSPC, "no space")))
    (task,) = jobs.stamped([{"path": tmp_path / "in" / "a.odd", "recording": "a"}])
    with pytest.raises(UsageError, match="cannot be written"):
        jobs.convert(jobs.Plan("tests.odd_maker", Pipeline(), tmp_path / "out", {}), task)


@pytest.mark.parametrize("wrong", [{"jobs": 0}, {"time_limit": np.nan}, {"memory_limit": 0.1}])
def test_limits_that_cannot_be_are_wrong_usage(wrong: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(wrong))}"):
        convert(write(tmp_path / "in", a="fine"), tmp_path / "out", **wrong)


def test_jobs_follow_from_the_recordings_and_are_at_most_64_for_small_sets() -> None:
    tasks = [{"path": f"{n}", "stamps": [[1000 + n, 0]]} for n in range(1000)]
    planned = plan_jobs(tasks)
    assert [task for job in planned for task in job] == tasks and 60 <= len(planned) <= 64
    large = plan_jobs([{"path": f"{n}", "stamps": [[200 << 20, 0], [100 << 20, 0]]} for n in range(1000)])
    assert {len(job) for job in large} <= {1, 2}
    assert plan_jobs([]) == [] and len(plan_jobs([{"path": "nowhere", "stamps": []}] * 3)) == 1


def test_a_dask_cluster_of_two_workers_gives_the_same_files(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    paths = write(tmp_path / "in", **{f"r{n}": "fine" for n in range(4)}, s="crash")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "processes": True}
    with distributed.LocalCluster(**options) as cluster, pytest.raises(InputError, match="1 of 5"):
        convert(paths, tmp_path / "out", dask=cluster.scheduler_address)
    with pytest.raises(InputError, match="1 of 5"):
        convert(paths, tmp_path / "here")
    assert_whole(tmp_path / "here", paths[:4])
    # A worker may still compute what a lost one had finished: what it writes into `.making` is nobody's.
    assert content(tmp_path / "out") == content(tmp_path / "here")


# ---- labelled sets


def make_labelled(paths: list[Path], output: Path, classes: tuple[str, ...] = ("a", "b"), **flags: Any) -> None:
    """Convert recordings into a labelled set of one-second samples; those named v... are for validation."""
    args = argparse.Namespace(output=output, **(FLAGS | flags))
    tasks = [
        {"path": str(p), "recording": p.stem, "subject": p.stem[0], "split": "val" if p.stem[0] == "v" else "train"}
        for p in paths
    ]
    data_set = DataSet("Odd", classes, window=1, made={"source": "tests"})
    making.make(args, "tests.odd_maker", data_set, tasks)


def test_a_labelled_file_holds_the_recordings_in_order_their_rows_in_one_order_and_counts_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    paths = write(tmp_path / "in", a="fine", b="swapped", c="others", d="broken", e="labels", v="fine")
    with pytest.raises(InputError, match="3 of 6 recordings were left out"):
        make_labelled(paths, tmp_path / "x.hdf5")
    with h5py.File(tmp_path / "x.hdf5") as file:
        assert list(file) == ["train", "val"] and list(file.attrs["chOrder"]) == ["CZ", "PZ"]
        train = file["train"]
        assert train["recording"].asstr()[:].tolist() == ["a"] * 4 + ["b"] * 4
        assert train["subject"].asstr()[:].tolist() == ["a"] * 4 + ["b"] * 4
        assert train["label"][:].tolist() == [0, 1] * 4 and train["eeg"].chunks == (1, 2, 200)
        assert train["valid"].shape == (8, 1) and train["valid"][:].all()
        expected = [signal_of(path).reshape(2, 4, 200).swapaxes(0, 1) for path in paths[:2]]
        np.testing.assert_allclose(train["eeg"][:], np.concatenate(expected), atol=1e-5)
        assert json.loads(file.attrs["made"])["left_out"] == 3
        assert json.loads(train.attrs["quality"])["seconds"] == 8  # of a and b alone
    report = json.loads((tmp_path / "x.report.json").read_text())
    assert report["splits"]["train"] == {"recordings": 2, "subjects": 2, "samples": 8, "labels": {"a": 4, "b": 4}}
    assert report["counts"] == {"windows seen": 12}
    reasons = {Path(entry["path"]).stem: entry["reason"] for entry in report["left_out"]}
    assert "lacks PZ and also has OZ" in reasons["c"] and "cannot be read" in reasons["d"] and "7" in reasons["e"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "x.hdf5", "x.report.json"]
    with pytest.raises(InputError, match="made without 3 recordings"):
        make_labelled(paths, tmp_path / "x.hdf5")


def test_a_finished_labelled_file_is_recognised_and_another_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    paths = write(tmp_path / "in", a="fine", v="fine")
    make_labelled(paths, tmp_path / "x.hdf5", h_freq=150.0)  # of 200 Hz
    with h5py.File(tmp_path / "x.hdf5") as file:
        assert json.loads(file["train"].attrs["notes"]) == {"no low-pass at 150 Hz: the source has 200 Hz": 1}
    stamp = (tmp_path / "x.hdf5").stat().st_mtime_ns
    make_labelled(paths, tmp_path / "x.hdf5", h_freq=150.0)
    assert "already made from these recordings" in capsys.readouterr().out
    with pytest.raises(InputError, match="exists already"):
        make_labelled(paths, tmp_path / "x.hdf5", classes=("c", "d"))
    assert (tmp_path / "x.hdf5").stat().st_mtime_ns == stamp


def test_a_single_file_goes_on_where_it_stopped_without_a_recording_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    paths = write(tmp_path / "in", a="fine", b="fine", v="fine")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(making, "join", Mock(side_effect=KeyboardInterrupt))
        make_labelled(paths, tmp_path / "x.hdf5")
    (tmp_path / ".x.hdf5.1.part").touch()  # as a kill leaves it
    with monkeypatch.context() as patch, pytest.raises(BrokenPipeError):
        patch.setattr(making, "_show", Mock(side_effect=BrokenPipeError))  # as after `| head -n 1`
        make_labelled([paths[0], paths[2]], tmp_path / "x.hdf5")
    assert "2 of 2 recordings were converted before" in capsys.readouterr().out
    with h5py.File(tmp_path / "x.hdf5") as file:
        assert set(file["train/recording"].asstr()[:]) == {"a"} and len(file["train/label"]) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "x.hdf5", "x.report.json"]


def test_a_labelled_folder_keeps_its_shards_and_refuses_recordings_that_are_gone_and_other_files(
    tmp_path: Path,
) -> None:
    paths = write(tmp_path / "in", a="fine", b="fine", v="fine")
    make_labelled(paths, tmp_path / "set")
    names = []
    for shard in sorted((tmp_path / "set").glob("*.hdf5")):
        with h5py.File(shard) as file:
            assert file.attrs["name"] == "Odd" and list(file.attrs["classes"]) == ["a", "b"]
            names += [name for split in file.values() for name in split["recording"].asstr()[::4]]
    assert names == ["a", "b", "v"] and (tmp_path / "set.report.json").exists()
    with pytest.raises(InputError, match=r"holds .*b\.odd, .* is not among these"):
        make_labelled([paths[0], paths[2]], tmp_path / "set")
    with pytest.raises(InputError, match="holds other files already"):
        make_labelled(paths, tmp_path / "in")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"a": "same", "v": "fine"}, "all 4 training samples are of one class, a"),
        ({"v": "fine", "a": "broken"}, "no recording gives a sample for training"),
    ],
)
def test_a_set_that_nobody_could_train_on_is_not_made(words: dict[str, str], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        make_labelled(write(tmp_path / "in", **words), tmp_path / "x.hdf5")
    assert not (tmp_path / "x.hdf5").exists() and (tmp_path / "x.report.json").exists()
