"""Average the weights of fine-tuned runs that differ in their seed alone. Wortsman et al., arXiv 2203.05482."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from errors import InputError, UsageError
from modeling_finetune import check_merged
from training import FREE_FLAGS, checkpoints

logger = logging.getLogger(__name__)

MAY_DIFFER = FREE_FLAGS - {"finetune"} | {"seed"}  # the data are compared by what the files say of them


def write(output: Path, runs: Sequence[Path]) -> None:
    """Write the mean, in float64, of the runs' selected epochs as a checkpoint for --eval, predict and export.

    runs: folders, or files such as model-merged.pth. Of a run with --model_ema its averaged weights are taken, which
    are what it evaluated. Raises UsageError for less than two runs, InputError for runs that are no seeds of one.
    """
    if len(runs) < 2:
        raise UsageError(f"--soup {output}: give the folders of at least two runs")
    total: dict[str, Tensor] = {}
    files, about = list[str](), dict[str, Any]()
    for run in runs:
        path = next((path for path in (run, run / checkpoints.BEST) if path.is_file()), run / checkpoints.LATEST)
        state = checkpoints.read(path)
        averaged = "model_ema" in state.get("extras", {})
        weights = checkpoints.averaged_state(state, path) if averaged else checkpoints.model_state(state, path)
        checkpoints.check_stage(weights, ["classifier"], path)
        check_merged(weights, path)
        own = _description(state, weights, path)
        if not total:
            about, kept = own, {name: state.get(name) for name in ("args", "stage", "data_set")}
            types, total = {name: w.dtype for name, w in weights.items()}, {n: w.double() for n, w in weights.items()}
        elif different := [name for name in sorted(about | own) if about.get(name) != own.get(name)]:
            name, values = different[0], (own.get(different[0]), about.get(different[0]))
            text = f"{path} has another {name} ({values[0]}) than {files[0]} ({values[1]})"
            raise InputError(f"{text}: average only runs that differ in nothing but --seed")
        else:
            for name, value in weights.items():
                total[name] += value
        files.append(f"{path}, epoch {state.get('epoch')}")
    mean = {name: (value / len(runs)).to(types[name]) for name, value in total.items()}
    checkpoints.save({"model": mean, "epoch": "mean", "mean_of": files, **kept}, output)
    text = "%s is the mean of the weights of %s. The command of their training measures it with --eval --resume %s."
    logger.info(text, output, "; ".join(files), output)


def _description(state: dict[str, Any], weights: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """Return what runs must have alike: flags, data set and shapes. Raises InputError for one from random weights."""
    flags = state.get("args")
    if not isinstance(flags, dict) or flags.get("finetune") is None:
        why = "seeds that do not start from one file (--finetune) have no mean that is a model"
        raise InputError(f"{path} did not start from a checkpoint of stage 2: {why}")
    return {
        **{f"--{name}": value for name, value in flags.items() if name not in MAY_DIFFER},
        "data set": state.get("data_set"),
        **{f"shape of {name}": tuple(value.shape) for name, value in weights.items()},
    }
