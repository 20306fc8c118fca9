"""The pipeline of all makers: read with MNE, resolve electrodes, keep EEG, filter, notch, resample.

Paper, section 2 and appendix on pre-processing. Signals go into files in uV; models divide by 100 when they read.
`read_raw` opens a recording, `prepare` filters and resamples its signal (`filters`) and hands it to a store. Whatever
speaks against a recording is an InputError. It names the file and never quotes a reader, which may quote the header.
"""

from __future__ import annotations  # the types of mne would load half of it

import argparse
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import mne
import numpy as np

from dataset_maker import bads, caps, marks
from dataset_maker.filters import changes_rate
from dataset_maker.marks import Stretch
from dataset_maker.neuroscan import WIDTHS
from dataset_maker.opening import open_raw
from dataset_maker.reasons import OUTSIDE, of_types, recording_readable
from dataset_maker.recording import RawRecording, of_raw
from dataset_maker.sidecars import MAINS
from dataset_maker.stages import Source, narrowed, plan_stages, processed
from eeg_data.quality import Quality
from eeg_data.verdicts import judged
from electrodes import Resolution, canonical_name, resolve
from errors import InputError, UsageError

UNITS = ("uV", "mV", "nV", "V")
MARKED = "marked as bad"
SAME_RATE = 1e-6  # relative difference of two rates that are one
LOWEST_RATE = 10.0  # Hz of a recording that can be EEG
BLOCK_BYTES = 256 << 20  # float64 signal that is filtered as a whole; longer recordings go block by block
RESAMPLING = ("mne", "polyphase")

Store = Callable[[Sequence[str], float, int], Any]  # (electrodes, rate, samples) -> something (N, samples) to write to


@dataclass(frozen=True)
class FilterSettings:
    """Filter edges and rates in Hz, applied in this order; None leaves a stage out. The defaults are the flags'."""

    l_freq: float | None = 0.1
    h_freq: float | None = 75.0
    notch: float | None = MAINS
    sampling_rate: float | None = 200.0

    def __post_init__(self) -> None:
        """Raise UsageError for settings that no filter can follow."""
        for flag, value in (("l_freq", self.l_freq), ("h_freq", self.h_freq), ("notch", self.notch)):
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"--{flag} {value:g}: must be a positive number of Hz, or 0 to leave this stage out")
        if self.l_freq and self.h_freq and self.l_freq >= self.h_freq:
            raise UsageError(f"--l_freq {self.l_freq:g} must be below --h_freq {self.h_freq:g}")


@dataclass(frozen=True)
class Pipeline:
    """How recordings become signals. It travels to the processes and is written into every file."""

    filter: FilterSettings = FilterSettings()
    rename: Mapping[str, str] = field(default_factory=dict)
    drop: Sequence[str] = ()
    drop_unknown: bool = False
    keep: Sequence[str] = ()  # electrodes of a data set: channels of any others are left out (none: all are taken)
    cap: str | None = None  # whose labels get the nearest known electrodes
    bipolar: str | None = None  # "anode": derivations are called after their first electrode
    trim_end: float = 0.0  # s cut off every recording's end
    scale: float | None = None  # factor on the values; None: 1, and amplitudes that no EEG in uV has are refused
    unit: str | None = None  # of channels whose unit the file does not state
    bad_channels: str = "interpolate"  # of `bads.CHOICES`
    resample: str = "mne"  # of RESAMPLING
    cnt_format: str | None = None  # int16 or int32, of Neuroscan files whose headers do not say it
    dtype: str = "float32"
    block_bytes: int = BLOCK_BYTES

    def __post_init__(self) -> None:
        """Raise UsageError for a scale that float32 does not hold, and for an unknown cap."""
        if self.cap is not None:
            caps.find_cap(self.cap)
        if self.scale is not None and not 1e-30 <= abs(self.scale) <= 1e30:
            raise UsageError(f"--scale {self.scale:g}: must be a number that is not 0, of a size from 1e-30 to 1e30")

    def described(self) -> dict[str, Any]:
        """Return what files and reports say of it: all but the size of the blocks, which decides no signal."""
        return {key: value for key, value in asdict(self).items() if key != "block_bytes"}


@dataclass
class Prepared:
    """A recording after the pipeline."""

    electrodes: list[str]
    rate: float  # Hz
    length: int  # samples
    eeg: Any  # (N, length) uV: a NumPy array or an HDF5 dataset
    quality: Quality  # of the source, before any filter; amplitudes after it
    report: dict[str, Any]
    stretches: list[Stretch] = field(default_factory=list)  # of the source; no window crosses the break between two

    @property
    def unbroken(self) -> np.ndarray:
        """Which seconds can be used and hold no break, (seconds,) bool."""
        return marks.unbroken(self.quality.valid, self.stretches)


def add_filter_arguments(parser: argparse.ArgumentParser, *, mains: str = "") -> Any:
    """Declare the filters' flags. mains: who may say which mains there are. Returns their group."""
    group = parser.add_argument_group("pipeline", "applied in this order; 0 leaves a stage out")
    hz: Any = {"type": float, "metavar": "HZ"}
    group.add_argument("--l_freq", default=FilterSettings.l_freq, help="high-pass edge (default %(default)s)", **hz)
    group.add_argument("--h_freq", default=FilterSettings.h_freq, help="low-pass edge (default %(default)s)", **hz)
    notch = f"{mains}, else {MAINS}" if mains else MAINS
    group.add_argument("--notch", default=None if mains else MAINS, help=f"mains: 50, 60 or 0 (default {notch})", **hz)
    resample = "polyphase: samples lie at k / 200 s, exactly; mne, as published, moves them by up to half a sample"
    group.add_argument("--resample", choices=RESAMPLING, default="mne", help=resample)
    return group


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the whole pipeline's flags, for pre-training."""
    trim_end = "cut so much off every recording's end"
    filters = add_filter_arguments(parser, mains="PowerLineFrequency of BIDS")
    filters.add_argument("--trim_end", type=float, default=0.0, metavar="SECONDS", help=trim_end)
    add_name_arguments(parser, bad_channels="drop")
    add_scale_argument(parser)


def add_scale_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the flag for values of another unit."""
    scale = "multiplies the values, if they are not of the unit that the file says (1: take them as they are)"
    parser.add_argument("--scale", type=float, metavar="FACTOR", help=scale)


def add_name_arguments(parser: argparse.ArgumentParser, *, bad_channels: str = Pipeline.bad_channels) -> None:
    """Declare the flags for channels whose names do not say which electrodes they are, and for bad ones."""
    group = parser.add_argument_group("channels")
    drop = "channels to leave out; 'EXG*' is a pattern"
    group.add_argument("--drop", nargs="+", default=[], metavar="NAME", help=drop)
    group.add_argument("--drop_unknown", action="store_true", help="leave out the channels of unknown names")
    group.add_argument("--rename", type=Path, metavar="MAP.json", help="JSON object: name in the file -> electrode")
    cap = "labels are those of this cap (biosemi128, any of MNE's): each becomes the electrode that it is nearest to"
    group.add_argument("--cap", metavar="NAME", help=cap)
    group.add_argument("--bipolar", choices=("anode",), help="derivations are called after their first electrode")
    unit = "of channels whose unit the file does not state, or spells so that nobody knows it"
    group.add_argument("--unit", choices=UNITS, help=unit)
    bad = "channels that MNE's info['bads'] or `status` of BIDS call bad"
    group.add_argument("--bad_channels", choices=bads.CHOICES, default=bad_channels, help=bad)
    add_cnt_argument(group)


def add_cnt_argument(parser: Any) -> None:
    """Declare the flag for Neuroscan files."""
    cnt_format = "of the values of Neuroscan .cnt files, where their headers do not say it"
    parser.add_argument("--cnt_format", choices=list(WIDTHS), help=cnt_format)


def build_pipeline(args: argparse.Namespace, *, drop: Sequence[str] = (), block_bytes: int = BLOCK_BYTES) -> Pipeline:
    """Return the pipeline of the parsed flags; a stage whose flag the maker does not have is left out.

    drop: channels to leave out in addition to those of --drop. Raises UsageError and InputError.
    """
    if getattr(args, "notch", 0.0) is None:  # neither a flag nor BIDS says it
        args.notch = MAINS
    l_freq, h_freq, notch = (getattr(args, name, 0.0) or None for name in ("l_freq", "h_freq", "notch"))
    trim_end = getattr(args, "trim_end", 0.0)
    if not 0 <= trim_end < math.inf:
        raise UsageError(f"--trim_end {trim_end:g}: must be a number of seconds from 0")
    given: dict[str, Any] = {f.name: getattr(args, f.name) for f in fields(Pipeline) if hasattr(args, f.name)}
    given["rename"] = load_rename(args.rename) if given.get("rename") else {}
    given["drop"] = (*given.get("drop", ()), *drop)
    return Pipeline(**given | {"filter": FilterSettings(l_freq, h_freq, notch), "block_bytes": block_bytes})


def load_rename(path: Path, flag: str = "--rename", example: str = '{"EEG X1": "CZ"}') -> dict[str, str]:
    """Read a JSON object of texts, such as channel name -> electrode. Raises InputError if it is anything else."""
    way_out = f"a JSON object of texts, such as {example}"
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{flag} {path}: cannot be read ({error.strerror or error}); correct {flag}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{flag} {path}: cannot be read as JSON; it must be {way_out}") from error
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{flag} {path}: must be {way_out}")
    return names


# ---- read, judge the header


def read_raw(path: Path, **options: Any) -> mne.io.BaseRaw:
    """Open a recording of any format that MNE reads (signals in volts, not loaded yet). Raises InputError.

    options: of MNE's reader.
    """
    return open_raw(path, **options)[0]


def read(path: Path, pipeline: Pipeline) -> RawRecording:
    """Open a recording of any format that MNE reads, with what its file states. Raises InputError."""
    raw, notes = open_raw(path, cnt_format=pipeline.cnt_format)
    recording = of_raw(raw, str(path), path=path, unit=pipeline.unit)
    # `marks.on_clock` reads the annotations of a file with pauses again.
    recording.warnings += [note for note in notes if not (recording.paused and note.endswith(OUTSIDE))]
    return recording


def electrodes_of(names: Sequence[str], pipeline: Pipeline, where: str) -> Resolution:
    """Decide which of a recording's channels are which electrodes. where: opens error messages."""
    flags: dict[str, Any] = {flag: getattr(pipeline, flag) for flag in ("rename", "drop", "drop_unknown", "bipolar")}
    return resolve(names, cap=caps.find_cap(pipeline.cap) if pipeline.cap else None, where=where, **flags)


def select_electrodes(recording: RawRecording, pipeline: Pipeline) -> Resolution:
    """Leave the recording's EEG channels only, under the names of their electrodes, at one sampling rate.

    Returns what became of all its channels. Raises InputError for unknown names, units and scales.
    """
    raw, where = recording.raw, recording.where
    stated, bad = bads.stated(raw, Path(where))
    types = dict(zip(raw.ch_names, raw.get_channel_types(), strict=True)) | dict.fromkeys(recording.is_eeg, "eeg")
    types |= stated
    if "eeg" not in types.values():
        raise InputError(f"{where}: {of_types(types.values())}")
    eeg = [name for name in types if types[name] == "eeg"]
    left_out = [name for name in eeg if name in bad] if pipeline.bad_channels == "drop" else []
    if left_out == eeg:
        raise InputError(f"{where}: all its EEG channels are {MARKED}: --bad_channels keep takes them all the same")
    other = _other_channels(eeg, pipeline.keep) if pipeline.keep else []
    resolution = electrodes_of([name for name in eeg if name not in (*left_out, *other)], pipeline, where)
    recording.check_scales(list(resolution.kept))
    _bring_to_one_rate(recording, list(resolution.kept), pipeline.block_bytes)
    recording.rename(resolution.kept)
    recording.bad = [electrode for name, electrode in resolution.kept.items() if name in bad]
    if set(recording.raw.get_channel_types()) != {"eeg"}:  # MNE filters no channels of other types
        recording.raw.set_channel_types(
            dict.fromkeys(recording.raw.ch_names, "eeg"), on_unit_change="ignore", verbose="error"
        )
    source = {name: "channels.tsv" if name in stated else "the file" for name in types}
    reasons = {name: f"not EEG by its type in {source[name]}" for name in types if types[name] != "eeg"}
    reasons |= dict.fromkeys(other, "no electrode of this data set, or a second channel of one")
    reasons |= dict.fromkeys(left_out, MARKED)
    return replace(resolution, reasons=reasons | resolution.reasons)


def _other_channels(names: Sequence[str], keep: Collection[str]) -> list[str]:
    """Return the channels that are none of the electrodes to keep, or not the first one of an electrode."""
    first = {canonical_name(name): name for name in reversed(names)}
    return [name for name in names if canonical_name(name) not in keep or first[canonical_name(name)] != name]


def _bring_to_one_rate(recording: RawRecording, kept: list[str], block_bytes: int) -> None:
    """Give kept channels of an EDF, BDF or GDF file their own rate where other channels are sampled faster.

    MNE brings all channels to the rate of the fastest one, even where it then calls the rate another (that of a trigger
    channel does not count). The result is right for a recording that is read whole, and has errors at the ends of its
    pieces otherwise. Raises InputError for one that must be read whole and is too long.
    """
    raw, header = recording.raw, recording.header
    if header is None:
        return
    rates, fastest = set(recording.rates(kept).values()), float(raw._raw_extras[0]["max_samp"]) / header.seconds
    if all(math.isclose(rate, fastest, rel_tol=SAME_RATE) for rate in rates):
        return
    length = header.records * header.seconds
    is_cropped = abs(raw.n_times / fastest - length) > 1.5 / fastest
    way_out = "load it before it is cropped, or give the file" if is_cropped else "cut it, or --drop those of one rate"
    if is_cropped and not math.isclose(fastest, raw.info["sfreq"], rel_tol=SAME_RATE):  # in which seconds?
        raise InputError(
            f"{recording.where}: a trigger channel is faster than the EEG, which MNE gets wrong: give the file"
        )
    if not is_cropped and header.kind != "GDF":  # from which MNE reads other channels than it is asked for
        labels = [header.labels[recording.channels[name].signal] for name in kept]
        recording.raw = raw = _reopened(recording, kept, include=labels)
        fastest = max(rates)
        if len(rates) == 1:
            return
    if len(kept) * length * fastest * 8 > block_bytes:
        raise InputError(f"{recording.where}: channels of different sampling rates in so long a recording; {way_out}")
    first, stop = raw.first_samp, raw.first_samp + raw.n_times
    whole = _reopened(recording, kept) if is_cropped else raw.pick(kept)
    eeg, rate = whole.get_data(verbose="error")[:, first:stop], fastest if is_cropped else max(rates)
    if changes_rate(fastest, rate):  # of GDF: by FFT, as MNE brought it up
        eeg = mne.filter.resample(eeg, rate, fastest, npad=0, verbose="error")
    recording.raw = mne.io.RawArray(eeg, mne.create_info(whole.ch_names, rate, "eeg"), verbose="error")


def _reopened(recording: RawRecording, kept: Sequence[str], **options: Any) -> mne.io.BaseRaw:
    """Open an EDF, BDF or GDF file again and pick these channels, which may be called like others."""
    assert recording.header
    raw, places = read_raw(recording.header.path, **options), {recording.channels[name].signal: name for name in kept}
    signals: Any = raw._raw_extras[0]
    names = {name: places[s] for name, s in zip(raw.ch_names, signals["sel"].tolist(), strict=True) if s in places}
    raw.pick(list(names))
    raw.rename_channels(names, verbose="error")
    return raw


# ---- prepare


def in_memory(electrodes: Sequence[str], rate: float, length: int) -> np.ndarray:
    """Return an array for a signal (N, length); the plainest `Store`."""
    return np.empty((len(electrodes), length), dtype=np.float32)


def _repair(recording: RawRecording, pipeline: Pipeline, notes: list[str]) -> np.ndarray | None:
    """Return what makes the recording's bad electrodes of the others, (bad, N), or None. Says what becomes of them."""
    if not recording.bad:
        return None
    names = ", ".join(recording.bad)
    if pipeline.bad_channels == "interpolate":
        if (weights := bads.weights(recording.raw.ch_names, recording.bad)) is not None:
            notes.append(f"{MARKED}, interpolated: {names}")
            return weights
        why = f"the place of one, or of {bads.LEAST_GOOD} good electrodes, is not known"
        recording.warnings.append(f"{names}: {MARKED} and kept, because {why}; --bad_channels drop leaves them out")
    notes.append(f"{MARKED}, kept: {names}")
    return None


def prepare(
    recording: RawRecording | mne.io.BaseRaw, pipeline: Pipeline, *, where: str = "recording", store: Store = in_memory
) -> Prepared:
    """Pick EEG, band-pass, notch, resample, in this order, with MNE's defaults. Source: paper, section 2.

    recording: changed in place. where: opens the messages on an MNE object. store: gives the place for the result,
    (N, samples) uV, once the size is known. The result's `report` holds `plan_stages`' keys, `dropped` (channel ->
    reason), `breaks` (their number) and `warnings`. NaN and infinity are bridged by straight lines; their seconds are
    invalid, and those that annotations call bad. Each stretch between breaks is filtered and resampled alone. A
    recording of more than `pipeline.block_bytes` is never held as a whole. Raises InputError for unknown electrodes and
    units, signals that cannot be read, where no second is valid, and for amplitudes that no EEG has, unless the
    pipeline has a scale.
    """
    if not isinstance(recording, RawRecording):
        recording = of_raw(recording, where, unit=pipeline.unit)
    where = recording.where
    with recording_readable(where):
        marks.mark(recording)
        resolution = select_electrodes(recording, pipeline)
    raw = recording.raw
    rate = float(raw.info["sfreq"])
    if not LOWEST_RATE <= rate < math.inf:  # it would make seconds of a recording into years
        raise InputError(f"{where}: sampled at {rate:g} Hz; EEG needs at least {LOWEST_RATE:g} Hz")
    samples = min(raw.n_times, round(recording.stretches[-1].stop * rate)) - round(pipeline.trim_end * rate)
    if samples < rate:
        trimmed = f" after --trim_end {pipeline.trim_end:g}" if pipeline.trim_end else ""
        raise InputError(f"{where}: lasts {max(samples, 0) / rate:.2f} s{trimmed}, but one patch is 1 s")
    recording.stretches = stretches = marks.cut_at(recording.stretches, samples / rate)
    stages = plan_stages(rate, pipeline.filter, [stretch.stop - stretch.start for stretch in stretches])
    stages["notes"] += resolution.notes
    new_rate = stages["sampling_rate"]
    source = Source(recording, samples, pipeline.scale or 1.0, _repair(recording, pipeline, stages["notes"]))
    try:
        length, blocks = processed(source, stages, pipeline)
        eeg, at = store(raw.ch_names, new_rate, length), 0
        for block in blocks:  # (N, t), V
            block *= 1e6 * source.scale
            eeg[:, at : at + block.shape[1]] = narrowed(block, pipeline.dtype, where)
            source.scan.count(source.scan.usable(block, at, new_rate))
            at += block.shape[1]
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{where}: cannot be filtered and resampled ({type(error).__name__})") from error
    assert at == length, (at, length)
    quality = source.quality(math.ceil(length / new_rate))
    warnings = [f"{where}: {text}" for text in recording.warnings]
    warnings += judged(quality, where, scaled=pipeline.scale is not None)
    report = stages | {"dropped": resolution.reasons, "breaks": len(stretches) - 1, "warnings": warnings}
    return Prepared(list(raw.ch_names), new_rate, length, eeg, quality, report, stretches)
