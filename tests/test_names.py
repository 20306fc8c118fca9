"""Names of real recordings: what becomes an electrode, what is refused, and that the proposed flags read the file."""

import argparse
import json
import shlex
from pathlib import Path

import mne
import numpy as np
import pytest

from dataset_maker import make_h5dataset_for_pretrain, make_labelled
from dataset_maker.caps import find_cap
from dataset_maker.pipeline import Pipeline, add_name_arguments, build_pipeline, electrodes_of
from electrodes import ELECTRODES, LISTED, NOT_NEAR, UNKNOWN, resolve
from errors import InputError, UsageError
from inference.recordings import Options, of_raw
from maker_helpers import noise, opened, raw_of, run_maker, save

BIOSEMI_128 = [f"{bank}{number}" for bank in "ABCD" for number in range(1, 33)]
GSN_129 = [f"E{number}" for number in range(1, 130)]
CHB_MIT = [  # MNE numbers the two T8-P8
    *("FP1-F7", "F7-T7", "T7-P7", "P7-O1", "FP1-F3", "F3-C3", "C3-P3", "P3-O1", "FP2-F4", "F4-C4", "C4-P4", "P4-O2"),
    *("FP2-F8", "F8-T8", "T8-P8-0", "P8-O2", "FZ-CZ", "CZ-PZ", "P7-T7", "T7-FT9", "FT9-FT10", "FT10-T8", "T8-P8-1"),
]
SLEEP_EDF = ["EEG Fpz-Cz", "EEG Pz-Oz", "EOG horizontal", "Resp oro-nasal", "EMG submental", "Temp rectal"]
SPLIT_OF = {"a": "train", "b": "train", "c": "val", "d": "test"}  # recording -> split
DEPTH = [f"{shaft}{number}" for shaft in "ACT" for number in range(1, 11)]


@pytest.mark.parametrize(
    ("names", "electrodes"),
    [
        (["EEG FP1-REF", "EEG T3-REF", "EEG EKG1-REF"], "FP1 T3"),  # TUH
        (["Fc5.", "C3..", "Cpz."], "FC5 C3 CPZ"),  # PhysioNet eegmmidb
        (["EEG Fp1", "EEG Cz", "EKG EKG", "SPO2", "HR", "MK"], "FP1 CZ"),  # Siena
        (["EEG Fp2-Ref", "POL T1", "POL E", "POL X1", "POL $A1", "POL DC01"], "FP2 T1"),  # Nihon Kohden as EDF
        (["Fp2", "E", "$A2"], "FP2"),  # Nihon Kohden
        (["EEG-Fz", "EEG-C3", "EOG-left"], "FZ C3"),  # BCI Competition IV 2a
        (["EEG.AF3", "T7", "CQ_AF3", "COUNTER", "GYROX"], "AF3 T7"),  # Emotiv
        (["TP9", "AF7", "Right AUX"], "TP9 AF7"),  # Muse
        (["CP 6", "PO 10\0\0", "  Fp 1 "], "CP6 PO10 FP1"),  # blanks inside, NUL behind
        (["Fp1", "Fz", *(f"BIP{number}" for number in range(1, 25)), "EXG1", "acc3"], "FP1 FZ"),  # ANT, BioSemi
        (["EEG C3-CLE", "EEG C4-CLE", "EMG Chin1"], "C3 C4"),  # MASS
        (["EEG C3-LER"], "C3"),  # MASS
        (["EEG Fp1-Pz", "EEG F3-Pz", "EEG Cz-Pz", "EEG X1:ECG-Pz", "CM-Pz"], "FP1 F3 CZ"),  # DSI
        (["Fp1-CPz", "Fz-CPz", "O2-CPz"], "FP1 FZ O2"),  # one reference
        (["Fp1-CPz", "Fz-CPz", "O2-CPz", "CPz", "M1"], "FP1 FZ O2 CPZ M1"),  # the reference itself, an ear
        (["FP1-CS2", "C3-CS2", "O1-CS2"], "FP1 C3 O1"),  # CHB-MIT, patients with a reference
        (["Fp1-Ref1", "Fp2-Ref1"], "FP1 FP2"),  # a word for a reference
        (["F3-A2", "C4-A1", "ROC-A1", "LOC-A2"], "F3 C4"),  # ISRUC: each against the ear across
        (["F4-M1", "C3-M2", "E1-M2", "E2-M1", "Chin1-Chin2"], "F4 C3"),  # AASM
        (["C3-M2"], "C3"),  # one channel against an ear
        (["F3_M2", "C3_M2", "O1_M2", "F4_M1", "LOC"], "F3 C3 O1 F4"),  # WSC
        (["EEG_Fp1", "EEG_Cz_REF", "POL CO2Wave"], "FP1 CZ"),
        (["C3A2", "C4:A1", "O1-(A1+A2)/2"], "C3 C4 O1"),  # other ways to write it
        (["FP1-F7", "F7-T7", "T8-P8"], "FP1-F7 F7-T7 T8-P8"),  # derivations with a row stay what they are
        (["EEG F7-T3", "EEG T3-T5", "EEG T5-O1", "EEG T4 - T6"], "F7-T7 T7-P7 P7-O1 T8-P8"),  # older spellings
        (["FP1-F7", "--0", "--1"], "FP1-F7"),  # CHB-MIT calls places without a channel `-`
    ],
)
def test_names_of_real_recordings_resolve(names: list[str], electrodes: str) -> None:
    assert list(resolve(names).kept.values()) == electrodes.split()


@pytest.mark.parametrize(
    "names",
    [
        ["C3-4", "CZ"],  # C3 against C4
        SLEEP_EDF,  # derivations, not two electrodes
        ["F3-Cz", "P3-Cz"],  # two may be derivations with an end in common
        ["F3-Cz", "P3-Cz", "O1-Cz", "C3"],  # C3 has not got the reference
        ["F3-M2", "C3-Pz"],  # an ear and another one
        ["C3-0", "C3-1", "CZ"],  # one name twice, numbered by MNE
        ["C3", "C3-1"],  # no number of MNE's: that begins at 0
        CHB_MIT,
        ["EEG", "EEG(sec)"],  # SHHS
        BIOSEMI_128,
        GSN_129,
        DEPTH,
    ],
)
def test_names_that_do_not_say_which_electrode_it_is_are_refused(names: list[str]) -> None:
    with pytest.raises(InputError):
        resolve(names)


def test_what_was_done_to_names_is_noted() -> None:
    assert "'CPZ'" in "".join(resolve(["Fp1-CPz", "Fz-CPz", "O2-CPz"]).notes)
    assert "'M1', 'M2'" in "".join(resolve(["F4-M1", "C3-M2"]).notes)
    assert "anode" in "".join(resolve(SLEEP_EDF, bipolar="anode").notes)
    assert resolve(["EEG Fp1-REF", "CZ"]).notes == []


def proposed(message: str) -> list[Pipeline]:
    """Return what each way out of a message sets, apart from --rename."""
    parser = argparse.ArgumentParser()
    add_name_arguments(parser)
    ways = [way[way.index("--") :] for way in message.rpartition(". ")[2].split(", or ") if "--rename" not in way]
    return [build_pipeline(parser.parse_args(shlex.split(way))) for way in ways]


@pytest.mark.parametrize(
    ("names", "proposals"),
    [
        (SLEEP_EDF, 1),
        (CHB_MIT, 2),
        (["C3-0", "C3-1", "CZ"], 1),
        (["CZ", *(f"sensor {number}" for number in range(30))], 1),
        (["CZ", "sensor 1", "sensor's 2"], 1),
        (["POL Fz", "POL Cz", *DEPTH], 1),
        ([*BIOSEMI_128, "EXG1", "sensor 1", "Status"], 1),
        ([f"{bank}{number}" for bank in "AB" for number in range(1, 33)], 1),
        ([*GSN_129, "ECG"], 1),
        ([f"{row}{side}" for row in range(1, 8) for side in ("Z", "L", "R")], 1),  # ANT's duke
        (["EEG", "EEG(sec)"], 0),  # only --rename
        (DEPTH, 0),
        ([*(f"{shaft}{number}" for shaft in "LT" for number in range(1, 11))], 0),
    ],
)
def test_every_flag_that_a_message_proposes_reads_the_recording(names: list[str], proposals: int) -> None:
    with pytest.raises(InputError) as error:
        resolve(names)
    pipelines = proposed(str(error.value))
    assert len(pipelines) == proposals
    for pipeline in pipelines:
        assert electrodes_of(names, pipeline, "").kept
    assert proposals or "--rename" in str(error.value)


@pytest.mark.parametrize("shafts", [{"A": 10, "A'": 10, "B": 9}, {"A": 15, "B": 8}, {"A": 16, "B": 16, "D": 30}])
def test_shafts_of_depth_electrodes_are_no_cap(shafts: dict[str, int]) -> None:
    with pytest.raises(InputError) as error:
        resolve(names := ["Fz", *(f"{shaft}{number + 1}" for shaft, last in shafts.items() for number in range(last))])
    (pipeline,) = proposed(str(error.value))
    assert [*electrodes_of(names, pipeline, "").kept] == ["Fz"]


@pytest.mark.parametrize("names", [[*BIOSEMI_128, "Fz"], ["Fz", *DEPTH]])
def test_unknown_names_are_not_dropped_where_known_ones_beside_them_are_other_places(names: list[str]) -> None:
    """A1 beside A3 to A32 is no ear."""
    with pytest.raises(InputError, match="'A1'"):
        resolve(names, drop_unknown=True)
    with pytest.raises(InputError, match="'A1'"):
        resolve(names, drop=[name for name in names if name not in ("A1", "Fz")])
    assert resolve(names, rename={"A1": "CZ"}, drop=["[B-D]*", "T*", "A[!1]*", "A1?"]).kept["A1"] == "CZ"


def test_unknown_names_are_left_out_on_demand_and_named() -> None:
    resolution = resolve(["CZ", "sensor 1", "ECG", "FZ-CZ"], drop_unknown=True)
    assert resolution.kept == {"CZ": "CZ"}
    assert {name for name, reason in resolution.reasons.items() if reason == UNKNOWN} == {"sensor 1", "FZ-CZ"}


@pytest.mark.parametrize(
    ("pattern", "dropped"),
    [
        ("exg*", ["EXG 1"]),
        ("o?", ["EEG O1-REF", "EEG O2-REF"]),  # of the plain names
        ("*-ref", ["EEG Fp1-REF", "EEG O1-REF", "EEG O2-REF"]),  # of the file's, where no plain one is like that
        ("e*", ["EXG 1"]),  # not everything that begins with EEG
        ("x[1]", ["x[1]"]),  # the name itself
        ("FP1", ["EEG Fp1-REF"]),
    ],
)
def test_drop_takes_patterns(pattern: str, dropped: list[str]) -> None:
    names = ["EEG Fp1-REF", "EEG O1-REF", "EEG O2-REF", "EXG 1", "x[1]", "CZ"]
    resolution = resolve(names, drop=[pattern], drop_unknown=True)
    reasons = resolution.reasons | {"EXG 1": LISTED if "EXG 1" in dropped else ""}  # is left out by its name, too
    assert [name for name in names if reasons.get(name) == LISTED] == dropped


def test_drop_knows_an_electrode_before_its_reference() -> None:
    assert list(resolve(["Fp1-CPz", "Fz-CPz", "O2-CPz"], drop=["Fz"]).kept.values()) == ["FP1", "O2"]
    assert list(resolve(["FP1-F7", "F7-T7"], drop=["FP1"]).kept.values()) == ["FP1-F7", "F7-T7"]


def test_caps_give_each_place_its_nearest_electrode_once() -> None:
    """BioSemi's own table of places: angles from the vertex and round it. A1 is the vertex, A23 at the back."""
    electrodes = find_cap("biosemi128").electrodes
    by_table = {"A1": "CZ", "A19": "PZ", "A23": "OZ", "C21": "FZ", "B22": "C4", "D19": "C3", "D23": "T7", "B26": "T8"}
    assert {label: electrodes[label] for label in by_table} == by_table
    used = [electrode for electrode in electrodes.values() if electrode]
    assert len(used) == len(set(used)) > 60
    resolution = resolve([*BIOSEMI_128, "EXG1", "M1"], cap=find_cap("biosemi128"))
    assert resolution.kept["M1"] == "M1" and resolution.kept["C4"] == "F4"
    assert resolution.reasons["C3"] == NOT_NEAR
    assert resolve(BIOSEMI_128, cap=find_cap("biosemi128"), drop=["CZ"]).reasons["A1"] == LISTED


@pytest.mark.parametrize(
    ("cap", "electrodes"),
    [
        ("biosemi64", {"A1": "FP1", "A32": "CPZ", "B1": "FPZ", "B32": "O2", "Fp1": "FP1"}),  # BioSemi's order
        ("GSN-HydroCel-129", {"E22": "FP1", "E45": "T7", "E70": "O1", "36": "C3", "E011": "FZ"}),  # by custom
        ("waveguard_duke64", {"0Z": "FPZ", "4Z": "CZ", "9Z": "IZ", "3LC": "T7", "3RC": "T8", "1RD": "F10"}),
        ("mgh60", {"EEG 001": "FP1", "EEG001": "FP1"}),
        ("waveguard64", {"Fp1": "FP1", "CP6": "CP6", "T7": "T7"}),
    ],
)
def test_caps_know_their_labels(cap: str, electrodes: dict[str, str]) -> None:
    for name, electrode in electrodes.items():
        assert resolve([name], cap=find_cap(cap)).kept == {name: electrode}


@pytest.mark.parametrize("montage", mne.channels.get_builtin_montages())
def test_every_montage_of_mne_is_a_cap_and_known_names_of_the_10_5_system_stay(montage: str) -> None:
    electrodes = find_cap(montage).electrodes
    assert set(filter(None, electrodes.values())) <= set(ELECTRODES)
    if montage.partition("_")[2] in ("1005", "1010", "1020"):
        assert all(electrodes[name] == name for name in ELECTRODES if name in electrodes)


def test_the_reference_of_a_net_is_no_electrode_as_it_is_a_flat_line() -> None:
    for name in ("E129", "Cz", "VREF"):
        assert name not in resolve(["E22", name], cap=find_cap("GSN-HydroCel-129")).kept


def test_a_cap_is_refused_for_recordings_with_other_names_and_if_nobody_knows_it() -> None:
    with pytest.raises(InputError, match=r"3 of 7 .*biosemi128"):
        resolve(["Fp1", "Fp2", "Fz", "Pz", "A1", "C3", "C4"], cap=find_cap("biosemi128"))  # C3 is elsewhere on that cap
    with pytest.raises(UsageError, match="biosemi64"):
        find_cap("biosemi65")


def test_flags_for_names_reach_makers_and_their_report(tmp_path: Path) -> None:
    names = [*BIOSEMI_128, "EXG1", "sensor 1"]
    eeg = noise(len(names), 6, 200)
    (tmp_path / "in").mkdir()
    raw_of(names, 200, eeg).save(tmp_path / "in" / "a_raw.fif", fmt="double", verbose="error")
    raw_of([f"EEG {name}-CPz" for name in ("Fz", "C3", "Oz", "F 4")], 200, eeg[:4]).save(tmp_path / "b_raw.fif")
    words = ("--l_freq", 0, "--h_freq", 0, "--notch", 0, "--drop_unknown")
    maker = make_h5dataset_for_pretrain
    cap = ("--input", tmp_path / "in", "--output", tmp_path / "cap", "--cap", "biosemi128", "--drop", "a3?")
    assert run_maker(maker, *cap, *words) == 0
    ((made,),) = (recordings.values() for recordings in opened(tmp_path / "cap").values())
    electrodes = list(made.attrs["chOrder"])
    np.testing.assert_allclose(made[electrodes.index("C4")], eeg[names.index("B22")], atol=1e-3)
    report = json.loads((tmp_path / "cap.report.json").read_text())
    assert report["dropped_channels"][UNKNOWN] == {"sensor 1": 1}
    assert set(report["dropped_channels"][LISTED]) == {"A30", "A31", "A32"}
    assert report["made"]["cap"] == "biosemi128"
    assert run_maker(maker, "--input", tmp_path / "b_raw.fif", "--output", tmp_path / "reference", *words) == 0
    assert "'CPZ'" in str(json.loads((tmp_path / "reference.report.json").read_text())["notes"])
    assert run_maker(maker, "--input", tmp_path / "in", "--output", tmp_path / "no", "--cap", "biosemi65") == 2


def test_flags_for_names_reach_inference() -> None:
    raw = raw_of(["EEG Fpz-Cz", "EEG Pz-Oz", "sensor 1"], 200, noise(3, 6, 200))
    windows = of_raw(raw, Options(Pipeline(bipolar="anode", drop_unknown=True), window=2))
    assert windows.electrodes == ("FPZ", "PZ")


@pytest.mark.parametrize("first", [["CZ", "FZ", "PZ"], ["CZ", "PZ"]])
def test_a_labelled_set_says_which_drop_keeps_all_recordings(
    tmp_path: Path, capsys: pytest.CaptureFixture, first: list[str]
) -> None:
    for name, electrodes in {"a": first, "b": ["CZ", "FZ", "PZ"], "c": ["CZ", "PZ"], "d": ["CZ", "PZ", "OZ"]}.items():
        save(tmp_path / f"{name}_raw.fif", [f"EEG {electrode}-REF" for electrode in electrodes], seconds=36)
    rows = [f"{n}_raw.fif,{at},{at + 18},{at},{split},{n}" for n, split in SPLIT_OF.items() for at in (0, 18)]
    (tmp_path / "m.csv").write_text("\n".join(["path,start,stop,label,split,subject", *rows]))
    words = ("--manifest", tmp_path / "m.csv", "--window", 2, "--notch", 0, "--output")
    assert run_maker(make_labelled, *words, tmp_path / "some.hdf5") == 1
    advice = json.loads((tmp_path / "some.report.json").read_text())["drop_that_keeps_all"]
    assert advice == {"drop": ["FZ", "OZ"], "electrodes": 2, "recordings": 2, "hours": 0.02}
    assert "--drop FZ OZ" in capsys.readouterr().err
    assert run_maker(make_labelled, *words, tmp_path / "all.hdf5", "--drop", *advice["drop"]) == 0
    assert json.loads((tmp_path / "all.report.json").read_text())["converted"] == 4
