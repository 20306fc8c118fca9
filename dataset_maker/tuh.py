"""What TUAB and TUEV share: the 23 channels, where their files lie, names of recordings, how subjects are split.

Both are parts of the TUH EEG Corpus (Temple University Hospital; free after registration there; their terms forbid
passing recordings on). A recording must have exactly the 23 channels of the average-reference montage
beside known extras: the published numbers are of such recordings alone.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import mne

from dataset_maker import pipeline, sources, splits
from errors import InputError

ELECTRODES = (
    *("FP1", "FP2", "F3", "F4", "C3", "C4", "P3", "P4", "O1", "O2", "F7", "F8"),
    *("T3", "T4", "T5", "T6", "A1", "A2", "FZ", "CZ", "PZ", "T1", "T2"),
)
_INPUTS = ("ROC", "LOC", "EKG1", "EKG", "C3P", "C4P", "SP1", "SP2", "LUC", "RLC", "RESP1", "RESP2", "PG1", "PG2")
EXTRAS = (  # as the files spell them
    *("PHOTIC-REF", "IBI", "BURSTS", "SUPPR", "EMG-REF", "PULSE RATE", "RESP ABDOMEN-REF", "ECG EKG-REF"),
    *(f"EEG {name}-REF" for name in (*_INPUTS, *range(20, 129))),
)
PARTS = ("train", "eval")  # the corpora's own folders; eval is test
MAX_NAMED = 12  # channels in a message: a broken file may announce thousands


def add_arguments(parser: argparse.ArgumentParser, tree: str) -> None:
    """Declare where recordings come from and how they are split; tree: what `--root` must hold."""
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help=f"holds {tree}, or edf/ with these")
    parser.add_argument(
        "--split",
        choices=("published", "disjoint"),
        default="published",
        help="how 80/20 of the train folder's subjects become train and val: published cuts the sorted names and gives "
        "the published counts; disjoint draws subjects from --seed, none on both sides. eval is test either way",
    )
    parser.add_argument("--seed", type=int, default=0, help="of --split disjoint (default %(default)s)")


def find_root(root: Path, tree: str) -> Path:
    """Return the folder that holds train/ and eval/: `root` or `root/edf`.

    tree: what is expected there, for the message. Raises InputError otherwise, with the right level if it is near.
    """
    if not root.is_dir():
        raise InputError(f"--root {root}: no such folder")
    for folder in (root, root / "edf"):
        if _has_parts(folder):
            return folder
    missing = [part for part in PARTS if not (root / part).is_dir()]
    whole = root.resolve()
    above = [folder for folder in whole.parents if _has_parts(folder)][:1]
    below = [folder for level in ("*", "*/*", "*/*/edf") for folder in sorted(whole.glob(level))]
    near = above or [folder for folder in below if _has_parts(folder)][:3]
    hint = f". Did you mean {' or '.join(f'--root {folder}' for folder in near)}?" if near else ""
    raise InputError(f"--root {root}: holds no folder {' and no '.join(missing)}; expected {root}/{tree}{hint}")


def _has_parts(folder: Path) -> bool:
    """Whether a folder holds train/ and eval/."""
    return all((folder / part).is_dir() for part in PARTS)


def edf_files(folder: Path, tree: str) -> list[Path]:
    """Return all EDF files below a folder, sorted. Raises InputError without any: a class or a split would be empty."""
    try:
        return sources.find_files([folder], (".edf",), flag="--root")
    except InputError as error:
        raise InputError(f"{error} or complete the copy of the corpus: {tree}, with EDF files in each") from error


def subject_splitter(args: argparse.Namespace) -> Callable[[Iterable[str]], dict[str, str]]:
    """Return the function that splits subjects into train and val as `--split` and `--seed` say."""
    if args.split == "published":
        return splits.published
    return lambda subjects: splits.disjoint(subjects, args.seed)


def split_record(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the file says about its split."""
    return {"split": args.split, "seed": args.seed if args.split == "disjoint" else None}


def _listed(names: list[str]) -> str:
    """Return channel names for a message."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(map(repr, names[:MAX_NAMED])) + more


def check_channels(names: Iterable[str], where: str) -> None:
    """Raise InputError unless these are the 23 channels, in any order, beside known extras; ignores case and blanks."""
    plain = [" ".join(name.upper().split()) for name in names]
    wanted = [f"EEG {electrode}-REF" for electrode in ELECTRODES]
    missing = [name for name in wanted if name not in plain]
    unexpected = [name for name in plain if name not in wanted and name not in EXTRAS]
    kinds = {"missing": missing, "unexpected": unexpected}
    if reasons := [f"{kind} {_listed(found)}" for kind, found in kinds.items() if found]:
        raise InputError(f"{where}: not the {len(ELECTRODES)} channels of this data set: {'; '.join(reasons)}")


def read(task: Mapping[str, Any]) -> mne.io.BaseRaw:
    """Open a recording of the task's `path`. Raises InputError if it is unreadable or has other channels."""
    raw = pipeline.read_raw(Path(task["path"]))
    check_channels(raw.ch_names, task["path"])
    return raw
