"""Folders of the released pickles to labelled files: exact values, and nothing that a pickle asks for is run."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dataset_maker import convert_pickles
from errors import InputError
from maker_helpers import noise, run_maker

RANDOM = np.random.default_rng(0)


def write(path: Path, sample: Any, protocol: int = 4) -> Path:
    """Pickle a sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(sample, protocol))
    return path


def tuab(label: Any, **other: Any) -> dict[str, Any]:
    """A sample as the released TUAB maker writes it: a slice of a longer signal, so not contiguous."""
    return {"X": 20 * RANDOM.standard_normal((23, 2500))[:, 300:2300], "y": label} | other


def convert(root: Path) -> int:
    """Run the converter."""
    return run_maker(convert_pickles, "--root", root, "--output", root / "out.hdf5")


def test_tuab_pickles_keep_values_order_labels_subjects_and_splits(tmp_path: Path) -> None:
    names = {"train": ("aaaaaaaa_s001_t000", "aaaaaaab_s004_t002"), "val": ("aaaaaaac_s001_t000",)}
    samples: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    for split, recordings in names.items():
        for label, recording in enumerate(recordings):
            for k in (0, 1, 2, 10, 11) if label else (0,):
                sample = samples.setdefault(split, {})[recording, k] = tuab(label)
                write(tmp_path / split / f"{recording}_{k}.pkl", sample, protocol=2 + k % 4)
    assert convert(tmp_path) == 0
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert (file.attrs["name"], file.attrs["task"], file.attrs["rsFreq"]) == ("TUAB", "binary", 200)
        electrodes = "FP1 FP2 F3 F4 C3 C4 P3 P4 O1 O2 F7 F8 T3 T4 T5 T6 A1 A2 FZ CZ PZ T1 T2"
        assert " ".join(file.attrs["chOrder"]) == electrodes
        for split, wanted in samples.items():
            group = file[split]
            eeg = np.stack([sample["X"] for sample in wanted.values()]).astype(np.float32)  # 10 behind 2
            np.testing.assert_allclose(group["eeg"][:], eeg, rtol=2e-7)
            assert group["label"][:].tolist() == [sample["y"] for sample in wanted.values()]
            assert list(group["recording"].asstr()) == [recording for recording, _ in wanted]
            assert list(group["subject"].asstr()) == [recording[:8] for recording, _ in wanted]


def test_tuev_labels_begin_at_zero_and_evaluation_files_are_their_own_subjects(tmp_path: Path) -> None:
    labels: dict[str, list[Any]] = {  # as the released maker and others write them
        "processed_train/aaaaaaar_00000001": [np.array([2.0]), [3], (4,)],
        "processed_train/aaaaaaat_00000012": [1.0],
        "processed_eval/aaaaaaaz_00000002": [np.float64(6), 1, np.int64(5), np.array(2)],
        "processed_test/bckg_000_a_": [6],
        "processed_test/gped_010_a_1": [2],
    }
    for recording, each in labels.items():
        for k, label in enumerate(each):
            sample = {"signal": noise(23, 5, 200), "offending_channel": np.array([3.0]), "label": label}
            write(tmp_path / f"{recording}-{k}.pkl", sample)
    assert convert(tmp_path) == 0
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert file.attrs["name"] == "TUEV" and len(file.attrs["classes"]) == 6
        assert [file[split]["label"][:].tolist() for split in file] == [[5, 1], [1, 2, 3, 0], [5, 0, 4, 1]]
        assert list(file["train"]["subject"].asstr()) == ["aaaaaaar"] * 3 + ["aaaaaaat"]
        assert [name[:8] for name in file["test"]["subject"].asstr()] == ["bckg_000", "gped_010"]


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (tuab(0, X=np.zeros((23, 1999))), r"\(23, 1999\)"),
        (tuab(0, X=np.full((23, 2000), None)), "expected numbers"),
        ({"y": 0}, "'X'"),
        (tuab(2), "'y' is none of the labels 0 to 1"),
        (tuab(0.5), "'y' is none of the labels"),
        (tuab(np.array([0, 1])), "'y' is none of the labels"),
    ],
)
def test_what_is_no_sample_is_refused_with_the_reason(sample: Any, reason: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.pkl", sample)
    with pytest.raises(InputError, match=reason) as error:
        convert_pickles.read_sample(path, convert_pickles.KINDS["TUAB"])
    assert str(path) in str(error.value)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_function_that_a_pickle_names_is_named_and_not_called(protocol: int, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    calls = {
        "system": Calls(os.system, f"touch {trace}"),
        "eval": [{"deep": (Calls(eval, f"open({str(trace)!r}, 'w')"),)}],
        "getattr": Calls(getattr, "text", "upper"),
    }
    for name, call in calls.items():
        with pytest.raises(InputError, match=rf"names [\w.]*{name}, which is not allowed"):
            convert_pickles.PlainUnpickler(io.BytesIO(pickle.dumps({"X": call}, protocol))).load()
        assert not trace.exists(), name
    pickle.loads(pickle.dumps(calls["system"], protocol))
    assert trace.exists()  # so it would have been seen


@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])
def test_arrays_of_numpy_1_and_2_come_back_exactly(module: bytes) -> None:
    values = [RANDOM.standard_normal((4, 30))[:, 5:25], np.arange(6, dtype=">f4"), np.float64(2.5), np.array(3.0)]
    data = pickle.dumps(values, 2).replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", module)
    assert module in data
    for loaded, value in zip(convert_pickles.PlainUnpickler(io.BytesIO(data)).load(), values, strict=True):
        assert type(loaded) is type(value)
        np.testing.assert_array_equal(loaded, value)


def test_one_bad_pickle_leaves_out_its_recording_only_and_nan_stays_in_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    signal = tuab(0)["X"].copy()
    signal[3, 450:460] = np.nan  # in the third second
    good = [write(tmp_path / "train" / f"good_{label}_{label}.pkl", tuab(label)) for label in (0, 1)]
    write(tmp_path / "train" / "good_1_2.pkl", tuab(1, X=signal))
    write(tmp_path / "train" / "shell_0.pkl", tuab(0))
    write(tmp_path / "train" / "shell_1.pkl", tuab(0, extra=Calls(os.system, f"touch {tmp_path / 'trace'}")))
    (tmp_path / "train" / "cut_0.pkl").write_bytes(good[0].read_bytes()[:1000])
    assert convert(tmp_path) == 1
    errors = capsys.readouterr().err
    for name, reason in {"shell_1.pkl": "posix.system", "cut_0.pkl": "broken"}.items():
        (line,) = [line for line in errors.splitlines() if name in line]
        assert reason in line
    assert not (tmp_path / "trace").exists()
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert list(file["train"]["recording"].asstr()) == ["good_0", "good_1", "good_1"]
        assert np.argwhere(~file["train"]["valid"][:]).tolist() == [[2, 2]]
        assert np.isfinite(file["train"]["eeg"][:]).all()


def test_folders_and_names_of_another_kind_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert convert(tmp_path) == 1 and "train val test (TUAB) or processed_train" in capsys.readouterr().err
    write(tmp_path / "train" / "aaaaaaaa.pkl", tuab(0))
    assert convert(tmp_path) == 1 and "aaaaaaaa.pkl: not a name" in capsys.readouterr().err
