"""Stage 3: fine-tune the pre-trained model on a labelled task. Paper, section 2.4."""

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models import create_model
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import modeling_finetune
import optim_factory
import utils
from eeg_data import labelled as labelled_data
from eeg_data import labelled_files
from eeg_data.labelled import balanced_weights
from eeg_data.labelled_files import LabelledFile
from electrodes import embedding_rows
from engine_for_finetuning import Task, evaluate, fit_ridge, save_predictions, train_one_epoch
from errors import ArgumentParser, InputError, UsageError, run_script
from training import adaptation, centring, checkpoints, hub
from training.batch_size import settle_batch_size
from training.metrics import SELECT_BY, BestEpoch, mean_score
from training.state import TrainingState

logger = logging.getLogger(__name__)

MOST_START = 0.05  # share of the starting weights in an average, above which a run warns
# What the paper's table of hyperparameters changes with the model's size.
SIZE_DEFAULTS = {
    "large": {"layer_decay": 0.8, "epochs": 30, "warmup_epochs": 3},
    "huge": {"layer_decay": 0.8, "epochs": 30, "warmup_epochs": 3, "drop_path": 0.2},
}
# small: the values with which NeuralBench fine-tunes all layers of all models on few subjects.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        "opt": "adamw",
        "lr": 1e-4,
        "layer_decay": 1.0,
        "batch_size": 64,
        "patience": 5,
        "class_weights": "balanced",
        "smoothing": 0.1,
    },
}


def get_args() -> argparse.Namespace:
    """Return the flags, with the defaults of stage 3 for the chosen model."""
    parser = ArgumentParser(description=__doc__)
    add_model_arguments(parser)
    labelled_data.add_labelled_arguments(parser)
    optim_factory.add_arguments(parser, accumulation="update_freq")
    task = parser.add_argument_group("fine-tuning")
    add = task.add_argument
    words = (
        "defaults: the paper's, or for few subjects one low rate, balanced classes, patience; a flag that is given wins"
    )
    add("--recipe", choices=RECIPES, default="paper", help=words)
    add("--layer_decay", type=float, default=0.65, help="0.8 for large and huge")
    add("--smoothing", type=float, default=0.1, help="label smoothing for more than two classes")
    words = "balanced: in training each class counts alike, however many samples it has"
    add("--class_weights", choices=("none", "balanced"), default="none", help=words)
    add("--select_by", help="metric that selects the epoch (default: the paper's rule)")
    add("--model_ema", action="store_true", help="average the weights and evaluate the average")
    add("--model_ema_decay", type=float, default=0.9999)
    add("--model_ema_warmup", action="store_true", help="let the decay rise to --model_ema_decay")
    add("--eval", action="store_true", help="evaluate a checkpoint and stop")
    add("--disable_eval_during_finetuning", action="store_true", help="evaluate after the last epoch only")
    adaptation.add_arguments(parser)
    utils.add_arguments(parser)
    parser.set_defaults(
        input_size=200,
        drop_path=0.1,
        output_dir=Path("checkpoints/finetune_tuab_base"),
        batch_size=64,
        epochs=50,
        save_ckpt_freq=5,
        lr=5e-4,
        min_lr=1e-6,
        warmup_epochs=5,
        weight_decay=0.05,
    )
    given = parser.parse_known_args()[0]
    parser.set_defaults(**SIZE_DEFAULTS.get(given.model.split("_")[1], {}) | RECIPES[given.recipe])
    args = parser.parse_args()
    if args.linear_probe == "ridge":
        args.epochs, args.patience = 1, None
    return args


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the classifier."""
    model = parser.add_argument_group("model")
    utils.add_size(model, "model", modeling_finetune.SIZES, "labram_base_patch200_200")
    model.add_argument(
        "--finetune", type=Path, metavar="FILE", help=f"checkpoint of stage 2, or {hub.FORM} (default: from scratch)"
    )
    utils.add_trunk_arguments(model)
    model.add_argument("--init_scale", type=float, default=0.001, help="of the head's weights")
    words = (
        "what the head sees: mean of all patches, CLS, each electrode's mean over time, all patches, a learnt mean, "
    )
    words += "or the mean and each electrode's log power at 1 to 45 Hz"
    model.add_argument("--pool", choices=modeling_finetune.POOLS, default="mean", help=words)
    model.add_argument("--use_cls", dest="pool", action="store_const", const="cls", help="the same as --pool cls")
    model.add_argument("--qkv_bias", dest="qkv_bias", action="store_true", default=False, help="biases of q and v")
    model.add_argument("--disable_qkv_bias", dest="qkv_bias", action="store_false", help="the default")
    model.add_argument(
        "--disable_rel_pos_bias", action="store_true", help="accepted: there is no relative position bias"
    )


def build_model(
    args: argparse.Namespace, run: utils.Run, files: Sequence[LabelledFile]
) -> modeling_finetune.NeuralTransformer:
    """Build the files' classifier as the flags adapt it, with the weights of stage 2 if --finetune names a file."""
    heads = [{"num_classes": f.outputs, "electrodes": len(f.montage), "seconds": f.seconds} for f in files]
    several = {"num_classes": 0, "tasks": {file.slug: head for file, head in zip(files, heads, strict=True)}}
    model: Any = create_model(
        args.model,
        pool=args.pool,
        **(several if len(files) > 1 else heads[0]),
        init_scale=args.init_scale,
        qkv_bias=args.qkv_bias,
        **utils.trunk_options(args),
    )
    if args.pool in modeling_finetune.PLACED:
        for file, head in zip(files, model.heads.values() or [model.head], strict=True):
            rows = embedding_rows(file.montage, table_rows=args.num_electrodes + 1, where=str(file.path))
            head.rows.copy_(torch.tensor(rows[1:]))
    if args.finetune is None:
        logger.info("No --finetune: the classifier starts from random weights.")
    else:
        state = run.run_on_rank0(lambda: checkpoints.read(args.finetune))
        weights = checkpoints.model_state(state, args.finetune)
        checkpoints.check_stage(weights, ["pretraining", "classifier"], args.finetune)
        modeling_finetune.load_pretrained(model, weights, where=f"{args.finetune} into {args.model}")
    adaptation.setup_adaptation(model, args)
    return model


def build_average(model: nn.Module, args: argparse.Namespace, *, steps: int) -> ModelEmaV3 | None:
    """Return the moving average of the weights for --model_ema. steps: of the whole training."""
    if not args.model_ema:
        return None
    start = args.model_ema_decay**steps
    if start > MOST_START and not args.model_ema_warmup:
        text = "--model_ema: after all %d steps %.0f %% of the average are still the starting weights: add "
        text += "--model_ema_warmup or lower --model_ema_decay %g."
        logger.warning(text, steps, 100 * start, args.model_ema_decay)
    return ModelEmaV3(model, decay=args.model_ema_decay, use_warmup=args.model_ema_warmup)


@torch.no_grad()
def average(ema: ModelEmaV3, model: nn.Module, taken: Tensor, step: int | None) -> None:
    """Move the averaged weights towards the model's, if the device took the step. (timm's `update` cannot ask it.)"""
    averaged, weights = (list(module.state_dict().values()) for module in (ema.module, model))
    share = taken.to(weights[0].dtype) * (1 - ema.get_decay(step))
    for own, new in zip(averaged, weights, strict=True):
        if own.is_floating_point():  # not the electrodes of the head
            own.lerp_(new, share)


def evaluate_tasks(
    model: nn.Module, tasks: Sequence[Task], run: utils.Run, best: BestEpoch, epoch: int, *, training: bool = True
) -> tuple[dict[str, float], bool]:
    """Evaluate and write the predictions; returns the log entries and whether this epoch is now the selected.

    best: of the run; each of several tasks also selects an epoch. training: False keeps what the prediction files have
    of the last epoch.
    """
    stats: dict[str, float] = {}
    selected = False
    for task in tasks:
        own, selected = evaluate_sets(model, task, run, epoch, training=training)
        stats |= task.named(own)
    if len(tasks) > 1:
        stats |= mean_score([task.best for task in tasks])
        selected = best.update(epoch, stats)
    return stats, selected


def evaluate_sets(
    model: nn.Module, task: Task, run: utils.Run, epoch: int, *, training: bool
) -> tuple[dict[str, float], bool]:
    """Evaluate a task and write its predictions; returns metrics and whether this epoch is now its selected one."""
    stats: dict[str, float] = {}
    logits, best = {}, task.best
    for name, loader in task.loaders.evaluation.items():
        values, logits[name] = evaluate(model, loader, run, task)
        stats |= {f"{name}_{metric}": value for metric, value in values.items()}
    stats = run.run_on_rank0(lambda: stats)  # machines may differ in a last bit, and all must select alike
    selected = best.update(epoch, stats)
    if selected:
        best.logits = {name: torch.from_numpy(values) for name, values in logits.items()}
    if run.is_main:
        for name, loader in task.loaders.evaluation.items():
            path = run.output_dir / f"predictions-{'-'.join(filter(None, (name, task.head)))}.npz"
            chosen = int(best.epoch or 0), best.logits[name].numpy()
            last = (epoch, logits[name]) if training else None
            save_predictions(path, loader.dataset, selected=chosen, last=last, transductive=task.transductive)
    return stats, selected


def read_files(args: argparse.Namespace) -> list[LabelledFile]:
    """Read the descriptions of --dataset. Raises UsageError or InputError for flags that do not fit them."""
    files = [labelled_files.read_labelled(labelled_files.labelled_path(one, args.data_dir)) for one in args.dataset]
    if args.nb_classes not in (None, 0) and any(file.outputs != args.nb_classes for file in files):
        needs = ", ".join(f"{file.path} needs {file.outputs} output(s)" for file in files)
        raise InputError(f"--nb_classes {args.nb_classes}, but {needs}: leave the flag out")
    regression = all(file.task == "regression" for file in files)
    if args.recipe == "small" and regression:
        args.class_weights = "none"
    values = {name: getattr(args, name) for name in RECIPES[args.recipe]}
    if recipe := [f"--{name} {value}" for name, value in values.items() if value is not None]:
        logger.info("--recipe %s: %s", args.recipe, " ".join(recipe))
    if args.class_weights != "none" and regression:
        raise UsageError(f"--class_weights {args.class_weights}: {files[0].path} is a regression, which has no classes")
    if args.task_weights is not None and not 1 < len(files) == len(args.task_weights):
        given = f"--task_weights has {len(args.task_weights)} number(s) for {len(files)} data set(s)"
        raise UsageError(f"{given}: give one for each of several, or leave it out")
    for i, file in enumerate(files):
        others = [other.slug for other in files[:i]]
        if len(files) > 1 and (file.slug in others or hasattr(nn.ModuleDict(), file.slug)):  # a module has `train`
            way_out = f"give it another one, h5py.File({str(file.shards[0])!r}, 'r+').attrs['name'] = ..."
            raise InputError(f"--dataset {file.path}: its name {file.name} cannot name a head, or names two: {way_out}")
    return files


def build_tasks(args: argparse.Namespace, files: Sequence[LabelledFile]) -> tuple[list[Task], BestEpoch]:
    """Make the tasks, still without data, and what selects the epoch of the run. Raises UsageError for --select_by."""
    several = len(files) > 1
    tasks, rule, words = [], centring.centring_of(vars(args)), centring.words_of(vars(args))
    for file in files:
        best = BestEpoch(args.select_by or SELECT_BY[file.task], file.task, patience=args.patience)
        head = file.slug if several else None
        tasks.append(Task(file.task, head, best, centring=rule, transductive=words))
    return tasks, BestEpoch("score", None, patience=args.patience) if several else tasks[0].best


def add_data(
    tasks: Sequence[Task],
    files: Sequence[LabelledFile],
    model: modeling_finetune.NeuralTransformer,
    args: argparse.Namespace,
    run: utils.Run,
    accumulation: int,
) -> None:
    """Give the tasks their loaders, class weights and running means of the model's features.

    Raises UsageError if --patience has no validation samples.
    """
    loaders = labelled_data.build_labelled_loaders(args, run, files, accumulation=accumulation)
    if args.patience and all(own.val is None for own in loaders):  # one may have no batches for this process
        text = f"--patience {args.patience}: {files[0].path} has no validation samples to judge an epoch by: use 0"
        raise UsageError(text)
    for task, own, windows in zip(tasks, loaders, loaders[0].train.dataset.parts, strict=True):
        task.loaders = own
        if task.centring is not None:
            task.centring.announce(windows)
            for loader in own.evaluation.values():
                task.centring.check(loader.dataset)
            if not args.linear_probe:  # whose features stay
                width = model.head_of(task.head).in_features
                task.means = adaptation.RunningMeans(task.centring.groups(windows), width, run)
        if args.class_weights == "balanced" and task.kind != "regression":
            weights = balanced_weights(windows.labels, len(windows.classes))
            task.class_weights = weights.to(run.device)  # not from the host at every step


def main(args: argparse.Namespace) -> None:
    """Fine-tune, or with --eval evaluate, a classifier."""
    with utils.setup_run(args) as run:
        adaptation.check_flags(args)
        files = read_files(args)
        tasks, best = build_tasks(args, files)
        model = run.distribute(build_model(args, run, files), heads=len(files))
        largest = max(range(len(files)), key=lambda i: len(files[i].montage) * files[i].seconds)
        window = len(files[largest].montage), files[largest].seconds
        forward = partial(model, task=tasks[largest].head)
        copies = int(args.model_ema)
        settle_batch_size(args, run, model, lambda *batch: forward(*batch).sum(), window=window, copies=copies)
        accumulation = optim_factory.micro_batches(args, run, flag="update_freq")
        add_data(tasks, files, model.module, args, run, accumulation)
        if args.eval:
            averaged = args.model_ema
            epoch = checkpoints.load_for_evaluation(model.module, args, run, stage="classifier", averaged=averaged)
            check_electrodes(model.module, tasks)
            evaluate_tasks(model.module, tasks, run, best, epoch, training=False)
            for task in tasks:
                show(task.best.last, f"{task.title}epoch {epoch}{task.how}")
            return
        steps = {"steps_per_epoch": tasks[0].loaders.steps_per_epoch, "accumulation": accumulation}
        ema = build_average(model.module, args, steps=args.epochs * steps["steps_per_epoch"])
        update = optim_factory.build_update(model, args, run, layer_decay=args.layer_decay, **steps)
        extras = {"best": best, **({"model_ema": ema} if ema else {})}
        extras |= {f"best {task.head}": task.best for task in tasks if task.head}
        extras |= {f"center {task.head}" if task.head else "center": task.means for task in tasks if task.means}
        inputs = {name: data for task in tasks for name, data in task.named(task.loaders.summary(), " ").items()}
        described = {file.slug: file.description | centring.entry(vars(args)) for file in files}
        data_set = described if len(files) > 1 else described[files[0].slug]
        inputs |= run.run_on_rank0(lambda: hub.described(args.finetune))
        state = TrainingState(
            model, update, run, args, stage="classifier", extras=extras, inputs=inputs, data_set=data_set
        )
        with run.interruption.listening():
            fine_tune(state, tasks, best, args, ema)


def check_electrodes(model: modeling_finetune.NeuralTransformer, tasks: Sequence[Task]) -> None:
    """Raise InputError if the weights that were read are for other electrodes than the data have."""
    for task, windows in zip(tasks, tasks[0].loaders.train.dataset.parts, strict=True):
        model.head_of(task.head).check(windows.channels, where=str(windows.path))


def fine_tune(
    state: TrainingState, tasks: Sequence[Task], best: BestEpoch, args: argparse.Namespace, ema: ModelEmaV3 | None
) -> None:
    """Train from where the run stands to the last epoch, or until patience ends; then log the results."""
    module, run = state.model.module, state.run
    judged = ema.module if ema else module
    epoch = state.resume()
    check_electrodes(module, tasks)
    options: dict[str, Any] = {"smoothing": args.smoothing}
    numbers: dict[str, float] = {}  # of ridge
    if ema is not None:  # without warm-up no step: timm would not average the first one
        options["after_step"] = lambda taken: average(ema, module, taken, state.update.step if ema.use_warmup else None)
    # After resuming, which may bring another trunk than --finetune.
    goes_on = epoch < args.epochs and not best.stopped
    for task, windows in zip(tasks, tasks[0].loaders.train.dataset.parts, strict=True):
        if task.means is not None and goes_on:
            task.means.start(module, windows, args, run, task.head)
    if args.linear_probe and goes_on:
        loaders = [task.loaders for task in tasks]
        loaders = adaptation.build_feature_loaders(module, loaders, [task.head for task in tasks], args, run)
        for task, own in zip(tasks, loaders, strict=True):
            task.loaders = own
    while epoch < args.epochs and not best.stopped:
        stats: dict[str, float] = {}
        selected = False
        if args.linear_probe == "ridge":
            numbers = fit_ridge(state, tasks)
        else:
            train_one_epoch(state, tasks[0].loaders.train, epoch, tasks, **options)
        if not args.disable_eval_during_finetuning or epoch == args.epochs - 1:
            stats, selected = evaluate_tasks(judged, tasks, run, best, epoch)
        if selected and args.lora is not None and args.save_ckpt:
            adaptation.save_merged(judged, state, epoch)
        state.finish_epoch(epoch, numbers | stats, best=selected)
        epoch += 1
    if run.is_main and best.epoch is not None:
        if best.stopped:
            rule = f"--patience {best.patience} epochs in a row without a better validation {best.name}"
            logger.info("Stopped after epoch %d: %s than epoch %d's.", epoch - 1, rule, best.epoch)
        for task in tasks:
            show(task.best.stats, f"{task.title}selected epoch {task.best.epoch} ({task.best.rule}){task.how}")
            show(task.best.last, f"{task.title}last epoch {epoch - 1}{task.how}")
        if len(tasks) > 1:
            text = "checkpoint-best.pth: epoch %d (%s, the mean over the data sets of what selects their epochs)"
            logger.info(text, best.epoch, best.rule)


def show(stats: dict[str, float], title: str) -> None:
    """Log metrics, one line a set."""
    for split in ("val", "test"):
        own = [(name.partition("_")[2], value) for name, value in stats.items() if name.startswith(f"{split}_")]
        if own:
            logger.info("%s, %s: %s", title, split, ", ".join(f"{name} {value:.4f}" for name, value in own))


if __name__ == "__main__":
    run_script(main, get_args())
