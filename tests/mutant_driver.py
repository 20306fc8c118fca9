"""Read mutated HDF5 files as training and `dataset_maker.inspect` do, one after the other, in a process to be lost.

`python mutant_driver.py FORM FILE...` with FORM `pretraining` or `labelled`: prints a line of JSON when it begins with
a file and one when it is done. What training reads goes to `FILE.npz`.
"""

import contextlib
import io
import json
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

import labelled_data
from data_helpers import parse, plain_run, pretraining_loaders
from dataset_maker import inspect
from errors import InputError, one_line, run_script
from labelled_files import read_labelled

SECONDS = 60  # that a file may take before the process is ended
ADDRESSES = 6 << 30  # bytes: PyTorch alone takes two or three


def read_pretraining(path: Path) -> dict[str, Any]:
    """Return every window of a second that training would see."""
    loaders = pretraining_loaders("--train_data", path, "--time_window", 1, "--val_data", path)
    names, starts, eeg, found = [], [], [], {}
    for windows in loaders.train.dataset.montages:
        for recording in windows.recordings:
            found[f"montage {recording.name}"] = np.array(recording.montage)
        for index in range(len(windows)):
            recording, start = windows.locate(index)
            names.append(recording.name)
            starts.append(start)
            eeg.append(windows[index])
    for _ in loaders.train:
        pass
    return {**found, "name": np.array(names), "start": np.array(starts), "eeg": np.array(eeg, dtype=np.float32)}


def read_labelled_set(path: Path) -> dict[str, Any]:
    """Return every sample that training would see."""
    args = parse([], labelled_data.add_labelled_arguments, batch_size=4, num_workers=0, seed=0)
    file = read_labelled(path)
    loaders = labelled_data.build_labelled_loaders(args, plain_run(Path()), file)
    found: dict[str, Any] = {"montage": np.array(file.montage)}
    for split in ("train", "val", "test"):
        loader = getattr(loaders, split)
        if loader is None:
            continue
        data = loader.dataset
        rows = [data[0, 0, index] for index in range(len(data))]
        found |= {f"{split} samples": data.samples, f"{split} eeg": np.array([row[0]() for row in rows])}
        found |= {f"{split} label": np.array([row[2] for row in rows], dtype=np.float32)}
        found |= {f"{split} recording": np.array(data.recordings), f"{split} subject": np.array(data.subjects)}
        for _ in loader:
            pass
    return found


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {"pretraining": read_pretraining, "labelled": read_labelled_set}


def trained_on(form: str, path: Path) -> dict[str, Any]:
    """Read a file as training does; returns its message, the values, or the traceback."""
    try:
        found = READERS[form](path)
    except InputError as error:
        return {"message": one_line(error)}
    except Exception:
        return {"traceback": traceback.format_exc()}
    np.savez(f"{path}.npz", **found)
    return {"values": True}


def inspected(path: Path) -> dict[str, Any]:
    """Run `dataset_maker.inspect` on a file; returns its exit code and what it wrote, or the traceback."""
    out, err = io.StringIO(), io.StringIO()
    words = ["inspect", str(path), "--json", f"{path}.json"]
    code: Any = 0
    with patch.object(sys, "argv", words), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            run_script(inspect.main, inspect.get_args())
        except SystemExit as end:
            code = end.code or 0
        except Exception:
            return {"traceback": traceback.format_exc()}
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def main() -> None:
    """Read all files."""
    torch.set_num_threads(1)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, hard))
    form, *paths = sys.argv[1:]
    for path in map(Path, paths):
        print(json.dumps({"begins": path.name}), flush=True)
        signal.alarm(SECONDS)  # ends the process wherever it is
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = {"training": trained_on(form, path), "inspect": inspected(path)}
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
        print(json.dumps({"megabytes": more, **found}), flush=True)
    signal.alarm(0)


if __name__ == "__main__":
    main()
