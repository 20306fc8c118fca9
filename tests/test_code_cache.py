"""--cache_codes: the codes on the disk are the tokenizer's, training with them is the same, what changed is refused."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from timm.models import create_model

import code_cache
from data_helpers import TINY, plain_run
from electrodes import ELECTRODES as NAMES
from modeling_vqnsp import VQNSP
from optim_factory import Update
from recovery import differences, log_lines, without
from run_helpers import MASKED, ROOT, TOKENIZER, call, checkpoint, contents, free_port, pretraining_file, start

PAIR, ONE = ("C3", "CZ"), ("O2",)
SECONDS = 2  # of a window
NOT_COMPARED = ("args", "seconds", "code")  # of checkpoints: flags, clocks, commits


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data with two montages, one of a single electrode, some seconds invalid, and a tokenizer."""
    folder = tmp_path_factory.mktemp("world")
    pretraining_file(folder / "train" / "a.hdf5", seconds=(13, 10), electrodes=PAIR)
    pretraining_file(folder / "train" / "b.hdf5", seconds=(7,), electrodes=ONE, seed=3)
    pretraining_file(folder / "val" / "a.hdf5", seconds=(5,), electrodes=PAIR, seed=5)
    with h5py.File(folder / "train" / "a.hdf5", "r+") as file:
        file["recording0/valid"] = np.arange(13) != 5  # window 2 is left out
    assert call("run_vqnsp_training", *TOKENIZER, *data(folder), "--output_dir", folder / "tokenizer") == 0
    return folder


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_cache, "PIECE", 4)


def data(world: Path) -> list[Any]:
    return ["--train_data", world / "train", "--val_data", world / "val"]


def train(world: Path, output: Path, *words: Any) -> int:
    """Run stage 2 in float64, where the composition of a batch changes no code."""
    weights = ["--tokenizer_weight", world / "tokenizer" / "checkpoint.pth", "--precision", "fp64"]
    return call("run_labram_pretraining", *MASKED, *data(world), *weights, "--output_dir", output, *words)


def windows(file: Path) -> list[np.ndarray]:
    """Return every window whose seconds are all valid, (N, samples), read with h5py."""
    found, samples = [], SECONDS * 200
    with h5py.File(file, locking=False) as recordings:
        for recording in recordings.values():
            eeg = recording["eeg"][:]
            valid = recording["valid"][:] if "valid" in recording else np.ones(eeg.shape[1] // 200, bool)
            for start in range(0, eeg.shape[1] - samples + 1, samples):
                if valid[start // 200 : start // 200 + SECONDS].all():
                    found.append(eeg[:, start : start + samples])
    return found


def codes_of(weights: Path, file: Path, names: tuple[str, ...]) -> np.ndarray:
    """Return the tokenizer's codes of a file's windows, one window after the other, (windows, N*A)."""
    state = checkpoint(weights)["model"]
    tokenizer = create_model(TINY, n_code=16, code_dim=8)
    tokenizer.load_state_dict(state)
    tokenizer.double().eval()
    channels = [0, *(NAMES.index(name) + 1 for name in names)]
    eeg = [torch.tensor(window / 100).double().reshape(1, len(names), SECONDS, 200) for window in windows(file)]
    return np.concatenate([tokenizer.get_codebook_indices(one, channels).numpy() for one in eeg])


def pieces(folder: Path, montage: int) -> list[np.ndarray]:
    """Read a montage's pieces in their order, without the product's reader."""
    paths = sorted(folder.glob(f"{montage}-*.npy"), key=lambda path: int(path.stem.split("-")[1]))
    return [np.load(path, allow_pickle=False) for path in paths]


def unequal(one: Path, other: Path) -> list[str]:
    """Return in what two finished runs differ."""
    states = [without(checkpoint(folder / "checkpoint.pth"), NOT_COMPARED) for folder in (one, other)]
    return [*differences(log_lines(one), log_lines(other), "log"), *differences(*states, "checkpoint")]


@pytest.fixture(scope="module")
def plain(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs without a cache."""
    folder = tmp_path_factory.mktemp("plain")
    assert train(world, folder, "--epochs", 2, "--save_ckpt_freq", 1) == 0
    return folder


@pytest.fixture(scope="module")
def filled(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished folder of codes, in pieces of four windows."""
    folder = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_cache, "PIECE", 4)
        assert train(world, folder / "run", "--cache_codes", folder / "codes") == 0
    return folder / "codes"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Note each call of the tokenizer, with its number of windows, and each step."""
    noted: list[Any] = []
    tokenize, step = VQNSP.get_codebook_indices, Update.__call__
    monkeypatch.setattr(VQNSP, "get_codebook_indices", lambda self, x, c: noted.append(len(x)) or tokenize(self, x, c))
    monkeypatch.setattr(Update, "__call__", lambda self, loss: noted.append("step") or step(self, loss))
    return noted


# What is on the disk


def test_the_codes_are_those_of_the_tokenizer_called_window_by_window(world: Path, filled: Path) -> None:
    weights = world / "tokenizer" / "checkpoint.pth"
    for part, montage, file, names in (("train", 0, "a", PAIR), ("train", 1, "b", ONE), ("val", 0, "a", PAIR)):
        expected = codes_of(weights, world / part / f"{file}.hdf5", names)
        found = pieces(filled / part, montage)
        assert [len(piece) for piece in found[:-1]] == [4] * (len(found) - 1)
        assert all(piece.dtype == np.int16 for piece in found)
        np.testing.assert_array_equal(np.concatenate(found), expected)
        assert expected.shape == (len(expected), len(names) * SECONDS) and len(np.unique(expected)) > 1
    assert len(np.concatenate(pieces(filled / "train", 0))) == 5 + 5, "the window with an invalid second is left out"


def test_the_manifest_says_what_the_codes_are_of(filled: Path) -> None:
    manifest = json.loads((filled / "train" / "manifest.json").read_text())
    assert manifest["made of"].items() >= {"tokenizer": TINY, "codebook": 16, "precision": "float64"}.items()
    assert manifest["made of"]["device"] == "cpu" and manifest["made of"]["windows"].startswith("13 ")
    assert manifest["pieces"].keys() == {path.name for path in (filled / "train").glob("*.npy")}


def test_nothing_is_written_among_the_data(world: Path, filled: Path) -> None:
    assert {path.name for path in (world / "train").iterdir()} == {"a.hdf5", "b.hdf5"}


# Training


@pytest.mark.parametrize("workers", [0, 1])
def test_training_with_the_cache_is_the_same_to_the_last_bit_and_calls_no_tokenizer(
    world: Path, plain: Path, tmp_path: Path, calls: list[Any], workers: int
) -> None:
    words = ["--epochs", 2, "--save_ckpt_freq", 1, "--num_workers", workers]
    assert train(world, tmp_path / "run", *words, "--cache_codes", tmp_path / "codes") == 0
    assert unequal(plain, tmp_path / "run") == []
    first = calls.index("step")
    assert sum(calls[:first]) == 13 + 2, "each window once"
    assert set(calls[first:]) == {"step"}
    calls.clear()
    assert train(world, tmp_path / "again", *words, "--cache_codes", tmp_path / "codes") == 0
    assert unequal(plain, tmp_path / "again") == []
    assert set(calls) == {"step"}, "a finished folder needs no pass"


def test_two_processes_train_the_same_with_and_without_the_cache(world: Path, tmp_path: Path) -> None:
    common = [*data(world), "--precision", "fp64"]
    plan: list[dict[str, Any]] = []

    def add(script: str, name: str, *words: Any) -> None:
        flags = [str(word) for word in (*words, "--output_dir", tmp_path / name)]
        plan.append({"script": script, "flags": flags, "record": str(tmp_path / name), "port": free_port()})

    add("run_vqnsp_training", "tokenizer", *TOKENIZER, *common)
    masked = [*MASKED, *common, "--tokenizer_weight", tmp_path / "tokenizer" / "checkpoint.pth", "--epochs", 2]
    add("run_labram_pretraining", "plain", *masked)
    for workers in (0, 1):
        words = ["--num_workers", workers, "--cache_codes", tmp_path / f"codes{workers}"]
        add("run_labram_pretraining", f"cached{workers}", *masked, *words)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    start([ROOT / "tests" / "process_driver.py", "fork", 2, tmp_path / "plan.json"], cwd=tmp_path)
    assert json.loads((tmp_path / "plan.ended").read_text()) == [0, 0], (tmp_path / "plan.err").read_text()
    assert unequal(tmp_path / "plain", tmp_path / "cached0") == unequal(tmp_path / "plain", tmp_path / "cached1") == []
    names = [path.name for path in sorted((tmp_path / "codes0" / "train").glob("*.npy"))]
    assert names == ["0-0.npy", "1-0.npy"], "a piece for each process"


def test_a_resumed_run_may_turn_the_cache_on_or_off(world: Path, plain: Path, filled: Path, tmp_path: Path) -> None:
    words = ["--epochs", 2, "--save_ckpt_freq", 1]
    for name, first, second in (("on", [], ["--cache_codes", filled]), ("off", ["--cache_codes", filled], [])):
        assert train(world, tmp_path / name, *words, *first) == 0
        os.replace(tmp_path / name / "checkpoint-0.pth", tmp_path / name / "checkpoint.pth")
        assert train(world, tmp_path / name, *words, *second) == 0
        assert unequal(plain, tmp_path / name) == []


@pytest.mark.parametrize(
    "words",
    [["--overfit_batch"], ["--time_window", 1], ["--batch_size", 3], ["--mask_ratio", 0.3], ["--window_stride", 130]],
    ids=lambda words: " ".join(map(str, words)),
)
def test_every_way_to_train_goes_with_the_cache(world: Path, tmp_path: Path, words: list[Any]) -> None:
    assert train(world, tmp_path / "plain", *words) == 0
    assert train(world, tmp_path / "cached", *words, "--cache_codes", tmp_path / "codes") == 0
    assert unequal(tmp_path / "plain", tmp_path / "cached") == []


def test_a_single_window_and_no_validation_data_are_enough(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # no ./data/pretrain_val here
    pretraining_file(tmp_path / "data" / "pretrain" / "a.hdf5", seconds=(2,), electrodes=ONE)
    words = [*MASKED, "--tokenizer_weight", world / "tokenizer" / "checkpoint.pth", "--output_dir"]
    assert call("run_labram_pretraining", *words, "plain") == 0
    assert call("run_labram_pretraining", *words, "cached", "--cache_codes", "codes") == 0
    assert unequal(Path("plain"), Path("cached")) == []
    assert [path.name for path in Path("codes").iterdir()] == ["train"]


def test_a_loading_process_is_sent_no_codes(filled: Path) -> None:
    piece = code_cache.Piece(0, 0, 0, 4, 4)
    codes = code_cache.CachedCodes(filled / "train", [piece])
    expected = pieces(filled / "train", 0)[0]
    assert codes(0, 2).tolist() == expected[2].tolist() and len(codes._maps) == 1
    copy = pickle.loads(pickle.dumps(codes))
    assert not copy._maps and copy(0, 3).tolist() == expected[3].tolist()


def test_a_batch_carries_codes_to_the_device_as_int64(tmp_path: Path) -> None:
    eeg, channels, mask = np.zeros((1, 600), np.float32), torch.zeros(2), torch.ones(3, dtype=torch.bool)
    batch = code_cache.collate([(lambda: eeg, channels, mask, torch.arange(3).short())])
    assert batch.codes.dtype == torch.int16
    moved = batch.to(plain_run(tmp_path))
    assert moved.codes.dtype == torch.int64 and moved.codes.tolist() == [[0, 1, 2]]


# Stopped, killed, at the same time


def test_a_signal_during_the_pass_ends_with_143_and_the_pass_goes_on_where_it_was(
    world: Path, plain: Path, tmp_path: Path, calls: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--epochs", 2, "--save_ckpt_freq", 1, "--cache_codes", tmp_path / "codes"]
    count = VQNSP.get_codebook_indices

    def stopped(self: VQNSP, eeg: torch.Tensor, channels: Any) -> torch.Tensor:
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return count(self, eeg, channels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VQNSP, "get_codebook_indices", stopped)
        assert train(world, tmp_path / "run", *words) == 143
    assert calls == [4, 4, 2], "batches of four, the third ends the first montage"
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "stopped by SIGTERM while codes were computed; the same command goes on from here"
    assert not (tmp_path / "run" / "checkpoint.pth").exists(), "there is nothing to save"
    calls.clear()
    assert train(world, tmp_path / "run", *words) == 0
    assert calls[: calls.index("step")] == [3, 2], "the second montage and the validation data"
    assert unequal(plain, tmp_path / "run") == []


def test_what_a_killed_run_left_half_written_is_not_taken(world: Path, filled: Path, tmp_path: Path) -> None:
    shutil.copytree(filled, tmp_path / "codes")
    folder = tmp_path / "codes" / "train"
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({"made of": manifest["made of"]}))  # as during the pass
    half = (folder / "0-1.npy").read_bytes()[:100]
    (folder / "0-1.npy").unlink()
    (folder / ".0-1.npy.77.part").write_bytes(half)
    assert train(world, tmp_path / "run", "--cache_codes", tmp_path / "codes") == 0
    assert contents(folder) == contents(filled / "train")


def test_a_full_disk_ends_with_one_line_and_the_same_command_goes_on(
    world: Path, plain: Path, tmp_path: Path, calls: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--epochs", 2, "--save_ckpt_freq", 1, "--cache_codes", tmp_path / "codes"]
    write = Path.write_bytes

    def full(path: Path, content: Any) -> int:
        if path.name.startswith(".0-1.npy"):
            write(path, content[:50])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert train(world, tmp_path / "run", *words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert all(part in line for part in ("0-1.npy", "No space left", "free space"))
    assert {path.name for path in (tmp_path / "codes" / "train").iterdir()} == {"0-0.npy", "manifest.json", ".lock"}
    calls.clear()
    assert train(world, tmp_path / "run", *words) == 0
    assert calls[: calls.index("step")] == [4, 2, 3, 2]
    assert unequal(plain, tmp_path / "run") == []


STRIKES = """
import errno, os, signal, sys
sys.path[:0] = [{root!r}]
import code_cache, run_labram_pretraining as script
from pathlib import Path
tokenize, write = code_cache.VQNSP.get_codebook_indices, Path.write_bytes

def signalled(self, *arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return tokenize(self, *arguments)

def full(path, content):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

if os.environ["RANK"] == "1" and {fault!r} == "signal":
    code_cache.VQNSP.get_codebook_indices = signalled
if os.environ["RANK"] == "1" and {fault!r} == "disk":
    Path.write_bytes = full
script.run_script(script.main, script.get_args())
"""


@pytest.mark.parametrize(
    ("fault", "said", "left"),
    [
        ("signal", "stopped by SIGTERM while codes were computed; the same command goes on from here", {"1-0.npy"}),
        ("disk", "1-0.npy cannot be written (No space left on device)", set()),
    ],
)
def test_what_strikes_one_process_during_the_pass_ends_all_with_a_line(
    world: Path, tmp_path: Path, fault: str, said: str, left: set[str]
) -> None:
    (tmp_path / "strikes.py").write_text(STRIKES.format(root=str(ROOT), fault=fault))
    words = [*MASKED, *data(world), "--tokenizer_weight", world / "tokenizer" / "checkpoint.pth", "--output_dir", "run"]
    words += ["--cache_codes", "codes"]
    ended = start([tmp_path / "strikes.py", *words], cwd=tmp_path, processes=2, check=False)
    assert ended.returncode == 1 and said in ended.stderr
    assert 'Traceback (most recent call last):\n  File "' + str(ROOT) not in ended.stderr
    # The first process's piece is of three batches, the other's of one.
    assert {path.name for path in (tmp_path / "codes" / "train").glob("*.npy")} == left


HOLDS = """
import fcntl, sys
with open(sys.argv[1], "w") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_waits_while_another_one_fills_the_folder(
    world: Path, filled: Path, tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "codes" / "train"
    folder.mkdir(parents=True)
    command = [sys.executable, "-c", HOLDS, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"

        def done(_: float) -> None:  # in place of the wait: the other run ends
            assert not list(folder.glob("*.npy"))
            shutil.copytree(filled, tmp_path / "codes", dirs_exist_ok=True)
            other.communicate()

        monkeypatch.setattr(code_cache.time, "sleep", done)
        assert train(world, tmp_path / "run", "--cache_codes", tmp_path / "codes") == 0
    assert set(calls) == {"step"}


def test_two_runs_that_fill_a_folder_at_the_same_time_do_not_disturb_each_other(world: Path, tmp_path: Path) -> None:
    words = [*MASKED, *data(world), "--tokenizer_weight", world / "tokenizer" / "checkpoint.pth"]
    words += ["--precision", "fp64", "--cache_codes", tmp_path / "codes", "--output_dir"]
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(start, [ROOT / "run_labram_pretraining.py", *words, tmp_path / name], cwd=tmp_path)
            for name in ("a", "b")
        ]
        assert [run.result().returncode for run in runs] == [0, 0]
    assert unequal(tmp_path / "a", tmp_path / "b") == []
    (found,) = pieces(tmp_path / "codes" / "train", 0)
    expected = codes_of(world / "tokenizer" / "checkpoint.pth", world / "train" / "a.hdf5", PAIR)
    np.testing.assert_array_equal(found, expected)


# What is refused


@pytest.fixture
def refused(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that trains, which must fail with one line and leave the folder of codes as it was."""

    def run(folder: Path, *words: Any, says: list[str], code: int = 1, here: Path = world) -> None:
        before = contents(folder) if folder.is_dir() else None
        capsys.readouterr()
        assert train(here, tmp_path / "run", "--cache_codes", folder, *words) == code
        text = capsys.readouterr().err
        lines = [line for line in text.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in text, text
        assert all(part in lines[0] for part in (str(folder), "--cache_codes", *says)), lines[0]
        assert (contents(folder) if folder.is_dir() else None) == before

    return run


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        (["--precision", "fp32"], "precision float64, here float32"),
        (["--precision", "bf16"], "precision float64, here bfloat16"),
        (["--window_stride", 200], "windows 13 ("),
        (["--time_window", 1], "windows 13 ("),
    ],
)
def test_other_precision_or_windows_are_refused(refused: Any, filled: Path, words: list[Any], difference: str) -> None:
    refused(filled, *words, says=[difference, "delete"])


def test_another_tokenizer_is_refused(refused: Any, world: Path, filled: Path, tmp_path: Path) -> None:
    state = checkpoint(world / "tokenizer" / "checkpoint.pth")
    state["model"]["encoder.cls_token"][0, 0, 0] += 1e-3
    torch.save({"model": state["model"]}, tmp_path / "other.pth")
    refused(filled, "--tokenizer_weight", tmp_path / "other.pth", says=["weights "])


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("change", ["signal", "valid", "length", "name"])
def test_data_made_anew_are_refused(
    refused: Any, world: Path, filled: Path, tmp_path: Path, part: str, change: str
) -> None:
    shutil.copytree(world, tmp_path / "copy")
    path = tmp_path / "copy" / part / "a.hdf5"
    with h5py.File(path, "r+") as file:
        eeg = file["recording0/eeg"]
        if change == "signal":  # as with another filter: all of it, names and lengths the same
            eeg[:] = eeg[:] * 1.01
        elif change == "valid":
            file.pop("recording0/valid", None)
            file["recording0/valid"] = np.arange(-(-eeg.shape[1] // 200)) > 1
        elif change == "name":
            file.move("recording0", "another")
        else:
            file["new/eeg"] = eeg[:, :-400]
            file["new/eeg"].attrs.update(eeg.attrs)
            del file["recording0"]
            file.move("new", "recording0")
    says = ["signals "] if change == "signal" else ["windows "]
    refused(filled, here=tmp_path / "copy", says=[str(filled / part), *says])


def test_data_that_were_only_copied_are_the_same(world: Path, filled: Path, tmp_path: Path, calls: list[Any]) -> None:
    shutil.copytree(world, tmp_path / "copy", copy_function=shutil.copyfile)
    assert train(tmp_path / "copy", tmp_path / "run", "--cache_codes", filled) == 0
    assert set(calls) == {"step"}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def pickled(path: Path) -> None:
    np.save(path, np.array([[{}]], dtype=object), allow_pickle=True)


def wider(path: Path) -> None:
    np.save(path, np.load(path).astype(np.int64))


@pytest.mark.parametrize("harm", [cut, flip, pickled, wider, Path.unlink])
@pytest.mark.parametrize("part", ["train", "val"])
def test_a_damaged_or_missing_piece_is_named(refused: Any, filled: Path, tmp_path: Path, harm: Any, part: str) -> None:
    shutil.copytree(filled, tmp_path / "codes")
    harm(tmp_path / "codes" / part / "0-0.npy")
    refused(tmp_path / "codes", says=["0-0.npy", f"delete {tmp_path / 'codes' / part}"])


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"made of": 3}', '{"pieces": {}}', "[" * 100_000])
def test_a_damaged_manifest_is_named(refused: Any, filled: Path, tmp_path: Path, content: str) -> None:
    shutil.copytree(filled, tmp_path / "codes")
    (tmp_path / "codes" / "train" / "manifest.json").write_text(content)
    refused(tmp_path / "codes", says=["manifest.json", "delete"])


def test_a_folder_of_other_files_is_left_alone(refused: Any, filled: Path, tmp_path: Path) -> None:
    shutil.copytree(filled, tmp_path / "codes")
    (tmp_path / "codes" / "train" / "manifest.json").unlink()
    refused(tmp_path / "codes", code=2, says=["0-0.npy", "manifest.json"])


def test_a_place_that_cannot_be_written_is_named(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", code=2, says=["cannot be written"])
    refused(Path("/proc/codes"), code=2, says=["cannot be written"])


def test_a_codebook_that_int16_cannot_count_is_refused(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert np.iinfo(np.int16).max == code_cache.MAX_CODES - 1
    monkeypatch.setattr(code_cache, "MAX_CODES", 15)
    assert train(world, tmp_path / "run", "--cache_codes", tmp_path / "codes") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "--cache_codes" in line and "codebooks of up to 15; this one has 16" in line
    assert not (tmp_path / "codes").exists()
