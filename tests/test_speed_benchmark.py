"""The speed benchmark and the cost model: their numbers are what they say, and everything runs at tiny size."""

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

from errors import InputError, UsageError

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(SCRIPTS))

cost = importlib.import_module("cost")
entrants = importlib.import_module("entrants")
measuring = importlib.import_module("measuring")
speed = importlib.import_module("speed")
step_profile = importlib.import_module("step_profile")
embedding = importlib.import_module("embedding")

MB = 2**20


def run(module: Any, *words: Any) -> None:
    with patch.object(sys, "argv", [module.__file__, *map(str, words)]):
        module.main(module.get_args())


def setting(case: str, **options: Any) -> Any:
    usual = {"model": "base", "batch": 2, "device": "cpu", "precision": "fp32", "tiny": True}
    return entrants.Setting(case, 2, 1, **{**usual, **options})


# Measuring


def test_rounds_take_turns_and_leave_the_first_out() -> None:
    calls: list[str] = []
    steps = {name: lambda name=name: calls.append(name) for name in ("one", "other")}
    seconds = measuring.rounds(steps, 3, "cpu", warm_up=2)
    assert calls == ["one", "other"] * 5 and [len(values) for values in seconds.values()] == [3, 3]


def test_a_step_that_takes_longer_is_that_much_slower_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slow, fast = [0.0], iter([90.0, 6.0, 4.0, 10.0]), iter([1.0, 2.0, 2.0, 2.0])  # the first round is no round

    def takes(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])
    steps = {"slow": lambda: takes(next(slow)), "fast": lambda: takes(next(fast))}
    found = measuring.ratio(measuring.rounds(steps, 3, "cpu"), "slow", "fast")
    assert found == {"median": 3, "low": 2, "high": 5, "repeats": 3}


def test_peak_memory_is_what_a_step_held_at_most() -> None:
    def step() -> None:
        torch.ones(40 * MB).sum()  # 160 MB of float32

    assert 150 * MB < measuring.peak_memory(step, "cpu") < 200 * MB
    assert measuring.peak_memory(lambda: None, "cpu") < 20 * MB


def test_peak_memory_counts_what_a_step_takes_of_memory_that_was_freed_before() -> None:
    def step() -> list[torch.Tensor]:
        return [torch.ones(2**10) for _ in range(2**13)]  # 32 MB in pieces too small to go back to the system

    held = step()
    keep = torch.ones(2**10)  # above them, so that their memory stays with the process
    del held
    assert measuring.peak_memory(step, "cpu") > 25 * MB
    assert keep.sum() == 2**10


def test_flops_and_traffic_of_a_matrix_product() -> None:
    a, b = torch.ones(30, 40), torch.ones(40, 50)
    assert measuring.flops_of(lambda: a @ b) == 2 * 30 * 40 * 50
    assert measuring.traffic_of(lambda: a @ b) == 4 * (30 * 40 + 40 * 50 + 30 * 50)


def test_fused_attention_counts_like_two_matrix_products() -> None:
    q = torch.ones(2, 3, 7, 4)
    attention = lambda: nn.functional.scaled_dot_product_attention(q, q, q)  # noqa: E731
    assert measuring.flops_of(attention) == 2 * 2 * (2 * 3 * 7 * 7 * 4)


# What is timed


@pytest.mark.parametrize("case", entrants.CASES)
def test_every_entrant_of_a_case_takes_its_steps(case: str) -> None:
    missing = [n for n, p in (("braindecode", "braindecode"), ("library", "vector_quantize_pytorch")) if not there(p)]
    wanted = [name for name in entrants.CASES[case] if name not in missing]
    for name in wanted:
        with ExitStack() as stack:
            step = entrants.entrants(setting(case), 2, stack, only=name)[name]
            step()
            step()


def there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@pytest.mark.parametrize("case", ["a", "c", "d"])
def test_a_timed_step_of_the_product_is_a_whole_training_step(case: str) -> None:
    with ExitStack() as stack:
        taken = []
        original = entrants.build_update

        def build(*arguments: Any, **options: Any) -> Any:
            taken.append(original(*arguments, **options))
            return taken[-1]

        with patch.object(entrants, "build_update", build):
            step = entrants.entrants(setting(case), 3, stack, only="ours")["ours"]
        update = taken[0]
        before = {name: p.clone() for name, p in update.model.named_parameters() if p.requires_grad}
        step()
        assert update.step == 3
        moved = [not torch.equal(p, before[name]) for name, p in update.model.named_parameters() if name in before]
        assert sum(moved) > 0.9 * len(moved)


def test_models_of_the_product_and_of_plain_have_the_same_parameters() -> None:
    for size in ("base", "large"):
        case = setting("c", tiny=False, model=size)
        with torch.device("meta"):
            own = entrants.create_model(entrants.masked_name(case))
            other = entrants.plain.MaskedModel(**case.sizes)
            assert {k: v.shape for k, v in own.state_dict().items()} == {
                k: v.shape for k, v in other.state_dict().items()
            }
            tokenizers = entrants.tokenizer_of(case), entrants.plain.VQNSP(depths=case.depths, n_code=case.codes)
        assert len({str({k: v.shape for k, v in sorted(t.state_dict().items())}) for t in tokenizers}) == 1


def test_the_script_prints_80_columns_and_writes_its_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed.measuring, "bandwidth", lambda _: 1e10)
    words = ["--tiny", "--batch", 2, "--repeats", 2, "--cases", "b", "q", "--geometries", "23x10", "--device", "cpu"]
    if not there("vector_quantize_pytorch"):
        words[6:8] = ["b"]
    run(speed, *words, "--json", tmp_path / "speed.json")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    found = json.loads((tmp_path / "speed.json").read_text())
    assert {"date", "device", "threads", "libraries", "best_product_flops"} <= found["machine"].keys()
    for row in found["rows"]:
        expected = (2 if row["case"] == "b" else 64 * 64) / row["seconds"]["median"]
        assert row["samples_per_second"] == pytest.approx(expected) and row["peak_bytes"] >= 0
        share = row["gflops_per_sample"] * 1e9 * row["samples_per_second"] / found["machine"]["best_product_flops"]
        assert row["share_of_best_product"] == pytest.approx(share)
    ours, plain = found["rows"][:2]
    assert (ours["variant"], plain["variant"]) == ("ours", "plain")
    assert set(ours["times_faster_than"]) == {"plain"} and ours["gflops_per_sample"] == plain["gflops_per_sample"]


def test_with_cached_codes_the_tokenisation_is_not_counted(tmp_path: Path) -> None:
    words = ["--tiny", "--batch", 2, "--repeats", 1, "--geometries", "23x10", "--device", "cpu", "--no_memory"]
    run(speed, *words, "--cases", "b", "c", "--steps", 2, "--json", tmp_path / "speed.json")
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    counted = {(row["case"], row["variant"]): row["gflops_per_sample"] for row in rows}
    assert counted["c", "ours"] == counted["c", "plain"] > counted["c", "cached"] > 0
    assert counted["c", "cached"] == pytest.approx(counted["c", "plain"] - counted["b", "plain"])


def test_operations_that_torch_names_fall_into_their_groups() -> None:
    a, q = torch.randn(30, 30), torch.randn(1, 2, 50, 10)
    doings = {
        "matrix products": lambda: a @ a,
        "attention, fused": lambda: nn.functional.scaled_dot_product_attention(q, q, q),
        "softmax": lambda: a.softmax(1),
        "LayerNorm, GroupNorm": lambda: nn.functional.layer_norm(a, (30,)),
        "GELU, tanh": lambda: nn.functional.gelu(a),
        "convolutions": lambda: nn.functional.conv1d(q[0], torch.randn(3, 50, 4)),
        "spectrum": lambda: torch.fft.fft(a),
        "copies, cat, fills": lambda: torch.cat([a, a]),
        "sums, arithmetic": lambda: a * a,
    }
    for group, do in doings.items():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as seen:
            do()
        groups = {event.key: step_profile.group_of(event.key) for event in seen.key_averages()}
        assert group in groups.values(), groups
        others = set(groups.values()) - {group, "copies, cat, fills", "everything else"}
        assert not others, groups


def test_a_profile_is_a_column_an_entrant_and_adds_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(step_profile, "--tiny", "--batch", 1, "--repeats", 2, "--case", "b", "--json", tmp_path / "profile.json")
    lines = capsys.readouterr().out.splitlines()
    run(step_profile, "--show", tmp_path / "profile.json")
    assert capsys.readouterr().out.splitlines() == lines[:-1]
    found = json.loads((tmp_path / "profile.json").read_text())
    assert found["settings"]["case"] == "b" and "code_version" in found["machine"]
    assert all(values["repeats"] == 2 for groups in found["seconds"].values() for values in groups.values())
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[0] == ["seconds a step", "ours", "plain"] and rows[-1][0] == "together"
    for column in (1, 2):
        values = [float(row[column]) for row in rows[2:]]
        assert sum(values[:-1]) == pytest.approx(values[-1], abs=0.0006 * len(values)) and values[-1] > 0


def test_the_share_of_embedding_is_the_models_time_over_the_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--minutes", 0.5, "--electrodes", 2, "--repeats", 1, "--model", "labram_tiny_patch200_200"]
    run(embedding, *words, "--rate", 200, 250, "--json", tmp_path / "e.json")
    found = json.loads((tmp_path / "e.json").read_text())
    assert [row["rate"] for row in found["rows"]] == [200, 250] and found["settings"]["electrodes"] == 2
    for row in found["rows"]:
        seconds = {name: values["median"] for name, values in row["seconds"].items()}
        assert row["share"]["median"] == pytest.approx(seconds["model"] / seconds["command"])
        assert row["patches"] == 16 * 2
    printed = capsys.readouterr().out
    run(embedding, "--show", tmp_path / "e.json")
    assert printed.endswith(capsys.readouterr().out) and "of the model's own rate" in printed


@pytest.mark.parametrize(
    ("module", "words", "says"),
    [
        (embedding, ["--minutes", -3], "--minutes must be at least 0.27"),
        (embedding, ["--repeats", 0], "--repeats at least 1"),
        (embedding, ["--model", "none"], "--model none: allowed are labram_base"),
        (embedding, ["--json", "/dev/null/a.json"], "--json /dev/null cannot be written"),
        (step_profile, ["--batch", 0], "--batch and --repeats must be at least 1"),
        (step_profile, ["--case", "b", "--entrants", "nobody"], "--entrants nobody: allowed in case b are ours, plain"),
    ],
)
def test_words_that_cannot_be_right_are_refused_before_anything_is_measured(
    module: Any, words: list[Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        run(module, *words)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"rows": 3}', '{"x": 1}'])
def test_a_file_that_holds_no_results_is_one_line_with_a_way_out(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "speed.json"
    if content is not None:
        path.write_text(content)
    flags = ((speed, "--show"), (cost, "--speed"), (cost, "--show"), (step_profile, "--show"), (embedding, "--show"))
    for module, flag in flags:
        with pytest.raises(InputError, match=r"speed.json is no results file .* --json FILE"):
            run(module, flag, path)


@pytest.mark.parametrize(
    "words", [("--repeats", 0), ("--steps", -1), ("--batch", 0), ("--json", "/proc/none/x.json")], ids=str
)
def test_a_flag_that_cannot_be_right_is_refused_before_anything_is_timed(words: tuple[Any, ...]) -> None:
    with pytest.raises(UsageError, match=f"^{words[0]}"):
        run(speed, *words)


# The cost model

SMALL = cost.Training("small", "", "c", "base", epochs=10, stride=4, batch=64)


def test_hours_on_one_device_are_flops_over_rate() -> None:
    counted = cost.Counted(parameters=10**6, flops=10**9, kept_bytes=10**6)
    # 100 h of EEG are 90 000 windows, ten times: 9e5 x 1e9 FLOPs at 1e12 a second are 900 s.
    assert cost.hours_of(SMALL, counted, 100, 1e12, 1, 1e9) == pytest.approx(900 / 3600)


def test_more_devices_share_the_time_until_gradients_take_longer_than_the_backward_pass() -> None:
    counted = cost.Counted(parameters=10**6, flops=10**9, kept_bytes=10**6)
    fast = [cost.hours_of(SMALL, counted, 100, 1e12, n, 1e12) for n in (1, 8, 64)]
    assert fast[0] / fast[1] == pytest.approx(8) and fast[0] / fast[2] == pytest.approx(64)
    # 64 devices compute 1 ms a step, of which 2/3 hide the gradients; those need 2 x 63/64 x 4 MB / 1 GB/s = 7.875 ms.
    step = sum(cost.step_seconds(SMALL, counted, 1e12, 64, 1e9))
    assert step == pytest.approx(1e-3 + 7.875e-3 - 2e-3 / 3)


def test_memory_is_the_state_and_what_windows_keep() -> None:
    counted = cost.Counted(parameters=10**6, flops=1, kept_bytes=10**7)
    assert cost.memory_bytes(counted, 8) == 16 * 10**6 + 8 * 10**7


def test_what_is_counted_grows_with_depth_as_blocks_do() -> None:
    flops = {}
    for name in ("tiny", "base"):
        training = cost.Training(name, f"labram_{name}_patch200_1600_8k_vocab", "c", "base", 1, 1, 1)
        flops[name] = cost.count(training, None)
    blocks = 8  # more in base
    tokens, width = 257, 200
    block = 12 * width**2 * 2 * tokens + 2 * 2 * tokens**2 * width
    assert flops["base"].flops - flops["tiny"].flops == pytest.approx(2 * 3 * blocks * block, rel=1e-3)
    assert flops["base"].parameters - flops["tiny"].parameters == blocks * (12 * width**2 + 12 * width + 4 * 20)


TUEV = next(task for task in cost.FINE_TUNINGS if task.name.startswith("TUEV"))


def test_fine_tuning_trains_on_train_and_evaluates_val_and_test_every_epoch() -> None:
    counted = cost.Counted(parameters=10**6, flops=10**9, kept_bytes=10**6, evaluation_flops=3 * 10**8)
    # 68445 windows are 134 steps of 512, each 0.512 s at 1e12 FLOP/s; 15487 + 29421 take 0.3 ms each; 50 epochs.
    seconds = 50 * (134 * 0.512 + 44908 * 3e-4)
    assert cost.fine_tuning_hours(TUEV, counted, 1e12, 1, 1e12) == pytest.approx(seconds / 3600)
    assert cost.fine_tuning_hours(TUEV, counted, 1e12, 8, 1e12) == pytest.approx(seconds / 8 / 3600)
    assert cost.file_bytes(TUEV) == 113353 * 23 * 1000 * 4


def test_what_a_window_of_tuab_takes_is_what_was_counted_of_the_straightforward_formulation() -> None:
    task = next(task for task in cost.FINE_TUNINGS if task.name.startswith("TUAB"))
    rows = json.loads((SCRIPTS / "results/speed-cpu.json").read_text())["rows"]
    plain = {row["case"]: row["gflops_per_sample"] for row in rows if row["geometry"] == "23x10"}
    found = cost.count_fine_tuning(task, None)
    assert found.flops / 1e9 == pytest.approx(plain["d"], rel=1e-4)
    assert found.evaluation_flops / 1e9 == pytest.approx(plain["e"], rel=1e-4)
    assert found.parameters == pytest.approx(5.82e6, rel=2e-3) and found.kept_bytes > 30e6


def test_reading_takes_the_rate_of_one_loading_process(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    rows = [{"case": f"loader, {n} workers", "mb_per_second": 100.0 + n} for n in range(3)]
    path.write_text(json.dumps({"geometries": [{"rows": rows}]}))
    assert cost.reading_rate(path) == 101e6
    for content in ('{"rows": []}', '{"geometries": [{"rows": []}]}', "[]", "{"):
        path.write_text(content)
        with pytest.raises(InputError, match=r"data.json is no results file of data.py .* --json FILE"):
            cost.reading_rate(path)


def test_the_table_of_fine_tuning_has_a_row_for_each_set_with_and_without_the_rate_of_reading() -> None:
    row = {"gflop_trained": 9.5, "gflop_evaluated": 3.2, "file_gb": 75.3, "gb_of_64_windows": 1.5}
    row |= {"minutes": {"1": 6.66, "8": 0.83}}
    text = cost.fine_tuning_table({"a": row | {"reading_minutes": 70.2}, "b": row | {"reading_minutes": None}})
    line = "9.5, 3.2 | 75.3 | 1.5 | 6.7 | 0.8"
    assert text.splitlines()[2:] == [f"| a | {line} | 70 |", f"| b | {line} | - |"]
