"""The 136 known electrodes, names as files spell them, and rows of the position embedding.

Paper, appendix on data: one embedding row per electrode name. Without torch, so that dataset makers can use it.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from errors import InputError

# The index of a name plus one is its row in the position embedding; row 0 belongs to CLS.
_NAMES = """
FP1 FPZ FP2 AF9 AF7 AF5 AF3 AF1 AFZ AF2 AF4 AF6 AF8 AF10 F9 F7 F5 F3 F1 FZ F2 F4 F6 F8 F10
FT9 FT7 FC5 FC3 FC1 FCZ FC2 FC4 FC6 FT8 FT10 T9 T7 C5 C3 C1 CZ C2 C4 C6 T8 T10
TP9 TP7 CP5 CP3 CP1 CPZ CP2 CP4 CP6 TP8 TP10 P9 P7 P5 P3 P1 PZ P2 P4 P6 P8 P10
PO9 PO7 PO5 PO3 PO1 POZ PO2 PO4 PO6 PO8 PO10 O1 OZ O2 O9 CB1 CB2 IZ O10 T3 T5 T4 T6 M1 M2 A1 A2
CFC1 CFC2 CFC3 CFC4 CFC5 CFC6 CFC7 CFC8 CCP1 CCP2 CCP3 CCP4 CCP5 CCP6 CCP7 CCP8 T1 T2
FTT9h TTP7h TPP9h FTT10h TPP8h TPP10h
FP1-F7 F7-T7 T7-P7 P7-O1 FP2-F8 F8-T8 T8-P8 P8-O2 FP1-F3 F3-C3 C3-P3 P3-O1 FP2-F4 F4-C4 C4-P4 P4-O2
"""
ELECTRODES: tuple[str, ...] = tuple(_NAMES.split())
PUBLISHED_ELECTRODES = 128  # the published checkpoints have 129 rows: these many electrodes and CLS

LONGEST_SHOWN = 60  # characters of a name in a message

_SPELLING = {name.upper(): name for name in ELECTRODES}
_ROWS = {name.upper(): row for row, name in enumerate(ELECTRODES, start=1)}
_NON_EEG = re.compile(
    r".*(EOG|ECG|EKG|EMG|RESP|PHOTIC|ANNOTATION|STIM|TRIG|MARK|EVENT|PULSE|PLETH|ABDOM|THORA|SPO2|SAO2).*"
    r"|IBI|BURSTS|SUPPR|STATUS|STI ?\d+|DC ?\d+|HEO|VEO|[LR]OC|LUC|RLC|GSR|EDA|([AM])[12]-\2[12]"
    r"|[\W_]*"  # places without a channel: CHB-MIT calls empty ones `-`
)


@dataclass(frozen=True)
class Resolution:
    """The channels of a recording that are kept. kept: name in the file -> electrode, in the order of the file."""

    kept: dict[str, str]
    dropped: list[str]


def _plain(name: str) -> str:
    """Return the name in upper case without `EEG `, reference, dots and MNE's running number of equal names (`-0`)."""
    plain = re.sub(r"^EEG\s+", "", name.strip().upper())
    plain = re.sub(r"-\d$", "", plain)
    return re.sub(r"\s*-\s*(REF|LE|AR|AVG)$", "", plain).rstrip(". ")


def canonical_name(name: str) -> str | None:
    """Return the known spelling of an electrode's name from a file (`EEG Fp1-REF`, `Fc5.`), or None if unknown."""
    return _SPELLING.get(_plain(name))


def is_known_non_eeg(name: str) -> bool:
    """True if the name of a channel shows that it is no scalp electrode: eyes, heart, breath, stimuli, ear to ear."""
    return _NON_EEG.fullmatch(_plain(name)) is not None


def _nearest(name: str) -> str:
    """Return `'name' (nearest known: ...)` for error messages."""
    near = [_SPELLING[key] for key in get_close_matches(_plain(name), _SPELLING, n=3, cutoff=0.5)]
    return f"{_shown(name)} ({'nearest known: ' + ', '.join(near) if near else 'nothing like it is known'})"


def _shown(name: str) -> str:
    """Quote a name from a file for a message: short, and without control characters."""
    return repr(name[:LONGEST_SHOWN])


def _matches(names: Iterable[str], wanted: str) -> list[str]:
    """Return the names that `wanted` of a user matches: the equal one, else all with the same plain form."""
    names = list(names)
    return [wanted] if wanted in names else [name for name in names if _plain(name) == _plain(wanted)]


def resolve(
    names: Sequence[str], *, rename: Mapping[str, str] | None = None, drop: Collection[str] = (), where: str = ""
) -> Resolution:
    """Decide which channels of a recording are which electrodes.

    rename: name in the file -> electrode; drop: names to leave out. Both accept the spelling of the file or the plain
    one (`PG1` for `EEG Pg1-REF`) and ignore names that the recording lacks. `where` opens error messages.
    Raises InputError for unknown names, for two channels of one name or electrode and when no channel is left.
    """
    where = f"{where}: " if where else ""
    unwanted = {name for wanted in drop for name in _matches(names, wanted)}
    renamed = {name: new for wanted, new in (rename or {}).items() for name in _matches(names, wanted)}
    if wrong := [new for new in renamed.values() if canonical_name(new) is None]:
        raise InputError(f"{where}--rename gives names that are no known electrodes: {', '.join(map(_nearest, wrong))}")
    left = [name for name in names if name not in unwanted]
    if twice := [name for name in left if left.count(name) > 1]:
        name = _shown(twice[0])
        raise InputError(
            f"{where}two channels are called {name}: each electrode has one name. Leave both out with --drop {name}"
        )
    electrodes = {name: canonical_name(renamed.get(name, name)) for name in left}
    kept = {name: electrode for name, electrode in electrodes.items() if electrode is not None}
    if unknown := [name for name in electrodes if name not in kept and not is_known_non_eeg(name)]:
        raise InputError(
            f"{where}unknown electrode names: {'; '.join(map(_nearest, unknown))}. Leave them out with "
            f"--drop {' '.join(map(_shown, unknown))}, or say which electrodes they are with "
            f"--rename MAP.json, a JSON object such as {json.dumps({unknown[0][:LONGEST_SHOWN]: 'CZ'})}"
        )
    for electrode in kept.values():
        if len(same := [name for name, other in kept.items() if other == electrode]) > 1:
            raise InputError(
                f"{where}the channels {' and '.join(map(repr, same))} are both electrode {electrode}. "
                f"Leave one out with --drop {same[-1]!r}, or rename one with --rename MAP.json"
            )
    if not kept:
        raise InputError(f"{where}no EEG channel is left of {len(names)}: {', '.join(map(repr, names))}")
    return Resolution(kept, [name for name in names if name not in kept])


def embedding_rows(names: Sequence[str], *, table_rows: int = PUBLISHED_ELECTRODES + 1, where: str = "") -> list[int]:
    """Return `input_chans` for electrodes in this order: `[0, row, row, ...]`, length N + 1, row 0 for CLS.

    table_rows: rows of the model's table, CLS included. Raises InputError for unknown names and names without a row.
    """
    where = f"{where}: " if where else ""
    if unknown := [name for name in names if canonical_name(name) is None]:
        raise InputError(f"{where}unknown electrode names: {'; '.join(map(_nearest, unknown))}")
    rows = [_ROWS[_plain(name)] for name in names]
    if beyond := [ELECTRODES[row - 1] for row in rows if row >= table_rows]:
        raise InputError(
            f"{where}the model's table of {table_rows} rows (CLS and {table_rows - 1} electrodes) has no row for "
            f"{', '.join(beyond)}. Train from scratch with --num_electrodes {len(ELECTRODES)}: that grows the table, "
            f"and a checkpoint of {PUBLISHED_ELECTRODES + 1} rows loads with the new rows freshly initialised"
        )
    return [0, *rows]
