"""Open a recording with MNE, and judge its header: which channels are EEG, at which rates?

Whatever speaks against a recording before its signal is seen is an InputError raised here. Messages name the file and
never quote a reader, which may quote the header.
"""

from __future__ import annotations  # the types of mne would load half of it

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mne

from electrodes import is_known_non_eeg, resolve
from errors import InputError

EXTRA_READERS = {".set": "files of MATLAB 7.3 need `pip install pymatreader`", ".cnt": "ANT files need `antio`"}
LISTED = "listed to be left out"  # why a channel is dropped that the caller asked to drop
EDF = (".edf", ".bdf")


@contextmanager
def recording_readable(path: Path | str) -> Iterator[None]:
    """Turn whatever a reader raises on broken bytes into an InputError that names the file and quotes nothing of it."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # readers raise anything on broken bytes, from struct.error to ZeroDivisionError
        if Path(path).is_symlink() and not Path(path).exists():
            raise InputError(f"{path}: links to a file that is not there: fetch it, or take the link away") from None
        hint = next((f"; {text}" for suffix, text in EXTRA_READERS.items() if str(path).lower().endswith(suffix)), "")
        reason = f"broken or not what its name says ({type(error).__name__})"
        raise InputError(f"{path}: cannot be read, {reason}{hint}") from None


def read_raw(path: Path, **options: Any) -> mne.io.BaseRaw:
    """Open a recording of any format that MNE reads (signals in volts, not loaded yet). Raises InputError.

    options: of MNE's reader.
    """
    if path.name.lower().endswith(EDF):  # annotations are not used: no byte of theirs may make MNE refuse a file
        options["encoding"] = "latin1"
    with recording_readable(path):
        return mne.io.read_raw(path, verbose="error", **options)  # "error": MNE's warnings may quote header texts


def missing_seconds(path: Path, raw: mne.io.BaseRaw) -> str | None:
    """Return a warning for an EDF or BDF file that holds less than its header announces, or None."""
    if path.name.lower().endswith(EDF):
        with suppress(ValueError), path.open("rb") as file:  # a file that was never closed announces -1 records
            fixed = file.read(256)
            announced = int(fixed[236:244]) * float(fixed[244:252])
            missing = announced - raw.n_times / raw.info["sfreq"]
            if 0 < missing < math.inf:
                share = f"{missing:g} of {announced:g} s that its header announces are missing"
                return f"{path}: cut short, {share}; the rest is converted"
    return None


def select_electrodes(
    raw: mne.io.BaseRaw, *, rename: Mapping[str, str], drop: Sequence[str], where: str
) -> tuple[mne.io.BaseRaw, dict[str, str], bool]:
    """Pick and rename the EEG channels of `raw`. rename, drop: of the flags; where: opens error messages.

    Returns the recording, each dropped channel with the reason, and whether the file has all kept channels at one rate.
    """
    types = dict(zip(raw.ch_names, raw.get_channel_types(), strict=True))
    resolution = resolve([name for name in types if types[name] == "eeg"], rename=rename, drop=drop, where=where)
    raw, one_rate = _without_faster_channels(raw, list(resolution.kept))
    raw.pick(list(resolution.kept))
    raw.rename_channels(resolution.kept, verbose="error")
    reasons = {name: "not EEG by its type in the file" for name in types if types[name] != "eeg"}
    for name in resolution.dropped:
        reasons[name] = "not EEG by its name" if is_known_non_eeg(name) else LISTED
    return raw, reasons, one_rate


def _without_faster_channels(raw: mne.io.BaseRaw, kept: list[str]) -> tuple[mne.io.BaseRaw, bool]:
    """Open an EDF again without the channels that are sampled faster than those kept.

    MNE brings all channels to the fastest one's rate, piece by piece, with errors at the ends of the pieces. Returns
    the recording, and whether all kept channels have one rate. A recording that a caller has changed stays as it is.
    """
    path = Path(raw.filenames[0]) if raw.filenames and raw.filenames[0] else Path()
    if raw.preload or not path.name.lower().endswith(EDF):
        return raw, True
    header: Any = raw._raw_extras[0]  # MNE has no other name for the rates in the file
    pairs = zip(header["ch_names"], header["n_samps"][header["sel"]], strict=True)
    lengths = {name: int(samples) for name, samples in pairs}  # samples of a record
    kept_lengths = {lengths.get(name) for name in kept}  # None: the header does not know the name
    if len(set(lengths.values())) < 2 or kept_lengths == {max(lengths.values())}:
        return raw, True
    if len(kept_lengths) > 1 or None in kept_lengths:
        return raw, False
    fresh = read_raw(path, include=kept)
    same_length = abs(fresh.n_times / fresh.info["sfreq"] - raw.n_times / raw.info["sfreq"]) < 1.5 / fresh.info["sfreq"]
    return (fresh, True) if same_length else (raw, False)
