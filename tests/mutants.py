"""EDF files written from the format's description, and broken ones; a number always gives the same bytes."""

from collections.abc import Sequence

import numpy as np

RATE = 200  # Hz
PATIENT = "MCH-0234567 F 03-FEB-1981 Roe_Jane"  # in every EDF header: no message may quote it
LABELS = ("EEG Fp1", "C3", "EEG Cz-REF", "ECG")
Random = np.random.Generator

# EDF: a header of 256 bytes, then for each field the values of all signals. (offset, width) and widths.
EDF_FIELDS = {"version": (0, 8), "patient": (8, 80), "recording": (88, 80), "date": (168, 8), "time": (176, 8)}
EDF_FIELDS |= {"bytes": (184, 8), "reserved": (192, 44), "records": (236, 8), "duration": (244, 8), "signals": (252, 4)}
SIGNAL_WIDTHS = {"label": 16, "transducer": 80, "unit": 8, "pmin": 8, "pmax": 8, "dmin": 8, "dmax": 8}
SIGNAL_WIDTHS |= {"prefilter": 80, "samples": 8, "rest": 32}
UGLY = ("", "0", "-1", "1", "7", "-32768", "65536", "99999999", "nan", "inf", "1e308", "1e-308", "12.5", "1,5", "1_0")
UGLY += ("\0", "\x1b[31m", "\xff\xfe", "²³", "\n\n", "%s%n", "Fp1", "C3", "EDF Annotations", "EDF+D", "mV", "V", "T7")


def edf(
    random: Random,
    labels: Sequence[str] = LABELS,
    *,
    annotations: bool = True,
    rates: Sequence[int] = (),
    seconds: int = 5,
    remark: str = "T0",
    **texts: str,
) -> bytes:
    """Return an EDF file, its records of one second, with `annotations` an EDF+ one.

    rates: of the signals; remark: an annotation in each record; texts: of fields of the header's first part.
    """
    names = [*labels, *(["EDF Annotations"] if annotations else [])]
    rates = rates or [RATE] * len(labels)
    samples = [*rates, *([64] if annotations else [])]
    same = {"transducer": "AgAgCl", "unit": "uV", "pmin": "-3276.8", "pmax": "3276.7", "dmin": "-32768"}
    same |= {"dmax": "32767", "prefilter": "HP:0.1Hz", "rest": ""}
    signals = {field: [text] * len(names) for field, text in same.items()}
    signals |= {"label": names, "samples": [str(count) for count in samples]}
    first = {"version": "0", "patient": PATIENT, "recording": "Startdate 04-MAR-2019 X Roe_Jane X"}
    first |= {"date": "04.03.19", "time": "10.11.12", "bytes": str(256 * (1 + len(names)))}
    first |= {"reserved": "EDF+C" if annotations else "", "records": str(seconds), "duration": "1"}
    first |= {"signals": str(len(names))} | texts
    header = "".join(first[field][:width].ljust(width) for field, (_, width) in EDF_FIELDS.items())
    header += "".join(text.ljust(width) for field, width in SIGNAL_WIDTHS.items() for text in signals[field])
    content = bytearray(header.encode("latin-1"))
    for record in range(seconds):
        for rate in rates:
            content += (random.standard_normal(rate) * 300).astype("<i2").tobytes()
        if annotations:
            content += f"+{record}\x14\x14\0+{record}.5\x150.25\x14{remark}\x14\0".encode().ljust(128, b"\0")
    return bytes(content)


def broken_edf(number: int) -> bytes:
    """Return an EDF file with changed bytes, lost bytes, or header fields that say what cannot be."""
    random = np.random.default_rng(number)
    rates = (RATE,) * 4 if random.random() < 0.7 else (RATE, RATE, 256, 100)
    content = bytearray(edf(random, annotations=random.random() < 0.6, rates=rates))
    header = 256 * (1 + int(content[252:256]))
    kind = number % 4
    if kind == 0:
        for at in random.integers(0, header if random.random() < 0.7 else len(content), random.integers(1, 5)):
            content[at] = random.integers(256)
    elif kind == 1:
        start, stop = sorted(random.integers(0, len(content), 2))
        return bytes(content[:start] + (content[stop:] if random.random() < 0.5 else b""))
    else:
        for _ in range(random.integers(1, 4)):
            at, width = _any_field(random, header // 256 - 1, numbers=kind == 3)
            text = UGLY[random.integers(15 if kind == 3 else len(UGLY))]
            content[at : at + width] = text.encode("latin-1")[:width].ljust(width)
    return bytes(content)


def _any_field(random: Random, signals: int, *, numbers: bool) -> tuple[int, int]:
    """Return place and width of a field; numbers: of one that says a length."""
    if random.random() < 0.5:
        lengths = ("bytes", "records", "duration", "signals")
        return EDF_FIELDS[str(random.choice(lengths if numbers else list(EDF_FIELDS)))]
    field = "samples" if numbers else str(random.choice(list(SIGNAL_WIDTHS)))
    widths = list(SIGNAL_WIDTHS.values())[: list(SIGNAL_WIDTHS).index(field)]
    width = SIGNAL_WIDTHS[field]
    return 256 + signals * sum(widths) + width * int(random.integers(signals)), width
