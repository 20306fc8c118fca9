"""Epoched files become labelled data; the signal inside a `.set` is read in pieces."""

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import mne
import numpy as np
import pytest
from scipy.signal import resample_poly

from dataset_maker import epochs, make_labelled, matlab
from dataset_maker.pipeline import Pipeline, prepare, read_raw
from dataset_maker.sources import subject_of
from errors import UsageError
from inference.recordings import Options, of_epochs
from maker_helpers import NAMES, eeglab, noise, raw_of, run_maker

PLAIN = ("--l_freq", 0, "--h_freq", 0, "--notch", 0)


def save_fif(path: Path, eeg: np.ndarray, names: Sequence[str], *, rate: float = 200, tmin: float = 0.0) -> None:
    """Write `-epo.fif`; eeg: (N, time, epochs) in uV; names: of the events."""
    event_id = {name: number for number, name in enumerate(sorted(set(names)), start=5)}
    events = [(1000 * i, 0, event_id[name]) for i, name in enumerate(names)]
    info = mne.create_info(NAMES, rate, "eeg")
    made = mne.EpochsArray(eeg.transpose(2, 0, 1) * 1e-6, info, events, tmin, event_id, verbose="error")
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(path, fmt="double", verbose="error")


def cut(seconds: float, count: int, rate: float = 200, seed: int = 0) -> np.ndarray:
    """Return noise as epochs, (3, time, count) in uV."""
    return noise(3, seconds * count, rate, seed).reshape(3, count, -1).transpose(0, 2, 1)


def make(folder: Path, *words: Any) -> int:
    return run_maker(make_labelled, "--epochs", folder / "in", "--output", folder / "out.hdf5", *words)


@pytest.mark.parametrize("kind", ["set", "fdt", "fif"])
def test_each_epoch_is_a_sample_from_tmin_on_under_the_name_of_its_event(tmp_path: Path, kind: str) -> None:
    eeg = {who: cut(3.5, 10, seed=who) for who in range(1, 6)}
    labels = ["left", "right"] * 5
    for who, signal in eeg.items():
        path = tmp_path / f"in/sub-0{who}/eeg/sub-0{who}_task-x-epo.{kind}"
        if kind == "fif":
            save_fif(path, signal, labels, tmin=-1.0)
        else:
            stored = {"data": "x/renamed.fdt"} if kind == "fdt" else {}
            events = [(i, 0, label) for i, label in enumerate(labels)]
            eeglab(path.with_suffix(".set"), signal, events, tmin=-1.0, **stored)
        if kind == "fdt":
            path.write_bytes(signal.astype("<f4").tobytes(order="F"))
    assert make(tmp_path, *PLAIN, "--tmin", 0.5, "--classes", "right", "left", "--seed", 1) == 0
    seen = set()
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert list(file.attrs["classes"]) == ["right", "left"] and list(file) == ["test", "train", "val"]
        for group in file.values():
            subjects = group["subject"].asstr()[:]
            assert not seen & set(subjects) and group["label"][:].tolist() == [1, 0] * (len(subjects) // 2)
            seen |= set(subjects)
            wanted = [eeg[int(who)][:, 300:700, i % 10] for i, who in enumerate(subjects)]
            np.testing.assert_allclose(group["eeg"][:], wanted, atol=1e-3)
            assert group["valid"][:].all()
    assert seen == {f"0{who}" for who in eeg}


def test_the_label_is_the_one_event_at_time_zero_and_all_other_epochs_are_counted(tmp_path: Path) -> None:
    events = [(i, 0.0, 769) for i in range(0, 10, 2)] + [(i, 0.0, 770) for i in range(1, 10, 2)]
    events += [(2, 0.4, "press"), (10, 0.0, 769), (10, 0.0, 770), (11, 0.4, 769), (12, 0.0, 770), (12, 0.4, "boundary")]
    events += [(13, 0.0, 769), (14, 0.0, 771)]
    reject = {"rejmanual": np.arange(15) == 13, "rejthreshcol": np.ones(3)}
    eeglab(tmp_path / "in/a.set", cut(1, 15), sorted(events), tmin=-0.2, reject=reject)
    assert make(tmp_path, *PLAIN, "--classes", "769", "770") == 0
    report = json.loads((tmp_path / "out.report.json").read_text())
    kinds = (epochs.SEVERAL, epochs.NONE, epochs.BROKEN, epochs.MARKED, epochs.OTHER)
    assert report["counts"] == dict.fromkeys(kinds, 1)
    assert {split: part["labels"] for split, part in report["splits"].items()} == {
        "train": {"769": 3, "770": 3},  # in order: one subject cannot be split
        "val": {"769": 1, "770": 1},
        "test": {"769": 1, "770": 1},
    }


def test_epochs_are_filtered_and_resampled_one_by_one(tmp_path: Path) -> None:
    seconds, rate = np.arange(2 * 250) / 250, 250
    tone = 40 * np.sin(2 * np.pi * 10 * seconds + np.arange(3)[:, None])
    eeg = np.repeat(tone[:, :, None], 10, axis=2)
    eeg[:, :, 1::2] += 3000 * np.array([1, -1, 1, -1, 1])  # offsets that would ring into the neighbours
    eeglab(tmp_path / "in/a.set", eeg, [(i, 0, "ab"[i % 2]) for i in range(10)], rate=rate)
    assert make(tmp_path) == 0
    wanted = resample_poly(tone, 4, 5, axis=1, padtype="line")
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert all(group["valid"][:].all() for group in file.values())
        found = np.concatenate([group["eeg"][:] for group in file.values()])
    assert found.shape == (10, 3, 400) and np.abs(found - wanted)[..., 40:-40].max() < 2


def test_filtered_epochs_are_near_to_the_epochs_of_the_filtered_recording() -> None:
    spectrum = np.fft.rfft(noise(3, 120, 200)) / np.maximum(np.fft.rfftfreq(120 * 200, 1 / 200), 1.0)
    eeg = np.fft.irfft(spectrum)
    eeg *= 20 / eeg.std()
    whole = prepare(raw_of(NAMES, 200, eeg), Pipeline()).eeg
    joined = raw_of(NAMES, 200, eeg)
    joined.set_annotations(mne.Annotations(np.arange(4, 120, 4), 0, epochs.BREAK))
    error = (prepare(joined, Pipeline()).eeg - whole)[:, 24 * 200 : -24 * 200]
    assert np.sqrt(np.mean(error**2)) < 10  # of 20 uV; by odd reflection it would be 15


def test_inference_gives_epochs_the_signal_that_makers_give_them() -> None:
    eeg = cut(2, 4, rate=256) + 2000
    info = mne.create_info(NAMES, 256, "eeg")
    windows = of_epochs(mne.EpochsArray(eeg.transpose(2, 0, 1) * 1e-6, info, verbose="error"), Options())
    joined = mne.io.RawArray(eeg.transpose(0, 2, 1).reshape(3, -1) * 1e-6, info, verbose="error")
    joined.set_annotations(mne.Annotations([2, 4, 6], 0, epochs.BREAK))
    made = prepare(joined, Pipeline()).eeg.reshape(3, 4, 400)
    np.testing.assert_allclose(windows.batch(0, 4), made.transpose(1, 0, 2), atol=1e-3)
    assert np.abs(made.mean(axis=2)).max() < 1


@pytest.mark.parametrize(
    ("save", "code", "message"),
    [
        (lambda folder: eeglab(folder / "raw.set", cut(9, 1)[:, :, 0]), 1, "raw.set: holds one continuous recording"),
        (lambda folder: eeglab(folder / "s.set", cut(0.5, 4), [(0, 0, "a")]), 1, "last from 0 to 0.5 s"),
        (lambda folder: eeglab(folder / "n.set", cut(1, 4)), 1, "4 epochs without an event at their time zero"),
        (lambda folder: (folder / "b.set").write_bytes(b"Jane Roe"), 1, "b.set"),
        (lambda folder: eeglab(folder / "o.set", cut(2, 4), [(i, 0, "ab"[i % 2]) for i in range(4)]), 2, "--window"),
    ],
)
def test_what_gives_no_samples_is_named_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture, save: Any, code: int, message: str
) -> None:
    eeglab(tmp_path / "in/good.set", cut(1, 10), [(i, 0, "ab"[i % 2]) for i in range(10)])
    save(tmp_path / "in")
    assert make(tmp_path, *PLAIN) == code
    shown = capsys.readouterr().err
    assert message in shown and "Jane" not in shown and (tmp_path / "out.hdf5").exists() == (code == 1)


@pytest.mark.parametrize(("rate", "points"), [(250, 501), (256, 600), (1000 / 3, 401), (499.97, 1000), (128.001, 300)])
def test_epochs_of_any_rate_and_length_give_their_samples(tmp_path: Path, rate: float, points: int) -> None:
    tone = np.sin(2 * np.pi * 10 * np.arange(points) / rate) * 40
    eeg = np.repeat(np.stack([tone] * 3)[:, :, None], 200, axis=2)
    eeglab(tmp_path / "in/a.set", eeg, [(i, 0, "ab"[i % 2]) for i in range(200)], rate=rate)
    assert make(tmp_path, *PLAIN) == 0
    with h5py.File(tmp_path / "out.hdf5") as file:
        found = np.concatenate([group["eeg"][:] for group in file.values()])
    wanted = 40 * np.sin(2 * np.pi * 10 * np.arange(found.shape[2]) / 200)
    assert len(found) == 200 and np.abs(found - wanted)[..., 10:-10].max() < 2


@pytest.mark.parametrize(
    ("path", "pattern", "wanted"),
    [
        ("d/sub-07/eeg/sub-07_ses-1_epo.fif", None, "07"),
        ("d/S12-epo.fif.gz", None, "S12-epo"),
        ("d/S12/run1.set", r"/(S\d+)/", "S12"),
        ("d/S12/run1.set", r"S\d+", "S12"),
        ("d/S12/run1.set", r"(S\d+", UsageError),
    ],
)
def test_the_subject_is_found_in_the_path(path: str, pattern: str | None, wanted: Any) -> None:
    if isinstance(wanted, str):
        assert subject_of(Path(path), pattern) == wanted
    else:
        with pytest.raises(wanted, match="--subject"):
            subject_of(Path(path), pattern)


def test_the_signal_of_matlab_7_3_is_read_in_pieces(tmp_path: Path) -> None:
    pytest.importorskip("pymatreader")
    eeg, path = noise(3, 60, 200), tmp_path / "a.set"
    with h5py.File(path, "w", userblock_size=512) as file:  # as MATLAB writes it, with the least that MNE needs
        fields = file.create_group("EEG")
        for name, value in {"nbchan": 3, "pnts": 12_000, "trials": 1, "srate": 200, "xmin": 0, "xmax": 59.995}.items():
            fields[name] = np.array([[value]], float)
        fields["data"] = eeg.T.astype("f4")
        labels = [
            file.create_dataset(f"#refs#/{name}", data=np.array([[ord(c)] for c in name], "u2")) for name in NAMES
        ]
        fields["chanlocs/labels"] = np.array([[label.ref] for label in labels], dtype=h5py.ref_dtype)
        for item in labels:
            item.attrs.update(MATLAB_class=np.bytes_("char"), MATLAB_int_decode=2)
        for name in ("event", "epoch", "icawinv", "icasphere", "icaweights", "ref", "chaninfo/nodatchans"):
            fields[name] = np.zeros(2, "u8")
            fields[name].attrs.update(MATLAB_class=np.bytes_("double"), MATLAB_empty=1)
        for name, item in fields.items():
            is_struct = isinstance(item, h5py.Group)
            item.attrs["MATLAB_class"] = np.bytes_("struct" if is_struct else "single" if name == "data" else "double")
        fields.attrs["MATLAB_class"] = np.bytes_("struct")
    with path.open("r+b") as header:
        header.write(b"MATLAB 7.3 MAT-file".ljust(124, b"\0") + b"\0\2IM")
    raw = read_raw(path)
    assert raw.ch_names == NAMES
    np.testing.assert_allclose(raw.get_data(["C4", "C3"], 1001, 1201) * 1e6, eeg[[2, 0], 1001:1201], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "in_pieces"),
    [
        ({}, True),
        ({"as_struct": False}, True),
        ({"dtype": "i2"}, True),
        ({"dtype": "f8", "as_struct": False}, True),
        ({"compress": True}, False),
    ],
)
def test_the_signal_inside_a_set_is_read_in_pieces_where_it_lies_in_one_piece(
    tmp_path: Path, options: dict[str, Any], in_pieces: bool
) -> None:
    eeg = np.rint(noise(3, 1500, 200) * 4)
    eeglab(tmp_path / "a.set", eeg, [(0, 12.5, "769")], **options)
    assert (matlab.find_signal(tmp_path / "a.set") is not None) == in_pieces
    read_raw(tmp_path / "a.set")  # imports what it needs
    tracemalloc.start()
    raw = read_raw(tmp_path / "a.set")
    piece = raw.get_data(picks=["C4", "C3"], start=100_001, stop=100_201)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_allclose(piece * 1e6, eeg[[2, 0], 100_001:100_201], rtol=1e-6)
    assert raw.annotations.description.tolist() == ["769"] and raw.annotations.onset[0] == 12.5
    assert raw.preload or in_pieces
    assert (most < 4 * eeg.size) == (not raw.preload)  # bytes; as float64 the signal has 8 a value. MNE 1.10 loads it


def test_flags_that_do_not_fit_epochs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_fif(tmp_path / "in/a-epo.fif", cut(1.5, 10), list("ab" * 5), tmin=-1.0)
    assert make(tmp_path, "--tmin", 0) == 1 and "at least 1 s from 0 s" in capsys.readouterr().err
    assert make(tmp_path, "--times", "first_sample") == 2  # seconds of a manifest
