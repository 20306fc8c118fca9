"""What the headers of EDF, BDF and GDF files state about their channels: units, limits, rates, times of the records.

MNE reads the signals. It takes every unit that it does not know for volts, and reads a file with pauses as one piece
(versions 1.8 to 1.13), so these facts are taken from the bytes. Formats: EDF+ and BDF+ specifications; GDF 2.51.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from struct import error as StructError
from struct import unpack_from
from typing import BinaryIO

import numpy as np

ANNOTATIONS = ("EDF Annotations", "BDF Annotations")
GDF_VOLT = 4256  # code of the unit; its last five bits are the prefix
GDF_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 8, 8: 8, 16: 4, 17: 8, 279: 3, 535: 3}  # of a sample
PREFIXES = {"": 1.0, "m": 1e-3, "milli": 1e-3, "u": 1e-6, "mc": 1e-6, "micro": 1e-6, "n": 1e-9, "nano": 1e-9}
# A sign that is no ASCII is the micro sign in one code page or another; `.` and `?` are what became of it in others.
VOLTS = re.compile(r"(?P<prefix>micro|milli|nano|mc|[mun]|[.?]|[^\x00-\x7f]+|)\s*v(olts?)?")


def volts_per(unit: str) -> float | None:
    """Return how many volts a unit is, or None if it is no known spelling of one. `unit`: as a header spells it."""
    match = VOLTS.fullmatch(unit.partition("\0")[0].strip().lower())
    return PREFIXES.get(match["prefix"], 1e-6) if match else None


@dataclass(frozen=True)
class Header:
    """The header of one file; arrays have an entry for each signal, in the order of the file."""

    path: Path
    kind: str  # EDF, BDF or GDF
    labels: list[str]
    units: list[str]  # as the file spells them; of GDF a prefix of V, or the code
    physical: np.ndarray  # (signals, 2) lowest and highest value, in the unit
    digital: np.ndarray  # (signals, 2)
    samples: np.ndarray  # of a record
    sizes: np.ndarray  # bytes of a record
    seconds: float  # of a record
    announced: int  # records; -1: unknown
    start: int  # bytes before the first record

    @cached_property
    def records(self) -> int:
        """The number of whole records that the file holds, at most as many as it announces."""
        return min(self.held, self.announced) if self.announced >= 0 else self.held

    @property
    def held(self) -> int:
        """The number of whole records for which the file has bytes."""
        return (self.path.stat().st_size - self.start) // max(int(self.sizes.sum()), 1)

    @property
    def rates(self) -> np.ndarray:
        """Samples a second of each signal."""
        return self.samples / self.seconds

    @property
    def is_annotations(self) -> np.ndarray:
        """Which signals hold texts, (signals,) bool."""
        return np.isin(self.labels, ANNOTATIONS)

    def volts(self, signal: int) -> float | None:
        """Return how many volts the unit of a signal is; None if it is blank or unknown."""
        return volts_per(self.units[signal])

    def has_scale(self, signal: int) -> bool:
        """Whether a signal's limits say what a digital value is worth."""
        return bool((np.ptp(self.physical[signal]) > 0) and (np.ptp(self.digital[signal]) > 0))

    def onsets(self) -> np.ndarray | None:
        """Return when each record begins, (records,) s from the first one's begin; None if that does not say it.

        EDF+ and BDF+ files state it at the beginning of each record of their first annotation signal. A later record
        that does not follows the one before.
        """
        if not self.is_annotations.any() or not self.records:
            return None
        column = int(np.flatnonzero(self.is_annotations)[0])
        first, size = int(self.sizes[:column].sum()), int(self.sizes[column])
        shape = (self.records, int(self.sizes.sum()))
        bytes_ = np.memmap(self.path, np.uint8, "r", self.start, shape)[:, first : first + size]
        onsets = list[float]()
        for row in bytes_:
            if onset := re.match(rb"([+-]\d+\.?\d*)\x14", row.tobytes()):
                onsets.append(float(onset[1]))
            elif onsets:
                onsets.append(onsets[-1] + self.seconds)
            else:
                return None
        return np.array(onsets) - onsets[0]


def read_header(path: Path) -> Header | None:
    """Read the header of an EDF, BDF or GDF file. Returns None for other files, and for headers that are damaged."""
    try:
        with path.open("rb") as file:
            first = file.read(256)
            if first[:3] == b"GDF":
                return _gdf(path, first, file)
            if first[:8] == b"\xffBIOSEMI" or first[:8].rstrip(b" \0") == b"0":
                return _edf(path, first, file)
    except (OSError, ValueError, ZeroDivisionError, StructError):
        pass
    return None


def _edf(path: Path, fixed: bytes, file: BinaryIO) -> Header:
    is_bdf, count = fixed[0] == 0xFF, int(fixed[252:256])

    def texts(width: int) -> list[str]:
        return [file.read(width).decode("latin-1").strip(" \0") for _ in range(count)]

    def numbers(width: int) -> np.ndarray:
        return np.array([float(text.replace(",", ".")) for text in texts(width)])

    labels, _, units = texts(16), texts(80), texts(8)
    physical, digital = (np.stack([numbers(8), numbers(8)], axis=1) for _ in range(2))
    texts(80)  # filters
    samples = numbers(8).astype(np.int64)
    seconds = float(fixed[244:252].replace(b",", b".")) or 1.0  # MNE takes 0 for 1
    start = int(fixed[184:192])
    sizes = samples * (3 if is_bdf else 2)
    kind = "BDF" if is_bdf else "EDF"
    announced = int(fixed[236:244]) if fixed[236:244].strip().isdigit() else -1
    return Header(path, kind, labels, units, physical, digital, samples, sizes, seconds, announced, start)


def _gdf(path: Path, fixed: bytes, file: BinaryIO) -> Header:
    is_first = float(fixed[4:8]) < 1.9  # GDF 1.x
    records, dividend, divisor = unpack_from("<q2I", fixed, 236)
    (count,) = unpack_from("<I" if is_first else "<H", fixed, 252)
    if path.stat().st_size < 256 * (1 + count):
        raise ValueError(f"{count} signals in a file that has no room for their header")
    start = unpack_from("<q", fixed, 184)[0] if is_first else 256 * unpack_from("<H", fixed, 184)[0]

    def column(kind: str) -> np.ndarray:
        return np.frombuffer(file.read(count * np.dtype(kind).itemsize), kind)

    def texts(width: int) -> list[str]:
        return [bytes(text).decode("latin-1").strip(" \0") for text in column(f"S{width}")]

    labels, _, units = texts(16), texts(80), texts(8 if is_first else 6)
    if not is_first:
        units = [_gdf_unit(int(code)) for code in column("<u2")]
    physical = np.stack([column("<f8"), column("<f8")], axis=1)
    digital = np.stack([column("<i8" if is_first else "<f8") for _ in range(2)], axis=1).astype(np.float64)
    texts(80)  # filters
    samples, kinds = column("<i4").astype(np.int64), column("<i4")
    sizes = samples * [GDF_BYTES.get(int(kind), 0) for kind in kinds]
    return Header(path, "GDF", labels, units, physical, digital, samples, sizes, dividend / divisor, records, start)


def _gdf_unit(code: int) -> str:
    """Return GDF's code of a unit as text, or the code itself if it is no voltage. 0 means unknown."""
    prefix = {0: "", 18: "m", 19: "u", 20: "n"}.get(code & 31)
    return f"{prefix}V" if code & ~31 == GDF_VOLT and prefix is not None else f"code {code}" if code else ""
