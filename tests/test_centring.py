"""Centring by subject or recording: against NumPy, in training, evaluation and prediction; what is said of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scipy.special import expit
from timm.models import create_model

from data_helpers import plain_run, process_group
from eeg_data.labelled import LabelledWindows
from eeg_data.labelled_files import read_labelled
from eeg_data.levels import level_factors
from errors import InputError, UsageError
from run_helpers import CLASSIFIER, call, checkpoint, labelled_file, log, predictions
from test_adaptation import read_split
from training.adaptation import RunningMeans
from training.centring import Centring, centring_of

TINY = "labram_tiny_patch200_200"
ROWS = [0, 40, 42, 44, 64]  # CLS; C3, CZ, C4, PZ as the table of electrodes counts them
COUNTS = {"train": 12, "val": 7, "test": 6}
LENGTH = {"recording": 2, "subject": 4}  # samples of each, as write_labelled writes them


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled_file(tmp_path_factory.mktemp("task") / "task.hdf5", counts=COUNTS)


def train(task: Path, folder: Path, *words: Any) -> int:
    return call("run_class_finetuning", *CLASSIFIER, "--dataset", task, "--output_dir", folder, *words)


def centred(values: np.ndarray, length: int, first: int | None = None) -> np.ndarray:
    """Subtract the mean of the first windows of each group of `length` windows."""
    pieces = [values[start : start + length] for start in range(0, len(values), length)]
    return np.concatenate([piece - piece[:first].mean(0) for piece in pieces])


def features_of(weights: dict[str, Any], task: Path, split: str) -> np.ndarray:
    model = create_model(TINY, num_classes=len(weights["head.bias"])).double().eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        return model.forward_features(read_split(task, split)[0], ROWS).numpy()


@pytest.mark.parametrize(("by", "first"), [("subject", None), ("recording", None), ("subject", 3)])
def test_a_run_trains_and_is_judged_on_features_minus_numpys_means(
    task: Path, tmp_path: Path, by: str, first: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    # Without learning and dropping, with all windows in a step, the means of the start are those of every epoch.
    words = ["--center", by, "--lr", 0, "--min_lr", 0, "--drop_path", 0, "--init_scale", 5, "--precision", "fp64"]
    words += ["--center_windows", first] if first else []
    assert train(task, tmp_path, *words, "--epochs", 2, "--batch_size", 12) == 0
    assert caplog.text.count("group val: 1 of 4 recordings have one window") == (by == "recording")
    state, lines = checkpoint(tmp_path / "checkpoint.pth"), log(tmp_path)
    head = [state["model"][f"head.{name}"].numpy() for name in ("weight", "bias")]

    def logits(split: str, windows: int | None) -> np.ndarray:
        return centred(features_of(state["model"], task, split), LENGTH[by], windows) @ head[0].T + head[1]

    for split in ("val", "test"):
        found = predictions(tmp_path / f"predictions-{split}.npz")
        np.testing.assert_allclose(found["last_logits"], logits(split, first), rtol=0, atol=1e-9)
        which = f"the first {first} windows" if first else "all windows"
        assert str(found["transductive"]) == f"transductive, {which} of each {by}"
    labels, own = np.arange(COUNTS["train"]) % 2, logits("train", None)[:, 0]
    loss = -np.log(np.where(labels, expit(own), expit(-own))).mean()
    assert [line["train_loss"] for line in lines] == pytest.approx([loss, loss], abs=1e-6)
    plain = features_of(state["model"], task, "train") @ head[0].T + head[1]
    assert abs(loss + np.log(np.where(labels, expit(plain[:, 0]), expit(-plain[:, 0]))).mean()) > 1e-2


def test_running_means_move_by_the_share_of_their_windows_and_a_skipped_step_moves_nothing(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    groups, taken = np.array([0, 0, 0, 1, 1, 2]), [True, False, True, True]
    steps = [[0, 3], [1, 2], [1, 2], [3, 3, 3, 4, 5]]  # a completed batch may show a window twice
    features = [random.standard_normal((len(samples), 5)) for samples in steps]
    features[1][0] = features[3][4, 2] = np.nan
    expected, counts = np.zeros((3, 5)), np.bincount(groups)
    with process_group():
        means = RunningMeans(groups, 5, plain_run(tmp_path))
        for samples, values, was_taken in zip(steps, features, taken, strict=True):
            for number in range(3) if was_taken else ():
                own = values[(groups[samples] == number) & np.isfinite(values).all(1)]
                share = min(1, len(own) / counts[number])
                expected[number] += share * (own.mean(0) - expected[number]) if len(own) else 0
            for sample, value in zip(samples, values, strict=True):  # in micro-batches of one
                means.add(torch.tensor(value[None]), torch.tensor([sample]))
            means.step(torch.tensor(was_taken))
            np.testing.assert_allclose(means.of(torch.arange(6)).numpy(), expected[groups], rtol=0, atol=1e-6)
    assert not expected[2].any() and expected[:2].all()


def test_no_gradient_flows_through_the_mean() -> None:
    model, x = create_model(TINY, init_scale=1.0).double(), torch.randn(3, 4, 2, 200).double()
    center = torch.ones(3, 200).double().requires_grad_()
    logits, features = model(x, ROWS, center=center.detach())
    torch.testing.assert_close(logits, model.head(features - center), rtol=0, atol=0)
    assert not features.requires_grad


@pytest.mark.parametrize(
    ("how", "averaged", "words"),
    [
        (["--center", "subject"], True, "all windows of each subject"),
        (["--scale_by", "recording"], False, "signals scaled by all windows of each recording"),
        (
            ["--scale_by", "subject", "--center", "recording", "--center_windows", 1],
            False,
            "the first 1 windows of each recording and signals scaled by all windows of each subject",
        ),
    ],
)
def test_predict_treats_a_labelled_split_as_the_training_did(
    task: Path, tmp_path: Path, how: list[Any], averaged: bool, words: str
) -> None:
    ema = ["--model_ema", "--model_ema_decay", 0.5] if averaged else []
    assert train(task, tmp_path, *how, *ema, "--lr", 1e-2) == 0
    given = ["predict", "--checkpoint", tmp_path / "checkpoint-best.pth", "--input", task, "--split", "test"]
    given += ["--output", tmp_path / "out.npz", *(["--averaged"] if averaged else [])]
    assert call("run_inference", *given, *how) == 0
    expected = expit(predictions(tmp_path / "predictions-test.npz")["logits"])
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_allclose(found["test/probabilities"][:, 1:], expected, rtol=0, atol=1e-6)
        assert found["test/probabilities"].dtype == np.float32
        assert f"transductive, {words}" in str(found["description"])
    assert str(predictions(tmp_path / "predictions-test.npz")["transductive"]) == f"transductive, {words}"


@pytest.mark.parametrize(("by", "half"), [("subject", False), ("recording", True)])
def test_signals_are_scaled_by_numpys_medians_to_fifteen_microvolts(tmp_path: Path, by: str, half: bool) -> None:
    path = labelled_file(tmp_path / "task.hdf5", counts={"val": 7}, dtype="f2" if half else "f4")
    with h5py.File(path) as file:
        eeg = file["val/eeg"][:].astype(np.float32)
    with process_group():
        windows = LabelledWindows(read_labelled(path), "val", scale_by=by)
        assert not windows.half([])
    for start in range(0, 7, LENGTH[by]):
        own = eeg[start : start + LENGTH[by]]
        factor = 15 / np.median([np.median(np.abs(window)) for window in own])
        for number, window in enumerate(own, start):
            out = np.empty((4, 400), np.float32)
            windows.read((0, 0, number), out)
            np.testing.assert_allclose(out, window * factor / 100, rtol=1e-6)
            assert abs(factor - 1) > 0.05


def test_a_signal_of_zeros_cannot_be_scaled_and_a_window_that_is_not_finite_spoils_no_other() -> None:
    factors = level_factors(np.array([10.0, np.nan, 30.0, 5.0]), np.array([1, 1, 1, 0]), "here")
    np.testing.assert_array_equal(factors, np.array([0.75, 0.75, 0.75, 3.0], np.float32))
    with pytest.raises(InputError, match=r"--scale_by: here: half of a signal's values are 0"):
        level_factors(np.array([1.0, 0.0]), np.array([0, 1]), "here")


def test_predict_without_an_answer_is_refused_and_other_answers_are_warned_of(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert train(task, tmp_path / "yes", "--center", "subject") == 0 and train(task, tmp_path / "no") == 0
    given = ["predict", "--input", task, "--split", "val", "--output", tmp_path / "out.npz", "--checkpoint"]
    assert call("run_inference", *given, tmp_path / "yes" / "checkpoint.pth") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "was trained with --center subject" in line and "add --center recording" in line
    assert call("run_inference", *given, tmp_path / "no" / "checkpoint.pth", "--scale_by", "subject") == 0
    assert "was trained with --scale_by none, and predicts with --scale_by subject" in caplog.text
    for folder, answer, trained in (("yes", "none", "subject"), ("no", "recording", "none")):
        caplog.clear()
        assert call("run_inference", *given, tmp_path / folder / "checkpoint.pth", "--center", answer) == 0
        assert f"trained with --center {trained}, and predicts with --center {answer}" in caplog.text
        assert caplog.text.count("group val: 1 of 4 recordings have one window") == (answer == "recording")
    caplog.clear()
    assert train(task, tmp_path / "yes", "--eval") == 0
    assert "trained with --center subject and is evaluated with --center none" in caplog.text


def labelled(labels: list[int], subjects: list[str]) -> Any:
    names = {"subjects": subjects, "recordings": ["r"] * len(labels), "path": "a.hdf5", "split": "train"}
    dataset = type("Dataset", (SimpleNamespace,), {"__len__": lambda self: len(self.labels)})
    return dataset(labels=np.array(labels), **names)


def test_groups_that_have_one_label_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    one_each, both = labelled([0, 0, 1, 1], ["a", "a", "b", "b"]), labelled([0, 1, 0, 1], ["a", "a", "b", "b"])
    Centring("subject").announce(one_each)
    assert "2 of 2 training subjects have one label" in caplog.text
    caplog.clear()
    Centring("subject").announce(both)
    Centring("subject", 2).announce(both)
    assert not caplog.text
    Centring("subject", 1).announce(both)
    assert "--center_windows 1: these windows of 2 of 2 training subjects have one label" in caplog.text


def test_what_cannot_be_centred_is_refused() -> None:
    with pytest.raises(UsageError, match=r"a\.hdf5, group train does not name the subject of every window: use --cent"):
        Centring("subject").groups(labelled([0, 1], ["a", " "]))
    for flags in (
        {"scale_by": "me"},
        {"center_windows": 2},
        {"center": "recording", "center_windows": 0},
        {"center": "task"},
    ):
        with pytest.raises(UsageError, match="allowed are"):
            centring_of(flags)
