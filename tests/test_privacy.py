"""Nothing that names a person or a day passes from a recording into any file, report, log, plot or page.

Names, a patient's code, a birth date, recording dates and remarks are planted in recordings of every format, sound and
broken ones, whose readers' errors quote the header; all makers, `inspect` and a training run on them; then everything
that they wrote and printed is searched.
"""

import contextlib
import datetime
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import mne
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from scipy.io import savemat

import mutants
from dataset_maker import (
    convert_pickles,
    inspect_data,
    make_h5dataset_for_pretrain,
    make_labelled,
    make_SEEDV,
    make_TUEV,
    tuh,
)
from demo import make_eeghdf
from maker_helpers import eeghdf_file, noise, raw_of, run_maker
from run_helpers import CLASSIFIER, call
from test_make_SEEDV import CLIPS, write_cnt

# Eight letters each: they fit the fields of headers whole.
SURNAME, NAME, STAFF, CLINIC, REMARK, CODE = "Roewolff", "Janelind", "Mabusius", "Zauberbg", "Sturzfal", "MCH23456"
BIRTH, VISIT = datetime.date(1981, 2, 3), datetime.datetime(2019, 3, 4, 10, 11, 12, tzinfo=datetime.timezone.utc)
SPELLINGS = "%Y-%m-%d %Y%m%d %Y/%m/%d %Y_%m_%d %Y.%m.%d %d.%m.%y %d.%m.%Y %d/%m/%y %d/%m/%Y %m/%d/%y %m/%d/%Y %d-%b-%Y"
DATES = [day.strftime(spelling) for day in (BIRTH, VISIT) for spelling in (*SPELLINGS.split(), "%d %b %Y", "%b %d %Y")]
DATES += ["1981, 2, 3", "2019, 3, 4", f"{VISIT.timestamp():.0f}"]
PLANTED = (SURNAME, NAME, STAFF, CLINIC, REMARK, CODE, *DATES)
ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be")
NEEDLES = {text.lower().encode(encoding): text for text in PLANTED for encoding in ENCODINGS}
TUH = [f"EEG {name}-REF" for name in tuh.ELECTRODES]
QUICK = ("--l_freq", 1)


# Recordings with planted texts


def edf(path: Path, labels: Sequence[str] = ("C3", "Cz", "C4"), *, seconds: int = 5, **texts: str) -> Path:
    """Write an EDF+ recording; texts: further fields of its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    planted = {"patient": f"{CODE} F 03-FEB-1981 {SURNAME}_{NAME}", "recording": f"Startdate 04-MAR-2019 X {STAFF} X"}
    planted |= {"date": "04.03.19", "remark": f"{SURNAME}: {REMARK}"}
    random = np.random.default_rng(len(str(path)))
    path.write_bytes(mutants.edf(random, labels, seconds=seconds, **(planted | texts)))
    return path


def fif(path: Path) -> Path:
    """Write a FIF recording with everything about a person that MNE can write."""
    raw = raw_of(["C3", "CZ", "C4"], 200, noise(3, 5, 200))
    raw.info["subject_info"] = {"his_id": CODE, "last_name": SURNAME, "first_name": NAME, "birthday": BIRTH}
    with raw.info._unlock():
        raw.info.update(experimenter=STAFF, description=f"{CLINIC} {BIRTH}", proj_name=REMARK)
    raw.set_meas_date(VISIT)
    raw.set_annotations(mne.Annotations([1.0], [1.0], [f"{SURNAME} {REMARK}"], orig_time=VISIT))
    raw.save(path, fmt="single", verbose="error")
    return path


def brainvision(path: Path, **changes: str) -> Path:
    """Write a BrainVision recording: header, markers, samples; changes: of the header's values."""
    values = {"DataFile": f"{path.stem}.eeg", "MarkerFile": f"{path.stem}.vmrk", "DataFormat": "BINARY"}
    values |= {"DataOrientation": "MULTIPLEXED", "NumberOfChannels": "3", "SamplingInterval": "5000"} | changes
    common = "".join(f"{key}={value}\n" for key, value in values.items())
    channels = "".join(f"Ch{number}={name},,0.5,µV\n" for number, name in enumerate(("C3", "Cz", "C4"), start=1))
    path.write_text(
        f"Brain Vision Data Exchange Header File Version 1.0\n[Common Infos]\n{common}[Binary Infos]\n"
        f"BinaryFormat=INT_16\n[Channel Infos]\n{channels}[Comment]\nPatient: {SURNAME}, {NAME}, *03.02.1981\n"
        f"{CLINIC}, {STAFF}, 04.03.2019\n",
        encoding="utf-8",
    )
    path.with_suffix(".vmrk").write_text(
        f"Brain Vision Data Exchange Marker File, Version 1.0\n[Common Infos]\nDataFile={path.stem}.eeg\n"
        "[Marker Infos]\nMk1=New Segment,,1,1,0,20190304101112000000\n"
        f"Mk2=Comment,{SURNAME} {REMARK},250,1,0\nMk3=Stimulus,S  1,300,1,0\n",
        encoding="utf-8",
    )
    path.with_suffix(".eeg").write_bytes((noise(3, 5, 200).T * 2).astype("<i2").tobytes())
    return path


def eeglab(path: Path) -> Path:
    """Write an EEGLAB recording."""
    empty = dict.fromkeys(("event", "epoch", "icawinv", "icaweights", "icasphere", "icachansind"), np.array([]))
    places = np.array([(name,) for name in ("C3", "CZ", "C4")], dtype=[("labels", "O")])
    fields = {"setname": f"{SURNAME} 2019-03-04", "subject": f"{NAME} {SURNAME}", "comments": f"{CLINIC} {REMARK}"}
    fields |= {"nbchan": 3, "pnts": 1000, "trials": 1, "srate": 200.0, "xmin": 0.0, "chanlocs": places}
    savemat(path, {"EEG": fields | empty | {"data": noise(3, 5, 200)}})
    return path


def neuroscan(path: Path, **options: Any) -> Path:
    """Write a Neuroscan recording."""
    write_cnt(path, **options)
    content = bytearray(path.read_bytes())
    for offset, text in ((21, CODE), (121, f"{SURNAME} {NAME}"), (205, REMARK), (225, "03/04/19")):
        width = 10 if offset == 225 else 20
        content[offset : offset + width] = text.encode().ljust(width, b"\0")
    path.write_bytes(content)
    return path


def eeghdf(path: Path) -> Path:
    """Write an eeghdf recording."""
    eeghdf_file(path)
    with h5py.File(path, "r+") as file:
        file["patient"].attrs.update(patient_name=f"{SURNAME}, {NAME}", birthdate=str(BIRTH), patientcode=CODE)
        file["record-0"].attrs.update(start_isodatetime=VISIT.isoformat(), technician=STAFF)
        file["record-0"]["edf_annotations/texts"] = np.array([f"{SURNAME} {REMARK}".encode()], dtype=object)
    return path


def cut(path: Path, share: float) -> None:
    """Cut a recording short."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def any_recordings(folder: Path) -> None:
    """Write sound and broken recordings of all formats; errors about the broken ones quote their headers."""
    folder.mkdir(parents=True)
    edf(folder / "a.edf")
    broken = [{"records": SURNAME}, {"duration": NAME}, {"date": SURNAME}, {"bytes": NAME}, {"signals": "Roew"}]
    broken += [{"patient": f"{CODE} F 99-FEB-1981 {SURNAME}"}, {"recording": f"Startdate {SURNAME} X X X"}]
    broken += [{"time": SURNAME}, {"remark": f"\x14\x15{SURNAME}\x15\xff"}, {"version": STAFF}]
    for number, texts in enumerate(broken):
        edf(folder / f"broken{number}.edf", **texts)
    edf(folder / "unknown.edf", ["C3", "NOSE"])
    cut(edf(folder / "short.edf"), 0.6)
    cut(edf(folder / "header.edf"), 0.05)
    cut(fif(fif(folder / "b_raw.fif").with_name("cut_raw.fif")), 0.5)
    brainvision(folder / "c.vhdr")
    wrong = {"SamplingInterval": SURNAME, "DataFile": f"{SURNAME}.eeg", "DataFormat": NAME, "NumberOfChannels": NAME}
    for number, (key, value) in enumerate(wrong.items()):
        brainvision(folder / f"c{number}.vhdr", **{key: value})
    eeglab(folder / "d.set")
    cut(eeglab(folder / "cut.set"), 0.5)
    neuroscan(folder / "e.cnt", seconds=3)
    cut(neuroscan(folder / "cut.cnt", seconds=3), 0.1)


# Runs


def ran(folder: Path, maker: Any, *words: Any) -> int:
    """Run a maker, keep what it prints in its output's folder; returns the exit code."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = run_maker(maker, *words)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "printed.txt").write_text(printed.getvalue(), encoding="utf-8")
    return code


def pretraining(source: Path, out: Path) -> int:
    any_recordings(source)
    words = ("--drop", "M1", "M2", "VEO", "HEO", *QUICK)
    code = ran(out, make_h5dataset_for_pretrain, "--input", source, "--output", out / "made", *words)
    report = json.loads((out / "made.report.json").read_text())
    assert report["converted"] >= 6 and len(report["left_out"]) >= 8, report
    return code


def from_eeghdf(source: Path, out: Path) -> int:
    source.mkdir()
    eeghdf(source / "a.eeg.h5")
    with h5py.File(eeghdf(source / "b.eeg.h5"), "r+") as file:
        del file["record-0/signals"]
    return ran(out, make_eeghdf, "--input", source, "--output", out / "made", *QUICK)


def tuev(source: Path, out: Path) -> int:
    rows = ["1,1.0,2.0,1\n2,2.5,3.5,6\n", "1,1.0,2.0,2\n", f"{SURNAME},1,2,3\n", "1,1.0,2.0,3\n", "1,0.5,1.5,4\n"]
    for number, text in enumerate(rows):
        part = "eval" if number == 4 else "train"
        path = edf(source / part / f"aaaaaaa{number}" / f"aaaaaaa{number}_00000001.edf", TUH, seconds=6)
        path.with_suffix(".rec").write_text(text)
    edf(source / "train" / "aaaaaaa0" / "aaaaaaa0_00000002.edf", TUH, duration=NAME)
    return ran(out, make_TUEV, "--root", source, "--output", out / "TUEV.hdf5", *QUICK)


def seed_v(source: Path, out: Path) -> int:
    neuroscan(source / "1_1_20190304.cnt", seconds=17)
    cut(neuroscan(source / "1_2_20190304.cnt", seconds=3), 0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_SEEDV, "load_clips", lambda: CLIPS)
        code = ran(out, make_SEEDV, "--root", source, "--output", out / "SEED-V.hdf5", *QUICK)
    printed, report = out / "printed.txt", out / "SEED-V.report.json"
    for path in (printed, report):  # a file that was left out is named by its path, which is the user's own
        path.write_text(path.read_text().replace("1_2_20190304.cnt", "its path"))
    return code


def labelled(source: Path, out: Path) -> int:
    any_recordings(source)
    rows = [f"{name},{2 * half},{2 * half + 2},{['rest', 'task'][half]}" for half in (0, 1) for name in RECORDINGS]
    splits = [("train", "val", "test", "train", "val")[number % 5] for number in range(len(rows))]
    lines = [f"{row},{split},S{split}" for row, split in zip(rows, splits, strict=True)]
    (source / "m.csv").write_text("path,start,stop,label,split,subject\n" + "\n".join(lines))
    words = ("--manifest", source / "m.csv", "--output", out / "Own.hdf5", "--window", 1, *QUICK)
    code = ran(out, make_labelled, *words)
    with h5py.File(out / "Own.hdf5") as file:
        assert set(file) == {"train", "val", "test"}
    return code


RECORDINGS = ("a.edf", "b_raw.fif", "c.vhdr", "d.set", "short.edf", "broken0.edf", "c0.vhdr")


def pickles(source: Path, out: Path) -> int:
    random = np.random.default_rng(0)
    for number, folder in enumerate(("train", "train", "train", "train", "val", "test")):
        sample = {"X": 20 * random.standard_normal((23, 2000)), "y": number % 2}
        sample |= {"patient": f"{SURNAME} {NAME}", "date": str(VISIT.date())}
        path = source / folder / f"aaaaaaa{number}_s001_t000_0.pkl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(sample))
    cut(source / "train" / "aaaaaaa3_s001_t000_0.pkl", 0.5)
    (source / "train" / "aaaaaaa2_s001_t000_0.pkl").write_bytes(f"cposix\nsystem\n(S'{SURNAME} {NAME}'\ntR.".encode())
    return ran(out, convert_pickles, "--root", source, "--output", out / "TUAB.hdf5")


MAKERS: dict[str, Callable[[Path, Path], int]] = {
    run.__name__: run for run in (pretraining, from_eeghdf, tuev, seed_v, labelled, pickles)
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run everything; a folder `sources` and a folder `out` with a folder for each."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "sources").mkdir()
    for name, run in MAKERS.items():
        # Each has something to leave out, so that its messages are searched, too.
        assert run(folder / "sources" / name, folder / "out" / name) == 1, name
    made = [folder / "out" / "pretraining" / "made", folder / "out" / "labelled" / "Own.hdf5"]
    out = folder / "out" / "inspect"
    assert ran(out, inspect_data, *made, "--json", out / "all.json", "--plot", out / "all.png") == 0
    out = folder / "out" / "finetuning"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        words = ("--dataset", made[1], "--output_dir", out / "run", "--log_dir", out / "log")
        assert call("run_class_finetuning", *CLASSIFIER, *words) == 0, printed.getvalue()
    (out / "printed.txt").write_text(printed.getvalue())
    return folder


# The search


def inside_hdf5(path: Path) -> Iterator[bytes]:
    """Yield names, attributes and unpacked data sets."""

    def plain(value: Any) -> bytes:
        array = np.asarray(value)
        return "\n".join(map(str, array.ravel())).encode() if array.dtype.kind in "OU" else array.tobytes()

    found: list[bytes] = []

    def visit(name: str, item: Any) -> None:
        found.append(name.encode())
        for key, value in item.attrs.items():
            found.extend((key.encode(), plain(value)))
        if isinstance(item, h5py.Dataset):
            found.append(plain(item.asstr()[()] if h5py.check_string_dtype(item.dtype) else item[()]))

    with h5py.File(path, locking=False) as file:
        visit("/", file)
        file.visititems(visit)
    yield from found


def contents(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes, and what is packed in them."""
    if zipfile.is_zipfile(path):  # checkpoints, predictions
        with zipfile.ZipFile(path) as archive:
            yield "\n".join(archive.namelist()).encode()
            yield from (archive.read(name) for name in archive.namelist())
        return
    content = path.read_bytes()
    yield content
    if path.suffix in (".hdf5", ".h5") and h5py.is_hdf5(path):
        yield from inside_hdf5(path)
    elif path.suffix == ".png":
        with Image.open(path) as image:
            yield str(image.info).encode()


def traces(path: Path) -> set[str]:
    """Return the planted texts that a file, or its name, holds in any case and encoding."""
    parts = [path.name.encode(), *contents(path)]
    return {text for part in map(bytes.lower, parts) for needle, text in NEEDLES.items() if needle in part}


def test_the_recordings_hold_what_is_searched_for(world: Path) -> None:
    found = {}
    for name in MAKERS:
        files = [path for path in (world / "sources" / name).rglob("*") if path.is_file()]
        found[name] = set().union(*map(traces, files))
        assert {SURNAME, NAME} <= found[name]
    all_texts = {SURNAME, NAME, STAFF, CLINIC, REMARK, CODE, "03-Feb-1981", "04.03.19", "20190304", "03/04/19"}
    assert found["pretraining"] > all_texts


def test_the_search_looks_into_packed_files(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        text = np.frombuffer((SURNAME * 100).encode("utf-16-le"), dtype=np.uint8)
        file.create_dataset("x", data=text, chunks=text.shape, compression="gzip", shuffle=True)
        file["y"] = np.array([STAFF], dtype=object)
        file["x"].attrs["note"] = f"born {BIRTH}"
    assert traces(tmp_path / "a.hdf5") == {SURNAME, STAFF, "1981-02-03"}
    with zipfile.ZipFile(tmp_path / "c.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", pickle.dumps({"note": NAME.upper() * 20}))
    assert traces(tmp_path / "c.pth") == {NAME}
    note = PngImagePlugin.PngInfo()
    note.add_text("Comment", f"{CLINIC} " * 50, zip=True)
    Image.new("L", (2, 2)).save(tmp_path / "d.png", pnginfo=note)
    assert traces(tmp_path / "d.png") == {CLINIC}


@pytest.mark.parametrize("name", [*MAKERS, "inspect", "finetuning"])
def test_nothing_that_names_a_person_or_a_day_passes_on(world: Path, name: str) -> None:
    files = [path for path in (world / "out" / name).rglob("*") if path.is_file()]
    assert len(files) >= 3, files
    assert not {str(path): found for path in files if (found := traces(path))}
