"""One, two and three processes and micro-batches train and evaluate alike, in all three stages.

Every configuration takes batches of six windows in all, in each of the layouts below. Drop rates are 0, because
dropping differs between processes on purpose.
"""

from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import torch

from data_helpers import differences
from ranks import Ended, launch
from run_helpers import (
    CLASSIFIER,
    MASKED,
    TOKENIZER,
    checkpoint,
    labelled_file,
    log,
    predictions,
    pretraining_file,
)

EXACT = 1e-9  # of losses, parameters and codebook in float64
UNIT = 100  # uV: what models see is EEG / 100
CODES = 16  # rows of the codebook
VAL, TEST, FEW = 7, 2, 2  # samples; FEW: one batch, so that only one process has any
STEPS = {"tokenizer": 13, "montages": 11, "masked": 11, "classifier": 11, "tasks": 14}  # of the only epoch
NAMES = list(STEPS)


class Layout(NamedTuple):
    """How a batch of six is cut."""

    processes: int
    batch: int
    accumulation: int = 1

    def __str__(self) -> str:
        return f"{self.processes}x{self.batch}" + (f"x{self.accumulation}" if self.accumulation > 1 else "")


WHOLE = Layout(1, 6)
CUT = [Layout(2, 3), Layout(3, 2), Layout(1, 3, 2), Layout(2, 1, 3)]
SHARED = [layout for layout in CUT if layout.processes > 1]
NODES = ("tokenizer", "masked", "classifier")
ADAPTED = {  # of the classifier, in one, two and three processes
    "probe": ["--linear_probe", "--pool", "flatten", "--center", "recording", "--scale_by", "subject"],
    "ridge": ["--linear_probe", "ridge", "--pool", "spectrum", "--center", "subject"],
    "lora": ["--lora", "4", "--pool", "attention", "--center", "subject", "--center_windows", "1"],
}
PLAIN = [layout for layout in (WHOLE, *CUT) if layout.accumulation == 1]


class Runs:
    """What the configurations left behind in all layouts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def output(self, layout: Layout, name: str) -> Path:
        """Return a run's output folder."""
        return self.folder / str(layout) / name

    def records(self, layout: Layout, name: str) -> list[dict[str, Any]]:
        """Return each process's record of a run."""
        return Ended([], self.output(layout, f"{name}.notes")).records()

    def losses(self, layout: Layout, name: str) -> np.ndarray:
        """Return the losses of the steps, each the mean over processes and micro-batches."""
        own = torch.stack([torch.stack(record["losses"]) for record in self.records(layout, name)])
        return own.view(layout.processes, -1, layout.accumulation).mean((0, 2)).numpy()

    def codes(self, layout: Layout, name: str) -> list[torch.Tensor]:
        """Return the codes of each step's whole batch, in the order of processes and then micro-batches."""
        n = layout.accumulation
        own = [record["codes"] for record in self.records(layout, name)]
        return [torch.cat([part for codes in own for part in codes[i : i + n]]) for i in range(0, len(own[0]), n)]

    def weights(self, layout: Layout, name: str) -> dict[str, torch.Tensor]:
        """Return the weights after the last step."""
        return checkpoint(self.output(layout, name) / "checkpoint.pth")["model"]


def flags(name: str, data: Path, folder: Path, layout: Layout) -> tuple[str, list[str]]:
    """Return the script and the flags of a configuration."""
    common = ["--precision", "fp64", "--batch_size", str(layout.batch)]
    common += ["--output_dir", str(folder / str(layout) / name)]
    micro = ["--gradient_accumulation_steps", str(layout.accumulation)]
    val = ["--val_data", str(data / ("few" if name == "masked" else "val"))]
    if name in ("tokenizer", "montages"):
        # What is not evaluated keeps the codebook's usage statistics of training, the same however many processes.
        train = ["--train_data", str(data / name), *(val if name == "tokenizer" else ["--disable_eval"])]
        codebook = ["--codebook_n_emd", str(CODES), "--phase_loss", "angle" if name == "tokenizer" else "sincos"]
        return "run_vqnsp_training", [*TOKENIZER, *codebook, *train, *common, *micro, "--lr", "0.06"]
    if name == "masked":
        train = ["--train_data", str(data / "montages"), *val]
        tokenizer = ["--tokenizer_weight", str(folder / str(WHOLE) / "tokenizer" / "checkpoint.pth")]
        return "run_labram_pretraining", [*MASKED, *train, *tokenizer, *common, *micro]
    finetune = ["--finetune", str(folder / str(WHOLE) / "masked" / "checkpoint.pth"), "--drop_path", "0"]
    micro = ["--update_freq", str(layout.accumulation)]
    micro += ADAPTED.get(name, [])
    files = ["task", "more"] if name == "tasks" else ["task"]
    dataset = ["--dataset", *(str(data / f"{file}.hdf5") for file in files)]
    return "run_class_finetuning", [*CLASSIFIER, *dataset, *finetune, *common, *micro]


def write_data(data: Path) -> None:
    """Write what gives each configuration its steps of six windows of two seconds, some with a last one to complete."""
    two, three = ("C3", "CZ"), ("FP1", "O2", "T3")
    pretraining_file(data / "tokenizer" / "a.hdf5", seconds=(80, 72), electrodes=two)
    pretraining_file(data / "montages" / "a.hdf5", seconds=(50, 30), electrodes=two, seed=2)
    pretraining_file(data / "montages" / "b.hdf5", seconds=(43,), electrodes=three, seed=4)
    pretraining_file(data / "val" / "a.hdf5", seconds=(2 * VAL,), electrodes=two, seed=5)
    pretraining_file(data / "few" / "a.hdf5", seconds=(2 * FEW,), electrodes=two, seed=6)
    labelled_file(data / "task.hdf5", counts={"train": 61, "val": VAL, "test": TEST}, electrodes=two)
    options = {"electrodes": three, "seconds": 1, "classes": ("a", "b", "c"), "task": "multiclass"}
    labelled_file(data / "more.hdf5", counts={"train": 14, "val": 8}, **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All configurations in all layouts."""
    folder = tmp_path_factory.mktemp("processes")
    write_data(folder / "data")
    for layout in (WHOLE, *CUT):
        for name in (*NAMES, *(ADAPTED if layout in PLAIN else [])):
            notes = folder / str(layout) / f"{name}.notes"
            launch(*flags(name, folder / "data", folder, layout), notes, processes=layout.processes, record=True)
    return Runs(folder)


@pytest.fixture(scope="module")
def nodes(runs: Runs) -> Path:
    """All stages in two processes without a common folder: results have relative paths, only node0 has any."""
    for rank in range(2):
        (runs.folder / f"node{rank}").mkdir()
    for name in NODES:
        script, words = flags(name, runs.folder / "data", Path(), Layout(2, 3))
        words = [word.replace(f"{WHOLE}/", f"{Layout(2, 3)}/") for word in words]  # weights of its own stages
        folders = [str(runs.folder / f"node{rank}") for rank in range(2)]
        launch(script, words, runs.folder / f"nodes-{name}", folders=folders)
    return runs.folder


def assert_same_tensors(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        if not key.endswith(".rows"):
            assert value.dtype == torch.float64, key
        torch.testing.assert_close(actual[key], value, rtol=0, atol=EXACT, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_of_one_process_with_the_whole_batch(runs: Runs, name: str) -> None:
    expected = runs.losses(WHOLE, name)
    assert len(expected) == STEPS[name] >= 10
    assert expected.std() > 1e-3, "losses that do not change would agree whatever the layout"
    for layout in CUT:
        np.testing.assert_allclose(runs.losses(layout, name), expected, rtol=0, atol=EXACT, err_msg=str(layout))


@pytest.mark.parametrize("name", [*NAMES, *ADAPTED])
def test_parameters_and_codebook_are_those_of_one_process(runs: Runs, name: str) -> None:
    for layout in PLAIN[1:] if name in ADAPTED else CUT:
        whole, cut = runs.weights(WHOLE, name), runs.weights(layout, name)
        if name == "tokenizer":  # a moving average over batches of the evaluation: other batches, other average
            assert whole.pop("quantize.cluster_size").sum() > 0 and cut.pop("quantize.cluster_size").sum() > 0
        assert_same_tensors(cut, whole)


@pytest.mark.parametrize("name", ["tokenizer", "montages", "masked"])
def test_every_patch_has_the_same_code_as_in_one_process(runs: Runs, name: str) -> None:
    expected = runs.codes(WHOLE, name)
    assert len(torch.cat(expected).unique()) > 1, "one code only: this test would prove nothing"
    for layout in CUT:
        actual = runs.codes(layout, name)
        assert len(actual) == len(expected) == STEPS[name]
        assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True)), layout


@pytest.mark.parametrize("name", ["tokenizer", "montages"])
def test_the_codebook_is_equal_to_the_last_bit_on_all_processes_at_every_step(runs: Runs, name: str) -> None:
    for layout in SHARED:
        books = [record["codebooks"] for record in runs.records(layout, name)]
        # k-means, then every step's update and revival
        assert {len(own) for own in books} == {1 + 2 * STEPS[name]}
        assert all(differences(books[0], own) == [] for own in books[1:])


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_equal_to_the_last_bit_on_all_processes_at_every_step(runs: Runs, name: str) -> None:
    for layout in SHARED:
        mine, *others = [record["digests"] for record in runs.records(layout, name)]
        assert len(set(mine)) == STEPS[name]
        assert all(other == mine for other in others), layout


def harmed(runs: Runs, name: str, weight: str, folder: Path) -> Ended:
    """Repeat a run in two processes, on one of which a weight changes in the middle."""
    script, words = flags(name, runs.folder / "data", runs.folder, Layout(2, 3))
    words += ["--output_dir", str(folder / "run")]  # the last one counts
    return launch(script, words, folder, record=True, harm={"rank": 1, "step": 6, "name": weight}, check=False)


def test_a_weight_that_differs_between_processes_stops_the_run(runs: Runs, tmp_path: Path) -> None:
    ended = harmed(runs, "classifier", "head.weight", tmp_path)
    assert ended.codes in ([[1, 1]], [[1, -15]]), "the other one may be ended as torchrun does it"
    assert all("process 1 has another head.weight after epoch 0 " in line for line in ended.errors())
    assert ended.errors() and "Traceback" not in ended.stderr()
    assert not list((tmp_path / "run").glob("*.pth")), "what is wrong must not be saved"


def test_a_row_that_changed_on_one_process_is_set_right_by_the_next_step(runs: Runs, tmp_path: Path) -> None:
    records = harmed(runs, "tokenizer", "quantize.embedding.weight", tmp_path).records()
    assert [record["harmed"] for record in records] == [0, 1]
    assert len(records[0]["digests"]) == STEPS["tokenizer"]
    assert records[0]["digests"] == records[1]["digests"]
    assert differences(*(record["codebooks"] for record in records)) == []


@pytest.mark.parametrize("name", NODES)
def test_processes_without_a_common_folder_train_as_those_with_one_and_only_the_first_writes(
    runs: Runs, nodes: Path, name: str
) -> None:
    written = nodes / "node0" / str(Layout(2, 3)) / name
    assert_same_tensors(checkpoint(written / "checkpoint.pth")["model"], runs.weights(Layout(2, 3), name))
    assert len(log(written)) == 1
    assert not list((nodes / "node1").rglob("*"))


def test_revived_rows_are_the_same_in_all_layouts(runs: Runs) -> None:
    revived = {str(layout): log(runs.output(layout, "tokenizer"))[0]["train_revived"] for layout in (WHOLE, *CUT)}
    assert set(revived.values()) == {revived[str(WHOLE)]}
    assert revived[str(WHOLE)] > 0, "nothing was revived: this test would prove nothing"
    for layout in CUT:
        expected, actual = (runs.records(one, "tokenizer")[0]["codebooks"] for one in (WHOLE, layout))
        for change in (0, -1):  # k-means, the last step
            torch.testing.assert_close(actual[change], expected[change], rtol=0, atol=EXACT)


def beginnings(path: Path, split: str = "") -> np.ndarray:
    """Return the first values of each sample of a file, as models see them: of each window, or each labelled sample."""
    with h5py.File(path) as file:
        eeg = file[split]["eeg"][:, 0] if split else file["recording0"]["eeg"][0].reshape(-1, 400)  # two seconds
    return eeg[:, :8].astype(np.float64) / UNIT


@pytest.mark.parametrize("name", ["tokenizer", "masked", "classifier"])
def test_evaluation_shows_the_model_every_sample_exactly_once(runs: Runs, name: str) -> None:
    data = runs.folder / "data"
    if name == "classifier":
        expected = np.concatenate([beginnings(data / "task.hdf5", split) for split in ("val", "test")])
    else:
        expected = beginnings(data / ("few" if name == "masked" else "val") / "a.hdf5")
    assert len(np.unique(expected, axis=0)) == len(expected)
    for layout in PLAIN:
        own = [record["evaluated"] for record in runs.records(layout, name)]
        seen = torch.cat([part for parts in own for part in parts]).double().numpy()
        assert len(seen) == len(expected)
        np.testing.assert_allclose(seen[np.lexsort(seen.T)], expected[np.lexsort(expected.T)], rtol=0, atol=1e-6)
        if name == "masked":  # one batch: the others have none, and end well
            assert [len(parts) for parts in own] == [1] + [0] * (layout.processes - 1)


@pytest.mark.parametrize("name", [*NAMES, "lora"])
def test_the_log_has_the_numbers_of_one_process(runs: Runs, name: str) -> None:
    """Of training and of every evaluation."""
    one = log(runs.output(WHOLE, name))[0]
    assert one.keys() >= {"train_loss", "train_lr", "train_weight_decay", "train_grad_norm"}
    for layout in PLAIN[1:] if name in ADAPTED else CUT:
        cut = log(runs.output(layout, name))[0]
        assert one.keys() == cut.keys()
        for key in (key for key in one if key.startswith(("train_", "test_", "val_"))):
            exact = 1e-7 if "acc" in key else EXACT  # accuracies of a batch are float32 shares in every precision
            assert cut[key] == pytest.approx(one[key], rel=0, abs=exact), (layout, key)


@pytest.mark.parametrize(("split", "n"), [("val", VAL), ("test", TEST)])
def test_predictions_hold_every_sample_once_in_the_files_order(runs: Runs, split: str, n: int) -> None:
    whole = predictions(runs.output(WHOLE, "classifier") / f"predictions-{split}.npz")
    assert len(np.unique(whole["last_logits"])) == n, "equal logits could hide a wrong order"
    for layout in CUT:
        found = predictions(runs.output(layout, "classifier") / f"predictions-{split}.npz")
        assert found["recording"].tolist() == [f"{split}-recording{i // 2}" for i in range(n)]
        np.testing.assert_array_equal(found["labels"], np.arange(n) % 2)
        np.testing.assert_allclose(found["last_logits"], whole["last_logits"], rtol=0, atol=1e-8)
