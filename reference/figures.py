"""Curves of the reference run, drawn from the logs in the cells' JSONs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # the backend comes first: there may be no display

from files import check_writable, written_aside

FOLDER = "figures"
Found = dict[str, list[dict[str, Any]]]
Curve = tuple[str, Sequence[dict[str, Any]], str, str]  # cell's title, lines of its log, key, style


def _log(found: Found, cell: str) -> Sequence[dict[str, Any]]:
    """Lines of the log of a cell's first seed and first run."""
    return found[cell][0]["runs"][0]["log"]


def _plot(axis: Any, curves: Sequence[Curve], title: str, label: str) -> None:
    for name, log, key, style in curves:
        points = [(line["epoch"] + 1, line[key]) for line in log if line.get(key) is not None]
        if points:
            axis.plot(*zip(*points, strict=True), style, label=name)
    axis.set(title=title, xlabel="epoch", ylabel=label)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=8)


def stage_curves(found: Found) -> Any:
    """Losses and codebook of stage 1, loss of stage 2."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), constrained_layout=True)
    log = _log(found, "tokenizer")
    _plot(axes[0], [("training", log, "train_loss", "o-"), ("held out", log, "test_loss", "s--")], "tokenizer", "loss")
    codes: list[Curve] = [("codes in use", log, "train_used_code", "o-")]
    _plot(axes[1], [*codes, ("perplexity", log, "train_perplexity", "s--")], "tokenizer's codebook", "codes")
    log = _log(found, "pretraining")
    curves: list[Curve] = [("training", log, "train_loss", "o-"), ("held out", log, "val_loss", "s--")]
    curves += [("code frequencies alone, training", log, "train_unigram_loss", ":")]
    _plot(axes[2], [*curves, ("the same, held out", log, "val_unigram_loss", "-.")], "pre-training", "loss (nats)")
    return figure


def codebook_curves(found: Found) -> Any:
    """A codebook that collapses beside one that revival keeps alive: tiny models, 8192 codes."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), constrained_layout=True)
    pairs = {"revival": "ablation-codes-8192", "no revival": "ablation-codes-8192-no-revival"}
    for axis, key, title in zip(
        axes,
        ("test_used_code", "test_perplexity", "test_loss"),
        ("codes in use of 8192, held out", "perplexity, held out", "held-out loss"),
        strict=True,
    ):
        curves: list[Curve] = [(name, _log(found, cell), key, "o-") for name, cell in pairs.items()]
        _plot(axis, curves, "tokenizer, tiny", title)
    return figure


def fine_tuning_curves(found: Found) -> Any:
    """Training loss and validation AUROC of the first fold."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    ways = {"pre-trained": "cv-pretrained-even", "from scratch": "cv-scratch-even"}
    for axis, key, title in zip(
        axes, ("train_loss", "val_roc_auc"), ("training loss", "validation AUROC"), strict=True
    ):
        _plot(axis, [(name, _log(found, cell), key, "o-") for name, cell in ways.items()], "fold 0", title)
    return figure


# name: what draws it, the cells that it needs, what it shows
FIGURES: dict[str, tuple[Callable[[Found], Any], tuple[str, ...], str]] = {
    "stage curves": (stage_curves, ("tokenizer", "pretraining"), "losses and codebook of stages 1 and 2"),
    "codebook curves": (
        codebook_curves,
        ("ablation-codes-8192", "ablation-codes-8192-no-revival"),
        "a codebook without and with revival",
    ),
    "fine-tuning curves": (
        fine_tuning_curves,
        ("cv-pretrained-even", "cv-scratch-even"),
        "fine-tuning on MentalArithmetic",
    ),
}


def file_of(name: str) -> str:
    """File name of a figure."""
    return f"{name.replace(' ', '-')}.png"


def link(name: str, found: Found) -> str:
    """Markdown of a figure, or which cells it waits for."""
    _, needed, said = FIGURES[name]
    missing = [cell for cell in needed if cell not in found]
    return f"Not run yet: {', '.join(missing)}." if missing else f"![{said}]({FOLDER}/{file_of(name)})"


def draw(found: Found, folder: Path) -> None:
    """Draw all figures whose cells are there. Raises UsageError for a folder that cannot be written."""
    for name, (make, needed, _) in FIGURES.items():
        if all(cell in found for cell in needed):
            check_writable(folder, "--readme")  # beside which it is
            figure = make(found)
            with written_aside(folder / file_of(name)) as part:
                figure.savefig(part, dpi=110, format="png", metadata={"Software": None})
            plt.close(figure)
