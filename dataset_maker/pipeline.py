"""The one pipeline of all makers: read with MNE, resolve electrodes, keep EEG, filter, notch, resample.

Paper, section 2 and appendix on pre-processing. Signals go into files in uV; models divide by 100 when they read.
Nothing of a recording's header but its channel names and sampling rate is kept: names of people, birth dates and
recording dates stay behind, and messages never quote what a reader says, since that may quote the header.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import mne
import numpy as np

from dataset_maker.edf_header import is_edf, samples_per_record
from dataset_maker.filters import apply_fir, changes_rate, kernels, output_length, resample
from dataset_maker.sources import RECORDINGS
from eeg_data.quality import BINS, Quality, SignalScan, amplitude_histogram
from electrodes import is_known_non_eeg, resolve
from errors import InputError, UsageError

EXTRA_READERS = {".set": "files of MATLAB 7.3 need `pip install pymatreader`", ".cnt": "ANT files need `antio`"}
MIN_TRANSITION = 0.5  # Hz between a filter's edge and Nyquist: less would take a filter of many seconds
BLOCK_BYTES = 256 << 20  # float64 signal that is filtered as a whole; longer recordings go block by block
LOWEST_RATE = 10.0  # Hz
MOST_PACKED = 1100  # samples that a byte of a packed file can stand for: deflate reaches 1032
LISTED = "listed to be left out"  # why a channel is, where the caller asked for it
GAPS = ("edge", "bad_acq_skip")  # annotations across which MNE does not filter

Store = Callable[[Sequence[str], float, int], Any]  # (electrodes, rate, samples) -> something (N, samples) to write to


@dataclass(frozen=True)
class FilterSettings:
    """Filter edges and rates in Hz, applied in this order; None leaves a stage out. The defaults are the flags'."""

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


@dataclass(frozen=True)
class Pipeline:
    """How recordings become signals; travels to workers as JSON and is written into every file."""

    filter: FilterSettings = FilterSettings()
    rename: Mapping[str, str] = field(default_factory=dict)
    drop: Sequence[str] = ()
    trim_end: float = 0.0  # s cut off every recording's end
    dtype: str = "float32"
    block_bytes: int = BLOCK_BYTES

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Pipeline":
        """The inverse of `to_json`."""
        return cls(**{**values, "filter": FilterSettings(**values["filter"])})

    def described(self) -> dict[str, Any]:
        """What files and reports say of it: all that decides what the signals are, so not the size of the blocks."""
        return {key: value for key, value in self.to_json().items() if key != "block_bytes"}


@dataclass
class Prepared:
    """A recording after the pipeline."""

    electrodes: list[str]
    rate: float  # Hz
    length: int  # samples
    eeg: Any  # (N, length) uV: a NumPy array or an HDF5 dataset
    quality: Quality  # of the source, before any filter; amplitudes after it
    report: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)  # what a maker's own reader wants to hand on


class Windows(NamedTuple):
    """Where the samples of a labelled recording lie."""

    starts: np.ndarray  # (n,) first samples at the rate of the data set
    labels: Any  # (n,) class numbers, or (n, outputs) targets
    splits: Sequence[str] | None = None  # of each window; None: the split of the task
    notes: Mapping[str, int] = {}  # what was left out or is worth knowing -> how often


def add_filter_arguments(parser: argparse.ArgumentParser, *, notch: float | None = FilterSettings.notch) -> Any:
    """Declare the filters' flags; `notch` is the maker's default mains frequency in Hz. Returns the group."""
    group = parser.add_argument_group("pipeline", "applied in this order; 0 leaves a stage out")
    hz: Any = {"type": float, "metavar": "HZ"}
    group.add_argument("--l_freq", default=FilterSettings.l_freq, help="high-pass edge (default %(default)s)", **hz)
    group.add_argument("--h_freq", default=FilterSettings.h_freq, help="low-pass edge (default %(default)s)", **hz)
    group.add_argument("--notch", default=notch, help="mains: 50, 60 or 0 (default %(default)s)", **hz)
    return group


def add_arguments(parser: argparse.ArgumentParser, *, notch: float | None = FilterSettings.notch) -> None:
    """Declare the whole pipeline's flags."""
    group = add_filter_arguments(parser, notch=notch)
    group.add_argument(
        "--rsfreq",
        type=float,
        default=FilterSettings.sampling_rate,
        metavar="HZ",
        help="sampling rate to write (default %(default)s)",
    )
    group.add_argument(
        "--trim_end", type=float, default=0.0, metavar="SECONDS", help="cut so much off every recording's end"
    )
    add_name_arguments(parser)


def add_name_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags for channels whose names do not say which electrodes they are."""
    group = parser.add_argument_group("channels")
    group.add_argument("--drop", nargs="+", default=[], metavar="NAME", help="channels to leave out")
    group.add_argument("--rename", type=Path, metavar="MAP.json", help="JSON object: name in the file -> electrode")


def build_pipeline(args: argparse.Namespace, *, drop: Sequence[str] = (), block_bytes: int = BLOCK_BYTES) -> Pipeline:
    """Return the pipeline of the parsed flags; a stage whose flag the maker does not have is left out.

    drop: channels that the maker leaves out beside those of --drop. Raises UsageError and InputError.
    """
    l_freq, h_freq, notch = (getattr(args, name, 0.0) or None for name in ("l_freq", "h_freq", "notch"))
    settings = FilterSettings(l_freq, h_freq, notch, getattr(args, "rsfreq", FilterSettings.sampling_rate) or None)
    trim_end = getattr(args, "trim_end", 0.0)
    if not 0 <= trim_end < math.inf:
        raise UsageError(f"--trim_end {trim_end:g}: must be a number of seconds from 0")
    rename = load_rename(args.rename) if getattr(args, "rename", None) else {}
    dropped = (*getattr(args, "drop", ()), *drop)
    return Pipeline(settings, rename, dropped, trim_end, getattr(args, "dtype", Pipeline.dtype), block_bytes)


def load_rename(path: Path) -> dict[str, str]:
    """Read a JSON object of channel name -> electrode. Raises InputError if it is anything else."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--rename {path}: cannot be read as JSON ({type(error).__name__})") from error
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f'--rename {path}: must be a JSON object of names, such as {{"EEG X1": "CZ"}}')
    return names


@contextmanager
def recording_readable(path: Path | str) -> Iterator[None]:
    """Turn whatever a reader raises on broken bytes into an InputError that names the file and quotes nothing of it."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # readers raise anything on broken bytes, from struct.error to ZeroDivisionError
        if isinstance(error, FileNotFoundError) and Path(path).is_symlink() and not Path(path).exists():
            raise InputError(f"{path}: links to a file that is not there: fetch it, or take the link away") from None
        hint = next((f"; {text}" for suffix, text in EXTRA_READERS.items() if str(path).lower().endswith(suffix)), "")
        reason = f"broken or not what its name says ({type(error).__name__})"
        raise InputError(f"{path}: cannot be read, {reason}{hint}") from None


def read_raw(path: Path) -> mne.io.BaseRaw:
    """Open a recording with MNE by its suffix (signals in volts, not loaded yet). Raises InputError if unreadable."""
    if not path.name.lower().endswith(RECORDINGS):
        raise InputError(f"{path}: not a kind of recording that is read here ({', '.join(RECORDINGS)})")
    return open_raw(path)


def open_raw(path: Path, **options: Any) -> mne.io.BaseRaw:
    """The same for any format that MNE knows; options: of its reader."""
    if is_edf(path):  # annotations are not used, and only in this encoding no byte of theirs makes MNE refuse a file
        options["encoding"] = "latin1"
    with recording_readable(path):
        return mne.io.read_raw(path, verbose="error", **options)  # "error": MNE's warnings may quote header texts


def check_header(raw: mne.io.BaseRaw, where: str) -> None:
    """Raise InputError for a rate or a length that cannot be: forged ones make seconds of a recording into years."""
    rate = float(raw.info["sfreq"])
    if not LOWEST_RATE <= rate < math.inf:
        raise InputError(f"{where}: sampled at {rate:g} Hz; EEG needs at least {LOWEST_RATE:g} Hz")
    files = [Path(name) for name in raw.filenames if name and Path(name).is_file()]
    packed = any(file.name.lower().endswith((".gz", ".set")) for file in files)
    held = sum(file.stat().st_size for file in files) * (MOST_PACKED if packed else 1)
    if files and raw.n_times > held:
        raise InputError(f"{where}: its header announces {raw.n_times} samples a channel, more than its file can hold")


def select_electrodes(
    raw: mne.io.BaseRaw, pipeline: Pipeline, where: str
) -> tuple[mne.io.BaseRaw, dict[str, str], bool]:
    """Pick and rename the EEG channels of `raw`.

    Returns it, each dropped channel's name with the reason, and whether the file has all that is left at one rate.
    """
    types = dict(zip(raw.ch_names, raw.get_channel_types(), strict=True))
    resolution = resolve(
        [name for name in types if types[name] == "eeg"], rename=pipeline.rename, drop=pipeline.drop, where=where
    )
    kept = list(resolution.kept)
    path = Path(raw.filenames[0]) if raw.filenames and raw.filenames[0] else Path()
    signals = [] if raw.preload else samples_per_record(path)
    counts = dict(signals)
    mixed = len({count for _, count in signals}) > 1
    # A name that comes twice got a number from MNE, a caller may have changed others: the header does not know them.
    own = {counts[name] for name in kept} if set(kept) <= counts.keys() else set()
    one_rate = not mixed or len(own) == 1
    if own and max(own) < max(count for _, count in signals):
        # MNE brings every piece that it reads to the fastest channel's rate, with errors at the piece's ends: a fast
        # channel that is not EEG stays closed. A recording that a caller has changed is not opened again.
        fresh = open_raw(path, include=kept)
        if abs(fresh.n_times / fresh.info["sfreq"] - raw.n_times / raw.info["sfreq"]) < 1.5 / fresh.info["sfreq"]:
            raw = fresh
        else:
            one_rate = False
    raw.pick(kept)
    raw.rename_channels(resolution.kept, verbose="error")
    reasons = {name: "not EEG by its type in the file" for name in types if types[name] != "eeg"}
    for name in resolution.dropped:
        reasons[name] = "not EEG by its name" if is_known_non_eeg(name) else LISTED
    return raw, reasons, one_rate


def plan_stages(rate: float, settings: FilterSettings, seconds: float) -> dict[str, Any]:
    """Return which stages a source of this rate (Hz) and length allows, and notes on what it does not.

    Keys: source_rate, sampling_rate, resampled (bool), l_freq, h_freq, notch (None where a stage is left out), notes.
    """
    notes = []
    l_freq, h_freq, notch = settings.l_freq, settings.h_freq, settings.notch
    if h_freq and h_freq + MIN_TRANSITION > rate / 2:
        h_freq = None
        notes.append(f"no low-pass at {settings.h_freq:g} Hz: the source has {rate:g} Hz")
    if notch and notch * 1.0025 + MIN_TRANSITION >= rate / 2:  # MNE's notch is notch / 200 wide, edges of 0.5 Hz
        notch = None
        notes.append(f"no notch at {settings.notch:g} Hz: the source has {rate:g} Hz")
    if l_freq and seconds < 3.3 / l_freq:
        notes.append(f"shorter than the high-pass filter at {l_freq:g} Hz, which lasts {3.3 / l_freq:.0f} s")
    new_rate = settings.sampling_rate or rate
    rates = {"source_rate": rate, "sampling_rate": new_rate, "resampled": changes_rate(rate, new_rate)}
    return rates | {"l_freq": l_freq, "h_freq": h_freq, "notch": notch, "notes": notes}


def in_memory(electrodes: Sequence[str], rate: float, length: int) -> np.ndarray:
    """Return an array for a signal (N, length); the plainest `Store`."""
    return np.empty((len(electrodes), length), dtype=np.float32)


def bridged(eeg: np.ndarray) -> np.ndarray:
    """Replace NaN and infinity in eeg (N, time), in place, by straight lines between their neighbours (0: none)."""
    finite = np.isfinite(eeg)
    for row in np.flatnonzero(~finite.all(axis=1)):
        good, bad = np.flatnonzero(finite[row]), np.flatnonzero(~finite[row])
        eeg[row, bad] = np.interp(bad, good, eeg[row, good]) if len(good) else 0.0
    return eeg


class _Source:
    """A recording's EEG as the filters get it, in volts; every sample is looked at once on its way."""

    def __init__(self, raw: mne.io.BaseRaw, samples: int, where: str) -> None:
        self.raw, self.samples, self.where = raw, samples, where
        self.rate = float(raw.info["sfreq"])
        self.scan = SignalScan(raw.ch_names, self.rate, amplitudes=False)
        self._scanned = 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples start to stop, (N, stop - start) float64, bridged. Raises InputError if they cannot be read."""
        with recording_readable(self.where):
            eeg = self.raw.get_data(start=start, stop=stop, verbose="error")
        self._look(eeg, start, stop)
        return bridged(eeg)

    def _look(self, eeg: np.ndarray, start: int, stop: int) -> None:
        if start <= self._scanned < stop:  # blocks overlap, and the ends may be asked for first
            self.scan.add(eeg[:, self._scanned - start :] * 1e6)
            self._scanned = stop

    def has_gaps(self) -> bool:
        """Whether the recording marks gaps in it."""
        return any(text.lower().startswith(GAPS) for text in self.raw.annotations.description)

    def filtered(self, stages: Mapping[str, Any]) -> np.ndarray:
        """The whole signal after all stages, (N, time) float64 in volts."""
        if self.has_gaps():
            return self._filtered_in_parts(stages)
        eeg = self.read(0, self.samples)
        for kernel in kernels(self.rate, stages["l_freq"], stages["h_freq"], stages["notch"]):
            eeg = apply_fir(eeg, kernel)
        return resample(eeg, self.rate, stages["sampling_rate"]) if stages["resampled"] else eeg

    def _filtered_in_parts(self, stages: Mapping[str, Any]) -> np.ndarray:
        """The same by MNE's own methods, which do not filter across gaps that the recording marks."""
        raw = self.raw
        with recording_readable(self.where):
            raw.crop(tmax=(self.samples - 1) / self.rate)
            raw.load_data(verbose="error")
        raw[:, :] = self.read(0, self.samples)
        if stages["l_freq"] or stages["h_freq"]:
            raw.filter(stages["l_freq"], stages["h_freq"], verbose="error")
        if stages["notch"]:
            raw.notch_filter(stages["notch"], verbose="error")
        if stages["resampled"]:
            raw.resample(stages["sampling_rate"], verbose="error")
        return raw.get_data(verbose="error")

    def blocks(self, stages: Mapping[str, Any], block_bytes: int) -> Iterator[np.ndarray]:
        """The same in consecutive blocks, (N, t) each, without ever holding the whole."""
        from dataset_maker.long_recordings import process_blocks  # takes half a second that few recordings need

        return process_blocks(
            self.read,
            self.samples,
            self.rate,
            l_freq=stages["l_freq"],
            h_freq=stages["h_freq"],
            notch=stages["notch"],
            new_rate=stages["sampling_rate"] if stages["resampled"] else None,
            block_samples=block_bytes // (8 * len(self.raw.ch_names)) // 4,  # of it there are several copies
        )

    def quality(self, seconds: int) -> Quality:
        """What was seen, for this many seconds. Raises InputError if none is valid."""
        assert self._scanned == self.samples, "all of it went through the filters"
        quality = self.scan.result()
        if not quality.valid.any():
            names = [name for name, count in quality.not_finite.items() if count == len(quality.valid)]
            reason = f"NaN or infinite in {', '.join(names)}; leave these out" if names else "no signal at all"
            raise InputError(f"{self.where}: no second is usable ({reason})")
        # Resampling rounds the length, so a last second of a few samples may come or go.
        return replace(quality, valid=np.pad(quality.valid, (0, 1), mode="edge")[:seconds])


def narrowed(eeg: np.ndarray, dtype: str, where: str) -> np.ndarray:
    """Convert eeg (uV) to the files' type. Raises InputError for values that it cannot hold."""
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = eeg.astype(dtype)
    if not np.isfinite(narrow).all():
        raise InputError(f"{where}: values beyond {np.finfo(dtype).max:g} uV, more than {dtype} holds; check its units")
    return narrow


def prepare(raw: mne.io.BaseRaw, pipeline: Pipeline, *, where: str = "recording", store: Store = in_memory) -> Prepared:
    """Pick EEG, band-pass, notch, resample, in this order, with MNE's defaults. Source: paper, section 2.

    raw: in volts, changed in place. store: gives the place for the result, (N, samples) uV, once the size is known.
    The result has canonical electrode names in the file's order; its `report` holds `plan_stages`' keys and `dropped`
    (channel -> reason). A source too slow for a stage skips it; NaN and infinity are bridged by straight lines and
    their seconds marked invalid. A recording of more than `pipeline.block_bytes` is never held as a whole.
    Raises InputError for unknown electrodes, for signals that cannot be read and where no second is valid.
    """
    with recording_readable(where):
        raw, dropped, one_rate = select_electrodes(raw, pipeline, where)
        rate = float(raw.info["sfreq"])
        samples = raw.n_times - round(pipeline.trim_end * rate)
    if samples < rate:
        trimmed = f" after --trim_end {pipeline.trim_end:g}" if pipeline.trim_end else ""
        raise InputError(f"{where}: lasts {max(samples, 0) / rate:.2f} s{trimmed}, but one patch is 1 s")
    stages = plan_stages(rate, pipeline.filter, samples / rate)
    new_rate = stages["sampling_rate"]
    source = _Source(raw, samples, where)
    histogram = np.zeros(BINS, np.int64)
    try:
        if samples * len(raw.ch_names) * 8 <= pipeline.block_bytes:
            whole = source.filtered(stages)
            length, blocks = whole.shape[1], iter([whole])
        else:
            length = output_length(samples, rate, new_rate)
            if not one_rate:  # MNE cannot bring pieces of them to one rate without errors at their ends
                raise InputError(f"{where}: channels of different sampling rates in so long a recording; cut it")
            if source.has_gaps():
                stages["notes"].append("filtered across the gaps that it marks: too long to be taken apart")
            blocks = source.blocks(stages, pipeline.block_bytes)
        eeg, at = store(raw.ch_names, new_rate, length), 0
        for block in blocks:  # (N, t), V
            block *= 1e6
            eeg[:, at : at + block.shape[1]] = narrowed(block, pipeline.dtype, where)
            histogram += amplitude_histogram(source.scan.usable(block, at, new_rate))
            at += block.shape[1]
    except (ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: cannot be filtered and resampled ({type(error).__name__})") from error
    assert at == length, (at, length)
    quality = replace(source.quality(math.ceil(length / new_rate)), histogram=histogram)
    return Prepared(list(raw.ch_names), new_rate, length, eeg, quality, stages | {"dropped": dropped})
