"""Make the project's environment and run something in it, with nothing but Python's standard library.

`python3 bootstrap.py env|demo|test|coverage|soak [further arguments]`: what `make` with the same word calls. The
environment is made once and renewed when the requirements change. Further arguments go to the demo or to pytest.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parent
REQUIREMENTS, CONSTRAINTS = PROJECT / "requirements.txt", PROJECT / "constraints.txt"
COMPARED = PROJECT / "benchmarks" / "requirements.txt"  # further packages of the tests
# A file's tests stay together, because they share what its fixtures made; files begin in their order, so that the
# long ones are not left for the end. More processes than four would gain little and want memory.
PARALLEL = ("-n", "logical", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder")
COMMANDS = {
    "demo": ("-m", "demo"),
    "test": ("-m", "pytest", *PARALLEL),
    "coverage": ("-m", "pytest", *PARALLEL, "--cov", "--cov-report", "term"),
    "soak": ("-m", "pytest", "tests/test_recovery.py"),
}
VARIABLES = {"soak": {"LABRAM_SOAK": "20"}}  # moments a stage, unless the variable is set already


def make_environment(folder: Path, *, pinned: bool, requirements: Sequence[Path] = (REQUIREMENTS,)) -> Path:
    """Make the environment, or renew what changed; returns its Python.

    pinned: install the versions of constraints.txt, else the newest that are allowed. requirements: files, the
    product's first. Raises OSError and CalledProcessError where it cannot be made.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (python.is_file() and (folder / "requirements.sha256").is_file()):  # also one that was cut off
        print(f"Making the environment {folder} (about 5.5 GB, 2 minutes).", flush=True)
        venv.create(folder, with_pip=True)
    for number, file in enumerate(requirements):
        stamp = folder / ("requirements.sha256" if number == 0 else "further-requirements.sha256")
        wanted = hashlib.sha256(file.read_bytes() + (CONSTRAINTS.read_bytes() if pinned else b"")).hexdigest()
        if stamp.is_file() and stamp.read_text() == wanted:
            continue
        constraints = ["--constraint", str(CONSTRAINTS)] if pinned else ["--upgrade", "--upgrade-strategy", "eager"]
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *constraints]
        subprocess.run([*command, "--requirement", str(file)], check=True)
        stamp.write_text(wanted)
    return python


def main() -> int:
    """Make the environment and run the command in it; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "command",
        choices=["env", *COMMANDS],
        help="only the environment; the demo; all tests; all tests, their lines counted; or runs that are killed "
        "at more moments than in the tests",
    )
    parser.add_argument(
        "--venv", type=Path, default=PROJECT / ".venv", help="folder of the environment (default: .venv beside this)"
    )
    parser.add_argument("--newest", action="store_true", help="newest allowed versions instead of constraints.txt")
    args, further = parser.parse_known_args()
    try:
        # What the tests compare with holds back the newest torch, so only the tested versions have it.
        compared = args.command in ("test", "coverage") and not args.newest
        files = (REQUIREMENTS, COMPARED) if compared else (REQUIREMENTS,)
        python = make_environment(args.venv.absolute(), pinned=not args.newest, requirements=files)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"error: the environment {args.venv} could not be made: {error}", file=sys.stderr)
        return 1
    if args.command == "env":
        return 0
    variables = {**VARIABLES.get(args.command, {}), **os.environ}
    return subprocess.run([str(python), *COMMANDS[args.command], *further], cwd=PROJECT, env=variables).returncode


if __name__ == "__main__":
    sys.exit(main())
