"""The stages of the pipeline: which of them a recording allows, its signal before and after them.

Signals are in volts here. Each stretch between two breaks is filtered and resampled alone.
"""

from __future__ import annotations  # types of the modules that import this one

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from dataset_maker import filters, marks
from dataset_maker.reasons import recording_readable, warnings_caught
from eeg_data.quality import Quality, SignalScan
from errors import InputError

if TYPE_CHECKING:
    from dataset_maker.pipeline import FilterSettings, Pipeline
    from dataset_maker.recording import RawRecording

MIN_TRANSITION = 0.5  # Hz between a filter's edge and Nyquist: less would take a filter of many seconds


def plan_stages(rate: float, settings: FilterSettings, seconds: Sequence[float]) -> dict[str, Any]:
    """Return the stages that a source of this rate (Hz) allows, and notes on the others. seconds: of its stretches.

    Keys: source_rate, sampling_rate, l_freq, h_freq, notch (None where a stage is left out), notes.
    """
    notes = []
    l_freq, h_freq, notch = settings.l_freq, settings.h_freq, settings.notch
    if h_freq and h_freq + MIN_TRANSITION > rate / 2:
        h_freq = None
        notes.append(f"no low-pass at {settings.h_freq:g} Hz: the source has {rate:g} Hz")
    if notch and notch * 1.0025 + MIN_TRANSITION >= rate / 2:  # MNE's notch is notch / 200 wide, edges of 0.5 Hz
        notch = None
        notes.append(f"no notch at {settings.notch:g} Hz: the source has {rate:g} Hz")
    if l_freq and min(seconds) < 3.3 / l_freq:
        what = "a stretch between breaks is " if len(seconds) > 1 else ""
        notes.append(f"{what}shorter than the high-pass filter at {l_freq:g} Hz, which lasts {3.3 / l_freq:.0f} s")
    rates = {"source_rate": rate, "sampling_rate": settings.sampling_rate or rate}
    return rates | {"l_freq": l_freq, "h_freq": h_freq, "notch": notch, "notes": notes}


def bridged(eeg: np.ndarray) -> np.ndarray:
    """Replace NaN and infinity in eeg (N, time), in place, by straight lines between their neighbours (0: none)."""
    finite = np.isfinite(eeg)
    for row in np.flatnonzero(~finite.all(axis=1)):
        good, bad = np.flatnonzero(finite[row]), np.flatnonzero(~finite[row])
        eeg[row, bad] = np.interp(bad, good, eeg[row, good]) if len(good) else 0.0
    return eeg


def narrowed(eeg: np.ndarray, dtype: str, where: str) -> np.ndarray:
    """Convert eeg (uV) to the files' type. Raises InputError for values that it cannot hold."""
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = eeg.astype(dtype)
    if not np.isfinite(narrow).all():
        raise InputError(f"{where}: values beyond {np.finfo(dtype).max:g} uV, more than {dtype} holds; check its units")
    return narrow


class Source:
    """The EEG of a recording before the filters, in volts. The scan sees every sample once.

    weights: (bad, N) what makes `recording.bad` of the others, or None.
    """

    def __init__(self, recording: RawRecording, samples: int, scale: float, weights: np.ndarray | None) -> None:
        self.recording, self.samples, self.where, self.scale = recording, samples, recording.where, scale
        self.raw = raw = recording.raw
        self.rate = float(raw.info["sfreq"])
        marked = ~marks.without(np.ones(math.ceil(samples / self.rate) + 1, bool), recording.invalid)
        self.scan = SignalScan(raw.ch_names, self.rate, amplitudes=False, marked=marked)
        self.weights, self._bad = weights, [raw.ch_names.index(name) for name in recording.bad]
        self._scanned = 0

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First sample and end of each stretch."""
        starts = [marks.first_sample(stretch.start, self.rate) for stretch in self.recording.stretches]
        return [(start, stop) for start, stop in pairwise([*starts, self.samples]) if start < stop]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return samples start to stop, (N, stop - start) float64, bridged. Raises InputError if unreadable."""
        with recording_readable(self.where), warnings_caught(self.recording.warnings):
            eeg = self.recording.volts(self.raw.get_data(start=start, stop=stop, verbose="warning"))
        if self.weights is not None:
            used = self.weights.any(axis=0)  # the bad ones may be NaN
            eeg[self._bad] = self.weights[:, used] @ eeg[used]
        if start <= self._scanned < stop:  # blocks overlap
            self.scan.add(eeg[:, self._scanned - start :] * (1e6 * self.scale))
            self._scanned = stop
        return bridged(eeg)

    def by_mne(self, stages: Mapping[str, Any]) -> np.ndarray:
        """Return the whole signal after MNE's own methods, (N, time) in volts."""
        raw = self.raw
        with recording_readable(self.where):
            raw.crop(tmax=(self.samples - 1) / self.rate)
            raw.load_data(verbose="error")
        raw.set_annotations(None)  # `recording.stretches` says where the breaks are
        raw[:, :] = self.read(0, self.samples)
        if stages["l_freq"] or stages["h_freq"]:
            raw.filter(stages["l_freq"], stages["h_freq"], verbose="error")
        if stages["notch"]:
            raw.notch_filter(stages["notch"], verbose="error")
        if filters.changes_rate(self.rate, stages["sampling_rate"]):
            raw.resample(stages["sampling_rate"], verbose="error")
        return raw.get_data(verbose="error")

    def quality(self, seconds: int) -> Quality:
        """Return what the scan saw, for this many seconds. Raises InputError if none is valid."""
        quality = self.scan.result()
        quality = replace(quality, valid=marks.without(quality.valid, self.recording.invalid))
        if not quality.valid.any():
            names = [name for name, count in quality.not_finite.items() if count == len(quality.valid)]
            reason = "no signal at all, or marked as bad"
            if names:
                reason = f"NaN or infinite in {', '.join(names)}; leave these out"
            raise InputError(f"{self.where}: no second is usable ({reason})")
        # Resampling rounds the length, so a last second of a few samples may come or go.
        return replace(quality, valid=np.pad(quality.valid, (0, 1), mode="edge")[:seconds])


def processed(source: Source, stages: dict[str, Any], pipeline: Pipeline) -> tuple[int, Iterator[np.ndarray]]:
    """Return the length of the filtered, resampled signal and its consecutive blocks (N, t) in volts."""
    electrodes, rate, new_rate, spans = len(source.raw.ch_names), source.rate, stages["sampling_rate"], source.spans
    taps = filters.kernel(rate, stages["l_freq"], stages["h_freq"], stages["notch"])
    short = source.samples < len(taps)  # mirrored at both ends it would be more mirror than signal
    fits = source.samples * electrodes * 8 <= pipeline.block_bytes
    if len(spans) == 1 and pipeline.resample == "mne" and (fits or short):
        eeg = source.by_mne(stages) if short else source.read(0, source.samples)
        whole = eeg if short else filters.process_whole(eeg, rate, taps, new_rate)
        return whole.shape[1], iter([whole])
    options: dict[str, Any] = {"h_freq": stages["h_freq"]}
    options["block_samples"] = pipeline.block_bytes // (8 * electrodes) // 4  # there are several copies of a block
    blocks = (
        filters.process_blocks(source.read, source.samples, rate, taps, new_rate, stretch=span, **options)
        for span in spans
    )
    return filters.output_length(source.samples, rate, new_rate), chain.from_iterable(blocks)
