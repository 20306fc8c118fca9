"""Nothing that names a person or a day passes from a recording into any file, report, log, plot or page.

Names, a patient's code, dates and remarks are planted in every text of a header that a format has, in sound recordings
and in broken ones, whose readers' errors quote the header. Then everything that makers, `inspect_data` and a training
run wrote and printed is searched.
"""

import datetime
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import h5py
import mne
import numpy as np
import pytest

from dataset_maker import convert_pickles, inspect_data, make_h5dataset_for_pretrain, make_labelled, make_TUEV, tuh
from maker_helpers import brainvision, edf, eeglab, noise, raw_of, run_maker
from run_helpers import CLASSIFIER, call
from test_make_SEEDV import write_cnt

# Eight letters each: they fit the fields of headers whole.
SURNAME, NAME, STAFF, CLINIC, REMARK, CODE = "Roewolff", "Janelind", "Mabusius", "Zauberbg", "Sturzfal", "MCH23456"
BIRTH, VISIT = datetime.date(1981, 2, 3), datetime.datetime(2019, 3, 4, 10, 11, 12, tzinfo=datetime.timezone.utc)
SPELLINGS = "%Y-%m-%d %Y%m%d %Y/%m/%d %Y.%m.%d %d.%m.%y %d.%m.%Y %d/%m/%y %d/%m/%Y %m/%d/%y %m/%d/%Y %d-%b-%Y"
DATES = [day.strftime(spelling) for day in (BIRTH, VISIT) for spelling in (*SPELLINGS.split(), "%d %b %Y", "%b %d %Y")]
DATES += ["1981, 2, 3", "2019, 3, 4", f"{VISIT.timestamp():.0f}"]
PLANTED = (SURNAME, NAME, STAFF, CLINIC, REMARK, CODE, *DATES)
NEEDLES = {text.lower().encode(code): text for text in PLANTED for code in ("utf-8", "utf-16-le", "utf-16-be")}
HEADER = {"patient": f"{CODE} F 03-FEB-1981 {SURNAME}_{NAME}", "recording": f"Startdate 04-MAR-2019 X {STAFF} X"}
HEADER |= {"date": "04.03.19", "remark": f"{SURNAME}: {REMARK} {CLINIC}"}  # of EDF
QUICK = ("--l_freq", 1)


# Recordings with planted texts, by suffix


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


def vhdr(path: Path, **changes: str) -> Path:
    """Write a BrainVision recording; changes: of the header's values."""
    marks = ["New Segment,,1,1,0,20190304101112000000", f"Comment,{SURNAME} {REMARK},250,1,0", "Stimulus,S  1,300,1,0"]
    comment = f"Patient: {SURNAME}, {NAME}, *03.02.1981\n{CLINIC}, {STAFF}, 04.03.2019\n"
    return brainvision(path, noise(3, 5, 200), step=0.5, marks=marks, comment=comment, **changes)


def set_file(path: Path) -> Path:
    """Write an EEGLAB recording."""
    texts = {"setname": f"{SURNAME} 2019-03-04", "subject": f"{NAME} {SURNAME}", "comments": f"{CLINIC} {REMARK}"}
    return eeglab(path, noise(3, 5, 200), **texts)


def neuroscan(path: Path) -> Path:
    """Write a Neuroscan recording."""
    content = bytearray(write_cnt(path, seconds=3).read_bytes())
    for offset, text in ((21, CODE), (121, f"{SURNAME} {NAME}"), (205, REMARK), (225, "03/04/19")):
        content[offset : offset + 20] = text.encode().ljust(20, b"\0")
    path.write_bytes(content)
    return path


def cut(path: Path, share: float = 0.5) -> None:
    """Cut a recording short."""
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def any_recordings(folder: Path) -> None:
    """Write sound and broken recordings of all formats; readers' errors about the broken ones quote their headers."""
    edf(folder / "a.edf", ["C3", "Cz", "C4"], **HEADER)
    for field in ("records", "duration", "date", "time", "bytes", "signals", "version", "pmin", "dmax"):
        edf(folder / f"broken_{field}.edf", ["C3", "Cz"], **(HEADER | {field: SURNAME}))
    edf(folder / "day.edf", ["C3"], **(HEADER | {"patient": f"{CODE} F 99-FEB-1981 {SURNAME}", "recording": SURNAME}))
    edf(folder / "remark.edf", ["C3"], **(HEADER | {"remark": f"\x14\x15{SURNAME}\x15\xff"}))
    for write, name in ((fif, "b_raw.fif"), (vhdr, "c.vhdr"), (set_file, "d.set"), (neuroscan, "e.cnt")):
        write(folder / name)
        cut(write(folder / f"cut_{name}"), 0.1 if name == "e.cnt" else 0.5)
    for key in ("SamplingInterval", "DataFile", "DataFormat", "NumberOfChannels"):
        vhdr(folder / f"broken_{key}.vhdr", **{key: SURNAME})


# Runs: each has something to leave out, so that its messages are searched, too


def pretraining(source: Path, *words: Any) -> int:
    any_recordings(source)
    flags = ("--drop", "M1", "M2", "VEO", "HEO", *QUICK)
    return run_maker(make_h5dataset_for_pretrain, "--input", source, *flags, *words)


def tuev(source: Path, *words: Any) -> int:
    rows = ["1,1.0,2.0,1\n2,2.5,3.5,6\n", f"{SURNAME},1,2,3\n", "1,1.0,2.0,3\n", "1,0.5,1.5,4\n"]
    for number, text in enumerate(rows):
        folder = source / ("eval" if number == 3 else "train") / f"aaaaaaa{number}"
        edf(folder / "x.edf", [f"EEG {name}-REF" for name in tuh.ELECTRODES], **HEADER)
        (folder / "x.rec").write_text(text)
    return run_maker(make_TUEV, "--root", source, *QUICK, *words)


def labelled(source: Path, *words: Any) -> int:
    any_recordings(source)
    names = ("a.edf", "b_raw.fif", "c.vhdr", "d.set", "cut_d.set", "broken_records.edf")
    rows = [f"{name},{2 * half},{2 * half + 2},{'ab'[half]},train,S" for half in (0, 1) for name in names]
    (source / "m.csv").write_text("\n".join(["path,start,stop,label,split,subject", *rows, "a.edf,4,5,a,val,S"]))
    return run_maker(make_labelled, "--manifest", source / "m.csv", "--window", 1, *QUICK, *words)


def pickles(source: Path, *words: Any) -> int:
    (source / "train").mkdir()
    for number in range(4):
        sample = {"X": noise(23, 10, 200), "y": number % 2, "patient": f"{SURNAME} {NAME}", "date": str(VISIT.date())}
        (source / "train" / f"aaaaaaa{number}_s001_t000_0.pkl").write_bytes(pickle.dumps(sample))
    cut(source / "train" / "aaaaaaa3_s001_t000_0.pkl")
    (source / "train" / "aaaaaaa4_s001_t000_0.pkl").write_bytes(f"cposix\nsystem\n(S'{SURNAME} {NAME}'\ntR.".encode())
    return run_maker(convert_pickles, "--root", source, *words)


MAKERS = {"made": pretraining, "TUEV.hdf5": tuev, "Own.hdf5": labelled, "TUAB.hdf5": pickles}  # by output


# The search


def strings_of(path: Path) -> bytes:
    """Return a file's bytes, and what is packed in them: archives, HDF5 attributes and data sets."""
    parts = [path.name.encode(), path.read_bytes()]
    if zipfile.is_zipfile(path):  # checkpoints, predictions
        with zipfile.ZipFile(path) as archive:
            parts += [archive.read(name) for name in archive.namelist()]
    elif h5py.is_hdf5(path):

        def visit(name: str, item: Any) -> None:
            values = [*item.attrs.values(), *([item[()]] if isinstance(item, h5py.Dataset) else [])]
            arrays = [np.asarray(value) for value in values]
            parts.append(f"{name} {list(item.attrs)}".encode())
            parts.extend(str(a.tolist()).encode() if a.dtype.kind in "OU" else a.tobytes() for a in arrays)

        with h5py.File(path, locking=False) as file:
            visit("/", file)
            file.visititems(visit)
    return b"\n".join(parts).lower()


def traces(folder: Path) -> dict[str, set[str]]:
    """Return the planted texts that files below a folder hold, in any case and encoding."""
    held = {path: strings_of(path) for path in folder.rglob("*") if path.is_file()}
    found = {str(path): {text for needle, text in NEEDLES.items() if needle in held[path]} for path in held}
    return {path: texts for path, texts in found.items() if texts}


@pytest.mark.parametrize("output", MAKERS)
def test_nothing_that_names_a_person_or_a_day_passes_on(
    output: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    assert MAKERS[output](source, "--output", out / output) == 1
    report = json.loads((out / f"{output.removesuffix('.hdf5')}.report.json").read_text())
    assert report["converted"] and report["left_out"]
    planted = set().union(*traces(source).values())
    assert {SURNAME, NAME} <= planted
    if output == "made":
        assert planted >= {STAFF, CLINIC, REMARK, CODE, "03-Feb-1981", "04.03.19", "20190304", "03/04/19"}
    if output in ("made", "Own.hdf5"):
        assert run_maker(inspect_data, out / output, "--plot", out / "all.png") == 0
    if output == "Own.hdf5":
        words = ("--dataset", out / output, "--output_dir", out / "run", "--log_dir", out / "log")
        assert call("run_class_finetuning", *CLASSIFIER, *words) == 0
    (out / "printed.txt").write_text("".join(capfd.readouterr()))
    assert not traces(out)


def test_the_search_looks_into_packed_files(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        text = np.frombuffer((SURNAME * 100).encode("utf-16-le"), dtype=np.uint8)
        file.create_dataset("x", data=text, chunks=text.shape, compression="gzip").attrs["note"] = f"born {BIRTH}"
        file["y"] = np.array([STAFF], dtype=object)
    np.savez_compressed(tmp_path / "b.npz", note=[NAME.upper().encode() * 20])
    found = {Path(path).name: texts for path, texts in traces(tmp_path).items()}
    assert found == {"a.hdf5": {SURNAME, STAFF, "1981-02-03"}, "b.npz": {NAME}}
