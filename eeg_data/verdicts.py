"""Say what is odd about signals that should be EEG in uV: warnings for people, and which recordings are refused.

Works on the scans of `quality`, with NumPy only.
"""

import math
from collections.abc import Mapping

from eeg_data.quality import EDGES, LIKELY, UNUSABLE, Quality, median_of, unlike, with_factor
from errors import InputError, first_few

MANY_INVALID, MANY_FLAT, MANY_SATURATED = 0.01, 0.1, 0.01  # shares of the seconds that are warned about
MOSTLY_FLAT = 0.5  # of one recording, which may pause
USUAL, TYPICAL = (1.0, 200.0), 15.0  # uV: hardly any EEG has a median |uV| outside USUAL
FACTORS = {  # on values -> what they probably are
    "1e6": "volts",
    "1000": "millivolts",
    "1e9": "a billionth of EEG, such as volts in the place of nanovolts",
    "100": "EEG that is divided by 100 already",
    "0.001": "nanovolts",
    "1e-6": "microvolts that were taken for volts",
}
MOVES = 4.0  # EEG moves about so many times its median |uV| in a second; with a constant offset less than half of it


def warnings(quality: Quality, levels: Mapping[str, float | None] | None = None) -> list[str]:
    """Return warnings about signals that should be EEG in uV: full sentences with numbers.

    levels: of the recordings behind it, as for `recording_warnings`.
    """
    texts = scale_warnings(quality, levels or {})
    seconds, invalid = len(quality.valid), int((~quality.valid).sum())
    if invalid > MANY_INVALID * seconds:
        texts.append(f"{invalid} of {seconds} seconds ({invalid / seconds:.1%}) cannot be used ({UNUSABLE}).")
    texts += _often(quality.flat, MANY_FLAT, quality.seconds, "are flat")
    what = "stick to their largest or smallest value"
    return texts + _often(quality.saturated, MANY_SATURATED, quality.seconds, what)


def _often(counts: Mapping[str, int], limit: float, seconds: int, what: str) -> list[str]:
    """Return a warning if electrodes have more bad seconds than this share. counts: electrode -> bad seconds."""
    if not (bad := {name: n for name, n in counts.items() if n > limit * seconds}):
        return []
    return [f"{len(bad)} electrode(s) {what} in more than {limit:.0%} of the seconds: {worst_first(bad, seconds)}."]


def scale_warnings(quality: Quality, levels: Mapping[str, float | None]) -> list[str]:
    """Return those of `warnings` that say something of the amplitudes."""
    return unit_warnings(quality) + electrode_warnings(quality) + recording_warnings(levels)


def electrode_warnings(quality: Quality) -> list[str]:
    """Return a warning if electrodes are on another scale than their fellows."""
    if not (other := quality.other_scale):
        return []
    shares = worst_first(other, quality.seconds)
    return [f"{len(other)} electrode(s) on another scale than the others (unit, gain, or no contact?): {shares}."]


def recording_warnings(levels: Mapping[str, float | None]) -> list[str]:
    """Return a warning if recordings are on another scale than the others. levels: name -> median |uV| (None: none)."""
    known = {name: level for name, level in levels.items() if level}
    if not (other := unlike(known)):
        return []
    worst = sorted(other, key=lambda name: -abs(math.log(other[name])))
    names = first_few([with_factor(name, other[name]) for name in worst])
    return [f"{len(other)} of {len(known)} recordings are on another scale than the others: {names}."]


def unit_warnings(quality: Quality) -> list[str]:
    """Return a warning if the amplitudes say that the unit is not uV, with the factors that would make EEG of them."""
    median, moved, size = _sizes(quality)
    if not median:
        nothing = quality.histogram.any() and quality.valid.any()
        return [f"All values are within {EDGES[0]:g} uV of zero, which no EEG is."] if nothing else []
    if USUAL[0] <= size and median <= USUAL[1]:
        return []
    offset = size < median
    if sum(quality.other_scale.values()) >= quality.seconds:
        shares = worst_first(quality.other_scale, quality.seconds)
        return [f"Electrodes are on different scales, no one factor mends them: {shares}; leave these out (--drop)."]
    found = {
        f"{what} (factor {factor})": abs(math.log10(size * float(factor) / TYPICAL))
        for factor, what in (FACTORS | ({"1": "microvolts"} if offset else {})).items()
        if USUAL[0] <= size * float(factor) <= USUAL[1]
    }
    if size > USUAL[1] or (offset and quality.whole):
        rank = (size <= USUAL[1]) / 2 if quality.whole else 1.0
        found["raw counts (the factor is the microvolts of one count)"] = rank
    likely = sorted(found, key=lambda what: found[what])
    names = " or ".join(likely[:1] + [what for what in likely[1:2] if found[what] <= 1]) or "of no unit that is known"
    if size > USUAL[1]:
        names += ", unless most of it is noise"
    if offset:
        return [
            f"Half of all values are more than {median:.3g} uV from zero, but move only {moved:.3g} uV in a second: "
            "take the constant offset off (a high-pass does, if the recording is longer than its filter); what is left "
            f"are probably {names}."
        ]
    rare = "hardly any" if LIKELY[0] <= median <= LIKELY[1] else "no"
    return [f"Half of all values are within {median:.3g} uV of zero, which {rare} EEG is; they are probably {names}."]


def _sizes(quality: Quality) -> tuple[float, float, float]:
    """Return the median |uV|, the median movement in a second, and the median |uV| without a constant offset."""
    median, moved = quality.median or 0.0, median_of(quality.movement) or 0.0
    return median, moved, moved / MOVES if 0 < 2 * moved < median else median


def judged(quality: Quality, where: str, *, scaled: bool) -> list[str]:
    """Return warnings about a recording that is to be used, which begin with `where`.

    scaled: whether the user has given the factor. Otherwise raises InputError for amplitudes that no EEG in uV has.
    """
    texts, (median, _, size) = [] if scaled else unit_warnings(quality), _sizes(quality)
    if texts and (size < LIKELY[0] or median > LIKELY[1]):
        raise InputError(f"{where}: {texts[0]} --scale FACTOR multiplies the values (1: they are right as they are)")
    named = {name.partition(" (x")[0] for name in quality.other_scale}
    flat = {name: count for name, count in quality.flat.items() if name not in named}
    texts += electrode_warnings(quality) + _often(flat, MOSTLY_FLAT, quality.seconds, "are flat")
    return [f"{where}: {text}" for text in texts]


def worst_first(counts: Mapping[str, int], seconds: int) -> str:
    """Return the electrodes with most bad seconds, and their share. counts: electrode -> bad seconds."""
    worst = sorted(counts, key=lambda name: -counts[name])
    return first_few([f"{name} {counts[name]} s ({counts[name] / seconds:.1%})" for name in worst])
