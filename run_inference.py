"""Use a trained model on recordings: whatever MNE reads, or HDF5 of dataset_maker.

`run_inference.py VERB --help` lists a verb's flags.
"""

import argparse
import inspect
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import torch

import inference
from dataset_maker.pipeline import add_filter_arguments, add_name_arguments, build_pipeline
from dataset_maker.sources import find_files
from eeg_data.hdf5 import SUFFIXES
from eeg_data.labelled_files import SPLITS
from eeg_data.pretraining_files import SAMPLING_RATE
from errors import (
    INTERRUPTED,
    ArgumentParser,
    InputError,
    Interrupted,
    UsageError,
    friendly_error,
    one_line,
    run_script,
)
from files import code_version
from inference import export, output, plots
from inference.recording_files import KINDS, find
from inference.recordings import BLOCK_BYTES, Options, Windows

logger = logging.getLogger(__name__)

PLOTS = {
    "embed": "t-SNE of the windows' features, coloured by label or recording",
    "reconstruct": "true and predicted spectra",
    "predict": "the signal and the prediction over time, a picture for each recording",
}


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=ArgumentParser)
    for verb in inference.VERBS:
        words = inspect.getdoc(getattr(inference.Model, verb)) or ""
        sub = verbs.add_parser(verb, help=words.splitlines()[0], description=words)
        _add_checkpoint(sub)
        _add_arguments(sub, verb)
        sub.set_defaults(run=infer)
    words = "Write the weights in another layout, and a JSON file that says what builds the model."
    sub = verbs.add_parser("export", help=words, description=words)
    _add_checkpoint(sub)
    export.add_arguments(sub)
    sub.set_defaults(run=export_model)
    return parser.parse_args()


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Flags of all verbs."""
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="of stage 1, 2 or 3")
    parser.add_argument("--averaged", action="store_true", help="the averaged weights of --model_ema")


def _add_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    """Flags of the verbs that read recordings."""
    required: dict[str, Any] = {"type": Path, "required": True}
    parser.add_argument("--input", nargs="+", metavar="RECORDING", help="files, or folders of them", **required)
    parser.add_argument("--output", metavar="FILE", help=".npz, .hdf5, .h5 or .csv", **required)
    if verb in PLOTS:
        parser.add_argument("--plot", type=Path, metavar="FILE.png", help=PLOTS[verb])
    if verb == "embed":
        parser.add_argument("--pool", choices=inference.POOLS, default="patches", help="features of what")
    parser.add_argument("--split", choices=SPLITS, help="of labelled HDF5 (default: all)")
    windows = parser.add_argument_group("windows")
    windows.add_argument("--window", type=int, metavar="SECONDS", help="(default: the classifier's; 256 patches)")
    windows.add_argument("--stride", type=float, metavar="SECONDS", help="from window to window (default: the window)")
    windows.add_argument("--scale", type=float, metavar="FACTOR", help="on the values, where their unit is not uV")
    windows.add_argument("--prepared", action="store_true", help="signals are filtered and at 200 Hz already")
    parser.add_argument("--batch_size", type=int, default=inference.BATCH, help="windows at a time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    add_filter_arguments(parser)
    add_name_arguments(parser)


def export_model(args: argparse.Namespace) -> None:
    """Export a checkpoint as the flags say."""
    options = {name: getattr(args, name) for name in ("to", "output", "electrodes", "averaged")}
    export.export(args.checkpoint, seconds=args.time_window, **options)


def infer(args: argparse.Namespace) -> None:
    """Run a verb on every recording; raises InputError at the end if any was left out."""
    if args.batch_size < 1:
        raise UsageError(f"--batch_size {args.batch_size}: must be at least 1")
    output.check_output(args.output)
    if plot := getattr(args, "plot", None):
        plots.check_plot(plot)
    for path in (*find_files(args.input, KINDS), args.checkpoint):
        if path.exists() and args.output.exists() and args.output.samefile(path):
            raise UsageError(f"--output {args.output} would overwrite {path}, which is read: choose another name")
    pipeline = build_pipeline(args, block_bytes=BLOCK_BYTES)
    model = inference.load(args.checkpoint, device=args.device, averaged=args.averaged)
    model.check(args.verb)
    usual_window = model.description.window_seconds or None
    options = Options(pipeline, args.prepared, args.scale, args.window, args.stride, usual_window)
    recordings = list(find(args.input, options, split=args.split))
    if args.split and not any(where.endswith(f", group {args.split}") for where, _ in recordings):
        raise UsageError(f"--split {args.split}: is for labelled HDF5, and --input has none: leave the flag out")
    with output.results_file(args.output, _description(args, model)) as file:
        left_out = _infer(args, model, recordings, file)
        count = len(file)
        points = plots.mean_features(list(file.values())) if args.verb == "embed" and plot else None
    if points:
        plots.tsne(args.plot, *points)
    logger.info("%d recording(s) in %s", count, args.output)
    if left_out:
        raise InputError(f"{left_out} of {len(recordings)} recordings are left out of {args.output}: see above")


def _infer(args: argparse.Namespace, model: inference.Model, recordings: list[Any], file: h5py.File) -> int:
    """Run a verb on recordings, as `find` gives them; return how many are left out."""
    for _, opener in recordings:
        group = None
        try:
            windows = opener()
            group = output.begin(file, windows)
            windows = replace(windows, name=output.name_of(group))
            _run_verb(args, model, windows, group, many=len(recordings) > 1)
        except UsageError:
            raise
        except InputError as error:
            if len(recordings) == 1:
                raise
            if group is not None:
                del file[group.name]
            logger.error("left out: %s", one_line(error))
    if not len(file):
        raise InputError(f"none of {len(recordings)} recordings could be used, nothing is written: see above")
    return len(recordings) - len(file)


def _run_verb(
    args: argparse.Namespace, model: inference.Model, windows: Windows, group: h5py.Group, *, many: bool
) -> None:
    """Run the verb on one recording of one or many, and draw it."""
    pool = getattr(args, "pool", "patches")
    for part, arrays in model.batches(args.verb, windows, batch_size=args.batch_size, pool=pool, visible=True):
        output.add(group, part, arrays)
    if args.verb == "predict":
        group.attrs["outputs"] = list(model.classes)
        output.add_means(group)
        if windows.labels is None:
            means = zip(model.classes, group["recording_probabilities"][0], strict=True)
            text = ", ".join(f"{name} {value:.3f}" for name, value in means)
            logger.info("%s, %d windows: %s", windows.name, len(windows), text)
    draw = {"predict": plots.timeline, "reconstruct": plots.spectra}.get(args.verb)
    if draw and args.plot:
        draw(plots.path_of(args.plot, windows.name) if many else args.plot, windows, group, model)


def _description(args: argparse.Namespace, model: inference.Model) -> dict[str, Any]:
    """How the results were made."""
    filtered = not args.prepared and any(path.suffix.lower() not in SUFFIXES for path in find_files(args.input, KINDS))
    return {
        "verb": args.verb,
        "checkpoint": args.checkpoint.name,
        "averaged": int(args.averaged),
        "model": model.description.model,
        "code_version": code_version(),
        "sampling_rate": float(SAMPLING_RATE),
        **({"pool": args.pool} if args.verb == "embed" else {}),
        "pipeline": {name: getattr(args, name) for name in ("l_freq", "h_freq", "notch")} if filtered else "as it is",
    }


def main(args: argparse.Namespace) -> None:
    """Do what the verb says."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with friendly_error(args):
            args.run(args)
    except KeyboardInterrupt:
        raise Interrupted("stopped; the same command begins anew", INTERRUPTED) from None


if __name__ == "__main__":
    run_script(main, get_args())
