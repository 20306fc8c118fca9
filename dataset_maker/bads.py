"""Channels that somebody marked as bad (`info["bads"]` of MNE, `status` of BIDS), and what takes their place."""

from __future__ import annotations  # the types of mne would load half of it

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import mne
import numpy as np

from dataset_maker.sidecars import sidecars
from electrodes import canonical_name

CHOICES = ("drop", "interpolate", "keep")
LEAST_GOOD = 4  # electrodes with a known place: fewer say nothing of a fifth
PLACES = ("colin27_1005", "standard_1005")  # the 10-05 system in MNE: its name since 1.13, and before
# m: middle of the sphere through all of these places. MNE fits one to those given; of a few it finds a wrong one.
ORIGIN = (-0.0009, 0.0146, 0.0408)


def table_of(path: Path) -> Path | None:
    """Return the `channels.tsv` of BIDS that describes a recording: beside it, or above it in its data set."""
    stem = re.sub(r"_split-\d+", "", path.name).rpartition("_")[0]
    table = path.with_name(f"{stem}_channels.tsv")
    if stem and table.is_file():
        return table
    return next(reversed(sidecars(path, "channels.tsv")), None) if path.exists() else None


def stated(raw: mne.io.BaseRaw, path: Path) -> tuple[dict[str, str], list[str]]:
    """Return types of channels by their `channels.tsv` (`eeg`, or as BIDS calls others), and the bad ones.

    Bad are those that MNE calls so, too. The table may call the channel `EEG Cz-REF` Cz.
    """
    types, bad = dict[str, str](), set(raw.info["bads"])
    if table := table_of(path):
        with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = {str(row.get("name")).strip(): row for row in csv.DictReader(file, delimiter="\t")}
        electrodes = {canonical_name(name): row for name, row in rows.items() if name not in raw.ch_names}
        electrodes.pop(None, None)
        for name in raw.ch_names:
            row = rows.get(name) or electrodes.get(canonical_name(name), {})
            if (kind := str(row.get("type") or "n/a").strip().lower()) != "n/a":
                types[name] = kind
            if str(row.get("status")).strip().lower() == "bad":
                bad.add(name)
    return types, [name for name in raw.ch_names if name in bad]


def weights(electrodes: Sequence[str], bad: Sequence[str]) -> np.ndarray | None:
    """Return what makes bad electrodes of the good ones, (bad, electrodes); None where that cannot be known.

    These are the weights of MNE's spherical splines (Perrin et al. 1989) with the places of the 10-05 system. They are
    linear, so they commute with filters; before the filters a flat or infinite electrode spoils nothing.
    """
    places = next(name for name in PLACES if name in mne.channels.get_builtin_montages())
    montage = mne.channels.make_standard_montage(places)
    known = {name.upper() for name in montage.ch_names}
    good = [name for name in electrodes if name not in bad and name in known]
    if len(good) < LEAST_GOOD or not known.issuperset(bad):
        return None
    unit = mne.io.RawArray(
        np.eye(len(good) + len(bad), len(good)), mne.create_info([*good, *bad], 1.0, "eeg"), verbose="error"
    )
    unit.set_montage(montage, match_case=False, verbose="error")
    unit.info["bads"] = list(bad)
    unit.interpolate_bads(origin=ORIGIN, verbose="error")
    result = np.zeros((len(bad), len(electrodes)))
    result[:, [list(electrodes).index(name) for name in good]] = unit.get_data()[len(good) :]
    return result
