"""Input that the reference run's baselines, intervals and figures cannot use is one line."""

import sys
from pathlib import Path
from unittest.mock import patch

import h5py
import numpy as np
import pytest

from errors import InputError, UsageError
from reference import baselines, figures, intervals
from run_helpers import labelled_file


def run(file: Path, *words: str) -> None:
    """Fit a baseline to a file."""
    flags = ["--dataset", str(file), "--output_dir", str(file.parent / "out")]
    with patch.object(sys, "argv", ["x", *words, *flags]):
        baselines.main(baselines.get_args())


def without_usable(file: Path, split: str) -> Path:
    """Say in a file that no second of a split can be used."""
    with h5py.File(file, "r+") as opened:
        opened[f"{split}/valid"] = np.zeros((len(opened[f"{split}/label"]), 2), bool)
    return file


def test_a_file_without_windows_to_learn_or_select_by_is_refused(tmp_path: Path) -> None:
    both = {"train": 4, "val": 4}
    one_class = labelled_file(tmp_path / "one_class.hdf5", counts=both, labels=[1, 1, 1, 1])
    for file in (labelled_file(tmp_path / "val.hdf5", counts={"val": 4}), one_class):
        with pytest.raises(InputError, match="a group train with usable windows of both classes is needed"):
            run(file, "logistic")
    with pytest.raises(InputError, match="with a group val is needed"):
        run(without_usable(labelled_file(tmp_path / "task.hdf5", counts=both), "val"), "logistic")


def test_a_test_group_without_usable_windows_is_not_measured(tmp_path: Path) -> None:
    file = labelled_file(tmp_path / "task.hdf5", counts={"train": 8, "val": 4, "test": 2})
    run(without_usable(file, "test"), "logistic")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"log.txt", "predictions-val.npz"}


def test_features_of_every_patch_are_refused_with_how_to_make_those_of_a_window(tmp_path: Path) -> None:
    task = labelled_file(tmp_path / "task.hdf5", counts={"train": 2, "val": 2})
    with h5py.File(tmp_path / "features.hdf5", "w") as file:
        for split in ("train", "val"):
            file[f"{split}/features"], file[f"{split}/recording"] = np.zeros((2, 3, 2, 5)), [f"{split}-0"] * 2
    with pytest.raises(InputError, match=r"must be \(windows, D\): make it with run_inference.py embed --pool mean"):
        run(task, "features", "--features", str(tmp_path / "features.hdf5"))


@pytest.mark.parametrize("content", ["{", "[1]", "3"])
def test_intervals_that_are_damaged_are_to_be_deleted(content: str, tmp_path: Path) -> None:
    (tmp_path / intervals.FILE).write_text(content)
    with pytest.raises(InputError, match=r"intervals.json cannot be read .*: delete it, it is made anew"):
        intervals.Intervals(tmp_path)


def test_figures_that_have_no_place_name_the_flag_that_gives_one(tmp_path: Path) -> None:
    (tmp_path / "figures").write_text("a file")
    found = {cell: [{"runs": [{"log": []}]}] for cell in ("cv-pretrained-even", "cv-scratch-even")}
    with pytest.raises(UsageError, match=r"--readme .*figures cannot be written"):
        figures.draw(found, tmp_path / "figures")
