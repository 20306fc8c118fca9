"""The demo's data handling, stages, baselines, table and figures, at tiny size; `make demo` has the base models."""

import argparse
import json
import subprocess
import tarfile
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
from run_helpers import call, labelled_file, pretraining_file


def test_a_downloaded_file_with_other_content_is_refused_by_its_checksum(tmp_path: Path) -> None:
    (tmp_path / data.EEGHDF.file).write_bytes(b"something else")
    with pytest.raises(InputError, match="SHA-256 differs"):
        data.fetch(data.EEGHDF, tmp_path)


def test_a_file_that_is_already_there_is_not_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"recordings"
    source = data.Source("name==1", (), "name-1.tar.gz", "c6b5f5a2d0b6ee7b4c6b3c9f")
    (tmp_path / source.file).write_bytes(content)
    digest = data.sha256(tmp_path / source.file)
    monkeypatch.setattr(data.subprocess, "run", lambda *a, **k: pytest.fail("pip was called"))
    assert data.fetch(data.Source("name==1", (), "name-1.tar.gz", digest), tmp_path) == tmp_path / "name-1.tar.gz"


def test_a_package_that_pip_cannot_get_is_one_line_that_says_where_to_put_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def offline(command: list[str]) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(data.subprocess, "run", offline)
    with pytest.raises(InputError, match=rf"{data.EEGHDF.requirement} .* put {data.EEGHDF.file} into {tmp_path}$"):
        data.fetch(data.EEGHDF, tmp_path)
    (command,) = commands
    assert command[-3:] == ["--dest", str(tmp_path), data.EEGHDF.requirement]
    assert "--no-deps" in command and command[command.index("--no-binary") + 1] == ":all:", "nothing else is got"


def test_a_maker_that_fails_ends_the_demo_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.subprocess, "run", lambda command: subprocess.CompletedProcess(command, 2))
    with pytest.raises(InputError, match=r"^demo/make_scp1\.py failed: see its message above$"):
        data.make("make_scp1.py", "--input", "x")


def test_files_leave_the_archive_by_their_plain_names_wherever_they_lie_in_it(tmp_path: Path) -> None:
    inner = tmp_path / "a.h5"
    inner.write_bytes(b"signal")
    with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as tar:
        tar.add(inner, arcname="pkg-1/../../outside/a.h5")
    out = tmp_path / "out"
    out.mkdir()
    paths = data.extract(tmp_path / "archive.tar.gz", ("a.h5",), out)
    assert paths == [out / "a.h5"] and paths[0].read_bytes() == b"signal"
    assert sorted(p.name for p in out.iterdir()) == ["a.h5"]


def test_no_decoder_that_knows_only_electrode_and_time_beats_the_one_code_loss() -> None:
    eeg = torch.randn(12, 3, 2, 200, generator=torch.Generator().manual_seed(0))
    amplitude, phase = report.one_code_losses(eeg)
    targets = modeling_vqnsp.spectrum_targets(eeg)
    for loss, target in zip((amplitude, phase), targets, strict=True):
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
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "task.hdf5", "w") as file:
        file.attrs.update({"name": "x", "task": "binary", "classes": ["a", "b"], "chOrder": ["FC3"], "rsFreq": 200.0})
        for split, n in (("train", 40), ("val", 10), ("test", 30)):
            label = np.arange(n) % 2
            group = file.create_group(split)
            group["eeg"] = rng.normal(size=(n, 1, 200)).astype("f4") + 5 * label[:, None, None]
            group["label"] = label
            for name in ("recording", "subject"):
                group.create_dataset(name, data=["r"] * n, dtype=h5py.string_dtype())
    assert report.logistic_regression(tmp_path / "task.hdf5") == 1.0


def test_figures_are_written_as_png(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = create_model("vqnsp_encoder_tiny_decoder_1x200x4", n_code=16).eval()
    report.plot_spectra(
        tokenizer, torch.randn(1, 2, 3, 200), torch.tensor([0, 1, 2]), ("FP1", "FPZ"), tmp_path / "s.png"
    )
    (tmp_path / "log.txt").write_text('{"epoch": 0, "train_loss": 2.0}\n{"epoch": 1, "train_loss": 1.0}\n')
    report.plot_losses({"a": tmp_path, "b": tmp_path}, tmp_path / "l.png")
    for name in ("s.png", "l.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_demo_trains_all_stages_and_its_table_says_what_their_logs_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretraining_file(tmp_path / "data/pretrain/eeg.hdf5", seconds=(45, 45))
    labelled_file(
        tmp_path / "data/SCP1.hdf5", counts={"train": 16, "val": 8, "test": 8}, classes=("negativity", "positivity")
    )

    def run_here(words: list[str], env: dict[str, str]) -> Any:
        code = call(Path(words[1]).stem, *words[2:], "--epochs", 2, "--num_workers", 0, "--device", "cpu")
        return argparse.Namespace(returncode=code)

    monkeypatch.setattr(demo, "subprocess", argparse.Namespace(run=run_here))
    demo.main(argparse.Namespace(folder=tmp_path, size="tiny"))
    lines = capsys.readouterr().out.splitlines()
    for name in ("tokenizer", "pretraining", "finetuning", "from_scratch"):
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
    for name in ("losses.png", "spectra.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_folder_of_other_runs_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "checkpoint.pth").write_text("weeks of training")
    with pytest.raises(UsageError, match="is not of the demo, which would replace"):
        demo.main(argparse.Namespace(folder=tmp_path, size="tiny"))
    assert [path.name for path in tmp_path.rglob("*")] == ["tokenizer", "checkpoint.pth"]


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"--folder .*notes\.txt cannot be written"):
        demo.main(argparse.Namespace(folder=tmp_path / "notes.txt", size="tiny"))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_stage_that_fails_ends_the_demo_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        demo, "subprocess", argparse.Namespace(run=lambda words, env: subprocess.CompletedProcess(words, 1))
    )
    with pytest.raises(InputError, match=r"run_vqnsp_training.py failed: see its message above"):
        demo.train(tmp_path, "tiny", tmp_path, tmp_path)
