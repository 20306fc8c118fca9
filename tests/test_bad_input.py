"""Every bad input ends a script with one line that says what, where and what to do, and nothing is lost."""

import builtins
import pickle
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from run_helpers import (
    CLASSIFIER,
    MASKED,
    ROOT,
    STAGES,
    TOKENIZER,
    call,
    checkpoint,
    contents,
    labelled_file,
    pretraining_file,
    start,
)

TRAIN, PRETRAIN, FINETUNE = STAGES
USAGE, DATA = 2, 1  # exit codes


class Executes:
    """Pickles as a call of print: what a malicious checkpoint would do, harmlessly."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (builtins.print, ("executed",))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good data, a finished run of each stage, and all kinds of bad files."""
    folder = tmp_path_factory.mktemp("world")
    pretraining_file(folder / "train" / "a.hdf5", seconds=(8,))
    labelled_file(folder / "task.hdf5", counts={"train": 4, "val": 4})
    assert call(TRAIN, *tokenizer(folder), "--output_dir", folder / "tokenizer") == 0
    assert call(PRETRAIN, *masked(folder), "--output_dir", folder / "masked") == 0
    assert call(FINETUNE, *classifier(folder), "--output_dir", folder / "classifier") == 0
    return folder


def tokenizer(world: Path) -> list[Any]:
    return [*TOKENIZER, "--train_data", world / "train"]


def masked(world: Path) -> list[Any]:
    return [*MASKED, "--train_data", world / "train", "--tokenizer_weight", world / "tokenizer" / "checkpoint.pth"]


def classifier(world: Path) -> list[Any]:
    return [*CLASSIFIER, "--dataset", world / "task.hdf5"]


RUNS = {TRAIN: tokenizer, PRETRAIN: masked, FINETUNE: classifier}
OUTPUTS = {TRAIN: "tokenizer", PRETRAIN: "masked", FINETUNE: "classifier"}


@pytest.fixture
def fails(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs a script, which must fail with one line and leave a finished run as it was."""

    def run(script: str, *words: Any, code: int, says: list[str]) -> str:
        output = tmp_path / "finished"
        shutil.copytree(world / OUTPUTS[script], output)
        before = contents(output)
        assert {"checkpoint.pth", "log.txt"} <= before.keys()
        capfd.readouterr()
        own = [] if "--output_dir" in words else ["--output_dir", output]
        assert call(script, *RUNS[script](world), "--epochs", "2", *own, *words) == code
        assert contents(output) == before, "a finished run was changed"
        shown, text = capfd.readouterr()
        assert "Traceback" not in text and "executed" not in shown
        lines = [line for line in text.splitlines() if line.startswith("error:")]
        assert len(lines) == 1 and text.splitlines()[-1] == lines[0], text
        for phrase in says:
            assert phrase in lines[0], f"{phrase!r} is not in: {lines[0]}"
        return lines[0]

    return run


def test_no_data_at_a_path(fails: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nowhere", tmp_path / "no.hdf5"):
        shutil.rmtree(tmp_path / "finished", ignore_errors=True)
        fails(
            TRAIN, "--train_data", path, code=DATA, says=["no data found", str(path), "--train_data", "dataset_maker"]
        )


def test_no_validation_data_at_a_path_that_was_given(fails: Any, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    fails(PRETRAIN, "--val_data", nowhere, code=DATA, says=["no data found", str(nowhere), "--val_data"])


def test_no_data_in_the_default_place(fails: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fails(FINETUNE, "--dataset", "TUAB", code=DATA, says=["no data found", "data/TUAB.hdf5", "dataset_maker"])


def test_a_data_set_that_nobody_knows(fails: Any) -> None:
    fails(FINETUNE, "--dataset", "TUXY", code=DATA, says=["TUXY", "TUAB", "TUEV", "HDF5"])


def test_an_unknown_electrode_with_the_nearest_known_ones(fails: Any, tmp_path: Path) -> None:
    file = pretraining_file(tmp_path / "odd.hdf5", electrodes=("C3", "CZZ"))
    line = fails(TRAIN, "--train_data", file, code=DATA, says=["unknown electrode", "CZZ", "nearest known", str(file)])
    assert "CZ" in line.replace("CZZ", "")


def test_an_unknown_electrode_of_a_labelled_file(fails: Any, tmp_path: Path) -> None:
    file = labelled_file(tmp_path / "odd.hdf5", counts={"train": 4}, electrodes=("C3", "OO1"))
    fails(FINETUNE, "--dataset", file, code=DATA, says=["unknown electrode", "OO1", "nearest known", str(file)])


def test_an_electrode_beyond_the_table_and_the_larger_table_as_the_way_out(fails: Any, tmp_path: Path) -> None:
    electrodes = ("FP1-F3", "P4-O2")  # numbers 129 and 136 of 136; the published tables hold 128
    file = pretraining_file(tmp_path / "bipolar" / "a.hdf5", electrodes=electrodes, seconds=(8,))
    line = fails(TRAIN, "--train_data", file, code=DATA, says=["P4-O2", "--num_electrodes 136", "129"])
    assert "no row" in line
    words = [*TOKENIZER, "--train_data", file, "--num_electrodes", "136"]
    assert call(TRAIN, *words, "--output_dir", tmp_path / "out") == 0
    assert checkpoint(tmp_path / "out" / "checkpoint.pth")["model"]["encoder.pos_embed"].shape == (1, 137, 200)


def test_a_checkpoint_of_129_rows_grows_to_the_larger_table(world: Path, tmp_path: Path) -> None:
    file = labelled_file(tmp_path / "bipolar.hdf5", counts={"train": 4}, electrodes=("C3", "P4-O2"))
    words = [*CLASSIFIER, "--dataset", file, "--num_electrodes", "136", "--lr", "0", "--min_lr", "0"]
    words += ["--finetune", world / "masked" / "checkpoint.pth", "--output_dir", tmp_path / "out"]
    assert call(FINETUNE, *words) == 0
    grown = checkpoint(tmp_path / "out" / "checkpoint.pth")["model"]["pos_embed"]
    old = checkpoint(world / "masked" / "checkpoint.pth")["model"]["student.pos_embed"]
    assert grown.shape == (1, 137, 200) and torch.equal(grown[:, :129], old)
    assert float(grown[:, 129:].std()) == pytest.approx(0.02, rel=0.2), "new rows are freshly initialised"


def test_a_recording_shorter_than_the_window(fails: Any, tmp_path: Path) -> None:
    file = pretraining_file(tmp_path / "short.hdf5", seconds=(1.5,))
    fails(TRAIN, "--train_data", file, code=DATA, says=["shorter than its window", str(file), "1.5 s", "--time_window"])


@pytest.mark.parametrize("script", STAGES)
def test_a_file_that_is_no_hdf5(fails: Any, tmp_path: Path, script: str) -> None:
    file = tmp_path / "text.hdf5"
    file.write_text("EEG")
    flag = "--dataset" if script == FINETUNE else "--train_data"
    fails(script, flag, file, code=DATA, says=[str(file), "HDF5"])


@pytest.mark.parametrize("script", STAGES)
def test_an_hdf5_that_is_cut_short(fails: Any, world: Path, tmp_path: Path, script: str) -> None:
    source = world / ("task.hdf5" if script == FINETUNE else "train/a.hdf5")
    file = tmp_path / "cut.hdf5"
    file.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    flag = "--dataset" if script == FINETUNE else "--train_data"
    fails(script, flag, file, code=DATA, says=[str(file), "cut short", "make it again"])


def damage(file: Path, dataset: str) -> Path:
    """Overwrite the middle of a compressed dataset's chunks: the file opens and reading fails."""
    with h5py.File(file) as opened:
        places = [opened[dataset].id.get_chunk_info(i) for i in range(opened[dataset].id.get_num_chunks())]
    content = bytearray(file.read_bytes())
    for place in places:
        content[place.byte_offset : place.byte_offset + place.size] = bytes(place.size)
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("workers", [0, 1])
def test_a_recording_that_cannot_be_read(fails: Any, tmp_path: Path, workers: int) -> None:
    file = pretraining_file(tmp_path / "bad.hdf5", seconds=(8,), compression="gzip")
    words = ["--train_data", damage(file, "recording0/eeg"), "--num_workers", workers]
    fails(TRAIN, *words, code=DATA, says=[str(file), "recording0", "cannot be read"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_labelled_sample_that_cannot_be_read(fails: Any, tmp_path: Path, workers: int) -> None:
    file = labelled_file(tmp_path / "bad.hdf5", counts={"train": 4}, compression="gzip")
    words = ["--dataset", damage(file, "train/eeg"), "--num_workers", workers]
    fails(FINETUNE, *words, code=DATA, says=[str(file), "train", "cannot be read"])


def test_an_hdf5_of_another_format(fails: Any, world: Path) -> None:
    fails(TRAIN, "--train_data", world / "task.hdf5", code=DATA, says=["task.hdf5", "no pre-training file", "eeg"])


def test_a_pretraining_file_given_as_a_labelled_one(fails: Any, world: Path) -> None:
    file = world / "train" / "a.hdf5"
    fails(FINETUNE, "--dataset", file, code=DATA, says=[str(file), "no labelled file", "dataset_maker"])


def test_a_recording_without_its_attributes(fails: Any, tmp_path: Path) -> None:
    file = pretraining_file(tmp_path / "bare.hdf5")
    with h5py.File(file, "r+") as opened:
        del opened["recording1/eeg"].attrs["rsFreq"]
    fails(TRAIN, "--train_data", file, code=DATA, says=[str(file), "recording1", "rsFreq"])


def test_files_of_one_run_with_different_sampling_rates(fails: Any, tmp_path: Path) -> None:
    pretraining_file(tmp_path / "data" / "a.hdf5")
    file = pretraining_file(tmp_path / "data" / "b.hdf5", rate=250)
    says = [str(file), "250 Hz", "200 Hz", "--rsfreq"]
    fails(PRETRAIN, "--train_data", tmp_path / "data", code=DATA, says=says)


@pytest.mark.parametrize(
    ("task", "labels", "wrong"), [("binary", [0, 1, 2, 0], "2"), ("multiclass", [0, -1, 1, 0], "-1")]
)
def test_labels_outside_the_classes(fails: Any, tmp_path: Path, task: str, labels: list[int], wrong: str) -> None:
    file = labelled_file(tmp_path / "wrong.hdf5", counts={"train": 4}, task=task, labels=np.array(labels))
    fails(FINETUNE, "--dataset", file, code=DATA, says=[str(file), "train", f"label {wrong}", "2 classes", "0 to 1"])


def test_targets_that_are_not_finite(fails: Any, tmp_path: Path) -> None:
    labels = np.array([[0.0], [np.nan], [1], [2]], dtype=np.float32)
    file = labelled_file(tmp_path / "nan.hdf5", counts={"train": 4}, task="regression", classes=("age",), labels=labels)
    fails(FINETUNE, "--dataset", file, code=DATA, says=[str(file), "finite"])


def nan_file(path: Path) -> Path:
    pretraining_file(path, seconds=(8,))
    with h5py.File(path, "r+") as opened:
        opened["recording0/eeg"][:] = np.nan
    return path


def test_recordings_that_hold_nothing_but_nan(fails: Any, tmp_path: Path) -> None:
    file = nan_file(tmp_path / "nan.hdf5")
    fails(TRAIN, "--train_data", file, code=DATA, says=[str(file), "all 4 windows", "cannot be used", "inspect"])


def test_nan_that_a_file_calls_valid_stops_the_run_where_it_is_asked_to(fails: Any, tmp_path: Path) -> None:
    file = nan_file(tmp_path / "nan.hdf5")
    with h5py.File(file, "r+") as opened:
        opened["recording0/valid"] = np.ones(8, bool)
    words = ["--train_data", file, "--nonfinite", "stop", "--output_dir", tmp_path / "new"]
    says = ["not finite", "step", "--lr", str(file)]
    fails(TRAIN, *words, "--no_quantize_kmeans_init", code=DATA, says=says)


def test_nothing_but_nan_to_start_the_codebook_from(fails: Any, tmp_path: Path) -> None:
    file = nan_file(tmp_path / "nan.hdf5")
    with h5py.File(file, "r+") as opened:
        opened["recording0/valid"] = np.ones(8, bool)
    words = ["--train_data", file, "--output_dir", tmp_path / "new"]
    fails(TRAIN, *words, code=DATA, says=["no finite value", "codebook"])


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_a_training_split_of_a_single_class(fails: Any, tmp_path: Path, task: str) -> None:
    file = labelled_file(tmp_path / "one.hdf5", counts={"train": 4, "val": 4}, task=task, labels=np.zeros(4, int))
    fails(FINETUNE, "--dataset", file, code=DATA, says=[str(file), "4 training samples have the class normal"])


def test_files_of_a_folder_that_belong_to_different_sets(fails: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):  # the sets' names are the files'
        labelled_file(tmp_path / "set" / f"{name}.hdf5", counts={"train": 4})
    fails(FINETUNE, "--dataset", tmp_path / "set", code=DATA, says=["a.hdf5", "b.hdf5", "name", "one set"])


def test_a_link_out_of_a_file(fails: Any, tmp_path: Path) -> None:
    file = tmp_path / "link.hdf5"
    with h5py.File(file, "w") as opened:
        opened["someone"] = h5py.ExternalLink("elsewhere.hdf5", "/")
    fails(TRAIN, "--train_data", file, code=DATA, says=[str(file), "`someone` is an external link", "copy it in"])


def test_a_number_of_classes_that_is_not_the_files(fails: Any, world: Path) -> None:
    says = ["--nb_classes 6", "1 output", str(world / "task.hdf5"), "leave the flag out"]
    fails(FINETUNE, "--nb_classes", "6", code=DATA, says=says)


@pytest.mark.parametrize("script", [TRAIN, PRETRAIN])
@pytest.mark.parametrize("seconds", ["17", "0"])
def test_a_window_longer_than_the_time_embedding(fails: Any, script: str, seconds: str) -> None:
    fails(
        script, "--time_window", seconds, code=USAGE, says=[f"--time_window {seconds}", "1 to 16 s", "time embedding"]
    )


@pytest.mark.parametrize("script", STAGES)
@pytest.mark.parametrize("samples", ["3400", "250"])
def test_an_input_size_that_no_model_takes(fails: Any, script: str, samples: str) -> None:
    fails(script, "--input_size", samples, code=USAGE, says=["--input_size", samples, "200", "3200"])


def test_a_labelled_window_longer_than_the_time_embedding(fails: Any, tmp_path: Path) -> None:
    file = labelled_file(tmp_path / "long.hdf5", counts={"train": 2}, seconds=17)
    fails(FINETUNE, "--dataset", file, code=DATA, says=[str(file), "3400", "3200"])


@pytest.mark.parametrize("script", STAGES)
@pytest.mark.parametrize("flag", ["--output_dir", "--log_dir"])
def test_an_output_folder_that_cannot_be_written(fails: Any, tmp_path: Path, script: str, flag: str) -> None:
    (tmp_path / "file").write_text("no folder")
    folder = tmp_path / "file" / "below"
    fails(script, flag, folder, code=USAGE, says=[f"{flag} {folder}", "cannot be written", "another folder"])
    assert (tmp_path / "file").read_text() == "no folder"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: asking for it is no mistake")
@pytest.mark.parametrize("script", STAGES)
def test_a_gpu_where_none_is(fails: Any, script: str) -> None:
    fails(script, "--device", "cuda", code=USAGE, says=["--device cuda", "GPU", "--device cpu"])


def test_a_device_that_does_not_exist(fails: Any) -> None:
    fails(TRAIN, "--device", "gpu", code=USAGE, says=["--device gpu", "cuda", "cpu"])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--epochs", "0"], "--epochs 0"),
        (["--batch_size", "0"], "--batch_size 0"),
        (["--num_workers", "-1"], "--num_workers -1"),
        (["--precision", "fp16"], "--precision fp16"),
        (["--opt", "adamx"], "--opt adamx"),
        (["--no_such_flag"], "--no_such_flag"),
        (["--epochs", "many"], "--epochs"),
    ],
)
def test_flags_that_cannot_be_right(fails: Any, flags: list[str], says: str) -> None:
    fails(PRETRAIN, *flags, code=USAGE, says=[says])


def test_a_metric_that_the_task_does_not_have(fails: Any) -> None:
    fails(FINETUNE, "--select_by", "r2", code=USAGE, says=["--select_by r2", "binary", "roc_auc"])


def test_tokenizer_weights_that_are_missing_with_the_nearest_candidate(fails: Any, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "tokenizer", tmp_path / "checkpoints" / "vqnsp")
    missing = tmp_path / "checkpoints" / "vqnsp.pth"
    candidate = tmp_path / "checkpoints" / "vqnsp" / "checkpoint.pth"
    fails(PRETRAIN, "--tokenizer_weight", missing, code=DATA, says=[f"{missing} does not exist", f"cp {candidate}"])


def test_a_masked_model_that_is_missing_with_the_nearest_candidate(fails: Any, world: Path, tmp_path: Path) -> None:
    shutil.copytree(
        world / "masked", tmp_path / "checkpoints" / "labram_base"
    )  # README's copy is called labram-base.pth
    missing = tmp_path / "checkpoints" / "labram-base.pth"
    candidate = tmp_path / "checkpoints" / "labram_base" / "checkpoint.pth"
    fails(FINETUNE, "--finetune", missing, code=DATA, says=[f"{missing} does not exist", f"cp {candidate} {missing}"])


@pytest.mark.parametrize(
    ("script", "flag", "given", "found"),
    [
        (PRETRAIN, "--tokenizer_weight", "masked", "masked model of stage 2"),
        (PRETRAIN, "--tokenizer_weight", "classifier", "classifier of stage 3"),
        (FINETUNE, "--finetune", "tokenizer", "tokenizer of stage 1"),
        (TRAIN, "--resume", "masked", "masked model of stage 2"),
        (PRETRAIN, "--resume", "classifier", "classifier of stage 3"),
        (FINETUNE, "--resume", "masked", "masked model of stage 2"),
    ],
)
def test_a_checkpoint_of_another_stage(fails: Any, world: Path, script: str, flag: str, given: str, found: str) -> None:
    path = world / given / "checkpoint.pth"
    fails(script, flag, path, code=DATA, says=[str(path), found, "needed here"])


def test_a_tokenizer_of_another_size_with_the_first_keys_that_differ(fails: Any, world: Path) -> None:
    path = world / "tokenizer" / "checkpoint.pth"
    words = ["--tokenizer_model", "vqnsp_encoder_base_decoder_3x200x12"]
    fails(PRETRAIN, *words, code=DATA, says=[str(path), "another architecture", "encoder.blocks.4.", "is missing"])


def test_a_masked_model_of_another_size_with_the_first_keys_that_differ(fails: Any, world: Path) -> None:
    path = world / "masked" / "checkpoint.pth"
    words = ["--model", "labram_large_patch200_200", "--finetune", path]
    fails(
        FINETUNE, *words, code=DATA, says=[str(path), "another architecture", "(1, 1, 200)", "(1, 1, 400)", "--model"]
    )


def test_a_run_that_continues_with_another_codebook(fails: Any) -> None:
    says = ["of another run", "--codebook_n_emd 32, the checkpoint has 16", "--resume_anyway"]
    fails(TRAIN, "--codebook_n_emd", "32", code=DATA, says=says)


def test_another_codebook_does_not_fit_anyway(fails: Any) -> None:
    says = ["another architecture", "quantize", "(16,", "(32,"]
    fails(TRAIN, "--codebook_n_emd", "32", "--resume_anyway", code=DATA, says=says)


def test_a_codebook_size_that_is_not_the_tokenizers(fails: Any) -> None:
    fails(PRETRAIN, "--codebook_size", "8192", code=DATA, says=["--codebook_size 16", "8192"])


def broken(path: Path, kind: str, model: dict[str, torch.Tensor]) -> Path:
    """Write something that is no checkpoint, or one that does more than hold tensors."""
    if kind == "text":
        path.write_text("weights")
    elif kind == "empty":
        path.touch()
    elif kind == "tensor":
        torch.save(torch.zeros(3), path)
    elif kind == "no weights":
        torch.save({"epoch": 3}, path)
    elif kind == "executes":
        torch.save({"model": model, "args": Executes()}, path)
    elif kind == "old pickle that executes":
        path.write_bytes(pickle.dumps({"model": Executes()}))
    else:
        torch.save({"model": model}, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize("script", [PRETRAIN, FINETUNE])
@pytest.mark.parametrize(
    "kind", ["text", "empty", "tensor", "no weights", "executes", "old pickle that executes", "cut short"]
)
def test_a_file_that_is_no_checkpoint(fails: Any, world: Path, tmp_path: Path, script: str, kind: str) -> None:
    stage, flag = ("tokenizer", "--tokenizer_weight") if script == PRETRAIN else ("masked", "--finetune")
    path = broken(tmp_path / "bad.pth", kind, checkpoint(world / stage / "checkpoint.pth")["model"])
    fails(script, flag, path, code=DATA, says=[str(path), "checkpoint"])


def test_the_executing_checkpoint_of_these_tests_would_execute(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save({"args": Executes()}, tmp_path / "bad.pth")
    torch.load(tmp_path / "bad.pth", weights_only=False)
    assert "executed" in capfd.readouterr().out


def test_evaluating_without_a_checkpoint(fails: Any, tmp_path: Path) -> None:
    says = [str(tmp_path / "none"), "does not exist"]
    fails(FINETUNE, "--eval", "--output_dir", tmp_path / "none", code=DATA, says=says)


def test_evaluating_averaged_weights_that_were_never_kept(fails: Any) -> None:
    fails(FINETUNE, "--eval", "--model_ema", code=DATA, says=["averaged weights", "--model_ema"])


def test_resuming_from_weights_alone(fails: Any, world: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": checkpoint(world / "masked" / "checkpoint.pth")["model"]}, path)
    fails(PRETRAIN, "--resume", path, code=DATA, says=[str(path), "state of a run", "--no_auto_resume"])


@pytest.mark.parametrize(
    ("script", "words", "code"), [(TRAIN, ["--device", "gpu"], 2), (FINETUNE, ["--dataset", "x"], 1)]
)
def test_a_real_process_ends_with_one_line_and_the_exit_code(
    tmp_path: Path, script: str, words: list[str], code: int
) -> None:
    ended = start([ROOT / f"{script}.py", *words, "--output_dir", tmp_path / "out"], cwd=tmp_path, check=False)
    assert ended.returncode == code and ended.stdout == ""
    assert ended.stderr.startswith("error:") and ended.stderr.count("\n") == 1


def test_a_failed_start_leaves_the_description_of_the_finished_run(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "tokenizer", tmp_path / "finished")
    before = (tmp_path / "finished" / "environment.json").read_text()
    words = [*tokenizer(world), "--train_data", tmp_path / "nowhere", "--output_dir", tmp_path / "finished"]
    assert call(TRAIN, *words) == DATA
    assert (tmp_path / "finished" / "environment.json").read_text() == before
