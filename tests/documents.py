"""The documents, and the files of `benchmarks/results/` that their numbers come from.

RESULTS says which command writes which file; a file that is not there fails a test that needs it.
"""

import functools
import importlib
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from readme_text import ROOT

BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
FOLDER = BENCHMARKS / "results"
PATHS = [ROOT / "README.md", BENCHMARKS / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PATHS}
PROJECT, HERE = "README.md", "benchmarks/README.md"

# A results file -> the document with its tables or sentences, and the words of the command without `--json FILE`.
CODEBOOK = "codebook.py --data data/train --val_data data/val "
LARGE = "speed.py --repeats 3 --cases c --models large --batch 2 --geometries 32x8 --no_memory"
RESULTS = {
    "speed-cpu.json": (PROJECT, "speed.py --repeats 3"),
    "speed-large-cpu.json": (HERE, LARGE),
    "step-profile-cpu.json": (HERE, "step_profile.py --case a"),
    "step-profile-c-cpu.json": (HERE, "step_profile.py --case c --batch 8"),
    "choices-cpu.json": (HERE, "choices.py --repeats 7"),
    "reading-cpu.json": (HERE, "reading.py"),
    "embedding-cpu.json": (HERE, "embedding.py"),
    "cost-assumed.json": (
        HERE,
        "cost.py --speed benchmarks/results/speed-cpu.json --data benchmarks/results/data-cpu.json --assume 4e14",
    ),
    "codebook-512x200.json": (HERE, CODEBOOK + "--steps 200 --folder codebook_runs/512x200 --seeds 0"),
    "codebook-512x500.json": (
        HERE,
        CODEBOOK + "--steps 500 --folder codebook_runs/512x500 --seeds 0 1 "
        "--variants revival weak_entropy+revival width_32+revival",
    ),
    "codebook-2048x200.json": (
        HERE,
        CODEBOOK + "--codes 2048 --steps 200 --folder codebook_runs/2048x200 --seeds 0 "
        "--variants published revival expire_share weak_entropy+revival width_32+revival",
    ),
    "data-cpu.json": (HERE, "data.py --repeats 3"),
    "convert-cpu.json": (PROJECT, "convert.py --input eegmat"),
    "long-recording-cpu.json": (PROJECT, "long_recording.py"),
}
WITHOUT_TABLE = ("speed-large-cpu.json", "convert-cpu.json", "long-recording-cpu.json")  # sentences alone
COVERAGE = "coverage.md"  # of `make coverage`, with one more flag
PRINTED = {"demo-cpu.txt", "suite-cpu.txt", "fuzz-cpu.txt", "overfit-cpu.txt"}  # a command, and what it printed
TABLED = [name for name in RESULTS if name not in WITHOUT_TABLE]


def command(name: str) -> str:
    return f"python benchmarks/{RESULTS[name][1]} --json benchmarks/results/{name}"


def place(name: str) -> Path:
    """Return a results file's path; fail with the command that makes it where it is not there."""
    if not (FOLDER / name).is_file():
        pytest.fail(f"not measured yet: benchmarks/results/{name}; run: {command(name)}", pytrace=False)
    return FOLDER / name


def read(name: str) -> Any:
    return json.loads(place(name).read_text(encoding="utf-8"))


@functools.cache
def shown(name: str) -> str:
    """Return what the script that wrote a results file prints of it."""
    script = RESULTS[name][1].partition(".py")[0]
    with patch.object(sys, "argv", [script, "--show", str(place(name))]), patch("builtins.print") as printed:
        module = importlib.import_module(script)
        module.main(module.get_args())
    return "\n".join(str(text) for call in printed.call_args_list for text in call.args)


def flat(document: str) -> str:
    return " ".join(DOCUMENTS[document].split())
