"""The pipeline and the pre-training maker: golden values, formats, broken recordings, the command line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dataset_maker import make_h5dataset_for_pretrain, pipeline
from dataset_maker.pipeline import FilterSettings, Pipeline, read_raw
from maker_helpers import brainvision, edf, eeglab, noise, opened, raw_of, run_maker, save

REPOSITORY = Path(__file__).resolve().parents[1]
UNFILTERED = Pipeline(FilterSettings(None, None, None, None))
NO_FILTERS = ("--l_freq", 0, "--h_freq", 0, "--notch", 0)


def convert(source: Path, output: Path, *words: Any) -> int:
    """Run the pre-training maker; returns its exit code."""
    return run_maker(make_h5dataset_for_pretrain, "--input", source, "--output", output, *words)


def datasets(folder: Path) -> dict[str, h5py.Dataset]:
    """Return recording -> dataset of all files of a folder."""
    return {name: eeg for recordings in opened(folder).values() for name, eeg in recordings.items()}


# ---- signals


def test_recordings_become_the_golden_values_in_a_file_of_their_montage(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    golden = np.load(REPOSITORY / "tests" / "golden" / "preprocessing.npz")
    (tmp_path / "in").mkdir()
    for path in (shared / "eegmat" / "Subject00_2.edf", shared / "eegmmidb" / "S001R03.edf"):
        (tmp_path / "in" / path.name).symlink_to(path)
    assert convert(tmp_path / "in", tmp_path / "out") == 0
    files = {name[:2]: next(iter(recordings.items())) for name, recordings in opened(tmp_path / "out").items()}
    for channels, key, stem in (("19", "eegmat", "Subject00_2"), ("64", "eegmmidb", "S001R03")):
        group, eeg = files[channels]
        assert group == stem and eeg.dtype == np.float32 and eeg.chunks == (int(channels), 200)
        np.testing.assert_array_equal(eeg.shape, golden[f"{key}_shape"])
        np.testing.assert_allclose(eeg[:6, :200], golden[f"{key}_first"], atol=1e-3)
        np.testing.assert_allclose(eeg[:6, 6000:6400], golden[f"{key}_middle"], atol=1e-3)
        np.testing.assert_allclose(eeg[:].std(1), golden[f"{key}_std"], atol=1e-3)
        plain = [name.replace("EEG ", "").rstrip(".").upper() for name in golden[f"{key}_channels"]]
        assert list(eeg.attrs["chOrder"]) == plain
        assert [eeg.attrs[name] for name in ("rsFreq", "lFreq", "hFreq", "notch")] == [200, 0.1, 75, 50]
    printed = capsys.readouterr().out
    assert "'ECG ECG' (1x), 'EEG A2-A1' (1x)" in printed and printed.count("1 recordings, 0.0") == 2


def test_a_source_too_slow_for_75_and_50_hz_is_filtered_as_far_as_it_goes_and_says_so(tmp_path: Path) -> None:
    time = np.arange(60 * 100) / 100  # s
    raw = raw_of(["CZ"], 100, (200 + 30 * np.sin(2 * np.pi * 10 * time))[None])
    raw.save(tmp_path / "slow_raw.fif", fmt="double", verbose="error")
    assert convert(tmp_path, tmp_path / "out") == 0
    eeg = datasets(tmp_path / "out")["slow_raw"]
    assert eeg.shape == (1, 12000) and eeg[0, 3000:9000].std() * np.sqrt(2) == pytest.approx(30, rel=0.01)
    assert abs(eeg[0, 3000:9000].mean()) < 0.1  # the high-pass still works
    attributes = {name: eeg.attrs[name] for name in ("rsFreq", "sourceFreq", "lFreq", "hFreq", "notch")}
    assert attributes == {"rsFreq": 200, "sourceFreq": 100, "lFreq": 0.1, "hFreq": 50, "notch": 0}
    assert "no low-pass at 75 Hz" in eeg.attrs["notes"] and "no notch at 50 Hz" in eeg.attrs["notes"]


def test_seconds_that_are_not_finite_are_bridged_and_marked_the_others_stay_as_they_are() -> None:
    eeg = noise(2, 30, 250)
    holes = eeg.copy()
    holes[1, 2600:2900] = np.nan  # 10.4 to 11.6 s
    holes[0, 5000] = np.inf  # 20 s
    whole = pipeline.prepare(raw_of(["CZ", "PZ"], 250, eeg), Pipeline())
    prepared = pipeline.prepare(raw_of(["CZ", "PZ"], 250, holes), Pipeline())
    assert np.flatnonzero(~prepared.quality.valid).tolist() == [10, 11, 20]
    assert prepared.quality.not_finite == {"CZ": 1, "PZ": 2}
    assert np.isfinite(prepared.eeg).all()
    apart = abs(prepared.eeg - whole.eeg)
    assert apart[:, :1800].max() < 3 and apart[:, 4800:].max() < 3  # uV; the high-pass filter still feels the holes
    assert apart[1, 2100:2300].max() > 20


def test_float16_files_hold_the_same_to_their_precision_or_leave_the_recording_out(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    eeg = noise(1, 5, 200)
    for name, extra in (("a", 0), ("b", 70_000)):
        eeg[0, 500] += extra
        raw_of(["CZ"], 200, eeg).save(tmp_path / f"in/{name}_raw.fif", fmt="double", verbose="error")
    assert convert(tmp_path / "in", tmp_path / "out", *NO_FILTERS, "--dtype", "float16") == 1
    narrow = datasets(tmp_path / "out")
    assert narrow.keys() == {"a_raw"} and narrow["a_raw"].dtype == np.float16
    eeg[0, 500] -= 70_000
    np.testing.assert_allclose(narrow["a_raw"][:], eeg, rtol=1e-3, atol=1e-4)
    assert "b_raw.fif: values beyond 65504 uV" in capsys.readouterr().err


# ---- formats


def test_formats_are_read_in_microvolts(tmp_path: Path) -> None:
    eeg = noise(3, 5, 200)
    for path in (brainvision(tmp_path / "a.vhdr", eeg, step=0.5), eeglab(tmp_path / "b.set", eeg)):
        prepared = pipeline.prepare(read_raw(path), UNFILTERED)
        assert prepared.electrodes == ["C3", "CZ", "C4"] and prepared.rate == 200
        np.testing.assert_allclose(prepared.eeg, eeg, atol=0.5)  # a count of BrainVision's


def test_annotations_in_any_encoding_are_no_obstacle(tmp_path: Path) -> None:
    path = edf(tmp_path / "a.edf", ["C3", "C4"], remark="Augen ?ffnen")
    path.write_bytes(path.read_bytes().replace(b"?", b"\xf6"))  # no UTF-8
    raw = read_raw(path)
    assert raw.n_times == 1000 and raw.annotations.description[0] == "Augen öffnen"


# ---- which recordings


def test_a_linked_recording_is_read_with_the_files_beside_the_link(tmp_path: Path) -> None:
    brainvision(tmp_path / "a.vhdr", noise(3, 5, 200))
    (tmp_path / "in").mkdir()
    for suffix in ("vhdr", "vmrk", "eeg"):  # each file alone in a folder, as git-annex keeps them
        (tmp_path / suffix).mkdir()
        (tmp_path / f"a.{suffix}").rename(tmp_path / suffix / f"a.{suffix}")
        (tmp_path / "in" / f"a.{suffix}").symlink_to(tmp_path / suffix / f"a.{suffix}")
    assert convert(tmp_path / "in", tmp_path / "out") == 0
    assert datasets(tmp_path / "out")["a"].shape == (3, 1000)


def test_a_recording_is_the_same_by_whatever_path_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        save(tmp_path / "eeg" / name / "x_raw.fif", ["CZ"], seconds=2, seed=seed)
    (tmp_path / "link").symlink_to(tmp_path / "eeg")
    assert convert(tmp_path / "eeg", tmp_path / "out") == 0
    names = datasets(tmp_path / "out").keys()
    assert len(names) == 2
    for folder, given in (("eeg/a", ".."), ("", "link")):
        monkeypatch.chdir(tmp_path / folder)
        assert convert(Path(given), tmp_path / "out") == 0
        assert "2 of 2 recordings were converted before" in capsys.readouterr().out
        assert datasets(tmp_path / "out").keys() == names


def test_another_order_of_electrodes_is_another_montage_and_equal_names_of_files_do_not_collide(tmp_path: Path) -> None:
    save(tmp_path / "in" / "one" / "x y_raw.fif", ["CZ", "PZ"])
    save(tmp_path / "in" / "two" / "x y_raw.fif", ["EEG Cz-REF", "EEG Pz-REF"], seed=1)
    save(tmp_path / "in" / "two" / "z_raw.fif", ["PZ", "CZ"])
    assert convert(tmp_path / "in", tmp_path / "out") == 0
    orders = {name: tuple(eeg.attrs["chOrder"]) for name, eeg in datasets(tmp_path / "out").items()}
    assert len(orders) == 3 and orders.pop("z_raw") == ("PZ", "CZ") and set(orders.values()) == {("CZ", "PZ")}
    assert all(name.startswith("x_y_raw") for name in orders)
    assert len({name.split("-")[1] for name in opened(tmp_path / "out")}) == 2


def test_drop_rename_and_types_decide_which_channels_stay(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    raw = raw_of(["CZ", "FOO", "BAR", "STI1", "Fp1"], 200, noise(5, 6, 200), ["eeg"] * 3 + ["stim", "eog"])
    raw.save(tmp_path / "in/a_raw.fif", fmt="double", verbose="error")
    (tmp_path / "map.json").write_text(json.dumps({"BAR": "Pz"}))
    words = ("--drop", "foo", "--rename", tmp_path / "map.json", "--trim_end", 2.5, *NO_FILTERS)
    assert convert(tmp_path / "in", tmp_path / "out", *words) == 0
    eeg = datasets(tmp_path / "out")["a_raw"]
    assert list(eeg.attrs["chOrder"]) == ["CZ", "PZ"] and eeg.shape == (2, 700)
    np.testing.assert_allclose(eeg[:], raw.get_data()[[0, 2], :700] * 1e6, atol=1e-4)
    made = json.loads(eeg.file.attrs["made"])
    assert made["rename"] == {"BAR": "Pz"} and made["filter"]["l_freq"] is None and made["code_version"]
    dropped = json.loads((tmp_path / "out.report.json").read_text())["dropped_channels"]
    assert any("type" in reason and set(names) == {"STI1", "Fp1"} for reason, names in dropped.items())
    (tmp_path / "map.json").write_text("[1, 2]")
    assert convert(tmp_path / "in", tmp_path / "out", *words) == 1


# ---- broken recordings


def write_broken(folder: Path) -> dict[str, str]:
    """Write one sound recording, and others; returns a word of the reason for each of these."""
    save(folder / "good_raw.fif", ["CZ"])
    (folder / "broken.edf").write_bytes(b"0       Jane Roe" + bytes(500))
    (folder / "empty.bdf").touch()
    raw_of(["CZ"], 200, np.full((1, 800), np.nan)).save(folder / "nan_raw.fif", fmt="double", verbose="error")
    save(folder / "short_raw.fif", ["CZ"], seconds=0.5)
    save(folder / "unknown_raw.fif", ["CZ", "FOO"])
    (folder / "gone_raw.fif").symlink_to(folder / "not_fetched.fif")
    for number, duration in enumerate(("1e6", "-1", "inf")):  # seconds of a record: 12 days each, backwards, endless
        edf(folder / f"slow{number}.edf", ["C3", "C4"], duration=duration)
    reasons = {"broken.edf": "cannot be read", "empty.bdf": "empty", "nan_raw": "NaN", "short_raw": "0.50 s"}
    reasons |= {"slow0": "0.0002 Hz", "slow1": "slow1", "slow2": "slow2"}
    return reasons | {"unknown_raw": "'FOO'", "gone_raw": "links"}


def test_what_is_wrong_with_a_recording_costs_that_one_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    reasons = write_broken(tmp_path / "in")
    assert convert(tmp_path / "in", tmp_path / "out") == 1
    assert datasets(tmp_path / "out").keys() == {"good_raw"}
    *lines, last = capsys.readouterr().err.splitlines()
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert last.startswith(f"error: {len(reasons)} of {len(reasons) + 1} recordings were left out")
    assert len(lines) == len(report["left_out"]) == len(reasons) and report["converted"] == 1
    assert "Jane" not in str([lines, report])
    for name, reason in reasons.items():
        (line,) = [line for line in lines if name in line]
        (entry,) = [entry for entry in report["left_out"] if name in entry["path"]]
        assert line == f"left out: {entry['reason']}" and reason in line


def test_a_recording_cut_short_converts_as_far_as_it_goes_and_says_how_much_is_missing(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert convert(shared / "eegmmidb" / "S001R01.edf", tmp_path / "out") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ") and "S001R01.edf" in line and "1 of 61 s" in line
    assert len(json.loads((tmp_path / "out.report.json").read_text())["warnings"]) == 1
    assert datasets(tmp_path / "out")["S001R01"].shape == (64, 200 * 60)


# ---- the command line


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--input", "nowhere"], 1, "nowhere: does not exist"),
        (["--input", "ok", "--output", "file.txt"], 2, "file.txt cannot be written"),
        (["--input", "ok", "--l_freq", "80"], 2, "--l_freq 80 must be below"),
        (["--input", "ok", "--notch", "-1"], 2, "--notch -1: must be"),
    ],
)
def test_wrong_input_is_one_line_and_its_exit_code(
    words: list[str],
    code: int,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file.txt").touch()
    save(Path("ok/a_raw.fif"), ["CZ"], seconds=2)
    assert run_maker(make_h5dataset_for_pretrain, "--output", "out", *words) == code
    assert text in capsys.readouterr().err.splitlines()[-1]


def test_a_maker_starts_by_its_path(tmp_path: Path) -> None:
    save(tmp_path / "a_raw.fif", ["CZ"], seconds=2)
    maker = REPOSITORY / "dataset_maker" / "make_h5dataset_for_pretrain.py"
    words = ["--input", tmp_path / "a_raw.fif", "--output", tmp_path / "out"]
    done = subprocess.run([sys.executable, maker, *words], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
