"""Stand-ins for what a reader of the README has of their own: small recordings, manifests, pickles, checkpoints.

A snippet's reader also has `eeg`, a batch of two windows of the motor imagery recordings (SNIPPETS_BEGIN).
"""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import mne
import numpy as np
import torch
from timm.models import create_model

import modeling_pretrain  # noqa: F401 (registers its models)
from dataset_maker import make_eegmat
from electrodes import ELECTRODES
from run_helpers import labelled_file, noise, pretraining_file
from test_make_SEEDV import write_cnt
from tuh_trees import ORDER

ROOT = Path(__file__).parents[1]
FOUR = ("C3", "Cz", "C4", "Pz")
MOTOR = ELECTRODES[:64]
SPLITS = ("train", "val", "test")
SNIPPETS_BEGIN = "import torch\neeg = torch.randn(2, 64, 800)  # (batch, electrodes, samples), units of 100 uV\n"


def recording(
    path: Path, seconds: int, *, names: Sequence[str] = FOUR, rate: int = 200, marks: Sequence[tuple[float, str]] = ()
) -> None:
    """Write an EDF of noise; marks: onset in s and text of annotations, 4.1 s each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    eeg = noise((len(names), seconds * rate), seed=sum(path.name.encode()))
    raw = mne.io.RawArray(eeg * 1e-6, mne.create_info(list(names), rate, "eeg"), verbose="error")
    raw.set_annotations(mne.Annotations([at for at, _ in marks], 4.1, [text for _, text in marks]))
    mne.export.export_raw(path, raw, physical_range=(-400, 400), verbose="error")


def recordings(folder: Path) -> None:
    """Recordings of any kind, of the task data sets and of walking."""
    for name in ("S01", "S02"):
        recording(folder / "recordings" / f"{name}.edf", 40, rate=256)
    names = [f"EEG {name.title()}" for name in make_eegmat.ELECTRODES]
    for subject in (0, 28, 32):
        for part in (1, 2):
            recording(folder / f"eegmat/Subject{subject:02d}_{part}.edf", 11, names=names)
    for number in (1, 2, 3):
        recording(folder / f"walk/S{number:02d}.edf", 6)
    recording(folder / "mine.edf", 12)
    rows = [
        f"mine.edf,{start},{start + 2},{label},{split},{number}"
        for number, split in enumerate(SPLITS)
        for start, label in ((4 * number, "left"), (4 * number + 2, "right"))
    ]
    (folder / "FILE").write_text("any file")
    (folder / "FILE.csv").write_text("\n".join(["path,start,stop,label,split,subject", *rows]))


def motor_imagery(folder: Path) -> None:
    """Runs 4, 8 and 12 of a subject of eegmmidb: the real ones where they are, else 15 events of rest and 15 fists."""
    real = ROOT.parent / "shared/eegmmidb"
    (folder / "eegmmidb").mkdir()
    for run in ("04", "08", "12"):
        name = f"S001R{run}.edf"
        if (real / name).is_file():
            (folder / "eegmmidb" / name).symlink_to(real / name)
        else:
            marks = [(4.1 * i, "T0" if i % 2 == 0 else f"T{1 + i // 2 % 2}") for i in range(30)]
            recording(folder / "eegmmidb" / name, 125, names=MOTOR, rate=160, marks=marks)


def emotions(folder: Path) -> None:
    """A session of SEED-V whose clips last a second instead of minutes, and the table of clips that says so."""
    table = folder / "dataset_maker/seed_v.json"
    known = json.loads(table.read_text())
    for session in known["sessions"].values():
        session["start"] = list(range(1, 16))
        session["end"] = list(range(2, 17))
    table.write_text(json.dumps(known))
    write_cnt(folder / "SEED-V/EEG_raw/1_1_20180804.cnt")


def pickles(folder: Path) -> None:
    """TUAB as the released maker writes it."""
    random = np.random.default_rng(0)
    for split in SPLITS:
        (folder / "processed" / split).mkdir(parents=True)
        for label in (0, 1):
            for number in range(2):
                sample = {"X": 20 * (1 + label) * random.standard_normal((23, 2000)), "y": label}
                name = f"aaaaaa{split[0]}{label}_s001_t000_{number}.pkl"
                (folder / "processed" / split / name).write_bytes(pickle.dumps(sample))


def made_before(folder: Path) -> None:
    """What the README expects of other commands: a pre-trained model, TUEV, what the demo converts."""
    torch.manual_seed(0)
    model = create_model("labram_base_patch200_1600_8k_vocab", vocab_size=8192)
    (folder / "checkpoints").mkdir()
    torch.save({"model": model.state_dict()}, folder / "checkpoints/labram-base.pth")
    six = ("SPSW", "GPED", "PLED", "EYEM", "ARTF", "BCKG")
    counts = dict.fromkeys(SPLITS, 6)
    labelled_file(folder / "data/TUEV.hdf5", counts=counts, task="multiclass", classes=six, electrodes=ORDER, seconds=5)
    pretraining_file(folder / "demo_run/data/pretrain/eeg.hdf5", seconds=(45, 45))
    counts = {"train": 16, "val": 8, "test": 8}
    labelled_file(folder / "demo_run/data/SCP1.hdf5", counts=counts, classes=("negativity", "positivity"))


def stand_ins(folder: Path) -> None:
    """Put everything into a copy of the project."""
    for make in (recordings, motor_imagery, emotions, pickles, made_before):
        make(folder)
