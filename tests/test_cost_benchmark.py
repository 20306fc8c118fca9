"""The cost model's command: its tables follow from the rates that it is given, and are printed again from its file."""

import importlib
import json
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from errors import InputError, UsageError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

cost = importlib.import_module("cost")
measuring = importlib.import_module("measuring")

RATES = {"tokenizer": 2e11, "Base": 1e11, "Large": 5e10}  # FLOP/s; Huge was not measured


def run(*words: Any) -> None:
    with patch.object(sys, "argv", ["cost.py", *map(str, words)]):
        cost.main(cost.get_args())


def speed_file(path: Path, names: tuple[str, ...] = tuple(RATES)) -> Path:
    """Write results of speed.py with these trainings' rates, and rows that are none of the product's."""
    usual = {"electrodes": cost.ELECTRODES, "window": cost.SECONDS, "gflops_per_sample": 10.0}
    rows = []
    for training in cost.TRAININGS:
        if training.name in names:
            row = {"case": training.case, "model": training.size, **usual}
            rows.append({**row, "variant": "plain", "samples_per_second": 1.0})
            rows.append({**row, "variant": "ours", "samples_per_second": RATES[training.name] / 10e9})
    path.write_text(json.dumps({"rows": rows}))
    return path


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """All models are tiny ones."""
    masked, tokenizer = "labram_tiny_patch200_1600_8k_vocab", "vqnsp_encoder_tiny_decoder_1x200x4"
    models = {"a": tokenizer, "c": masked}
    monkeypatch.setattr(cost, "TRAININGS", tuple(replace(t, model=models[t.case]) for t in cost.TRAININGS))
    small = (replace(task, model="labram_tiny_patch200_200", seconds=1) for task in cost.FINE_TUNINGS)
    monkeypatch.setattr(cost, "FINE_TUNINGS", tuple(small))


def cells(text: str) -> dict[str, list[list[str]]]:
    """Return the rows of all tables by their first cell."""
    found: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("| "):
            first, *rest = [cell.strip() for cell in line.strip("|").split("|")]
            found.setdefault(first, []).append(rest)
    return found


@pytest.mark.usefixtures("tiny")
def test_tables_follow_from_the_measured_rates_and_are_printed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reading = {"geometries": [{"rows": [{"case": "loader, 1 workers", "mb_per_second": 50.0}]}]}
    (tmp_path / "data.json").write_text(json.dumps(reading))
    words = ["--speed", speed_file(tmp_path / "speed.json"), "--data", tmp_path / "data.json"]
    run(*words, "--json", tmp_path / "cost.json")
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "cost.json").read_text())
    assert found["rates"] == pytest.approx(RATES | {"Huge": RATES["Base"]}), "Huge has Base's"
    flops = {name: values["flops"] for name, values in found["counted"].items()}
    # 2500 h are 2250000 windows of Base, one each four seconds, 50 times.
    base = cells(printed)["Base"]
    assert float(base[0][2].replace(",", "")) == pytest.approx(2250000 * 50 * flops["Base"] / 1e11 / 3600, abs=0.06)
    large = [float(value) for value in cells(printed)["Large"][-1]]
    assert large == pytest.approx([1e11 / flops["Large"], 5e10 / flops["Large"]], abs=6e-4), "predicted, measured"
    assert "Huge" not in printed.split("\n\n")[-1], "there is no measurement to compare with"
    for name, windows in (("TUAB v3.0.1", 409455), ("TUEV v2.0.1", 113353)):
        row = found["fine_tuning"][name]
        assert sum(row["windows"]) == windows and row["file_gb"] == pytest.approx(windows * 23 * 200 * 4 / 1e9)
        assert row["reading_minutes"] == pytest.approx(50 * row["file_gb"] * 1e9 / 50e6 / 60)
        assert row["minutes"]["1"] == pytest.approx(8 * row["minutes"]["8"]), "gradients are hidden"
    run("--show", tmp_path / "cost.json")
    assert printed.startswith(capsys.readouterr().out.rstrip("\n") + "\n\n| training | windows a second")


@pytest.mark.usefixtures("tiny")
def test_an_assumed_rate_is_that_of_every_training_but_measurements_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speed = speed_file(tmp_path / "speed.json")
    run("--speed", speed, "--assume", 4e14, "--precision", "fp32", "--json", tmp_path / "fp32.json")
    compared = cells(capsys.readouterr().out)["Large"][-1]
    run("--speed", speed, "--assume", 4e14, "--json", tmp_path / "bf16.json")
    full, half = (json.loads((tmp_path / name).read_text()) for name in ("fp32.json", "bf16.json"))
    assert set(full["rates"].values()) == {4e14} and full["fine_tuning"]["TUAB v3.0.1"]["reading_minutes"] is None
    assert float(compared[1]) == pytest.approx(5e10 / full["counted"]["Large"]["flops"], abs=6e-4)
    for name, counts in full["counted"].items():
        assert half["counted"][name]["kept_bytes"] < counts["kept_bytes"], "bfloat16 keeps less"
        assert half["counted"][name]["flops"] == counts["flops"]


def test_a_file_without_a_rate_of_stages_1_and_2_is_refused(tmp_path: Path) -> None:
    for names in (("Base", "Large"), ("tokenizer", "Large")):
        with pytest.raises(InputError, match=r"speed.json: no rows of the product for cases a and c at 32x8, base"):
            run("--speed", speed_file(tmp_path / "speed.json", names))


# What all benchmarks share


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    loading = importlib.import_module("data")
    with (
        patch.object(sys, "argv", ["data.py", "--device", "cuda"]),
        pytest.raises(UsageError, match="--device cuda: no GPU was found; use --device cpu"),
    ):
        loading.main(loading.get_args())


def test_a_result_names_the_versions_of_the_libraries_that_are_there_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measuring, "LIBRARIES", ("torch", "no-such-package-of-anyone"))
    assert measuring.hardware("cpu")["libraries"] == {"torch": metadata.version("torch")}
