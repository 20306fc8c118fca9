"""Turn TUEV (TUH EEG Events Corpus: six kinds of events) into a labelled HDF5 of 5 s windows, 23 channels, 200 Hz.

`python -m dataset_maker.make_TUEV --root tuev/v2.0.1/edf --output data/TUEV.hdf5 --jobs 8`

Expected below --root, as in versions 2.0.x: {train,eval}/SUBJECT/*.edf, and for each a `.rec` file of the same name
with rows `channel,start,end,label` (s; 1-6: SPSW GPED PLED EYEM ARTF BCKG). Each row of one second gives the window
from 2 s before it to 2 s after it; at the recording's edge it wraps round to the other end. Rows are per channel: a
window may come several times, with several labels; the report counts these, --unique_events leaves them out. A
recording without `.rec` file or without exactly the 23 channels (`EEG xxx-REF`), apart from known extras, is left out
and named in the report. eval is test.

The corpus' terms forbid passing recordings on, and the file made here holds their signals: share neither.
"""

import sys

sys.path.insert(0, sys.path[0].removesuffix("dataset_maker"))  # for a start by the file's path

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dataset_maker import making, tuh
from dataset_maker.pipeline import Prepared
from dataset_maker.writers import DataSet, Windows

TREE = "{train,eval}/SUBJECT/"
check = tuh.check_channels


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    tuh.add_arguments(parser, TREE)
    text = "keep one of equal windows, and none of those that come with several labels (default: all, as published)"
    parser.add_argument("--unique_events", action="store_true", help=text)


def windows(task: Mapping[str, Any], prepared: Prepared) -> Windows:
    """Cut a window round each event of the recording's `.rec` file."""
    events = tuh.read_events(Path(task["path"]).with_suffix(".rec"))
    return tuh.event_windows(events, prepared.length, prepared.rate, unique=task.get("unique", False))


def find_recordings(args: argparse.Namespace) -> tuple[DataSet, list[dict[str, Any]]]:
    """Return the data set and a task for each recording below `--root`. Raises InputError where a part has none."""
    data_set, tasks = tuh.find_recordings(args, tuh.TUEV, TREE, [""], lambda path: path.parent.name)
    unique = {"unique": True} if args.unique_events else {}
    data_set = replace(data_set, made={**data_set.made, "unique_events": args.unique_events})
    return data_set, [task | unique | {"also": [str(Path(task["path"]).with_suffix(".rec"))]} for task in tasks]


if __name__ == "__main__":
    making.run("dataset_maker.make_TUEV")
