"""Labelled files to batches: samples in order with their labels, splits, and sets from which nothing can be learned."""

import json
import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from data_helpers import TRIO, only_line, parse, plain_run, signal, write_labelled
from eeg_data.labelled import add_labelled_arguments, balanced_weights, build_labelled_loaders
from eeg_data.labelled_files import labelled_path, read_labelled
from electrodes import ELECTRODES
from errors import InputError


def two_classes(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return signal(n, 3, 400, seed=seed), np.arange(n, dtype=np.int64) % 2


def loaders(path: Path, *words: Any, accumulation: int = 1, **run: int) -> Any:
    args = parse(words, add_labelled_arguments, batch_size=4, num_workers=0, seed=run.get("seed", 0))
    run_here = plain_run(Path(), **run)
    return build_labelled_loaders(args, run_here, [read_labelled(path)], accumulation=accumulation)[0]


def with_valid(path: Path, **valid: Any) -> Path:
    """Say in a file which seconds of its splits are valid."""
    with h5py.File(path, "r+") as file:
        for split, seconds in valid.items():
            file[split]["valid"] = seconds
    return path


def test_evaluation_gives_every_usable_sample_in_the_files_order_and_counts_the_others_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = {"train": two_classes(9), "val": two_classes(11, seed=1), "test": two_classes(3, seed=2)}
    valid = {split: np.ones((len(labels), 2), bool) for split, (_, labels) in splits.items()}
    for split, rows in {"train": [0, 4, 8], "val": [2, 3]}.items():
        valid[split][rows, 1] = False
    sets = loaders(with_valid(write_labelled(tmp_path / "a.hdf5", splits), **valid))
    signals, labels = splits["val"]
    kept = [0, 1, *range(4, 11)]
    batches = list(sets.val)
    assert torch.cat([b.samples for b in batches]).tolist() == list(range(9))
    assert torch.cat([b.labels for b in batches]).tolist() == labels[kept].tolist()
    whole = torch.cat([b.eeg for b in batches]).numpy()
    np.testing.assert_allclose(whole, signals[kept].reshape(9, 3, 2, 200) / 100, rtol=1e-6)
    assert batches[0].channels.tolist() == [0, *(ELECTRODES.index(name) + 1 for name in TRIO)]
    assert sets.val.dataset.recordings == [f"val-recording{i // 2}" for i in kept]
    assert sets.val.dataset.subjects == [f"val-subject{i // 4}" for i in kept]
    assert (len(sets.train.dataset), len(sets.test.dataset)) == (6, 3)
    assert "3 of 9 samples of train" in caplog.text and "2 of 11 samples of val" in caplog.text


def test_training_batches_pair_each_sample_with_its_own_label(tmp_path: Path) -> None:
    signals = np.round(signal(10, 3, 400))  # whole numbers, exact in float16 too
    splits = {"train": (signals.astype(np.float16), np.arange(10))}
    path = write_labelled(tmp_path / "a.hdf5", splits, task="multiclass", classes=[f"class{i}" for i in range(10)])
    batches = list(loaders(path, "--num_workers", 1).train)
    assert {int(label) for b in batches for label in b.labels} == set(range(10))
    for batch in batches:
        assert torch.equal(batch.labels, batch.samples) and batch.eeg.dtype == torch.float32
        np.testing.assert_allclose(batch.eeg.flatten(2), signals[batch.labels] / 100, rtol=1e-6)


def test_dist_eval_shares_the_evaluation_and_no_dist_eval_shows_every_process_everything(tmp_path: Path) -> None:
    path = write_labelled(tmp_path / "a.hdf5", {"train": two_classes(4), "val": two_classes(11)})

    def samples(*words: str, rank: int) -> list[int]:
        return [int(i) for batch in loaders(path, *words, rank=rank, processes=2).val for i in batch.samples]

    shared = samples(rank=0), samples(rank=1)
    assert sorted(shared[0] + shared[1]) == list(range(11)) and min(map(len, shared)) > 0
    assert samples("--no_dist_eval", rank=0) == samples("--no_dist_eval", rank=1) == list(range(11))


def test_a_folder_of_shards_is_trained_on_as_one_file_with_the_same_samples(tmp_path: Path) -> None:
    parts = [two_classes(3 + i, seed=i) for i in range(3)]
    for i, part in enumerate(parts):
        path = write_labelled(tmp_path / "set" / f"{i}.hdf5", {"train": part})
        with h5py.File(path, "r+") as file:
            file.attrs["name"] = "whole"
    with_valid(tmp_path / "set" / "1.hdf5", train=np.array([[1, 1], [1, 1], [1, 0], [1, 1]], bool))
    eeg, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    whole = write_labelled(tmp_path / "one.hdf5", {"train": (eeg, labels)})
    with_valid(whole, train=(np.arange(24) != 11).reshape(12, 2))
    one, many = loaders(whole).train, loaders(labelled_path(str(tmp_path / "set"), tmp_path), "--num_workers", 2).train
    for first, second in zip(one, many, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert many.dataset.path == tmp_path / "set" and many.dataset.samples.index.tolist() == [*range(5), *range(6, 12)]


def test_odd_signals_and_splits_are_warned_about_by_the_first_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = {"train": two_classes(4), "val": (signal(3, 3, 400), np.zeros(3, int))}
    path = write_labelled(tmp_path / "TUAB.hdf5", splits)
    with_valid(path, train=np.ones((4, 2), bool), val=np.ones((3, 2), bool))
    scan = {"flat": {}, "saturated": {}, "not_finite": {}, "histogram": {"300": 9}, "seconds": 8}
    with h5py.File(path, "r+") as file:
        file["val/subject"][:] = "train-subject0"
        file["train"].attrs["quality"] = json.dumps(scan)
    loaders(path, rank=1, processes=2)
    assert not caplog.records
    caplog.set_level(logging.INFO)
    loaders(path)
    unit, subjects, classes = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "raw counts" in unit and "train-subject0 (train, val)" in subjects and "val" in classes and "task" in classes
    assert "train 4, val 3; 0 training samples repeated" in caplog.text


@pytest.mark.parametrize(
    ("splits", "valid", "part"),
    [
        ({"train": two_classes(4)}, [[1, 1], [0, 1], [1, 1], [1, 0]], "all 2 training samples have the class rest"),
        ({"test": two_classes(3)}, None, "group train"),
        ({"train": two_classes(4)}, np.zeros((4, 2)), "group train (4 hold seconds"),
    ],
    ids=["one class left", "no training split", "nothing usable"],
)
def test_a_set_from_which_nothing_can_be_learned_is_one_line(
    tmp_path: Path, splits: Any, valid: Any, part: str
) -> None:
    path = write_labelled(tmp_path / "a.hdf5", splits)
    if valid is not None:
        with_valid(path, train=np.array(valid, bool))
    with pytest.raises(InputError) as error:
        loaders(path)
    only_line(error, path, part)


def test_a_regression_to_equal_targets_and_an_electrode_of_the_grown_table_are_allowed(tmp_path: Path) -> None:
    splits = {"train": (signal(4, 3, 400), np.ones(4))}
    sets = loaders(write_labelled(tmp_path / "a.hdf5", splits, task="regression", classes=["x"]))
    assert (sets.steps_per_epoch, sets.val, sets.test) == (1, None, None)
    path = write_labelled(tmp_path / "b.hdf5", {"train": two_classes(2)}, names=("C3", "P4-O2", "C4"))
    assert next(iter(loaders(path, "--num_electrodes", 136).train)).channels.tolist()[2] == 136


def test_balanced_weights_are_scikit_learns_and_a_class_without_samples_gets_one() -> None:
    labels = np.array([0, 2, 2, 2, 0, 2, 2])
    expected = compute_class_weight("balanced", classes=np.array([0, 2]), y=labels)
    np.testing.assert_allclose(balanced_weights(labels, 3).numpy(), [expected[0], 1.0, expected[1]], rtol=1e-12)


def test_the_type_of_all_shards_is_asked_once_and_not_for_every_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = loaders(write_labelled(tmp_path / "a.hdf5", {"train": two_classes(9)})).train.dataset
    monkeypatch.setattr("eeg_data.labelled_files.open_dataset", lambda *_: pytest.fail("opened again"))
    assert train.half([(0, 0, 1)]) is False
