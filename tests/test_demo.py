"""The demo's downloads, baselines and table, at tiny size; `make demo` has the base models."""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from timm.models import create_model

import modeling_vqnsp
from demo import __main__ as demo
from demo import data, report
from errors import InputError, UsageError
from files import sha256
from run_helpers import call, labelled_file, pretraining_file


def test_a_package_is_checked_by_its_checksum_and_a_failure_of_pip_or_a_maker_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def fail(command: list[str]) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(data.subprocess, "run", fail)
    path = tmp_path / data.EEGHDF.file
    with pytest.raises(InputError, match=rf"put {path.name} into {tmp_path}"):
        data.fetch(data.EEGHDF, tmp_path)
    assert {"--no-deps", "--no-binary=:all:", str(tmp_path), data.EEGHDF.requirement} <= set(commands[0])
    path.write_bytes(b"something else")
    with pytest.raises(InputError, match="SHA-256 differs"):
        data.fetch(data.EEGHDF, tmp_path)
    assert data.fetch(data.EEGHDF._replace(sha256=sha256(path)), tmp_path) == path and len(commands) == 1
    with pytest.raises(InputError, match=r"demo/make_scp1\.py"):
        data.make("make_scp1.py", "--input", "x")


def test_no_decoder_that_knows_only_electrode_and_time_beats_the_one_code_loss() -> None:
    eeg = torch.randn(12, 3, 2, 200, generator=torch.Generator().manual_seed(0))
    for loss, target in zip(report.one_code_losses(eeg), modeling_vqnsp.spectrum_targets(eeg), strict=True):
        # The least squares fit on indicators of (electrode, second) and bin, by NumPy's solver.
        flat = target.reshape(12, -1).numpy().astype(np.float64)
        fit = np.linalg.lstsq(np.ones((12, 1)), flat, rcond=None)[0]
        assert loss == pytest.approx(np.mean((flat - fit) ** 2), rel=1e-5)


def test_tokenizer_losses_on_all_windows_equal_those_of_the_models_own_forward() -> None:
    torch.manual_seed(0)
    tokenizer = create_model("vqnsp_encoder_tiny_decoder_1x200x4", n_code=16).eval()
    eeg, channels = torch.randn(18, 2, 1, 200), torch.tensor([0, 1, 2])
    found = report.tokenizer_losses(tokenizer, eeg, channels)
    with torch.no_grad():
        _, log = tokenizer(eeg.flatten(2), channels)
    assert found["amplitude"] == pytest.approx(float(log["val/rec_loss"]), rel=1e-5)
    assert found["phase"] == pytest.approx(float(log["val/rec_angle_loss"]), rel=1e-5)
    assert found["used_code"] == len(tokenizer.get_codebook_indices(eeg, channels).unique())


def test_logistic_regression_finds_a_class_that_shifts_the_slow_potential(tmp_path: Path) -> None:
    task = labelled_file(tmp_path / "task.hdf5", counts={"train": 40, "val": 10, "test": 30})
    with h5py.File(task, "r+") as file:
        for group in file.values():
            group["eeg"][:] += 500 * group["label"][:][:, None, None].astype("f4")
    assert report.logistic_regression(task) == 1.0


def test_the_demo_trains_all_stages_and_its_table_gives_what_their_logs_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretraining_file(tmp_path / "data/pretrain/eeg.hdf5", seconds=(45, 45))
    labelled_file(tmp_path / "data/SCP1.hdf5", counts={"train": 16, "val": 8, "test": 8})

    def run_here(words: list[str], env: dict[str, str]) -> Any:
        code = call(Path(words[1]).stem, *words[2:], "--epochs", 2, "--num_workers", 0, "--device", "cpu")
        return argparse.Namespace(returncode=code)

    monkeypatch.setattr(demo, "subprocess", argparse.Namespace(run=run_here))
    demo.main(argparse.Namespace(folder=tmp_path, size="tiny"))
    lines = capsys.readouterr().out.splitlines()
    for name in demo.STAGES:
        first, last = map(json.loads, (tmp_path / name / "log.txt").read_text().splitlines())
        (row,) = (line.split()[1:3] for line in lines if line.startswith(f"{name} "))
        assert row == [f"{first['train_loss']:.3f}", f"{last['train_loss']:.3f}"]
    for name, title in (("finetuning", "LaBraM, pre-trained"), ("from_scratch", "LaBraM, without pre-training")):
        predictions = np.load(tmp_path / name / "predictions-test.npz")
        right = predictions["logits"].ravel() > 0
        of_class = [np.mean(right[predictions["labels"] == label] == label) for label in (0, 1)]
        (row,) = (line.split() for line in lines if line.strip().startswith(title))
        assert row[-5] == f"{np.mean(of_class):.3f}" and row[-3:] == [f"{int(predictions['epoch']) + 1}", "of", "2)"]
    starts = [json.loads((tmp_path / name / "environment.json").read_text()) for name in ("finetuning", "from_scratch")]
    assert [bool(start["flags"]["finetune"]) for start in starts] == [True, False]


def test_a_folder_of_other_runs_or_a_file_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    checkpoint = tmp_path / "tokenizer" / "checkpoint.pth"
    checkpoint.write_text("weeks of training")
    for folder in (tmp_path, checkpoint):
        with pytest.raises(UsageError, match="--folder"):
            demo.main(argparse.Namespace(folder=folder, size="tiny"))
    assert [path.name for path in tmp_path.rglob("*")] == ["tokenizer", "checkpoint.pth"]
    assert checkpoint.read_text() == "weeks of training"
