"""Mutated recordings, data files and manifests end in one clean line or in the values that a plain reader sees.

The environment variable LABRAM_FUZZ sets how many mutants of each form and kind are tried (`mutants.py`; by default 4,
80 in all): `LABRAM_FUZZ=50 python -m pytest tests/test_fuzz.py -s` tries 1000 and prints how they ended.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mutants
from dataset_maker import make_h5dataset_for_pretrain, make_labelled
from demo import make_eeghdf
from maker_helpers import run_maker

TESTS = Path(__file__).parent
EACH = int(os.environ.get("LABRAM_FUZZ", "4"))
SECONDS = 60  # for one recording, whatever its bytes say
NOT_OURS = ("Roe", "Jane", "FEB-1981", "0234567")  # texts of headers
UNFILTERED = ("--l_freq", 0, "--h_freq", 0, "--notch", 0)


def write(folder: Path, form: str, numbers: range = range(EACH)) -> dict[str, Path]:
    """Write the mutants of a form; return name -> path."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for kind in mutants.KINDS:
        for number in numbers:
            name = f"{kind}-{number:03d}"
            paths[name] = folder / f"{name}{mutants.SUFFIX[form]}"
            paths[name].write_bytes(mutants.mutant(form, kind, number))
    return paths


def unclean(message: str) -> str | None:
    """Return what is wrong with a message for people, if anything."""
    if not message or len(message) > 1500:
        return f"a message of {len(message)} characters: {message[:300]}"
    if "Traceback" in message or not message.isprintable():
        return f"more than a line of printable text: {message!r}"
    if any(text in message for text in NOT_OURS):
        return f"quotes a header: {message}"
    ours = ("cannot be converted", "takes more than", "reader crash")  # of the first our code is at fault
    return message if any(text in message for text in ours) else None


def plain_differences(folder: Path, requests: list[list[Any]]) -> list[str | None]:
    """Return, for each `[form, source, made, options]`, how it differs from what a fresh process reads."""
    assert requests, "no mutant was read: there is nothing to compare"
    (folder / "requests.json").write_text(json.dumps(requests))
    command = [sys.executable, str(TESTS / "plain_readers.py"), str(folder / "requests.json")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60 + 2 * len(requests))
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def conclude(form: str, ends: dict[str, str], defects: dict[str, str]) -> None:
    """Print how the mutants ended; fail with all defects."""
    print(f"{form}: {len(ends)} mutants, {dict(sorted(Counter(ends.values()).items()))}")
    assert not defects, "\n".join(f"{form} {name}: {defect}" for name, defect in sorted(defects.items()))


def half_written(folder: Path) -> list[str]:
    """Return what a maker left behind that has another purpose than to be read."""
    return [str(path) for path in folder.rglob("*") if path.name.endswith((".part", ".scratch"))]


def test_a_mutant_is_always_the_same_and_each_is_another() -> None:
    for form in mutants.FORMS:
        for kind in mutants.KINDS:
            first = [mutants.mutant(form, kind, number) for number in range(6)]
            assert first == [mutants.mutant(form, kind, number) for number in range(6)]
            assert len(set(first)) == 6


@pytest.mark.parametrize(("form", "with_filters"), [("edf", False), ("edf", True), ("eeghdf", False)])
def test_mutated_recordings_convert_to_what_mne_reads_or_are_left_out_with_a_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture, form: str, with_filters: bool
) -> None:
    paths = write(tmp_path / "in", form, range(EACH) if form == "eeghdf" else range(int(with_filters), EACH, 2))
    maker = {"edf": make_h5dataset_for_pretrain, "eeghdf": make_eeghdf}[form]
    words = () if with_filters else (*UNFILTERED, "--rsfreq", 0)
    limits = ("--jobs", 2, "--time_limit", SECONDS, "--memory_limit", 2)
    code = run_maker(maker, "--input", tmp_path / "in", "--output", tmp_path / "out", *words, *limits)
    shown = capfd.readouterr()
    report = json.loads((tmp_path / "out.report.json").read_text())
    left_out = {Path(entry["path"]).name.partition(".")[0]: entry["reason"] for entry in report["left_out"]}
    assert code == int(bool(left_out)) and not half_written(tmp_path)
    assert "Traceback" not in shown.out + shown.err and not any(text in shown.out + shown.err for text in NOT_OURS)
    defects = {name: problem for name, message in left_out.items() if (problem := unclean(message))}
    journals = [json.loads(path.read_text()) for path in (tmp_path / "out" / ".making").glob("*.json")]
    entries = {
        Path(entry["path"]).name.partition(".")[0]: entry for journal in journals for entry in journal["recordings"]
    }
    made = [name for name in paths if name not in left_out]
    requests = [
        [form, str(paths[n]), [str(tmp_path / "out" / entries[n]["file"]), entries[n]["recording"]], with_filters]
        for n in made
    ]
    differences = plain_differences(tmp_path, requests)
    defects |= {name: problem for name, problem in zip(made, differences, strict=True) if problem}
    with capfd.disabled():
        conclude(form, {name: "message" if name in left_out else "values" for name in paths}, defects)


def made_from(folder: Path) -> tuple[int, str]:
    """Run the maker on `m.csv`; return its exit code and what it wrote on standard error."""
    errors = io.StringIO()
    words = ("--manifest", folder / "m.csv", "--output", folder / "out.hdf5", "--window", 1, "--jobs", 1, *UNFILTERED)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        code = run_maker(make_labelled, *words, "--time_limit", SECONDS)
    return code, errors.getvalue()


def test_mutated_manifests_make_what_their_rows_say_or_are_refused_with_a_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    manifests = write(tmp_path / "in", "manifest")
    defects, requests, ends = {}, {}, {}
    for name, path in manifests.items():
        folder = tmp_path / name
        (folder / "sub").mkdir(parents=True)
        for seed, recording in enumerate(("a.edf", "b c.edf", "sub/d.edf")):
            (folder / recording).write_bytes(mutants.edf(np.random.default_rng(seed)))
        (folder / "m.csv").write_bytes(path.read_bytes())
        try:
            code, errors = made_from(folder)
        except Exception as error:
            defects[name] = f"{type(error).__name__}: {error}"
            continue
        ends[name] = "message" if code else "values"
        wrong = [line for line in errors.splitlines() if unclean(line)]
        if wrong or half_written(folder) or bool(code) != bool(errors) or code not in (0, 1, 2):
            defects[name] = f"exit code {code}: {errors[:2000]}"
        elif (folder / "out.hdf5").exists():
            requests[name] = ["manifest", str(folder / "m.csv"), str(folder / "out.hdf5"), None]
    differences = plain_differences(tmp_path, list(requests.values()))
    defects |= {name: problem for name, problem in zip(requests, differences, strict=True) if problem}
    with capfd.disabled():
        conclude("manifest", ends, defects)
