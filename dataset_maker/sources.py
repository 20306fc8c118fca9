"""Which files a maker converts, and the neutral names under which their recordings go into data sets."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

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

    Hidden files and further parts of split FIF recordings are passed over. Raises InputError for a path that does not
    exist, a file of another kind, and when nothing is found.
    """
    found: dict[Path, Path] = {}
    for path in inputs:
        if not path.exists():
            raise InputError(f"{path}: does not exist; correct {flag}")
        if path.is_file() and not path.name.lower().endswith(tuple(suffixes)):
            raise InputError(f"{path}: not a kind of recording this maker reads ({', '.join(suffixes)})")
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.name.lower().endswith(tuple(suffixes)) and not file.name.startswith(".") and file.is_file():
                found.setdefault(file.resolve(), file)
    if not found:
        raise InputError(f"no recordings ({', '.join(suffixes)}) in {', '.join(map(str, inputs))}; correct {flag}")
    return sorted(path for path in found.values() if not _continues_another(path))


def plain_name(text: str) -> str:
    """Return a text with nothing but letters, digits and `_.-`, fit for the name of an HDF5 group."""
    return re.sub(r"[^\w.-]+", "_", text, flags=re.ASCII).strip("._-") or "recording"


def unique_names(texts: Sequence[str]) -> list[str]:
    """Return a plain name for each text, in order; equal ones get `_2`, `_3` and so on."""
    taken: set[str] = set()
    names = []
    for text in texts:
        plain = name = plain_name(text)
        number = 1
        while name in taken:
            number += 1
            name = f"{plain}_{number}"
        taken.add(name)
        names.append(name)
    return names
