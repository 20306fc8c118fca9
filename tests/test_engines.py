"""The three training loops and evaluations, against the same done by hand on small files."""

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.metrics import roc_auc_score
from timm.models import create_model
from torch import Tensor

import engine_for_finetuning
import engine_for_pretraining
import engine_for_vqnsp
import run_class_finetuning
import run_labram_pretraining
import run_vqnsp_training
from data_helpers import PAIR, TINY, TRIO, script_args, signal, write_labelled, write_pretraining
from eeg_data import labelled as labelled_data
from eeg_data import labelled_files
from eeg_data import pretraining as eeg_data
from electrodes import ELECTRODES
from engine_for_finetuning import save_predictions, task_loss
from engine_for_pretraining import entropy_of_codes
from engine_for_vqnsp import initialize_codebook
from modeling_pretrain import random_mask
from optim_factory import build_update
from run_helpers import predictions
from training.metrics import METRICS
from training.state import TrainingState
from utils import setup_run

MASKS = functools.partial(random_mask, 1, ratio=0.5)
COMMON = ("--device", "cpu", "--num_workers", 0, "--warmup_epochs", 0, "--epochs", 4, "--no_save_ckpt")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with two montages: 7 windows of 2 s of two electrodes, 4 of three."""
    folder = tmp_path_factory.mktemp("data")
    write_pretraining(folder / "a.hdf5", PAIR, [signal(2, 1600)])
    write_pretraining(folder / "b.hdf5", TRIO, [signal(3, 1000, seed=1)])
    return folder


def windows_of(folder: Path) -> list[tuple[Tensor, list[int]]]:
    """Return all windows of 2 s as models see them, (1, N, 2, 200) with channels, read with plain h5py."""
    found = []
    for path, names in ((folder / "a.hdf5", PAIR), (folder / "b.hdf5", TRIO)):
        with h5py.File(path, locking=False) as file:
            eeg = file["recording0/eeg"][:]
        for start in range(0, eeg.shape[1] - 400 + 1, 200):
            window = torch.tensor(eeg[:, start : start + 400] / 100).reshape(1, len(names), 2, 200)
            found.append((window, [0, *(ELECTRODES.index(name) + 1 for name in names)]))
    return found


def data_words(folder: Path) -> tuple[Any, ...]:
    return ("--train_data", folder, "--val_data", folder, "--time_window", 2, "--window_stride", 200)


def tokenizer(n_code: int = 32, **options: Any) -> Any:
    torch.manual_seed(0)
    return create_model(TINY, n_code=n_code, code_dim=8, **options)


@contextmanager
def training(script: Any, stage: str, model: Any, folder: Path, *words: Any, **options: Any) -> Iterator[Any]:
    """Give everything that a training of stage 1 or 2 needs; options: of its loaders."""
    args = script_args(script, *COMMON, "--output_dir", folder, "--batch_size", 4, *words)
    options["accumulation"] = args.gradient_accumulation_steps
    with setup_run(args) as run:
        loaders = eeg_data.build_pretraining_loaders(args, run, **options)
        ddp = run.distribute(model)
        update = build_update(
            ddp, args, run, steps_per_epoch=loaders.steps_per_epoch, accumulation=options["accumulation"]
        )
        state = TrainingState(ddp, update, run, args, stage=stage)
        yield SimpleNamespace(run=run, loaders=loaders, model=model, update=update, state=state)


def vqnsp_training(folder: Path, data: Path, *words: Any, **options: Any) -> Any:
    return training(run_vqnsp_training, "tokenizer", tokenizer(**options), folder, *data_words(data), *words)


def pretraining(folder: Path, data: Path, *words: Any) -> Any:
    model = create_model("labram_tiny_patch200_1600_8k_vocab", vocab_size=32)
    return training(run_labram_pretraining, "pretraining", model, folder, *data_words(data), *words, make_mask=MASKS)


def labelled(folder: Path, task: str, n: int = 11) -> Path:
    """Write a labelled file of n training and n validation samples."""
    rng = np.random.default_rng(3)
    classes = {"binary": ("a", "b"), "multiclass": ("a", "b", "c"), "regression": ("x", "y")}[task]
    labels = rng.standard_normal((n, 2)) if task == "regression" else np.arange(n) % len(classes)
    labels = labels.astype(np.float32 if task == "regression" else np.int64)
    eeg = [signal(n, 3, 400, seed=seed) for seed in (0, 1)]
    splits = {"train": (eeg[0], labels), "val": (eeg[1], labels)}
    return write_labelled(folder / f"{task}.hdf5", splits, task=task, classes=classes)


def test_the_entropy_of_any_counts_is_scipys_and_nothing_counted_is_zero() -> None:
    counts = torch.tensor([5, 0, 1, 30, 2])
    assert entropy_of_codes(counts)["code_entropy"] == pytest.approx(entropy(counts.numpy()), rel=1e-12)
    assert counts.tolist() == [5, 0, 1, 30, 2]
    assert entropy_of_codes(torch.zeros(4, dtype=torch.long)) == {"code_entropy": 0.0, "unigram_loss": 0.0}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_more_classes_is_cross_entropy_with_smoothed_targets(smoothing: float) -> None:
    logits = np.array([[1.0, 2.0, 0.0], [0.5, -1.0, 3.0]])
    labels = np.array([1, 0])
    targets = (1 - smoothing) * np.eye(3)[labels] + smoothing / 3
    log_shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    found = task_loss("multiclass", torch.tensor(logits), torch.tensor(labels), smoothing=smoothing)
    assert float(found) == pytest.approx(-(targets * log_shares).sum(1).mean(), rel=1e-12)


def test_the_loss_of_a_regression_is_the_mean_square_of_unrounded_targets() -> None:
    outputs, targets = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [3.0, 1.0]])
    assert float(task_loss("regression", outputs, targets)) == pytest.approx((1 + 9) / 4)
    loss = task_loss("regression", torch.tensor([[1000.0]], dtype=torch.bfloat16), torch.tensor([[1003.3]]))
    assert float(loss) == pytest.approx(3.3**2, rel=1e-4)


def test_weights_of_classes_multiply_each_samples_loss_and_the_mean_is_over_samples() -> None:
    weights, labels = torch.tensor([0.5, 4.0]), torch.tensor([0, 1, 1])
    logits = torch.tensor([[0.0], [2.0], [-1.0]], dtype=torch.float64)
    each = [0.5 * math.log(2), 4 * math.log(1 + math.exp(-2)), 4 * math.log(1 + math.exp(1))]
    assert float(task_loss("binary", logits, labels, class_weights=weights)) == pytest.approx(np.mean(each), rel=1e-12)
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.5, -1.0, 3.0]], dtype=torch.float64)
    each = [-w * float(row.log_softmax(0)[i]) for w, row, i in zip((4, 0.25), logits, (1, 2), strict=True)]
    found = task_loss("multiclass", logits, torch.tensor([1, 2]), class_weights=torch.tensor([1, 4, 0.25]))
    assert float(found) == pytest.approx(np.mean(each), rel=1e-12)


def numbered(folder: Path) -> Iterator[tuple[tuple[Tensor, list[int]], int]]:
    """Give each window of 2 s with its number within its montage."""
    seen = {3: 0, 4: 0}
    for eeg, channels in windows_of(folder):
        yield (eeg, channels), seen[len(channels)]
        seen[len(channels)] += 1


def test_evaluating_a_tokenizer_is_the_mean_over_all_windows_one_by_one(tmp_path: Path, data: Path) -> None:
    with vqnsp_training(tmp_path, data, quantize_kmeans_init=False) as t:
        rows = t.model.quantize.embedding.weight.clone()
        found = engine_for_vqnsp.evaluate(t.model, t.loaders.val, t.run)
        model, windows = t.model.eval(), windows_of(data)
        with torch.no_grad():
            parts = [model(eeg.flatten(2), channels)[1] for eeg, channels in windows]
            codes = torch.cat([model.get_codebook_indices(eeg, channels)[0] for eeg, channels in windows])
    assert len(windows) == 11 and len(codes) == 7 * 4 + 4 * 6
    for name in ("quant_loss", "rec_loss", "rec_angle_loss", "total_loss"):
        mean = np.mean([float(p[f"val/{name}"]) for p in parts])
        assert found[f"test_{name}"] == pytest.approx(mean, rel=1e-5)
    assert found["test_loss"] == found["test_total_loss"]
    counts = np.bincount(codes.numpy(), minlength=32)
    assert found["test_used_code"] == (counts > 0).sum() and found["test_unused_code"] == (counts == 0).sum()
    assert found["test_perplexity"] == pytest.approx(math.exp(entropy(counts)), rel=1e-6)
    assert torch.equal(rows, t.model.quantize.embedding.weight)


def test_codes_of_a_training_epoch_are_counted_over_the_epoch(tmp_path: Path, data: Path) -> None:
    with vqnsp_training(tmp_path, data, "--lr", 0, "--min_lr", 0, quantize_kmeans_init=False, decay=1.0) as t:
        stats = []
        for _ in range(2):
            t.state.step = 0  # the epoch anew
            stats.append(engine_for_vqnsp.train_one_epoch(t.state, t.loaders.train, 0))
        assert stats[0] == stats[1]  # counted anew, and nothing learns at a rate of 0 with rows that stay
        t.loaders.train.batch_sampler.set_epoch(0)
        with torch.no_grad():
            codes = torch.cat([t.model.get_codebook_indices(b.eeg, b.channels).flatten() for b in t.loaders.train])
        counts = np.bincount(codes.numpy(), minlength=32)
    assert len(codes) == 8 * 4 + 4 * 6
    assert stats[0]["train_perplexity"] == pytest.approx(math.exp(entropy(counts)), rel=1e-6)
    assert stats[0]["train_unused_code"] == (counts == 0).sum()


def test_a_codebook_that_is_mostly_unused_is_warned_of_with_a_size_that_fits(caplog: pytest.LogCaptureFixture) -> None:
    counts = torch.zeros(100, dtype=torch.long)
    counts[:9] = 555
    engine_for_vqnsp.warn_of_dead_codes(counts)
    (text,) = caplog.messages
    assert "9 of 100 codes" in text and "--codebook_n_emd 32" in text
    counts[:20] = 1
    engine_for_vqnsp.warn_of_dead_codes(counts)
    assert len(caplog.messages) == 1, "a fifth is enough"


def test_evaluating_a_masked_model_is_the_mean_over_all_windows_under_their_masks(tmp_path: Path, data: Path) -> None:
    codebook = tokenizer(quantize_kmeans_init=False).eval()
    with pretraining(tmp_path, data) as t:
        found = engine_for_pretraining.evaluate(t.model, t.loaders.val, codebook, t.run)
        again = engine_for_pretraining.evaluate(t.model, t.loaders.val, codebook, t.run)
        losses, hits, counts = [], [], np.zeros(32)
        dataset = t.loaders.val.dataset
        for (eeg, channels), i in numbered(data):
            mask = dataset.mask((0, 0 if len(channels) == 4 else 1, i))[None]
            with torch.no_grad():
                codes = codebook.get_codebook_indices(eeg, channels)
                logits = t.model.eval()(eeg, channels, mask)
            pairs = list(zip(logits, (codes[mask], codes[~mask]), strict=True))
            losses.append(sum(float(-one.log_softmax(1).gather(1, c[:, None]).mean()) for one, c in pairs))
            hits.append([float((one.argmax(1) == c).double().mean()) for one, c in pairs])
            counts += np.bincount(codes.flatten().numpy(), minlength=32)
    assert found == again and len(losses) == 11
    assert found["val_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert [found["val_mlm_acc"], found["val_mlm_acc_sym"]] == pytest.approx(np.mean(hits, axis=0), abs=1e-6)
    assert found["val_code_entropy"] == pytest.approx(entropy(counts), rel=1e-9)


def test_a_pre_training_epoch_counts_every_micro_batchs_codes_and_leaves_the_tokenizer_alone(
    tmp_path: Path, data: Path
) -> None:
    codebook = tokenizer(quantize_kmeans_init=False).eval()
    with pretraining(tmp_path, data, "--gradient_accumulation_steps", 2, "--batch_size", 2) as t:
        before = {key: value.clone() for key, value in codebook.state_dict().items()}
        stats = engine_for_pretraining.train_one_epoch(t.state, t.loaders.train, codebook, 0)
        after = {key: value for key, value in codebook.state_dict().items() if "cluster_size" not in key}
        assert all(torch.equal(before[key], value) for key, value in after.items())
        assert t.update.step == 3
        t.loaders.train.batch_sampler.set_epoch(0)
        codes = [codebook.get_codebook_indices(b.eeg, b.channels).flatten() for b in t.loaders.train]
        counts = np.bincount(torch.cat(codes).numpy(), minlength=32)
        assert {"loss", "mlm_acc", "mlm_acc_sym", "lr", "grad_norm"} <= t.state.log.means().keys()
    assert stats["train_code_entropy"] == pytest.approx(entropy(counts), rel=1e-9)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_evaluating_a_classifier_returns_logits_in_the_files_order_and_the_whole_sets_metrics(
    tmp_path: Path, task: str
) -> None:
    path = labelled(tmp_path, task)
    args = script_args(run_class_finetuning, *COMMON, "--output_dir", tmp_path / "run", "--batch_size", 4)
    with setup_run(args) as run:
        file = labelled_files.read_labelled(path)
        loaders = labelled_data.build_labelled_loaders(args, run, [file])[0]
        model = create_model("labram_tiny_patch200_200", num_classes=file.outputs, init_scale=1.0)
        found, logits = engine_for_finetuning.evaluate(model, loaders.val, run, engine_for_finetuning.Task(task))
    with h5py.File(path, locking=False) as file:
        eeg, labels = torch.tensor(file["val/eeg"][:] / 100), torch.tensor(file["val/label"][:])
    channels = [0, *(ELECTRODES.index(name) + 1 for name in TRIO)]
    with torch.no_grad():
        expected = [model.eval()(window.reshape(1, 3, 2, 200), channels)[0] for window in eeg]
    expected = torch.stack(expected).double()
    assert logits.shape == (11, {"binary": 1, "multiclass": 3, "regression": 2}[task])
    np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-6)
    assert len(np.unique(logits[:, 0])) == 11
    assert tuple(found) == ("loss", *METRICS[task])
    manual = {
        "binary": lambda: torch.nn.functional.binary_cross_entropy(expected.sigmoid()[:, 0], labels.double()),
        "multiclass": lambda: torch.nn.functional.nll_loss(expected.log_softmax(1), labels),
        "regression": lambda: (expected - labels).square().mean(),
    }[task]()
    assert found["loss"] == pytest.approx(float(manual), rel=1e-5)
    if task == "binary":
        assert found["roc_auc"] == pytest.approx(roc_auc_score(labels, expected[:, 0]))


def test_predictions_keep_the_selected_epochs_numbers_and_follow_the_last_epoch(tmp_path: Path) -> None:
    path = tmp_path / "predictions-val.npz"
    dataset = SimpleNamespace(labels=np.array([0, 1, 1]), recordings=["r1", "rec 2", "r2"], subjects=["ä", "s", "s"])
    vars(dataset).update(name="Mine", task="binary", classes=("rest", "task"))
    logits = [np.random.default_rng(epoch).standard_normal((3, 1)) for epoch in range(4)]
    for epoch, chosen in ((0, 0), (1, 0), (2, 2), (3, 2)):
        save_predictions(path, dataset, selected=(chosen, logits[chosen]), last=(epoch, logits[epoch]))
        found = predictions(path)
        assert (int(found["epoch"]), int(found["last_epoch"])) == (chosen, epoch)
        np.testing.assert_array_equal(found["logits"], logits[chosen])
        np.testing.assert_array_equal(found["last_logits"], logits[epoch])
    assert found["labels"].tolist() == [0, 1, 1]
    assert found["recording"].tolist() == dataset.recordings and found["subject"].tolist() == dataset.subjects
    assert (str(found["name"]), str(found["task"]), found["classes"].tolist()) == ("Mine", "binary", ["rest", "task"])
    assert list(tmp_path.iterdir()) == [path]


def test_an_evaluation_writes_damaged_predictions_anew_and_leaves_those_of_another_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, dataset = tmp_path / "p.npz", SimpleNamespace(labels=np.array([0.5]), recordings=["r"], subjects=["s"])
    vars(dataset).update(name="age", task="regression", classes=("age",))
    one, two = np.array([[1.0]]), np.array([[2.0]])
    save_predictions(path, dataset, selected=(3, one), last=(9, two))
    before = path.read_bytes()
    incomplete = tmp_path / "incomplete.npz"
    np.savez(incomplete, **{name: array for name, array in predictions(path).items() if name != "last_logits"})
    for damaged, text in ((before[:100], "p.npz cannot be read"), (incomplete.read_bytes(), "p.npz does not fit")):
        path.write_bytes(damaged)
        save_predictions(path, dataset, selected=(4, one), last=None)
        found = predictions(path)
        assert (int(found["last_epoch"]), found["last_logits"].tolist()) == (4, [[1.0]])
        assert text in caplog.text
    path.write_bytes(before)
    dataset.name = "age, year 2"  # the same samples, prepared in another way
    save_predictions(path, dataset, selected=(5, one), last=None)
    assert path.read_bytes() == before and "p.npz is of another data set" in caplog.text
    assert int(predictions(tmp_path / "p-age_year_2.npz")["epoch"]) == 5


def test_a_tokenizer_learns_one_batch(tmp_path: Path, data: Path) -> None:
    words = ("--overfit_batch", "--lr", 2e-3, "--min_lr", 2e-3, "--batch_size", 2)
    with vqnsp_training(tmp_path, data, *words, n_code=16) as t:
        initialize_codebook(t.model, t.loaders.train, t.run, epoch=0, accumulation=1)
        assert not t.model.quantize.needs_initialization
        found = []
        for epoch in range(8):
            engine_for_vqnsp.train_one_epoch(t.state, t.loaders.train, epoch)
            found.append(t.state.log.mean("loss"))
    assert found[-1] < 0.85 * found[0], found
