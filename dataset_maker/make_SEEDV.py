"""Turn SEED-V (five emotions while watching film clips) into a labelled HDF5 of 1 s windows, 62 electrodes, 200 Hz.

`python -m dataset_maker.make_SEEDV --root SEED-V/EEG_raw --output data/SEED-V.hdf5 --jobs 2`

Expected below --root: <subject>_<session>_<date>.cnt (Neuroscan, 1000 Hz), 16 subjects of three sessions. Clips and
their labels are in seed_v.json. Of a session's 15 clips the first five are train, the next five val, the last five
test. Dates stay behind: a recording goes into the file as <subject>_<session>.
"""

import sys

sys.path.insert(0, sys.path[0].removesuffix("dataset_maker"))  # for a start by the file's path

import argparse
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataset_maker import making
from dataset_maker.pipeline import Prepared, add_cnt_argument
from dataset_maker.sources import find_files
from dataset_maker.writers import DataSet, Windows
from eeg_data.labelled_files import SPLITS
from errors import InputError

_NAMES = """
FP1 FPZ FP2 AF3 AF4 F7 F5 F3 F1 FZ F2 F4 F6 F8 FT7 FC5 FC3 FC1 FCZ FC2 FC4 FC6 FT8 T7 C5 C3 C1 CZ C2 C4 C6 T8
TP7 CP5 CP3 CP1 CPZ CP2 CP4 CP6 TP8 P7 P5 P3 P1 PZ P2 P4 P6 P8 PO7 PO5 PO3 POZ PO4 PO6 PO8 CB1 O1 OZ O2 CB2
"""
DATA_SET = DataSet(
    "SEED-V",
    classes=("disgust", "fear", "sad", "neutral", "happy"),
    window=1,
    electrodes=tuple(_NAMES.split()),
    drop=("M1", "M2", "VEO", "HEO"),
    made={"source": "SEED-V", "split": "of a session's 15 clips the first five train, then five val, five test"},
)
CLIPS_PER_SPLIT = 5
Clip = tuple[int, int, int]  # start and end in s from the recording's first sample, label


def load_clips() -> dict[str, list[Clip]]:
    """Return session -> its 15 clips, in order."""
    table = json.loads(Path(__file__).with_name("seed_v.json").read_text(encoding="utf-8"))["sessions"]
    return {session: list(zip(t["start"], t["end"], t["label"], strict=True)) for session, t in table.items()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    root = "holds <subject>_<session>_<date>.cnt"
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help=root)
    add_cnt_argument(parser)


def windows(task: Mapping[str, Any], prepared: Prepared) -> Windows:
    """Cut a session's clips into seconds; seconds of a clip beyond the recording's end are left out and counted."""
    whole = math.floor(prepared.length / prepared.rate)
    rows = [
        (second * round(prepared.rate), label, SPLITS[index // CLIPS_PER_SPLIT])
        for index, (start, end, label) in enumerate(task["clips"])
        for second in range(start, min(end, whole))
    ]
    starts, labels, splits = zip(*rows, strict=True) if rows else ((), (), ())
    cut = sum(end > whole for _, end, _ in task["clips"])
    notes = {"clips that reach beyond their recording's end, cut to the seconds inside it": cut} if cut else {}
    return Windows(starts, labels, splits, notes)


def find_recordings(args: argparse.Namespace) -> tuple[DataSet, list[dict[str, Any]]]:
    """Return the data set and a task for each session's file. Raises InputError without any, and for two of one."""
    tasks: dict[tuple[int, int], dict[str, Any]] = {}
    clips = load_clips()
    files = find_files([args.root], (".cnt",), flag="--root")
    for path in files:
        name = re.fullmatch(r"((\d+)_(\d+))(_.*)?\.cnt", path.name)
        if not name or name[3] not in clips:
            continue
        key = int(name[2]), int(name[3])
        if key in tasks:
            raise InputError(f"{path}: subject {name[2]}, session {name[3]} is in {tasks[key]['path']}, too")
        tasks[key] = {"path": str(path), "recording": name[1], "subject": name[2], "clips": clips[name[3]]}
    if others := len(files) - len(tasks):
        print(f"{others} other files *.cnt are left out: not <subject>_<session 1 to 3>_<date>.cnt", file=sys.stderr)
    if not tasks:
        raise InputError(f"--root {args.root}: no files <subject>_<session>_<date>.cnt there, such as 1_1_20180804.cnt")
    return DATA_SET, [task for _, task in sorted(tasks.items())]


if __name__ == "__main__":
    making.run("dataset_maker.make_SEEDV")
