"""A recording as its file states it: units, missing samples, breaks, times; before any filter.

MNE opens the file; `of_raw` adds what MNE takes otherwise, or does not say.
"""

from __future__ import annotations  # the types of mne would load half of it

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import mne
import numpy as np

from dataset_maker.headers import Header, read_header, volts_per
from dataset_maker.marks import Stretch
from dataset_maker.reasons import cut_short
from electrodes import canonical_name
from errors import InputError, first_few, printable
from files import stand_in

MAX_DRIFT = 0.5  # s that the clock of an EDF+ file may differ from its samples within a stretch


@dataclass(frozen=True)
class Channel:
    """What a header states about a channel."""

    unit: str  # as the file spells it
    applied: float  # V that MNE takes the unit for
    volts: float | None  # that it is; None: nobody knows
    signal: int = -1  # its place in the file


@dataclass
class RawRecording:
    """A recording and what its file states. Channels are named as in `raw`."""

    raw: mne.io.BaseRaw  # in volts as MNE converts, maybe not loaded yet
    where: str  # opens messages
    header: Header | None = None  # of an EDF, BDF or GDF file that `raw` is still read from
    channels: dict[str, Channel] = field(default_factory=dict)  # those of which the file states a unit
    is_eeg: set[str] = field(default_factory=set)  # channels that MNE takes for something else because of their unit
    bad: list[str] = field(default_factory=list)  # electrodes that somebody marked as bad and that were not dropped
    stretches: list[Stretch] = field(default_factory=list)  # at least one; between two there is a break
    invalid: list[tuple[float, float]] = field(default_factory=list)  # s of the stored signal without usable signal
    warnings: list[str] = field(default_factory=list)  # sentences, without the path
    paused: Path | None = None  # file with pauses: MNE does not read all of its annotations

    def __post_init__(self) -> None:
        """Make a recording of which its file states nothing else one stretch."""
        if not self.stretches:
            self.stretches = [Stretch(0.0, self.raw.n_times / self.raw.info["sfreq"], self.raw.first_time)]

    def rates(self, names: Iterable[str]) -> dict[str, float]:
        """Return the sampling rate of each channel in Hz, as the file has it."""
        header, rate = self.header, float(self.raw.info["sfreq"])
        return {name: float(header.rates[self.channels[name].signal]) if header else rate for name in names}

    def rename(self, names: Mapping[str, str]) -> None:
        """Keep these channels, under new names. names: old -> new."""
        self.raw.pick(list(names))
        self.raw.rename_channels(dict(names), verbose="error")
        self.channels = {new: self.channels[old] for old, new in names.items() if old in self.channels}

    def annotations_of_file(self) -> mne.Annotations:
        """Return what a file with pauses states, also what MNE leaves out of `raw`."""
        assert self.paused
        # MNE chooses the reader by the suffix; this one reads BDF, too.
        with stand_in({"x.edf": self.paused}) as link, mne.utils.use_log_level("error"):
            return mne.read_annotations(link, encoding="latin1")

    def volts(self, eeg: np.ndarray) -> np.ndarray:
        """Return MNE's values of all channels, (N, t), in volts; NaN where the file holds no sample."""
        if self.header:
            eeg[self._is_missing(eeg)] = np.nan
        elif _is_of(self.raw, "RawMff"):  # EGI fills the block before a pause with zeros
            eeg[:, ~eeg.any(axis=0)] = np.nan
        known = [self.channels.get(name) for name in self.raw.ch_names]
        factors = np.array([channel.volts / channel.applied if channel and channel.volts else 1.0 for channel in known])
        return eeg * factors[:, None] if (factors != 1).any() else eeg

    def _is_missing(self, eeg: np.ndarray) -> np.ndarray:
        """Return where samples have the lowest digital value, which means that there is none, (N, t) bool.

        In EDF and BDF files it may mean saturation, too, unless all of several electrodes have it.
        """
        header, missing = self.header, np.zeros(eeg.shape, bool)
        assert header
        for row, name in enumerate(self.raw.ch_names):
            signal, applied = self.channels[name].signal, self.channels[name].applied
            physical, digital = header.physical[signal], header.digital[signal]
            step = abs(np.ptp(physical) / np.ptp(digital)) * applied
            missing[row] = np.abs(eeg[row] - physical[np.argmin(digital)] * applied) < step / 2
            if header.kind != "GDF" and not missing[row].any():
                return np.zeros(eeg.shape, bool)
        if header.kind != "GDF":
            missing[:] = missing.all(axis=0) & (len(missing) > 1)
        return missing

    def check_scales(self, names: Sequence[str]) -> None:
        """Raise InputError for channels of whose values the file does not say what they are worth."""
        stated = {name: self.channels[name] for name in names if name in self.channels}
        if unknown := {name: channel.unit for name, channel in stated.items() if channel.volts is None}:
            shown = first_few([f"{name!r} ({printable(unit[:10]) or 'blank'})" for name, unit in unknown.items()])
            raise InputError(
                f"{self.where}: the unit of {len(unknown)} channel(s) is not known: {shown}; say which one it is, with "
                "--unit uV, mV, nV or V, or leave them out with --drop"
            )
        if self.header:
            equal = [name for name, channel in stated.items() if not self.header.has_scale(channel.signal)]
            if shown := " ".join(map(repr, equal)):
                reason = f"the header's lowest and highest value of {shown} are equal, which defines no scale"
                raise InputError(f"{self.where}: {reason}: leave them out with --drop {shown}")


def _is_of(raw: mne.io.BaseRaw, *readers: str) -> bool:
    """Tell which reader a recording is of, without importing the readers: that would slow the start of every maker."""
    return type(raw).__name__ in readers


def of_raw(
    raw: mne.io.BaseRaw, where: str = "recording", *, path: Path | None = None, unit: str | None = None
) -> RawRecording:
    """Describe an MNE recording, which is not changed. What its file states of values holds until it is loaded.

    path: that was opened; by default the one that MNE names. unit: of channels whose unit the file does not state.
    """
    recording = RawRecording(raw, where)
    if raw.preload and _is_of(raw, "RawEDF", "RawBDF", "RawGDF"):
        _check_length(raw, where)
    if len(raw.filenames) != 1 or not raw.filenames[0]:
        return recording
    path = path or Path(raw.filenames[0])
    if raw.preload:
        if _is_of(raw, "RawEDF", "RawBDF") and (header := read_header(path)):
            recording.stretches = _stretches_left(recording, header) or recording.stretches
        return recording
    default = volts_per(unit) if unit else None
    if header := read_header(path):
        _describe_edf(recording, header, default)
    elif _is_of(raw, "RawEDF", "RawBDF", "RawGDF"):
        raise InputError(f"{where}: its header has no numbers where the format wants them, so that units are not known")
    elif _is_of(raw, "RawBrainVision"):
        _describe_brainvision(recording, path, default)
    elif _is_of(raw, "RawANT", "RawCurry"):
        _describe_vendors(recording, default)
    return recording


def _check_length(raw: mne.io.BaseRaw, where: str) -> None:
    """Raise InputError for a loaded recording whose trigger channel is faster than all others.

    MNE brings the others to its rate, and still calls the rate theirs.
    """
    extras = raw._raw_extras[0]
    others = np.delete(extras["n_samps"], extras.get("stim_channel_idxs", []))
    if len(others) and max(others) < extras["max_samp"]:
        seconds = float(extras["n_records"]) * extras["record_length"][0] / extras["record_length"][1]
        lasts = f"lasts {seconds:g} s in its file and {seconds * extras['max_samp'] / max(others):g} s here"
        raise InputError(f"{where}: {lasts}, as MNE reads a trigger channel that is faster than the EEG: give the file")


def _describe_edf(recording: RawRecording, header: Header, default: float | None) -> None:
    """Note units, places in the file, pauses, and what of the announced signal is missing."""
    raw, extras = recording.raw, recording.raw._raw_extras[0]  # MNE has no other name for what it took from the file
    columns = np.asarray(raw._read_picks[0])
    if len(columns) != len(raw.ch_names) or columns.max(initial=-1) >= len(extras["sel"]) or not len(columns):
        return
    recording.header = header
    for name, column in zip(raw.ch_names, columns, strict=True):
        signal = int(extras["sel"][column])
        volts = header.volts(signal) or default
        recording.channels[name] = Channel(header.units[signal], float(extras["units"][column]), volts, signal)
    recording.stretches = _stretches_left(recording, header)
    if not recording.stretches:
        stated, held = (f"{count * header.seconds:g} s" for count in (header.announced, header.held))
        raise InputError(f"{recording.where}: its header announces {stated} and the file holds {held}: nothing is read")
    if header.records < header.announced:
        recording.warnings.append(cut_short(*(count * header.seconds for count in (header.records, header.announced))))
    elif header.kind != "GDF" and (more := header.held - header.records) > 0:  # in GDF events follow
        recording.warnings.append(
            f"holds {more * header.seconds:g} s more than the {header.announced * header.seconds:g} s that its header "
            "announces; they are not read"
        )


def _stretches(header: Header, warnings: list[str]) -> list[Stretch]:
    """Return the pieces of an EDF+ or BDF+ file between its pauses, and where its clock has drifted off the samples."""
    onsets, seconds = header.onsets(), header.seconds
    if onsets is not None and (np.diff(onsets) <= 0).any():
        warnings.append("the times of its records do not increase: they are not used, so pauses are not known")
        onsets = None
    if onsets is None:
        return [Stretch(0.0, header.records * seconds, 0.0)]
    tolerance = max(2 / float(np.max(header.rates[~header.is_annotations])), 0.002)  # s: times may be rounded to ms
    firsts = [0]  # records
    for record in range(1, len(onsets)):
        late = onsets[record] - onsets[record - 1] - seconds
        drift = onsets[record] - onsets[firsts[-1]] - (record - firsts[-1]) * seconds
        if abs(late) > tolerance or abs(drift) > MAX_DRIFT:
            firsts.append(record)
    return [Stretch(a * seconds, b * seconds, float(onsets[a])) for a, b in pairwise([*firsts, header.records])]


def _stretches_left(recording: RawRecording, header: Header) -> list[Stretch]:
    """Return what of a file's stretches lies in `raw`, which may have been cropped; start and stop count from there.

    The clock stays the file's: so do the annotations that MNE reads. Notes whether the file has pauses.
    """
    raw, stretches = recording.raw, _stretches(header, recording.warnings)
    recording.paused = header.path if len(stretches) > 1 else None
    rate = raw.info["sfreq"]
    first, length = raw.first_samp / rate, raw.n_times / rate
    inside = []
    for start, stop, clock in stretches:
        begin, end = max(start - first, 0.0), min(stop - first, length)
        if end > begin:
            inside.append(Stretch(begin, end, clock + begin + first - start))
    return inside


def _describe_brainvision(recording: RawRecording, path: Path, default: float | None) -> None:
    """Note the units of a BrainVision header. MNE takes electrodes in units that it does not know for no EEG."""
    raw = recording.raw
    names = (path.with_suffix(suffix) for suffix in (path.suffix, ".vhdr", ".ahdr") if suffix.lower() != ".eeg")
    if (path := next(filter(Path.is_file, names), Path())) == Path():  # the header has another name
        return
    section = path.read_bytes().decode("latin-1").partition("[Channel Infos]")[2].partition("\n[")[0]
    lines = {int(number): line.split(",") for number, line in re.findall(r"(?mi)^Ch(\d+)=([^\r\n]*)", section)}
    for name, column in zip(raw.ch_names, raw._read_picks[0], strict=True):
        fields, place = lines.get(int(column) + 1, []), raw.info["chs"][raw.ch_names.index(name)]
        stated = fields[3] if len(fields) > 3 and fields[3] else "uV"  # the format's default
        volts = volts_per(stated) or default
        recording.channels[name] = Channel(stated, float(place["range"]), volts)
        if volts_per(stated) or canonical_name(name):
            recording.is_eeg.add(name)


def _describe_vendors(recording: RawRecording, default: float | None) -> None:
    """Note the units of an ANT or Curry recording. MNE converts microvolts and takes everything else for volts."""
    raw = recording.raw
    of_file = raw._raw_extras[0].get("orig_ch_units")  # of ANT, for all channels of the file
    for name, column in zip(raw.ch_names, raw._read_picks[0], strict=True):
        unit = of_file[int(column)] if of_file else raw._orig_units.get(name)
        if unit is not None:
            applied = 1e-6 if unit in ("uv", "µv", "uV", "µV") else 1.0
            recording.channels[name] = Channel(unit, applied, volts_per(unit) or default)
