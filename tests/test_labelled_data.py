"""Labelled files to batches: what a file says of itself, its samples in order, and every error it can cause."""

import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from data_helpers import PAIR, TRIO, only_line, parse, plain_run, signal, write_labelled
from eeg_data.labelled import LabelledWindows, add_labelled_arguments, balanced_weights, build_labelled_loaders
from eeg_data.labelled_files import DATASETS, labelled_path, read_labelled
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


# What a file says


@pytest.mark.parametrize(
    ("task", "classes", "labels", "outputs"),
    [
        ("binary", ("normal", "abnormal"), [0, 1], 1),
        ("multiclass", ("a", "b", "c", "d", "e", "f"), [5, 0], 6),
        ("multiclass", ("a", "b"), [1, 0], 2),
        ("regression", ("valence",), [[0.5], [-3.0]], 1),
        ("regression", ("valence", "arousal"), [[0.5, 1], [2, -3.0]], 2),
    ],
)
def test_the_task_sets_the_heads_outputs(tmp_path: Path, task: str, classes: tuple, labels: list, outputs: int) -> None:
    kind = np.float32 if task == "regression" else np.int64
    path = write_labelled(
        tmp_path / "own.hdf5", {"train": (eeg(2), np.array(labels, dtype=kind))}, task=task, classes=classes
    )
    file = read_labelled(path)
    assert (file.outputs, file.task, file.classes) == (outputs, task, classes)
    assert (file.name, file.montage, file.splits, file.seconds) == ("own", TRIO, ("train",), 2)
    labels_read = LabelledWindows(file, "train").labels
    assert labels_read.dtype == kind and labels_read.tolist() == np.array(labels, dtype=kind).tolist()


def test_regression_targets_without_a_second_axis_are_one_output(tmp_path: Path) -> None:
    path = write_labelled(tmp_path / "a.hdf5", {"train": (eeg(3), [1.5, 2.5, 3.5])}, task="regression", classes=["x"])
    assert next(iter(loaders(path, "--batch_size", 3).train)).labels.shape == (3, 1)


def test_the_path_of_any_labelled_file_is_a_dataset(tmp_path: Path) -> None:
    path = write_labelled(tmp_path / "mine.h5", {"train": two_classes(2)})
    assert labelled_path(str(path), tmp_path / "elsewhere") == path


# Batches


def test_evaluation_gives_every_sample_in_the_files_order(tmp_path: Path) -> None:
    val = two_classes(11, seed=1)
    path = write_labelled(tmp_path / "a.hdf5", {"train": two_classes(6), "val": val, "test": two_classes(3, seed=2)})
    found = loaders(path)
    assert found.val is not None and found.test is not None
    batches = list(found.val)
    assert torch.cat([b.samples for b in batches]).tolist() == list(range(11))
    assert torch.cat([b.labels for b in batches]).tolist() == val[1].tolist()
    whole = torch.cat([b.eeg for b in batches]).numpy()
    for n in range(3):
        for a in range(2):
            np.testing.assert_allclose(whole[:, n, a], val[0][:, n, 200 * a : 200 * (a + 1)] / 100, rtol=1e-6)
    assert batches[0].channels.tolist() == [0, *(ELECTRODES.index(name) + 1 for name in TRIO)]
    assert len(found.test.dataset) == 3
    assert found.val.dataset.recordings == [f"val-recording{i // 2}" for i in range(11)]
    assert found.val.dataset.subjects == [f"val-subject{i // 4}" for i in range(11)]


def test_training_batches_pair_each_sample_with_its_own_label(tmp_path: Path) -> None:
    signals, labels = eeg(10), np.arange(10)
    path = write_labelled(
        tmp_path / "a.hdf5", {"train": (signals, labels)}, task="multiclass", classes=[f"class{i}" for i in range(10)]
    )
    batches = list(loaders(path, "--num_workers", 1).train)
    assert {int(label) for b in batches for label in b.labels} == set(range(10))
    for batch in batches:
        assert torch.equal(batch.labels, batch.samples)
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


def test_processes_and_micro_batches_share_a_step(tmp_path: Path) -> None:
    path = write_labelled(tmp_path / "a.hdf5", {"train": two_classes(13)})
    one = [b.samples.tolist() for b in loaders(path, "--batch_size", 8).train]
    two = [list(loaders(path, "--batch_size", 2, accumulation=2, rank=r, processes=2).train) for r in (0, 1)]
    for step, samples in enumerate(one):
        parts = [part[2 * step + micro] for part in two for micro in (0, 1)]
        assert [int(i) for part in parts for i in part.samples] == samples


def test_a_file_without_val_and_test_is_trained_without_evaluation(tmp_path: Path) -> None:
    found = loaders(write_labelled(tmp_path / "a.hdf5", {"train": two_classes(4), "test": (eeg(0), np.zeros(0, int))}))
    assert found.val is None and found.test is None and found.steps_per_epoch == 1


def test_the_loader_says_what_the_file_holds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    loaders(write_labelled(tmp_path / "mine.hdf5", {"train": two_classes(6), "val": two_classes(3)}))
    expected = "mine: binary, 3 electrodes, 2 s; train 6, val 3; 2 training samples repeated to complete the last batch"
    assert expected in caplog.text


# Seconds that cannot be used, shards


def with_valid(path: Path, split: str, valid: Any) -> Path:
    """Say in a file which seconds of a split are valid."""
    with h5py.File(path, "r+") as file:
        file[split]["valid"] = valid
    return path


@pytest.mark.parametrize("stated", [True, False])
def test_samples_with_an_invalid_second_are_left_out_everywhere_and_counted_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stated: bool
) -> None:
    splits = {"train": two_classes(9), "val": two_classes(7, seed=1)}
    bad = {"train": [0, 4, 8], "val": [2, 3]}
    for split, rows in bad.items():
        splits[split][0][rows, 1, 399] = np.nan
    path = write_labelled(tmp_path / "a.hdf5", splits, task="multiclass", classes=("a", "b"))
    if stated:
        for split, rows in bad.items():
            valid = np.ones((len(splits[split][0]), 2), bool)
            valid[rows, 1] = False
            with_valid(path, split, valid)
    found = loaders(path)
    assert found.val is not None
    for split, loader in (("train", found.train), ("val", found.val)):
        eeg, labels = splits[split]
        kept = [i for i in range(len(eeg)) if i not in bad[split]]
        data = loader.dataset
        assert data.samples.tolist() == kept and data.left_out == len(bad[split])
        assert data.labels.tolist() == labels[kept].tolist()
        assert data.recordings == [f"{split}-recording{i // 2}" for i in kept]
        assert data.subjects == [f"{split}-subject{i // 4}" for i in kept]
        for batch in loader:
            for window, label, place in zip(batch.eeg, batch.labels, batch.samples.tolist(), strict=True):
                np.testing.assert_allclose(window.reshape(3, 400), eeg[kept[place]] / 100, rtol=1e-6)
                assert label == labels[kept[place]]
    text = "hold seconds that cannot be used (not finite, or all electrodes flat) and are left out."
    said = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert said == [f"a: 3 of 9 samples of train {text}", f"a: 2 of 7 samples of val {text}"]


def test_evaluation_covers_the_kept_samples_and_no_others(tmp_path: Path) -> None:
    path = write_labelled(tmp_path / "a.hdf5", {"train": two_classes(4), "val": two_classes(9)})
    found = loaders(with_valid(path, "val", np.arange(18).reshape(9, 2) % 5 != 0)).val
    assert found is not None
    assert torch.cat([batch.samples for batch in found]).tolist() == list(range(5)) == list(range(len(found.dataset)))


def test_a_training_split_without_a_usable_sample_is_refused(tmp_path: Path) -> None:
    path = write_labelled(tmp_path / "a.hdf5", {"train": two_classes(4)})
    refused(with_valid(path, "train", np.zeros((4, 2), bool)), "no samples in its group train", "all 4 hold seconds")


@pytest.mark.parametrize(("task", "classes"), [("binary", ("rest", "work")), ("multiclass", ("rest", "work", "play"))])
def test_a_training_split_of_one_class_is_refused(tmp_path: Path, task: str, classes: tuple[str, ...]) -> None:
    splits = {"train": (eeg(5), np.ones(5, int)), "val": two_classes(4)}
    path = write_labelled(tmp_path / "a.hdf5", splits, task=task, classes=classes)
    refused(path, "all 5 training samples have the class work", "nothing to learn", "make it again")


def test_a_training_split_left_with_one_class_by_invalid_seconds_is_refused(tmp_path: Path) -> None:
    path = write_labelled(tmp_path / "a.hdf5", {"train": two_classes(4)})
    refused(
        with_valid(path, "train", np.array([[1, 1], [0, 1], [1, 1], [1, 0]], bool)), "all 2 training samples", "rest"
    )


def test_a_regression_to_equal_targets_is_trained(tmp_path: Path) -> None:
    path = write_labelled(tmp_path / "a.hdf5", {"train": (eeg(4), np.ones(4))}, task="regression", classes=["x"])
    assert loaders(path).steps_per_epoch == 1


def shards(folder: Path, number: int = 3) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write shards of one set; return all its samples by split."""
    parts = []
    for i in range(number):
        splits = {"train": two_classes(3 + i, seed=i), "val": two_classes(2, seed=10 + i)}
        path = write_labelled(folder / f"{i}.hdf5", splits)
        with h5py.File(path, "r+") as file:
            file.attrs["name"] = "whole"
            for split in splits:
                for key in ("recording", "subject"):
                    file[split][key][:] = [f"{name.decode()}-{i}" for name in file[split][key][:]]
        parts.append(splits)
    joined = {
        split: [np.concatenate(both) for both in zip(*(p[split] for p in parts), strict=True)] for split in parts[0]
    }
    return {split: (values[0], values[1]) for split, values in joined.items()}


def test_a_folder_of_shards_is_trained_on_as_one_file_with_the_same_samples(tmp_path: Path) -> None:
    whole = shards(tmp_path / "set")
    one = loaders(write_labelled(tmp_path / "one.hdf5", whole))
    many = loaders(labelled_path(str(tmp_path / "set"), tmp_path))
    assert one.val is not None and many.val is not None
    for single, spread in ((one.train, many.train), (one.val, many.val)):
        for first, second in zip(single, spread, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    data = many.train.dataset
    assert data.path == tmp_path / "set"
    assert data.subjects == [f"train-subject{i // 4}-{shard}" for shard in range(3) for i in range(3 + shard)]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_shards_some_of_which_say_what_is_valid_and_workers_that_open_them(tmp_path: Path) -> None:
    whole = shards(tmp_path / "set")
    with_valid(tmp_path / "set" / "1.hdf5", "train", np.array([[1, 1], [1, 1], [1, 0], [1, 1]], bool))
    data = loaders(tmp_path / "set", "--num_workers", 2).train
    assert data.dataset.samples.tolist() == [*range(5), *range(6, 12)] and data.dataset.left_out == 1
    for batch in data:
        for window, place in zip(batch.eeg, batch.samples.tolist(), strict=True):
            expected = whole["train"][0][data.dataset.samples[place]] / 100
            np.testing.assert_allclose(window.reshape(3, 400), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_labelled_files_of_other_float_types_give_the_same_batches(tmp_path: Path, dtype: type) -> None:
    signals = np.round(eeg(6))  # whole numbers, exact in float16 too
    labels = np.arange(6) % 2
    plain = loaders(write_labelled(tmp_path / "plain.hdf5", {"train": (signals, labels)})).train
    other = loaders(write_labelled(tmp_path / "other.hdf5", {"train": (signals.astype(dtype), labels)})).train
    for first, second in zip(plain, other, strict=True):
        assert second.eeg.dtype == torch.float32 and torch.equal(first.eeg, second.eeg)


def test_odd_signals_and_splits_are_warned_about_by_the_first_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = {"train": two_classes(4), "val": (eeg(3, seed=1), np.zeros(3, int))}
    path = write_labelled(tmp_path / "TUAB.hdf5", {k: (e * 1e6, y) for k, (e, y) in splits.items()})
    with h5py.File(path, "r+") as file:
        file["val/subject"][:] = "train-subject0"
    loaders(path, rank=1, processes=2)
    assert not caplog.records
    caplog.set_level(logging.INFO)
    loaders(path)
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(said) == 3 and all(text.startswith("TUAB: ") for text in said)
    assert "raw counts" in said[0]
    assert "train-subject0 (train, val)" in said[1] and "All 3 samples of val have the class rest" in said[2]
    assert "TUAB: Samples of train, val and test are 4, 3, 0; published are TUAB v3.0.1: 297103" in caplog.text


# Errors


@pytest.mark.parametrize("dataset", ["TUAB", "TUAV", "folder/missing.hdf5"])
def test_a_dataset_that_is_not_there_is_said_with_the_known_names(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(InputError) as error:
        labelled_path(dataset, tmp_path)
    path = tmp_path / "TUAB.hdf5" if dataset == "TUAB" else dataset
    only_line(error, f"no data found at {path}", "--dataset", *DATASETS, "dataset_maker")


def refused(path: Path, *parts: Any) -> None:
    """Check that a file is refused with exit code 1 in one line that names it."""
    with pytest.raises(InputError) as error:
        loaders(path)
    only_line(error, path, *parts)
    assert error.value.exit_code == 1


@pytest.mark.parametrize("attribute", ["task", "classes", "chOrder", "rsFreq"])
def test_a_missing_root_attribute_is_named(tmp_path: Path, attribute: str) -> None:
    path = write_labelled(tmp_path / "a.hdf5", {"train": two_classes(2)}, leave_out=[attribute])
    refused(path, "no labelled file", attribute, "missing", "dataset_maker")


@pytest.mark.parametrize("dataset", ["eeg", "label", "recording", "subject"])
def test_a_group_without_one_of_its_four_datasets_is_named(tmp_path: Path, dataset: str) -> None:
    splits = {"train": two_classes(2), "val": two_classes(2)}
    refused(write_labelled(tmp_path / "a.hdf5", splits, leave_out=[dataset]), "group train", dataset, "dataset_maker")


def test_an_unknown_task_is_named_with_the_allowed_ones(tmp_path: Path) -> None:
    path = write_labelled(tmp_path / "a.hdf5", {"train": two_classes(2)}, task="ranking")
    refused(path, "ranking", "binary, multiclass, regression")


def test_another_sampling_rate_is_refused(tmp_path: Path) -> None:
    refused(write_labelled(tmp_path / "a.hdf5", {"train": two_classes(2)}, rate=250), "250 Hz", "200 Hz")


def test_a_file_without_splits_is_no_labelled_file(tmp_path: Path) -> None:
    refused(write_labelled(tmp_path / "a.hdf5", {"training": two_classes(2)}), "train, val, test", "dataset_maker")


@pytest.mark.parametrize("splits", [{"val": 3}, {"test": 3}, {"train": 0, "val": 3}])
def test_a_file_without_training_samples_is_refused(tmp_path: Path, splits: dict[str, int]) -> None:
    path = write_labelled(tmp_path / "a.hdf5", {split: two_classes(n) for split, n in splits.items()})
    refused(path, "no samples in its group train", "make it again")


@pytest.mark.parametrize("shape", [(2, 400), (4, 400), (3, 300), (3, 0), (3, 3400)])
def test_windows_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = write_labelled(tmp_path / "a.hdf5", {"train": (signal(2, *shape), [0, 1])})
    refused(path, "group train", f"{shape[0]}, {shape[1]}", "3 electrodes", "200 to 3200")


@pytest.mark.parametrize("shape", [(2,), (2, 400), (2, 3, 2, 200)])
def test_eeg_that_does_not_have_three_axes_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    refused(write_labelled(tmp_path / "a.hdf5", {"train": (signal(*shape), [0, 1])}), "group train")


def test_a_bad_validation_group_is_named(tmp_path: Path) -> None:
    splits = {"train": two_classes(2), "val": (signal(2, 2, 400), [0, 1])}
    refused(write_labelled(tmp_path / "a.hdf5", splits), "group val")


def test_more_labels_than_samples_are_refused(tmp_path: Path) -> None:
    refused(write_labelled(tmp_path / "a.hdf5", {"train": (eeg(2), [0, 1, 1])}), "group train", "3 labels", "2 samples")


@pytest.mark.parametrize(
    ("task", "classes", "label"),
    [("binary", ("a", "b"), 2), ("binary", ("a", "b"), -1), ("multiclass", ("a", "b", "c"), 3)],
)
def test_labels_outside_the_classes_are_refused(tmp_path: Path, task: str, classes: tuple, label: int) -> None:
    splits = {"train": two_classes(2), "test": (eeg(3), [0, label, 1])}
    path = write_labelled(tmp_path / "a.hdf5", splits, task=task, classes=classes)
    refused(path, "group test", f"label {label}", f"{len(classes)} classes", f"0 to {len(classes) - 1}")


@pytest.mark.parametrize("labels", [[0.0, 0.5], [0.0, np.nan]])
def test_labels_that_are_no_whole_numbers_are_refused_for_classes(tmp_path: Path, labels: list[float]) -> None:
    refused(write_labelled(tmp_path / "a.hdf5", {"train": (eeg(2), np.array(labels))}), "group train")


@pytest.mark.parametrize(
    "labels", [[[0.5, np.nan], [1, 2]], [[0.5, np.inf], [1, 2]], [[0.5], [1.0]], [[1.0, 2, 3], [1, 2, 3]]]
)
def test_regression_targets_that_are_not_finite_or_not_as_many_as_outputs_are_refused(
    tmp_path: Path, labels: list[list[float]]
) -> None:
    path = write_labelled(
        tmp_path / "a.hdf5", {"train": (eeg(2), np.array(labels))}, task="regression", classes=["x", "y"]
    )
    refused(path, "group train", "2 finite numbers")


def test_an_unknown_electrode_and_one_beyond_the_table_are_named(tmp_path: Path) -> None:
    for name, part in (("CZZ", "CZ"), ("P4-O2", "--num_electrodes 136")):
        path = write_labelled(tmp_path / f"{name}.hdf5", {"train": two_classes(2)}, names=("C3", name, "C4"))
        refused(path, name, part)


def test_an_electrode_of_the_grown_table_is_allowed_with_num_electrodes(tmp_path: Path) -> None:
    path = write_labelled(tmp_path / "a.hdf5", {"train": two_classes(2)}, names=("C3", "P4-O2", "C4"))
    assert next(iter(loaders(path, "--num_electrodes", 136).train)).channels.tolist()[2] == 136


def test_a_truncated_labelled_file_and_a_text_file_are_named(tmp_path: Path) -> None:
    whole = write_labelled(tmp_path / "whole.hdf5", {"train": two_classes(20)}).read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("text", b"sample,label\n" * 50)):
        path = tmp_path / f"{name}.hdf5"
        path.write_bytes(content)
        refused(path, "no readable HDF5 file", "make it again")


def test_a_pre_training_file_is_no_labelled_file(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file.create_group("someone")["eeg"] = signal(len(PAIR), 400)
    refused(path, "no labelled file", "dataset_maker")


def test_balanced_weights_are_scikit_learns_and_a_class_without_samples_gets_one() -> None:
    labels = np.array([0, 2, 2, 2, 0, 2, 2])
    expected = compute_class_weight("balanced", classes=np.array([0, 2]), y=labels)
    np.testing.assert_allclose(balanced_weights(labels, 3).numpy(), [expected[0], 1.0, expected[1]], rtol=1e-12)
