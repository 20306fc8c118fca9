"""The one pipeline of all makers: find, read, resolve electrodes, filter, notch, resample, write.

Paper, section 2 and appendix on pre-processing. Signals go into files in uV; models divide by 100 when they read.
Nothing of a recording's header but its channel names and sampling rate is kept: names of people, birth dates and
recording dates stay behind, and messages never quote what a reader says, since that may quote the header.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mne
import numpy as np
from tqdm import tqdm

from dataset_maker.writers import PretrainingWriter
from electrodes import is_known_non_eeg, resolve
from errors import InputError, UsageError

SUFFIXES = (".edf", ".bdf", ".cnt", ".gdf", ".vhdr", ".set", ".fif", ".fif.gz")
EXTRA_READERS = {".set": "files of MATLAB 7.3 need `pip install pymatreader`", ".cnt": "ANT files need `antio`"}
MIN_TRANSITION = 0.5  # Hz between a filter's edge and Nyquist: less would take a filter of many seconds


@dataclass(frozen=True)
class FilterSettings:
    """Filter edges and rates in Hz, applied in this order; None leaves a stage out."""

    l_freq: float | None = 0.1
    h_freq: float | None = 75.0
    notch: float | None = 50.0
    sampling_rate: float | None = 200.0

    def __post_init__(self) -> None:
        """Raise UsageError for settings that no filter can follow."""
        for flag, value in zip(("--l_freq", "--h_freq", "--notch", "--rsfreq"), asdict(self).values(), strict=True):
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{flag} {value:g}: must be a positive number of Hz, or 0 to leave this stage out")
        if self.l_freq and self.h_freq and self.l_freq >= self.h_freq:
            raise UsageError(f"--l_freq {self.l_freq:g} must be below --h_freq {self.h_freq:g}")


def add_arguments(parser: argparse.ArgumentParser, *, notch: float = 50.0) -> None:
    """Declare the pipeline's flags; `notch` is the maker's default mains frequency in Hz."""
    group = parser.add_argument_group("pipeline", "applied in this order; 0 leaves a stage out")
    group.add_argument("--l_freq", type=float, default=0.1, help="high-pass edge, Hz (default %(default)s)")
    group.add_argument("--h_freq", type=float, default=75.0, help="low-pass edge, Hz (default %(default)s)")
    group.add_argument("--notch", type=float, default=notch, help="mains, Hz: 50, 60 or 0 (default %(default)s)")
    group.add_argument("--rsfreq", type=float, default=200.0, help="sampling rate to write, Hz (default %(default)s)")
    group.add_argument("--drop", nargs="+", default=[], metavar="NAME", help="channels to leave out")
    group.add_argument("--rename", type=Path, metavar="MAP.json", help="JSON object: name in the file -> electrode")


def pipeline_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return `settings`, `rename` and `drop` for `convert_recordings` and `preprocess` from the parsed flags."""
    settings = FilterSettings(args.l_freq or None, args.h_freq or None, args.notch or None, args.rsfreq or None)
    return {"settings": settings, "rename": load_rename(args.rename) if args.rename else {}, "drop": tuple(args.drop)}


def load_rename(path: Path) -> dict[str, str]:
    """Read a JSON object of channel name -> electrode. Raises InputError if it is anything else."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--rename {path}: cannot be read as JSON ({type(error).__name__})") from error
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f'--rename {path}: must be a JSON object of names, such as {{"EEG X1": "CZ"}}')
    return names


def find_files(inputs: Sequence[Path], suffixes: Collection[str] = SUFFIXES) -> list[Path]:
    """Return the files with these suffixes, sorted, each once; folders are searched recursively.

    Raises InputError for a path that does not exist, a file of another kind, and when nothing is found.
    """
    found: dict[Path, Path] = {}
    for path in inputs:
        if not path.exists():
            raise InputError(f"{path}: does not exist; correct --input")
        if path.is_file() and not path.name.lower().endswith(tuple(suffixes)):
            raise InputError(f"{path}: not a kind of recording this maker reads ({', '.join(suffixes)})")
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.name.lower().endswith(tuple(suffixes)) and not file.name.startswith(".") and file.is_file():
                found.setdefault(file.resolve(), file)
    if not found:
        raise InputError(f"no recordings ({', '.join(suffixes)}) in {', '.join(map(str, inputs))}")
    return sorted(found.values())


@contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Turn whatever a reader raises on broken bytes into an InputError that names the file and quotes nothing of it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # readers raise anything on broken bytes, from struct.error to ZeroDivisionError
        hint = next((f"; {text}" for suffix, text in EXTRA_READERS.items() if str(path).lower().endswith(suffix)), "")
        reason = f"broken or not what its name says ({type(error).__name__})"
        raise InputError(f"{path}: cannot be read, {reason}{hint}") from None


def read_raw(path: Path) -> mne.io.BaseRaw:
    """Open a recording with MNE by its suffix (signals in volts, not loaded yet). Raises InputError if unreadable."""
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"{path}: not a kind of recording that is read here ({', '.join(SUFFIXES)})")
    with readable(path):
        return mne.io.read_raw(path, verbose="error")  # "error": MNE's warnings may quote header texts


def _select_electrodes(
    raw: mne.io.BaseRaw, rename: Mapping[str, str] | None, drop: Collection[str], where: str
) -> dict[str, str]:
    """Pick and rename the EEG channels of `raw` in place; return each dropped channel's name with the reason."""
    types = dict(zip(raw.ch_names, raw.get_channel_types(), strict=True))
    resolution = resolve([name for name in types if types[name] == "eeg"], rename=rename, drop=drop, where=where)
    raw.pick(list(resolution.kept))
    raw.rename_channels(resolution.kept, verbose="error")
    reasons = {name: "not EEG by its type in the file" for name in types if types[name] != "eeg"}
    for name in resolution.dropped:
        reasons[name] = "not EEG by its name" if is_known_non_eeg(name) else "listed to be left out"
    return reasons


def _filter(raw: mne.io.BaseRaw, settings: FilterSettings) -> dict[str, Any]:
    """Band-pass, notch and resample `raw` in place as far as its rate allows; return what was done."""
    rate, notes = float(raw.info["sfreq"]), []
    l_freq, h_freq, notch = settings.l_freq, settings.h_freq, settings.notch
    if h_freq and h_freq + MIN_TRANSITION > rate / 2:
        h_freq = None
        notes.append(f"no low-pass at {settings.h_freq:g} Hz: the source has {rate:g} Hz")
    if notch and notch * 1.0025 + MIN_TRANSITION >= rate / 2:  # MNE's notch is notch / 200 wide, edges of 0.5 Hz
        notch = None
        notes.append(f"no notch at {settings.notch:g} Hz: the source has {rate:g} Hz")
    if l_freq and raw.n_times < 3.3 * rate / l_freq:
        notes.append(f"shorter than the high-pass filter at {l_freq:g} Hz, which lasts {3.3 / l_freq:.0f} s")
    if l_freq or h_freq:
        raw.filter(l_freq, h_freq, verbose="error")
    if notch:
        raw.notch_filter(notch, verbose="error")
    if settings.sampling_rate and not np.isclose(rate, settings.sampling_rate, rtol=1e-9):
        raw.resample(settings.sampling_rate, verbose="error")
    rates = {"source_rate": rate, "sampling_rate": settings.sampling_rate or rate}
    return rates | {"l_freq": l_freq, "h_freq": h_freq, "notch": notch, "notes": notes}


def preprocess(
    raw: mne.io.BaseRaw,
    settings: FilterSettings,
    *,
    rename: Mapping[str, str] | None = None,
    drop: Collection[str] = (),
    where: str = "recording",
) -> tuple[mne.io.BaseRaw, dict[str, Any]]:
    """Pick EEG, band-pass, notch, resample `raw` in place, in this order, with MNE's defaults.

    Returns the recording with canonical electrode names in the file's order, and a report: `source_rate`,
    `sampling_rate`, the edges applied (`l_freq`, `h_freq`, `notch`; None where a stage was left out), `notes` (what
    was asked for and could not be done) and `dropped` (channel -> reason). A source too slow for a stage skips it.
    Raises InputError for unknown electrodes and for signals that cannot be read. Source: paper, section 2.
    """
    with readable(where):
        dropped = _select_electrodes(raw, rename, drop, where)
        raw.load_data(verbose="error")
    if raw.n_times < raw.info["sfreq"]:
        raise InputError(f"{where}: lasts {raw.n_times / raw.info['sfreq']:.2f} s, but one patch is 1 s")
    try:
        return raw, _filter(raw, settings) | {"dropped": dropped}
    except (ValueError, RuntimeError, MemoryError) as error:
        raise InputError(f"{where}: cannot be filtered and resampled ({type(error).__name__})") from error


def microvolts(raw: mne.io.BaseRaw, where: str = "recording") -> np.ndarray:
    """Return the signal (N, time) float32 in uV. Raises InputError if it holds NaN or infinity."""
    eeg = (raw.get_data() * 1e6).astype(np.float32)  # (N, time)
    if bad := [name for name, row in zip(raw.ch_names, eeg, strict=True) if not np.isfinite(row).all()]:
        raise InputError(f"{where}: NaN or infinite values in {', '.join(bad)}; leave these out with --drop")
    return eeg


def convert_recordings(
    paths: Sequence[Path],
    read: Callable[[Path], mne.io.BaseRaw],
    output: Path,
    *,
    source: str,
    settings: FilterSettings,
    rename: Mapping[str, str],
    drop: Collection[str],
) -> None:
    """Turn recordings into one pre-training HDF5 per montage in the folder `output`, with a bar and a summary.

    read: opens one recording, in volts. A recording that fails is left out and named on stderr; the others are
    written, and an InputError at the end says how many failed.
    """
    made = {"source": source, "filter": asdict(settings), "rename": dict(rename), "drop": list(drop)}
    dropped: dict[str, Counter[str]] = {}  # reason -> channel -> recordings
    notes: Counter[str] = Counter()
    failed = 0
    with PretrainingWriter(output, made=made) as writer:
        for path in tqdm(paths, unit="recording", disable=None):
            try:
                raw, report = preprocess(read(path), settings, rename=rename, drop=drop, where=str(path))
                eeg = microvolts(raw, str(path))
            except InputError as error:
                failed += 1
                tqdm.write(f"left out: {error}", file=sys.stderr)
                continue
            writer.add(path.stem, eeg, raw.ch_names, report)
            notes.update(report["notes"])
            for name, reason in report["dropped"].items():
                dropped.setdefault(reason, Counter())[name] += 1
    for reason, names in dropped.items():
        print(f"dropped, {reason}: " + ", ".join(f"{name!r} ({count}x)" for name, count in names.items()))
    for note, count in notes.items():
        print(f"{count} recordings: {note}")
    for name, seconds in sorted(writer.seconds.items()):
        print(f"{output / name}: {len(seconds)} recordings, {sum(seconds) / 3600:.2f} h")
    if failed:
        raise InputError(f"{failed} of {len(paths)} recordings were left out, named above; the others are in {output}")
