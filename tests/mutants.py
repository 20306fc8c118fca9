"""Broken recordings, data files and manifests: mutant `number` of a kind is always the same bytes.

`mutant(form, kind, number)`: forms are `edf` and `eeghdf` (recordings, the latter HDF5) and `manifest` (CSV); kinds are
`flipped` (bytes changed), `cut` (bytes lost), `header` (fields and attributes changed) and `size` (lengths forged).
Written from the formats' descriptions, without the project's own writers.
"""

import io
import re
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import h5py
import numpy as np

FORMS = ("edf", "manifest", "eeghdf")
KINDS = ("flipped", "cut", "header", "size")
SUFFIX = {"edf": ".edf", "manifest": ".csv", "eeghdf": ".eeg.h5"}
RATE = 200  # Hz
PATIENT = "MCH-0234567 F 03-FEB-1981 Roe_Jane"  # in every EDF header: no message may quote it
LABELS = ("EEG Fp1", "C3", "EEG Cz-REF", "ECG")

Random = np.random.Generator


def _pick(random: Random, values: Sequence[Any]) -> Any:
    """Return one of the values as it is."""
    return values[int(random.integers(len(values)))]


# EDF: a header of 256 bytes, then for each field the values of all signals. (offset, width) and widths.
EDF_FIELDS = {"version": (0, 8), "patient": (8, 80), "recording": (88, 80), "date": (168, 8), "time": (176, 8)}
EDF_FIELDS |= {"bytes": (184, 8), "reserved": (192, 44), "records": (236, 8), "duration": (244, 8), "signals": (252, 4)}
SIGNAL_WIDTHS = {"label": 16, "transducer": 80, "unit": 8, "pmin": 8, "pmax": 8, "dmin": 8, "dmax": 8}
SIGNAL_WIDTHS |= {"prefilter": 80, "samples": 8, "rest": 32}
NUMBERS = ("", "0", "-1", "1", "2", "3", "7", "100", "-32768", "32767", "65536", "8388607", "99999999", "-9999999")
NUMBERS += ("nan", "inf", "-inf", "1e308", "1e-308", "1e9", "1e-9", "0.001", "12.5", "1,5", "0x10", "1_0", "+7", "--1")
TEXTS = ("", "\0", "\x1b[31m", "\xff\xfe", "²³", "1e5 s", "\n\n", "?", "{}", "%s%n", "../..", "EEG", "Fp1", "C3", "cz")
TEXTS += ("EDF Annotations", "BDF Annotations", "EDF+D", "EDF+C", "BIOSEMI", "STATUS", "mV", "uV", "V", "T7", "C4")


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
    signals: dict[str, list[str]] = {"label": names, "transducer": ["AgAgCl"] * len(names), "unit": ["uV"] * len(names)}
    signals |= {"pmin": ["-3276.8"] * len(names), "pmax": ["3276.7"] * len(names), "dmin": ["-32768"] * len(names)}
    signals |= {"dmax": ["32767"] * len(names), "prefilter": ["HP:0.1Hz"] * len(names)}
    signals |= {"samples": [str(count) for count in samples], "rest": [""] * len(names)}
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


def _any_edf(random: Random) -> bytes:
    rates = (RATE,) * 4 if random.random() < 0.7 else (RATE, RATE, 256, 100)
    return edf(random, annotations=random.random() < 0.6, rates=rates)


def _ugly(random: Random, width: int) -> bytes:
    """Return what a field of this width should not hold."""
    kind = random.integers(5)
    if kind == 0:
        return random.bytes(width)
    text = _pick(random, NUMBERS if kind < 4 else TEXTS)
    return text.encode("latin-1" if random.random() < 0.8 else "utf-8")[:width].ljust(width)


def _set_signal_field(content: bytearray, field: str, signal: int, value: bytes) -> None:
    count = int(content[252:256])
    before = sum(width for name, width in list(SIGNAL_WIDTHS.items())[: list(SIGNAL_WIDTHS).index(field)])
    at = 256 + count * before + signal * SIGNAL_WIDTHS[field]
    content[at : at + SIGNAL_WIDTHS[field]] = value


def _edf_header(random: Random) -> bytes:
    """Change one to three fields of the header, or texts of the annotations."""
    content = bytearray(_any_edf(random))
    signals = int(content[252:256])
    for _ in range(random.integers(1, 4)):
        if random.random() < 0.15:  # what the annotations say
            places = [found.start() for found in re.finditer(rb"\+\d", content[256 * (signals + 1) :])]
            if places:
                at = 256 * (signals + 1) + _pick(random, places)
                content[at : at + 6] = _pick(
                    random, [b"+1e99\x14", b"+nan\x14\0", b"-5\x14\x14\x14\0", b"\x14\x15\x14+++"]
                )
        elif random.random() < 0.4:
            field = _pick(random, list(EDF_FIELDS)[:7])
            at, width = EDF_FIELDS[field]
            content[at : at + width] = _ugly(random, width)
        else:
            field = _pick(random, list(SIGNAL_WIDTHS))
            which = range(signals) if random.random() < 0.2 else [int(random.integers(signals))]
            value = _ugly(random, SIGNAL_WIDTHS[field])
            for signal in which:
                _set_signal_field(content, field, signal, value)
    return bytes(content)


def _edf_size(random: Random) -> bytes:
    """Forge a length: records, their duration, signals, samples, bytes of the header."""
    content = bytearray(_any_edf(random))
    signals = int(content[252:256])
    for _ in range(random.integers(1, 3)):
        field = _pick(random, ["records", "duration", "signals", "bytes", "samples", "samples"])
        value = _pick(random, NUMBERS[:21]) if random.random() < 0.8 else str(random.integers(0, 10**6))
        if field == "samples":
            which = range(signals) if random.random() < 0.5 else [int(random.integers(signals))]
            for signal in which:
                _set_signal_field(content, field, signal, value[:8].ljust(8).encode())
        else:
            at, width = EDF_FIELDS[field]
            content[at : at + width] = value[:width].ljust(width).encode()
            if field == "signals":
                break  # from here on nobody knows where the fields are
    return bytes(content)


# HDF5


def _noise(random: Random, *shape: int) -> np.ndarray:
    return (random.standard_normal(shape) * 30).astype(np.float32)


def _options(random: Random, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return how a data set is stored: in one piece, in chunks, in packed chunks."""
    kind = random.integers(4)
    if kind == 0:
        return {}
    packed: dict[str, Any] = {"compression": "gzip", "shuffle": True, "fletcher32": bool(random.integers(2))}
    return {"chunks": shape} | (packed if kind == 3 else {})


def _eeghdf(file: h5py.File, random: Random) -> None:
    file.create_group("patient").attrs.update(patient_name="Roe, Jane", birthdate="1981-02-03")
    record = file.create_group("record-0")
    record.attrs.update(sample_frequency=200.00000000000003, technician="Roe", start_isodatetime="2019-03-04")
    counts = (random.standard_normal((3, 5 * RATE)) * 300).astype(np.int16)
    record.create_dataset("signals", data=counts, **_options(random, (3, RATE)))
    text = h5py.string_dtype()
    record.create_dataset("signal_labels", data=["EEG Fp1", "EEG C3", "ECG"], dtype=text)
    record.create_dataset("physical_dimensions", data=["uV", "mV", "uV"], dtype=text)
    for name, value in {"digital_mins": -32768, "digital_maxs": 32767}.items():
        record[f"signal_{name}"] = np.full(3, value, dtype=np.int32)
    for name, limit in {"physical_mins": -3276.8, "physical_maxs": 3276.7}.items():
        record[f"signal_{name}"] = np.full(3, limit)


HDF5 = {"eeghdf": _eeghdf}
Change = Callable[[h5py.File, Random], None]


def hdf5(form: str, random: Random, change: Change | None = None) -> bytes:
    """Return a small file of this form after `change`."""
    memory = io.BytesIO()
    version = "latest" if random.random() < 0.3 else "earliest"
    with h5py.File(memory, "w", libver=version) as file:
        HDF5[form](file, random)
        if change:
            change(file, random)
    return memory.getvalue()


def _objects(file: h5py.File) -> list[str]:
    found = ["/"]
    file.visit(found.append)
    return found


def _datasets(file: h5py.File) -> list[str]:
    return [name for name in _objects(file) if isinstance(file[name], h5py.Dataset)]


def _ugly_attribute(random: Random) -> Any:
    values = [
        np.nan,
        np.inf,
        -1.0,
        0,
        1e308,
        2**63 - 1,
        200,
        199.9,
        "200",
        b"200",
        "",
        "é" * 30,
        "\x1b[31m",
        "C3",
        "C4",
    ]
    values += [["C3"], ["C3", "C3"], ["C3", "C4", "CZ"], ["C3", ""], [b"\xff\xfe", b"C4"], ["x" * 5000, "C4"], [1, 2]]
    values += [
        ["NOSE", "C4"],
        ["C4", "C3"],
        [["C3", "C4"]],
        np.zeros((2, 3)),
        np.array([], dtype="f8"),
        h5py.Empty("f4"),
    ]
    values += [
        "binary",
        "multiclass",
        "regression",
        ["a"],
        ["a", "b", "c"],
        ["a", "a"],
        [["a"], ["b"]],
        np.array([200.0]),
    ]
    values += [np.void(b"\0\1\2"), 1 + 2j, True, "{}", "[", '{"seconds": 1e99}', "NaN"]
    values += ['{"flat": {"C3": 1e400}, "histogram": {"999999": 1}, "not_finite": {}, "saturated": {}, "seconds": 4}']
    values += ["[" * 100_000, np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")])]
    return _pick(random, values)


def _change_attributes(file: h5py.File, random: Random) -> None:
    """Give attributes other values and types, or take them away."""
    for _ in range(_pick(random, (1, 1, 2))):
        places = [(name, key) for name in _objects(file) for key in file[name].attrs]
        name, key = _pick(random, places)
        if random.random() < 0.15:
            del file[name].attrs[key]
        else:
            _put(file[name].attrs, key, _ugly_attribute(random))


def _put(attributes: Any, key: str, value: Any) -> None:
    del attributes[key]
    if isinstance(value, str) and len(value) > 60_000:
        value = value[:60_000]  # what an attribute can hold
    attributes[key] = value


def _replace(file: h5py.File, name: str, **how: Any) -> None:
    """Put another data set into the place of one, with its attributes."""
    kept = dict(file[name].attrs)
    del file[name]
    file.create_dataset(name, **how).attrs.update(kept)


def _claim_much(file: h5py.File, random: Random) -> None:
    """Claim lengths that nothing stands behind."""
    name = _pick(random, _datasets(file))
    shape, dtype = list(file[name].shape), file[name].dtype
    shape[int(random.integers(len(shape)))] = _pick(random, [2**20, 2**31, 2**33, 2**40])
    kind = int(random.integers(3))
    chunks = {0: None, 1: tuple(min(n, 200) for n in shape), 2: tuple(min(n, 2**20) for n in shape)}[kind]
    _replace(file, name, shape=tuple(shape), dtype=dtype, chunks=chunks, compression="gzip" if kind == 2 else None)


def _other_length(file: h5py.File, random: Random) -> None:
    """Make a data set longer, shorter, empty, a scalar, or give it more axes or fewer."""
    name = _pick(random, _datasets(file))
    values = file[name][()]
    kind = int(random.integers(6))
    if kind == 0:
        values = values[:-1]
    elif kind == 1:
        values = np.concatenate([values, values])
    elif kind == 2:
        values = values[:0]
    elif kind == 3:
        values = values.reshape(-1)
    elif kind == 4:
        values = values[None]
    else:
        values = values.reshape(-1)[0]
    _replace(file, name, data=values, dtype=file[name].dtype)


def _other_type(file: h5py.File, random: Random) -> None:
    """Make a data set of another type, a group of a data set, a data set of a group."""
    name = _pick(random, _objects(file)[1:])
    kept = dict(file[name].attrs)
    shape = file[name].shape if isinstance(file[name], h5py.Dataset) else (2,)
    kind = int(random.integers(8))
    del file[name]
    if kind == 0:
        new: Any = file.create_group(name)
    elif kind == 1:
        new = file.create_dataset(name, data=np.zeros(shape, dtype="S5"))
    elif kind == 2:
        new = file.create_dataset(name, data=np.zeros(shape, dtype=[("a", "f4"), ("b", "i2")]))
    elif kind == 3:
        new = file.create_dataset(name, data=np.ones(shape, dtype="c8"))
    elif kind == 4:
        new = file.create_dataset(name, data=h5py.Empty("f4"))
    elif kind == 5:
        new = file.create_dataset(name, shape, dtype=h5py.vlen_dtype(np.float32))
    elif kind == 6:
        new = file.create_dataset(name, shape, dtype=h5py.ref_dtype)
    else:
        file[name] = np.dtype("f4")  # a named type
        new = file[name]
    new.attrs.update(kept)


def _lead_astray(file: h5py.File, random: Random) -> None:
    """Put links that lead out of the file, nowhere, or round in circles; storage elsewhere."""
    name = _pick(random, _objects(file)[1:])
    kind = int(random.integers(7))
    kept = file[name].attrs
    if kind < 4:
        del file[name]
    if kind == 0:
        file[name] = h5py.ExternalLink("elsewhere.hdf5", "/recording0/eeg")
    elif kind == 1:
        file[name] = h5py.SoftLink(f"/{name}")  # to itself
    elif kind == 2:
        file[name] = h5py.SoftLink("/nowhere")
    elif kind == 3:
        file[name] = file["/"]  # a circle of hard links
    else:
        name = _pick(random, _datasets(file))
        kept, shape = dict(file[name].attrs), file[name].shape
        del file[name]
        if kind == 4:
            new = file.create_dataset(name, shape, "f4", external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)])
        elif kind == 5:
            layout = h5py.VirtualLayout(shape, "f4")
            layout[...] = h5py.VirtualSource("elsewhere.hdf5", "data", shape)
            new = file.create_virtual_dataset(name, layout)
        else:
            layout = h5py.VirtualLayout(shape, "f4")
            layout[...] = h5py.VirtualSource(".", name, shape)  # of itself
            new = file.create_virtual_dataset(name, layout)
        new.attrs.update(kept)


def _bomb(file: h5py.File, random: Random) -> None:
    """Store a chunk whose packed bytes are more, fewer, or other than it says."""
    name = _pick(random, [name for name in _datasets(file) if name.endswith(("eeg", "signals"))])
    shape = file[name].shape
    _replace(file, name, shape=shape, dtype=file[name].dtype, chunks=shape, compression="gzip")
    right = int(np.prod(shape)) * file[name].dtype.itemsize
    sizes = [right // 2, right * 2, right - 1, 10_000_000, 0]
    packed = zlib.compress(bytes(_pick(random, sizes)))
    packed = packed if random.random() < 0.7 else packed[: len(packed) // 2]
    file[name].id.write_direct_chunk((0,) * len(shape), packed)


FORGERIES: tuple[Change, ...] = (_claim_much, _other_length, _other_type, _lead_astray, _bomb)


def _hdf5_size(form: str, random: Random) -> bytes:
    """Forge lengths, with HDF5's help or, one time in four, by the bytes that say them."""
    if random.random() < 0.75:
        return hdf5(form, random, _pick(random, FORGERIES))
    content = bytearray(hdf5(form, random))
    lengths = {"pretraining": [807, 607, RATE, 2, 4], "labelled": [4, 2, 2 * RATE, 8]}
    lengths |= {"eeghdf": [3, 5 * RATE, RATE]}
    old = _pick(random, lengths[form]).to_bytes(8, "little")
    places = [found.start() for found in re.finditer(re.escape(old), bytes(content))]
    for at in random.permutation(places)[: int(random.integers(1, 4))]:
        new = _pick(random, [0, 1, 3, 1000, 2**20, 2**31, 2**40, 2**63 - 1, 2**64 - 1])
        content[at : at + 8] = new.to_bytes(8, "little")
    return bytes(content)


# CSV


def manifest(random: Random) -> str:
    """Return a manifest of `a.edf`, `b c.edf` and `sub/d.edf`, each of five seconds."""
    targets = random.random() < 0.3
    columns = ["path", "start", "stop", *(["target_0", "target_1"] if targets else ["label"]), "split", "subject"]
    rows = []
    for number in range(9):
        path = ["a.edf", "b c.edf", "sub/d.edf"][number % 3]
        start, stop = ["0", "0.5", ""][number // 3], ["2", "3.25", ""][number // 3]
        label = [f"{number / 4}", f"-{number}e-1"] if targets else [["left", '"right, ""up"""'][number // 2 % 2]]
        rows.append([path, start, stop, *label, ["train", "val", "train"][number % 3], f"S{number % 3}"])
    return "\r\n".join(",".join(row) for row in [columns, *rows]) + "\r\n"


def _manifest_header(random: Random) -> bytes:
    """Change the columns, the separators, the encoding."""
    text = manifest(random)
    head, _, rest = text.partition("\r\n")
    columns = head.split(",")
    which = int(random.integers(len(columns)))
    kind = int(random.integers(12))
    if kind == 0:
        head = ",".join(columns[:which] + columns[which + 1 :])
    elif kind == 1:
        head = ",".join([*columns, columns[which]])
    elif kind == 2:
        others = [
            "",
            "PATH",
            " path ",
            "größe",
            "target_0",
            "target_00",
            "target_-1",
            "label",
            "\0",
            "Label",
            "x" * 9000,
        ]
        columns[which] = _pick(random, others)
        head = ",".join(columns)
    elif kind == 3:
        return text.replace(",", _pick(random, [";", "\t", "|", " "])).encode()
    elif kind == 4:
        encodings = ["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp037"]
        return text.encode(_pick(random, encodings))
    elif kind == 5:
        head = ",".join([*columns, *(f"target_{n}" for n in range(int(random.integers(1, 50_000))))])
    elif kind == 6:
        lines = ["\ufeff\ufeff", "\r\n\r\n", ",,,,\r\n", "# made by hand\r\n", "sep=,\r\n"]
        head = _pick(random, lines) + head
    elif kind == 7:
        return text.replace("\r\n", _pick(random, ["\n", "\r", "\n\n", "\u2028", "\x0b"])).encode()
    elif kind == 8:
        order = random.permutation(len(columns))
        head = ",".join(columns[i] for i in order)
    elif kind == 9:
        head = '"' + '","'.join(columns) + '"'
    elif kind == 10:
        rest = "\r\n".join(line + "," for line in rest.splitlines())
        head += _pick(random, [",", ",,", ",comment"])
    else:
        head = head.upper()
    return f"{head}\r\n{rest}".encode()


def _manifest_size(random: Random) -> bytes:
    """Change values to what they cannot be."""
    lines = [line.split(",") for line in manifest(random).replace('"right, ""up"""', "right").split("\r\n")[:-1]]
    ugly = [
        *NUMBERS,
        "-0.0",
        "1e999",
        "-5",
        "3.0000001",
        "4.999999999",
        "5.0",
        "1e-320",
        "9" * 400,
        "x" * 200_000,
        "\t",
    ]
    ugly += [
        "../a.edf",
        "/etc/passwd",
        "/dev/zero",
        ".",
        "sub",
        "./a.edf",
        "sub/../a.edf",
        "~/a.edf",
        "a.edf\0",
        "A.EDF",
    ]
    ugly += ['"', '""', '"left', 'le"ft', "' or 1", "=1+1", "\x1b[31m", "\u202eleft", "test", "TRAIN", "dev", " val "]
    for _ in range(_pick(random, (1, 1, 2))):
        row = int(random.integers(1, len(lines)))
        lines[row][int(random.integers(len(lines[row])))] = _pick(random, ugly)
    if random.random() < 0.1:
        lines += lines[1:] * int(random.integers(1, 300))
    return "\r\n".join(",".join(line) for line in lines).encode()


# All


def _whole(form: str, random: Random) -> bytes:
    if form == "edf":
        return _any_edf(random)
    return manifest(random).encode() if form == "manifest" else hdf5(form, random)


def _telling_places(form: str, content: bytes) -> np.ndarray:
    """Return where the bytes are that say how to read the others."""
    if form == "edf":
        return np.arange(256 * (1 + int(content[252:256])))
    if form == "manifest":
        return np.arange(len(content))
    marks = re.finditer(
        rb"\x89HDF|TREE|HEAP|SNOD|OHDR|OCHK|FRHP|FHDB|GCOL|BTHD|BTLF|FAHD|FADB|FSHD|EAHD|\x01\0", content
    )
    starts = [mark.start() for mark in marks]
    return np.unique(np.concatenate([np.arange(at, min(at + 64, len(content))) for at in starts]))


def _flipped(form: str, random: Random) -> bytes:
    content = bytearray(_whole(form, random))
    places = _telling_places(form, bytes(content)) if random.random() < 0.5 else np.arange(len(content))
    for at in random.choice(places, int(random.integers(1, 5))):
        kind = random.integers(3)
        if kind == 0:
            content[at] ^= 1 << int(random.integers(8))
        else:
            content[at] = int(random.integers(256)) if kind == 1 else _pick(random, [0, 255, 34, 44, 10])
    return bytes(content)


def _cut(form: str, random: Random) -> bytes:
    content = _whole(form, random)
    kind = int(random.integers(6))
    if kind == 0:
        return content[: int(random.integers(0, 300))]
    if kind == 1:  # out of the middle
        start = int(random.integers(len(content)))
        return content[:start] + content[start + int(random.integers(1, 1 + len(content) // 4)) :]
    if kind == 2:
        return content + random.bytes(int(random.integers(1, 5000)))
    if kind == 3:
        return content[int(random.integers(1, 1000)) :]
    return content[: int(random.integers(len(content)))]


def mutant(form: str, kind: str, number: int) -> bytes:
    """Return the bytes of a mutant."""
    random = np.random.default_rng([FORMS.index(form), KINDS.index(kind), number])
    if kind == "flipped":
        return _flipped(form, random)
    if kind == "cut":
        return _cut(form, random)
    if form == "edf":
        return _edf_header(random) if kind == "header" else _edf_size(random)
    if form == "manifest":
        return _manifest_header(random) if kind == "header" else _manifest_size(random)
    return hdf5(form, random, _change_attributes) if kind == "header" else _hdf5_size(form, random)
