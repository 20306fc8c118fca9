"""Open recordings of any format that MNE reads.

`open_raw` compares what the header announces with what the file holds (EDF, BDF and GDF: `recording`), reads around
texts that are not needed, and says in our own words what MNE warns of and why a recording cannot be read (`reasons`).
"""

from __future__ import annotations  # the types of mne would load half of it

import gzip
import re
import struct
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import mne

from dataset_maker import neuroscan, reasons
from dataset_maker.formats import FORMATS, companion, damage_of, file_name, format_of
from dataset_maker.matlab import find_signal, open_around
from dataset_maker.reasons import NoRecording, recording_readable
from errors import InputError, printable
from files import stand_in

CURRY_COUNTS = ("NumSamples", "NumChannels")
VALUES = {"INT_16": 2, "INT_32": 4, "IEEE_FLOAT_32": 4}  # bytes, BrainVision
Read = Callable[..., Any]  # (path, options of MNE's reader) -> recording


def open_raw(path: Path, *, cnt_format: str | None = None, **options: Any) -> tuple[mne.io.BaseRaw, list[str]]:
    """Open a recording: signals in volts, not loaded yet, and sentences about it for the user.

    cnt_format: of the values of Neuroscan files whose headers do not say it. options: of MNE's reader.
    Raises NoRecording for a file without signals, InputError with the reason for a recording that cannot be read.
    """
    kind = format_of(path)
    form = FORMATS[kind]
    reasons.check_package(path, form.extra, kind)
    reader: Callable[..., Any] | None = getattr(mne.io, form.reader, None)
    if reader is None:
        raise InputError(f"{path}: MNE {mne.__version__} has no reader for {kind}: install a newer version of mne")
    notes: list[str] = []

    def read(place: Path, **more: Any) -> Any:
        # On "error" MNE would not warn at all; what it warns of is caught.
        return reader(place, **{**form.options, **options, **more})

    with recording_readable(path, kind, damage_of), reasons.warnings_caught(notes), mne.utils.use_log_level("warning"):
        raw = _open(path, kind, cnt_format, read, notes)
        if not isinstance(raw, mne.io.BaseRaw):  # of Curry
            raise InputError(f"{path}: {reasons.EPOCHS.format('')}")
        if (there := _samples_there(raw, kind)) is not None and there < raw.n_times:
            notes.append(reasons.cut_short(there / raw.info["sfreq"], raw.n_times / raw.info["sfreq"]))
            if not there:
                raise InputError(f"{path}: {notes[-1]}")
            raw.crop(0, (there - 1) / raw.info["sfreq"])
    if not raw.ch_names:
        raise NoRecording(f"{path}: holds annotations and no signal, as a hypnogram does")
    return raw, notes


def _read_stand_in(read: Read, files: Mapping[str, bytes | Path], signal: Path) -> Any:
    """Read the first of these files in a `stand_in`; the recording names the file that holds its signal."""
    with stand_in(files) as place:
        raw = read(place)
        raw._filenames = [signal]
    return raw


def _open(path: Path, kind: str, cnt_format: str | None, read: Read, notes: list[str]) -> Any:
    """Open a recording with its format's reader, around what the reader cannot do."""
    if kind == "Neuroscan CNT":
        return _open_neuroscan(path, cnt_format, read, notes)
    if kind in OPENERS:
        return OPENERS[kind](path, read, notes)
    suffixes = FORMATS[kind].suffixes
    if path.is_dir() or path.name.lower().endswith(suffixes):
        return read(path)
    return _read_stand_in(read, {f"{path.stem}{suffixes[0]}": path}, path)


def _open_neuroscan(path: Path, cnt_format: str | None, read: Read, notes: list[str]) -> Any:
    """Open a Neuroscan recording through a stand-in with a right header, which has a hole in the samples' place."""
    layout = neuroscan.layout(path, cnt_format)
    if layout.announced > layout.samples:
        notes.append(reasons.cut_short(layout.samples / layout.rate, layout.announced / layout.rate))
    elif layout.announced != layout.samples:
        notes.append(f"its header announces {layout.announced} samples, it holds {layout.samples}: all are read")
    if not layout.events:
        notes.append("its event table cannot be read, so its events are not known")
    with stand_in({"x.cnt": layout.header}) as place:
        with place.open("r+b") as file:
            file.seek(layout.stop)
            file.write(layout.events or neuroscan.NO_EVENTS)
        raw = read(place, data_format=layout.data_format)
        raw._filenames = [path]
    return raw


def _open_brainvision(path: Path, read: Read, notes: list[str]) -> Any:
    """Open a BrainVision recording; where its header names other files, those with its own name."""
    header = path.read_bytes()

    def stated(key: str) -> str:
        match = re.search(rb"(?im)^[ \t]*" + key.encode() + rb"[ \t]*=[ \t]*([^\r\n]*?)[ \t]*\r?$", header)
        text = match[1] if match else b""
        try:
            return text.decode()
        except UnicodeDecodeError:
            return text.decode("latin-1")

    links: dict[str, Path] = {}
    for key, suffixes in (("DataFile", (".eeg", ".dat")), ("MarkerFile", (".vmrk", ".amrk"))):
        if key == "MarkerFile" and not stated(key):
            continue
        wanted = stated(key).replace("$b", path.stem).replace("\\", "/").rpartition("/")[2]
        own = [path.stem + suffix for suffix in suffixes]
        try:
            links[key] = companion(path, [wanted, *own] if wanted else own, f"its {key}")
        except InputError:
            if key == "DataFile":
                raise
            if wanted:
                notes.append(f"its marks are not read: {file_name(wanted)} is not in its folder")
            continue
        notes += _renamed(wanted, links[key])
    _check_brainvision(path, stated, links["DataFile"], notes)
    if all(stated(key) == (links[key].name if key in links else "") for key in ("DataFile", "MarkerFile")):
        return read(path)
    names = {"DataFile": "signal.eeg", "MarkerFile": "marks.vmrk"}
    for key, name in names.items():
        new = rb"\g<1>" + (name.encode() if key in links else b"")
        header = re.sub(rb"(?im)^([ \t]*" + key.encode() + rb"[ \t]*=)[^\r\n]*", new, header)
    files: dict[str, bytes | Path] = {path.name.lower(): header, **{names[key]: file for key, file in links.items()}}
    return _read_stand_in(read, files, links["DataFile"])


def _renamed(wanted: str, there: Path) -> list[str]:
    """Say that a header names another companion than the one that is read."""
    if not wanted or wanted.lower() == there.name.lower():
        return []
    return [f"its header wants {file_name(wanted)}, which is not there: {printable(there.name)} is read instead"]


def _check_brainvision(path: Path, stated: Callable[[str], str], signal: Path, notes: list[str]) -> None:
    """Compare the points that the header announces with the size of the signal's file."""
    if stated("BinaryFormat") not in VALUES or not stated("NumberOfChannels").isdigit():
        return  # text, or a header that MNE refuses
    channels = int(stated("NumberOfChannels")) + path.name.lower().endswith(".ahdr")  # V-Amp stores one more
    points, cut = divmod(signal.stat().st_size, channels * VALUES[stated("BinaryFormat")])
    announced = int(stated("DataPoints")) if stated("DataPoints").isdigit() else points
    rate = 1e6 / float(stated("SamplingInterval"))
    if stated("DataOrientation").upper() == "VECTORIZED" and (cut or announced != points):
        held = f"{points / rate:g} s, its header announces {announced / rate:g} s"
        raise InputError(
            f"{path}: cut short: {printable(signal.name)} holds {held}. Its channels follow each other, so "
            "that the rest cannot be read rightly: fetch the whole file"
        )
    if points < announced:
        notes.append(reasons.cut_short(points / rate, announced / rate))
    elif announced < points:
        notes.append(f"its header announces {announced / rate:g} s, the file holds {points / rate:g} s: all are read")


def _open_eeglab(path: Path, read: Read, notes: list[str]) -> Any:
    """Open an EEGLAB recording; an EEG.data without a suffix means the .fdt of the same name."""
    if inside := find_signal(path):
        return open_around(inside, read)
    try:
        return read(path)
    except Exception as error:
        text = str(error)
        if isinstance(error, FileNotFoundError):
            wanted = re.search(r"tried (.+?) and ", text)
            names = [re.split(r"[/\\]", wanted[1])[-1]] if wanted else []
            companion(path, [*names, f"{path.stem}.fdt"], "its signal")
        if "EEGLAB file extension" not in text:
            raise
    signal = companion(path, [f"{path.stem}.fdt"], "its signal")
    reader, finder = import_module("mne.io.eeglab.eeglab"), "_check_eeglab_fname"
    before = getattr(reader, finder)
    setattr(reader, finder, lambda *names: str(signal))
    try:
        raw = read(path)
    finally:
        setattr(reader, finder, before)
    notes.append(f"its EEG.data has no suffix: {printable(signal.name)} is read")
    return raw


def _open_fif(path: Path, read: Read, notes: list[str]) -> Any:
    """Open a FIF recording; say which part of a split one is missing, and what is there instead of a recording."""
    try:
        raw = read(path)
        if (whole := _whole_buffers(raw)) < raw.n_times:
            notes.append("cut short; what is whole is read")
            raw.crop(0, (whole - 1) / raw.info["sfreq"])
        return raw
    except Exception as error:
        if part := re.search(r"next file (.+) does not exist", str(error)):
            companion(path, [Path(part[1]).name], "the next part of this split recording")
        blocks = _fif_blocks(path)
        if 373 in blocks:
            raise InputError(f"{path}: {reasons.EPOCHS.format('')}") from None
        if blocks and not blocks & {102, 112, 119}:  # raw data, continuous data, with internal active shielding
            raise NoRecording(f"{path}: holds no recording ({'averages' if 104 in blocks else 'no signal'})") from None
        raise


def _whole_buffers(raw: mne.io.BaseRaw) -> int:
    """Return how many samples of a FIF recording lie in buffers that end before the last file does."""
    path, extras = Path(str(raw.filenames[-1])), raw._raw_extras[-1]
    if path.suffix.lower() == ".gz":
        return raw.n_times
    size, first_samples = path.stat().st_size, extras["bounds"]
    cut = (place for place, tag in enumerate(extras["ent"]) if tag and tag.pos + 16 + tag.size > size)
    return raw.n_times - sum(int(first_samples[place + 1] - first_samples[place]) for place in cut)


def _fif_blocks(path: Path) -> set[int]:
    """Return the kinds of blocks that a FIF file has; empty if it is not whole."""
    blocks, place = set(), 0
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        while True:
            file.seek(place)
            if len(tag := file.read(20)) < 16:
                return set()
            kind, _, size, following = struct.unpack(">iiii", tag[:16])
            if kind == 104 and len(tag) == 20:  # a block begins
                blocks.add(struct.unpack(">i", tag[16:])[0])
            if following < 0:
                return blocks
            place = following or place + 16 + size


def _open_persyst(path: Path, read: Read, notes: list[str]) -> Any:
    """Open a Persyst recording without what it says of the patient, whose birthday MNE must be able to read."""
    content = path.read_bytes()
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        lines = content.decode("latin-1").splitlines()
    kept, section, wanted, lost = [], "", f"{path.stem}.dat", 0
    for line in lines:
        if line.startswith("["):
            section = line.strip().lower()
        key, _, value = (text.strip() for text in line.partition("="))
        if section == "[fileinfo]" and key.lower() == "file":
            wanted, line = re.split(r"[/\\]", value)[-1], "File=signal.dat"
        if section == "[fileinfo]" and key.lower() == "headerlength" and value not in ("", "0"):
            raise InputError(
                f"{path}: its signal begins behind a header, which MNE would read as EEG; {reasons.EXPORT}"
            )
        if section == "[comments]" and line.strip() and not line.startswith("[") and line.count(",") < 4:
            lost += 1
        elif section in ("[fileinfo]", "[channelmap]", "[comments]"):
            kept.append(line)
    if lost:
        notes.append(f"{lost} of its comments are not read: they have no time")
    patient = ["[Patient]", "BirthDate=-", "TestDate=0", "Sex=", "Hand=", ""]
    signal = companion(path, [wanted, f"{path.stem}.dat"], "its signal")
    notes += _renamed(wanted, signal)
    with redirect_stdout(None):  # a note on the birthday
        return _read_stand_in(read, {"x.lay": "\n".join([*patient, *kept]).encode(), "signal.dat": signal}, signal)


def _open_nihon(path: Path, read: Read, notes: list[str]) -> Any:
    """Open a Nihon Kohden recording, without its events if they cannot be read."""
    names = companion(path, [f"{path.stem}.21E"], "which channel is which electrode")
    if names.name == f"{path.stem}.21E":
        with suppress(Exception):
            return read(path)
    return _read_stand_in(read, {"x.EEG": path, "x.21E": names}, path)


def _open_curry(path: Path, read: Read, notes: list[str]) -> Any:
    """Open a Curry recording of any version."""
    if path.name.lower().endswith(".cdt"):
        header = companion(path, [f"{path.name}.dpa", f"{path.name}.dpo"], "its header")
    else:
        header = companion(path, [f"{path.stem}.dap"], "its header")
        companion(path, [f"{path.stem}.rs3"], "the names of its channels")
    text = header.read_text(encoding="latin-1")
    samples, channels = (int(n[1]) if (n := re.search(rf"{key}\s*=\s*(\d+)", text)) else 0 for key in CURRY_COUNTS)
    if re.search(r"DataByteOrder\s*=\s*ASCII", text):
        with path.open("rb") as file:
            there = sum(1 for line in file if line.strip())
    else:
        there = path.stat().st_size // (4 * max(channels, 1))
    _check_whole(path, there, samples)
    with redirect_stdout(None):
        return read(path)


def _open_nicolet(path: Path, read: Read, notes: list[str]) -> Any:
    """Open a Nicolet recording."""
    header = companion(path, [f"{path.stem}.head"], "its header")
    return _read_stand_in(read, {"x.data": path, "x.head": header}, path)


def _open_nexstim(path: Path, read: Read, notes: list[str]) -> Any:
    """Open a Nexstim recording. MNE takes its microvolts for volts."""
    raw = read(path)
    eeg = mne.pick_types(raw.info, eeg=True, eog=True)
    if (raw._cals[eeg] > 1e-3).all():  # uV a digital step
        raw._cals[eeg] *= 1e-6
    return raw


def _open_egi(path: Path, read: Read, notes: list[str]) -> Any:
    """Open EGI's simple binary format."""
    with path.open("rb") as file:
        head = file.read(36).ljust(36, b"\0")
    version, channels, samples, events = struct.unpack(">i18xh6xih", head)
    there = (path.stat().st_size - 36 - 4 * events) // max((channels + events) * (version & 6), 1)
    if not version & 1:  # else these are epochs, which MNE refuses
        _check_whole(path, there, samples)
    return read(path)


def _check_whole(path: Path, there: int, samples: int) -> None:
    """Raise InputError for a file that is cut short and that MNE cannot read so."""
    if there < samples:
        raise InputError(f"{path}: cut short: holds {there} of {samples} samples: fetch the whole file")


def _open_mff(path: Path, read: Read, notes: list[str]) -> Any:
    """Open a folder of EGI."""
    for name, what in (("signal1.bin", "its signal"), ("info.xml", "its header"), ("epochs.xml", "its times")):
        companion(path / name, [name], what)
    vars(import_module("mffpy.reader"))["print"] = lambda *texts: None  # it would print at each piece that is read
    return read(path)


OPENERS: dict[str, Callable[[Path, Callable[..., Any], list[str]], Any]] = {
    "BrainVision": _open_brainvision,
    "EEGLAB": _open_eeglab,
    "FIF": _open_fif,
    "EGI MFF": _open_mff,
    "EGI RAW": _open_egi,
    "Persyst": _open_persyst,
    "Nihon Kohden": _open_nihon,
    "Curry": _open_curry,
    "Nicolet": _open_nicolet,
    "Nexstim": _open_nexstim,
}


def _samples_there(raw: mne.io.BaseRaw, kind: str) -> int | None:
    """Return how many samples the file holds, where the reader believes the header; None elsewhere."""
    path, extras, channels = Path(str(raw.filenames[0])), raw._raw_extras[0], len(raw.ch_names)
    if kind not in COUNTED or not path.is_file():
        return None
    return COUNTED[kind](path.stat().st_size, extras, channels) if path.suffix.lower() != ".set" else None


def _of_neuroelectrics(size: int, extras: Mapping[str, Any], channels: int) -> int:
    full, rest = divmod(max(size - 10240, 0), extras["dt"].itemsize)
    last = extras["dt_last"]
    return 5 * full + (last["data"].shape[0] if full == extras["n_full"] and rest >= last.itemsize else 0)


def _of_nihon(size: int, extras: Mapping[str, Any], channels: int) -> int:
    there = 0
    for block in extras["header"]["controlblocks"][0]["datablocks"]:
        count = int(block["n_channels"])
        held = (size - int(block["address"]) - 0x27 - 10 * count) // (2 * (count + 1))
        there += max(0, min(held, int(block["n_samples"])))
    return there


# Format -> function of (bytes of the file, what the reader knows, channels) that returns samples.
COUNTED: dict[str, Callable[[int, Any, int], int]] = {
    "EEGLAB": lambda size, extras, channels: size // (4 * channels),  # of an .fdt
    "Nicolet": lambda size, extras, channels: size // (2 * channels),
    "Neuroelectrics": _of_neuroelectrics,
    "Nihon Kohden": _of_nihon,
}
