"""Turn TUEV (TUH EEG Events Corpus: six kinds of events) into a labelled HDF5 of 5 s windows, 23 channels, 200 Hz.

`python -m dataset_maker.make_TUEV --root tuev/v2.0.1/edf --output data/TUEV.hdf5 --jobs 8`

Expected below --root, as in versions 2.0.x: {train,eval}/SUBJECT/*.edf, each beside a `.rec` file of the same name
with rows `channel,start,end,label` (s; 1-6: SPSW GPED PLED EYEM ARTF BCKG). Each row of one second gives the window
from 2 s before it to 2 s after it; at the recording's edge it wraps round to the other end. Rows are per channel: a
window may come several times, with several labels; the report counts these. A recording without `.rec` file or without
exactly the 23 channels (`EEG xxx-REF`) beside known extras is left out and named in the report. eval is test.

The corpus is free from Temple University Hospital after registration. Its terms forbid passing recordings on, and the
file made here holds their signals: share neither.
"""

import sys
from pathlib import Path

if not __package__:  # started by its path: the project's folder, not this one, belongs on Python's path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Mapping
from typing import Any

from dataset_maker import labelled, tuh, tuh_events
from dataset_maker.pipeline import Prepared, Windows
from dataset_maker.tuh import read  # noqa: F401 - the hook that opens a recording
from errors import ArgumentParser, InputError, run_script

CLASSES = ("SPSW", "GPED", "PLED", "EYEM", "ARTF", "BCKG")  # labels 1-6 of the files, 0-5 here
TREE = "{train,eval}/SUBJECT/"
OLD, NEW = "v2.0.0", "v2.0.1"  # versions whose counts are known; NEW unless the path says otherwise


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    tuh.add_arguments(parser, TREE)
    labelled.add_arguments(parser)
    return parser.parse_args()


def windows(task: Mapping[str, Any], prepared: Prepared) -> Windows:
    """Cut a window round each event of the `.rec` file beside the recording."""
    events = tuh_events.read_events(Path(task["path"]).with_suffix(".rec"))
    return tuh_events.event_windows(events, prepared.length, prepared.rate)


def find_tasks(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a task for each recording below `--root`. Raises InputError where train or eval has none."""
    root = tuh.find_root(args.root, TREE)
    files = {part: tuh.edf_files(root / part, TREE) for part in tuh.PARTS}
    for part, paths in files.items():
        if loose := [path for path in paths if path.parent == root / part]:
            raise InputError(f"{loose[0]}: lies in no subject's folder; expected {root}/{TREE}")
    cut = tuh.subject_splitter(args)(path.parent.name for path in files["train"])
    return [
        {
            "path": str(path),
            "recording": path.stem,
            "subject": path.parent.name,
            "split": cut[path.parent.name] if part == "train" else "test",
            "also": [str(path.with_suffix(".rec"))],
        }
        for part, paths in files.items()
        for path in paths
    ]


def main(args: argparse.Namespace) -> None:
    """Convert the corpus; raises InputError at the end if recordings were left out."""
    version = OLD if OLD in args.root.resolve().parts else NEW
    labelled.make(
        args,
        maker="dataset_maker.make_TUEV",
        tasks=find_tasks(args),
        name="TUEV",
        task="multiclass",
        classes=CLASSES,
        electrodes=tuh.ELECTRODES,
        window=tuh_events.WINDOW,
        wrap=True,
        drop=tuh.EXTRAS,
        made={"source": "TUEV"} | tuh.split_record(args),
        expected=f"TUEV {version}" if args.split == "published" else None,
    )


if __name__ == "__main__":
    run_script(main, get_args())
