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
        stages=Budget("base", 512, tokenizer_epochs=12, pretraining_epochs=8, batch=16),
        ablation=Budget("tiny", 512, tokenizer_epochs=6, pretraining_epochs=4, batch=16),
        epochs=6,
        long=18,
        probe=50,
        eegnet=20,
        batch=32,
        folds=8,
        seeds=(0, 1, 2),
    ),
    "gpu": Size(
        stages=Budget("base", 512, tokenizer_epochs=100, pretraining_epochs=100, batch=64),
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
