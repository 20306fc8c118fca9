"""Labelled files to batches: samples in order with their labels, splits, and sets from which nothing can be learned."""

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
from eeg_data.pretraining import Loaders
from electrodes import ELECTRODES
from errors import InputError


def eeg(n: int, seed: int = 0) -> np.ndarray:
    return signal(n, 3, 400, seed=seed)


def two_classes(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return eeg(n, seed), np.arange(n, dtype=np.int64) % 2


def loaders(path: Path, *words: Any, accumulation: int = 1, **run: int) -> Loaders:
    args = parse(words, add_labelled_arguments, batch_size=4, num_workers=0, seed=run.get("seed", 0))
    return build_labelled_loaders(args, plain_run(Path(), **run), read_labelled(path), accumulation=accumulation)


def with_valid(path: Path, **valid: Any) -> Path:
    """Say in a file which seconds of its splits are valid."""
    with h5py.File(path, "r+") as file:
        for split, seconds in valid.items():
            file[split]["valid"] = seconds
    return path


def test_evaluation_gives_every_sample_in_the_files_order(tmp_path: Path) -> None:
    val = two_classes(11, seed=1)
    path = write_labelled(tmp_path / "a.hdf5", {"train": two_classes(6), "val": val, "test": two_classes(3, seed=2)})
    sets: Any = loaders(path)
    batches = list(sets.val)
    assert torch.cat([b.samples for b in batches]).tolist() == list(range(11))
    assert torch.cat([b.labels for b in batches]).tolist() == val[1].tolist()
    whole = torch.cat([b.eeg for b in batches]).numpy()
    for n in range(3):
        for a in range(2):
            np.testing.assert_allclose(whole[:, n, a], val[0][:, n, 200 * a : 200 * (a + 1)] / 100, rtol=1e-6)
    assert batches[0].channels.tolist() == [0, *(ELECTRODES.index(name) + 1 for name in TRIO)]
    assert sets.val.dataset.recordings == [f"val-recording{i // 2}" for i in range(11)]
    assert sets.val.dataset.subjects == [f"val-subject{i // 4}" for i in range(11)]
    assert len(sets.test.dataset) == 3


def test_training_batches_pair_each_sample_with_its_own_label(tmp_path: Path) -> None:
    signals, classes = np.round(eeg(10)), [f"class{i}" for i in range(10)]  # whole numbers, exact in float16 too
    splits = {"train": (signals.astype(np.float16), np.arange(10))}
    path = write_labelled(tmp_path / "a.hdf5", splits, task="multiclass", classes=classes)
    batches = list(loaders(path, "--num_workers", 1).train)
    assert {int(label) for b in batches for label in b.labels} == set(range(10))
    for batch in batches:
        assert torch.equal(batch.labels, batch.samples) and batch.eeg.dtype == torch.float32
        for window, label in zip(batch.eeg, batch.labels, strict=True):
            np.testing.assert_allclose(window.reshape(3, 400), signals[label] / 100, rtol=1e-6)


def test_dist_eval_shares_the_evaluation_and_no_dist_eval_shows_every_process_everything(tmp_path: Path) -> None:
    path = write_labelled(tmp_path / "a.hdf5", {"train": two_classes(4), "val": two_classes(11)})

    def samples(*words: str, rank: int) -> list[int]:
        val = loaders(path, *words, rank=rank, processes=2).val
        assert val is not None
        return [int(i) for batch in val for i in batch.samples]

    shared = samples(rank=0), samples(rank=1)
    assert sorted(shared[0] + shared[1]) == list(range(11)) and min(map(len, shared)) > 0
    assert samples("--no_dist_eval", rank=0) == samples("--no_dist_eval", rank=1) == list(range(11))


def test_samples_with_an_invalid_second_are_left_out_everywhere_and_counted_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = {"train": two_classes(9), "val": two_classes(7, seed=1)}
    bad = {"train": [0, 4, 8], "val": [2, 3]}
    valid = {split: np.ones((len(labels), 2), bool) for split, (_, labels) in splits.items()}
    for split, rows in bad.items():
        valid[split][rows, 1] = False
    sets: Any = loaders(with_valid(write_labelled(tmp_path / "a.hdf5", splits), **valid))
    for split, loader in (("train", sets.train), ("val", sets.val)):
        signals, labels = splits[split]
        kept = [i for i in range(len(signals)) if i not in bad[split]]
        assert loader.dataset.samples.tolist() == kept and loader.dataset.left_out == len(bad[split])
        assert loader.dataset.recordings == [f"{split}-recording{i // 2}" for i in kept]
        for batch in loader:
            for window, label, place in zip(batch.eeg, batch.labels, batch.samples.tolist(), strict=True):
                np.testing.assert_allclose(window.reshape(3, 400), signals[kept[place]] / 100, rtol=1e-6)
                assert label == labels[kept[place]]
    assert sorted(int(i) for batch in sets.val for i in batch.samples) == list(range(5))
    texts = [r.getMessage() for r in caplog.records]
    assert any("3 of 9 samples of train" in t for t in texts) and any("2 of 7 samples of val" in t for t in texts)


def test_a_folder_of_shards_is_trained_on_as_one_file_with_the_same_samples(tmp_path: Path) -> None:
    parts = [two_classes(3 + i, seed=i) for i in range(3)]
    for i, part in enumerate(parts):
        path = write_labelled(tmp_path / "set" / f"{i}.hdf5", {"train": part})
        with h5py.File(path, "r+") as file:
            file.attrs["name"] = "whole"
    with_valid(tmp_path / "set" / "1.hdf5", train=np.array([[1, 1], [1, 1], [1, 0], [1, 1]], bool))
    eeg_of_all, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    whole = with_valid(
        write_labelled(tmp_path / "one.hdf5", {"train": (eeg_of_all, labels)}),
        train=(np.arange(24) != 11).reshape(12, 2),
    )
    one, many = loaders(whole).train, loaders(labelled_path(str(tmp_path / "set"), tmp_path), "--num_workers", 2).train
    for first, second in zip(one, many, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    data: Any = many.dataset
    assert data.path == tmp_path / "set" and data.samples.tolist() == [*range(5), *range(6, 12)]


def test_odd_signals_and_splits_are_warned_about_by_the_first_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = {"train": two_classes(4), "val": (eeg(3, seed=1), np.zeros(3, int))}
    path = with_valid(
        write_labelled(tmp_path / "TUAB.hdf5", splits), train=np.ones((4, 2), bool), val=np.ones((3, 2), bool)
    )
    with h5py.File(path, "r+") as file:
        file["val/subject"][:] = "train-subject0"
        file["train"].attrs["quality"] = (
            '{"flat": {}, "saturated": {}, "not_finite": {}, "histogram": {"300": 9}, "seconds": 8}'
        )
    loaders(path, rank=1, processes=2)
    assert not caplog.records
    caplog.set_level(logging.INFO)
    loaders(path)
    unit, subjects, classes = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "raw counts" in unit and "train-subject0 (train, val)" in subjects and "val have the class rest" in classes
    assert "4, 3, 0; published are TUAB v3.0.1: 297103" in caplog.text
    assert "train 4, val 3; 0 training samples repeated" in caplog.text


@pytest.mark.parametrize(
    ("splits", "valid", "part"),
    [
        ({"train": two_classes(4)}, [[1, 1], [0, 1], [1, 1], [1, 0]], "all 2 training samples have the class rest"),
        ({"test": two_classes(3)}, None, "group train"),
        ({"train": two_classes(4)}, np.zeros((4, 2)), "group train: all 4 hold seconds"),
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
    assert error.value.exit_code == 1


def test_a_regression_to_equal_targets_and_an_electrode_of_the_grown_table_are_allowed(tmp_path: Path) -> None:
    path = write_labelled(tmp_path / "a.hdf5", {"train": (eeg(4), np.ones(4))}, task="regression", classes=["x"])
    assert loaders(path).steps_per_epoch == 1
    assert loaders(path).val is None and loaders(path).test is None
    write_labelled(tmp_path / "b.hdf5", {"train": two_classes(2)}, names=("C3", "P4-O2", "C4"))
    batch = next(iter(loaders(tmp_path / "b.hdf5", "--num_electrodes", 136).train))
    assert batch.channels.tolist()[2] == 136


def test_balanced_weights_are_scikit_learns_and_a_class_without_samples_gets_one() -> None:
    labels = np.array([0, 2, 2, 2, 0, 2, 2])
    expected = compute_class_weight("balanced", classes=np.array([0, 2]), y=labels)
    np.testing.assert_allclose(balanced_weights(labels, 3).numpy(), [expected[0], 1.0, expected[1]], rtol=1e-12)
