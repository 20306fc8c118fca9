"""Turn a windows data set of braindecode into a labelled HDF5.

    from dataset_maker.from_braindecode import from_braindecode

    from_braindecode(windows, "data/Mine.hdf5")  # windows: of create_windows_from_events, create_fixed_length_windows

The recordings behind the windows go through our pipeline: 0.1-75 Hz, notch, 200 Hz. Preprocessing with braindecode is
not needed; what it has filtered away stays away. Needs nothing of braindecode but the objects.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from dataset_maker import marks
from dataset_maker.pipeline import Pipeline, Prepared, prepare
from dataset_maker.sources import plain_name, train_val_test
from dataset_maker.writers import DataSet, LabelledShard, Windows, refuse_existing, unbroken
from eeg_data.labelled_files import SPLITS
from eeg_data.pretraining_files import MAX_SECONDS, SAMPLING_RATE
from errors import InputError

logger = logging.getLogger(__name__)

WINDOW = ["i_start_in_trial", "i_stop_in_trial"]  # columns: first sample, and the one behind the last


def from_braindecode(
    dataset: Any,
    path: str | Path,
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    pipeline: Pipeline | None = None,
) -> Path:
    """Write a BaseConcatDataset of windows as labelled HDF5 for --dataset; return its path.

    Subjects and splits are the columns `subject` and `split` (train, val, test) of the description; without `split`,
    `seed` splits by subject. classes: names of the targets, smallest first (default: those of the windows' mapping).
    Targets that are no whole numbers are a regression. pipeline: filters, names, scale. Raises InputError for windows
    without a recording, of different lengths or of no whole seconds, and for recordings that cannot be used.
    """
    path, pipeline, parts = Path(path), pipeline or Pipeline(), list(dataset.datasets)
    refuse_existing(path)
    window = _window(parts)
    values = np.unique(np.concatenate([part.metadata["target"] for part in parts]))
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError("some windows have no target (NaN): leave them out, or name the targets when you make them")
    regression = values.dtype.kind == "f" and bool((values % 1).any())
    names = list(classes or (["target"] if regression else _names(parts[0], values)))
    if len(names) != (1 if regression else len(values)):
        raise InputError(f"{len(names)} classes ({', '.join(names)}) for the targets {values[:9].tolist()}: name each")
    about = [dict(part.description) if part.description is not None else {} for part in parts]
    subjects = [str(its.get("subject", number)) for number, its in enumerate(about)]
    splits, how = _splits(about, subjects, seed)
    made = {"source": "braindecode", "split": how, **pipeline.described()}
    with ExitStack() as stack:
        file: LabelledShard | None = None
        for number, part in enumerate(parts):
            task = {"path": f"recording {number}", "recording": _name(about[number], subjects[number], number)}
            prepared = prepare(part.raw.copy(), pipeline, where=task["path"])
            for warning in prepared.report["warnings"]:
                logger.warning("%s", warning)
            if file is None:
                data_set = DataSet(name or path.stem, names, window, prepared.electrodes, regression=regression)
                file = stack.enter_context(LabelledShard(path, data_set, made=made))
            target = np.asarray(part.metadata["target"])
            labels = target[:, None] if regression else np.searchsorted(values, target)
            windows = unbroken(_place(part, labels, prepared, window), prepared, window)
            for note, count in windows.notes.items():
                logger.warning("%s: %d %s", task["path"], count, note)
            file.append_windows(prepared, windows, task=task | {"subject": subjects[number], "split": splits[number]})
    return path


def _window(parts: Sequence[Any]) -> int:
    """Return the length of all windows in s. Raises InputError for windows that cannot be samples."""
    lengths = set()
    for number, part in enumerate(parts):
        if not hasattr(part, "raw") or part.targets_from != "metadata":
            way_out = "make them without use_mne_epochs=True and targets_from='channels'"
            raise InputError(f"recording {number}: its windows have no recording, or no targets: {way_out}")
        lengths |= set(np.round(np.diff(part.metadata[WINDOW]).ravel() / part.raw.info["sfreq"], 6).tolist())
    if len(lengths) != 1 or not 1 <= (window := lengths.pop()) <= MAX_SECONDS or window % 1:
        raise InputError(f"windows must have one length, of 1 to {MAX_SECONDS} whole seconds: window_size_samples")
    return int(window)


def _names(part: Any, values: np.ndarray) -> list[str]:
    """Return names of the targets: those of the mapping that made the windows, or else the numbers."""
    made = [options.get("mapping") for _, options in getattr(part, "window_kwargs", ()) if options.get("mapping")]
    mapping: Mapping[int, str] = {code: str(text) for text, code in made[-1].items()} if made else {}
    return [mapping.get(value, str(value)) for value in values.tolist()]


def _splits(about: Sequence[Mapping[str, Any]], subjects: Sequence[str], seed: int) -> tuple[list[str], str]:
    """Return the split of each recording, and how it came about."""
    if not any("split" in its for its in about):
        split_of = train_val_test(subjects, seed, "set_description({'split': [...]}) is missing")
        return [split_of[subject] for subject in subjects], f"by subject, seed {seed}"
    splits = [str(its.get("split")) for its in about]
    if other := set(splits).difference(SPLITS):
        raise InputError(f"the description has the split {min(other)!r}: allowed are {', '.join(SPLITS)}")
    return splits, "the description's"


def _name(about: Mapping[str, Any], subject: str, number: int) -> str:
    """Return a neutral name of a recording."""
    return plain_name(
        "-".join([subject, *(str(about[key]) for key in ("session", "run") if key in about), str(number)])
    )


def _place(part: Any, labels: np.ndarray, prepared: Prepared, window: int) -> Windows:
    """Return where a recording's windows lie: each begins at the first sample at or after its start."""
    rate, last = part.raw.info["sfreq"], prepared.length - window * SAMPLING_RATE
    starts = [marks.first_sample(start / rate, prepared.rate) for start in part.metadata[WINDOW[0]]]
    return Windows(np.minimum(starts, last), labels)  # rounding moves the last one by a sample at most
