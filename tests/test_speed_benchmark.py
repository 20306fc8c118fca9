"""The speed benchmark measures what it says, and its entrants do the same work."""

import importlib
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from errors import UsageError

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(SCRIPTS))

entrants = importlib.import_module("entrants")
measuring = importlib.import_module("measuring")
speed = importlib.import_module("speed")

MB = 2**20


def run(*words: Any) -> None:
    with patch.object(sys, "argv", ["speed.py", *map(str, words)]):
        speed.main(speed.get_args())


def setting(case: str, **options: Any) -> Any:
    usual = {"model": "base", "batch": 2, "device": "cpu", "precision": "fp32", "tiny": True}
    return entrants.Setting(case, 2, 1, **{**usual, **options})


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


def test_peak_memory_is_what_a_step_holds_at_most_also_where_memory_was_freed_before() -> None:
    def step() -> list[torch.Tensor]:
        return [torch.ones(2**10) for _ in range(2**13)]  # 32 MB in pieces too small to go back to the system

    held = step()
    keep = torch.ones(2**10)  # above them, so that their memory stays with the process
    del held
    assert 25 * MB < measuring.peak_memory(step, "cpu") < 60 * MB
    assert measuring.peak_memory(lambda: None, "cpu") < 20 * MB
    assert keep.sum() == 2**10


def test_flops_are_those_of_matrix_products_and_fused_attention_counts_as_two() -> None:
    a, b, q = torch.ones(30, 40), torch.ones(40, 50), torch.ones(2, 3, 7, 4)
    assert measuring.flops_of(lambda: a @ b) == 2 * 30 * 40 * 50
    attention = lambda: nn.functional.scaled_dot_product_attention(q, q, q)  # noqa: E731
    assert measuring.flops_of(attention) == 2 * 2 * (2 * 3 * 7 * 7 * 4)


@pytest.mark.nightly
@pytest.mark.skipif(importlib.util.find_spec("braindecode") is None, reason="braindecode is not installed")
@pytest.mark.parametrize("case", entrants.CASES)
def test_every_entrant_of_a_case_takes_its_steps(case: str) -> None:
    with ExitStack() as stack:
        for step in entrants.entrants(setting(case), 2, stack).values():
            step()
            step()


@pytest.mark.parametrize("case", ["a", "c", "d"])
def test_a_timed_step_of_the_product_is_a_whole_training_step(case: str) -> None:
    with ExitStack() as stack:
        built = []
        original = entrants.build_update

        def build(*arguments: Any, **options: Any) -> Any:
            built.append(original(*arguments, **options))
            return built[-1]

        with patch.object(entrants, "build_update", build):
            step = entrants.entrants(setting(case), 3, stack, only="ours")["ours"]
        (update,) = built
        before = {name: p.clone() for name, p in update.model.named_parameters() if p.requires_grad}
        step()
        assert update.step == 3
        moved = [not torch.equal(p, before[name]) for name, p in update.model.named_parameters() if name in before]
        assert sum(moved) > 0.9 * len(moved)


def test_models_of_the_product_and_of_plain_have_the_same_parameters() -> None:
    large = setting("c", tiny=False, model="large")
    with torch.device("meta"):
        pairs = [
            (entrants.create_model("labram_large_patch200_1600_8k_vocab"), entrants.plain.MaskedModel(**large.sizes)),
            (
                entrants.create_model(large.tokenizer, quantize_kmeans_init=False),
                entrants.plain.VQNSP(depths=(24, 3), n_code=large.codes),
            ),
        ]
    for models in pairs:
        own, other = ({key: value.shape for key, value in model.state_dict().items()} for model in models)
        assert own == other


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


@pytest.mark.parametrize("words", [("--repeats", 0), ("--steps", -1), ("--json", "/proc/none/x.json")], ids=str)
def test_a_flag_that_cannot_be_right_is_refused_before_anything_is_timed(words: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError, match=f"^{words[0]}"):
        run(*words)
