"""The files of BIDS that describe a recording: beside it, and above it in its data set.

mne-bids takes names apart. Its own search returns one file alone, so that a `PowerLineFrequency` further up is lost,
and its list of recordings has no broken links, which are files that nobody fetched yet.
"""

from importlib.util import find_spec
from pathlib import Path

from errors import InputError

DESCRIPTION = "dataset_description.json"  # in the top folder of each data set
MAINS = 50.0  # Hz, where nothing says it


def root_of(path: Path) -> Path | None:
    """Return the BIDS data set that a file lies in: the nearest folder above with a description."""
    return next((folder for folder in path.absolute().parents if (folder / DESCRIPTION).is_file()), None)


def entities(path: Path) -> dict[str, str]:
    """Return what the name of a BIDS file says: subject, session, task, ... Raises InputError without mne-bids."""
    if find_spec("mne_bids") is None:
        raise InputError(f"{path}: BIDS needs the package mne-bids: pip install -r requirements-peers.txt")
    from mne_bids import get_entities_from_fname

    named = get_entities_from_fname(path.name, on_error="ignore", verbose="error")
    return {key: value for key, value in named.items() if value is not None}


def sidecars(path: Path, end: str) -> list[Path]:
    """Return the files that describe a recording by BIDS' inheritance, the nearest last. end: of their names.

    A file applies if its folder is above the recording and the recording has all entities of its name.
    """
    if (root := root_of(path)) is None:
        return []
    levels = [folder for folder in path.absolute().parents if folder == root or root in folder.parents]
    near = [sorted(folder.glob(f"*{end}")) for folder in reversed(levels)]
    own = entities(path) if any(near) else {}
    applying = [[file for file in files if entities(file).items() <= own.items()] for files in near]
    return [file for files in applying for file in sorted(files, key=lambda file: len(entities(file)))]
