"""Write a manifest for make_labelled from the annotations of recordings.

`python dataset_maker/make_manifest.py --input PATH... --labels MAP.json --output FILE.csv`

MAP.json says which annotation gets which label, such as {"T1": "left fist", "stim/*": "sound"}; `*` and `?` stand for
any text and any letter. Others are listed and left out. start and stop are seconds on the recording's own clock, where
make_labelled finds them, also behind a pause and in a FIF file that was cropped before it was saved.
"""

import sys

sys.path.insert(0, sys.path[0].removesuffix("dataset_maker"))  # for a start by the file's path

import argparse
import csv
import math
import os
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dataset_maker import jobs, marks, pipeline, pool
from dataset_maker.reasons import recording_readable
from dataset_maker.sources import find_files, subject_of
from dataset_maker.writers import refuse_existing
from eeg_data.labelled_files import SPLITS
from errors import ArgumentParser, InputError, UsageError, first_few, printable, run_script
from files import check_file, written_aside

COLUMNS = ["path", "start", "stop", "label", "subject", "split"]
MOST_SHOWN, LONGEST_SHOWN = 20, 40  # texts of annotations, letters of each


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--input", type=Path, nargs="+", required=True, metavar="PATH", help="files or folders")
    add("--labels", type=Path, required=True, metavar="MAP.json", help="JSON object: text of an annotation -> label")
    add("--output", type=Path, required=True, metavar="FILE.csv", help="the manifest")
    add("--window", type=float, metavar="SECONDS", help="length of each segment (default: its annotation's)")
    add("--onset", type=float, default=0.0, metavar="SECONDS", help="from an annotation to its segment's start")
    subject = "finds the subject in a path (default: XX of sub-XX as in BIDS, else the file's name)"
    add("--subject", metavar="REGEX", help=subject)
    splits = f"JSON object: pattern of a path -> {', '.join(SPLITS)} (default: no column split)"
    add("--splits", type=Path, metavar="MAP.json", help=splits)
    pool.add_arguments(parser, signals=False)
    pipeline.add_cnt_argument(parser)
    return parser.parse_args()


def chosen(names: Mapping[str, str], text: str) -> str:
    """Return what a text stands for: by its own name, else by the first pattern that it matches, else nothing."""
    return names.get(text) or next((value for key, value in names.items() if fnmatchcase(text, key)), "")


def survey(path: str, cnt_format: str | None) -> dict[str, Any]:
    """Return onset and duration (s) and the text of a recording's annotations. Raises InputError if unreadable."""
    recording = pipeline.read(Path(path), pipeline.Pipeline(cnt_format=cnt_format))
    with recording_readable(path):
        return {"annotations": marks.on_clock(recording)}


def main(args: argparse.Namespace) -> None:
    """Write the manifest. Raises InputError where no annotation has a label, and at the end for unreadable files."""
    labels = pipeline.load_rename(args.labels, "--labels", '{"T1": "left fist"}')
    splits = pipeline.load_rename(args.splits, "--splits", '{"*R04.edf": "train"}') if args.splits else {}
    if args.window is not None and not 0 < args.window < math.inf:
        raise UsageError(f"--window {args.window:g}: must be a number of seconds above 0")
    if not math.isfinite(args.onset):
        raise UsageError(f"--onset {args.onset:g}: must be a number of seconds")
    refuse_existing(args.output)
    check_file(args.output)
    paths, failed = find_files(args.input), 0
    wrong = next((path for path in paths if splits and chosen(splits, path.as_posix()) not in SPLITS), None)
    if wrong:
        says = repr(split) if (split := chosen(splits, wrong.as_posix())) else "nothing"
        raise InputError(f"{wrong}: --splits {args.splits} says {says} of it; allowed: {', '.join(SPLITS)}")
    rows, others, empty = dict[tuple[str, ...], None](), Counter[str](), 0
    with pool.processes(args) as submit:
        calls = [(path, subject_of(path, args.subject), submit(survey, str(path), args.cnt_format)) for path in paths]
        for path, subject, call in tqdm(calls, "reading annotations", unit="file", disable=None):
            found = pool.result_of(call, str(path))
            for key, what in jobs.FAILED.items():
                if key in found:
                    tqdm.write(f"{what}: {found[key]}", file=sys.stderr)
            failed += "error" in found
            # `..` leads out of the folder that a link stands for.
            relative = os.path.relpath(path.parent.resolve() / path.name, args.output.parent.resolve())
            for onset, duration, text in found.get("annotations", ()):
                start, label = onset + args.onset, chosen(labels, text)
                stop = start + args.window if args.window else onset + duration
                if not label:
                    others[text] += 1
                elif stop <= start or start < 0:
                    empty += 1
                else:
                    times = [f"{time:.6f}".rstrip("0").rstrip(".") for time in (start, stop)]
                    row = (relative, *times, label, subject)
                    rows[(*row, chosen(splits, path.as_posix())) if splits else row] = None
    unused = first_few([f"{printable(t[:LONGEST_SHOWN])!r} {n}x" for t, n in others.most_common()], MOST_SHOWN)
    if empty:
        print(f"{empty} annotations last 0 s or begin before 0 s and are left out; --window gives them a length")
    if not rows:
        none = "with a label gives a segment: correct --window or --onset"
        none = none if empty else f"gets a label by --labels {args.labels}"
        why = f" ({failed} of {len(paths)} recordings cannot be read)" if failed else ""
        raise InputError(f"no annotation {none}; {'others are' if empty else 'there are'}: {unused or 'none'}{why}")
    with written_aside(args.output) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([COLUMNS if splits else COLUMNS[:-1], *rows])
    print(f"without a label: {unused or 'none'}")
    counts = ", ".join(f"{label} {n}" for label, n in sorted(Counter(row[3] for row in rows).items()))
    print(f"{args.output}: {len(rows)} segments of {len(paths) - failed} recordings ({counts})")
    if failed:
        raise InputError(f"{failed} of {len(paths)} recordings were left out, named above")


if __name__ == "__main__":
    run_script(main, get_args())
