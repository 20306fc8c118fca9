"""Caps whose labels are no electrodes' names, and the known electrode that each of their places is nearest to.

Places are directions from the centre of the sphere that fits a cap best, so size and origin of a cap do not matter.
"""

import re
from difflib import get_close_matches
from functools import lru_cache

import mne
import numpy as np

from electrodes import ELECTRODES, Cap
from errors import UsageError

NAMED = ("easycap-M1", "biosemi64")  # spheres with names of the 10-10 system; the second one's places win
MOST_DEGREES = 15.0  # of a place from its electrode; neighbours of the 10-10 system are about 18 degrees apart
SAME_NAME = 30.0  # degrees from a label's place to the electrode of this name, if the cap means it (realistic heads)
SAME_PLACE = 0.1  # degrees: MNE gives some labels the place of another one
ANT = "waveguard"  # ANT's caps of any size have names of the 10-5 system, all but this one:
DUKE = "waveguard_duke64"  # equidistant; the nearest electrodes by ANT's places, of the midline and the left half
_DUKE = {
    **{"0Z": "FPZ", "1Z": "AFZ", "2Z": "FZ", "3Z": "FCZ", "4Z": "CZ", "5Z": "CPZ", "6Z": "PZ", "7Z": "POZ", "8Z": "OZ"},
    **{"9Z": "IZ", "1L": None, "2L": "F1", "3L": "FC1", "4L": "C1", "5L": "CP1", "6L": "P1", "7L": None, "8L": "O1"},
    **{"9L": None, "10L": "O9", "1LA": "FC3", "2LA": "C3", "3LA": "P3", "1LB": "AF3", "2LB": "F5", "3LB": "C5"},
    **{"4LB": "CP5", "5LB": "P5", "1LC": "AF7", "2LC": "FT7", "3LC": "T7", "4LC": "P7", "5LC": "PO7", "1LD": "F9"},
    **{"2LD": "FT9", "3LD": "TP9", "4LD": "PO9"},
}
BY_ORDER = ("biosemi16", "biosemi32", "biosemi64")  # their channels are called A1 to B32 where nobody named them
NUMBERED = ("GSN-HydroCel-", "EGI_256", "mgh")  # their labels are E or EEG and a number, in files also the number alone
# The electrodes of the net with 128 that stand for the 10-20 system by custom; the nearest ones to T7, T8, P3, P4, P7
# and P8 would be others. In MNE's montage they are at most 15 degrees from their places.
CUSTOMARY = {
    **{"E22": "FP1", "E9": "FP2", "E33": "F7", "E24": "F3", "E11": "FZ", "E124": "F4", "E122": "F8"},
    **{"E45": "T7", "E36": "C3", "E104": "C4", "E108": "T8", "E58": "P7", "E52": "P3", "E62": "PZ", "E92": "P4"},
    **{"E96": "P8", "E70": "O1", "E75": "OZ", "E83": "O2"},
}


def directions(montage: str) -> dict[str, np.ndarray]:
    """Return label -> unit vector from the centre of the head, for a montage that MNE knows."""
    places = mne.channels.make_standard_montage(montage).get_positions()["ch_pos"]
    points = np.array(list(places.values()))
    sphere = np.linalg.lstsq(np.c_[2 * points, np.ones(len(points))], (points**2).sum(1), rcond=None)[0]
    points -= sphere[:3]
    return dict(zip(places, points / np.linalg.norm(points, axis=1, keepdims=True), strict=True))


def degrees(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the angles between unit vectors, (A, 3) and (B, 3) -> (A, B)."""
    return np.degrees(np.arccos(np.clip(a @ b.T, -1, 1)))


@lru_cache
def find_cap(name: str) -> Cap:
    """Return the electrodes of a cap that MNE knows, or of ANT. Raises UsageError for another name."""
    montages = {montage.lower(): montage for montage in mne.channels.get_builtin_montages()}
    wanted = name.lower()
    if wanted == DUKE:
        return Cap(name, _DUKE | {label.replace("L", "R"): _mirrored(electrode) for label, electrode in _DUKE.items()})
    if wanted.startswith(ANT):
        wanted = "colin27_1005" if "colin27_1005" in montages else "standard_1005"
    if wanted not in montages:
        near = get_close_matches(wanted, montages, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(montages[key] for key in near)}?" if near else "such as biosemi128"
        raise UsageError(f"--cap {name}: must be {ANT}, {DUKE} or one of mne.channels.get_builtin_montages(): {hint}")
    return Cap(name, _electrodes(montages[wanted]))


def _mirrored(electrode: str | None) -> str | None:
    """Return the electrode in the same place of the other half: names of the left half end with an odd number."""
    return electrode and re.sub(r"\d+$", lambda number: str(int(number[0]) + 1), electrode)


def _electrodes(montage: str) -> dict[str, str | None]:
    """Return label -> the electrode whose nearest place of the cap this is, if it is also the place's nearest one."""
    places = {label.upper(): place for label, place in directions(montage).items()}
    named = {label.upper(): place for cap in NAMED for label, place in directions(cap).items()}
    named = {label: place for label, place in named.items() if label in ELECTRODES}
    spelt = {label.upper(): label for label in ELECTRODES if label.upper() in places}
    near = [label for label in spelt if label in named and places[label] @ named[label] > np.cos(np.radians(SAME_NAME))]
    electrodes: dict[str, str | None] = dict.fromkeys(places)
    if 2 * len(near) > len(spelt.keys() & named.keys()):  # not BioSemi's C3, which is no electrode C3
        electrodes |= {label: name for label, name in spelt.items() if label in near or label not in named}
    if montage in ("GSN-HydroCel-128", "GSN-HydroCel-129"):
        electrodes |= CUSTOMARY
    angles = degrees(*[np.array(list(places.values()))] * 2)
    shared = {label for label, row in zip(places, angles, strict=True) if (row < SAME_PLACE).sum() > 1}
    labels = [label for label, electrode in electrodes.items() if electrode is None and label not in shared]
    names = [electrode for electrode in named if electrode not in electrodes.values()]
    if labels and names:
        angles = degrees(np.array([places[label] for label in labels]), np.array([named[name] for name in names]))
        for number, nearest in enumerate(angles.argmin(axis=1)):
            if angles[:, nearest].argmin() == number and angles[number, nearest] <= MOST_DEGREES:
                electrodes[labels[number]] = names[nearest]
    if montage.startswith(NUMBERED[:2]):  # their reference at Cz is recorded as a flat line
        vertex = f"E{len(places.keys() - {'CZ'}) + 1}"
        electrodes |= dict.fromkeys(("CZ", "VREF", "VERTEXREFERENCE", vertex), None)
    if montage.startswith(NUMBERED):
        electrodes |= {label.lstrip("EG"): electrode for label, electrode in electrodes.items() if label[-1].isdigit()}
    if montage in BY_ORDER:
        electrodes |= {f"{'AB'[number // 32]}{number % 32 + 1}": label for number, label in enumerate(places)}
    return electrodes
