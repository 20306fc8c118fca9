"""Neuroscan files whose headers contradict what they hold: values as written, or the flag that decides."""

import struct
from pathlib import Path

import mne
import numpy as np
import pytest

from maker_helpers import noise
from test_formats import eeg_of, reason_of
from test_make_SEEDV import CHANNELS, RATE, write_cnt


def cnt(path: Path, values: np.ndarray, dtype: str, *, samples: int | None = None, table: int | None = None) -> Path:
    """Write counts (channels, samples) as a Neuroscan file; samples, table: what its header says instead."""
    content = bytearray(write_cnt(path, seconds=1).read_bytes()[: 900 + 75 * len(CHANNELS)])
    body = values.T.astype(dtype).tobytes()
    struct.pack_into("<i", content, 864, values.shape[1] if samples is None else samples)
    struct.pack_into("<i", content, 886, len(content) + len(body) if table is None else table)
    path.write_bytes(bytes(content) + body + struct.pack("<Bll", 1, 8, 0) + struct.pack("<HBcl", 7, 0, b"\0", 5000))
    return path


@pytest.mark.parametrize("header", [{}, {"samples": 0}, {"samples": -5}, {"samples": 900}, {"table": 1 << 30}])
@pytest.mark.parametrize(("dtype", "offset"), [("<i2", 0), ("<i4", 0), ("<i4", 4_000_000)])
def test_neuroscan_values_are_right_whatever_the_header_counts(
    dtype: str, offset: int, header: dict[str, int], tmp_path: Path
) -> None:
    values = np.rint(noise(len(CHANNELS), 3, RATE) * 100) + offset
    eeg = eeg_of(cnt(tmp_path / "a.cnt", values, dtype, **header))
    np.testing.assert_allclose(eeg, (values - 5) * 0.02, rtol=1e-5)  # as write_cnt scales them


def test_cnt_format_decides_where_nothing_else_does_and_only_there(tmp_path: Path) -> None:
    silent = np.zeros((len(CHANNELS), 2000))
    path = cnt(tmp_path / "a.cnt", silent, "<i2", samples=0)
    assert "--cnt_format" in reason_of(path)
    lengths = [eeg_of(path, cnt_format=cnt_format).shape[1] for cnt_format in ("int16", "int32")]
    assert lengths == [2000, 1000]
    assert eeg_of(cnt(path, silent, "<i4"), cnt_format="int16").shape[1] == 2000, "the header says 4 bytes"


def test_no_other_reader_is_tried_on_neuroscan_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("read_raw_ant", "read_raw"):  # the library behind the first may end the process
        monkeypatch.setattr(mne.io, name, None, raising=False)
    path = write_cnt(tmp_path / "a.cnt", seconds=2)
    assert eeg_of(path).shape == eeg_of(path.rename(tmp_path / "b.edf")).shape == (len(CHANNELS), 2 * RATE)


def test_epochs_of_neuroscan_and_broken_headers_are_refused(tmp_path: Path) -> None:
    path = cnt(tmp_path / "a.cnt", np.zeros((len(CHANNELS), 200)), "<i4")
    assert "epochs" in reason_of(path.rename(tmp_path / "a.eeg"))
    (tmp_path / "b.cnt").write_bytes(b"Version 3.0".ljust(2000, b"\0"))
    assert "0 channels" in reason_of(tmp_path / "b.cnt")
