"""What learns in stage 3: the last blocks, the head on features computed once, LoRA; when a run stops early."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import pytest
import torch
from timm.models import create_model
from torch import Tensor, nn

import layers
import modeling_pretrain
import run_class_finetuning
from errors import InputError
from golden_recipe import eeg, fill
from modeling_finetune import NeuralTransformer
from optim_factory import Update
from run_helpers import CLASSIFIER, call, checkpoint, labelled_file, log, log_lines, predictions, stopped_at
from training import adaptation

TINY = "labram_tiny_patch200_200"
TINY_MASKED = next(name for name in modeling_pretrain.SIZES if "tiny" in name)
DEPTH = 4
CHANNELS = [0, 5, 9, 2]
COUNTS = {"train": 12, "val": 7, "test": 6}
SCRIPT = "run_class_finetuning"
MODES = {
    "freeze": ["--freeze_blocks", "3"],
    "probe": ["--linear_probe"],
    "lora": ["--lora", "4", "--lora_dropout", "0.2"],
}
POOLED = {
    "query": ["--linear_probe", "--pool", "attention"],
    "places": ["--lora", "4", "--pool", "electrodes", "--center", "subject"],
}
POOLED["whole"] = ["--pool", "attention"]
HEAD = {"head.weight", "head.bias"}
NORM = {"fc_norm.weight", "fc_norm.bias"}
ADAPTERS = {
    f"blocks.{i}.attn.{m}.lora_{ab}.default.weight" for i in range(DEPTH) for m in ("qkv", "proj") for ab in "AB"
}


def tiny(**options: Any) -> NeuralTransformer:
    return fill(create_model(TINY, **options))


def learning(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def with_random_adapters(model: NeuralTransformer, **options: Any) -> NeuralTransformer:
    """Add adapters, as if they had learnt something: at first they add nothing."""
    adaptation.add_lora(model, 3, **options)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def test_frozen_blocks_have_neither_dropout_nor_drop_path_in_training() -> None:
    model, x = tiny(drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.9), eeg(1, (4, 3, 2, 200))
    adaptation.freeze_blocks(model, DEPTH - 1)
    seen: list[Tensor] = []
    model.blocks[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    outputs = [model.train()(x, CHANNELS).detach() for _ in range(2)]
    model.eval()(x, CHANNELS)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])
    assert not torch.equal(*outputs), "the last block drops"


def test_below_the_first_learning_block_no_gradient_is_computed_and_nothing_is_kept_for_one() -> None:
    model, seen = tiny(), []
    adaptation.freeze_blocks(model, DEPTH - 1)
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].grad_fn, output.grad_fn)))
    loss = model.train()(eeg(1, (2, 3, 2, 200)), CHANNELS).square().sum()
    loss.backward()
    assert [(a is None, b is None) for a, b in seen] == [(True, True)] * (DEPTH - 1) + [(True, False)]
    assert {name for name, p in model.named_parameters() if p.grad is not None} == learning(model)


@pytest.mark.parametrize(("alpha", "scale"), [(None, 2.0), (1.5, 0.5)])
def test_the_merged_classifier_has_base_plus_scaled_product_and_computes_what_the_adapted_one_does(
    alpha: float | None, scale: float
) -> None:
    model = with_random_adapters(tiny(num_classes=3).double(), alpha=alpha).eval()
    weights, whole, x = model.state_dict(), adaptation.merged(model), eeg(1, (2, 3, 2, 200)).double()
    A, B = (weights[f"blocks.0.attn.qkv.lora_{ab}.default.weight"] for ab in "AB")
    expected = weights["blocks.0.attn.qkv.base_layer.weight"] + scale * B @ A
    torch.testing.assert_close(whole.state_dict()["blocks.0.attn.qkv.weight"], expected, rtol=0, atol=1e-14)
    with torch.no_grad():
        adapted = model(x, CHANNELS)
        assert (adapted - tiny(num_classes=3).double().eval()(x, CHANNELS)).abs().max() > 1e-2
        assert (whole(x, CHANNELS) - adapted).abs().max() <= 1e-13 * adapted.abs().max()
        assert torch.equal(model(x, CHANNELS), adapted), "merging works on a copy"


def test_adapters_are_not_loaded_with_another_scale_than_they_learnt() -> None:
    weights = with_random_adapters(tiny(), alpha=0.1).state_dict()
    same, other = tiny(), tiny()
    adaptation.add_lora(same, 3, alpha=0.1)
    adaptation.add_lora(other, 3)
    same.load_state_dict(weights)
    with pytest.raises(InputError, match=r"trained with --lora_alpha 0\.1, not 6"):
        other.load_state_dict(weights)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny labelled files and a file of stage 2 to start from."""
    folder = tmp_path_factory.mktemp("tasks")
    labelled_file(folder / "binary.hdf5", counts=COUNTS)
    masked = fill(create_model(TINY_MASKED, vocab_size=8))
    torch.save({"model": masked.state_dict()}, folder / "masked.pth")
    return folder


def words(tasks: Path, *more: Any) -> list[Any]:
    start_from = ["--finetune", tasks / "masked.pth"]
    return [*CLASSIFIER, "--dataset", tasks / "binary.hdf5", *start_from, "--lr", "2e-3", *more]


def pretrained(tasks: Path) -> dict[str, Tensor]:
    return {key.removeprefix("student."): value for key, value in checkpoint(tasks / "masked.pth")["model"].items()}


def expected_to_learn(mode: str, names: set[str]) -> set[str]:
    last = {name for name in names if name.startswith("blocks.3.")} | NORM | HEAD
    return {"freeze": last, "probe": HEAD, "lora": ADAPTERS | NORM | HEAD}[mode]


@pytest.mark.parametrize("mode", MODES)
def test_a_run_changes_what_learns_and_leaves_the_rest_bit_equal(tasks: Path, tmp_path: Path, mode: str) -> None:
    given = words(tasks, *MODES[mode], "--epochs", "2", "--init_scale", "0", "--layer_decay", "1")
    assert call(SCRIPT, *given, "--output_dir", tmp_path) == 0
    weights, before = checkpoint(tmp_path / "checkpoint.pth")["model"], pretrained(tasks)
    names = {name for name, _ in create_model(TINY).named_parameters()}
    added = ADAPTERS | {"lora_alpha"} if mode == "lora" else set()
    assert {name.replace(".base_layer", "") for name in weights} == names | added
    wanted = expected_to_learn(mode, names)
    for name, value in weights.items():
        plain = name.replace(".base_layer", "")
        first = before[plain] if plain in before and plain not in NORM else fresh(plain, value)
        changed = bool((value != first).any()) if plain not in ADAPTERS or "lora_B" in plain else True
        assert changed == (plain in wanted), plain
    assert log(tmp_path)[0]["n_parameters"] == sum(v.numel() for n, v in weights.items() if n in wanted)
    found = predictions(tmp_path / "predictions-test.npz")
    assert np.isfinite(found["last_logits"]).all() and np.ptp(found["last_logits"]) > 0


def fresh(name: str, value: Tensor) -> Tensor:
    """Return how a new tensor begins with --init_scale 0: norms at 1 and 0, head and second adapter at 0."""
    return torch.full_like(value, {"fc_norm.weight": 1.0, "lora_alpha": 8.0}.get(name, 0.0))


@pytest.mark.parametrize("mode", ["lora", *POOLED])
def test_a_run_stopped_inside_an_epoch_and_again_before_its_next_step_ends_bit_equal(
    tasks: Path, tmp_path: Path, mode: str
) -> None:
    flags = {**MODES, **POOLED}[mode]
    given = words(tasks, *flags, "--epochs", "2", "--drop_path", "0.3", "--model_ema", "--output_dir")
    assert call(SCRIPT, *given, tmp_path / "whole") == 0
    if mode == "places":  # before the first step
        with stopped_at(adaptation.RunningMeans, "start", 1):
            assert call(SCRIPT, *given, tmp_path / "stopped") == 143
    with stopped_at(Update, "__call__", 5):
        assert call(SCRIPT, *given, tmp_path / "stopped") == 143
    state = checkpoint(tmp_path / "stopped" / "checkpoint.pth")
    assert (state["epoch"], state["step"]) == (0, 2)
    if mode == "query":  # while the features are computed again
        with stopped_at(adaptation, "compute_features", 2):
            assert call(SCRIPT, *given, tmp_path / "stopped") == 143
    assert call(SCRIPT, *given, tmp_path / "stopped") == 0
    ends = [checkpoint(tmp_path / name / "checkpoint.pth") for name in ("whole", "stopped")]
    for part in ("model", "model_ema"):
        whole, stopped = (end["model"] if part == "model" else end["extras"][part] for end in ends)
        assert all(torch.equal(stopped[name], value) for name, value in whole.items())
    assert log_lines(tmp_path / "whole") == log_lines(tmp_path / "stopped")


AVERAGED = ["--model_ema", "--model_ema_decay", "0.5"]


def read_split(path: Path, split: str) -> tuple[Tensor, Tensor]:
    """Read EEG in units of 100 uV as patches (n, N, A, 200), and labels, without the project's own reader."""
    with h5py.File(path, locking=False) as file:
        signals = (torch.tensor(file[split]["eeg"][:]) / 100).double()  # divided as it is stored, in float32
        return signals.reshape(*signals.shape[:2], -1, 200), torch.tensor(file[split]["label"][:])


@pytest.mark.parametrize("center", ["none", "subject"])
def test_a_linear_probe_ends_where_a_plain_loop_on_features_ends(tasks: Path, tmp_path: Path, center: str) -> None:
    steps, base, final, n = 6, 0.05, 0.01, COUNTS["train"]
    # All samples in every step, so that their order does not matter; a head that begins at zero; dropout everywhere.
    given = words(tasks, "--linear_probe", "--batch_size", n, "--epochs", steps, "--init_scale", "0", "--drop", "0.3")
    given += ["--drop_path", "0.5", "--precision", "fp64", "--lr", base, "--min_lr", final, "--center", center]
    assert call(SCRIPT, *given, "--output_dir", tmp_path) == 0

    model = create_model(TINY).double().eval()
    model.load_state_dict({k: v for k, v in pretrained(tasks).items() if k in model.state_dict()}, strict=False)
    x, labels = read_split(tasks / "binary.hdf5", "train")
    with torch.no_grad():
        rows = [0, 40, 42, 44, 64]  # CLS; C3, CZ, C4, PZ as the table of electrodes counts them
        features = nn.functional.layer_norm(model.run_blocks(model.embed(x, rows))[:, 1:].mean(1), (200,), eps=1e-6)
        if center == "subject":  # of four samples each
            features = (features.view(-1, 4, 200) - features.view(-1, 4, 200).mean(1, keepdim=True)).view(-1, 200)
    weight, bias = torch.zeros(1, 200).double().requires_grad_(), torch.zeros(1).double().requires_grad_()
    optimizer = torch.optim.AdamW([{"params": [weight], "weight_decay": 0.05}, {"params": [bias], "weight_decay": 0}])
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = final + (base - final) * (1 + np.cos(np.pi * step / steps)) / 2
        logits = (features @ weight.t() + bias)[:, 0]
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(logits, labels.double()).backward()
        optimizer.step()
    found = checkpoint(tmp_path / "checkpoint.pth")["model"]
    torch.testing.assert_close(found["head.weight"], weight.detach(), rtol=0, atol=1e-9)
    torch.testing.assert_close(found["head.bias"], bias.detach(), rtol=0, atol=1e-9)
    assert weight.abs().max() > 0.1


@pytest.mark.parametrize("pool", ["mean", "attention", "flatten"])
def test_features_are_computed_once_and_eval_without_them_gives_the_same_predictions(
    tasks: Path, tmp_path: Path, pool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words(tasks, *MODES["probe"], "--pool", pool, *AVERAGED, "--epochs", "5", "--output_dir", tmp_path)
    batches = 3 + 2 + 2  # of 4, of 12, 7 and 6 samples
    with patch.object(layers.Block, "forward", autospec=True, side_effect=layers.Block.forward) as forward:
        assert call(SCRIPT, *given) == 0
        assert forward.call_count == DEPTH * batches and len(log(tmp_path)) == 5
        assert call(SCRIPT, *given) == 0
        assert forward.call_count == DEPTH * batches, "a finished run computes nothing"
        trained = predictions(tmp_path / "predictions-val.npz")
        (tmp_path / "predictions-val.npz").unlink()
        assert call(SCRIPT, *given, "--eval") == 0
        assert forward.call_count == DEPTH * (batches + 2 + 2)
    evaluated = predictions(tmp_path / "predictions-val.npz")
    assert evaluated["epoch"] == trained["epoch"] and np.ptp(trained["logits"]) > 1e-3
    np.testing.assert_allclose(evaluated["logits"], trained["logits"], rtol=0, atol=2e-6)
    other = labelled_file(tmp_path / "other.hdf5", counts=COUNTS, electrodes=("C3", "CZ", "C4", "FZ"))
    for how in (["--eval"], ["--epochs", "6"]) if pool == "flatten" else ():  # before a GPU takes them as they are
        assert call(SCRIPT, *given, "--dataset", other, *how) == 1
        assert f"{other}: electrodes C3, CZ, C4, FZ, but the head" in capsys.readouterr().err


def test_the_merged_file_is_the_selected_classifier_for_eval_and_finetune_but_the_adapters_file_is_not(
    tasks: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words(tasks, "--epochs", "3", "--output_dir")
    assert call(SCRIPT, *given, tmp_path / "lora", *MODES["lora"], *AVERAGED) == 0
    trained = predictions(tmp_path / "lora" / "predictions-test.npz")
    merged = tmp_path / "lora" / "model-merged.pth"
    assert list(checkpoint(merged)["model"]) == list(create_model(TINY).state_dict())
    assert call(SCRIPT, *given, tmp_path / "eval", "--eval", "--resume", merged) == 0
    evaluated = predictions(tmp_path / "eval" / "predictions-test.npz")
    assert evaluated["epoch"] == trained["epoch"]
    np.testing.assert_allclose(evaluated["logits"], trained["logits"], rtol=0, atol=1e-6)
    caplog.set_level("INFO")
    assert call(SCRIPT, *given, tmp_path / "again", "--finetune", merged, "--epochs", "1") == 0
    assert "missing: none; unexpected: none; dropped: none" in caplog.text
    last = tmp_path / "lora" / "checkpoint.pth"
    assert call(SCRIPT, *given, tmp_path / "b", "--finetune", last) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(last) in error and "model-merged.pth" in error


def scripted(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """Make the validation score of epoch e scores[e]."""
    original = run_class_finetuning.evaluate

    def evaluate(model: nn.Module, loader: Any, *rest: Any, **options: Any) -> tuple[dict[str, float], np.ndarray]:
        stats, logits = original(model, loader, *rest, **options)
        if loader.dataset.split == "val":
            stats["roc_auc"] = scores.pop(0)
        return stats, logits

    monkeypatch.setattr(run_class_finetuning, "evaluate", evaluate)


def test_patience_stops_after_so_many_epochs_in_a_row_without_a_better_score(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    scripted(monkeypatch, [0.5, 0.4, 0.6, 0.6, 0.55, 0.9])
    given = words(tasks, "--epochs", "9", "--patience", "2", "--output_dir", tmp_path)
    assert call(SCRIPT, *given) == 0
    assert [line["val_roc_auc"] for line in log(tmp_path)] == [0.5, 0.4, 0.6, 0.6, 0.55]
    for shown in ("Stopped after epoch 4: --patience 2", "selected epoch 2 (validation roc_auc)", "last epoch 4, test"):
        assert shown in caplog.text
    assert call(SCRIPT, *given) == 0
    assert len(log(tmp_path)) == 5, "a run that stopped early does not go on"


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--freeze_blocks", "5"], "--freeze_blocks 5"),
        (["--lora_alpha", "4"], "--lora R"),
        (["--linear_probe", "ridge", "--model_ema"], "--linear_probe ridge takes no steps"),
        (["--linear_probe", "--pool", "attention", "--center", "subject"], "use --freeze_blocks 4 in place"),
        (["--lora", "4", "--freeze_blocks", "2"], "--freeze_blocks: not allowed with argument --lora"),
        (["--patience", "2", "--disable_eval_during_finetuning"], "leave out --disable_eval_during_finetuning"),
    ],
)
def test_flags_that_make_no_sense_are_refused_in_one_line_before_data_are_read(
    flags: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(SCRIPT, *CLASSIFIER, "--dataset", tmp_path / "none.hdf5", "--output_dir", tmp_path, *flags) == 2
    error = capsys.readouterr().err
    assert part in error and error.startswith("error: ") and error.count("\n") == 1
