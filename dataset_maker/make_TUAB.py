"""Turn TUAB (TUH Abnormal EEG Corpus: normal or abnormal) into a labelled HDF5 of 10 s windows, 23 channels, 200 Hz.

`python -m dataset_maker.make_TUAB --root tuab/v3.0.1/edf --output data/TUAB.hdf5 --jobs 8`

Expected below --root: {train,eval}/{abnormal,normal}/01_tcp_ar/*.edf, as in version 3. The deeper folders of version 2
(01_tcp_ar/076/00007671/s003_2012_10_14/00007671_s003_t000.edf) work, too. A recording without exactly the 23
channels (`EEG xxx-REF`), apart from known extras, is left out and named in the report. Label 1 is abnormal; a subject
is a file's name up to the first `_`; eval is test.

The corpus' terms forbid passing recordings on, and the file made here holds their signals: share neither.
"""

import sys

sys.path.insert(0, sys.path[0].removesuffix("dataset_maker"))  # for a start by the file's path

import argparse
from functools import partial
from typing import Any

from dataset_maker import making, tuh
from dataset_maker.writers import DataSet

TREE = "{train,eval}/{abnormal,normal}/01_tcp_ar/"
add_arguments, check = partial(tuh.add_arguments, tree=TREE), tuh.check_channels


def find_recordings(args: argparse.Namespace) -> tuple[DataSet, list[dict[str, Any]]]:
    """Return the data set and a task for each recording below `--root`. Raises InputError where a class has none."""
    folders = [f"{name}/01_tcp_ar" for name in tuh.TUAB.classes]
    return tuh.find_recordings(args, tuh.TUAB, TREE, folders, lambda path: path.stem.partition("_")[0])


if __name__ == "__main__":
    making.run("dataset_maker.make_TUAB")
