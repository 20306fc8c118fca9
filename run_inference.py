"""Use a trained model on recordings: whatever MNE reads, or HDF5 of dataset_maker.

`run_inference.py VERB --help` lists a verb's flags.
"""

import argparse
import inspect
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py

from dataset_maker.pipeline import add_filter_arguments, add_name_arguments, add_scale_argument, build_pipeline
from dataset_maker.reasons import NoRecording
from dataset_maker.sources import find_files
from eeg_data.hdf5 import SUFFIXES
from eeg_data.labelled_files import SPLITS
from eeg_data.levels import OWNERS
from eeg_data.pretraining_files import SAMPLING_RATE
from errors import (
    INTERRUPTED,
    ArgumentParser,
    InputError,
    Interrupted,
    UsageError,
    one_line,
    run_script,
)
from files import check_file, code_version
from inference import card, checking, output, plots, weights
from inference.model import BATCH, POOLS, PRECISIONS, VERBS, Model, load, treated
from inference.recordings import BLOCK_BYTES, KINDS, Options, Windows, find
from training import checkpoints, hub
from training.centring import add_arguments as add_centring_arguments
from training.centring import words_of

logger = logging.getLogger(__name__)

PLOTS = {
    "embed": "t-SNE of the windows' features, coloured by label or recording",
    "reconstruct": "true and predicted spectra",
    "predict": "the signal and the prediction over time, a picture for each recording",
}
DRAW = {"predict": plots.timeline, "reconstruct": plots.spectra}  # one recording


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=ArgumentParser)
    texts = {verb: inspect.getdoc(getattr(Model, verb)) or "" for verb in VERBS}
    texts["check"] = "Say whether recordings have the scale, rate and electrodes that a tokenizer expects."
    texts["export"] = "Write the weights in another layout, and a JSON file that says what builds the model."
    for verb, text in texts.items():
        sub = verbs.add_parser(verb, help=text.splitlines()[0], description=text)
        sub.add_argument(
            "--checkpoint", type=Path, required=True, metavar="FILE", help=f"of stage 1, 2 or 3, or {hub.FORM}"
        )
        sub.add_argument("--averaged", action="store_true", help="the averaged weights of --model_ema")
        sub.add_argument("--task", metavar="NAME", help="data set whose classifier to take, of a run with several")
        if verb == "export":
            _add_export_arguments(sub)
        else:
            _add_arguments(sub, verb)
    return parser.parse_args()


def _add_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    """Flags of the verbs that read recordings."""
    parser.set_defaults(plot=None, pool="patches", center=None, center_windows=None, scale_by=None)
    add = parser.add_argument
    add("--input", type=Path, nargs="+", required=True, metavar="RECORDING", help="files, or folders of them")
    if verb != "check":
        add("--output", type=Path, required=True, metavar="FILE", help=".npz, .hdf5, .h5 or .csv")
    if verb in PLOTS:
        add("--plot", type=Path, metavar="FILE.png", help=PLOTS[verb])
    if verb == "embed":
        add("--pool", choices=POOLS, help="features of what")
    if verb == "predict":
        add_centring_arguments(parser, default=None)
        words = "scale the signals of each by one factor, as in the training"
        add("--scale_by", choices=(*OWNERS, "none"), help=words)
    add("--split", choices=SPLITS, help="of labelled HDF5 (default: all)")
    add("--batch_size", type=int, default=BATCH, help="windows at a time")
    add("--device", default="auto", help="cuda or cpu (default: cuda on a machine with GPUs)")
    add("--precision", choices=PRECISIONS, default="fp32", help="of the model (default: fp32); tf32, fp16: on GPUs")
    add = parser.add_argument_group("windows").add_argument
    add("--window", type=int, metavar="SECONDS", help="(default: the classifier's; 256 patches)")
    add("--stride", type=float, metavar="SECONDS", help="from window to window (default: the window)")
    add("--prepared", action="store_true", help="signals are filtered and at 200 Hz already")
    add_filter_arguments(parser)
    add_name_arguments(parser)
    add_scale_argument(parser)


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of export."""
    add = parser.add_argument
    add("--to", choices=weights.FORMATS, required=True, help="safetensors: any stage; braindecode: all but a tokenizer")
    add("--output", type=Path, required=True, metavar="FILE", help="ends with .safetensors; a .json file goes with it")
    add("--push", metavar="ORG/REPO", help="also upload both to the Hugging Face hub, with a model card")
    window = "of braindecode's windows (default: the training's, else"
    add("--electrodes", nargs="+", metavar="NAME", help=f"{window} all 128)")
    add("--time_window", type=int, metavar="SECONDS", help=f"{window} floor(256 / electrodes))")


def infer(args: argparse.Namespace) -> None:
    """Run a verb on every recording; raises InputError at the end if any was left out."""
    if args.batch_size < 1:
        raise UsageError(f"--batch_size {args.batch_size}: must be at least 1")
    output.check_output(args.output)
    if args.plot is not None:
        if args.plot.suffix.lower() != ".png":
            raise UsageError(f"--plot {args.plot}: the name must end with .png")
        check_file(args.plot, "--plot")
    for path in (*find_files(args.input, KINDS), args.checkpoint):
        if path.exists() and args.output.exists() and args.output.samefile(path):
            raise UsageError(f"--output {args.output} would overwrite {path}, which is read: choose another name")
    pipeline = build_pipeline(args, block_bytes=BLOCK_BYTES)
    how = {name: getattr(args, name) for name in ("device", "averaged", "precision", "task")}
    model = load(args.checkpoint, **how)
    model.check(args.verb, vars(args))
    window = model.description.window_seconds or None if args.window is None else args.window
    options = Options(pipeline, args.prepared, window=window, stride=args.stride)
    recordings = _find(args, options)
    with output.results_file(args.output, _description(args, model)) as file:
        passed_over = 0
        for _, opener in recordings:
            try:
                _run_verb(args, model, treated(opener(), vars(args)), file, many=len(recordings) > 1)
            except UsageError:
                raise
            except NoRecording as error:
                if len(recordings) == 1:
                    raise
                passed_over += 1
                logger.info("passed over: %s", one_line(error))
            except InputError as error:
                if len(recordings) == 1:
                    raise
                logger.error("left out: %s", one_line(error))
        if not len(file):
            raise InputError(f"none of {len(recordings)} recordings could be used, nothing is written: see above")
        used = len(file)
        left_out = len(recordings) - passed_over - used
        points = plots.mean_features(list(file.values())) if args.verb == "embed" and args.plot else None
    if points:
        plots.tsne(args.plot, *points)
    logger.info("%d recording(s) in %s", used, args.output)
    if left_out:
        raise InputError(f"{left_out} of {len(recordings)} recordings are left out of {args.output}: see above")


def _find(args: argparse.Namespace, options: Options) -> list[tuple[str, Callable[[], Windows]]]:
    """Find the recordings of --input. Raises UsageError if --split is for none of them."""
    recordings = list(find(args.input, options, split=args.split))
    if args.split and not any(where.endswith(f", group {args.split}") for where, _ in recordings):
        raise UsageError(f"--split {args.split}: is for labelled HDF5, and --input has none: leave the flag out")
    return recordings


def check(args: argparse.Namespace) -> None:
    """Say which scale, rate and order of electrodes fit best. Raises InputError if another one fits better."""
    args.scale = args.scale or 1.0  # or odd amplitudes would be refused
    model = load(args.checkpoint, **{name: getattr(args, name) for name in ("device", "averaged", "precision", "task")})
    model.check("reconstruct")
    options = Options(
        build_pipeline(args, block_bytes=BLOCK_BYTES), args.prepared, window=args.window, stride=args.stride
    )
    error_of = partial(model.reconstruction_error, batch_size=args.batch_size)
    found, left_out = checking.Findings(), 0
    for _, opener in _find(args, options):
        try:
            checking.measure(error_of, opener(), found)
        except UsageError:
            raise
        except (InputError, NoRecording) as error:
            left_out += 1
            logger.error("left out: %s", one_line(error))
    if not found.medians:
        raise InputError("none of the recordings could be used: see above")
    wrong = checking.report(found, scale=args.scale)
    if left_out:
        wrong.append(f"{left_out} recording(s) are left out: see above")
    if wrong:
        raise InputError("; ".join(wrong))


def _run_verb(args: argparse.Namespace, model: Model, windows: Windows, file: h5py.File, *, many: bool) -> None:
    """Run the verb on one recording of one or many, and draw it. A failure leaves no group in the file."""
    group = output.begin(file, windows)
    windows = replace(windows, name=output.name_of(group))
    try:
        verb = "tokenize" if args.verb == "histogram" else args.verb
        for part, arrays in model.batches(verb, windows, batch_size=args.batch_size, pool=args.pool):
            for name, array in arrays.items():
                shape = (len(windows), *array.shape[1:])
                group.require_dataset(name, shape, array.dtype)[part] = array
    except InputError:
        del file[group.name]
        raise
    if args.verb == "histogram":
        output.count_codes(group, model.module.quantize.codebook_size)
    if args.verb == "predict":
        group.attrs["outputs"] = list(model.classes)
        output.add_means(group)
        if windows.labels is None:
            means = zip(model.classes, group["recording_probabilities"][0], strict=True)
            text = ", ".join(f"{name} {value:.3f}" for name, value in means)
            logger.info("%s, %d windows: %s", windows.name, len(windows), text)
    if args.plot and args.verb in DRAW:
        # Names may be longer than a file's; their ends tell them apart.
        picture = args.plot.with_name(f"{args.plot.stem}-{windows.name[-100:]}.png") if many else args.plot
        DRAW[args.verb](picture, windows, group, model)


def _description(args: argparse.Namespace, model: Model) -> dict[str, Any]:
    """How the results were made."""
    filters = json.dumps({name: getattr(args, name) for name in ("l_freq", "h_freq", "notch")})
    filtered = not args.prepared and any(path.suffix.lower() not in SUFFIXES for path in find_files(args.input, KINDS))
    return {
        "verb": args.verb,
        "checkpoint": args.checkpoint.name,
        "averaged": int(args.averaged),
        "model": model.description.model,
        "precision": model.precision,
        "code_version": code_version(),
        "sampling_rate": float(SAMPLING_RATE),
        "pipeline": filters if filtered else "as it is",
        **hub.described(args.checkpoint),
        **({"pool": args.pool} if args.verb == "embed" else {}),
        **({"transductive": words} if (words := words_of(vars(args))) else {}),
        **({"task": args.task} if args.task else {}),
    }


def main(args: argparse.Namespace) -> None:
    """Do what the verb says."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if args.verb == "export":
            if args.push:
                card.check_repository(args.push)
            options = {name: getattr(args, name) for name in ("to", "output", "electrodes", "averaged", "task")}
            files = weights.export(args.checkpoint, seconds=args.time_window, **options)
            if args.push:
                description = weights.load(args.output)[1]
                card.push(
                    args.push, *files, card.model_card(checkpoints.read(args.checkpoint), description, to=args.to)
                )
        else:
            (check if args.verb == "check" else infer)(args)
    except KeyboardInterrupt:
        raise Interrupted("stopped; the same command begins anew", INTERRUPTED) from None


if __name__ == "__main__":
    run_script(main, get_args())
