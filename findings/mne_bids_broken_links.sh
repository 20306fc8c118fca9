#!/usr/bin/env bash
# mne-bids lists a data set without the recordings that git-annex has not fetched yet.
# Guess: `find_matching_paths` lists the recordings that `datalad clone` leaves, or says which are missing.
# Seen with mne-bids 0.20.0, MNE 1.13.2, Python 3.11: a recording that is a link to content elsewhere is not in the
# list, without a word, so a data set of 88 subjects may quietly become one of 80.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check mne-bids==0.20.0 mne==1.13.2 numpy==2.4.6 scipy==1.17.1
cat > show.py <<'PY'
import warnings
from pathlib import Path

import mne_bids

warnings.simplefilter("error")
for subject in ("1", "2"):
    path = Path(f"data/sub-{subject}/eeg/sub-{subject}_task-rest_eeg.edf")
    path.parent.mkdir(parents=True)
    path.touch()
path.unlink()
path.symlink_to("../../.git/annex/objects/x")  # as git-annex does
found = [str(each.fpath) for each in mne_bids.find_matching_paths("data", datatypes="eeg", extensions=".edf")]
print(f"mne-bids {mne_bids.__version__}: of two recordings it lists {found}")
assert found == ["data/sub-1/eeg/sub-1_task-rest_eeg.edf"]
PY
venv/bin/python show.py
