"""Makers on many recordings: limits, crashes, kills, resumption, several processes, a Dask cluster."""

import argparse
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dataset_maker import jobs, labelled, pipeline, pretraining, sandbox, worker
from dataset_maker.jobs import Spread, plan_jobs
from dataset_maker.pipeline import FilterSettings, Pipeline
from dataset_maker.sandbox import Limits
from eeg_data.quality import BINS, Quality
from errors import InputError, UsageError
from odd_maker import signal_of
from waiting import children, wait_for, wait_until, wait_until_gone

PLAIN = Pipeline(FilterSettings(None, None, None, 200.0))
LIMITS = Limits(seconds=30.0, gigabytes=3.0)


def write(folder: Path, **words: str) -> list[Path]:
    """Write recordings that behave as their words say."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.odd" for name in words]
    for path, word in zip(paths, words.values(), strict=True):
        path.write_text(word)
    return paths


def convert(paths: list[Path], output: Path, *, processes: int = 1, limits: Limits = LIMITS, **more: Any) -> None:
    """Convert recordings into pre-training files, unfiltered."""
    spread = Spread(processes, more.pop("dask", None), limits)
    pretraining.convert_recordings(
        paths, output, maker="tests.odd_maker", source="tests", pipeline=more.pop("pipeline", PLAIN), spread=spread
    )


def recordings(folder: Path) -> dict[str, np.ndarray]:
    """Return recording -> signal of all files of a folder; a recording that comes twice is an error."""
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.hdf5")):
        with h5py.File(path) as file:
            for name, group in file.items():
                assert name not in found
                found[name] = group["eeg"][:]
    return found


def assert_whole(folder: Path, paths: list[Path]) -> None:
    """Check that a folder holds exactly these recordings with their values, and nothing unfinished."""
    found = recordings(folder)
    assert found.keys() == {path.stem for path in paths}
    for path in paths:
        np.testing.assert_allclose(found[path.stem], signal_of(path), atol=1e-5)
    assert not [path for path in folder.rglob("*") if path.name.endswith((".part", ".scratch"))]


@pytest.mark.parametrize(
    ("word", "limits", "reason"),
    [
        ("crash", LIMITS, "makes its reader crash (exit code -11)"),
        ("hang", Limits(4.0, 3.0), "takes more than 4 s; raise --time_limit"),
        ("greedy", LIMITS, "needs more than 3 GB of memory; raise --memory_limit"),
        ("fault", LIMITS, "cannot be converted (TypeError in odd_maker.py, line"),
    ],
)
@pytest.mark.parametrize("later", ["", " later"])  # when its header is looked at, when it is converted
def test_a_recording_that_kills_its_reader_costs_only_itself(
    word: str, limits: Limits, reason: str, later: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    paths = write(tmp_path / "in", a="fine", b=word + later, c="fine", d="fine")
    with pytest.raises(InputError, match="1 of 4 recordings were left out"):
        convert(paths, tmp_path / "out", limits=limits)
    assert_whole(tmp_path / "out", [paths[0], *paths[2:]])
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith(f"left out: {paths[1]}: ") and reason in line and "Jane" not in printed.out + printed.err
    (entry,) = json.loads((tmp_path / "out.report.json").read_text())["left_out"]
    assert entry["path"] == str(paths[1]) and reason in entry["reason"]


def test_a_crash_within_a_job_of_several_recordings_loses_none_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(jobs, "JOBS", 1)
    paths = write(tmp_path / "in", a="fine", b="broken later", c="crash later", d="fine", e="crash later", f="fine")
    with pytest.raises(InputError, match="3 of 6 recordings were left out"):
        convert(paths, tmp_path / "out")
    assert_whole(tmp_path / "out", [paths[0], paths[3], paths[5]])
    assert len(list((tmp_path / "out").glob("*.hdf5"))) == 1
    assert len(capsys.readouterr().err.splitlines()) == 3  # each is named once, however often its job began again


def test_a_recording_that_was_mended_is_converted_when_the_maker_is_started_again(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    paths = write(tmp_path / "in", a="fine", b="broken later", c="fine")
    with pytest.raises(InputError, match="1 of 3 recordings were left out"):
        convert(paths, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.hdf5")}
    paths[1].write_text("fine")
    convert(paths, tmp_path / "out")
    assert_whole(tmp_path / "out", paths)
    assert "2 of 3 recordings were converted before" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert json.loads((tmp_path / "out.report.json").read_text())["converted"] == 3


def test_further_recordings_are_added_to_a_folder_and_the_old_ones_stay(tmp_path: Path) -> None:
    first = write(tmp_path / "in", b="fine", d="fine")
    convert(first, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.hdf5")}
    everything = sorted(first + write(tmp_path / "in", a="fine", c="fine"))
    convert(everything, tmp_path / "out")
    assert_whole(tmp_path / "out", everything)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())


def test_a_recording_that_changed_or_other_flags_do_not_double_it(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", a="fine", b="fine")
    convert(paths, tmp_path / "out")
    with pytest.raises(InputError, match="other flags"):
        convert(paths, tmp_path / "out", pipeline=Pipeline(FilterSettings(1.0, None, None, 200.0)))
    paths[0].write_text("fine ")
    with pytest.raises(InputError, match=r"holds .*a\.odd as it was before it changed"):
        convert(paths, tmp_path / "out")
    assert recordings(tmp_path / "out").keys() == {"a", "b"}


def test_a_shard_that_was_removed_or_cut_is_made_again(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", a="fine", b="fine", c="fine")
    convert(paths, tmp_path / "out")
    first, second, _ = sorted((tmp_path / "out").glob("*.hdf5"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:1000])
    convert(paths, tmp_path / "out")
    assert_whole(tmp_path / "out", paths)


def test_a_stop_between_a_shards_name_and_its_note_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "JOBS", 1)
    paths = write(tmp_path / "in", b="fine", d="fine")
    real = jobs.write_json

    def stopped(path: Path, values: Any) -> None:
        if path.parent.name == ".making" and path.suffix == ".json":
            raise KeyboardInterrupt
        real(path, values)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(jobs, "write_json", stopped)
        convert(paths, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.hdf5"))) == 1
    more = sorted(paths + write(tmp_path / "in", a="fine"))  # so that the job is another one
    convert(more, tmp_path / "out")
    assert_whole(tmp_path / "out", more)


def test_of_a_job_whose_note_does_not_fit_nothing_is_left_when_it_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "JOBS", 1)
    paths = write(tmp_path / "in", a="fine", b="swapped", c="fine")  # two montages, two files
    convert(paths, tmp_path / "out")
    first, second = sorted((tmp_path / "out").glob("*.hdf5"))
    second.unlink()
    (tmp_path / "in" / "0.odd").write_text("others")
    convert(sorted((tmp_path / "in").glob("*.odd")), tmp_path / "out")
    names = [name for path in (tmp_path / "out").glob("*.hdf5") for name in h5py.File(path)]
    assert sorted(names) == ["0", "a", "b", "c"] and not first.exists()


def test_recordings_of_equal_names_keep_them_when_one_goes(tmp_path: Path) -> None:
    one, two = (write(tmp_path / folder, rec="fine")[0] for folder in ("one", "two"))
    convert([one, two], tmp_path / "out")
    before = recordings(tmp_path / "out").keys()
    three = write(tmp_path / "three", rec="fine")[0]
    convert([two, three], tmp_path / "out")
    after = recordings(tmp_path / "out").keys()
    assert len(before) == 2 and before < after and len(after) == 3


SCRIPT = """
import signal
import sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background processes ignore
sys.path[:0] = [{root!r}, {tests!r}]
from test_jobs import convert
convert(sorted(Path({inputs!r}).glob("*.odd")), Path({output!r}), processes={processes})
"""


def start(inputs: Path, output: Path, processes: int = 2) -> subprocess.Popen:
    """Start a maker in a process of its own."""
    tests = Path(__file__).parent
    names = {"root": str(tests.parent), "tests": str(tests), "inputs": str(inputs), "output": str(output)}
    code = SCRIPT.format(**names, processes=processes)
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_maker_resumes_and_ends_with_the_files_of_one_never_killed(
    number: signal.Signals, tmp_path: Path
) -> None:
    held = dict.fromkeys(("r03", "r04"), "held later")  # so that it cannot end before
    paths = write(tmp_path / "in", r00="fine", r01="fine", r02="fine", **held)
    with start(tmp_path / "in", tmp_path / "out") as process:
        try:
            wait_until(lambda: any((tmp_path / "out").glob(".making/*.json")), "a finished recording")
            readers = children(process.pid)
            process.send_signal(number)
            assert process.wait(60) != 0
        finally:
            for name in held:
                (tmp_path / "in" / f"{name}.free").touch()
    for reader in readers:
        wait_until_gone(reader)
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.hdf5")}
    assert 1 <= len(done) < 5
    found = recordings(tmp_path / "out")  # whatever has a data file's name is whole
    assert all(np.allclose(eeg, signal_of(Path(f"{name}.odd")), atol=1e-5) for name, eeg in found.items())
    convert(paths, tmp_path / "out")
    assert_whole(tmp_path / "out", paths)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items())
    convert(paths, tmp_path / "once")
    names = [sorted(path.name for path in (tmp_path / folder).glob("*.hdf5")) for folder in ("out", "once")]
    assert names[0] == names[1]


def test_two_makers_do_not_write_into_one_folder_at_once(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", a="held later", b="fine")
    with start(tmp_path / "in", tmp_path / "out", processes=1) as process:
        try:
            wait_for(tmp_path / "in" / "a.looked")
            with pytest.raises(InputError, match="another maker is at work here"):
                convert(paths, tmp_path / "out")
        finally:
            (tmp_path / "in" / "a.free").touch()
        assert process.wait(60) == 0
    assert_whole(tmp_path / "out", paths)


def test_two_processes_give_the_files_of_one(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", **{f"r{n}": "fine" for n in range(5)})
    for processes in (1, 2):
        convert(paths, tmp_path / str(processes), processes=processes)
        assert_whole(tmp_path / str(processes), paths)
    names = [sorted(path.name for path in (tmp_path / folder).glob("*.hdf5")) for folder in ("1", "2")]
    assert names[0] == names[1]
    assert list(recordings(tmp_path / "2")) == [path.stem for path in paths]  # files sort as their recordings


def test_a_recording_whose_name_is_no_utf_8_is_converted_and_known_again(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / os.fsdecode(b"M\xfcller.odd")
    try:
        path.write_text("fine")
    except OSError:
        pytest.skip("this file system takes names of UTF-8 only")
    for _ in range(2):
        convert([path], tmp_path / "out")
    assert "1 of 1 recordings were converted before" in capsys.readouterr().out
    np.testing.assert_allclose(recordings(tmp_path / "out")["M_ller"], signal_of(path), atol=1e-4)
    report = json.loads((tmp_path / "out.report.json").read_text(encoding="utf-8"))
    assert report["converted"] == 1 and not report["left_out"]


def test_too_little_disk_is_refused_before_anything_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    paths = write(tmp_path / "in", a="fine")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 6500))
    with pytest.raises(InputError, match=r"about 6\.4 kB of disk needed, 6\.5 kB free"):
        convert(paths, tmp_path / "out")
    assert "about 6.4 kB of disk needed" in capsys.readouterr().out  # 2 electrodes, 800 samples of 4 bytes
    assert not list((tmp_path / "out").glob("*.hdf5"))


def test_limits_that_cannot_be_are_wrong_usage() -> None:
    times = [("time", (seconds, 4.0)) for seconds in (0.0, float("nan"), float("inf"))]
    for flag, wrong in (*times, ("memory", (10.0, 0.5))):
        with pytest.raises(UsageError, match=f"--{flag}_limit"):
            Limits(*wrong)
    args = argparse.Namespace(jobs=0, dask=None, time_limit=1.0, memory_limit=4.0)
    with pytest.raises(UsageError, match="--jobs 0"):
        Spread.from_args(args)


def test_jobs_follow_from_the_recordings_and_are_at_most_64_for_small_sets() -> None:
    tasks = [{"path": f"{n}", "stamps": [[1000 + n, 0]]} for n in range(1000)]
    found = plan_jobs(tasks)
    assert [task for job in found for task in job] == tasks and 60 <= len(found) <= 64
    large = plan_jobs([{"path": f"{n}", "stamps": [[200 << 20, 0], [100 << 20, 0]]} for n in range(1000)])
    assert {len(job) for job in large} == {2}
    assert plan_jobs([]) == [] and len(plan_jobs([{"path": "nowhere", "stamps": []}] * 3)) == 1


def make_labelled(paths: list[Path], output: Path, **more: Any) -> None:
    """Convert recordings into a labelled set of one-second samples; those named v... are for validation."""
    args = argparse.Namespace(
        output=output, dtype="float32", jobs=1, dask=None, time_limit=30.0, memory_limit=3.0, **more.pop("flags", {})
    )
    tasks = [
        {"path": str(p), "recording": p.stem, "subject": p.stem[0], "split": "val" if p.stem[0] == "v" else "train"}
        for p in paths
    ]
    data_set = labelled.DataSet("Odd", **({"classes": ("a", "b"), "window": 1, "made": {"source": "tests"}} | more))
    labelled.make(args, "tests.odd_maker", data_set, tasks)


def test_a_labelled_file_holds_the_recordings_in_order_their_rows_in_one_order_and_counts_what_it_left_out(
    tmp_path: Path,
) -> None:
    paths = write(tmp_path / "in", a="fine", b="swapped", c="others", d="broken", v="fine")
    with pytest.raises(InputError, match="2 of 5 recordings were left out"):
        make_labelled(paths, tmp_path / "x.hdf5", expected={"train": 8, "val": 4, "test": 0})
    with h5py.File(tmp_path / "x.hdf5") as file:
        assert list(file) == ["train", "val"] and list(file.attrs["chOrder"]) == ["CZ", "PZ"]
        train = file["train"]
        assert train["recording"].asstr()[:].tolist() == ["a"] * 4 + ["b"] * 4
        assert train["subject"].asstr()[:].tolist() == ["a"] * 4 + ["b"] * 4
        assert train["label"][:].tolist() == [0, 1] * 4 and train["eeg"].chunks == (1, 2, 200)
        assert train["valid"].shape == (8, 1) and train["valid"][:].all()
        expected = [signal_of(path).reshape(2, 4, 200).swapaxes(0, 1) for path in paths[:2]]
        np.testing.assert_allclose(train["eeg"][:], np.concatenate(expected), atol=1e-5)
        assert json.loads(file.attrs["made"])["left_out"] == 2
    report = json.loads((tmp_path / "x.report.json").read_text())
    assert report["splits"]["train"] == {"recordings": 2, "subjects": 2, "samples": 8, "labels": {"a": 4, "b": 4}}
    assert report["counts"] == {"windows seen": 12} and report["expected_samples"]["train"] == 8
    reasons = {Path(entry["path"]).stem: entry["reason"] for entry in report["left_out"]}
    assert "lacks PZ and has OZ besides" in reasons["c"] and "cannot be read" in reasons["d"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "x.hdf5", "x.report.json"]
    with pytest.raises(InputError, match="made without 2 recordings"):
        make_labelled(paths, tmp_path / "x.hdf5")


def test_a_recording_that_fails_halfway_leaves_no_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "JOBS", 1)
    paths = write(tmp_path / "in", a="fine", b="labels", c="fine", v="fine")
    with pytest.raises(InputError, match="1 of 4 recordings were left out"):
        make_labelled(paths, tmp_path / "x.hdf5")
    with h5py.File(tmp_path / "x.hdf5") as file:
        assert file["train/recording"].asstr()[:].tolist() == ["a"] * 4 + ["c"] * 4
        assert {len(column) for column in file["train"].values()} == {8}
        assert json.loads(file["train"].attrs["quality"])["seconds"] == 8  # of these two alone


def test_a_finished_labelled_file_is_recognised_and_another_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    paths = write(tmp_path / "in", a="fine", v="fine")
    make_labelled(paths, tmp_path / "x.hdf5")
    stamp = (tmp_path / "x.hdf5").stat().st_mtime_ns
    make_labelled(paths, tmp_path / "x.hdf5")
    assert "already made from these recordings" in capsys.readouterr().out
    with pytest.raises(InputError, match="exists already"):
        make_labelled(paths, tmp_path / "x.hdf5", classes=("c", "d"))
    assert (tmp_path / "x.hdf5").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("starts", [[0, 200, 600], [1, 199, 400], [-150, -200, 900, 1100, 960, 780]])
@pytest.mark.parametrize("first", [True, False])
def test_a_second_of_a_window_is_valid_if_none_of_its_samples_lies_in_an_invalid_one(
    starts: list[int], first: bool
) -> None:
    length = 1130  # the last second is a part of one
    valid = np.array([first, True, False, True, True, not first])
    by_sample = np.repeat(valid, 200)[:length]
    prepared = pipeline.Prepared(["CZ"], 200.0, length, None, Quality(valid, {}, {}, {}, np.zeros(BINS, int)), {})
    windows = np.array(starts)[:, None] + np.arange(400)  # wrapping round the ends
    expected = by_sample[windows % length].reshape(len(starts), 2, 200).all(axis=2)
    np.testing.assert_array_equal(worker.valid_seconds(prepared, np.array(starts), 400), expected)
    prepared.eeg = np.arange(length, dtype=float)[None]
    for start, window in zip(starts, windows, strict=True):
        np.testing.assert_array_equal(worker.cut(prepared, start, 400)[0], window % length)


def test_a_recording_that_is_gone_when_a_single_file_is_continued_is_not_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "JOBS", 1)
    paths = write(tmp_path / "in", a="fine", b="fine", v="fine")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(labelled, "join_shards", interrupt)
        make_labelled(paths, tmp_path / "x.hdf5")
    make_labelled([paths[0], paths[2]], tmp_path / "x.hdf5")
    with h5py.File(tmp_path / "x.hdf5") as file:
        assert set(file["train/recording"].asstr()[:]) == {"a"} and len(file["train/label"]) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "x.hdf5", "x.report.json"]


def interrupt(*args: Any, **kwargs: Any) -> None:
    """Stand for Ctrl-C."""
    raise KeyboardInterrupt


def test_a_labelled_folder_with_recordings_that_are_gone_or_with_other_files_is_refused(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", a="fine", b="fine", v="fine")
    make_labelled(paths, tmp_path / "set")
    with pytest.raises(InputError, match="holds 1 recordings that are not among these"):
        make_labelled([paths[0], paths[2]], tmp_path / "set")
    with pytest.raises(InputError, match="holds other files already"):
        make_labelled(paths, tmp_path / "in")


def test_what_could_not_be_done_to_a_recording_stands_in_the_labelled_file(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", a="fine", v="fine")
    make_labelled(paths, tmp_path / "x.hdf5", flags={"h_freq": 150.0})  # of 200 Hz
    with h5py.File(tmp_path / "x.hdf5") as file:
        assert json.loads(file["train"].attrs["notes"]) == {"no low-pass at 150 Hz: the source has 200 Hz": 1}


def test_no_space_left_stops_the_maker_and_blames_no_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = worker.Worker()
    full.folder = tmp_path

    def no_space(task: dict) -> None:
        raise OSError(errno.ENOSPC, "Jane Roe")

    monkeypatch.setattr(full, "convert", no_space)
    answer = worker.answer_to(full, {"method": "convert", "arguments": {"task": {"path": "a"}}})
    assert answer == {"stop": f"{tmp_path}: no space left; free some and start the same command again"}

    def stops(box: Any, method: str, **arguments: Any) -> Any:
        if method == "convert":
            raise UsageError("no space left")
        return real(box, method, **arguments)

    real = sandbox.Sandbox.call
    monkeypatch.setattr(sandbox.Sandbox, "call", stops)
    with pytest.raises(UsageError, match="no space left"):
        convert(write(tmp_path / "in", a="fine"), tmp_path / "out")


def test_a_process_that_does_not_start_stops_the_maker_and_blames_no_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(sandbox, "WORKER", tmp_path / "worker.py")
    with pytest.raises(UsageError, match=r"does not start \(exit code 3\): raise --memory_limit"):
        convert(write(tmp_path / "in", a="fine"), tmp_path / "out", limits=Limits(30.0, 2.5))  # no idle one has these


def test_a_labelled_folder_keeps_its_shards(tmp_path: Path) -> None:
    paths = write(tmp_path / "in", a="fine", b="fine", v="fine")
    make_labelled(paths, tmp_path / "set")
    shards = sorted((tmp_path / "set").glob("*.hdf5"))
    assert len(shards) == 3 and (tmp_path / "set.report.json").exists()
    found = []
    for shard in shards:
        with h5py.File(shard) as file:
            assert file.attrs["name"] == "Odd" and list(file.attrs["classes"]) == ["a", "b"]
            found += [name for split in file.values() for name in split["recording"].asstr()[::4]]
    assert found == ["a", "b", "v"]  # whatever their job's digest


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"a": "same", "v": "fine"}, "all 4 training samples are of one class, a"),
        ({"v": "fine"}, "no recording gives a sample for training"),
        ({"a": "broken"}, "no recording gives a sample"),
    ],
)
def test_a_set_that_nobody_could_train_on_is_not_made(words: dict[str, str], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        make_labelled(write(tmp_path / "in", **words), tmp_path / "x.hdf5")
    assert not (tmp_path / "x.hdf5").exists() and (tmp_path / "x.report.json").exists()


def test_a_dask_cluster_of_two_workers_gives_the_same_files(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    paths = write(tmp_path / "in", **{f"r{n}": "fine" for n in range(4)}, s="crash later")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "processes": True}
    with distributed.LocalCluster(**options) as cluster, pytest.raises(InputError, match="1 of 5"):
        convert(paths, tmp_path / "out", dask=cluster.scheduler_address)
    assert_whole(tmp_path / "out", paths[:4])
    with pytest.raises(InputError, match="1 of 5"):
        convert(paths, tmp_path / "here")
    names = [sorted(path.name for path in (tmp_path / folder).glob("*.hdf5")) for folder in ("out", "here")]
    assert names[0] == names[1]


def test_a_dask_address_where_nothing_answers_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(jobs, "DASK_SECONDS", 1)
    paths = write(tmp_path / "in", a="fine")
    with pytest.raises(UsageError, match="no scheduler answers"):
        convert(paths, tmp_path / "out", dask="tcp://127.0.0.1:1")


def test_an_idle_process_ends_by_itself_and_one_that_does_not_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = sandbox.Sandbox(Limits())
    assert box.call("survey", maker="dataset_maker.make_eegmat", tasks=[], pipeline=Pipeline().to_json()) == []
    box.leave()
    assert box._process.returncode == 0
    (tmp_path / "worker.py").write_text(
        "print({})\nprint('{\"result\": 1}', flush=True)\nimport time\ntime.sleep(1000)"
    )
    monkeypatch.setattr(sandbox, "WORKER", tmp_path / "worker.py")
    monkeypatch.setattr(sandbox, "LEAVE_SECONDS", 0.1)
    box = sandbox.Sandbox(Limits())
    assert box.call("files") == 1
    box.leave()
    assert box._process.returncode == -signal.SIGKILL


def test_a_reader_that_crashes_leaves_no_core_file_with_what_headers_say() -> None:
    box = sandbox.Sandbox(Limits())
    assert box.call("survey", maker="dataset_maker.make_eegmat", tasks=[], pipeline=Pipeline().to_json()) == []
    assert resource.prlimit(box._process.pid, resource.RLIMIT_CORE) == (0, 0)
    box.close()


def test_a_process_ends_when_its_maker_is_gone() -> None:
    code = """
import time
from dataset_maker.sandbox import Limits, sandbox
with sandbox(Limits()) as box:
    print(box._process.pid, flush=True)
    time.sleep(60)
"""
    root = Path(__file__).parents[1]
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE)
    assert process.stdout
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    wait_until_gone(pid)
