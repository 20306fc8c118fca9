"""Electrode names: spellings from files, known non-EEG channels, errors that help, rows of the embedding."""

import hashlib

import pytest

from electrodes import ELECTRODES, NOT_EEG, UNKNOWN, canonical_name, embedding_rows, resolve
from errors import InputError


def test_every_name_has_the_row_of_the_published_table() -> None:
    """The digest is of the table as published, names with blanks between: a name's place is its row in the weights."""
    digest = hashlib.sha256(" ".join(ELECTRODES).encode()).hexdigest()
    assert digest == "45d2c340dc8bc7f26ccb9a4c75db2e73a58b96cb4e29773634bdfa05fabd4151"


def test_every_known_name_is_its_own_canonical_name_in_any_case_and_is_eeg() -> None:
    for name in ELECTRODES:
        assert (
            name == canonical_name(name) == canonical_name(name.lower()) == canonical_name(f" EEG {name.upper()}-Ref ")
        )
        assert resolve([name]).kept == {name: name}


def test_spellings_from_files_are_understood() -> None:
    spellings = {
        "Fc5.": "FC5", "C5..": "C5", " eeg fp1-ref": "FP1", "EEG CZ-LE": "CZ", "PZ-AR": "PZ", "O1-avg": "O1",
        "EEG Fpz ": "FPZ", "T3": "T3", "T7": "T7", "ftt9H": "FTT9h", "EEG FP1-F7": "FP1-F7", "T8-P8-1": "T8-P8",
    }  # fmt: skip
    assert {spelling: canonical_name(spelling) for spelling in spellings} == spellings


def test_channels_that_are_no_eeg_by_their_name_are_told_from_unknown_ones() -> None:
    non_eeg = [
        "ECG ECG", "EKG1-REF", "EMG-REF", "EOG left", "VEO", "EEG ROC-REF", "LOC", "RESP1", "RESP ABDOMEN-REF",
        "PHOTIC-REF", "EEG A2-A1", "M2-M1", "IBI", "BURSTS", "SUPPR", "PULSE RATE", "EDF Annotations", "Status",
        "STI 014", "DC1", "EEG Mark1", "Events/Markers", "SpO2", "-", "--3", "", ".",
    ]  # fmt: skip
    unknown = ["EEG 20-REF", "C3P", "E1", "X2", "A2-M1", "FP1-CZ", "FP11"]
    assert resolve(["CZ", *non_eeg]).reasons == dict.fromkeys(non_eeg, NOT_EEG)
    assert resolve(["CZ", *unknown], drop_unknown=True).reasons == dict.fromkeys(unknown, UNKNOWN)


def test_resolve_keeps_the_order_of_the_file_and_names_what_it_dropped() -> None:
    resolution = resolve(["EEG Cz-REF", "ECG ECG", "Fc5.", "EEG A2-A1", "EEG Pg1"], drop=["PG1", "not there"])
    assert list(resolution.kept.items()) == [("EEG Cz-REF", "CZ"), ("Fc5.", "FC5")]
    assert resolution.dropped == ["ECG ECG", "EEG A2-A1", "EEG Pg1"]


def test_unknown_names_are_all_listed_with_the_nearest_ones_and_the_ways_out() -> None:
    with pytest.raises(InputError) as error:
        resolve(["CZ", "FP1X", "QQQQ"], where="a.edf")
    text = str(error.value)
    assert text.startswith("a.edf: ") and "'FP1X'" in text and "FP1," in text and "'QQQQ'" in text
    assert "--drop 'FP1X' 'QQQQ'" in text and "--rename" in text and "JSON" in text


def test_two_channels_of_one_electrode_are_an_error_that_names_both_and_dropping_one_helps() -> None:
    with pytest.raises(InputError, match=r"'EEG Fp1-REF' and 'EEG FP1-LE'.*FP1"):
        resolve(["EEG Fp1-REF", "CZ", "EEG FP1-LE"])
    assert resolve(["EEG Fp1-REF", "CZ", "EEG FP1-LE"], drop=["EEG FP1-LE"]).dropped == ["EEG FP1-LE"]


def test_rename_gives_unknown_channels_an_electrode_and_refuses_unknown_electrodes() -> None:
    assert resolve(["EEG X1-REF", "ECG"], rename={"X1": "fz"}).kept == {"EEG X1-REF": "FZ"}
    with pytest.raises(InputError, match=r"--rename.*'FZZ' \(nearest known: FZ"):
        resolve(["X1"], rename={"X1": "FZZ"})


@pytest.mark.parametrize(("names", "drop"), [(["ECG"], []), (["CZ"], ["CZ"]), ([], [])])
def test_a_recording_without_eeg_is_an_error(names: list[str], drop: list[str]) -> None:
    with pytest.raises(InputError, match="no EEG channel"):
        resolve(names, drop=drop)


def test_names_in_messages_are_short_and_hold_nothing_that_a_terminal_obeys() -> None:
    with pytest.raises(InputError) as error:
        resolve(["CZ", "\x1b[2J", "x" * 5000])
    assert str(error.value).isprintable() and len(str(error.value)) < 600
    assert r"'\x1b[2J' (nothing like it is known); 'xxxxx" in str(error.value)


def test_embedding_rows_start_with_cls_and_follow_the_order_of_the_names() -> None:
    assert embedding_rows(["FPZ", "fp1", "C4-P4"[:2]]) == [0, 2, 1, ELECTRODES.index("C4") + 1]
    assert embedding_rows(ELECTRODES[:128]) == list(range(129))
    assert embedding_rows(ELECTRODES, table_rows=137) == list(range(137))


def test_electrodes_beyond_the_table_are_an_error_that_names_the_way_out() -> None:
    assert embedding_rows(["F7-T7"]) == [0, ELECTRODES.index("F7-T7") + 1]
    with pytest.raises(InputError, match=r"FP1-F3, P4-O2.*--num_electrodes 136.*129 rows"):
        embedding_rows(["CZ", "FP1-F3", "P4-O2"])
    with pytest.raises(InputError, match=r"unknown.*'CZZ' \(nearest known: CZ"):
        embedding_rows(["CZZ"])
