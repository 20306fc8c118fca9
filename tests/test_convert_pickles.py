"""Folders of the released makers' pickles to labelled files: exact values, splits, subjects, and what is left out."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dataset_maker import convert_pickles
from maker_helpers import run_maker

RANDOM = np.random.default_rng(0)


def write(path: Path, sample: Any, protocol: int = 4) -> Path:
    """Pickle a sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(sample, protocol))
    return path


def tuab(label: Any, **other: Any) -> dict[str, Any]:
    """A sample as the released TUAB maker writes it: a slice of a longer signal, so not contiguous."""
    return {"X": 20 * RANDOM.standard_normal((23, 2500))[:, 300:2300], "y": label} | other


def tuev(label: Any, **other: Any) -> dict[str, Any]:
    """A sample as the released TUEV maker writes it."""
    signal = 20 * RANDOM.standard_normal((23, 1000))
    return {"signal": signal, "offending_channel": np.array([3.0]), "label": label} | other


def convert(root: Path, *words: Any) -> int:
    """Run the converter."""
    return run_maker(convert_pickles, "--root", root, "--output", root / "out.hdf5", "--jobs", 1, *words)


def test_tuab_pickles_keep_values_order_labels_subjects_and_splits(tmp_path: Path) -> None:
    samples: dict[str, dict[tuple[str, int], dict[str, Any]]] = {"train": {}, "val": {}, "test": {}}
    names = {"train": ("aaaaaaaa_s001_t000", "aaaaaaab_s004_t002"), "val": ("aaaaaaac_s001_t000",)}
    for split, recordings in (names | {"test": ("aaaaaaad_s001_t000",)}).items():
        for label, recording in enumerate(recordings):
            for k in (0, 1, 2, 10, 11) if label else (0,):
                samples[split][recording, k] = tuab(label)
                write(tmp_path / split / f"{recording}_{k}.pkl", samples[split][recording, k], protocol=2 + k % 4)
    assert convert(tmp_path) == 0
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert (file.attrs["name"], file.attrs["task"], file.attrs["rsFreq"]) == ("TUAB", "binary", 200)
        assert list(file.attrs["classes"]) == ["normal", "abnormal"]
        assert " ".join(file.attrs["chOrder"]) == (
            "FP1 FP2 F3 F4 C3 C4 P3 P4 O1 O2 F7 F8 T3 T4 T5 T6 A1 A2 FZ CZ PZ T1 T2"
        )
        made = json.loads(file.attrs["made"])
        assert not any(made["filter"][stage] for stage in ("l_freq", "h_freq", "notch"))
        for split, wanted in samples.items():
            group = file[split]
            eeg = np.stack([sample["X"] for sample in wanted.values()]).astype(np.float32)  # 10 behind 2
            np.testing.assert_array_equal(group["eeg"][:], eeg)
            assert group["label"][:].tolist() == [sample["y"] for sample in wanted.values()]
            assert list(group["recording"].asstr()) == [recording for recording, _ in wanted]
            assert list(group["subject"].asstr()) == [recording[:8] for recording, _ in wanted]


def test_tuev_labels_begin_at_zero_and_evaluation_files_are_their_own_subjects(tmp_path: Path) -> None:
    labels = {"as floats": [np.array([2.0]), [3], (4,)], "as numbers": [np.float64(6), 1, np.int64(5), np.array(2)]}
    rows = {"processed_train": [("aaaaaaar_00000001", labels["as floats"]), ("aaaaaaat_00000012", [1.0])]}
    rows["processed_eval"] = [("aaaaaaaz_00000002", labels["as numbers"])]
    rows["processed_test"] = [("bckg_000_a_", [6]), ("gped_010_a_1", [2])]
    signals: dict[str, list[np.ndarray]] = {}
    for folder, recordings in rows.items():
        for recording, found in recordings:
            for k, label in enumerate(found):
                sample = tuev(label)
                signals.setdefault(folder, []).append(sample["signal"])
                write(tmp_path / folder / f"{recording}-{k}.pkl", sample)
    assert convert(tmp_path) == 0
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert file.attrs["name"] == "TUEV" and len(file.attrs["classes"]) == 6
        for split, folder in (("train", "processed_train"), ("val", "processed_eval"), ("test", "processed_test")):
            np.testing.assert_array_equal(file[split]["eeg"][:], np.float32(signals[folder]))
        assert file["train"]["label"][:].tolist() == [1, 2, 3, 0]
        assert file["val"]["label"][:].tolist() == [5, 0, 4, 1]
        assert list(file["train"]["subject"].asstr()) == ["aaaaaaar"] * 3 + ["aaaaaaat"]
        assert len(set(file["test"]["subject"].asstr())) == 2
        assert [name[:8] for name in file["test"]["subject"].asstr()] == ["bckg_000", "gped_010"]


class Touches:
    """Pickles as a call of a shell."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


BAD = {
    "shape": (tuab(0, X=np.zeros((23, 1999))), "'X' is of shape (23, 1999); expected (23, 2000)"),
    "rows": (tuab(0, X=np.zeros((16, 2000))), "'X' is of shape (16, 2000)"),
    "none": ({"y": 0}, "'X' is no array"),
    "list": (tuab(0, X=[0.0]), "'X' is no array"),
    "label": (tuab(2), "'y' is none of the labels 0 to 1"),
    "half": (tuab(0.5), "'y' is none of the labels 0 to 1"),
    "nan": (tuab(float("nan")), "'y' is none of the labels"),
    "text": (tuab("1"), "'y' is none of the labels"),
    "many": (tuab(np.array([0, 1])), "'y' is none of the labels"),
    "object": (tuab(0, X=np.full((23, 2000), None)), "only numbers are read"),
    "infinite": (tuab(0, X=np.full((23, 2000), 1e300)), "more than float32 holds"),
}


def test_one_bad_pickle_leaves_out_its_recording_only_and_nothing_is_executed(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    good = [write(tmp_path / "train" / f"good_{label}_{label}.pkl", tuab(label)) for label in (0, 1)]
    for name, (sample, _) in BAD.items():
        write(tmp_path / "train" / f"{name}_0.pkl", tuab(0))
        write(tmp_path / "train" / f"{name}_1.pkl", sample)
    write(tmp_path / "train" / "shell_0.pkl", tuab(0, extra=Touches(tmp_path / "trace")))
    (tmp_path / "train" / "cut_0.pkl").write_bytes(good[0].read_bytes()[:1000])
    (tmp_path / "train" / "large_0.pkl").write_bytes(bytes(convert_pickles.MAX_BYTES + 1))
    assert convert(tmp_path) == 1
    errors = capsys.readouterr().err
    reasons = {f"{name}_1.pkl": reason for name, (_, reason) in BAD.items()}
    reasons |= {"shell_0.pkl": "'posix.system', which is not let in", "cut_0.pkl": "broken or no pickle"}
    for name, reason in (reasons | {"large_0.pkl": "too many for one sample"}).items():
        (line,) = [line for line in errors.splitlines() if name in line]
        assert reason in line
    assert not (tmp_path / "trace").exists()
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert list(file["train"]["recording"].asstr()) == ["good_0", "good_1"]


def test_samples_with_nan_keep_their_place_and_are_marked_invalid(tmp_path: Path) -> None:
    signal = tuab(0)["X"].copy()
    signal[3, 450:460] = np.nan  # in the third second
    write(tmp_path / "train" / "a_s1_0.pkl", tuab(0))
    write(tmp_path / "train" / "a_s1_1.pkl", {"X": signal, "y": 0})
    write(tmp_path / "train" / "b_s1_0.pkl", tuab(1))
    assert convert(tmp_path) == 0
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert np.argwhere(~file["train"]["valid"][:]).tolist() == [[1, 2]]
        assert np.isfinite(file["train"]["eeg"][:]).all()


def test_folders_and_names_of_another_kind_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert convert(tmp_path) == 1
    assert "expected the folders train, val, test (TUAB) or processed_train" in capsys.readouterr().err
    (tmp_path / "train").mkdir()
    assert convert(tmp_path) == 1 and "no *.pkl in train, val, test" in capsys.readouterr().err
    assert convert(tmp_path, "--dataset", "TUEV") == 1 and "expected the folders" in capsys.readouterr().err
    write(tmp_path / "train" / "aaaaaaaa.pkl", tuab(0))
    assert convert(tmp_path) == 1 and "not a name that the released TUAB maker gives" in capsys.readouterr().err
    assert not (tmp_path / "out.hdf5").exists()
