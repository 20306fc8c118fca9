"""A reader's folder for the tests of documents: a copy of the project, small recordings of noise, tiny checkpoints."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import mne
import torch
from timm.models import create_model

import modeling_pretrain  # noqa: F401 (registers its models)
import modeling_vqnsp  # noqa: F401
from dataset_maker import make_eegmat, tuh
from documents import FOLDERS, ROOT, Reader
from electrodes import ELECTRODES
from run_helpers import labelled_file, noise

SPLITS = {"train": 16, "val": 8, "test": 8}  # samples
MOTOR = [name for name in ELECTRODES[:64] if name not in ("FC5", "FC3", "FC1")]
MOTOR = ["FC5", "FC3", "FC1", *MOTOR]  # begins as the real files of eegmmidb do
STRETCHES = [(2 * i, ("left", "right")[i % 2], split) for i, split in enumerate([*SPLITS] * 4)]  # of FILE.csv
BIOSEMI = [f"{letter}{number}" for letter in "ABCD" for number in range(1, 33)]


def recording(path: Path, seconds: int, names: Sequence[str], *, rate: int = 200, events: int = 0) -> None:
    """Write an EDF file of noise. events: annotations of 4.1 s, every second one T0, the others T1 and T2 in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    eeg = noise((len(names), seconds * rate), seed=sum(path.name.encode()))
    raw = mne.io.RawArray(eeg * 1e-6, mne.create_info(list(names), rate, "eeg"), verbose="error")
    texts = ["T0" if i % 2 == 0 else f"T{1 + i // 2 % 2}" for i in range(events)]
    raw.set_annotations(mne.Annotations([4.1 * i for i in range(events)], 4.1, texts))
    mne.export.export_raw(path, raw, physical_range=(-400, 400), verbose="error")


def recordings(folder: Path) -> None:
    """Write recordings under the names that the documents use, and a manifest."""
    for name in ("S01", "S02"):
        recording(folder / f"recordings/{name}.edf", 34, ("C3", "Cz", "C4", "Pz"), rate=256)
    for subject in (0, 28, 32):
        for part in (1, 2):
            path = folder / f"eegmat/Subject{subject:02d}_{part}.edf"
            recording(path, 11, [f"EEG {name.title()}" for name in make_eegmat.DATA_SET.electrodes])
    for run in ("04", "08", "12"):
        names = [f"{name.title():.<4}" for name in MOTOR]
        recording(folder / f"eegmmidb/S001R{run}.edf", 34, names, rate=160, events=8)
    for number in (1, 2, 3):
        recording(folder / f"walk/S{number:02d}.edf", 6, ("C3", "C4"))
    recording(folder / "biosemi/B01.edf", 6, BIOSEMI)
    rows = [f"recordings/S01.edf,{at},{at + 2},{label},{split},S1" for at, label, split in STRETCHES]
    (folder / "FILE.csv").write_text("\n".join(["path,start,stop,label,split,subject", *rows]))


def trained(folder: Path) -> None:
    """Write tiny checkpoints with random weights, and labelled files of noise."""
    torch.manual_seed(0)
    masked = create_model("labram_tiny_patch200_1600_8k_vocab", vocab_size=16)
    tokenizer = create_model("vqnsp_encoder_tiny_decoder_1x200x4", n_code=16, code_dim=64, EEG_size=1600)
    for name, model in (("labram-base", masked), ("vqnsp", tokenizer)):
        (folder / "checkpoints").mkdir(exist_ok=True)
        torch.save({"model": model.state_dict()}, folder / f"checkpoints/{name}.pth")
    options = {"counts": SPLITS, "electrodes": tuh.ELECTRODES}
    six = ("SPSW", "GPED", "PLED", "EYEM", "ARTF", "BCKG")
    labelled_file(folder / "data/TUAB.hdf5", seconds=1, **options)
    labelled_file(folder / "data/TUEV.hdf5", seconds=1, task="multiclass", classes=six, **options)


def reader(place: Path) -> Reader:
    """Make the folder within `place` and return its reader."""
    folder = place / "LaBraM"
    for name in FOLDERS - {"tests"}:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.py"), *ROOT.glob("*.txt"), ROOT / "Makefile"):
        shutil.copy(path, folder)
    recordings(folder)
    trained(folder)
    return Reader(folder)
