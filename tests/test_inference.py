"""A trained model says of a recording what its module says of the windows cut by hand."""

from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
import torch
from timm.models import create_model
from torch import nn
from torch.nn import functional as F

import inference
from data_helpers import TINY, signal
from electrodes import ELECTRODES
from errors import InputError, UsageError
from inference.model import Model
from maker_helpers import noise, raw_of
from training import checkpoints

NAMES = ["C3", "Cz", "C4"]
ROWS = [0, *(ELECTRODES.index(name.upper()) + 1 for name in NAMES)]
CLASSIFIER = "labram_tiny_patch200_200"
BAD_STAGES = [
    (stage, verb) for verb, stages in inference.VERBS.items() for stage in checkpoints.STAGES if stage not in stages
]


def random_module(name: str, **options: Any) -> nn.Module:
    """A model in which every parameter is drawn: nothing is zero or one by chance of its start."""
    torch.manual_seed(0)
    module: nn.Module = create_model(name, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return module.eval()


def saved(path: Path, module: nn.Module, **more: Any) -> Path:
    checkpoints.save({"model": module.state_dict(), **more}, path)
    return path


@pytest.fixture(scope="module")
def modules() -> dict[str, Any]:
    return {
        "tokenizer": random_module(TINY, n_code=64, code_dim=8, quantize_kmeans_init=False),
        "pretraining": random_module("labram_tiny_patch200_1600_8k_vocab", vocab_size=64),
        "classifier": random_module(CLASSIFIER, num_classes=3),
    }


@pytest.fixture(scope="module")
def models(modules: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {stage: inference.load(saved(folder / f"{stage}.pth", module)) for stage, module in modules.items()}


def batch(eeg: np.ndarray, seconds: int) -> torch.Tensor:
    """Windows of a signal (N, time) in uV one after the other, as the models take them."""
    count = eeg.shape[1] // (200 * seconds)
    cut = [eeg[:, 200 * seconds * i : 200 * seconds * (i + 1)].reshape(len(eeg), seconds, 200) for i in range(count)]
    return torch.from_numpy(np.stack(cut).astype(np.float32) / 100)


# What is computed


def test_codes_of_a_recording_are_those_of_windows_cut_from_what_mne_filters(
    modules: dict[str, Any], models: dict[str, Model]
) -> None:
    raw = raw_of(NAMES, 250, noise(3, 40, 250))
    found = models["tokenizer"].tokenize(raw, window=4)
    filtered = raw.copy().filter(0.1, 75, verbose="error").notch_filter(50, verbose="error")
    eeg = filtered.resample(200, verbose="error").get_data() * 1e6
    expected = modules["tokenizer"].get_codebook_indices(batch(eeg, 4), ROWS).view(10, 3, 4).numpy()
    assert (found.codes == expected).mean() > 0.99, "but for patches that lie equally near to two codes"
    assert len(np.unique(found.codes)) > 5
    assert found.electrodes == ("C3", "CZ", "C4") and found.window == 4
    assert found.times.tolist() == [4 * n for n in range(10)]


@pytest.mark.parametrize("kind", ["array", "float64", "tensor", "pieces", "raw", "epochs"])
def test_every_kind_of_recording_gives_the_same(models: dict[str, Model], kind: str) -> None:
    eeg = signal(3, 12 * 200)
    model = models["pretraining"]
    expected = model.embed(eeg, electrodes=NAMES, window=4).features
    assert expected.shape == (3, 3, 4, 200)
    raw = raw_of(NAMES, 200, eeg.astype(np.float64))
    given: dict[str, tuple[Any, dict[str, Any]]] = {
        "array": (eeg, {"electrodes": NAMES, "window": 4}),
        "float64": (eeg.astype(np.float64), {"electrodes": NAMES, "window": 4}),
        "tensor": (torch.from_numpy(eeg).requires_grad_(), {"electrodes": NAMES, "window": 4}),
        "pieces": (eeg.reshape(3, 3, 800).transpose(1, 0, 2), {"electrodes": NAMES}),
        "raw": (raw, {"prepared": True, "window": 4}),
        "epochs": (mne.make_fixed_length_epochs(raw, 4, verbose="error"), {"prepared": True}),
    }
    recording, options = given[kind]
    found = model.embed(recording, **options)
    np.testing.assert_allclose(found.features, expected, atol=1e-5)
    assert found.times.tolist() == [0, 4, 8]


@pytest.mark.parametrize("stage", ["pretraining", "classifier"])
def test_features_are_means_of_tokens_under_the_trained_norm(
    modules: dict[str, Any], models: dict[str, Model], stage: str
) -> None:
    eeg = signal(3, 8 * 200)
    module = modules[stage]
    trunk, norm = (module.student, module.student.norm) if stage == "pretraining" else (module, module.fc_norm)
    trunk.cls_position_row, before = "own", trunk.cls_position_row  # as in fine-tuning
    with torch.no_grad():
        tokens = trunk.run_blocks(trunk.embed(batch(eeg, 4), ROWS))[:, 1:].view(2, 3, 4, 200)
    trunk.cls_position_row = before
    means = {"patches": tokens, "electrodes": tokens.mean(2), "mean": tokens.mean((1, 2))}
    for pool, mean in means.items():
        expected = F.layer_norm(mean, (200,), norm.weight, norm.bias, norm.eps).detach().numpy()
        found = models[stage].embed(eeg, electrodes=NAMES, window=4, pool=pool)
        np.testing.assert_allclose(found.features, expected, atol=2e-5)


def test_the_head_sees_the_mean_features(modules: dict[str, Any], models: dict[str, Model]) -> None:
    eeg = signal(3, 8 * 200)
    features = models["classifier"].embed(eeg, electrodes=NAMES, window=4, pool="mean").features
    logits = (
        features @ modules["classifier"].head.weight.detach().numpy().T
        + modules["classifier"].head.bias.detach().numpy()
    )
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = models["classifier"].predict(eeg, electrodes=NAMES, window=4)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(found.recording_probabilities, expected.mean(0), atol=1e-5)
    assert found.classes == ("class 0", "class 1", "class 2")


def test_a_classifier_that_pools_by_cls_is_normed_before_the_mean(tmp_path: Path) -> None:
    module: Any = random_module(CLASSIFIER, num_classes=1, use_mean_pooling=False)
    eeg = signal(3, 4 * 200)
    model = inference.load(saved(tmp_path / "a.pth", module))
    with torch.no_grad():
        tokens = module.norm(module.run_blocks(module.embed(batch(eeg, 4), ROWS))[:, 1:])
        logit = module(batch(eeg, 4), ROWS)
    found = model.embed(eeg, electrodes=NAMES, pool="mean")
    np.testing.assert_allclose(found.features, tokens.mean(1).numpy(), atol=1e-5)
    np.testing.assert_allclose(
        model.predict(eeg, electrodes=NAMES).probabilities[:, 1:], 1 / (1 + np.exp(-logit.numpy())), atol=1e-6
    )


def test_spectra_are_numpys_and_those_that_the_codes_stand_for(
    modules: dict[str, Any], models: dict[str, Model]
) -> None:
    eeg = signal(3, 4 * 200)
    found = models["tokenizer"].reconstruct(eeg, electrodes=NAMES, window=2)
    spectrum = np.fft.fft(batch(eeg, 2).double().numpy())  # (2, 3, 2, 200)
    for name, values in (("amplitude", np.abs(spectrum)), ("phase", np.angle(spectrum))):
        mean, deviation = values.mean((1, 2, 3), keepdims=True), values.std((1, 2, 3), ddof=1, keepdims=True)
        bins = np.r_[1:100, 101:200]  # at 0 and 100 Hz the phase is 0 or pi by a last bit
        np.testing.assert_allclose(getattr(found, name)[..., bins], ((values - mean) / deviation)[..., bins], atol=0.02)
    codebook = modules["tokenizer"].quantize.embedding.weight.detach()
    quantized = codebook[torch.from_numpy(found.codes)].permute(0, 3, 1, 2)  # (B, width, N, A)
    with torch.no_grad():
        amplitude, phase = modules["tokenizer"].decode(quantized, ROWS)
    np.testing.assert_allclose(found.predicted_amplitude, amplitude.view(2, 3, 2, 200).numpy(), atol=1e-4)
    np.testing.assert_allclose(found.predicted_phase, phase.view(2, 3, 2, 200).numpy(), atol=1e-4)
    np.testing.assert_allclose(found.phase_error, ((found.phase - found.predicted_phase) ** 2).mean(-1), rtol=1e-4)


DATA = {"name": "Odd", "electrodes": ["C3", "CZ", "C4"], "window_seconds": 2}


@pytest.mark.parametrize(
    ("task", "classes", "outputs"),
    [("binary", ["rest", "task"], 1), ("multiclass", ["a", "b"], 2), ("regression", ["left knee"], 1)],
)
def test_predictions_are_named_and_scaled_as_the_task_says(
    tmp_path: Path, task: str, classes: list[str], outputs: int
) -> None:
    module: Any = random_module(CLASSIFIER, num_classes=outputs)
    data = DATA | {"task": task, "classes": classes}
    model = inference.load(saved(tmp_path / "a.pth", module, data_set=data))
    eeg = signal(3, 6 * 200)
    found = model.predict(eeg, electrodes=NAMES)
    assert found.window == 2, "the window of its training"
    with torch.no_grad():
        logits = module(batch(eeg, 2), ROWS).double().numpy()
    p = 1 / (1 + np.exp(-logits))
    expected = {
        "binary": np.concatenate([1 - p, p], axis=1),
        "multiclass": np.exp(logits) / np.exp(logits).sum(1, keepdims=True),
        "regression": logits,
    }
    assert found.classes == tuple(classes)
    np.testing.assert_allclose(found.probabilities, expected[task], atol=1e-5)


def test_the_batch_size_changes_nothing(models: dict[str, Model]) -> None:
    eeg = signal(3, 14 * 200)
    each = [models["classifier"].predict(eeg, electrodes=NAMES, window=2, batch_size=size) for size in (1, 3, 100)]
    for other in each[1:]:
        np.testing.assert_allclose(other.probabilities, each[0].probabilities, atol=1e-6)


@pytest.mark.parametrize(("electrodes", "seconds"), [(1, 1), (1, 16), (128, 1), (128, 2), (19, 13)])
def test_any_number_of_electrodes_and_seconds(models: dict[str, Model], electrodes: int, seconds: int) -> None:
    eeg = signal(electrodes, seconds * 200)
    names = ELECTRODES[:electrodes]
    assert models["tokenizer"].tokenize(eeg, electrodes=names, window=seconds).codes.shape == (1, electrodes, seconds)
    assert models["pretraining"].embed(eeg, electrodes=names, window=seconds, pool="electrodes").features.shape == (
        1,
        electrodes,
        200,
    )


# What is refused


@pytest.mark.parametrize(("stage", "verb"), BAD_STAGES)
def test_a_verb_of_another_stage_says_which_checkpoint_it_needs(
    models: dict[str, Model], stage: str, verb: str
) -> None:
    with pytest.raises(UsageError, match=rf"{stage}.pth is a .*; {verb} needs .*: choose another --checkpoint"):
        getattr(models[stage], verb)(signal(3, 400), electrodes=NAMES)


def test_an_electrode_without_a_row_in_the_model_is_named(models: dict[str, Model]) -> None:
    with pytest.raises(InputError, match="has no row for FP1-F3"):
        models["pretraining"].embed(signal(1, 400), electrodes=["FP1-F3"])


def test_what_is_no_recording_and_what_is_no_pool_are_refused(models: dict[str, Model]) -> None:
    with pytest.raises(InputError, match=r"list is no recording: give mne.io.Raw"):
        models["tokenizer"].tokenize([[1.0]])
    with pytest.raises(UsageError, match=r"--pool time: allowed are patches, electrodes, mean"):
        models["pretraining"].embed(signal(3, 400), electrodes=NAMES, pool="time")


def test_a_device_that_is_not_there_is_one_line(tmp_path: Path, modules: dict[str, Any]) -> None:
    path = saved(tmp_path / "a.pth", modules["classifier"])
    with pytest.raises(UsageError, match="--device cuda:77"):
        inference.load(path, device="cuda:77")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window": 0}, "--window 0: allowed are 1 to 16"),
        ({"window": 1.5}, "--window 1.5: allowed are 1 to 16 whole seconds"),
        ({"batch_size": 0}, "--batch_size 0: must be at least 1"),
        ({"batch_size": -1}, "--batch_size -1: must be at least 1"),
        ({"scale": 1e300}, r"--scale 1e\+300: must be"),
        ({"scale": 1e-60}, "--scale 1e-60: must be"),
    ],
)
def test_values_that_cannot_be_are_one_line(models: dict[str, Model], options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        models["pretraining"].embed(signal(3, 800), electrodes=NAMES, **options)


def test_results_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    module: Any = random_module(CLASSIFIER, num_classes=2)
    with torch.no_grad():
        module.head.bias[1] = torch.nan
    model = inference.load(saved(tmp_path / "a.pth", module))
    with pytest.raises(InputError, match=r"windows 0 to 2 give NaN or infinity: .* the weights of .*a.pth are damaged"):
        model.predict(signal(3, 1200), electrodes=NAMES, window=2)


def test_a_classifier_without_a_head_predicts_nothing(tmp_path: Path) -> None:
    model = inference.load(saved(tmp_path / "a.pth", random_module(CLASSIFIER, num_classes=0)))
    with pytest.raises(UsageError, match=r"a.pth has no head, so it predicts nothing: embed, or choose another"):
        model.predict(signal(3, 400), electrodes=NAMES)
    assert model.embed(signal(3, 400), electrodes=NAMES, pool="mean").features.shape == (1, 200)


def test_names_for_the_channels_of_a_raw_are_refused(models: dict[str, Model]) -> None:
    with pytest.raises(UsageError, match="electrodes name an array's rows"):
        models["pretraining"].embed(raw_of(["F3", "FZ", "F4"], 200, noise(3, 8, 200)), electrodes=NAMES, window=4)


def test_half_precision_tensors_are_recordings(models: dict[str, Model]) -> None:
    eeg = signal(3, 800)
    for kind in (torch.bfloat16, torch.float16):
        given = torch.from_numpy(eeg).to(kind)
        found = models["pretraining"].embed(given, electrodes=NAMES, window=2).features
        expected = models["pretraining"].embed(given.float().numpy(), electrodes=NAMES, window=2).features
        np.testing.assert_array_equal(found, expected)


def test_other_electrodes_than_those_of_the_training_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = DATA | {"task": "binary", "classes": ["a", "b"]}
    model = inference.load(saved(tmp_path / "a.pth", random_module(CLASSIFIER, num_classes=1), data_set=data))
    model.predict(signal(3, 800), electrodes=["C4", "Cz", "C3"])
    assert caplog.text == "", "their order does not matter"
    model.predict(signal(3, 800), electrodes=["C4", "Cz", "O1"])
    assert "a.pth was trained with (without C3; besides O1): what it says may be worse" in caplog.text


def test_what_a_terminal_obeys_in_a_class_name_is_escaped(tmp_path: Path) -> None:
    data = DATA | {"task": "multiclass", "classes": ["a\x1b[31m", "b\nc", "d\0"]}
    model = inference.load(saved(tmp_path / "a.pth", random_module(CLASSIFIER, num_classes=3), data_set=data))
    assert model.classes == (r"a\x1b[31m", r"b\nc", r"d\x00")
