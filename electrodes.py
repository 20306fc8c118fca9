"""The 136 known electrodes, names as files spell them, and rows of the position embedding.

Paper, appendix on data: one embedding row per electrode name. Without torch, so that dataset makers can use it.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import NamedTuple

from errors import InputError, first_few

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
MOST_SHOWN = 8  # names in a message

# Why a channel is left out.
NOT_EEG, LISTED, UNKNOWN = "not EEG by its name", "listed to be left out", "unknown name"
NOT_NEAR = "of its cap, and its reference or not the nearest one to a known electrode"

_SPELLING = {name.upper(): name for name in ELECTRODES}
_NEW = {"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8"}  # of the 10-20 system -> of the 10-10 system
_ROWS = {name.upper(): row for row, name in enumerate(ELECTRODES, start=1)}
_NON_EEG = re.compile(
    r".*(EOG|ECG|EKG|EMG|RESP|PHOTIC|ANNOTATION|STIM|TRIG|MARK|EVENT|PULSE|PLETH|ABDOM|THORA|SPO2|SAO2|CO2).*"
    r"|IBI|BURSTS|SUPPR|STATUS|STI ?\d+|DC ?\d+|HEO|VEO|[LR]OC|LUC|RLC|GSR|EDA|([AM])[12]-\2[12]"
    r"|((LEFT |RIGHT )?AUX|EXG|BIP|ACC|GYRO?|ERG|GSR|PLET|TEMP|CHIN|LEG|SNORE|FLOW)\W?[\dXYZ]*|TEMP RECTAL|HR|MK"
    r"|CMS?|DRL|COUNTER|INTERPOLATED|BATTERY|(RAW_)?CQ\w*"  # BioSemi, Emotiv
    r"|E[12] ?\W? ?[AM][12]|[PS][GP][12]"  # eyes of sleep recordings; electrodes of the pharynx and below the temples
    r"|E|\$\w+|POL .*"  # Nihon Kohden: earth, its system reference, inputs of the box (`POL X1`)
    r"|[\W_]*(-\d)?"  # places without a channel: CHB-MIT calls empty ones `-`
)
_PREFIX = re.compile(r"^(EEG[\s_.:-]+|POL (?!(X|BP)\d))+")
_EARS = re.compile(r"\(?[AM][12]( ?\+? ?[AM][12])?\)?(/2)?")
_NAMED_REFERENCE = re.compile(r"REF\w*|CLE|LER|CAR|AVERAGE|LINK\w*")
_PAIR = re.compile(rf"(?P<first>.+?)( ?[-_:/–] ?(?P<second>.+)|(?P<ear>{_EARS.pattern}))")  # noqa: RUF001 - a dash
_COMMON = 3  # channels with one electrode behind their names: as many share a reference; fewer may be derivations
_NUMBERED = re.compile(r"([A-Z]+)'?(\d+)")
_CONTACTS = 3  # unknown numbered names that make others doubtful
_BIOSEMI = {"A": 32, "B": 64, "C": 128, "D": 128, "E": 160, "F": 256, "G": 256, "H": 256}  # last letter -> size
_DUKE = r"\d+(Z|[LR][A-D]?)"  # labels of ANT's equidistant cap
_GSN = {32: "32", 64: "64_1.0", 65: "65_1.0", 128: "128", 129: "129", 256: "256", 257: "257"}


@dataclass(frozen=True)
class Resolution:
    """The channels of a recording that are kept, and why others are not.

    kept: name in the file -> electrode, in the order of the file. reasons: name -> why it is left out.
    """

    kept: dict[str, str]
    reasons: dict[str, str]
    notes: list[str] = field(default_factory=list)  # what was decided about the names

    @property
    def dropped(self) -> list[str]:
        """The names that are left out, in the order of the file."""
        return list(self.reasons)


class Cap(NamedTuple):
    """A cap with labels that are no electrodes' names. electrodes: label in upper case -> the nearest one, or None."""

    name: str
    electrodes: Mapping[str, str | None]


def _plain(name: str) -> str:
    """Return the name in upper case without `EEG `, `POL `, named reference, dots and the `-0` of equal derivations."""
    plain = _PREFIX.sub("", " ".join(name.replace("\0", " ").upper().split()))
    plain = re.sub(r"(.+-.+)-\d$", r"\1", plain)
    return re.sub(r" ?[-_] ?(REF|LE|AR|AVG)$", "", plain).rstrip(". ")


def _known(plain: str) -> str | None:
    """Return the electrode of a plain name, which may have blanks inside, or derivation, which may have old names."""
    name = plain.replace(" ", "")
    return _SPELLING.get(name) or _SPELLING.get("-".join(_NEW.get(part, part) for part in name.split("-")))


def _is_non_eeg(plain: str) -> bool:
    """True if a channel's name shows that it is no scalp electrode: eyes, heart, breath, stimuli, ear to ear."""
    first = plain.partition("-")[0].strip()  # of `Chin1-Chin2`, `ROC-A1`
    return any(_NON_EEG.fullmatch(text) for text in (plain, first or plain))


def canonical_name(name: str) -> str | None:
    """Return the known spelling of an electrode's name from a file (`EEG Fp1-REF`, `Fc5.`), or None if unknown."""
    return _known(_plain(name))


def _pair(plain: str) -> tuple[str, str] | None:
    """Return an electrode and what stands behind it (`C3`, `M2` of `C3-M2`, `C3:M2` or `C3M2`), or None."""
    match = _PAIR.fullmatch(plain)
    first = _known(match["first"]) if match and not _is_non_eeg(plain) else None
    if match is None or first is None or "-" in first:
        return None
    second = match["second"] or match["ear"]
    return None if _EARS.fullmatch(first) and _EARS.fullmatch(second) else (first, second)


def _common_reference(names: Iterable[str]) -> set[str]:
    """Return what stands behind the electrodes' names (plain ones) as their reference; empty if it may be derivations.

    It is one or both ears, a word for a reference, or one electrode behind all names of at least three.
    """
    names = list(names)
    pairs = [pair for pair in map(_pair, names) if pair]
    behind = {second for _, second in pairs}
    recorded = [name for name in names if not (_EARS.fullmatch(name) or name in behind)]  # not references themselves
    bare = [name for name in recorded if _known(name)]  # also the known derivations
    if not pairs or bare:
        return set()
    if all(map(_EARS.fullmatch, behind)):
        return behind
    common = len(behind) == 1 and (len(pairs) >= _COMMON or _NAMED_REFERENCE.fullmatch(pairs[0][1]))
    return behind if common else set()


def _plain_names(names: Iterable[str]) -> dict[str, str]:
    """Return name -> plain name, without the running numbers (`C3-0`, `C3-1`) that MNE gives to equal names."""
    numbered = {name: name.rpartition("-") for name in names}
    stems = {stem for stem, _, number in numbered.values() if number == "1" and f"{stem}-0" in numbered}
    plain = {}
    for name, (stem, _, number) in numbered.items():
        plain[name] = _plain(stem if stem in stems and number.isdecimal() else name)
    return plain


def _shown(name: str) -> str:
    """Quote a name from a file for a message: short, and without control characters."""
    return repr(name[:LONGEST_SHOWN])


def _listed(names: Sequence[str]) -> str:
    """Quote the first names for a message and count the others."""
    return first_few(list(map(_shown, names)), MOST_SHOWN)


def _nearest(name: str) -> str:
    """Return `'name' (nearest known: ...)` for error messages."""
    near = [_SPELLING[key] for key in get_close_matches(_plain(name), _SPELLING, n=3, cutoff=0.5)]
    return f"{_shown(name)} ({'nearest known: ' + ', '.join(near) if near else 'nothing like it is known'})"


def _matches(plain: Mapping[str, str], wanted: str) -> list[str]:
    """Return the names that a user's `wanted` matches. plain: name in the file -> plain name.

    It is the equal name, else all with the same plain form, else those that match it as a pattern (`EXG*`): in their
    plain form, or, if none does, in the file's.
    """
    if wanted in plain:
        return [wanted]
    pattern = wanted.upper()
    if not re.search(r"[*?[]", wanted) or _plain(wanted) in plain.values():
        return [name for name, text in plain.items() if text == _plain(wanted)]
    found = [name for name, text in plain.items() if fnmatchcase(text, pattern)]
    return found or [name for name in plain if fnmatchcase(name.upper(), pattern)]


def _without(plain: Mapping[str, str], drop: Collection[str]) -> dict[str, str]:
    unwanted = {name for wanted in drop for name in _matches(plain, wanted)}
    return {name: text for name, text in plain.items() if name not in unwanted}


def resolve(
    names: Sequence[str],
    *,
    rename: Mapping[str, str] | None = None,
    drop: Collection[str] = (),
    drop_unknown: bool = False,
    bipolar: str | None = None,
    cap: Cap | None = None,
    where: str = "",
) -> Resolution:
    """Decide which channels of a recording are which electrodes.

    rename: name in the file -> electrode; drop: names to leave out, or patterns. Both accept the spelling of the file
    or the plain one (`PG1` for `EEG Pg1-REF`) and ignore names that the recording lacks. drop_unknown: leave unknown
    names out. bipolar="anode": a derivation is called after its first electrode. cap: gives its labels electrodes.
    `where` opens error messages. Raises InputError for unknown names, for two channels of one name or electrode, for
    names that may be no electrodes although they are spelt so, and when no channel is left.
    """
    where = f"{where}: " if where else ""
    plain = _plain_names(names)
    renamed = {name: new for wanted, new in (rename or {}).items() for name in _matches(plain, wanted)}
    if wrong := [new for new in renamed.values() if canonical_name(new) is None]:
        raise InputError(f"{where}--rename gives names that are no known electrodes: {', '.join(map(_nearest, wrong))}")
    left = _without(plain, drop)
    if twice := [name for name in left if names.count(name) > 1]:
        name = _shown(twice[0])
        raise InputError(
            f"{where}two channels are called {name}: each electrode has one name. Leave both out with --drop {name}"
        )
    opened, note = _without_second({name: text for name, text in left.items() if name not in renamed}, bipolar)
    left |= {name: first.upper() for name, first in opened.items()}
    on_cap = _on_cap(left.keys() - renamed.keys(), left, cap, where) if cap else {}
    electrodes = {name: _known(text) for name, text in left.items()} | on_cap
    electrodes |= {name: canonical_name(new) for name, new in renamed.items() if name in left}
    unmatched = [wanted for wanted in drop if not _matches(plain, wanted)]  # may be electrodes
    left = {name: left[name] for name in _without({name: (electrodes[name] or "").upper() for name in left}, unmatched)}
    kept = {name: electrode for name in left if (electrode := electrodes[name]) is not None}
    unknown = [name for name in left if not (name in kept or name in on_cap or _is_non_eeg(left[name]))]
    likely = None if cap or renamed else _likely_cap(left.values())
    doubtful = [] if cap else _doubtful({name: text for name, text in plain.items() if name not in renamed}, kept)
    equal = [[n for n in kept if kept[n] == electrode] for electrode, n in Counter(kept.values()).items() if n > 1]
    faulty = unknown if likely or doubtful or not drop_unknown else []
    if faulty or equal or doubtful:
        what = _faults(kept, faulty, equal, doubtful)
        again = doubtful + [name for same in equal for name in same[1:] if name not in doubtful]
        way = _cap_flag(likely, left, unknown) if likely else _ways_out(left, kept, faulty, again, bipolar)
        raise InputError(f"{where}{what}. {way}")
    if not kept:
        way = "" if bipolar else _opened(left)
        what = f"no EEG channel is left of {len(names)}: {_listed(names)}"
        raise InputError(f"{where}{what}{f'. You may {way}' if way else ''}")
    reasons = {}
    for name in names:
        if name not in kept:
            by_name = NOT_EEG if _is_non_eeg(plain[name]) else UNKNOWN if name in unknown else LISTED
            reasons[name] = NOT_NEAR if on_cap.get(name, "") is None else by_name
    return Resolution(kept, reasons, [note] if opened else [])


def _without_second(plain: Mapping[str, str], bipolar: str | None) -> tuple[dict[str, str], str]:
    """Return the first electrode of the channels whose names end with a reference or another electrode, and a note.

    plain: name -> plain name.
    """
    pairs = {name: pair for name, text in plain.items() if (pair := _pair(text))}
    if bipolar == "anode":
        note = "derivations are called after their first electrode (--bipolar anode)"
        return {name: first for name, (first, second) in pairs.items() if _is_place(second)}, note
    behind = _common_reference(plain.values())
    note = f"the common reference behind the names is left out: {_listed(sorted(behind))}"
    return {name: first for name, (first, second) in pairs.items() if second in behind}, note


def _on_cap(names: Collection[str], plain: Mapping[str, str], cap: Cap, where: str) -> dict[str, str | None]:
    """Return the electrodes of the channels that are called like the cap's. Raises InputError if most are not."""
    on_cap, eeg = {}, [name for name in names if not _is_non_eeg(plain[name])]
    for name in eeg:
        label = plain[name].replace(" ", "")
        for spelt in (label, re.sub(r"(?<!\d)0+(?=\d)", "", label)):  # E001, A01
            if spelt in cap.electrodes:
                on_cap[name] = cap.electrodes[spelt]
    if 2 * len(on_cap) < len(eeg):
        raise InputError(
            f"{where}{len(on_cap)} of {len(eeg)} channels are called as those of the cap {cap.name}: leave --cap "
            "out here, or name another cap"
        )
    return on_cap


def _is_place(second: str) -> bool:
    """True if what stands behind an electrode is another one, or a reference."""
    return any((_known(second), _EARS.fullmatch(second), _NAMED_REFERENCE.fullmatch(second)))


def _doubtful(plain: Mapping[str, str], kept: Iterable[str]) -> list[str]:
    """Return those kept that may be places of a cap or of depth electrodes, with an electrode's name by chance.

    A1 is one where A3, A4, A5 follow, and then so is T1; T3 is one beside T7, which has the same place, and unknown
    names. plain: name -> plain name of all channels, those that are dropped, too.
    """
    numbered = {name: match[1] for name, text in plain.items() if (match := _NUMBERED.fullmatch(text))}
    unknown = Counter(stem for name, stem in numbered.items() if not _known(plain[name]))
    may_be = {stem for name in kept if unknown[stem := numbered.get(name, "")] >= _CONTACTS}
    if may_be or ({"T3", "T7"} <= set(plain.values()) and unknown.total() >= _CONTACTS):
        may_be |= set("ACFOPT")
    return [name for name in kept if numbered.get(name) in may_be]


def _likely_cap(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the cap that these plain names look like the labels of, and a pattern of such labels, or None."""
    names = list(names)
    numbered = [(match[1], int(match[2])) for name in names if (match := _NUMBERED.fullmatch(name))]
    banks = Counter(stem for stem, number in numbered if stem in _BIOSEMI and number <= 32)
    if banks["A"] >= 12:
        last = max(stem for stem, count in banks.items() if count >= 12)
        size = 16 if last == "A" and banks["A"] <= 16 else _BIOSEMI[last]
        is_depth = any("'" in name for name in names) or max(banks) > last  # electrodes of that many contacts
        return (f"biosemi{size}", "[A-H][0-9]+") if banks.total() >= 0.9 * size and not is_depth else None
    net = {number for stem, number in numbered if stem == "E"}
    sizes = [size for size in _GSN if net and size >= max(net)]
    duke = [name for name in names if re.fullmatch(_DUKE, name)]
    if len(duke) >= 12:
        return "waveguard_duke64", _DUKE
    return (f"GSN-HydroCel-{_GSN[sizes[0]]}", "E[0-9]+|VREF") if sizes and len(net) >= sizes[0] // 2 else None


def _faults(kept: Mapping[str, str], unknown: list[str], equal: list[list[str]], doubtful: list[str]) -> str:
    shown = _listed(unknown) if len(unknown) > MOST_SHOWN else "; ".join(map(_nearest, unknown))
    faults = [f"unknown electrode names: {shown}"] if unknown else []
    for names in equal:
        faults.append(f"the channels {' and '.join(map(_shown, names))} are both electrode {kept[names[0]]}")
    if doubtful:
        faults.append(f"{_listed(doubtful)} may be places of a cap or of depth electrodes, as others are")
    return "; ".join(faults)


def _cap_flag(likely: tuple[str, str], plain: Mapping[str, str], unknown: Iterable[str]) -> str:
    others = [name for name in unknown if not re.fullmatch(likely[1], plain[name])]
    drop = f" {_drop_flags(others, [])}" if others else ""
    return f"They look like the labels of a cap: say which one it is with --cap {likely[0]}{drop}"


def _drop_flags(unknown: list[str], others: list[str]) -> str:
    """Return the flags that leave out these channels."""
    too_many = len(unknown) > MOST_SHOWN or any(len(n) > LONGEST_SHOWN or not n.isprintable() for n in unknown)
    listed = others if too_many else unknown + others
    flags = ["--drop", *map(_shown, listed)] if listed else []
    return " ".join([*flags, "--drop_unknown"] if too_many else flags)


def _opened(plain: Mapping[str, str]) -> str:
    """Return how derivations without a row become electrodes, or an empty text if there are none."""
    first = {name: pair[0] for name, text in plain.items() if (pair := _pair(text)) and _is_place(pair[1])}
    if all(_known(plain[name]) for name in first):
        return ""
    electrodes = {name: first.get(name) or _known(text) for name, text in plain.items()}
    unknown = [name for name, electrode in electrodes.items() if not (electrode or _is_non_eeg(plain[name]))]
    seen: dict[str, str] = {}
    again = [name for name, electrode in electrodes.items() if electrode and seen.setdefault(electrode, name) != name]
    drop = _drop_flags(unknown, again)
    return f"name each derivation after its first electrode with --bipolar anode{f' {drop}' if drop else ''}"


def _ways_out(
    plain: Mapping[str, str], kept: Iterable[str], unknown: list[str], again: list[str], bipolar: str | None
) -> str:
    """Return the flags with which a recording is read. again: known ones that are left out with the unknown."""
    ways = [f"leave channels out with {_drop_flags(unknown, again)}"] if set(kept) - set(again) else []
    if not bipolar and (opened := _opened(plain)):
        ways.append(opened)
    else:
        example = json.dumps({(unknown or again)[0][:LONGEST_SHOWN]: "CZ"})
        ways.append(f"say which electrodes they are with --rename MAP.json, a JSON object such as {example}")
    text = ", or ".join(ways)
    return text[0].upper() + text[1:]


def embedding_rows(names: Sequence[str], *, table_rows: int = PUBLISHED_ELECTRODES + 1, where: str = "") -> list[int]:
    """Return `input_chans` for electrodes in this order: `[0, row, row, ...]`, length N + 1, row 0 for CLS.

    table_rows: rows of the model's table, CLS included. Raises InputError for unknown names and names without a row.
    """
    where = f"{where}: " if where else ""
    known = {name: canonical_name(name) for name in names}
    if unknown := [name for name in names if known[name] is None]:
        raise InputError(f"{where}unknown electrode names: {'; '.join(map(_nearest, unknown))}")
    rows = [_ROWS[str(known[name]).upper()] for name in names]
    if beyond := [ELECTRODES[row - 1] for row in rows if row >= table_rows]:
        raise InputError(
            f"{where}the model's table of {table_rows} rows (CLS and {table_rows - 1} electrodes) has no row for "
            f"{', '.join(beyond)}. Train from scratch with --num_electrodes {len(ELECTRODES)}: that grows the table, "
            f"and a checkpoint of {PUBLISHED_ELECTRODES + 1} rows loads with the new rows freshly initialised"
        )
    return [0, *rows]
