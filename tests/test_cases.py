"""Recordings that ordinary people have: each program of ../shared/cases writes some, and what went in must come out.

A case is right if the values come out that its program put in, or if the recording is left out, with an exit code that
is not 0 and the true reason. The oracles are the variables of the programs themselves.
"""

import json
import runpy
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import mne
import numpy as np
import pytest

from dataset_maker import make_h5dataset_for_pretrain, make_labelled, pipeline
from dataset_maker.pipeline import FilterSettings, Pipeline, Prepared
from errors import InputError
from inference.recordings import Options, of_raw
from maker_helpers import run_maker

NO_FILTERS = ("--l_freq", 0, "--h_freq", 0, "--notch", 0)


def case(shared: Path, name: str, output: Path) -> dict[str, Any]:
    """Run a case's program; return its variables."""
    with patch.object(sys, "argv", [name, str(output)]):
        return runpy.run_path(str(shared / "cases" / f"{name}.py"), run_name="__main__")


def prepared(path: Path, **options: Any) -> Prepared:
    """Read a file at its own rate, without filters."""
    settings = Pipeline(FilterSettings(None, None, None, None), **options)
    return pipeline.prepare(pipeline.read(path, settings), settings)


def make(*words: Any) -> int:
    """Run the pre-training maker."""
    return run_maker(make_h5dataset_for_pretrain, *words)


def labelled(folder: Path, *words: Any) -> dict[str, Any]:
    """Make the labelled set of a case's manifest; return split -> (eeg, names of the labels)."""
    output = folder.with_name(f"{folder.name}.hdf5")
    assert run_maker(make_labelled, "--manifest", folder / "manifest.csv", "--output", output, *words) == 0
    with h5py.File(output) as file:
        classes = list(file.attrs["classes"])
        return {split: (group["eeg"][:], [classes[i] for i in group["label"][:]]) for split, group in file.items()}


def power(eeg: np.ndarray, hz: float, rate: float = 200) -> np.ndarray:
    """Return each row's amplitude at a frequency. eeg: (..., time)."""
    time = np.arange(eeg.shape[-1]) / rate
    return 2 * np.abs((eeg * np.exp(-2j * np.pi * hz * time)).mean(axis=-1))


def test_units_blank_and_spelt_in_any_way(shared: Path, tmp_path: Path) -> None:
    signal = case(shared, "edf_unit_spellings", tmp_path / "spellings")["signal"]
    for path in sorted((tmp_path / "spellings").iterdir()):
        np.testing.assert_allclose(prepared(path).eeg, signal, atol=0.06)
    case(shared, "edf_unit_blank", blank := tmp_path / "blank.edf")
    with pytest.raises(InputError, match=r"19 .*--unit uV"):
        prepared(blank)
    np.testing.assert_allclose(prepared(blank, unit="uV").eeg, signal, atol=0.06)


def test_two_electrodes_on_another_scale(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    case(shared, "edf_two_channels_other_scale", path := tmp_path / "a.edf")
    assert make("--input", path, "--output", tmp_path / "out") == 1
    assert "'EEG O1-REF'" in (error := capsys.readouterr().err) and "'EEG O2-REF'" in error
    assert make("--input", path, "--output", tmp_path / "out", "--unit", "V") == 0
    assert "O1" in capsys.readouterr().err
    assert any("O2" in text for text in json.loads((tmp_path / "out.report.json").read_text())["warnings"])


def test_equal_limits(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    values = case(shared, "edf_range_equal", tmp_path / "in")["values"]
    assert make("--input", tmp_path / "in", "--output", tmp_path / "out") == 1
    assert capsys.readouterr().err.count("'O1' 'O2'") == 4, "twice in each message"
    eeg = prepared(tmp_path / "in" / "digital.edf", drop=("O1", "O2")).eeg
    np.testing.assert_allclose(eeg, values[:17] / 10, atol=0.01)


def test_a_pause(shared: Path, tmp_path: Path) -> None:
    case(shared, "edf_discontinuous", tmp_path / "in")
    for eeg, labels in labelled(tmp_path / "in").values():
        alpha = power(eeg, 10).mean(axis=1)
        assert (alpha > 40).tolist() == [label == "alpha" for label in labels]
    path = tmp_path / "in" / "D.edf"
    filtered = pipeline.prepare(pipeline.read(path, Pipeline()), Pipeline())
    assert abs(filtered.eeg[:, 60 * 200 - 5 :].mean()) < 40, "the offset of 300 uV rings on no side of the pause"
    assert make("--input", path, "--output", tmp_path / "out") == 0
    (file,) = (tmp_path / "out").glob("*.hdf5")
    with h5py.File(file) as made:
        assert np.flatnonzero(~made["D"]["valid"][:]).tolist() == [59], "no window spans the pause"


def test_a_cropped_fif(shared: Path, tmp_path: Path) -> None:
    case(shared, "fif_first_sample", tmp_path / "in")
    for eeg, labels in labelled(tmp_path / "in").values():
        assert (power(eeg, 10).mean(axis=1) > 40).tolist() == [label == "alpha" for label in labels]


def test_content_decides_not_the_name(shared: Path, tmp_path: Path) -> None:
    signal = case(shared, "name_and_content", tmp_path / "in")["signal"]
    for name in ("true.edf", "is_bdf.edf", "is_edf.bdf"):
        np.testing.assert_allclose(prepared(tmp_path / "in" / name).eeg, signal, atol=0.06)


def test_a_fast_trigger(shared: Path, tmp_path: Path) -> None:
    case(shared, "edf_fast_trigger", path := tmp_path / "a.edf")
    result = pipeline.prepare(pipeline.read(path, Pipeline()), Pipeline())
    assert result.length == 60 * 200
    for row, eeg in enumerate(result.eeg):
        assert power(eeg, 5 + 0.5 * row) == pytest.approx(30, rel=0.01)


def test_several_rates(shared: Path, tmp_path: Path) -> None:
    signal = np.array(case(shared, "mixed_rates_cropped", tmp_path / "in")["sines"]([256] * 10))
    for name in ("ecg_faster.edf", "two_rates.edf"):
        result = prepared(tmp_path / "in" / name, trim_end=3.3)
        np.testing.assert_allclose(result.eeg[:, 50:-50], signal[:, : result.length][:, 50:-50], atol=0.3)
    raws = [mne.io.read_raw(tmp_path / "in" / "ecg_faster.edf", preload=p, verbose="error") for p in (False, True)]
    lazy, loaded = (of_raw(raw.crop(2.3, 40.1), Options(window=4)) for raw in raws)
    np.testing.assert_allclose(lazy.batch(0, 9), loaded.batch(0, 9), atol=1e-3)


def test_missing_samples_of_gdf(shared: Path, tmp_path: Path) -> None:
    counts = case(shared, "gdf_missing_code", tmp_path / "in")["counts"][:22]
    rename = json.loads((tmp_path / "in" / "map.json").read_text())
    result = prepared(tmp_path / "in" / "A01T.gdf", rename=rename)
    there = (counts != -32768).all(axis=0)
    np.testing.assert_allclose(result.eeg[:, there], counts[:, there] * 200 / 65535, atol=0.01)
    assert np.flatnonzero(~result.quality.valid).tolist() == [60, 120]
    filtered = pipeline.prepare(pipeline.read(tmp_path / "in" / "A01T.gdf", p := Pipeline(rename=rename)), p)
    assert np.abs(filtered.eeg).max() < 80, "nothing rings"


def test_what_is_no_continuous_set(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    signal = case(shared, "set_not_continuous", tmp_path / "in")["signal"]
    assert make("--input", tmp_path / "in", "--output", tmp_path / "out", *NO_FILTERS) == 1
    error = capsys.readouterr().err
    assert "--epochs" in error and "without_fdt.fdt" in error
    np.testing.assert_allclose(prepared(tmp_path / "in" / "no_suffix.set").eeg, signal, atol=1e-3)


def test_a_renamed_brainvision_recording(shared: Path, tmp_path: Path) -> None:
    values = case(shared, "brainvision_renamed", tmp_path / "in")["eeg"](19, 60, 200)
    (path,) = (tmp_path / "in").glob("*.vhdr")
    result = prepared(path)
    np.testing.assert_allclose(result.eeg, values, atol=0.06)
    warnings = " ".join(result.report["warnings"])
    assert "P01_rest.eeg" in warnings and "sub-01_task-rest_eeg.eeg" in warnings
    (tmp_path / "in" / "sub-01_task-rest_eeg.eeg").rename(tmp_path / "in" / "other.eeg")
    with pytest.raises(InputError, match=r"P01_rest\.eeg.*other\.eeg"):
        prepared(path)


def test_what_is_no_whole_fif(shared: Path, tmp_path: Path) -> None:
    case(shared, "fif_not_whole", tmp_path / "in")
    with pytest.raises(InputError, match=r"split_raw-1\.fif"):
        prepared(tmp_path / "in" / "split_raw.fif")
    with pytest.raises(InputError, match=r"--epochs"):
        prepared(tmp_path / "in" / "s1-epo.fif")


def test_counts_of_neuroscan_that_contradict_the_file(shared: Path, tmp_path: Path) -> None:
    signal = case(shared, "cnt_counts", tmp_path / "in")["signal"]
    for path in sorted((tmp_path / "in").iterdir()):
        np.testing.assert_allclose(prepared(path).eeg, signal, atol=0.03, err_msg=path.name)


def test_hypnograms_are_passed_over(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    case(shared, "edf_unit_spellings", tmp_path / "all")
    (tmp_path / "in").mkdir()
    (tmp_path / "all" / "plain.edf").rename(tmp_path / "in" / "night.edf")
    case(shared, "edf_annotations_only", tmp_path / "in" / "night-Hypnogram.edf")
    assert make("--input", tmp_path / "in", "--output", tmp_path / "out") == 0
    assert "night-Hypnogram.edf" in "".join(capsys.readouterr())


def test_bad_marks(shared: Path, tmp_path: Path) -> None:
    case(shared, "fif_bad_marks", path := tmp_path / "a_raw.fif")
    dropped, mended, kept = (prepared(path, bad_channels=how) for how in ("drop", "interpolate", "keep"))
    for result in (dropped, mended, kept):
        assert np.flatnonzero(~result.quality.valid).tolist() == list(range(20, 30))
    row = kept.electrodes.index("F4")
    assert "F4" not in dropped.electrodes and kept.eeg[row].std() > 4000 and mended.eeg[row].std() < 1000


def test_an_electrode_that_a_third_of_the_recordings_lacks(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    case(shared, "montage_lacks_one", folder := tmp_path / "in")
    words = ("--manifest", folder / "manifest.csv", "--window", 5, "--output")
    assert run_maker(make_labelled, *words, tmp_path / "a.hdf5") == 1
    assert "--drop FZ" in capsys.readouterr().err
    assert run_maker(make_labelled, *words, tmp_path / "b.hdf5", "--drop", "FZ") == 0


def test_labels_that_are_not_available(shared: Path, tmp_path: Path) -> None:
    case(shared, "manifest_not_available", tmp_path / "in")
    labels = [name for _, names in labelled(tmp_path / "in").values() for name in names]
    assert len(labels) == 24 and set(labels) == {"left", "right"}


def test_data_that_are_divided_by_100_already(shared: Path, tmp_path: Path) -> None:
    from inference.recordings import find

    variables = case(shared, "hdf5_hundredths", path := tmp_path / "a.hdf5")
    ((_, refused),) = find([path], Options(window=4))
    with pytest.raises(InputError, match=r"\b100\b.*--scale"):
        refused()
    ((_, opened),) = find([path], Options(window=4, scale=100))
    np.testing.assert_allclose(opened().read(0), variables["eeg"](19, 60, 200)[:, :800], rtol=1e-4, atol=1e-3)
