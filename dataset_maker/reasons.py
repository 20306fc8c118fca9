"""Why a recording cannot be read, and what MNE warns of, in our own words.

Readers quote headers in their errors and warnings, so none of their texts is printed. Names of channels and of the
files that a header wants are the only texts of a header that are.
"""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import mne

from errors import InputError

EXPORT = "if another program opens it, export it as EDF or FIF"
EPOCHS = "holds {}epochs, not one continuous recording: `make_labelled.py --epochs` makes labelled data of them"
# What MNE's errors say -> our words.
ERRORS = {
    "ALLEEG": "holds several data sets (ALLEEG): save each one by itself in EEGLAB",
    r"Old data format \.dat": "keeps its signal in a .dat of an old EEGLAB: open it there and save it again",
    "Internal Active Shielding": "was recorded with active shielding, so that its EEG needs MaxFilter first",
    "(hour|minute|second) must be in": "states a start time that is none: write 00.00.00 into its bytes 176 to 183",
    "could not read bytes|ended before the end-of-stream|truncated stream": "is cut short: copy or download it again",
}
OUTSIDE = "of its annotations lie outside of its signal"
# What MNE warns of -> our words, "" where it does not matter here or other code says it. Groups are numbers.
WARNINGS = (
    (r"meas(urement)? date|patient information|birth", ""),  # not used
    (r"highpass|lowpass|Online software filter", ""),  # what the amplifier filtered; not used
    (r"head radius|positions? of|montage|coordinates\.xml|naming conventions", ""),  # places are not used
    # Our own checks say it.
    (r"'boundary' events|record length|does not match the file size|likely truncated|mixed sampling", ""),
    (r"Scaling factor will|Physical range|event table offset|number of data bytes|sample count from header", ""),
    (r"Invalid tag|tag directory missing", ""),
    (r"MarkerFile|PNT file|channel type of the following|(invalid value|divide by zero) encountered", ""),
    (r"Limited \d+ annotation", ""),
    (r"No info on DataPoints", "its header does not say how long it is; of a file that is not whole, channels mix"),
    (r"Data file name in EEG\.data", "the .fdt that it names is not there; the one with its own name is read"),
    (r"Omitted (\d+) annotation", "{} " + OUTSIDE),
    (r"names are not unique", "several of its channels share a name and are told apart by numbers: -0, -1, ..."),
    (r"No coordinate information found", "channels without a place count as not EEG, as MNE types them"),
    (r"Unknown types found", "channel types that MNE does not know count as EEG"),
    (r"referenced to the same", "its EEG channels have several references"),
    (r"LOG file exists|decode log", "its event log (.LOG) is not there or not readable, so its events are not known"),
    (r"Sample distance", "the header gives two sampling rates; the one of the sampling interval is used"),
    (r"NEDFversion", "its version of NEDF is none that MNE knows"),
    (r"stim channels are currently|Starstim", "MNE does not read its stimulation channels"),
    (r"acquisition error likely: (\d+) samples", "{} samples of a stretch cannot be read and are 0"),
    (r"^Unit .* not recognized", ""),  # said by our own checks
    (r"PSG sample bug", "it has EGI's PSG sample bug, which MNE corrects"),
)


class NoRecording(InputError):
    """A file that holds no signal, such as a hypnogram. Beside recordings it is passed over."""


@contextmanager
def recording_readable(
    path: Path | str, kind: str = "", seen: Callable[[Path, str], str] = lambda path, kind: ""
) -> Iterator[None]:
    """Turn whatever a reader raises into an InputError that names the file and quotes nothing of it.

    kind: the format, once it is known. seen: says what the bytes of a file of this kind show, if they show anything.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # readers raise anything on broken bytes, from struct.error to ZeroDivisionError
        raise InputError(f"{path}: {_reason(error, kind) or seen(Path(path), kind) or _unknown(error, kind)}") from None


def _reason(error: Exception, kind: str) -> str:
    text = str(error)
    if epochs := re.search(r"number of trials is (\d+)|[Oo]nly continuous files are supported", text):
        return EPOCHS.format(f"{epochs[1]} " if epochs[1] else "")
    if "MATLAB v7.3" in text or "HDF reader for matlab" in text or (kind == "EEGLAB" and "pymatreader" in text):
        return "is a file of MATLAB 7.3: " + needs("pymatreader")
    if package := re.search(r"the module (\w+)\S* is needed", text):  # of other versions of MNE
        return needs(package[1])
    return next((words for pattern, words in ERRORS.items() if re.search(pattern, text)), "")


def _unknown(error: Exception, kind: str) -> str:
    reader = f"{kind}, MNE {mne.__version__}: " if kind else ""
    return f"cannot be read ({reader}{type(error).__name__}): damaged, cut short or written unusually; {EXPORT}"


def needs(package: str) -> str:
    """Say how to get a package that only some formats need."""
    return f"needs the package {package}: pip install {package} (requirements-formats.txt has all such packages)"


def check_package(path: Path, package: str, kind: str) -> None:
    """Raise InputError if a package that a format needs is not installed."""
    if package and find_spec(package) is None:
        raise InputError(f"{path}: {kind} {needs(package)}")


def of_types(types: Iterable[str]) -> str:
    """Say which types of channels a recording without EEG has."""
    counts = ", ".join(f"{count} {kind}" for kind, count in Counter(types).most_common())
    return (
        f"has no channel typed EEG, only {counts}: set the types with MNE (`raw.set_channel_types`) and save it as FIF"
    )


def cut_short(there: float, announced: float) -> str:
    """Say how many seconds are missing."""
    missing = f"{announced - there:g} of {announced:g} s"
    return f"cut short, {missing} that its header announces are missing; the rest is converted"


@contextmanager
def warnings_caught(notes: list[str]) -> Iterator[None]:
    """Catch the warnings of MNE and add to `notes` what they say, in our words; none is lost."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    unknown: Counter[str] = Counter()
    for warning in caught:
        text = str(warning.message)
        match, words = next(
            ((m, words) for pattern, words in WARNINGS if (m := re.search(pattern, text))), (None, None)
        )
        if words is None:
            unknown[warning.category.__name__] += 1
        elif match and words and (sentence := words.format(*match.groups())) not in notes:
            notes.append(sentence)
    texts = [f"MNE warns {count} times of something unknown to us ({name})" for name, count in unknown.items()]
    notes += [text for text in texts if text not in notes]
