"""What the documents tell a reader to do works: commands, Python snippets, files; every flag and file has its name."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import mne
import pytest
import torch
from timm.models import create_model
from torch.distributed.run import get_args_parser

import modeling_pretrain  # noqa: F401 (registers its models)
import modeling_vqnsp  # noqa: F401
from dataset_maker import make_eegmat, tuh
from documents import ITEM, Reader, items
from run_helpers import ROOT, labelled_file, noise

DOCS = ("data", "recordings", "training", "finetuning", "few_subjects", "recipes", "inference", "faq", "tuab_tuev")
RUN = ["README", *(f"docs/{name}" for name in DOCS)]
ALL = [*RUN, "docs/differences", "docs/faq.zh", "benchmarks/README", "reference/README"]
FOLDERS = {path.parent.name for path in ROOT.glob("*/*.py")}  # of the project, not of its user
SPLITS = {"train": 16, "val": 8, "test": 8}  # samples
STRETCHES = [(2 * i, ("left", "right")[i % 2], split) for i, split in enumerate([*SPLITS] * 4)]  # of FILE.csv
BIOSEMI = [f"{letter}{number}" for letter in "ABCD" for number in range(1, 33)]
TESTS = Path(__file__).parent
pytestmark = pytest.mark.timeout(1800)


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
    for subject in (0, 1, 28, 32):
        for part in (1, 2):
            path = folder / f"eegmat/Subject{subject:02d}_{part}.edf"
            recording(path, 11, [f"EEG {name.title()}" for name in make_eegmat.DATA_SET.electrodes])
    for run in ("04", "08", "12"):
        recording(folder / f"eegmmidb/S001R{run}.edf", 34, ("Fc5.", "Fc3.", "Fc1.", "Cz.."), rate=160, events=8)
    for number in (1, 2, 3):
        recording(folder / f"walk/S{number:02d}.edf", 6, ("C3", "C4"))
    recording(folder / "biosemi/B01.edf", 6, BIOSEMI)
    bids(folder / "ds004504")
    (folder / "epochs").mkdir()
    events, info = [(500 * i, 0, i % 2) for i in range(8)], mne.create_info(["C3", "C4"], 200, "eeg")
    for subject in (1, 2, 3):
        trials = mne.EpochsArray(noise((8, 2, 400), seed=subject) * 1e-6, info, events, verbose="error")
        trials.save(folder / f"epochs/sub-{subject}_epo.fif", verbose="error")
    rows = [f"recordings/S01.edf,{at},{at + 2},{label},{split},S1" for at, label, split in STRETCHES]
    (folder / "FILE.csv").write_text("\n".join(["path,start,stop,label,split,subject", *rows]))


def bids(root: Path) -> None:
    """Write a BIDS data set of six subjects."""
    for number, group in enumerate("ACACAC", 1):
        name = f"sub-{number:03d}_task-eyesclosed"
        recording(root / f"sub-{number:03d}/eeg/{name}_eeg.edf", 34, ("C3", "Cz", "C4", "Pz"), rate=256)
        with (root / "participants.tsv").open("a") as file:
            file.write("participant_id\tGroup\n" * (number == 1) + f"sub-{number:03d}\t{group}\n")
        events = root / f"sub-{number:03d}/eeg/{name}_events.tsv"
        events.write_text("onset\tduration\ttrial_type\n1\t2\topen\n5\t2\tclosed\n")
    (root / "dataset_description.json").write_text('{"Name": "dementia", "BIDSVersion": "1.9.0"}')
    (root / "task-eyesclosed_eeg.json").write_text('{"PowerLineFrequency": 50, "EEGReference": "A1-A2"}')


def trained(folder: Path) -> None:
    """Write tiny checkpoints with random weights, and labelled files of noise."""
    torch.manual_seed(0)
    masked = create_model("labram_tiny_patch200_1600_8k_vocab", vocab_size=16)
    tokenizer = create_model("vqnsp_encoder_tiny_decoder_1x200x4", n_code=16, code_dim=64, EEG_size=1600)
    (folder / "checkpoints").mkdir()
    for name, model in (("labram-base", masked), ("vqnsp", tokenizer)):
        torch.save({"model": model.state_dict()}, folder / f"checkpoints/{name}.pth")
    options = {"counts": SPLITS, "electrodes": tuh.ELECTRODES, "seconds": 1}
    six = ("SPSW", "GPED", "PLED", "EYEM", "ARTF", "BCKG")
    labelled_file(folder / "data/TUAB.hdf5", **options)
    labelled_file(folder / "data/TUEV.hdf5", task="multiclass", classes=six, **options)


def read(name: str) -> str:
    return (ROOT / f"{name}.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Return a reader who has read docs/data.md: other documents use what it makes."""
    folder = tmp_path_factory.mktemp("reader") / "LaBraM"
    for name in FOLDERS - {"tests"}:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.py"), *ROOT.glob("*.txt"), ROOT / "Makefile"):
        shutil.copy(path, folder)
    recordings(folder)
    trained(folder)
    someone = Reader(folder)
    wrong = someone.read(read("docs/data"))
    assert not wrong, "\n\n".join(wrong)
    return someone


@pytest.mark.parametrize("name", [name for name in RUN if name != "docs/data"])
def test_what_a_document_says_to_do_works(reader: Reader, name: str) -> None:
    wrong = reader.read(read(name))
    assert not wrong, "\n\n".join(wrong)


def test_what_does_not_work_is_found(reader: Reader) -> None:
    blocks = ["bash\nfor i in 1; do python run_inference.py embed --sead 1; done", "bash\necho loss 1e-3\nmake dema"]
    blocks += ["text\nloss 2.5\nlost 3", "python\nimport mne\n\nmne.nothing()"]
    flag, target, output, snippet = reader.read("".join(f"```{block}\n```\n" for block in blocks))
    assert "line 1: " in flag and "--sead" in flag and "line 4: " in target and "dema" in target
    assert "['lost #']" in output and "line 12: " in snippet and "AttributeError" in snippet


def test_the_chinese_questions_have_the_commands_of_the_english_ones() -> None:
    english, chinese = ([(item.kind, item.text) for item in items(read(f"docs/{n}"))] for n in ("faq", "faq.zh"))
    assert chinese == english


def test_every_row_about_recordings_names_tests_that_exist() -> None:
    named = set(re.findall(r"`(tests/test_\w+\.py)::(\w+)`", read("docs/recordings")))
    assert len(named) > 40
    for path in {path for path, _ in named}:
        functions = set(re.findall(r"^def (test_\w+)\(", (ROOT / path).read_text(), re.MULTILINE))
        assert {test for file, test in named if file == path} <= functions, path


@pytest.mark.parametrize("name", ALL)
def test_every_flag_and_every_file_that_a_document_names_exists(name: str) -> None:
    sources = "".join(path.read_text() for path in (*ROOT.glob("*.py"), *ROOT.glob("*/*.py")) if path.parent != TESTS)
    known = set(re.findall(r'"(?:--)?(?:no_)?([A-Za-z]\w*)"', sources))
    text = read(name)
    codes = [code for code in re.findall(r"`([^`]+)`", ITEM.sub("", text)) if not code.startswith("pip ")]
    flags = {flag for code in codes for flag in re.findall(r"(?<![\w-])--(?:no_)?([A-Za-z][\w-]*)", code)}
    assert not flags - known - set(re.findall(r"--([\w-]+)", get_args_parser().format_help()))
    links = {link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link}
    files = {code for code in codes if re.fullmatch(rf"[\w./*-]+\.(py|md)|({'|'.join(FOLDERS)})/[\w./*-]*", code)}
    places = (ROOT, (ROOT / name).parent)
    named = {file for file in links | files if "NAME" not in file}
    assert not [file for file in named if not any(list(place.glob(file)) for place in places)]
