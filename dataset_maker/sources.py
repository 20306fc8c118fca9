"""Which recordings a maker converts, the neutral names they get, and which split each subject goes to.

The splits are pure functions of the names: the same on every machine, whatever the order of files on a disk.
"""

import argparse
import hashlib
import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from os.path import realpath
from pathlib import Path

from dataset_maker import formats
from eeg_data.hdf5 import visible_files
from errors import InputError, UsageError

logger = logging.getLogger(__name__)

RECORDINGS = formats.SUFFIXES
TRAIN_FRACTION = 0.8  # of the subjects that are not test


def find_files(
    inputs: Sequence[Path], suffixes: Collection[str] = RECORDINGS, flag: str = "--input", *, tell: bool = False
) -> list[Path]:
    """Return the recordings with these suffixes, sorted, each once; folders are searched recursively.

    Hidden files, parts of recordings and files of other programs are skipped. A broken symlink is returned, so that it
    is reported as a failed recording. tell: log what folders hold besides. Raises InputError for a missing path, a file
    of another kind, and without any file.
    """
    files: dict[str, Path] = {}
    others: list[Path] = []
    for path in inputs:
        if not path.exists():
            raise InputError(f"{path}: does not exist; correct {flag}")
        is_folder = path.is_dir() and not _is_mff(path)
        if not is_folder:
            _check_named(path, suffixes)
        for file in dict.fromkeys(map(_whole, visible_files(path))) if is_folder else [path]:
            if not is_folder or (file.name.lower().endswith(tuple(suffixes)) and _is_wanted(file)):
                files[realpath(file)] = min(file, files.get(realpath(file), file))
            else:
                others.append(file)
    if not files:
        raise InputError(f"no recordings ({', '.join(suffixes)}) in {', '.join(map(str, inputs))}; correct {flag}")
    found = sorted(path for path in files.values() if not _is_later_part(path))
    if tell:
        _tell_others(found, others)
    return found


def _is_mff(path: Path) -> bool:
    return path.name.lower().endswith(".mff")


def _whole(file: Path) -> Path:
    """Return the folder of EGI that a file is a part of, or else the file."""
    return next((folder for folder in file.parents if _is_mff(folder)), file)


def _is_wanted(file: Path) -> bool:
    """Whether a file or a broken symlink with the right suffix is more than a part of a recording."""
    return formats.is_recording(file) or (not file.name.lower().endswith(RECORDINGS) and not file.is_dir())


def _check_named(path: Path, suffixes: Collection[str]) -> None:
    """Raise InputError for a file that somebody names and that is none, or only a part of a recording."""
    if path.name.lower().endswith(tuple(suffixes)) and _is_wanted(path):
        return
    formats.check_no_part(path)
    kind = formats.looks_like(path)
    if kind and set(formats.FORMATS[kind].suffixes) <= set(suffixes):
        return
    raise InputError(f"{path}: not a kind of recording that this maker reads ({', '.join(suffixes)})")


def _tell_others(found: Sequence[Path], others: Sequence[Path]) -> None:
    """Log how many files of folders are not read, by suffix; parts of recordings are."""
    stems = {(path.parent, path.with_suffix("").name) for path in found}
    names = [path for path in others if not any((path.parent, stem) in stems for stem in _stems(path.name))]
    if counts := Counter(path.suffix.lower() or "without suffix" for path in names):
        listed = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(12))
        logger.warning("%d other files are not read: %s", len(names), listed)


def _stems(name: str) -> list[str]:
    """Return what may be the name of the recording that a file is a part of: a.b.c -> a.b, a."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def _is_later_part(path: Path) -> bool:
    """Whether a FIF file continues another one; MNE reads it together with the first part."""
    plain = re.sub(r"-\d+(?=\.fif(\.gz)?$)", "", path.name)  # x_raw-1.fif continues x_raw.fif
    bids = re.sub(r"(?<=_split-)\d+(?=_.+\.fif(\.gz)?$)", lambda n: f"{1:0{len(n[0])}d}", path.name)
    return any(first != path.name and path.with_name(first).is_file() for first in (plain, bids))


def subject_of(path: Path, pattern: str | None = None) -> str:
    """Return the subject of a recording: the first group, or all, of what `pattern` of --subject finds in its path.

    Without a pattern: the label of BIDS (01 of sub-01), or else the file's name without its suffix. Raises UsageError
    for a pattern that is none, and InputError where it finds nothing.
    """
    try:
        found = re.search(pattern or r"(?:^|[/_])sub-([A-Za-z0-9]+)(?=[/_.])", path.as_posix())
    except re.error as error:
        raise UsageError(f"--subject {pattern}: not a regular expression: {error}") from None
    if pattern and not found:
        raise InputError(f"{path}: --subject {pattern} finds nothing in this path; correct it")
    return (found[1] if found.re.groups else found[0]) if found else path.name.removesuffix(".gz").rpartition(".")[0]


def codes_of(recording: str) -> set[str]:
    """Return the codes of the subject in a recording's name: 01 and sub-01 of BIDS, or all up to the first `_`."""
    code = re.match("sub-([A-Za-z0-9]+)", recording)
    return {code[0], code[1]} if code else {recording.partition("_")[0]}


def read_list(path: Path, flag: str) -> Callable[[Path], set[str]]:
    """Read a list of subjects or recordings, one a line (# begins a remark). Raises InputError without any.

    Returns a function: path of a recording -> the entries that match it. An entry is a file's name with or without its
    suffix, a subject (`codes_of`), or a pattern (`*`, `?`) of one of these.
    """
    try:
        lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no UTF-8"
        raise InputError(f"{flag} {path}: cannot be read ({why}); correct {flag}") from None
    entries = set(lines) - {""}
    patterns = [entry for entry in entries if re.search(r"[*?[]", entry)]
    if not entries:
        raise InputError(f"{flag} {path}: names nothing; write a subject or a recording into each line")

    def matching(recording: Path) -> set[str]:
        stem = recording.name.removesuffix(".gz").rpartition(".")[0]
        names = {recording.name, stem, plain_name(stem), *codes_of(stem)}
        return names & entries | {entry for entry in patterns if any(fnmatchcase(name, entry) for name in names)}

    return matching


def plain_name(text: str) -> str:
    """Keep letters, digits and `_.-` of a text, so that it can name an HDF5 group."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._-") or "recording"


def unique_names(texts: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Return a plain name for each text, in order. Equal names get a digest of the end of their paths.

    So a name depends neither on the other recordings nor on where the folder lies, unless two paths end alike.
    """
    names = [plain_name(text) for text in texts]
    for parts in (4, 0):  # the last folders, then the whole path
        count = Counter(names)
        ends = ["/".join(path.parts[-parts:]) for path in paths]
        digests = [hashlib.sha256(end.encode("utf-8", "surrogateescape")).hexdigest()[:6] for end in ends]
        names = [name if count[name] == 1 else f"{name}-{digest}" for name, digest in zip(names, digests, strict=True)]
    return names


def train_or_val(subjects: Iterable[str], seed: int | None = None) -> dict[str, str]:
    """Return subject -> split: names sorted, the first 80 % (rounded down) train, the rest val.

    The paper gives the sizes of its splits, not the names; this cut gives the sizes in `published_splits.json`.
    With a seed the sorted names are shuffled first.
    """
    names = sorted(set(subjects))
    if seed is not None:
        generator = random.Random(seed)  # its random() is the one stream that Python promises never to change
        names.sort(key=lambda _: generator.random())
    cut = int(TRAIN_FRACTION * len(names))
    return {name: "train" if index < cut else "val" for index, name in enumerate(names)}


def train_val_test(subjects: Iterable[str], seed: int, where: str) -> dict[str, str]:
    """Return subject -> split: a fifth of the shuffled subjects test, of the others a fifth val. Raises InputError."""
    outer = train_or_val(subjects, seed)
    if len(outer) < 3:
        reason = f"{len(outer)} subjects cannot be split into train, val and test"
        raise InputError(f"{where}: {reason}: at least three are needed, or a split that you give")
    inner = train_or_val([subject for subject, split in outer.items() if split == "train"], seed)
    return {subject: inner.get(subject, "test") for subject in outer}


def folds(subjects: Iterable[str], number: int, fold: int) -> dict[str, str]:
    """Return subject -> split for cross-validation by subject. Raises UsageError for impossible folds.

    Sorted names are dealt in turn into `number` folds. Fold `fold` (from 0) is test, the next one (after the last the
    first) val, all others train.
    """
    names = sorted(set(subjects))
    if not 3 <= number <= len(names):
        most = f"at most one for each of the {len(names)} subjects"
        raise UsageError(f"--folds {number}: must be 3 (test, val, train) or more, and {most}")
    if not 0 <= fold < number:
        raise UsageError(f"--fold {fold}: must be 0 to {number - 1} with --folds {number}")
    special = {fold: "test", (fold + 1) % number: "val"}
    return {name: special.get(index % number, "train") for index, name in enumerate(names)}


def add_fold_arguments(parser: argparse.ArgumentParser, instead: str) -> None:
    """Declare the flags of cross-validation. instead: the split that it replaces."""
    parser.add_argument("--folds", type=int, metavar="K", help=f"split by subject into K folds instead of {instead}")
    parser.add_argument("--fold", type=int, metavar="k", help="which fold is test, from 0; the next one is val")


def chosen_fold(args: argparse.Namespace, subjects: Iterable[str]) -> tuple[dict[str, str], str] | None:
    """Return subject -> split by --folds and --fold, and its name for the file; None without these flags."""
    if (args.folds is None) != (args.fold is None):
        raise UsageError("--folds and --fold go together: the number of folds, and which one is test")
    if args.folds is None:
        return None
    return folds(subjects, args.folds, args.fold), f"fold {args.fold} of {args.folds}"
