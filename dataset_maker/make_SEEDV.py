"""Turn SEED-V (five emotions while watching film clips) into a labelled HDF5 of 1 s windows, 62 electrodes, 200 Hz.

`python -m dataset_maker.make_SEEDV --root SEED-V/EEG_raw --output data/SEED-V.hdf5 --jobs 2`

Expected below --root: <subject>_<session>_<date>.cnt (Neuroscan, 1000 Hz), 16 subjects of three sessions. Clips and
their labels are in seed_v.json. Of a session's 15 clips the first five are train, the next five val, the last five
test. Dates stay behind: a recording goes into the file as <subject>_<session>.
"""

import sys
from pathlib import Path

if not __package__:  # started by its path: the project's folder, not this one, belongs on Python's path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import math
import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import mne
import numpy as np

from dataset_maker import labelled, pipeline, sources
from dataset_maker.pipeline import Prepared, Windows
from eeg_data.labelled_files import SPLITS
from errors import ArgumentParser, InputError, run_script

_NAMES = """
FP1 FPZ FP2 AF3 AF4 F7 F5 F3 F1 FZ F2 F4 F6 F8 FT7 FC5 FC3 FC1 FCZ FC2 FC4 FC6 FT8 T7 C5 C3 C1 CZ C2 C4 C6 T8
TP7 CP5 CP3 CP1 CPZ CP2 CP4 CP6 TP8 P7 P5 P3 P1 PZ P2 P4 P6 P8 PO7 PO5 PO3 POZ PO4 PO6 PO8 CB1 O1 OZ O2 CB2
"""
ELECTRODES = tuple(_NAMES.split())
CLASSES = ("disgust", "fear", "sad", "neutral", "happy")
CLIPS_PER_SPLIT = 5
SUBJECTS = 16
WINDOW = 1  # s
Clip = tuple[int, int, int]  # start and end in s from the recording's first sample, label


def load_clips() -> dict[str, list[Clip]]:
    """Return session -> its 15 clips, in order."""
    sessions = json.loads(Path(__file__).with_name("seed_v.json").read_text(encoding="utf-8"))["sessions"]
    return {
        name: list(zip(*(s[key] for key in ("start", "end", "label")), strict=True)) for name, s in sessions.items()
    }


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="holds <subject>_<session>_<date>.cnt")
    labelled.add_arguments(parser)
    return parser.parse_args()


def read(task: Mapping[str, Any]) -> mne.io.BaseRaw:
    """Open a Neuroscan recording whose values may have 2 or 4 bytes, whatever its header's event table says."""
    path = Path(task["path"])
    with pipeline.recording_readable(path):
        with path.open("rb") as file:
            header = file.read(900)
        (channels,), (samples,) = struct.unpack_from("<H", header, 370), struct.unpack_from("<i", header, 864)
        wide = 900 + channels * (75 + 4 * samples) <= path.stat().st_size
        return mne.io.read_raw_cnt(path, data_format="int32" if wide else "int16", verbose="error")


def windows(task: Mapping[str, Any], prepared: Prepared) -> Windows:
    """Cut a session's clips into seconds; what of a clip lies beyond the recording's end is left out and counted."""
    rate, whole = round(prepared.rate), math.floor(prepared.length / prepared.rate)
    starts, labels, split_of = [], [], []
    for index, (start, end, label) in enumerate(task["clips"]):
        seconds = range(start, min(end, whole), WINDOW)
        starts += [second * rate for second in seconds]
        labels += [label] * len(seconds)
        split_of += [SPLITS[index // CLIPS_PER_SPLIT]] * len(seconds)
    cut = sum(end > whole for _, end, _ in task["clips"])
    notes = {"clips that reach beyond their recording's end, cut to the seconds inside it": cut} if cut else {}
    return Windows(np.array(starts, dtype=np.int64), np.array(labels, dtype=np.int64), split_of, notes)


def find_tasks(root: Path, clips: Mapping[str, Sequence[Clip]]) -> list[dict[str, Any]]:
    """Return a task for each session's file below `root`. Raises InputError without any, and for two of one session."""
    tasks: dict[str, dict[str, Any]] = {}
    others = 0
    found = sources.find_files([root], (".cnt",), flag="--root")
    for path in sorted(found, key=lambda path: [int(n) for n in re.findall(r"\d+", path.stem)[:2]]):
        if not (name := re.fullmatch(r"(\d+)_(\d+)(_.*)?\.cnt", path.name)) or name[2] not in clips:
            others += 1
            continue
        recording, subject = f"{name[1]}_{name[2]}", name[1]
        if recording in tasks:
            raise InputError(f"{path}: subject {subject}, session {name[2]} is in {tasks[recording]['path']}, too")
        tasks[recording] = {"path": str(path), "recording": recording, "subject": subject, "clips": clips[name[2]]}
    if others:
        print(f"{others} other files *.cnt are left out: not <subject>_<session 1 to 3>_<date>.cnt", file=sys.stderr)
    if not tasks:
        raise InputError(f"--root {root}: holds no files <subject>_<session>_<date>.cnt, such as 1_1_20180804.cnt")
    return list(tasks.values())


def main(args: argparse.Namespace) -> None:
    """Convert the sessions; raises InputError at the end if any was left out."""
    clips = load_clips()
    tasks = find_tasks(args.root, clips)
    expected: Counter[str] = Counter()
    for task in tasks:
        for index, (start, end, _) in enumerate(task["clips"]):
            expected[SPLITS[index // CLIPS_PER_SPLIT]] += end - start
    if missing := SUBJECTS * len(clips) - len(tasks):
        print(
            f"{missing} of the {SUBJECTS * len(clips)} files of the public release are not in {args.root}",
            file=sys.stderr,
        )
    labelled.make(
        args,
        maker="dataset_maker.make_SEEDV",
        tasks=tasks,
        name="SEED-V",
        task="multiclass",
        classes=CLASSES,
        electrodes=ELECTRODES,
        window=WINDOW,
        drop=("M1", "M2", "VEO", "HEO"),
        made={"source": "SEED-V", "split": "of a session's 15 clips the first five train, then five val, five test"},
        expected=expected,
    )


if __name__ == "__main__":
    run_script(main, get_args())
