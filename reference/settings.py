"""How large and how long everything of the reference run is: one row for 2 CPU cores, one for a GPU, one for tests."""

from dataclasses import dataclass

SECONDS = 5  # of every window in all stages: those of MentalArithmetic
STRIDE = 200 * SECONDS  # samples: windows do not overlap


@dataclass(frozen=True)
class Budget:
    """Epochs, batches and learning rate of a tokenizer and a masked model on the same recordings."""

    model: str  # base or tiny
    codes: int
    tokenizer_epochs: int
    pretraining_epochs: int
    batch: int  # windows a step
    peak: float = 4e-4  # learning rate of the tokenizer (the script's --lr is this x 128 / batch)
    pretraining_peak: float = 5e-4


@dataclass(frozen=True)
class Size:
    """One way to go through all cells."""

    stages: Budget
    with_eegmat: Budget  # fewer epochs, because there are 2.3 times as many windows
    ablation: Budget
    epochs: int  # of fine-tuning
    long: int  # of the rows that train longer
    probe: int  # of the linear probe
    eegnet: int
    batch: int  # windows a step in stage 3
    folds: int
    seeds: tuple[int, ...]  # of the rows that depend on one


SIZES = {
    "cpu": Size(
        stages=Budget("base", 512, tokenizer_epochs=10, pretraining_epochs=7, batch=16),
        with_eegmat=Budget("base", 512, tokenizer_epochs=5, pretraining_epochs=3, batch=16),
        ablation=Budget("tiny", 512, tokenizer_epochs=4, pretraining_epochs=3, batch=16),
        epochs=3,
        long=9,
        probe=50,
        eegnet=15,
        batch=16,
        folds=8,
        seeds=(0, 1, 2),
    ),
    "gpu": Size(
        stages=Budget("base", 512, tokenizer_epochs=100, pretraining_epochs=100, batch=64),
        with_eegmat=Budget("base", 512, tokenizer_epochs=60, pretraining_epochs=60, batch=64),
        ablation=Budget("tiny", 512, tokenizer_epochs=50, pretraining_epochs=50, batch=64),
        epochs=30,
        long=90,
        probe=100,
        eegnet=60,
        batch=64,
        folds=8,
        seeds=(0, 1, 2, 3, 4),
    ),
    "test": Size(
        stages=Budget("tiny", 8, tokenizer_epochs=1, pretraining_epochs=1, batch=4),
        with_eegmat=Budget("tiny", 8, tokenizer_epochs=1, pretraining_epochs=1, batch=4),
        ablation=Budget("tiny", 8, tokenizer_epochs=1, pretraining_epochs=1, batch=4),
        epochs=1,
        long=2,
        probe=2,
        eegnet=1,
        batch=4,
        folds=3,
        seeds=(0,),
    ),
}

# Expected minutes of the size cpu on two free cores, from the numbers of patches, the rates in
# benchmarks/results/speed-cpu.json and short trials; what cells did take stands in their JSONs. Ways: by the part of a
# cell's name after `cv-` or `fixed-`, first of the former.
STAGE_MINUTES = {"data": 1, "tokenizer": 13, "pretraining": 19, "tokenizer-eegmat": 11, "pretraining-eegmat": 15}
WAY_MINUTES = {
    "logistic": (1, 1),
    "features": (2, 1),
    "pretrained": (27, 4),
    "scratch": (27, 4),
    "cls": (27, 4),
    "last8": (21, 3),
    "probe": (8, 1),
    "eegnet": (9, 2),
    "long": (78, 11),
}
ABLATION_MINUTES = 6


def expected_minutes(cell: str) -> int:
    """Minutes that a cell of the size cpu should take."""
    if cell in STAGE_MINUTES:
        return STAGE_MINUTES[cell]
    kind, _, rest = cell.partition("-")
    return ABLATION_MINUTES if kind == "ablation" else WAY_MINUTES[rest.removesuffix("-even")][kind == "fixed"]
