"""Use a trained model on recordings: whatever MNE reads, or HDF5 of dataset_maker.

`run_inference.py VERB --help` lists a verb's flags.
"""

import argparse
import errno
import inspect
import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from inference import export, plots
from inference.output import Entry, Results, check_output
from inference.recording_files import KINDS, find
from inference.recordings import BLOCK_BYTES, Options, Windows
from training.checkpoints import checkpoint_place, fetched

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
    sub.set_defaults(run=lambda args: export.run(fetched(args.checkpoint), args))
    return parser.parse_args()


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Flags of all verbs."""
    parser.add_argument(
        "--checkpoint",
        type=checkpoint_place,
        required=True,
        metavar="FILE",
        help="of stage 1, 2 or 3; a path, or a URL that ends with #sha256=DIGEST",
    )
    parser.add_argument("--averaged", action="store_true", help="the averaged weights of --model_ema")


def _add_arguments(parser: argparse.ArgumentParser, verb: str) -> None:
    """Flags of the verbs that read recordings."""
    parser.add_argument(
        "--input", type=Path, nargs="+", required=True, metavar="RECORDING", help="files, or folders of them"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=".npz, .hdf5, .h5 or .csv")
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


def infer(args: argparse.Namespace) -> None:
    """Run a verb on every recording; raises InputError at the end if any was left out."""
    if args.batch_size < 1:
        raise UsageError(f"--batch_size {args.batch_size}: must be at least 1")
    check_output(args.output)
    if plot := getattr(args, "plot", None):
        plots.check_plot(plot)
    _check_overwriting(args)
    pipeline = build_pipeline(args, block_bytes=BLOCK_BYTES)
    model = inference.load(fetched(args.checkpoint), device=args.device, averaged=args.averaged)
    model.check(args.verb)
    usual_window = model.description.window_seconds or None
    options = Options(pipeline, args.prepared, args.scale, args.window, args.stride, usual_window)
    recordings = list(find(args.input, options, split=args.split))
    if args.split and not any(where.endswith(f", group {args.split}") for where, _ in recordings):
        raise UsageError(
            f"--split {args.split}: is for labelled HDF5, and none that can be read is in --input: leave the flag out"
        )
    try:
        _infer(args, model, recordings)
    except OSError as error:  # all other files are opened where their errors are known
        reason = os.strerror(error.errno or errno.EIO)
        raise UsageError(
            f"temporary files cannot be written in {tempfile.gettempdir()} ({reason}): free space, or name "
            "another folder in the environment variable TMPDIR"
        ) from error


def _check_overwriting(args: argparse.Namespace) -> None:
    """Raise UsageError if the output would take the place of a recording or the checkpoint."""
    if not args.output.exists():
        return
    for path in (*find_files(args.input, KINDS), *([args.checkpoint] if isinstance(args.checkpoint, Path) else [])):
        if path.exists() and args.output.samefile(path):
            raise UsageError(f"--output {args.output} would overwrite {path}, which is read: choose another name")


def _infer(args: argparse.Namespace, model: inference.Model, recordings: list[Any]) -> None:
    """Run a verb on recordings, as `find` gives them, and write the results."""
    left_out = 0
    results = Results(_description(args, model))
    for _, opener in recordings:
        try:
            windows = opener()
            entry = results.begin(windows)
            _run_verb(args, model, replace(windows, name=entry.name), entry, many=len(recordings) > 1)
            results.keep(entry)
        except UsageError:
            raise
        except InputError as error:
            if len(recordings) == 1:
                raise
            left_out += 1
            logger.error("left out: %s", one_line(error))
    entries = list(results.entries.values())
    if not entries:
        raise InputError(f"none of {len(recordings)} recordings could be used, nothing is written: see above")
    results.write(args.output)
    if args.verb == "embed" and args.plot:
        plots.tsne(args.plot, entries)
    logger.info("%d recording(s) in %s", len(entries), args.output)
    if left_out:
        raise InputError(f"{left_out} of {len(recordings)} recordings are left out of {args.output}: see above")


def _run_verb(args: argparse.Namespace, model: inference.Model, windows: Windows, entry: Entry, *, many: bool) -> None:
    """Run the verb on one recording of one or many, and draw it."""
    pool = getattr(args, "pool", "patches")
    for part, arrays in model.batches(args.verb, windows, batch_size=args.batch_size, pool=pool, visible=True):
        entry.add(part, arrays)
    if args.verb == "predict":
        entry.attributes["outputs"] = list(model.classes)
        entry.add_means()
        if windows.labels is None:
            means = zip(model.classes, entry.arrays["recording_probabilities"][0], strict=True)
            text = ", ".join(f"{name} {value:.3f}" for name, value in means)
            logger.info("%s, %d windows: %s", windows.name, len(windows), text)
    draw = {"predict": plots.timeline, "reconstruct": plots.spectra}.get(args.verb)
    if draw and args.plot:
        draw(plots.path_of(args.plot, windows.name) if many else args.plot, windows, entry, model)


def _description(args: argparse.Namespace, model: inference.Model) -> dict[str, Any]:
    """How the results were made."""
    filtered = not args.prepared and any(path.suffix.lower() not in SUFFIXES for path in find_files(args.input, KINDS))
    return {
        "verb": args.verb,
        "checkpoint": fetched(args.checkpoint).name,
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
