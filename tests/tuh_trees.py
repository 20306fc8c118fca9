"""Trees like TUAB's and TUEV's, made from the recordings of `shared/eegmat`: 23 channels, extras, faults of each kind.

`TUAB` and `TUEV` say by hand which split, subject and label each recording must get, and why it must be left out.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import mne
import numpy as np

COPIES = {"A1": ("T3", 0.7), "A2": ("T4", 0.7), "T1": ("F7", 1.1), "T2": ("F8", 1.1)}  # what eegmat does not have
ORDER = ["FP1", "FP2", "F3", "F4", "C3", "C4", "P3", "P4", "O1", "O2", "F7", "F8"]
ORDER += ["T3", "T4", "T5", "T6", "A1", "A2", "FZ", "CZ", "PZ", "T1", "T2"]
EXTRAS = ["EEG EKG1-REF", "IBI", "PHOTIC-REF", "EEG 20-REF", "EEG 128-REF", "BURSTS", "SUPPR", "EEG C3P-REF"]
EXTRAS += ["PULSE RATE", "ECG EKG-REF", "RESP ABDOMEN-REF", "EMG-REF", "EEG LOC-REF"]
HEADER, FIELD = 256, 8  # bytes of an EDF header's first part and of a number in it


@dataclass(frozen=True)
class Recording:
    """A file of a tree. path: within it, without suffix; split: None where it must be left out, for `reason`."""

    path: str
    subject: str
    split: str | None
    label: int = 0
    seconds: int = 25
    fault: str = ""
    reason: str = ""
    rows: str | None = None  # of its .rec file; None: it has none
    windows: tuple[tuple[int, int], ...] = ()  # TUEV: first sample at 200 Hz and label of each
    twin: bool = False  # another file has its name: then a digest of the path's end and the subject tells them apart

    @property
    def name(self) -> str:
        """Return the name of its samples in the file that is made."""
        end = "/".join([*Path(f"{self.path}.edf").parts[-3:], self.subject])
        digest = f"-{hashlib.sha256(end.encode()).hexdigest()[:6]}" if self.twin else ""
        return Path(self.path).name.rstrip("_") + digest


CUT = {"fault": "cut", "reason": "cannot be read"}
CHANNELS = {"fault": "channels", "reason": "missing 'EEG T1-REF'; unexpected 'EEG FOO-REF'"}
NAN = {"fault": "nan", "reason": ""}

NORMAL, ABNORMAL = "train/normal/01_tcp_ar", "train/abnormal/01_tcp_ar"
TUAB = [
    Recording(f"{NORMAL}/aaaaaaaa_s001_t000", "aaaaaaaa", "train", 0),
    Recording(f"{NORMAL}/aaaaaaab_s001_t000", "aaaaaaab", None, 0, **CUT),
    Recording(f"{NORMAL}/aaaaaaac_s001_t000", "aaaaaaac", "train", 0, seconds=31),
    Recording(f"{NORMAL}/aaaaaaac_s002_t001", "aaaaaaac", "train", 0, seconds=8),  # too short for a window
    Recording(f"{NORMAL}/aaaaaaad_s001_t000", "aaaaaaad", None, 0, **NAN),
    Recording(f"{NORMAL}/aaaaaaaf_s001_t000", "aaaaaaaf", "val", 0),  # the fifth of five normal subjects
    Recording(f"{ABNORMAL}/aaaaaaae_s001_t000", "aaaaaaae", None, 1, **CHANNELS),
    Recording(f"{ABNORMAL}/aaaaaaaf_s002_t000", "aaaaaaaf", "train", 1),  # the second of three abnormal subjects
    Recording(f"{ABNORMAL}/aaaaaaag_s001_t000", "aaaaaaag", "val", 1),
    Recording("eval/normal/01_tcp_ar/aaaaaaah_s001_t000", "aaaaaaah", "test", 0),
    Recording("eval/abnormal/01_tcp_ar/aaaaaaaa_s009_t000", "aaaaaaaa", "test", 1),  # as in train: kept and reported
    Recording("eval/abnormal/01_tcp_ar/aaaaaaai_s001_t000", "aaaaaaai", "test", 1),
]
TUAB_TWO_SIDES = {"aaaaaaaa": ["test", "train"], "aaaaaaaf": ["train", "val"]}
OLD = "01_tcp_ar/076"
V2_FOLDERS = [  # as version 2 nests, under edf/, and with one name twice
    ("train/normal", "00007671/s003_2012_10_14", "train", 0),
    ("train/normal", "00007672/s001_2010_01_02", "val", 0),
    ("train/abnormal", "00007673/s001_2011_03_04", "train", 1),
    ("train/abnormal", "00007674/s001_2011_03_05", "val", 1),
    ("eval/normal", "00007675/s001_2011_03_06", "test", 0),
    ("eval/abnormal", "00007676/s001_2011_03_07", "test", 1),
    ("eval/abnormal", "00007676/s002_2011_03_08", "test", 1),
]
TUAB_V2 = [
    Recording(f"edf/{part}/{OLD}/{place}/{place[:8]}_t000", place[:8], split, label, 21, twin=place[:8] == "00007676")
    for part, place, split, label in V2_FOLDERS
]

# Rows are given in any order, per channel; blanks and both kinds of line ends occur in copies of the corpus.
REPEATED = "0,10.0000,11.0000,2\n1,10.0000,11.0000,2\n\n2,10.0000,11.0000,3\r\n5,4.3,5.3,6\n"
EDGES = "3,0.5,1.5,5\n3,24.0000,25.0000,6\n"  # of 25 s: the first window begins before, the second ends after it
SPOILT = "4,7.0,9.5,1\n4,24.5,25.5,1\n4,12.003,13.003,4\n"  # two seconds and a half; beyond the end; between samples
AT_REPEATED, AT_EDGES = ((1600, 1), (1600, 1), (1600, 2), (460, 5)), ((-300, 4), (4400, 5))
TUEV = [
    Recording("train/aaaaaaar/aaaaaaar_00000001", "aaaaaaar", "train", rows=REPEATED, windows=AT_REPEATED),
    Recording("train/aaaaaaar/aaaaaaar_00000002", "aaaaaaar", "train", rows=SPOILT, windows=((2001, 3),)),
    Recording("train/aaaaaaas/aaaaaaas_00000001", "aaaaaaas", None, rows=REPEATED, **CUT),
    Recording("train/aaaaaaat/aaaaaaat_00000001", "aaaaaaat", None, rows=REPEATED, **CHANNELS),
    Recording("train/aaaaaaau/aaaaaaau_00000001", "aaaaaaau", None, rows=REPEATED, **NAN),
    Recording("train/aaaaaaav/aaaaaaav_00000001", "aaaaaaav", None, reason=".rec: cannot be read"),
    Recording("train/aaaaaaav/aaaaaaav_00000002", "aaaaaaav", None, rows="1,2.0,3.0,1\n1,2.0,3.0,7\n", reason="line 2"),
    Recording("train/aaaaaaav/aaaaaaav_00000003", "aaaaaaav", "val", rows=EDGES, windows=AT_EDGES),  # the fifth subject
    Recording(
        "eval/000/bckg_000_a_", "000", "test", rows="0,5.0,6.0,6\n1,19.995,20.995,6\n", windows=((600, 5), (3599, 5))
    ),
    Recording("eval/001/spsw_001_a_", "001", "test", seconds=4, rows="0,1.0,2.0,1\n"),  # shorter than a window
]


def tuh_raw(source: Path, recording: Recording, number: int) -> mne.io.BaseRaw:
    """Return a part of an eegmat recording with the channels of a TUH recording, in an order of its own."""
    raw = mne.io.read_raw_edf(source, preload=True, verbose="error")
    raw.crop(number % 7, number % 7 + recording.seconds, include_tmax=False)
    signals = {name.removeprefix("EEG ").upper(): raw.get_data(name)[0] for name in raw.ch_names}
    heart = signals.pop("ECG ECG")
    signals |= {name: signals[like] * factor + 0.1 * heart for name, (like, factor) in COPIES.items()}
    channels = {f"EEG {name}-REF": signals[name] for name in ORDER}
    channels |= {name: heart * (index + 1) / 10 for index, name in enumerate(EXTRAS)}
    if recording.fault == "channels":
        channels["EEG FOO-REF"] = channels.pop("EEG T1-REF")
    names = list(np.random.default_rng(number).permutation(list(channels)))
    info = mne.create_info(names, raw.info["sfreq"], "eeg")
    return mne.io.RawArray(np.stack([channels[name] for name in names]), info, verbose="error")


def spoil(path: Path, fault: str) -> None:
    """Cut an EDF file inside its header, or make the physical maximum of its channel FP1 not a number."""
    content = path.read_bytes()
    if fault == "cut":
        path.write_bytes(content[: HEADER + 1000])
    if fault == "nan":
        signals = int(content[252:256])
        names = [content[HEADER + 16 * index :][:16].decode().strip() for index in range(signals)]
        at = HEADER + signals * (16 + 80 + 8 + 8) + FIELD * names.index("EEG FP1-REF")
        path.write_bytes(content[:at] + b"nan".ljust(FIELD) + content[at + FIELD :])


def build(root: Path, recordings: list[Recording], eegmat: Path) -> Path:
    """Write a tree of recordings, each from another subject of eegmat; returns its root."""
    for number, recording in enumerate(recordings):
        path = root / f"{recording.path}.edf"
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = tuh_raw(eegmat / f"Subject{number:02d}_2.edf", recording, number)
        mne.export.export_raw(path, raw, physical_range="auto", verbose="error")
        spoil(path, recording.fault)
        if recording.rows is not None:
            path.with_suffix(".rec").write_bytes(recording.rows.encode())
    return root


def expected_signal(path: Path) -> np.ndarray:
    """Return a recording (23, time) in uV after the pipeline of SPEC, section 2, by MNE alone."""
    raw = mne.io.read_raw_edf(path, preload=True, verbose="error").pick([f"EEG {name}-REF" for name in ORDER])
    raw.filter(0.1, 75, verbose="error").notch_filter(50, verbose="error").resample(200, verbose="error")
    return raw.get_data() * 1e6
