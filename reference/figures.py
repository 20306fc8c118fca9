"""Curves of the reference run, drawn from the logs in the cells' JSONs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # the backend comes first: there may be no display

from files import check_writable, written_aside

Found = Mapping[str, Sequence[dict[str, Any]]]  # records of each cell, by seed
Curve = tuple[str, str, str, str]  # name, cell, key of the log, style
Panel = tuple[str, str, list[Curve]]  # title, label of y, curves


def _compare(title: str, cells: dict[str, str], keys: dict[str, str]) -> list[Panel]:
    return [(title, label, [(name, cell, key, "o-") for name, cell in cells.items()]) for key, label in keys.items()]


_LOSSES = [("training", "tokenizer", "train_loss", "o-"), ("held out", "tokenizer", "test_loss", "s--")]
_CODES = [
    ("codes in use", "tokenizer", "train_used_code", "o-"),
    ("perplexity", "tokenizer", "train_perplexity", "s--"),
]
_MASKED = [("training", "pretraining", "train_loss", "o-"), ("held out", "pretraining", "val_loss", "s--")]
_MASKED += [("code frequencies alone, training", "pretraining", "train_unigram_loss", ":")]
_MASKED += [("the same, held out", "pretraining", "val_unigram_loss", "-.")]
_BOOKS = {"revival": "ablation-codes-8192", "no revival": "ablation-codes-8192-no-revival"}
_BOOK_KEYS = {"test_used_code": "codes in use of 8192, held out", "test_perplexity": "perplexity, held out"}
_FOLDS = {"pre-trained": "cv-pretrained-even", "from scratch": "cv-scratch-even"}
_FOLD_KEYS = {"train_loss": "training loss", "val_roc_auc": "validation AUROC"}

# name: panels, width in inches, text that stands for the picture
FIGURES: dict[str, tuple[list[Panel], float, str]] = {
    "stage curves": (
        [
            ("tokenizer", "loss", _LOSSES),
            ("tokenizer's codebook", "codes", _CODES),
            ("pre-training", "loss (nats)", _MASKED),
        ],
        13,
        "losses and codebook of stages 1 and 2",
    ),
    "codebook curves": (
        _compare("tokenizer, tiny", _BOOKS, _BOOK_KEYS | {"test_loss": "held-out loss"}),
        13,
        "a codebook without and with revival",
    ),
    "fine-tuning curves": (_compare("fold 0", _FOLDS, _FOLD_KEYS), 9, "fine-tuning on MentalArithmetic"),
}


def _missing(name: str, found: Found) -> list[str]:
    cells = [cell for _, _, curves in FIGURES[name][0] for _, cell, _, _ in curves]
    return [cell for cell in dict.fromkeys(cells) if cell not in found]


def link(name: str, found: Found) -> str:
    """Markdown of a figure, or which cells it waits for."""
    missing = _missing(name, found)
    text = f"![{FIGURES[name][2]}](figures/{name.replace(' ', '-')}.png)"
    return f"Not run yet: {', '.join(missing)}." if missing else text


def draw(name: str, found: Found) -> Any:
    """Draw a figure from the first seed and first run of its cells."""
    panels, width, _ = FIGURES[name]
    figure, axes = plt.subplots(1, len(panels), figsize=(width, 3.6), constrained_layout=True)
    for axis, (title, label, curves) in zip(axes, panels, strict=True):
        for curve, cell, key, style in curves:
            log = found[cell][0]["runs"][0]["log"]
            points = [(line["epoch"] + 1, line[key]) for line in log if line.get(key) is not None]
            if points:
                axis.plot(*zip(*points, strict=True), style, label=curve)
        axis.set(title=title, xlabel="epoch", ylabel=label)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=8)
    return figure


def write(found: Found, folder: Path) -> None:
    """Write all figures whose cells are there. Raises UsageError for a folder that cannot be written."""
    for name in FIGURES:
        if not _missing(name, found):
            check_writable(folder, "--readme")  # the figures lie beside it
            figure = draw(name, found)
            with written_aside(folder / f"{name.replace(' ', '-')}.png") as part:
                figure.savefig(part, dpi=110, format="png", metadata={"Software": None})
            plt.close(figure)
