"""MOABB's data sets become labelled files, and LaBraM's features go into MOABB's pipelines."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import mne
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import inference
from data_helpers import signal
from dataset_maker import make_moabb
from dataset_maker.pipeline import Pipeline, prepare
from errors import InputError
from inference.features import LabramFeatures
from inference_helpers import MASKED, NAMES, random_module, saved
from maker_helpers import run_maker

WHY = "MOABB is missing: pip install -r requirements-peers.txt"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return MOABB's fake data set, the same at every call: two sessions of two runs, trials of 3 s, 250 Hz."""
    module = pytest.importorskip("moabb.datasets.fake", reason=WHY)
    source = module.FakeDataset(n_subjects=3, duration=40, n_events=9, sfreq=250, seed=1)
    monkeypatch.setattr(make_moabb, "open_class", lambda flag, name: source)
    return source


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("masked") / "m.pth", random_module(MASKED, vocab_size=16))


def test_one_command_makes_a_labelled_file_of_moabbs_fake_data_set(tmp_path: Path) -> None:
    pytest.importorskip("moabb", reason=WHY)
    script, chosen = "dataset_maker/make_moabb.py", ["--subjects", "2", "5", "--paradigm", "MotorImagery"]
    words = [sys.executable, script, "--dataset", "FakeDataset", *chosen, "--jobs", "1"]
    subprocess.run([*words, "--split", "session", "--output", tmp_path / "a.hdf5"], check=True)
    with h5py.File(tmp_path / "a.hdf5") as file:
        assert file.attrs["classes"].tolist() == ["fake1", "fake2", "fake3"] and file.attrs["rsFreq"] == 200
        assert set(file) == {"train", "test"} and json.loads(file.attrs["made"])["split"] == "by session"
        for split, session in (("train", 0), ("test", 1)):
            group = file[split]
            assert group["eeg"].shape == (240, 3, 600), "two subjects, two runs of 60 trials of 3 s"
            assert np.bincount(group["label"]).tolist() == [80, 80, 80]
            assert set(group["subject"].asstr()) == {"2", "5"}
            assert set(group["recording"].asstr()) == {f"FakeDataset-{n}-{session}" for n in (2, 5)}
    failed = subprocess.run([*words, "--output", tmp_path / "b.hdf5"], capture_output=True, text=True)
    assert failed.returncode == 1 and "2 subjects cannot be split" in failed.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--dataset", "Nothing2025"], "--dataset Nothing2025: MOABB has no such class"),
        (["--dataset", "FakeDataset", "--paradigm", "P300"], "--paradigm P300 cannot use FakeDataset"),
        (["--dataset", "FakeDataset", "--subjects", 11], "--subjects 11: FakeDataset has"),
        (["--dataset", "FakeDataset", "--window", 17], "--window 17: allowed are 1 to 16 s"),
        (["--dataset", "FakeDataset", "--split", "published"], "--split published: known of BNCI2014_001, not of Fake"),
        (["--dataset", "FakeDataset", "--window", 0], "--window 0: allowed are 1 to 16 s"),
        (["--dataset", "FakeDataset", "--split", "session", "--folds", 3, "--fold", 0], "--split session: leave it"),
    ],
)
def test_what_moabb_does_not_have_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[Any], expected: str
) -> None:
    pytest.importorskip("moabb", reason=WHY)
    assert run_maker(make_moabb, *words, "--output", tmp_path / "a.hdf5") == 2
    assert f"error: {expected}" in capsys.readouterr().err


def test_the_last_session_is_the_one_with_the_largest_number() -> None:
    names = [f"{number}{suffix}" for number in range(11) for suffix in ("", "late")]
    assert sorted(sorted(names), key=make_moabb.session_number)[-2:] == ["10", "10late"]


def test_without_moabb_one_line_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "moabb", None)
    make_moabb.open_class.cache_clear()
    assert run_maker(make_moabb, "--dataset", "FakeDataset", "--output", tmp_path / "a.hdf5") == 2
    assert "needs MOABB: python -m pip install -r requirements-peers.txt" in capsys.readouterr().err


def test_a_trial_is_what_mne_filters_and_cuts_at_its_trigger(fake: Any) -> None:
    task = {"path": "", "dataset": "", "number": 2, "session": "1", "window": 3, "classes": tuple(fake.event_id)}
    prepared = prepare(make_moabb.read(task), Pipeline())
    windows = make_moabb.windows(task, prepared)
    expected, labels = [], []
    for raw in fake.get_data([2])[2]["1"].values():
        events = mne.find_events(raw, shortest_event=0, verbose="error")
        eeg = raw.copy().pick("eeg").filter(0.1, 75, verbose="error").notch_filter(50, verbose="error")
        eeg = eeg.resample(200, method="polyphase", verbose="error").get_data() * 1e6  # as where there are breaks
        for sample, _, code in events:
            start = int(np.ceil(sample * 200 / 250))
            expected.append(eeg[:, start : start + 600])
            labels.append(code - 1)
    assert windows.labels.tolist() == labels and len(labels) == 18
    found = np.stack([prepared.eeg[:, start : start + 600] for start in windows.starts])
    inside = [number for number in range(18) if number % 9 not in (0, 8)]  # MNE pads the ends of runs otherwise
    np.testing.assert_allclose(found[inside], np.stack(expected)[inside], atol=0.2)


def test_units_of_a_data_set_are_brought_to_volts(fake: Any) -> None:
    task = {"dataset": "", "number": 1, "session": "0", "window": 3, "classes": tuple(fake.event_id)}
    volts = make_moabb.read(task).get_data("eeg")
    fake.unit_factor = 1e3
    np.testing.assert_allclose(make_moabb.read(task).get_data("eeg"), volts * 1e-3)


@pytest.mark.parametrize("pool", inference.POOLS)
def test_features_of_trials_are_those_of_the_model(checkpoint: Path, pool: str) -> None:
    trials = signal(4, 3, 2 * 200 + 1)  # as MOABB cuts them: with the last sample
    model = inference.load(checkpoint)
    found = LabramFeatures(checkpoint, NAMES, pool=pool).fit(trials).transform(trials)
    for trial, row in zip(trials, found, strict=True):
        expected = model.embed(trial[:, :400], electrodes=NAMES, window=2, pool=pool).features
        np.testing.assert_allclose(row, expected.ravel(), atol=1e-5)


def test_long_trials_are_averaged_and_other_rates_resampled(checkpoint: Path) -> None:
    long = signal(2, 3, 33 * 200)
    model, features = inference.load(checkpoint), LabramFeatures(checkpoint, NAMES)
    expected = [model.embed(trial, electrodes=NAMES, pool="mean").features.mean(0) for trial in long]
    np.testing.assert_allclose(features.transform(long), expected, atol=1e-5)
    t = np.arange(800) / 400
    waves = 30 * np.stack([np.sin(2 * np.pi * hz * t) for hz in (7, 11, 16)])[None]
    other = LabramFeatures(checkpoint, NAMES, sfreq=400)
    np.testing.assert_allclose(other.transform(waves), features.transform(waves[..., ::2]), atol=0.05)


def test_the_transformer_is_cloned_and_pickled_and_refuses_what_is_no_eeg_in_uv(checkpoint: Path) -> None:
    trials, features = signal(4, 3, 400), LabramFeatures(checkpoint, NAMES)
    expected = features.transform(trials)
    for other in (clone(features), pickle.loads(pickle.dumps(features))):
        np.testing.assert_array_equal(other.transform(trials), expected)
    assert len(pickle.dumps(features)) < 2000, "without the model"
    for eeg, text in ((trials * 1e-6, "--scale"), (trials[0], "expected .trials, electrodes, time.")):
        with pytest.raises(InputError, match=text):
            features.transform(eeg)


def test_moabb_evaluates_a_pipeline_with_our_features(fake: Any, checkpoint: Path, tmp_path: Path) -> None:
    from moabb.evaluations import WithinSessionEvaluation
    from moabb.paradigms import MotorImagery

    fake.subject_list = [1]
    paradigm = MotorImagery(n_classes=3, fmin=0.1, fmax=75, resample=200)
    pipelines = {"LaBraM": make_pipeline(LabramFeatures(checkpoint, NAMES), LogisticRegression())}
    evaluation = WithinSessionEvaluation(paradigm=paradigm, datasets=[fake], overwrite=True, hdf5_path=str(tmp_path))
    results = evaluation.process(pipelines)
    assert set(results["session"]) == {"0", "1"} and set(results["samples"]) == {18}
    assert results["score"].notna().all()
