"""The speed benchmark: ratios, entrants and results. That its entrants do the same work: test_plain.py."""

import importlib
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(SCRIPTS))

entrants = importlib.import_module("entrants")
measuring = importlib.import_module("measuring")
speed = importlib.import_module("speed")


def run(*words: Any) -> None:
    with patch.object(sys, "argv", ["speed.py", *map(str, words)]):
        speed.main(speed.get_args())


def test_ratios_are_of_one_round_and_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []
    durations = {"slow": iter([90.0, 6.0, 4.0, 10.0]), "fast": iter([1.0, 2.0, 2.0, 2.0])}

    def step(name: str) -> None:
        calls.append(name)
        clock[0] += next(durations[name])

    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])
    seconds = measuring.rounds({name: lambda name=name: step(name) for name in durations}, 3, "cpu")
    assert calls == ["slow", "fast"] * 4
    assert measuring.ratio(seconds, "slow", "fast") == {"median": 3, "low": 2, "high": 5, "repeats": 3}


@pytest.mark.nightly
@pytest.mark.skipif(importlib.util.find_spec("braindecode") is None, reason="braindecode is not installed")
@pytest.mark.parametrize("case", entrants.CASES)
def test_every_entrant_of_a_case_takes_its_steps(case: str) -> None:
    setting = entrants.Setting(case, 2, 1, model="base", batch=2, device="cpu", precision="fp32", tiny=True)
    with ExitStack() as stack:
        for step in entrants.entrants(setting, 2, stack).values():
            step()
            step()


@pytest.mark.nightly
def test_the_script_writes_its_numbers_and_shows_them_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--tiny", "--batch", 2, "--repeats", 2, "--cases", "b", "--geometries", "23x10", "--device", "cpu"]
    run(*words, "--json", tmp_path / "speed.json")
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "speed.json").read_text())
    ours, plain = found["rows"]
    assert (ours["variant"], plain["variant"]) == ("ours", "plain") and set(ours["times_faster_than"]) == {"plain"}
    for row in (ours, plain):
        assert row["samples_per_second"] == pytest.approx(2 / row["seconds"]["median"]) and row["peak_bytes"] >= 0
        share = row["gflops_per_sample"] * 1e9 * row["samples_per_second"] / found["machine"]["best_product_flops"]
        assert row["share_of_best_product"] == pytest.approx(share)
    run("--show", tmp_path / "speed.json")
    assert capsys.readouterr().out in printed
