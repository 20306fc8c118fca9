"""The paths through GPUs and NCCL, over a stand-in for both (`nullgpu`): kernels are the CPU's, the rest is torch's."""

import json
import math
import os
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import create_model

import devices
import nullgpu
from devices import Graphs
from electrodes import ELECTRODES
from ranks import smaller_sizes
from run_helpers import CLASSIFIER, MASKED, ROOT, TOKENIZER, labelled_file, log_lines, pretraining_file

pytestmark = pytest.mark.skipif(bool(nullgpu.lacking()), reason=f"no stand-in for a GPU: {nullgpu.lacking()}")
TINY_TOKENIZER = "vqnsp_encoder_tiny_decoder_1x200x4"
STAGES = ("tokenizer", "masked", "classifier")
DEVICES = {"cpu": ["cpu"], "cuda": ["cuda"], "graphs": ["cuda", "--cuda_graphs"]}
RUNS = [*((stage, "cuda") for stage in STAGES), ("tokenizer", "graphs")]
STEPS = 4  # in which waits are noted, of two micro-batches each
BLOCKING = ("stream_wait", "device_wait", "copy_wait")
TOO_OLD, NO_GPU, NO_FABRIC = 35, 100, 802  # errors of CUDA


def write_data(data: Path) -> None:
    """Write windows of two montages and a labelled set."""
    pretraining_file(data / "train" / "a.hdf5", seconds=(40,))
    pretraining_file(data / "train" / "b.hdf5", seconds=(20,), electrodes=ELECTRODES[:6], seed=5)
    pretraining_file(data / "val" / "a.hdf5", seconds=(8,), seed=7)
    labelled_file(data / "task.hdf5", counts={"train": 28, "val": 6, "test": 5})


def request(folder: Path, stage: str, name: str, *words: Any, **more: Any) -> dict[str, Any]:
    """Describe a run of a stage; more: what `nullgpu.process` and `ranks.be_rank` take."""
    data, own = folder / "data", folder / f"{stage}-{name}"
    files = ["--train_data", data / "train", "--val_data", data / "val"]
    weights = folder / "tokenizer-cpu" / "run" / "checkpoint.pth"
    script, flags = {
        "tokenizer": ("run_vqnsp_training", [*TOKENIZER, *files]),
        "masked": ("run_labram_pretraining", [*MASKED, *files, "--tokenizer_weight", weights]),
        "classifier": ("run_class_finetuning", [*CLASSIFIER, "--dataset", data / "task.hdf5", "--drop_path", 0]),
    }[stage]
    flags += ["--output_dir", own / "run", "--no_compile", "--batch_size", 1, *words]
    return {"script": script, "flags": list(map(str, flags)), "folder": str(own), **more}


def run(folder: Path, requests: list[dict[str, Any]], timeout: float = 280) -> None:
    """Run requests over the stand-in."""
    (folder / "requests.json").write_text(json.dumps(requests))
    libraries = Path(os.environ.get("LABRAM_CACHE", Path.home() / ".cache" / "labram"))
    environment = {
        **os.environ,
        **nullgpu.environment(libraries),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    command = [sys.executable, ROOT / "tests" / "nullgpu" / "process.py", folder / "requests.json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr


def stderr(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.glob("err-*")))


def codes(folder: Path) -> list[int]:
    return json.loads((folder / "codes.json").read_text())


def notes(folder: Path) -> list[dict[str, Any]]:
    """Return what the stand-in noted of each rank."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("gpu-*.json"))]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All quick runs: two processes train each stage on CPUs and on GPUs; other runs must not begin, or not go on."""
    folder = tmp_path_factory.mktemp("gpu")
    write_data(folder / "data")
    requests = []
    for stage, name in [*((stage, "cpu") for stage in STAGES), *RUNS]:
        words = ("--device", *DEVICES[name], "--precision", "fp64", "--total_batch_size", 4)
        listen = {"numbers": True, "listen": (4, 4 + 2 * STEPS)} if name != "cpu" else {}
        requests.append(request(folder, stage, name, *words, processes=2, **listen))
    for name, variables in REFUSED.items():
        requests.append(request(folder, "tokenizer", name, "--device", "auto", variables=variables))
    apart = {"rank_variables": {"1": {"NULLGPU_FAULT": str(NO_GPU)}}, "processes": 2}
    requests.append(request(folder, "tokenizer", "apart", "--device", "auto", **apart))
    fault = {"at": "step", "after": 2, "ranks": [1], "signal": "SIGKILL"}
    dead = {"faults": [fault], "numbers": True, "processes": 2}
    requests.append(request(folder, "classifier", "dead", "--device", "cuda", **dead))
    run(folder, requests)
    return folder


REFUSED = {
    "too old": {"NULLGPU_FAULT": str(TOO_OLD)},
    "no fabric manager": {"NULLGPU_FAULT": str(NO_FABRIC)},
    "no kernels": {"NULLGPU_CC": "70"},
}
REASONS = {
    "too old": "too old (found version 12040)",
    "no fabric manager": "not yet initialized",
    "no kernels": "sm_70",
}


@pytest.mark.parametrize(("stage", "way"), RUNS)
def test_two_processes_with_gpus_and_nccl_log_the_numbers_of_two_on_cpus(runs: Path, stage: str, way: str) -> None:
    folder = runs / f"{stage}-{way}"
    assert codes(folder) == [0, 0], stderr(folder)
    assert [rank["contexts"] for rank in notes(folder)] == [[0], [1]], "each process uses its own GPU and no other"
    assert all(rank["collective"] > 10 for rank in notes(folder))
    shapes = 1 if stage == "classifier" else 2  # each one's first micro-batch is not a graph's
    assert all(rank["replay"] == (rank["calls"] - shapes) * (way == "graphs") for rank in notes(folder))
    (own,), (expected,) = (log_lines(runs / f"{stage}-{name}" / "run") for name in (way, "cpu"))
    assert len(expected) > 8 and own == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("stage", "way"), RUNS)
def test_no_step_waits_for_the_gpu_or_compiles_a_kernel(runs: Path, stage: str, way: str) -> None:
    (note, _) = notes(runs / f"{stage}-{way}")
    assert note["calls"] > 4 + 2 * STEPS and note["pinned_copy"] > note["calls"]
    each = [wait for wait in note["waits"] if wait[2] >= STEPS]
    assert not [wait for wait in each if wait[0] in (*BLOCKING, "pageable_to_gpu")]
    assert note["compilation"] == 0, "no kernel is compiled at run time"


def test_shapes_beyond_the_limit_are_computed_but_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = []

    def record(graphs: Graphs, inputs: tuple[torch.Tensor, ...]) -> Any:
        recorded.append(inputs[0].shape)
        return Namespace(replay=lambda: None), [torch.empty_like(x) for x in inputs], graphs.function(*inputs)

    monkeypatch.setattr(Graphs, "_record", record)
    monkeypatch.setattr(devices, "MOST_GRAPHS", 3)
    graphs = Graphs(torch.sum)
    for n in (1, 1, 2, 3, 4, 2, 3, 4, 4, 1):
        assert graphs(torch.ones(n)) == n
    assert [n for (n,) in recorded] == [1, 2, 3, 1], "anew, once no other shape is new"


@pytest.mark.parametrize("name", REFUSED)
def test_gpus_that_cannot_be_used_are_wrong_usage_in_one_line_with_the_reason(runs: Path, name: str) -> None:
    folder = runs / f"tokenizer-{name}"
    (line,) = stderr(folder).splitlines()
    assert codes(folder) == [2] and not (folder / "run").exists()
    assert line.startswith("error: --device auto: ") and REASONS[name] in line and "--device cpu" in line


def test_a_process_without_a_gpu_among_others_with_one_is_named_by_all(runs: Path) -> None:
    folder = runs / "tokenizer-apart"
    lines = stderr(folder).splitlines()
    assert set(codes(folder)) <= {2, -15} and lines
    host = os.uname().nodename
    assert all(f"error: process 1 works with cpu on {host}, process 0 with cuda on {host}: " in line for line in lines)


def test_a_process_that_died_does_not_leave_the_others_waiting_in_nccl(runs: Path) -> None:
    folder = runs / "classifier-dead"
    assert codes(folder) == [1, -9], "the other one ends by itself; SIGTERM does not end it, and SIGKILL is not needed"
    assert "error: ended because another process of the run did" in stderr(folder)


# At night: without numbers models of any size take milliseconds a step, and nothing needs the CPU's kernels.


def finished(folder: Path, requests: list[dict[str, Any]]) -> list[tuple[Path, dict[str, Any]]]:
    """Run requests that must end well; return each one's folder and what was noted of its first rank."""
    run(folder, requests, timeout=3000)
    folders = [Path(request["folder"]) for request in requests]
    assert not [f"{one}: {stderr(one)[-2000:]}" for one in folders if any(codes(one))]
    return [(one, notes(one)[0]) for one in folders]


def save_tokenizer(folder: Path, name: str) -> None:
    """Save a tokenizer where `request` has stage 2 look for it."""
    path = folder / "tokenizer-cpu" / "run" / "checkpoint.pth"
    path.parent.mkdir(parents=True)
    options = {} if "base" in name else {"n_code": 16, "code_dim": 8}
    torch.save({"model": create_model(name, quantize_kmeans_init=False, **options).state_dict()}, path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with data, and weights of the quick runs' tokenizer: one block of half the width."""
    write_data(tmp_path / "data")
    with smaller_sizes():
        save_tokenizer(tmp_path, TINY_TOKENIZER)
    return tmp_path


@pytest.mark.nightly
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_with_numbers_trains_and_evaluates_to_finite_ones(data: Path, precision: str) -> None:
    words = ("--device", "cuda", "--precision", precision)
    for folder, _ in finished(data, [request(data, s, precision, *words, numbers=True, processes=2) for s in STAGES]):
        (line,) = log_lines(folder / "run")
        assert all(math.isfinite(value) for value in line.values() if isinstance(value, float))
        assert line["train_skipped_steps"] == 0


@pytest.mark.nightly
@pytest.mark.timeout(3000)
def test_blocks_compile_for_a_gpu_into_few_graphs_and_streams_do_not_race(data: Path) -> None:
    """Triton and ptxas compile; one graph serves two montages, with and without gradient."""
    requests = []
    for stage in STAGES:
        init = ["--no_quantize_kmeans_init"] * (stage == "tokenizer")  # needs numbers
        words = ("--device", "cuda", "--precision", "bf16", *init)
        requests.append(request(data, stage, "compiled", *words, "--compile"))
        requests.append(request(data, stage, "races", *words, processes=2, sanitizer=True))
    requests.append(request(data, "masked", "both compiled", *words, "--compile", "--cuda_graphs"))
    requests.append(request(data, "masked", "both races", *words, "--cuda_graphs", processes=2, sanitizer=True))
    for folder, note in finished(data, requests):
        assert "data race" not in stderr(folder)
        assert 0 < note["graphs"] <= 8 if folder.name.endswith("compiled") else note["graphs"] == 0
        assert bool(note["replay"]) == ("both" in folder.name)


BASE = "vqnsp_encoder_base_decoder_3x200x12"
MODELS = {"tokenizer": BASE, "masked": "labram_{}_patch200_1600_8k_vocab", "classifier": "labram_{}_patch200_200"}
# GB of memory that tensors take in the largest moment of a step, with the default precision and compiler.
PEAKS = {("tokenizer", "base"): 3.3, ("masked", "base"): 3.8, ("classifier", "base"): 1.6, ("masked", "large"): 12.5}


@pytest.mark.nightly
def test_cuda_graphs_continue_a_stopped_run_and_serve_one_and_three_processes(data: Path) -> None:
    words = (
        "--device",
        "cuda",
        "--precision",
        "fp64",
        "--total_batch_size",
        6,
        "--cuda_graphs",
        "--save_every_minutes",
        0,
    )
    stop = [{"at": "step", "after": 3, "ranks": [1], "signal": "SIGTERM"}]
    requests = []
    for stage in STAGES:
        for n in (1, 3):
            requests.append(request(data, stage, f"whole-{n}", *words, processes=n, numbers=True))
        requests.append(request(data, stage, "without", *words, "--no_cuda_graphs", processes=3, numbers=True))
        stopped = request(data, stage, "stopped", *words, processes=3, numbers=True, faults=stop)
        requests += [stopped, stopped]
    run(data, requests, timeout=3000)
    for stage in STAGES:
        names = ("whole-1", "whole-3", "without", "stopped")
        one, three, without, stopped = (log_lines(data / f"{stage}-{name}" / "run") for name in names)
        assert one == [pytest.approx(line, rel=1e-9) for line in three]
        assert without == [pytest.approx(line, rel=1e-9) for line in three]
        assert stopped == three, stderr(data / f"{stage}-stopped")


def prepare_papers_batches(folder: Path) -> dict[str, list[Any]]:
    """Write data for three steps with the paper's batches; return the flags of each stage, but for the model."""
    data = folder / "data"
    pretraining_file(data / "train" / "a.hdf5", seconds=(3 * 128 * 8,), electrodes=ELECTRODES[:32])
    pretraining_file(data / "val" / "a.hdf5", seconds=(16,), electrodes=ELECTRODES[:32])
    labelled_file(
        data / "task.hdf5", counts={"train": 192, "val": 4, "test": 4}, electrodes=ELECTRODES[:23], seconds=10
    )
    save_tokenizer(folder, BASE)
    windows = ["--time_window", 8, "--window_stride", 1600]
    codebook = ["--codebook_n_emd", 8192, "--codebook_emd_dim", 64, "--no_quantize_kmeans_init"]
    common = ["--precision", "bf16", "--device", "cuda", "--no_save_ckpt", "--batch_size"]
    return {
        "tokenizer": [*windows, *codebook, *common, 128],
        "masked": [*windows, "--tokenizer_model", BASE, *common, 64],
        "classifier": [*common, 64],
    }


@pytest.mark.nightly
@pytest.mark.timeout(3000)
def test_a_step_of_the_papers_batches_fits(tmp_path: Path) -> None:
    words = prepare_papers_batches(tmp_path)
    requests = []
    for stage, size in PEAKS:
        requests.append(
            request(tmp_path, stage, size, *words[stage], "--model", MODELS[stage].format(size), "--compile")
        )
    peaks = [note["peak"] / 1e9 for _, note in finished(tmp_path, requests)]
    print(dict(zip(PEAKS, peaks, strict=True)))
    assert all(peak <= most for peak, most in zip(peaks, PEAKS.values(), strict=True)), (peaks, PEAKS)


@pytest.mark.nightly
def test_cuda_graphs_leave_less_than_a_tenth_of_the_launches_of_a_step(tmp_path: Path) -> None:
    words = prepare_papers_batches(tmp_path)
    for stage in STAGES:
        flags = [*words[stage], "--model", MODELS[stage].format("base")]
        ways = {"eager": ["--no_cuda_graphs"], "graphs": ["--cuda_graphs"]}
        requests = [request(tmp_path, stage, way, *flags, *more, listen=(1, 2)) for way, more in ways.items()]
        eager, graphs = (note["launches"] for _, note in finished(tmp_path, requests))
        print(stage, eager, graphs)
        assert eager > 1400 and graphs < eager / 10


@pytest.mark.nightly
def test_cuda_graphs_of_several_montages_take_the_memory_of_one(tmp_path: Path) -> None:
    for n in (30, 31, 32):
        pretraining_file(tmp_path / "data" / "train" / f"{n}.hdf5", seconds=(4 * 64 * 8,), electrodes=ELECTRODES[:n])
    pretraining_file(tmp_path / "data" / "val" / "a.hdf5", seconds=(16,), electrodes=ELECTRODES[:32])
    save_tokenizer(tmp_path, BASE)
    words = ["--time_window", 8, "--window_stride", 1600, "--tokenizer_model", BASE, "--precision", "bf16"]
    words += ["--device", "cuda", "--cuda_graphs", "--model", MODELS["masked"].format("base"), "--batch_size", 64]
    words += ["--total_batch_size", 128]  # so that a montage is recorded before the next one comes
    small = {"listen": (0, 12), "variables": {"NULLGPU_GB": "6"}}
    ((_, note),) = finished(tmp_path, [request(tmp_path, "masked", "several", *words, "--no_save_ckpt", **small)])
    assert note["calls"] == 12 and note["replay"] >= 12 - 3 - 3


@pytest.mark.nightly
def test_batch_size_auto_trains_as_with_that_number_and_fits_the_smallest_gpu(data: Path) -> None:
    words = ("--device", "cuda", "--precision", "fp64", "--total_batch_size", 4, "--batch_size")
    more: dict[str, Any] = {"processes": 2, "numbers": True}
    requests = [request(data, "classifier", str(size), *words, size, **more) for size in ("auto", 2)]
    large = ("--device", "cuda", "--precision", "bf16", "--model", "labram_large_patch200_200", "--batch_size", "auto")
    small = {"processes": 2, "rank_variables": {"1": {"NULLGPU_GB": "2"}}}
    finished(data, [*requests, request(data, "classifier", "small", *large, **small)])
    assert log_lines(data / "classifier-auto" / "run") == log_lines(data / "classifier-2" / "run")
    batch = re.search(r"--batch_size auto: (\d+) ", stderr(data / "classifier-small"))
    assert batch and 1 < int(batch[1]) < 256  # which the larger GPU holds
