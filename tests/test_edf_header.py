"""What an EDF header says of lengths and rates, on headers written here from the format's description."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dataset_maker.edf_header import missing_seconds, samples_per_record

ANNOTATIONS = "EDF Annotations"
READ: Any = SimpleNamespace(n_times=1000, info={"sfreq": 200.0})  # 5 s of EEG


def header(records: str, seconds: str, signals: dict[str, str] | list[tuple[str, str]], number: str = "") -> bytes:
    """Return an EDF header: fixed fields, then each of the signals' fields for all signals."""
    rows = [*(signals.items() if isinstance(signals, dict) else signals)]
    fixed = " " * 236 + f"{records:8}{seconds:8}{number or len(rows):<4}"
    names, counts = "".join(f"{name:16}" for name, _ in rows), "".join(f"{count:8}" for _, count in rows)
    return (fixed + names + " " * 200 * len(rows) + counts + " " * 32 * len(rows)).encode()


@pytest.mark.parametrize(
    ("records", "seconds", "found"),
    [
        ("8", "1", (3, 8)),
        ("10", "0.6", (1, 6)),
        ("5", "1", (0, 0)),
        ("-1", "1", (0, 0)),  # never closed
        ("8", "one", (0, 0)),
        ("", "1", (0, 0)),
        ("8", "inf", (0, 0)),
        ("8", "nan", (0, 0)),
    ],
)
def test_seconds_that_are_missing_are_those_announced_beyond_the_ones_read(
    records: str, seconds: str, found: tuple[float, float], tmp_path: Path
) -> None:
    (tmp_path / "a.EDF").write_bytes(header(records, seconds, {"C3": "200"}))
    assert missing_seconds(tmp_path / "a.EDF", READ) == pytest.approx(found)
    (tmp_path / "a.set").write_bytes(header(records, seconds, {"C3": "200"}))
    assert missing_seconds(tmp_path / "a.set", READ) == (0, 0), "another format"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (header("1", "1", {"EEG C3": "200", "ECG": "500"}), [("EEG C3", 200), ("ECG", 500)]),
        (header("1", "1", [("C3", "200"), ("C3", "500")]), [("C3", 200), ("C3", 500)]),
        (header("1", "1", [(ANNOTATIONS, "60"), ("C3", "200"), (ANNOTATIONS, "60")]), [("C3", 200)]),
        (header("1", "1", {"C3": "many"}), []),
        (header("1", "1", {"C3": "200"}, number="x"), []),
        (header("1", "1", {"C3": "200"})[:300], []),
        (b"", []),
    ],
    ids=["two rates", "one name twice", "annotations", "no number", "no number of signals", "cut short", "empty"],
)
def test_samples_per_record_are_each_channels_own_or_not_known(
    content: bytes, found: list[tuple[str, int]], tmp_path: Path
) -> None:
    (tmp_path / "a.bdf").write_bytes(content)
    assert samples_per_record(tmp_path / "a.bdf") == found
    assert samples_per_record(tmp_path / "none.edf") == []
    (tmp_path / "a.vhdr").write_bytes(content)
    assert samples_per_record(tmp_path / "a.vhdr") == [], "another format"
