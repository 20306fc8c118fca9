"""Find out what Neuroscan's CNT files hold. In many, SEED-V's too, the header's counts contradict the file.

Where the header does not decide, the samples do: of 4-byte values, every second half is almost constant.
Layout: 900 bytes, 75 a channel, samples of all channels in turn (2 or 4 bytes), event table.
"""

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from errors import InputError

WIDTHS = {"int16": 2, "int32": 4}  # bytes of a value
HEADER, CHANNEL = 900, 75  # bytes
CHANNELS_AT, RATE_AT, SAMPLES_AT, TABLE_AT = 370, 376, 864, 886
NO_EVENTS = struct.pack("<Bll", 1, 0, 0)
EVENT_BYTES = {1: 8, 2: 19, 3: 19}  # by the type of the event table
PROBE = 1 << 16  # half-words that are looked at


class Layout(NamedTuple):
    """What a Neuroscan file holds."""

    header: bytes  # with right counts
    data_format: str  # int16 or int32
    stop: int  # byte behind the samples
    events: bytes  # the event table behind them, b"" if it cannot be read
    samples: int  # of a channel
    announced: int  # by the header
    rate: int  # Hz


def layout(path: Path, cnt_format: str | None) -> Layout:
    """Find out where a Neuroscan file's samples lie. cnt_format: used where the file does not decide.

    Raises InputError for a header that cannot be, and where nothing says how many bytes a value has.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = bytearray(file.read(HEADER).ljust(HEADER, b"\0"))
        channels, rate = (struct.unpack_from("<H", header, at)[0] for at in (CHANNELS_AT, RATE_AT))
        announced, table = (struct.unpack_from("<i", header, at)[0] for at in (SAMPLES_AT, TABLE_AT))
        header += file.read(CHANNEL * channels)
        start = HEADER + CHANNEL * channels
        if not channels or not rate or size < start + 4 * channels:
            what = f"{channels} channels at {rate} Hz"
            raise InputError(f"{path}: its header announces {what}, which the file does not hold: fetch it again")
        end = table if start < table <= size else 0  # of the samples; 0: the header does not know
        frame = 4 * channels
        file.seek(start + ((end or size) - start) // 2 // frame * frame)  # the middle: a beginning may be silent
        halves = file.read(2 * PROBE)
        probe = np.frombuffer(halves[: len(halves) // 2 * 2], "<i2")
        width = _width(announced, (end or size) - start, channels, probe, cnt_format)
        if not width:
            raise InputError(
                f"{path}: neither its header nor its size say whether values have 2 or 4 bytes: give --cnt_format "
                "int16 or int32 (the wrong one makes noise of it)"
            )
        there = ((end or size) - start) // (channels * width)
        samples = there if end or not 0 < announced <= there else announced
        stop = start + samples * channels * width
        events = _event_table(file, end or stop, size)
    struct.pack_into("<i", header, SAMPLES_AT, samples)
    struct.pack_into("<i", header, TABLE_AT, min(stop, (1 << 31) - 1))
    return Layout(bytes(header), f"int{8 * width}", stop, events, samples, announced, rate)


def _width(samples: int, span: int, channels: int, probe: np.ndarray, cnt_format: str | None) -> int:
    """Return the bytes of a value, 0 if nothing decides. span: bytes between the header and the event table."""
    for width in (4, 2):
        if samples > 0 and samples * channels * width == span:
            return width
    if cnt_format:
        return WIDTHS[cnt_format]
    low, high = probe[: len(probe) // 2 * 2].reshape(-1, 2).T.astype(np.int32)
    if len(high) > 100 and low.any():
        if np.isin(high, (0, -1)).mean() > 0.9:  # the sign of small 4-byte values
            return 4
        frames = high[: len(high) // channels * channels].reshape(-1, channels)
        low = low[: frames.size].reshape(frames.shape)
        if len(frames) > 10 and np.abs(np.diff(frames, axis=0)).mean() < 0.02 * np.abs(np.diff(low, axis=0)).mean():
            return 4  # the slow part of large 4-byte values
        if np.abs(high).mean() > 0.2 * np.abs(low).mean():
            return 2  # both halves are values
    return 4 if 0 < samples * channels * 4 <= span else 2 if 0 < samples * channels * 2 <= span else 0


def _event_table(file: Any, at: int, size: int) -> bytes:
    """Return the event table at this place, b"" if there is none that can be read."""
    file.seek(at)
    head = file.read(9)
    if len(head) < 9:
        return b""
    kind, length, _ = struct.unpack("<Bll", head)
    if kind not in EVENT_BYTES or not 0 <= length <= size - at - 9 or length % EVENT_BYTES[kind]:
        return b""
    return head + file.read(length)
