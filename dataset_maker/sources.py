"""Which files a maker converts, and the neutral names under which their recordings go into data sets."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Sequence
from os.path import realpath
from pathlib import Path

from eeg_data.hdf5 import visible_files
from errors import InputError

RECORDINGS = (".edf", ".bdf", ".cnt", ".gdf", ".vhdr", ".set", ".fif", ".fif.gz")  # what MNE reads and we test


def _continues_another(path: Path) -> bool:
    """Whether a FIF file is a further part of a split recording, which MNE reads along with its first part."""
    plain = re.fullmatch(r"(.+)-\d+(\.fif(?:\.gz)?)", path.name)  # x_raw-1.fif beside x_raw.fif
    if plain and path.with_name(plain[1] + plain[2]).is_file():
        return True
    numbered = re.fullmatch(r"(.+_split-)(\d+)(_.+\.fif(?:\.gz)?)", path.name)  # BIDS: x_split-02_raw.fif
    if not numbered or int(numbered[2]) <= 1:
        return False
    return path.with_name(f"{numbered[1]}{1:0{len(numbered[2])}d}{numbered[3]}").is_file()


def find_files(inputs: Sequence[Path], suffixes: Collection[str] = RECORDINGS, flag: str = "--input") -> list[Path]:
    """Return the files with these suffixes, sorted, each once; folders are searched recursively.

    What is hidden and further parts of split FIF recordings are passed over; a link that leads nowhere is found, and
    becomes a recording that cannot be read. Raises InputError for a path that does not exist, a file of another kind,
    and when nothing is found.
    """
    found: dict[str, Path] = {}
    for path in inputs:
        if not path.exists():
            raise InputError(f"{path}: does not exist; correct {flag}")
        if path.is_file() and not path.name.lower().endswith(tuple(suffixes)):
            raise InputError(f"{path}: not a kind of recording this maker reads ({', '.join(suffixes)})")
        for file in [path] if path.is_file() else visible_files(path):
            if file.name.lower().endswith(tuple(suffixes)) and (file.is_file() or not file.exists()):
                found[realpath(file)] = min(file, found.get(realpath(file), file))
    if not found:
        raise InputError(f"no recordings ({', '.join(suffixes)}) in {', '.join(map(str, inputs))}; correct {flag}")
    return sorted(path for path in found.values() if not _continues_another(path))


def plain_name(text: str) -> str:
    """Return a text with nothing but letters, digits and `_.-`, fit for the name of an HDF5 group."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._-") or "recording"


def unique_names(texts: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Return a plain name for each text, in order; equal ones get a digest of the folders that their paths end with.

    So neither what else is there nor where it all lies changes a name, unless two paths end alike.
    """
    plain = [plain_name(text) for text in texts]
    for parts in (4, None):
        count = Counter(plain)
        ends = ["/".join(path.parts[-parts if parts else 0 :]) for path in paths]
        digests = [hashlib.sha256(end.encode("utf-8", "surrogateescape")).hexdigest()[:6] for end in ends]
        plain = [name if count[name] == 1 else f"{name}-{own}" for name, own in zip(plain, digests, strict=True)]
    return plain
