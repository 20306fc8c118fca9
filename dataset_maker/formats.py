"""Which format a recording has: its first bytes tell, not its name.

Some suffixes are those of other programs, too, or of parts of recordings: then the first bytes or the files beside it
prove that a file is a recording.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count, takewhile
from os.path import lexists
from pathlib import Path
from typing import Any, NamedTuple

from dataset_maker.headers import read_header
from errors import InputError, printable


class Format(NamedTuple):
    """How MNE reads a format."""

    reader: str  # of mne.io
    suffixes: tuple[str, ...]  # of its files; readers insist on them
    extra: str = ""  # package that MNE needs for it
    options: Mapping[str, Any] = {}


FORMATS = {
    # Annotations are not used as text: no byte of theirs may make MNE refuse a file.
    "EDF": Format("read_raw_edf", (".edf",), options={"encoding": "latin1"}),
    "BDF": Format("read_raw_bdf", (".bdf",), options={"encoding": "latin1"}),
    "GDF": Format("read_raw_gdf", (".gdf",)),
    "BrainVision": Format("read_raw_brainvision", (".vhdr", ".ahdr")),
    "EEGLAB": Format("read_raw_eeglab", (".set",)),
    "FIF": Format("read_raw_fif", (".fif", ".fif.gz")),
    "Neuroscan CNT": Format("read_raw_cnt", (".cnt",)),
    "ANT CNT": Format("read_raw_ant", (".cnt",), "antio"),
    "EGI MFF": Format("read_raw_egi", (".mff",), "mffpy"),
    "EGI RAW": Format("read_raw_egi", (".raw",)),
    "Persyst": Format("read_raw_persyst", (".lay",)),
    "Nihon Kohden": Format("read_raw_nihon", (".eeg",)),
    "Curry": Format("read_raw_curry", (".cdt", ".dat"), "curryreader"),
    "Nicolet": Format("read_raw_nicolet", (".data",), options={"ch_type": "eeg"}),
    "Nexstim": Format("read_raw_eximia", (".nxe",)),
    "Neuroelectrics": Format("read_raw_nedf", (".nedf",), "defusedxml"),
}
SUFFIXES = tuple(dict.fromkeys(suffix for kind in FORMATS.values() for suffix in kind.suffixes))
SIGNATURES = {  # of the first bytes
    "EDF": rb"0 {7}",
    "BDF": rb"\xffBIOSEMI",
    "GDF": rb"GDF [12]",
    "BrainVision": rb"(\xef\xbb\xbf)?Brain ?Vision .{0,30}Header File",
    "FIF": rb"\0\0\0\x64\0\0\0\x1f\0\0\0\x14",
    "Neuroscan CNT": rb"Version 3\.\d",
    "ANT CNT": rb"(RIFF.{4}|RF64.{8})CNT ",
    "Nihon Kohden": rb"EEG-\d{4}|QI-403A|DAE-\d{4}",
    "EGI RAW": rb"\0\0\0[\x02-\x07].{4}\0.\0.\0.\0.\0\0.{4}[\0-\x7f]",  # version, date, time below 1 s
    "Persyst": rb"\s*\[(FileInfo|SampleTimes|Patient|ChannelMap)\]",
    "Neuroelectrics": rb"<[^>]{1,200}>\s*<NEDFversion",
}
# First bytes of what is no recording -> what it is and the way out.
FOREIGN = {
    b"version https://git-lfs.": "is a pointer of Git LFS, its content is elsewhere: fetch it with `git lfs pull`",
    b"/annex/objects/": "is a pointer of git-annex, its content is elsewhere: `datalad get` or `git annex get` it",
    b"PK\x03\x04": "is a zip archive: unpack it",
    b"\x1f\x8b": "is compressed with gzip: unpack it with gunzip",
    b"<!DOCTYPE html": "is a web page, not a recording: download it again",
    b"<html": "is a web page, not a recording: download it again",
}
# These suffixes prove nothing, and other programs use them; the files beside them or the first bytes prove.
WEAK = {".cnt": (), ".eeg": (), ".raw": (), ".dat": (".dap",), ".data": (".head",), ".lay": (), ".nedf": ()}

PARTS = {  # suffix of a recording -> those of its other files
    ".vhdr": (".eeg", ".vmrk", ".dat"),
    ".ahdr": (".eeg", ".amrk"),
    ".set": (".fdt",),
    ".eeg": (".21e", ".pnt", ".log"),
    ".lay": (".dat",),
    ".dat": (".dap", ".rs3", ".cef", ".ceo"),
    ".cdt": (".dpa", ".dpo", ".cef", ".ceo"),
    ".data": (".head",),
}


def format_of(path: Path) -> str:
    """Return a recording's format. Raises InputError for what is none, and for a pointer to content elsewhere."""
    name = path.name.lower()
    if path.is_dir():
        if name.endswith(".mff"):
            return "EGI MFF"
        raise InputError(f"{path}: is a folder, not a recording")
    try:
        head = check_content(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    kind = _kind_of(head)
    if (kind == "EGI RAW" and not name.endswith(".raw")) or name.endswith((".pnt", ".log")):
        kind = None
    if kind == "Neuroscan CNT" and name.endswith((".eeg", ".avg")):
        raise InputError(f"{path}: holds epochs or averages of Neuroscan, which MNE does not read; export it as EDF")
    if kind == "GDF" and (header := read_header(path)) and header.announced < 0:
        raise InputError(f"{path}: its header does not say how long it is, which MNE cannot read: export it anew")
    if kind:
        return kind
    suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")
    if not suffix or not is_recording(path):
        check_no_part(path)
    if suffix in WEAK and not _beside(path, WEAK[suffix]):
        kinds = " or ".join(kind for kind, form in FORMATS.items() if suffix in form.suffixes)
        raise InputError(f"{path}: is no recording of {kinds}, which {suffix} stands for")
    if not suffix:
        raise InputError(f"{path}: not a kind of recording that is read ({', '.join(SUFFIXES)})")
    return next(kind for kind, form in FORMATS.items() if suffix in form.suffixes)


def is_recording(path: Path) -> bool:
    """Whether a file with one of SUFFIXES is a recording, not a part of one or a file of another program."""
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")
    if WEAK.get(suffix):
        return _beside(path, WEAK[suffix])
    if suffix not in (".eeg", ".raw") or looks_like(path) in ("Nihon Kohden", "EGI RAW"):
        return bool(suffix)
    return is_elsewhere(path) and not _beside(path, (".vhdr", ".ahdr"))


def check_no_part(path: Path) -> None:
    """Raise InputError for a file that is by its name a part of a recording in the same folder."""
    stem = path.with_suffix("").name.lower().removesuffix(".cdt")
    wholes = {stem + suffix for suffix, parts in PARTS.items() if path.suffix.lower() in parts}
    others = (other for other in sorted(path.parent.iterdir()) if other.name.lower() in wholes and other != path)
    if whole := next(filter(is_recording, others), None):
        raise InputError(f"{path}: is a part of the recording {whole.name}: name that one")


def parts_of(path: Path) -> list[Path]:
    """Return the other files that hold a part of a recording and have its name."""
    if path.name.lower().endswith(".mff"):
        return sorted(path.glob("*.bin"))
    if path.name.lower().endswith((".fif", ".fif.gz")):
        return list(takewhile(Path.is_file, map(partial(_later_part, path), count(1))))
    stem = path.name if path.suffix.lower() == ".cdt" else path.with_suffix("").name
    suffixes = PARTS.get(path.suffix.lower(), ())
    names = dict.fromkeys(stem + name for suffix in suffixes for name in (suffix, suffix.upper()))
    return [path.with_name(name) for name in names if path.with_name(name).is_file()]


def _later_part(first: Path, number: int) -> Path:
    """Return the file in which a split FIF recording goes on, as MNE or BIDS names it. number: from 1."""
    if split := re.search(r"(?<=_split-)\d+", first.name):
        place = str(int(split[0]) + number).zfill(len(split[0]))
        return first.with_name(first.name[: split.start()] + place + first.name[split.end() :])
    return first.with_name(re.sub(r"(?i)(?=\.fif(\.gz)?$)", f"-{number}", first.name))


def damage_of(path: Path, kind: str) -> str:
    """Say what the bytes of a file that cannot be read as its kind show, or return an empty text."""
    if kind in SIGNATURES and looks_like(path) != kind:
        return f"is called {path.suffix} and does not begin as {kind} does: it is of another kind, or damaged"
    header = read_header(path) if kind in ("EDF", "BDF", "GDF") else None
    if header and header.records < header.announced:
        held, announced = header.records * header.seconds, header.announced * header.seconds
        return f"cut short: holds {held:g} of {announced:g} s, and cannot be read so: fetch the whole file"
    return ""


def looks_like(path: Path) -> str | None:
    """Return the format that a file's first bytes tell, None for other files and those that cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        return _kind_of(file.read(300))
    return None


def _kind_of(head: bytes) -> str | None:
    return next((kind for kind, pattern in SIGNATURES.items() if re.match(pattern, head, re.DOTALL)), None)


def _beside(path: Path, suffixes: tuple[str, ...]) -> bool:
    return any(lexists(path.with_suffix(name)) for suffix in suffixes for name in (suffix, suffix.upper()))


# ---- content that is elsewhere, and the files beside a recording


def check_content(path: Path) -> bytes:
    """Return a file's first bytes. Raises InputError for a file that is empty, elsewhere, or of another kind."""
    if path.is_symlink() and not path.exists():
        if "annex" in str(path.readlink()):
            raise InputError(f"{path}: {FOREIGN[b'/annex/objects/']}")
        raise InputError(f"{path}: links to a file that is not there: fetch it, or take the link away")
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise InputError(f"{path}: is empty (0 bytes): copy or download it again")
    for start, what in FOREIGN.items():
        if head.startswith(start) and not (start == b"\x1f\x8b" and path.name.lower().endswith(".fif.gz")):
            raise InputError(f"{path}: {what}")
    return head


def is_elsewhere(path: Path) -> bool:
    """Whether a file is only a link or pointer to content that is not here."""
    if not path.exists():
        return True
    with path.open("rb") as file:
        return file.read(30).startswith((b"version https://git-lfs.", b"/annex/objects/"))


def companion(path: Path, names: Sequence[str], what: str) -> Path:
    """Return the first file of these names in the folder of `path`, whatever their case.

    Raises InputError that names the file that is wanted and those of its kind that lie there.
    """
    there = {other.name.lower(): other for other in path.parent.iterdir()}
    for name in names:
        if name.lower() in there:
            check_content(other := there[name.lower()])
            return other
    ends = tuple({Path(name).suffix.lower() for name in names} - {""})
    beside = sorted(other.name for other in there.values() if other.name.lower().endswith(ends))
    beside.sort(key=lambda name: not name.startswith(path.stem))  # those of the same name first
    lies = f"; there lies {', '.join(map(printable, beside[:3]))}" if beside else ""
    raise InputError(
        f"{path}: needs {file_name(names[0])} ({what}), which is not in its folder{lies}: fetch or rename it"
    )


def file_name(stated: str) -> str:
    """Return the name of a file as a header states it, if it looks like one: a header's other texts may name people."""
    return printable(stated) if re.fullmatch(r"[^/\\]{1,120}\.\w{2,4}", stated) else "the file that its header names"
