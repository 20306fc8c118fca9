"""Opening foreign HDF5 files: what leads out of them, what claims too much, and what is damaged, each in one line."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_helpers import PAIR, only_line, signal, write_pretraining
from eeg_data import hdf5 as hdf5_files
from eeg_data.hdf5 import Attributes, check_size, files_below, find_files, names, number, open_file, printable, readable
from errors import InputError


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Path]:
    """Return a pipe nobody writes to: whoever opens it, to follow a link, waits for ever."""
    path = tmp_path / "trap.hdf5"
    os.mkfifo(path)
    yield path
    assert path.is_fifo()


def write(path: Path, fill: Callable[[h5py.File], None], **options: Any) -> Path:
    with h5py.File(path, "w", **options) as file:
        fill(file)
    return path


# What leads out of a file. Each takes the file and the path of the trap.


def external_link(file: h5py.File, trap: Path) -> None:
    file["someone"] = h5py.ExternalLink(str(trap), "/eeg")


def external_link_deep_inside(file: h5py.File, trap: Path) -> None:
    file.create_group("a/b/c/d")["someone"] = h5py.ExternalLink(str(trap), "/eeg")


def external_link_behind_a_soft_one(file: h5py.File, trap: Path) -> None:
    file["first"] = h5py.SoftLink("/real/away")
    file.create_group("real")["away"] = h5py.ExternalLink(str(trap), "/")


def external_storage(file: h5py.File, trap: Path) -> None:
    file.create_dataset("someone/eeg", (2, 400), "f4", external=[(str(trap), 0, 3200)])


def virtual(file: h5py.File, trap: Path) -> None:
    layout = h5py.VirtualLayout((2, 400), "f4")
    layout[:] = h5py.VirtualSource(str(trap), "eeg", (2, 400))
    file.create_virtual_dataset("someone/eeg", layout)


def virtual_in_part(file: h5py.File, trap: Path) -> None:
    file["inside"] = signal(2, 400)
    layout = h5py.VirtualLayout((2, 800), "f4")
    layout[:, :400] = h5py.VirtualSource(".", "inside", (2, 400))
    layout[:, 400:] = h5py.VirtualSource(str(trap), "eeg", (2, 400))
    file.create_virtual_dataset("someone/eeg", layout)


def virtual_without_end(file: h5py.File, trap: Path) -> None:
    layout = h5py.VirtualLayout((2, 400), "f4", maxshape=(2, None))
    source = h5py.VirtualSource(str(trap), "eeg", (2, 400), maxshape=(2, None))
    layout[:, : h5py.h5s.UNLIMITED] = source[:, : h5py.h5s.UNLIMITED]
    file.create_virtual_dataset("someone/eeg", layout)


def virtual_in_a_circle(file: h5py.File, trap: Path) -> None:
    for name, other in (("someone", "other"), ("other", "someone")):
        layout = h5py.VirtualLayout((2, 400), "f4")
        layout[:] = h5py.VirtualSource(".", other, (2, 400))
        file.create_virtual_dataset(name, layout)


def virtual_of_nothing(file: h5py.File, trap: Path) -> None:
    layout = h5py.VirtualLayout((2, 400), "f4")
    layout[:] = h5py.VirtualSource(".", "nobody", (2, 400))
    file.create_virtual_dataset("someone", layout)


def soft_link_to_nothing(file: h5py.File, trap: Path) -> None:
    file["someone"] = h5py.SoftLink("/nobody")


def soft_links_in_a_circle(file: h5py.File, trap: Path) -> None:
    file["someone"] = h5py.SoftLink("/other")
    file["other"] = h5py.SoftLink("/someone")


@pytest.mark.parametrize(
    ("lead_out", "what"),
    [
        (external_link, "`someone` is an external link"),
        (external_link_deep_inside, "`a/b/c/d/someone` is an external link"),
        (external_link_behind_a_soft_one, "`real/away` is an external link"),
        (external_storage, "`someone/eeg` is a data set with external storage"),
        (virtual, "`someone/eeg` is a virtual data set of other files"),
        (virtual_in_part, "`someone/eeg` is a virtual data set of other files"),
        (virtual_without_end, "`someone/eeg` is a virtual data set of other files"),
        (virtual_in_a_circle, "is a virtual data set of virtual or missing ones"),
        (virtual_of_nothing, "`someone` is a virtual data set of virtual or missing ones"),
        (soft_link_to_nothing, "`someone` is a link to nothing"),
        (soft_links_in_a_circle, "is a link to nothing"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_what_leads_out_of_a_file_is_refused_and_not_followed(
    tmp_path: Path, trap: Path, lead_out: Callable, what: str, version: str
) -> None:
    path = write(tmp_path / "a.hdf5", lambda file: lead_out(file, trap), libver=version)
    for _ in range(2):  # the second time, too
        with pytest.raises(InputError) as error:
            open_file(path)
        only_line(error, path, what, "copy it in, or make the file again")


def test_a_link_of_a_kind_that_only_its_maker_knows_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5", lambda file: external_link(file, tmp_path / "other"), libver="earliest")
    content = bytearray(path.read_bytes())
    place = content.index(b"someone")  # the link's message: ..., type, ..., length of the name, name, length, target
    types = [i for i in range(place - 16, place) if content[i] == h5py.h5l.TYPE_EXTERNAL]
    content[types[-1]] = 200
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        open_file(path)
    only_line(error, path, "`someone` is a user-defined link")


def test_links_and_virtual_data_sets_within_the_file_are_followed(tmp_path: Path) -> None:
    eeg = signal(2, 400)

    def fill(file: h5py.File) -> None:
        file["real/eeg"] = eeg
        file["soft"] = h5py.SoftLink("/real/eeg")
        file["hard"] = file["real/eeg"]
        file["real/circle"] = file["/"]
        layout = h5py.VirtualLayout((2, 400), "f4")
        layout[:] = h5py.VirtualSource(".", "real/eeg", (2, 400))
        file.create_virtual_dataset("virtual", layout)

    file = open_file(write(tmp_path / "a.hdf5", fill))
    for name in ("soft", "hard", "virtual", "real/circle/hard"):
        np.testing.assert_array_equal(file[name][()], eeg)


def test_groups_nested_thousandfold_are_looked_through(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        group: Any = file
        for _ in range(3000):
            group = group.create_group("g")
        group["away"] = h5py.ExternalLink("other.hdf5", "/")

    with pytest.raises(InputError, match="external link"):
        open_file(write(tmp_path / "a.hdf5", fill))


# Handles


def test_a_file_is_opened_once_by_a_process_and_only_to_be_read(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 400)])
    assert open_file(path) is open_file(path)
    with pytest.raises(ValueError, match="no write intent"):
        open_file(path).create_group("new")


def test_a_file_is_looked_through_once_however_often_it_is_opened_and_again_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    original = hdf5_files._check_all_is_inside
    monkeypatch.setattr(hdf5_files, "OPEN_FILES", 2)
    monkeypatch.setattr(hdf5_files, "_check_all_is_inside", lambda *args: (looked.append(args[1]), original(*args)))
    paths = [write_pretraining(tmp_path / f"{i}.hdf5", PAIR, [signal(2, 400)]) for i in range(3)]
    for _ in range(3):
        for path in paths:
            open_file(path)
            hdf5_files._open.cache_clear()  # as if too many were open
    assert looked == paths
    write(paths[0], lambda file: file.create_group("other"))
    assert list(open_file(paths[0])) == ["other"] and looked == [*paths, paths[0]]


def test_a_forked_process_has_a_handle_of_its_own(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 400)])
    handle = open_file(path)
    child = os.fork()
    if child == 0:
        os._exit(0 if open_file(path) is not handle and open_file(path)["recording0/eeg"].shape == (2, 400) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_file_locked_by_its_writer_can_be_read(tmp_path: Path) -> None:
    path = write_pretraining(tmp_path / "a.hdf5", PAIR, [signal(2, 400)])
    fcntl = pytest.importorskip("fcntl")
    with path.open("rb+") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert open_file(path)["recording0/eeg"].shape == (2, 400)


@pytest.mark.parametrize("content", [b"", b"EEG", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(3000)])
def test_what_is_no_hdf5_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.hdf5"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        open_file(path)
    only_line(error, path, "no readable HDF5 file", "make it again")


# Sizes


def grown(file: h5py.File, **options: Any) -> h5py.Dataset:
    data = file.create_dataset("eeg", data=signal(2, 400), maxshape=(2, None), chunks=(2, 200), **options)
    data.resize((2, 10**12))
    return data


def never_written(file: h5py.File) -> h5py.Dataset:
    return file.create_dataset("eeg", (2, 10**11), "f4")


def of_huge_texts(file: h5py.File) -> h5py.Dataset:
    return file.create_dataset("eeg", (10,), "S1000000000", chunks=(1,))


@pytest.mark.parametrize(
    ("fill", "claim"),
    [
        (grown, "8,000,000,000,000 bytes"),
        (never_written, "800,000,000,000 bytes"),
        (of_huge_texts, "10,000,000,000 bytes"),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_a_data_set_that_claims_more_than_its_file_holds_is_refused(tmp_path: Path, fill: Callable, claim: str) -> None:
    path = write(tmp_path / "a.hdf5", fill)
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError) as error:
        check_size(open_file(path)["eeg"], "here")
    only_line(error, "here", claim, f"its file of {path.stat().st_size:,} does", "make the file again")


def test_a_compressed_data_set_may_be_larger_than_its_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.hdf5",
        lambda file: file.create_dataset("eeg", data=np.zeros((2, 10**6)), chunks=(2, 10**4), compression="gzip"),
    )
    assert path.stat().st_size < 10**6
    check_size(open_file(path)["eeg"], "here")


def test_an_enormous_chunk_in_a_small_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5_files, "MAX_CHUNK", 10**6)
    path = write(
        tmp_path / "a.hdf5",
        lambda file: file.create_dataset("eeg", data=np.zeros((2, 10**6)), chunks=(2, 10**6), compression="gzip"),
    )
    with pytest.raises(InputError, match="claims"):
        check_size(open_file(path)["eeg"], "here")


def test_a_data_set_of_fewer_bytes_than_its_shape_needs_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5", lambda file: file.create_dataset("eeg", data=signal(2, 400)))
    content = path.read_bytes()
    size = (2 * 400 * 4).to_bytes(8, "little")  # of its storage: after it nobody knows what is read
    assert content.count(size) == 1
    (tmp_path / "b.hdf5").write_bytes(content.replace(size, (2 * 400 * 4 - 100).to_bytes(8, "little")))
    with pytest.raises(InputError, match="claims 3,200 bytes"):
        check_size(open_file(tmp_path / "b.hdf5")["eeg"], "here")


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), None])
def test_empty_data_sets_claim_nothing(tmp_path: Path, shape: Any) -> None:
    empty = h5py.Empty("f4") if shape is None else np.zeros(shape)
    path = write(tmp_path / "a.hdf5", lambda file: file.create_dataset("eeg", data=empty))
    check_size(open_file(path)["eeg"], "here")


def texts(file: h5py.File) -> None:
    file.attrs["classes"] = ["rest", "task"]


@pytest.mark.parametrize(("number", "length"), [(0, 0), (0, 8), (0, 2**63), (1, 2**64 - 1), (1, 2**64 - 16)])
def test_texts_on_which_hdf5_would_never_end_are_refused(tmp_path: Path, number: int, length: int) -> None:
    path = write(tmp_path / "a.hdf5", texts)
    assert names(open_file(path).attrs["classes"]) == ("rest", "task")
    content = bytearray(path.read_bytes())
    first = content.index(b"GCOL") + 16  # number, references, reserved, length of the first text
    content[first : first + 16] = number.to_bytes(8, "little") + length.to_bytes(8, "little")
    bad = tmp_path / "b.hdf5"
    bad.write_bytes(content)
    with pytest.raises(InputError) as error:
        open_file(bad)
    only_line(error, bad, "damaged", "make the file again")


# Errors


@pytest.mark.parametrize(
    "error",
    [
        KeyError("Jane Roe"),
        RuntimeError("Jane Roe\nline"),
        OSError("Jane Roe"),
        ValueError("Jane Roe"),
        UnicodeDecodeError("utf-8", b"Jane Roe", 0, 1, "Jane Roe"),
        MemoryError("Jane Roe"),
        OverflowError("Jane Roe"),
        TypeError("Jane Roe"),
        ZeroDivisionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_reading_raises_becomes_one_line_that_quotes_nothing(error: Exception) -> None:
    with pytest.raises(InputError) as raised, readable("a.hdf5, recording x", "leave it out"):
        raise error
    text = only_line(raised, "a.hdf5, recording x: cannot be read", type(error).__name__, "leave it out")
    assert "Jane" not in text


def test_our_own_errors_and_the_users_wish_to_stop_pass_through() -> None:
    for error in (InputError("as it is"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised, readable("here"):
            raise error
        assert raised.value is error


# Attributes


def test_texts_and_numbers_are_read_however_they_were_stored() -> None:
    spelt: list[Any] = [["C3", "CZ"], [b"C3", b"CZ"], np.array(["C3", "CZ"]), np.array([b"C3", b"CZ"])]
    spelt.append(np.array(["C3", "CZ"], dtype=object))
    assert {names(values) for values in spelt} == {("C3", "CZ")}
    assert names("C3") == names(b"C3") == ("C3",)
    assert {number(value) for value in (200, 200.0, np.float32(200), np.array([200.0]), np.uint8(200))} == {200.0}


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((2, 3)),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        h5py.Empty("f4"),
        3 + 4j,
        np.zeros(0),
        b"\xff\xfe",
        np.array([b"\xff", b"C3"]),
        np.array([np.arange(2, dtype="u1"), np.arange(3, dtype="u1")], dtype=h5py.vlen_dtype("u1")),
        np.zeros(1, dtype=("f8", (2,))),
    ],
    ids=lambda value: str(value)[:20],
)
@pytest.mark.parametrize("kind", ["names", "text", "number"])
def test_an_absurd_attribute_is_named(tmp_path: Path, value: Any, kind: str) -> None:
    path = write(tmp_path / "a.hdf5", lambda file: file.attrs.create("key", value))
    with pytest.raises(InputError) as error:
        getattr(Attributes("here", open_file(path)), kind)("key")
    only_line(error, "here", "attribute key")


def test_the_first_object_that_has_an_attribute_counts_and_a_missing_one_is_named(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file.attrs["rate"] = 1
        file.create_group("g").attrs["rate"] = 2
        file.attrs["other"] = "x"

    file = open_file(write(tmp_path / "a.hdf5", fill))
    attributes = Attributes("here", file["g"], file)
    assert attributes.number("rate") == 2 and attributes.text("other") == "x" and attributes.get("no") is None
    with pytest.raises(InputError) as error:
        attributes.names("no")
    only_line(error, "here: attribute no is missing", "dataset_maker")


def test_text_for_people_obeys_no_terminal() -> None:
    assert printable("a\x1b[31mb\n\ud800é") == "a\\x1b[31mb\\n\\ud800é"


# Finding


def test_files_are_found_in_folders_below_sorted_and_only_once(tmp_path: Path) -> None:
    paths = [write_pretraining(tmp_path / name, PAIR, [signal(2, 200)]) for name in ("z/a.h5", "b.hdf5", "a/c.hdf5")]
    (tmp_path / "notes.txt").write_text("not data")
    assert find_files([tmp_path], "--train_data") == sorted(paths)
    assert find_files([paths[0], tmp_path], "--train_data") == sorted(paths)


def test_hidden_files_and_folders_and_folders_named_like_files_are_no_data(tmp_path: Path) -> None:
    good = write_pretraining(tmp_path / ".home" / "a.hdf5", PAIR, [signal(2, 200)])
    for name in ("._a.hdf5", ".b.hdf5.making/shard.hdf5", ".c.hdf5.12.part"):
        write_pretraining(good.parent / name, PAIR, [signal(2, 200)])
    (good.parent / "folder.hdf5").mkdir()
    assert files_below(good.parent) == [good]
    with pytest.raises(InputError, match="no data found at"):
        find_files([good.parent / "folder.hdf5"], "--train_data")


def test_linked_folders_are_searched_and_links_that_lead_nowhere_are_said(tmp_path: Path) -> None:
    far = write_pretraining(tmp_path / "elsewhere" / "b.HDF5", PAIR, [signal(2, 200)])
    near = write_pretraining(tmp_path / "data" / "a.hdf5", PAIR, [signal(2, 200)])
    (tmp_path / "data" / "site").symlink_to(far.parent)
    assert find_files([tmp_path / "data"], "--train_data") == [near, far]
    (tmp_path / "data" / "c.hdf5").symlink_to(tmp_path / "not_mounted.hdf5")
    lost = tmp_path / "data" / "c.hdf5"
    assert find_files([tmp_path / "data"], "--train_data") == [near, lost, far]
    with pytest.raises(InputError, match=r"c\.hdf5: .*there is no such file"):  # and no data set without it
        open_file(lost)


def test_a_file_that_is_not_there_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        open_file(tmp_path / "none.hdf5")
