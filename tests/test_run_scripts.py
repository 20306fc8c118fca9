"""The three scripts as people run them: README's command lines, and what each flag that changes a run does."""

import json
import math
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from timm.utils import ModelEmaV3

import run_class_finetuning
import run_labram_pretraining
import run_vqnsp_training
from files import plain
from run_helpers import (
    CLASSIFIER,
    MASKED,
    ROOT,
    STAGES,
    TOKENIZER,
    call,
    checkpoint,
    labelled_file,
    log,
    predictions,
    pretraining_file,
    start,
)

SCRIPTS = {module.__name__: module for module in (run_vqnsp_training, run_labram_pretraining, run_class_finetuning)}
TUAB = "FP1 FP2 F3 F4 C3 C4 P3 P4 O1 O2 F7 F8 T3 T4 T5 T6 A1 A2 FZ CZ PZ T1 T2"

# As in the released code's README; only --nproc_per_node, --epochs and --batch_size are replaced below.
COMMANDS = {
    "run_vqnsp_training": """OMP_NUM_THREADS=1 torchrun --nnodes=1 --nproc_per_node=8 run_vqnsp_training.py
        --output_dir ./checkpoints/vqnsp/ --log_dir ./log/vqnsp/ --model vqnsp_encoder_base_decoder_3x200x12
        --codebook_n_emd 8192 --codebook_emd_dim 64 --quantize_kmeans_init --batch_size 128 --opt adamw
        --opt_betas 0.9 0.99 --weight_decay 1e-4 --warmup_epochs 10 --epochs 100 --save_ckpt_freq 20""",
    "run_labram_pretraining": """OMP_NUM_THREADS=1 torchrun --nnodes=1 --nproc_per_node=8 run_labram_pretraining.py
        --output_dir ./checkpoints/labram_base --log_dir ./log/labram_base --model labram_base_patch200_1600_8k_vocab
        --tokenizer_model vqnsp_encoder_base_decoder_3x200x12 --tokenizer_weight ./checkpoints/vqnsp.pth
        --batch_size 64 --lr 5e-4 --warmup_epochs 5 --clip_grad 3.0 --drop_path 0. --layer_scale_init_value 0.1
        --opt_betas 0.9 0.98 --opt_eps 1e-8 --epochs 50 --save_ckpt_freq 5 --codebook_dim 64
        --gradient_accumulation_steps 1""",
    "run_class_finetuning": """OMP_NUM_THREADS=1 torchrun --nnodes=1 --nproc_per_node=8 run_class_finetuning.py
        --output_dir ./checkpoints/finetune_tuab_base/ --log_dir ./log/finetune_tuab_base
        --model labram_base_patch200_200 --finetune ./checkpoints/labram-base.pth --weight_decay 0.05 --batch_size 64
        --lr 5e-4 --update_freq 1 --warmup_epochs 5 --epochs 50 --layer_decay 0.65 --drop_path 0.1 --save_ckpt_freq 5
        --disable_rel_pos_bias --abs_pos_emb --dataset TUAB --disable_qkv_bias --seed 0""",
}
COPIES = {
    "run_vqnsp_training": ("checkpoints/vqnsp/checkpoint.pth", "checkpoints/vqnsp.pth"),
    "run_labram_pretraining": ("checkpoints/labram_base/checkpoint.pth", "checkpoints/labram-base.pth"),
}
EVERY_STAGE = "epoch n_parameters train_loss train_lr train_min_lr train_weight_decay train_grad_norm"
LOGGED = {  # sets and numbers
    "run_vqnsp_training": ("train test", "quant_loss rec_loss rec_angle_loss total_loss unused_code perplexity"),
    "run_labram_pretraining": ("train", "mlm_acc mlm_acc_sym code_entropy"),
    "run_class_finetuning": ("val test", "loss accuracy balanced_accuracy pr_auc roc_auc"),
}
LEARNABLE = {"run_vqnsp_training": 7.52e6, "run_labram_pretraining": 9.15e6 - 1.69e6, "run_class_finetuning": 5.82e6}


def words_of(script: str, **replaced: Any) -> list[str]:
    """Return the arguments of a README command after torchrun's own."""
    words = shlex.split(COMMANDS[script])
    assert words[:4] == ["OMP_NUM_THREADS=1", "torchrun", "--nnodes=1", "--nproc_per_node=8"]
    for flag, value in replaced.items():
        words[words.index(f"--{flag}") + 1] = str(value)
    return words[4:]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """README's three commands, one after the other, with two processes, one epoch, small batches and data."""
    folder = tmp_path_factory.mktemp("readme")
    for script in STAGES:
        (folder / f"{script}.py").symlink_to(ROOT / f"{script}.py")
    pretraining_file(folder / "data/pretrain/a.hdf5", seconds=(19,))
    pretraining_file(folder / "data/pretrain_val/a.hdf5", seconds=(17,))
    labelled_file(folder / "data/TUAB.hdf5", counts={"train": 4, "val": 3, "test": 5}, electrodes=TUAB.split())
    for script in STAGES:
        start(words_of(script, epochs=1, batch_size=2), cwd=folder, processes=2)
        if script in COPIES:
            shutil.copy(*(folder / name for name in COPIES[script]))
    yield folder
    shutil.rmtree(folder / "checkpoints")  # half a gigabyte


@pytest.mark.parametrize("script", STAGES)
def test_the_readme_command_writes_log_checkpoint_description_and_tensorboard(chain: Path, script: str) -> None:
    words = words_of(script)
    output = chain / words[words.index("--output_dir") + 1]
    (line,) = log(output)
    sets, numbers = map(str.split, LOGGED[script])
    assert {*EVERY_STAGE.split(), *(f"{name}_{number}" for name in sets for number in numbers)} <= line.keys()
    assert line["n_parameters"] == pytest.approx(LEARNABLE[script], abs=0.01e6)
    assert all(value is None or math.isfinite(value) for value in line.values())
    state = checkpoint(output / "checkpoint.pth")
    assert {"model", "optimizer", "epoch", "scaler", "args"} <= state.keys() and state["epoch"] == 0
    description = json.loads((output / "environment.json").read_text())
    assert {"code_version", "libraries", "hardware", "flags"} <= description.keys()
    assert description["hardware"]["processes"] == 2 and description["flags"]["batch_size"] == 2
    (events,) = (chain / words[words.index("--log_dir") + 1]).glob("events.out.tfevents.*")
    assert b"train_loss" in events.read_bytes()


def test_each_stage_continues_from_the_copied_checkpoint_of_the_one_before(chain: Path) -> None:
    tokenizer = checkpoint(chain / "checkpoints/vqnsp.pth")["model"]
    assert tokenizer["quantize.embedding.weight"].shape == (8192, 64)
    assert float(tokenizer["quantize.embedding.initted"]) == 1
    masked = checkpoint(chain / "checkpoints/labram-base.pth")["model"]
    assert masked["lm_head.weight"].shape == (8192, 200)
    classifier = checkpoint(chain / "checkpoints/finetune_tuab_base/checkpoint.pth")["model"]
    # One step of warm-up from 0 leaves the loaded weights as they were.
    key = "blocks.11.mlp.fc1.weight"
    torch.testing.assert_close(classifier[key], masked[f"student.{key}"], rtol=0, atol=1e-7)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small data, a tokenizer and a masked model of two epochs with their outputs."""
    folder = tmp_path_factory.mktemp("tiny")
    pretraining_file(folder / "train" / "a.hdf5", seconds=(12, 12))
    pretraining_file(folder / "val" / "a.hdf5", seconds=(10,), seed=9)
    labelled_file(folder / "task.hdf5", counts={"train": 12, "val": 7, "test": 6})
    assert call("run_vqnsp_training", *stage_one(folder), "--output_dir", folder / "tokenizer") == 0
    assert call("run_labram_pretraining", *stage_two(folder), "--output_dir", folder / "masked") == 0
    return folder


def stage_one(folder: Path) -> list[Any]:
    return [*TOKENIZER, "--train_data", folder / "train", "--val_data", folder / "val"]


def stage_two(folder: Path) -> list[Any]:
    weights = folder / "tokenizer" / "checkpoint.pth"
    return [*MASKED, "--train_data", folder / "train", "--val_data", folder / "val", "--tokenizer_weight", weights]


def stage_three(folder: Path) -> list[Any]:
    return [*CLASSIFIER, "--dataset", folder / "task.hdf5", "--finetune", folder / "masked" / "checkpoint.pth"]


def numbers_of(caplog: pytest.LogCaptureFixture, start_of_line: str) -> dict[str, float]:
    """Return the numbers of the one logged line that starts so."""
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith(start_of_line)]
    return {name: float(value) for name, value in re.findall(r"(\w+) ([-\d.e+]+)", line.partition(": ")[2])}


def test_eval_of_a_classifier_gives_the_metrics_and_predictions_of_training(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [*stage_three(tiny), "--output_dir", tmp_path]
    assert call("run_class_finetuning", *words) == 0
    (line,) = log(tmp_path)
    trained = predictions(tmp_path / "predictions-test.npz")
    (tmp_path / "predictions-test.npz").unlink()
    caplog.set_level("INFO")
    assert call("run_class_finetuning", *words, "--eval") == 0
    for split in ("val", "test"):
        printed = numbers_of(caplog, f"epoch 0, {split}:")
        assert printed.keys() == {"loss", "accuracy", "balanced_accuracy", "pr_auc", "roc_auc"}
        for name, value in printed.items():
            assert value == pytest.approx(line[f"{split}_{name}"], abs=6e-5), (split, name)
    evaluated = predictions(tmp_path / "predictions-test.npz")
    np.testing.assert_allclose(evaluated["logits"], trained["logits"], rtol=0, atol=1e-6)
    assert log(tmp_path) == [line], "evaluating leaves the log alone"


def test_eval_of_a_tokenizer_gives_the_losses_and_codes_of_training(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    before = log(tiny / "tokenizer")
    words = [*stage_one(tiny), "--output_dir", tmp_path, "--resume", tiny / "tokenizer" / "checkpoint.pth", "--eval"]
    assert call("run_vqnsp_training", *words, "--calculate_codebook_usage") == 0
    printed = numbers_of(caplog, "val_data:")
    assert {"test_loss", "test_unused_code", "test_perplexity"} <= printed.keys()
    for name, value in printed.items():
        assert value == pytest.approx(before[-1][name], rel=1e-4), name
    usage = numbers_of(caplog, "train_data:")
    assert usage["test_used_code"] + usage["test_unused_code"] == 16
    caplog.clear()
    assert call("run_vqnsp_training", *words[:-1], "--calculate_codebook_usage") == 0  # alone, as in the released code
    assert numbers_of(caplog, "train_data:") == usage and not list(tmp_path.glob("checkpoint*"))


def test_model_ema_is_the_average_that_is_evaluated_and_saved(tiny: Path, tmp_path: Path) -> None:
    words = [*stage_three(tiny), "--drop_path", "0", "--output_dir"]
    assert call("run_class_finetuning", *words, tmp_path / "plain") == 0
    assert call("run_class_finetuning", *words, tmp_path / "one", "--model_ema", "--model_ema_decay", "1") == 0
    plain, one = (predictions(tmp_path / name / "predictions-test.npz") for name in ("plain", "one"))
    assert np.abs(one["logits"]).max() < 0.02, "all memory: the weights before training, whose head is near zero"
    assert np.abs(plain["logits"]).max() > 0.02
    (tmp_path / "one" / "predictions-test.npz").unlink()
    assert call("run_class_finetuning", *words, tmp_path / "one", "--model_ema", "--eval") == 0
    np.testing.assert_allclose(
        predictions(tmp_path / "one" / "predictions-test.npz")["logits"], one["logits"], rtol=0, atol=1e-6
    )


def test_the_average_moves_as_timms_does_and_not_at_a_skipped_step() -> None:
    model = torch.nn.Linear(3, 2).double()
    own, timms = (ModelEmaV3(model, decay=0.9, use_warmup=True) for _ in range(2))
    for step, taken in enumerate((True, False, True), start=1):
        torch.nn.init.normal_(model.weight)
        run_class_finetuning.average(own, model, torch.tensor(taken), step)
        if taken:
            timms.update(model, step=step)
        torch.testing.assert_close(own.module.state_dict(), timms.module.state_dict(), rtol=1e-14, atol=0)


def test_an_average_of_almost_the_starting_weights_is_warned_of_and_a_warm_up_helps(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [*stage_three(tiny), "--model_ema", "--output_dir"]
    assert call("run_class_finetuning", *words, tmp_path / "slow") == 0
    share = 100 * 0.9999**3  # three steps
    assert f"all 3 steps {share:.0f} % of the average" in caplog.text and "--model_ema_warmup" in caplog.text
    caplog.clear()
    assert call("run_class_finetuning", *words, tmp_path / "warm", "--model_ema_warmup") == 0
    assert "of the average" not in caplog.text
    state = checkpoint(tmp_path / "warm" / "checkpoint.pth")
    # timm's decay of the steps 1, 2 and 3: 0, 1 - 2**(-2/3), 1 - 3**(-2/3); the first takes the weights as they are.
    average, weights = state["extras"]["model_ema"]["module.head.bias"], state["model"]["head.bias"]
    start = checkpoint(tmp_path / "slow" / "checkpoint.pth")["extras"]["model_ema"]["module.head.bias"]
    assert (average - weights).abs().max() < (start - weights).abs().max() / 2


def test_balanced_class_weights_reach_the_loss(tmp_path: Path) -> None:
    """With a head of zeros a sample's loss is log 2 times its weight; of labels 0 0 0 1 that is 2/3 or 2."""
    few = labelled_file(tmp_path / "few.hdf5", counts={"train": 4, "val": 4}, labels=[0, 0, 0, 1])
    words = [*CLASSIFIER, "--dataset", few, "--init_scale", "0", "--lr", "0", "--min_lr", "0"]
    words += ["--batch_size", "1", "--overfit_batch"]
    losses = {}
    for name in ("none", "balanced"):
        assert call("run_class_finetuning", *words, "--class_weights", name, "--output_dir", tmp_path / name) == 0
        losses[name] = log(tmp_path / name)[0]["train_loss"] / math.log(2)
    assert losses["none"] == pytest.approx(1, rel=1e-6)
    assert min(abs(losses["balanced"] - weight) for weight in (2 / 3, 2)) < 1e-6


def test_the_file_of_the_selected_epoch_is_that_of_the_best_validation_score(tiny: Path, tmp_path: Path) -> None:
    words = [*stage_three(tiny), "--epochs", "4", "--lr", "3e-3", "--output_dir", tmp_path]
    assert call("run_class_finetuning", *words) == 0
    scores = [line["val_roc_auc"] for line in log(tmp_path)]
    best = scores.index(max(scores))
    assert checkpoint(tmp_path / "checkpoint-best.pth")["epoch"] == best
    found = predictions(tmp_path / "predictions-val.npz")
    assert found["epoch"] == best and found["last_epoch"] == 3
    assert roc_auc_score(found["labels"], found["logits"][:, 0]) == pytest.approx(max(scores))


def test_training_in_bfloat16_runs_on_a_cpu_and_keeps_float32_weights(tiny: Path, tmp_path: Path) -> None:
    assert call("run_labram_pretraining", *stage_two(tiny), "--precision", "bf16", "--output_dir", tmp_path) == 0
    assert math.isfinite(log(tmp_path)[0]["train_loss"])
    weights = checkpoint(tmp_path / "checkpoint.pth")["model"]
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}


def test_the_masked_model_starts_from_the_tokenizers_encoder_where_asked(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    words = [*stage_two(tiny), "--init_from_tokenizer", "--lr", "0", "--min_lr", "0", "--output_dir", tmp_path]
    assert call("run_labram_pretraining", *words) == 0
    assert "tensors of its encoder start the model, all but biases of q and v; blocks.attn.k_norm" in caplog.text
    encoder, found = (checkpoint(folder / "checkpoint.pth")["model"] for folder in (tiny / "tokenizer", tmp_path))
    for name in ("pos_embed", "patch_embed.conv1.weight", "blocks.3.mlp.fc2.bias", "blocks.0.attn.qkv.weight"):
        assert torch.equal(found[f"student.{name}"], encoder[f"encoder.{name}"]), name


RUN_FLAGS = """--output_dir --log_dir --model --batch_size --opt --opt_betas --opt_eps --clip_grad --weight_decay
    --weight_decay_end --lr --min_lr --warmup_epochs --warmup_steps --epochs --save_ckpt_freq --device --seed --resume
    --auto_resume --no_auto_resume --start_epoch --num_workers --pin_mem --no_pin_mem --save_ckpt --no_save_ckpt
    --input_size --overfit_batch"""
OWN_FLAGS = {
    "run_vqnsp_training": """--codebook_n_emd --codebook_emd_dim --quantize_kmeans_init --no_quantize_kmeans_init
        --ema_decay --eval --disable_eval --calculate_codebook_usage --no_revive_codes --train_data --val_data
        --time_window --window_stride""",
    "run_labram_pretraining": """--tokenizer_model --tokenizer_weight --drop_path --layer_scale_init_value
        --codebook_size --codebook_dim --gradient_accumulation_steps --drop --attn_drop_rate --train_data --val_data
        --time_window --window_stride""",
    "run_class_finetuning": """--finetune --update_freq --layer_decay --drop_path --disable_rel_pos_bias --abs_pos_emb
        --dataset --data_dir --disable_qkv_bias --dist_eval --eval --drop --attn_drop_rate --model_ema
        --model_ema_decay --smoothing --init_scale --use_cls --nb_classes --disable_eval_during_finetuning
        --layer_scale_init_value""",
}


@pytest.mark.parametrize("script", STAGES)
def test_every_flag_of_the_released_script_is_known(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(script, "--help") == 0
    text = capsys.readouterr().out
    wanted = f"{RUN_FLAGS} {OWN_FLAGS[script]}".split()
    assert not [flag for flag in wanted if not re.search(rf"^  {flag}\b|, {flag}\b", text, re.MULTILINE)]


@pytest.mark.parametrize("script", STAGES)
def test_the_readme_command_says_nothing_but_the_defaults_and_the_machine(script: str) -> None:
    with patch("sys.argv", words_of(script)):
        given = vars(SCRIPTS[script].get_args())
    with patch("sys.argv", [script]):
        defaults = vars(SCRIPTS[script].get_args())
    differing = {name for name, value in given.items() if plain(value) != plain(defaults[name])}
    # Without these flags: no TensorBoard, from scratch, and the size's own layer scale and the tokenizer's own width.
    assert differing <= {"log_dir", "finetune", "layer_scale_init_value", "codebook_dim", "disable_rel_pos_bias"}


def test_a_recipe_sets_the_defaults_and_a_flag_that_is_given_wins() -> None:
    with patch("sys.argv", ["x", "--model", "labram_large_patch200_200", "--recipe", "small", "--lr", "2e-3"]):
        args = run_class_finetuning.get_args()
    assert (args.opt, args.lr, args.layer_decay, args.batch_size, args.patience) == ("adamw", 2e-3, 1, 64, 5)
    assert (args.class_weights, args.smoothing, args.epochs) == ("balanced", 0.1, 30)


def test_a_recipe_says_what_it_set_and_weighs_no_classes_of_a_regression(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    outputs = np.random.default_rng(0).standard_normal((4, 1)).astype(np.float32)
    options: Any = {"classes": ["knee"], "task": "regression", "counts": {"train": 4}, "labels": outputs}
    words = [*CLASSIFIER, "--recipe", "small", "--dataset", labelled_file(tmp_path / "a.hdf5", **options)]
    assert call("run_class_finetuning", *words, "--output_dir", tmp_path) == 2, "no epoch can be judged"
    assert call("run_class_finetuning", *words, "--output_dir", tmp_path, "--patience", "0") == 0
    settings = "--opt adamw --lr 0.0001 --layer_decay 1.0 --batch_size 4 --patience 0 --class_weights none"
    assert f"--recipe small: {settings} --smoothing 0.1" in caplog.text
    assert checkpoint(tmp_path / "checkpoint.pth")["args"]["class_weights"] == "none"


@pytest.mark.parametrize(("size", "expected"), [("large", (0.8, 30, 3, 0.1)), ("huge", (0.8, 30, 3, 0.2))])
def test_larger_classifiers_bring_their_own_defaults(size: str, expected: tuple[float, ...]) -> None:
    with patch("sys.argv", ["x", "--model", f"labram_{size}_patch200_200"]):
        args = run_class_finetuning.get_args()
    assert (args.layer_decay, args.epochs, args.warmup_epochs, args.drop_path) == expected
