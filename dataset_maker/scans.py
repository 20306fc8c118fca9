"""Which seconds can be used, and what the signals look like: what the files say, else a scan that is kept in a cache.

The cache is a folder of small JSON files: $LABRAM_CACHE, else $XDG_CACHE_HOME/labram, else ~/.cache/labram. Without
torch, so that `dataset_maker.inspect_data` can use it.
"""

import hashlib
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from eeg_data.labelled_files import Samples, read_eeg
from eeg_data.pretraining_files import SAMPLING_RATE, Recording, Stretches, by_montage, covered, seconds_of, stretches
from eeg_data.quality import Quality, SignalScan
from errors import InputError
from files import cache_folder, written_aside

logger = logging.getLogger(__name__)

RULES = 1  # of a scan: another number makes all that is kept unknown
BLOCK = 2**22  # values read at once

SecondsDone = Callable[[int], Any]  # told how many seconds more were looked at


@dataclass(frozen=True)
class Scan:
    """What is seen in the signals of a file."""

    invalid: dict[str, Stretches]  # signal -> seconds
    quality: dict[str, Quality]  # group of signals ->


@dataclass(frozen=True)
class Source:
    """A file to look at."""

    path: Path
    groups: dict[str, dict[str, int]]  # group of signals with the same electrodes -> signal -> seconds
    look: Callable[[str, SecondsDone], Quality]  # at a signal

    @property
    def seconds(self) -> int:
        """Of all signals."""
        return sum(sum(signals.values()) for signals in self.groups.values())


def cache_file(path: Path) -> Path:
    """Where the scan of a file is kept: another name as soon as the file changes."""
    state = path.stat()
    key = f"{RULES}\n{path.resolve()}\n{state.st_size}\n{state.st_mtime_ns}"
    return cache_folder() / f"{hashlib.sha256(os.fsencode(key)).hexdigest()}.json"


def _load(source: Source) -> Scan | None:
    """The kept scan of a file, None if there is none that can be used."""
    try:
        content = json.loads(cache_file(source.path).read_text(encoding="utf-8"))
        invalid: dict[str, Stretches] = {}
        quality = {}
        for group, signals in source.groups.items():
            found = {name: _checked(content["invalid"][name], seconds) for name, seconds in signals.items()}
            valid = [~covered(found[name], seconds) for name, seconds in signals.items()]
            quality[group] = Quality.from_json(content["quality"][group], np.concatenate(valid))
            invalid |= found
        return Scan(invalid, quality)
    except FileNotFoundError:
        return None
    except Exception as error:  # a cache may be damaged in any way and never stops anybody
        logger.warning("The kept scan of %s cannot be used (%s): scanned again.", source.path, type(error).__name__)
        return None


def _checked(parts: Any, seconds: int) -> Stretches:
    """Stretches out of a cache file. Raises ValueError or TypeError if they are none."""
    found = tuple((int(first), int(end)) for first, end in parts)
    places = [place for part in found for place in part]
    if places != sorted(set(places)) or (places and not 0 <= places[0] <= places[-1] <= seconds):
        raise ValueError
    return found


def _keep(path: Path, scan: Scan) -> None:
    quality = {group: found.to_json() for group, found in scan.quality.items()}
    try:
        file = cache_file(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(file) as part:
            part.write_text(json.dumps({"invalid": scan.invalid, "quality": quality}), encoding="utf-8")
    except (OSError, RuntimeError, InputError) as error:
        logger.warning(
            "The scan of %s cannot be kept (%s): set LABRAM_CACHE to a folder that can be written.",
            path,
            type(error).__name__,
        )


def _look_at_all(source: Source, progress: SecondsDone) -> Scan:
    invalid: dict[str, Stretches] = {}

    def each(signals: Mapping[str, int]) -> Iterator[Quality]:
        for name in signals:
            found = source.look(name, progress)
            invalid[name] = stretches(~found.valid)
            yield found

    return Scan(invalid, {group: Quality.merged(each(signals)) for group, signals in source.groups.items()})


def look_at(sources: Sequence[Source], *, visible: bool) -> dict[Path, Scan]:
    """Scans of files, kept ones where there are; visible: with a bar on a terminal. Raises InputError for damage."""
    found = {source.path: _load(source) for source in sources}
    todo = [source for source in sources if found[source.path] is None]
    if todo and visible:
        logger.info("Scanning %d file(s) once for seconds that cannot be used; the result is kept.", len(todo))
    with tqdm(
        total=sum(source.seconds for source in todo),
        desc="scanning",
        disable=not (visible and sys.stderr.isatty()),
        leave=False,
        dynamic_ncols=True,
        bar_format="{desc} {percentage:3.0f} % {bar} {remaining} left",
    ) as bar:
        for source in todo:
            scan = found[source.path] = _look_at_all(source, bar.update)
            _keep(source.path, scan)
    return {path: scan for path, scan in found.items() if scan is not None}


# Pre-training files


def _key(recording: Recording) -> str:
    """Group of a recording in a scan: those of its montage."""
    return json.dumps(recording.montage)


def _recordings_source(path: Path, recordings: Sequence[Recording]) -> Source:
    by_name = {recording.name: recording for recording in recordings}

    def look(name: str, progress: SecondsDone) -> Quality:
        scan = SignalScan(by_name[name].montage, SAMPLING_RATE)
        for eeg in by_name[name].blocks(BLOCK):
            scan.add(eeg)
            progress(eeg.shape[1] // SAMPLING_RATE)
        return scan.result()

    groups = {
        _key(group[0]): {recording.name: seconds_of(recording.length) for recording in group}
        for group in by_montage(recordings)
    }
    return Source(path, groups, look)


def complete_recordings(
    recordings: Sequence[Recording], *, visible: bool = False, thorough: bool = False
) -> tuple[list[Recording], dict[Path, Scan]]:
    """Recordings that all know their invalid seconds, and the scans of the files that did not say.

    recordings: all of each file; thorough: scan files, too, that say no more than which seconds are valid.
    """
    files = {path: list(group) for path, group in itertools.groupby(recordings, key=lambda r: r.path)}
    sources = [
        _recordings_source(path, group)
        for path, group in files.items()
        if any(r.invalid is None for r in group) or (thorough and stated_quality(group) is None)
    ]
    scans = look_at(sources, visible=visible)
    complete = [
        replace(r, invalid=scans[r.path].invalid[r.name]) if r.invalid is None else r
        for group in files.values()
        for r in group
    ]
    return complete, scans


def stated_quality(recordings: Sequence[Recording]) -> Quality | None:
    """What the files say of these recordings of one montage, as one; None unless they say it of every one."""
    silent = []

    def each() -> Iterator[Quality]:  # one after the other: of 100 000 recordings not all at once
        for recording in recordings:
            quality = recording.quality()
            if quality is None:
                silent.append(recording)
                return
            yield quality

    merged = Quality.merged(each())
    return None if silent else merged


def recordings_quality(recordings: Sequence[Recording], scans: Mapping[Path, Scan]) -> Quality | None:
    """What is known of these recordings of one montage, as one; None if nothing is."""
    parts = []
    for path, group in itertools.groupby(recordings, key=lambda r: r.path):
        own = list(group)
        parts.append(scans[path].quality[_key(own[0])] if path in scans else stated_quality(own))
    known = [part for part in parts if part is not None]
    return Quality.merged(known) if known else None


# Labelled files


def _samples_source(path: Path, splits: Sequence[Samples], montage: Sequence[str], seconds: int) -> Source:
    by_name = {samples.split: samples for samples in splits}

    def look(split: str, progress: SecondsDone) -> Quality:
        return Quality.merged(_by_recording(by_name[split], montage, seconds, progress))

    return Source(path, {split: {split: len(samples) * seconds} for split, samples in by_name.items()}, look)


def _by_recording(samples: Samples, montage: Sequence[str], seconds: int, progress: SecondsDone) -> Iterator[Quality]:
    """Scans of the samples, those of a recording as one signal: what is flat is judged by a recording's movement."""
    step = max(1, BLOCK // (len(montage) * seconds * SAMPLING_RATE))
    scan = SignalScan(montage, SAMPLING_RATE)
    current = samples.recordings[0] if len(samples) else ""
    for first in range(0, len(samples), step):
        eeg = read_eeg(samples.path, samples.split, first, first + step)  # (samples, N, A*T)
        names = samples.recordings[first : first + step]
        start = 0
        for name, group in itertools.groupby(names):
            end = start + len(list(group))
            if name != current:
                yield scan.result()
                scan, current = SignalScan(montage, SAMPLING_RATE), name
            scan.add(eeg[start:end].transpose(1, 0, 2).reshape(len(montage), -1))  # (N, time)
            start = end
        progress(len(eeg) * seconds)
    yield scan.result()


def complete_samples(
    splits: Mapping[str, Sequence[Samples]],
    *,
    montage: Sequence[str],
    seconds: int,
    visible: bool = False,
    thorough: bool = False,
) -> dict[str, list[Samples]]:
    """Samples that all know their valid seconds, from a scan of the files that do not say.

    splits: all samples of each file, by split; seconds: of a sample; thorough: as for `complete_recordings`.
    """
    files: dict[Path, list[Samples]] = {}
    for part in itertools.chain(*splits.values()):
        files.setdefault(part.path, []).append(part)
    sources = [
        _samples_source(path, parts, montage, seconds)
        for path, parts in files.items()
        if any(part.valid is None or (thorough and part.quality is None) for part in parts)
    ]
    scans = look_at(sources, visible=visible)

    def completed(part: Samples) -> Samples:
        if part.path not in scans:
            return part
        invalid = covered(scans[part.path].invalid[part.split], len(part) * seconds).reshape(len(part), seconds)
        valid = ~invalid if part.valid is None else part.valid
        return replace(part, valid=valid, quality=scans[part.path].quality[part.split])

    return {split: [completed(part) for part in parts] for split, parts in splits.items()}


def samples_quality(parts: Sequence[Samples]) -> Quality | None:
    """What is known of these samples, as one; None if nothing is."""
    known = [part.quality for part in parts if part.quality is not None]
    return Quality.merged(known) if known else None
