"""Every cell of the reference run: the commands it consists of, what it needs, and in which order all go.

A word that begins with DATA, EEGMAT or EEGMMIDB stands for a folder that is given when a cell is run.
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reference.settings import SECONDS, SIZES, STRIDE, Budget, Size

# Turns, in their order.
MAIN, ABLATIONS, FIXED, FIXED_SEEDS, FURTHER_ROWS, MAIN_SEEDS, ABLATION_SEEDS, FIXED_ROWS, LAST = range(9)
TOKENIZER = {"base": "vqnsp_encoder_base_decoder_3x200x12", "tiny": "vqnsp_encoder_tiny_decoder_1x200x4"}
NO_EEGMAT = ("DATA/pretrain/eeghdf", "DATA/pretrain/eegmmidb")
WITH_EEGMAT = (*NO_EEGMAT, "DATA/pretrain/eegmat")
HELD_OUT = "DATA/pretrain/held_out"


@dataclass(frozen=True)
class Step:
    """One command of a cell. words: what follows `python`, without the output folder that the cell adds."""

    name: str
    words: tuple[str, ...]
    output: str | None = None  # what the command makes; None: a run folder


@dataclass(frozen=True)
class Cell:
    """A row of a table."""

    name: str
    table: str
    title: str
    steps: Callable[[int], list[Step]]  # of a seed
    needs: tuple[str, ...] = ()  # cells, with seed 0
    seeds: tuple[int, ...] = (0,)
    turn: tuple[int, int] = (0, 0)  # when: the first seed, and the further ones


@dataclass(frozen=True)
class Way:
    """One way to do MentalArithmetic."""

    name: str
    title: str
    words: Callable[[Size, str], str]  # of size and the pre-trained weights
    needs_weights: bool = False
    seeded: bool = True
    later: bool = False


def folder_of(cell: str, seed: int, step: str) -> str:
    """Where a step's run lies."""
    return f"DATA/runs/{cell}.seed-{seed}/{step}"


def cells(size_name: str) -> dict[str, Cell]:
    """All cells of a size by name, table after table. size_name: a key of SIZES."""
    size = SIZES[size_name]
    found = [_data(size), *_stages(size), *_arithmetic(size, fixed=False), *_ablations(size)]
    found += _arithmetic(size, fixed=True)
    return {cell.name: cell for cell in found}


def plan(size_name: str) -> list[tuple[str, int]]:
    """(cell, seed) in an order in which tables are useful early: see the turns."""
    pairs = [(cell, seed) for cell in cells(size_name).values() for seed in cell.seeds]
    pairs.sort(key=lambda pair: (pair[0].turn[pair[1] > 0], pair[1]))  # stable: within a turn as in the tables
    return [(cell.name, seed) for cell, seed in pairs]


def _data(size: Size) -> Cell:
    """Public recordings to HDF5. eegmmidb's runs 13 and 14 are held out of stages 1 and 2."""
    maker = ("dataset_maker/make_h5dataset_for_pretrain.py", "--input")
    mental = ("dataset_maker/make_eegmat.py", "--root", "EEGMAT")
    lists = [
        ("eegmmidb", [*maker, "EEGMMIDB/S*R0[1-9].edf", "EEGMMIDB/S*R1[0-2].edf", "--notch", "60"]),
        ("held_out", [*maker, "EEGMMIDB/S*R1[34].edf", "--notch", "60"]),
        ("eegmat", [*maker, "EEGMAT/Subject[01]?_[12].edf", "EEGMAT/Subject2[0-7]_[12].edf"]),
    ]
    steps = [
        Step("download", ("-m", "reference.eeghdf"), "DATA/downloads"),
        Step("eeghdf", ("demo/make_eeghdf.py", "--input", "DATA/downloads"), "DATA/pretrain/eeghdf"),
    ]
    lists[2][1].extend(["--drop", "A2-A1", "ECG"])
    steps += [Step(name, tuple(words), f"DATA/pretrain/{name}") for name, words in lists]
    steps += [Step("fixed", mental, "DATA/fixed/MentalArithmetic.hdf5")]
    for fold in range(size.folds):
        words = (*mental, "--folds", str(size.folds), "--fold", str(fold))
        steps.append(Step(f"fold-{fold}", words, f"DATA/fold-{fold}/MentalArithmetic.hdf5"))
    return Cell("data", "data", "recordings to HDF5", lambda seed: steps)


def warm_up(epochs: int) -> int:
    """Epochs of warming up: a tenth, at least one of three or more."""
    return max(1, epochs // 10) if epochs > 2 else 0


def tokenizer_words(budget: Budget, data: Sequence[str], seed: int, more: str = "", codes: int | None = None) -> Step:
    """Stage 1."""
    epochs = budget.tokenizer_epochs
    text = (
        f"run_vqnsp_training.py --model {TOKENIZER[budget.model]} --codebook_n_emd {codes or budget.codes} "
        f"--batch_size {budget.batch} --lr {budget.peak * 128 / budget.batch:g} --epochs {epochs} "
        f"--warmup_epochs {warm_up(epochs)} --save_ckpt_freq {epochs} {_windows(data, seed)} {more}"
    )
    return Step("tokenizer", tuple(shlex.split(text)))


def pretraining_words(
    budget: Budget, data: Sequence[str], seed: int, tokenizer: str, more: str = "", *, one_mask: int = 0
) -> Step:
    """Stage 2. tokenizer: folder of its run; one_mask: 0, or without symmetric masking so many times as long."""
    epochs = budget.pretraining_epochs * max(one_mask, 1)
    text = (
        f"{'-m reference.one_mask' if one_mask else 'run_labram_pretraining.py'} "
        f"--model labram_{budget.model}_patch200_1600_8k_vocab --tokenizer_model {TOKENIZER[budget.model]} "
        f"--tokenizer_weight {tokenizer}/checkpoint.pth --batch_size {budget.batch} --lr {budget.pretraining_peak:g} "
        f"--epochs {epochs} --warmup_epochs {warm_up(epochs)} --save_ckpt_freq {epochs} {_windows(data, seed)} {more}"
    )
    return Step("pretraining", tuple(shlex.split(text)))


def _windows(data: Sequence[str], seed: int) -> str:
    return (
        f"--train_data {' '.join(data)} --val_data {HELD_OUT} --time_window {SECONDS} --window_stride {STRIDE} "
        f"--seed {seed}"
    )


def _stages(size: Size) -> list[Cell]:
    """Tokenizer and masked model without eegmat, for cross-validation, and with its training subjects."""
    found = []
    for suffix, data, said in (("", NO_EEGMAT, ""), ("-eegmat", WITH_EEGMAT, ", with eegmat 00-27 unlabelled")):
        first, second = f"tokenizer{suffix}", f"pretraining{suffix}"

        budget = size.with_eegmat if suffix else size.stages

        def one(seed: int, data: Sequence[str] = data, budget: Budget = budget) -> list[Step]:
            return [tokenizer_words(budget, data, seed)]

        def two(seed: int, data: Sequence[str] = data, budget: Budget = budget, first: str = first) -> list[Step]:
            return [pretraining_words(budget, data, seed, folder_of(first, seed, "tokenizer"))]

        # What only the fixed split needs comes after everything that cross-validation needs.
        turn = (FIXED, FIXED) if suffix else (MAIN, MAIN)
        found.append(Cell(first, "stages", f"tokenizer{said}", one, ("data",), turn=turn))
        found.append(Cell(second, "stages", f"pre-training{said}", two, ("data", first), turn=turn))
    return found


def _fine_tuning(more: str = "", *, pretrained: bool = True, epochs: str = "epochs") -> Callable[[Size, str], str]:
    def words(size: Size, weights: str) -> str:
        number = getattr(size, epochs)
        return (
            f"run_class_finetuning.py --model labram_{size.stages.model}_patch200_200 --batch_size {size.batch} "
            f"--epochs {number} --warmup_epochs {warm_up(number)} --save_ckpt_freq {number} "
            f"{f'--finetune {weights}' if pretrained else ''} {more}"
        )

    return words


def _baseline(kind: str, more: str = "") -> Callable[[Size, str], str]:
    def words(size: Size, weights: str) -> str:
        epochs = f"--epochs {size.eegnet}" if kind == "eegnet" else ""
        return f"-m reference.baselines {kind} {epochs} {more}"

    return words


EVEN = "--class_weights balanced"
PROBE = "--linear_probe --lr 5e-3"
# The weighted rows come first: only they can be held against weighted logistic regression at a threshold of 0.5.
WAYS = (
    Way("logistic", "logistic regression, band powers", _baseline("logistic"), seeded=False),
    Way("logistic-even", "the same, classes weighted", _baseline("logistic", EVEN), seeded=False),
    Way("features-even", "logistic regression, LaBraM's features, weighted", _baseline("features", EVEN), True, False),
    Way("pretrained-even", "LaBraM, pre-trained, classes weighted", _fine_tuning(EVEN), True),
    Way("scratch-even", "LaBraM, from scratch, classes weighted", _fine_tuning(EVEN, pretrained=False)),
    Way("probe-even", "LaBraM, linear probe, classes weighted", _fine_tuning(f"{PROBE} {EVEN}", epochs="probe"), True),
    Way("eegnet-even", "EEGNet, classes weighted", _baseline("eegnet", EVEN)),
    Way("last8-even", "LaBraM, last eight blocks, weighted", _fine_tuning(f"--freeze_blocks 4 {EVEN}"), True),
    Way("pretrained", "LaBraM, pre-trained", _fine_tuning(), True),
    Way("scratch", "LaBraM, from scratch", _fine_tuning(pretrained=False), later=True),
    Way("probe", "LaBraM, linear probe", _fine_tuning(PROBE, epochs="probe"), True, later=True),
    Way("eegnet", "EEGNet", _baseline("eegnet"), later=True),
    Way("last8", "LaBraM, last eight blocks", _fine_tuning("--freeze_blocks 4"), True, later=True),
    Way("cls-even", "pre-trained, CLS token, weighted", _fine_tuning(f"--use_cls {EVEN}"), True, later=True),
    Way("long-even", "pre-trained, three times as long, weighted", _fine_tuning(EVEN, epochs="long"), True, later=True),
)


def embedding(cell: str, seed: int, weights: str, part: str) -> Step:
    """Features of all windows of MentalArithmetic, whatever their split. part: the folder of one of its files."""
    words = ("run_inference.py", "embed", "--checkpoint", weights, "--input", f"DATA/{part}/MentalArithmetic.hdf5")
    return Step("embedding", (*words, "--pool", "mean"), f"{folder_of(cell, seed, 'embedding')}/features.hdf5")


def _arithmetic(size: Size, *, fixed: bool) -> list[Cell]:
    """MentalArithmetic by cross-validation, or on the fixed split with weights that have seen its training subjects."""
    prefix, masked = ("fixed", "pretraining-eegmat") if fixed else ("cv", "pretraining")
    parts = ["fixed"] if fixed else [f"fold-{fold}" for fold in range(size.folds)]
    weights = f"{folder_of(masked, 0, 'pretraining')}/checkpoint.pth"
    found = []
    for way in WAYS:

        def steps(seed: int, way: Way = way) -> list[Step]:
            text = way.words(size, weights)
            if "--freeze_blocks 4" in text and size.stages.model == "tiny":
                text = text.replace("--freeze_blocks 4", "--freeze_blocks 2")  # which has four blocks
            words = tuple(shlex.split(text))
            name = f"{prefix}-{way.name}"
            embedded = [embedding(name, seed, weights, parts[0])] if "features" in words else []
            words = (*words, *(("--features", str(embedded[0].output)) if embedded else ()))
            return embedded + [
                Step(part, (*words, "--dataset", f"DATA/{part}/MentalArithmetic.hdf5", "--seed", str(seed)))
                for part in parts
            ]

        needs = ("data", masked) if way.needs_weights else ("data",)
        seeds = size.seeds if way.seeded else (0,)
        first, further = (FIXED_ROWS, LAST) if fixed else (FURTHER_ROWS, LAST)
        if not way.later:
            first, further = (FIXED, FIXED_SEEDS) if fixed else (MAIN, MAIN_SEEDS)
        found.append(Cell(f"{prefix}-{way.name}", prefix, way.title, steps, needs, seeds, (first, further)))
    return found


@dataclass(frozen=True)
class Part:
    """One change to the tiny models' training."""

    name: str
    title: str
    tokenizer: str = ""
    pretraining: str = ""
    codes: int | None = None
    one_mask: int = 0


PARTS = (
    Part("all", "everything (512 codes)"),
    Part("one-mask", "no symmetric masking", one_mask=1),
    Part("one-mask-twice", "no symmetric masking, twice the epochs (equal arithmetic)", one_mask=2),
    Part("no-kmeans", "no k-means initialisation", "--no_quantize_kmeans_init"),
    Part("no-revival", "no revival", "--no_revive_codes"),
    Part("sequential", "montages one after the other", "--dataset_order sequential", "--dataset_order sequential"),
    Part("no-electrodes", "no electrode embedding in stages 2 and 3", pretraining="--no_abs_pos_emb"),
    Part("codes-2048", "2048 codes", codes=2048),
    Part("codes-8192", "8192 codes", codes=8192),
    Part("codes-8192-no-revival", "8192 codes, no revival", "--no_revive_codes", codes=8192),
)


def _ablations(size: Size) -> list[Cell]:
    """Tokenizer, masked model and what a logistic regression makes of its features, with one part changed."""
    found = []
    for part in PARTS:
        name = f"ablation-{part.name}"

        def steps(seed: int, part: Part = part, name: str = name) -> list[Step]:
            tokenizer, masked = (folder_of(name, seed, step) for step in ("tokenizer", "pretraining"))
            budget = size.ablation
            embedded = embedding(name, seed, f"{masked}/checkpoint.pth", "fold-0")
            features = ("-m", "reference.baselines", "features", *EVEN.split(), "--features", str(embedded.output))
            return [
                tokenizer_words(budget, NO_EEGMAT, seed, part.tokenizer, part.codes),
                pretraining_words(budget, NO_EEGMAT, seed, tokenizer, part.pretraining, one_mask=part.one_mask),
                embedded,
                *(
                    Step(f"fold-{fold}", (*features, "--dataset", f"DATA/fold-{fold}/MentalArithmetic.hdf5"))
                    for fold in range(size.folds)
                ),
            ]

        found.append(Cell(name, "ablation", part.title, steps, ("data",), size.seeds, (ABLATIONS, ABLATION_SEEDS)))
    return found
