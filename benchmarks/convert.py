"""Conversion of recordings: the maker beside a plain single-process MNE loop that does the same steps.

`python benchmarks/convert.py --input FOLDER [--jobs 2] [--repeats 3]`. Whole processes are timed, start included, in
turn, so that a noisy machine disturbs both alike; the ratio of the medians is what counts.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py

PROJECT = Path(__file__).resolve().parents[1]
PLAIN = """
import sys, h5py, mne
from pathlib import Path
with h5py.File(sys.argv[2], "w") as file:
    for path in sorted(Path(sys.argv[1]).rglob("*.edf")):
        raw = mne.io.read_raw(path, verbose="error")
        raw.drop_channels([name for name in raw.ch_names if name in ("EEG A2-A1", "ECG ECG")])
        raw.load_data(verbose="error")
        raw.filter(0.1, 75.0, verbose="error")
        raw.notch_filter(50.0, verbose="error")
        raw.resample(200.0, verbose="error")
        eeg = (raw.get_data() * 1e6).astype("float32")
        data = file.create_group(path.stem).create_dataset("eeg", data=eeg, chunks=(len(eeg), 200))
        data.attrs["chOrder"] = raw.ch_names
"""


def seconds(command: list[str]) -> float:
    """Run a command; returns how long it took."""
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=PROJECT)
    return time.monotonic() - began


def hours(folder: Path) -> float:
    """Return the hours of EEG in the HDF5 files of a folder."""
    samples = 0
    for path in folder.glob("*.hdf5"):
        with h5py.File(path) as file:
            samples += sum(group["eeg"].shape[1] for group in file.values())
    return samples / 200 / 3600


def main() -> None:
    """Time both in turn and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder of EDF recordings, such as eegmat")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    maker = [sys.executable, str(PROJECT / "dataset_maker" / "make_h5dataset_for_pretrain.py"), "--input"]
    times: dict[str, list[float]] = {"plain": [], "maker": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(args.repeats):
            plain, output = Path(folder) / f"plain{turn}", Path(folder) / f"maker{turn}"
            plain.mkdir()
            script = [sys.executable, "-c", PLAIN, str(args.input), str(plain / "all.hdf5")]
            times["plain"].append(seconds(script))
            command = [*maker, str(args.input), "--output", str(output), "--jobs", str(args.jobs)]
            times["maker"].append(seconds(command))
        assert abs(hours(plain) - hours(output)) < 1e-9, "both converted the same"
        length = hours(output)
    for name, values in times.items():
        middle = statistics.median(values)
        spread = f"{min(values):.1f} to {max(values):.1f}"
        print(f"{name:6} {middle:6.1f} s ({spread}), {length / middle * 60:5.1f} hours of EEG a minute")
    ratio = statistics.median(times["maker"]) / statistics.median(times["plain"])
    print(f"ratio  {ratio:6.2f} with --jobs {args.jobs}, {length:.2f} hours of EEG")


if __name__ == "__main__":
    main()
