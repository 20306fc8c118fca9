"""SEED-V: clips to seconds, their splits and labels, from Neuroscan files written here; dates stay behind."""

import struct
from pathlib import Path

import h5py
import numpy as np
import pytest

from dataset_maker import make_SEEDV
from dataset_maker.making import published_counts
from eeg_data.labelled_files import SPLITS
from maker_helpers import run_maker

ELECTRODES = list(make_SEEDV.DATA_SET.electrodes or ())
CHANNELS = [*ELECTRODES[:32], "M1", *ELECTRODES[32:41], "M2", *ELECTRODES[41:], "VEO", "HEO"]
RATE, SECONDS = 1000, 18
STEP, BASELINE = 0.02, 5  # uV a digital step; digital value of 0 uV
PLAIN = ("--l_freq", 0, "--h_freq", 0, "--notch", 0)
# Fifteen clips a session as in the published table, but of a second or two.
CLIPS = {
    session: [(start, start + 1 + (start % 5 == 0), (start + shift) % 5) for start in range(1, 16)]
    for session, shift in (("1", 4), ("2", 2), ("3", 0))
}


def amplitude_of(second: int, channel: int) -> float:
    """Amplitude in uV of the wave that the tests put into a second of a channel."""
    return 10 + 3 * second + 0.5 * channel


def write_cnt(path: Path, *, seconds: int = SECONDS, dtype: str = "<i4", announce: bool = True) -> Path:
    """Write a Neuroscan CNT of waves of 10 Hz whose amplitude tells second and channel.

    announce: the header says how many samples there are and where the event table begins. Layout: "SETUP" of 900
    bytes, 75 bytes a channel, samples of all channels in turn, event table.
    """
    samples, count = seconds * RATE, len(CHANNELS)
    width = np.dtype(dtype).itemsize
    header = bytearray(900)
    for offset, text in ((0, "Version 3.0"), (21, "4711"), (121, "Roe Jane"), (205, "visit")):
        header[offset : offset + len(text)] = text.encode()
    header[225:247] = b"08/04/18".ljust(10) + b"12:34:56".ljust(12)
    struct.pack_into("<H", header, 370, count)
    struct.pack_into("<H", header, 376, RATE)
    struct.pack_into("<i", header, 864, samples)
    table = 900 + 75 * count + samples * count * width if announce else 1 << 30
    struct.pack_into("<i", header, 886, table)
    for name in CHANNELS:
        place = bytearray(75)
        place[: len(name)] = name.encode()
        struct.pack_into("<h", place, 47, BASELINE)
        struct.pack_into("<f", place, 59, 204.8 * STEP)  # sensitivity
        struct.pack_into("<f", place, 71, 1.0)  # calibration
        header += place
    time = np.arange(samples)
    amplitude = np.array([[amplitude_of(t, c) for t in range(seconds)] for c in range(count)]).repeat(RATE, axis=1)
    eeg = amplitude * np.sin(2 * np.pi * 10 * time / RATE)  # (channels, samples), uV
    values = np.round(eeg / STEP + BASELINE).T.astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(header) + values.tobytes() + struct.pack("<Bll", 1, 0, 0))
    return path


@pytest.fixture
def short_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the short clips in the place of the published ones."""
    monkeypatch.setattr(make_SEEDV, "load_clips", lambda: CLIPS)


def expected_windows(session: str, split: int, seconds: int = SECONDS) -> list[tuple[int, int]]:
    """Return (second, label) of every window of a split, clip by clip."""
    clips = CLIPS[session][5 * split : 5 * split + 5]
    return [(second, label) for start, end, label in clips for second in range(start, end) if second < seconds]


def test_the_published_table_gives_the_published_numbers_of_windows() -> None:
    clips, numbers = make_SEEDV.load_clips(), np.zeros(3, dtype=int)
    for session in clips.values():
        for split in range(3):
            assert sorted(label for _, _, label in session[5 * split : 5 * split + 5]) == [0, 1, 2, 3, 4]
            numbers[split] += 16 * sum(end - start for start, end, _ in session[5 * split : 5 * split + 5])
    assert numbers.tolist() == [*published_counts("SEED-V")["SEED-V"].values()] == [34432, 42960, 40352]
    assert len(set(ELECTRODES)) == 62


def test_sessions_become_seconds_with_their_clips_labels_and_splits(
    short_clips: None, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    root = tmp_path / "raw"
    names = ["10_3_20180902.cnt", "2_2_20180811.cnt", "2_1_20180804.cnt"]
    write_cnt(root / names[0], dtype="<i2")
    write_cnt(root / "more" / names[1], announce=False)
    write_cnt(root / names[2])
    (root / "2_9_20180804.cnt").write_bytes(b"no session")
    (root / "notes_1_2.cnt").write_bytes(b"no recording")
    output = tmp_path / "SEED-V.hdf5"
    assert run_maker(make_SEEDV, "--root", root, "--output", output, *PLAIN) == 0
    with h5py.File(output) as file:
        assert list(file.attrs["chOrder"]) == ELECTRODES and file.attrs["task"] == "multiclass"
        assert list(file.attrs["classes"]) == ["disgust", "fear", "sad", "neutral", "happy"]
        rows = [CHANNELS.index(name) for name in ELECTRODES]
        for number, split in enumerate(SPLITS):
            sessions = (("2_1", "2", "1"), ("2_2", "2", "2"), ("10_3", "10", "3"))  # by subject, then session
            wanted = [(name, who, *w) for name, who, session in sessions for w in expected_windows(session, number)]
            group = file[split]
            assert list(group["recording"].asstr()) == [row[0] for row in wanted]
            assert list(group["subject"].asstr()) == [row[1] for row in wanted]
            assert group["label"][:].tolist() == [row[3] for row in wanted]
            amplitude = np.array([[amplitude_of(second, row) for row in rows] for _, _, second, _ in wanted])
            wave = 2 * np.abs(np.fft.rfft(group["eeg"][:, :, 50:150] * np.hanning(101)[:100], axis=2)) / 50
            np.testing.assert_allclose(wave[:, :, 5], amplitude, rtol=0.02)  # 10 Hz in 100 samples at 200 Hz
    printed = capfd.readouterr()
    assert "2 other files *.cnt are left out" in printed.err
    texts = [output.read_bytes(), (printed.out + printed.err).encode()]
    for word in (b"2018", b"08/04", b"12:34", b"Roe", b"Jane", b"4711", b"visit"):
        assert not any(word in text for text in texts), word


def test_clips_beyond_a_recordings_end_are_cut_and_counted(
    short_clips: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_cnt(tmp_path / "raw" / "1_1_20180804.cnt", seconds=14)
    assert run_maker(make_SEEDV, "--root", tmp_path / "raw", "--output", tmp_path / "out.hdf5", *PLAIN) == 0
    with h5py.File(tmp_path / "out.hdf5") as file:
        labels = [file[split]["label"][:].tolist() for split in SPLITS]
    assert labels == [[label for _, label in expected_windows("1", split, 14)] for split in range(3)]
    cut = sum(end > 14 for _, end, _ in CLIPS["1"])
    assert f"{cut} clips that reach beyond their recording's end" in capsys.readouterr().out


def test_a_folder_without_sessions_and_two_files_of_one_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ("--root", tmp_path, "--output", tmp_path / "out.hdf5")
    (tmp_path / "x.cnt").touch()
    assert run_maker(make_SEEDV, *words) == 1 and "no files <subject>_<session>_<date>.cnt" in capsys.readouterr().err
    for name in ("1_1_2018.cnt", "1_1_2019.cnt"):
        (tmp_path / name).touch()
    assert run_maker(make_SEEDV, *words) == 1 and "subject 1, session 1" in capsys.readouterr().err
