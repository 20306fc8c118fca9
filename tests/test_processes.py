"""Two processes train and evaluate like one with the doubled batch, in all three stages.

Every configuration runs once in one process and once in two Gloo processes; a launch runs them all, because starting
costs more than running. Drop rates are 0, because dropping differs between processes on purpose.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from run_helpers import (
    CLASSIFIER,
    MASKED,
    ROOT,
    TOKENIZER,
    checkpoint,
    free_port,
    labelled_file,
    log,
    predictions,
    pretraining_file,
    start,
)

EXACT = 1e-9  # of losses, parameters and codebook in float64
FLOAT32 = 1e-5  # of losses in float32
STEPS = 5  # of the first epoch of every configuration
DOUBLE = ["tokenizer", "montages", "masked", "classifier"]
SINGLE = [f"{name}-fp32" for name in DOUBLE]
EPOCHS = {name: 3 if name == "tokenizer" else 1 for name in (*DOUBLE, *SINGLE)}  # three to get to a revival


class Launch:
    """What the configurations left behind that were run with the same number of processes."""

    def __init__(self, folder: Path, processes: int) -> None:
        self.folder, self.processes = folder, processes

    def records(self, name: str) -> list[dict[str, Any]]:
        """Return each process's record of a configuration."""
        records = [torch.load(self.folder / f"{name}.{rank}.pt", weights_only=True) for rank in range(self.processes)]
        assert [record["code"] for record in records] == [0] * self.processes
        return records

    def losses(self, name: str) -> np.ndarray:
        """Return the losses of the steps, each the mean over processes."""
        return torch.stack([torch.stack(record["losses"]) for record in self.records(name)]).mean(0).numpy()

    def codes(self, name: str) -> list[torch.Tensor]:
        """Return the codes of each step's whole batch, in the order of the processes."""
        return [torch.cat(parts) for parts in zip(*(record["codes"] for record in self.records(name)), strict=True)]


def flags(name: str, data: Path, weights: Path) -> tuple[str, list[str]]:
    """Return the script and the flags of a configuration; weights: folder of the stages before."""
    kind, _, precision = name.partition("-")
    common = ["--precision", precision or "fp64", "--epochs", str(EPOCHS[name]), "--save_ckpt_freq", "1"]
    val = ["--val_data", str(data / "val")]
    if kind in ("tokenizer", "montages"):
        # What is not evaluated keeps the codebook's usage statistics of training, the same however many processes.
        train = ["--train_data", str(data / kind), *(val if kind == "tokenizer" else ["--disable_eval"])]
        return "run_vqnsp_training", [*TOKENIZER, *train, *common, "--lr", "0.003"]
    if kind == "masked":
        train = ["--train_data", str(data / "montages"), *val]
        tokenizer = ["--tokenizer_weight", str(weights / "tokenizer" / "checkpoint-0.pth")]
        return "run_labram_pretraining", [*MASKED, *train, *tokenizer, *common]
    finetune = ["--finetune", str(weights / "masked" / "checkpoint-0.pth"), "--drop_path", "0"]
    return "run_class_finetuning", [*CLASSIFIER, "--dataset", str(data / "task.hdf5"), *finetune, *common]


def launch(folder: Path, processes: int, plan: dict[str, tuple[str, list[str]]]) -> Launch:
    """Run the configurations one after the other in one launch."""
    folder.mkdir()
    steps = [
        {
            "script": script,
            "flags": [*words, "--output_dir", str(folder / name)],
            "record": str(folder / name),
            "port": free_port(),
        }
        for name, (script, words) in plan.items()
    ]
    (folder / "plan.json").write_text(json.dumps(steps))
    start(
        [ROOT / "tests" / "process_driver.py", folder / "plan.json"],
        cwd=folder,
        processes=processes if processes > 1 else 0,
    )
    return Launch(folder, processes)


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Launch, Launch]:
    """All configurations in one process with batch 4, and in two with batch 2."""
    folder = tmp_path_factory.mktemp("processes")
    data = folder / "data"
    pretraining_file(data / "tokenizer" / "a.hdf5", seconds=(24, 16))
    pretraining_file(data / "montages" / "a.hdf5", seconds=(16, 8), seed=2)
    pretraining_file(data / "montages" / "b.hdf5", seconds=(15,), electrodes=("FP1", "O2", "T3"), seed=4)
    pretraining_file(data / "val" / "a.hdf5", seconds=(14,), seed=5)  # 7 windows
    labelled_file(
        data / "task.hdf5", counts={"train": 19, "val": 7, "test": 2}
    )  # the second process has no batch of test
    names = [*DOUBLE, *SINGLE]
    plan = {name: flags(name, data, folder / "one") for name in names}
    script, words = plan["masked"]
    accumulated = {"accumulated": (script, [*words, "--batch_size", "2", "--gradient_accumulation_steps", "2"])}
    one = launch(folder / "one", 1, plan | accumulated)
    halved = {name: (script, [*words, "--batch_size", "2"]) for name, (script, words) in plan.items()}
    return one, launch(folder / "two", 2, halved)


def first(launch: Launch, name: str) -> dict[str, torch.Tensor]:
    """Return the weights after the first epoch, that is after five steps."""
    state = checkpoint(launch.folder / name / "checkpoint-0.pth")
    assert state["update"]["step"] == STEPS
    return state["model"]


def assert_same_tensors(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        if value.is_floating_point():
            assert value.dtype == torch.float64, key
        torch.testing.assert_close(actual[key], value, rtol=0, atol=EXACT, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", DOUBLE)
def test_losses_of_two_processes_are_those_of_one_with_the_doubled_batch(launches, name: str) -> None:
    one, two = launches
    assert len(one.losses(name)) == EPOCHS[name] * STEPS
    np.testing.assert_allclose(two.losses(name)[:STEPS], one.losses(name)[:STEPS], rtol=0, atol=EXACT)


@pytest.mark.parametrize("name", DOUBLE)
def test_parameters_and_codebook_of_two_processes_are_those_of_one(launches, name: str) -> None:
    one, two = (first(launch, name) for launch in launches)
    if name == "tokenizer":  # a moving average over batches of the evaluation: other batches, other average
        assert one.pop("quantize.cluster_size").sum() > 0 and two.pop("quantize.cluster_size").sum() > 0
    assert_same_tensors(two, one)


@pytest.mark.parametrize("name", ["tokenizer", "montages", "masked"])
def test_every_patch_has_the_same_code_in_two_processes_as_in_one(launches, name: str) -> None:
    one, two = launches
    assert len(one.codes(name)) == EPOCHS[name] * STEPS
    for step in range(STEPS):
        assert torch.equal(two.codes(name)[step], one.codes(name)[step]), f"step {step}"
    assert len(torch.cat(one.codes(name)).unique()) > 1, "one code only: this test would prove nothing"


def test_kmeans_pools_the_vectors_of_all_processes(launches) -> None:
    one, two = launches
    for name in ("tokenizer", "montages"):
        start_of_one, start_of_two = (launch.records(name)[0]["codebooks"][0] for launch in launches)
        torch.testing.assert_close(start_of_two, start_of_one, rtol=0, atol=EXACT)
    assert one.processes == 1 and two.processes == 2


@pytest.mark.parametrize("name", [name for name in (*DOUBLE, *SINGLE) if name.startswith(("tokenizer", "montages"))])
def test_the_codebook_is_equal_to_the_last_bit_on_both_processes_at_every_step(launches, name: str) -> None:
    books = [record["codebooks"] for record in launches[1].records(name)]
    steps = EPOCHS[name] * STEPS
    assert len(books[0]) == len(books[1]) == 1 + 2 * steps  # k-means, then every step's update and revival
    for change, (mine, other) in enumerate(zip(*books, strict=True)):
        assert torch.equal(mine, other), f"change {change}"


def test_revived_rows_are_the_same_in_one_process_and_in_two(launches) -> None:
    revived = [[line["train_revived"] for line in log(launch.folder / "tokenizer")] for launch in launches]
    assert revived[0] == revived[1]
    assert revived[0][-1] > 0, "nothing was revived: this test would prove nothing"
    last = [launch.records("tokenizer")[0]["codebooks"][-1] for launch in launches]
    torch.testing.assert_close(last[1], last[0], rtol=0, atol=1e-6)  # 15 steps


def test_two_micro_batches_are_one_batch_of_double_size_and_two_processes(launches) -> None:
    one, two = launches
    micro = one.losses("accumulated").reshape(-1, 2).mean(1)
    np.testing.assert_allclose(micro[:STEPS], one.losses("masked")[:STEPS], rtol=0, atol=EXACT)
    np.testing.assert_allclose(micro[:STEPS], two.losses("masked")[:STEPS], rtol=0, atol=EXACT)
    assert_same_tensors(first(one, "accumulated"), first(one, "masked"))
    assert_same_tensors(first(one, "accumulated"), first(two, "masked"))


@pytest.mark.parametrize("name", SINGLE)
def test_losses_in_float32_agree_to_1e_5(launches, name: str) -> None:
    one, two = launches
    np.testing.assert_allclose(two.losses(name)[:STEPS], one.losses(name)[:STEPS], rtol=0, atol=FLOAT32)


def numbers(line: dict[str, Any], keep: Callable[[str], bool]) -> dict[str, float]:
    return {name: value for name, value in line.items() if keep(name)}


@pytest.mark.parametrize(("name", "prefix"), [("tokenizer", "test_"), ("masked", "val_"), ("classifier", "val_")])
def test_evaluation_of_seven_samples_is_the_same_in_one_process_and_in_two(launches, name: str, prefix: str) -> None:
    lines = [log(launch.folder / name)[0] for launch in launches]
    one, two = (numbers(line, lambda key: key.startswith(prefix)) for line in lines)
    assert one.keys() == two.keys() and len(one) > 3
    for key, value in one.items():
        # Accuracies of a batch are float32 shares in every precision.
        assert two[key] == pytest.approx(value, rel=0, abs=1e-7 if "mlm_acc" in key else EXACT), key


def test_codes_are_counted_once_in_evaluation_whatever_the_number_of_processes(launches) -> None:
    for launch in launches:
        line = log(launch.folder / "tokenizer")[0]
        assert line["test_used_code"] + line["test_unused_code"] == 16
        assert line["test_used_code"] > 1 and 1 < line["test_perplexity"] <= line["test_used_code"]
    lines = [log(launch.folder / "tokenizer")[0] for launch in launches]
    assert lines[0]["test_used_code"] == lines[1]["test_used_code"]


@pytest.mark.parametrize("split", ["val", "test"])
def test_predictions_hold_every_sample_once_in_the_files_order(launches, split: str) -> None:
    one, two = (predictions(launch.folder / "classifier" / f"predictions-{split}.npz") for launch in launches)
    n = {"val": 7, "test": 2}[split]
    assert one["logits"].shape == two["logits"].shape == (n, 1)
    assert one["recording"].tolist() == two["recording"].tolist() == [f"{split}-{i // 2}" for i in range(n)]
    np.testing.assert_array_equal(one["labels"], np.arange(n) % 2)
    np.testing.assert_array_equal(two["labels"], np.arange(n) % 2)
    assert len(np.unique(one["last_logits"])) == n, "equal logits could hide a wrong order"
    np.testing.assert_allclose(two["last_logits"], one["last_logits"], rtol=0, atol=1e-8)


def test_training_means_in_the_log_are_over_all_processes(launches) -> None:
    for name in DOUBLE:
        one, two = (log(launch.folder / name)[0] for launch in launches)
        for key in ("train_loss", "train_lr", "train_min_lr", "train_weight_decay", "train_grad_norm"):
            assert two[key] == pytest.approx(one[key], rel=0, abs=EXACT), (name, key)
