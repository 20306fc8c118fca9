"""A trained model on a recording: codes, features, spectra, predictions.

    import inference

    model = inference.load("checkpoints/labram-base.pth")
    features = model.embed(raw, pool="mean")  # raw: mne.io.Raw, mne.Epochs or an array with electrodes=[...]

What MNE read goes through the pipeline of `dataset_maker` (band-pass, notch, 200 Hz), unless `prepared=True` says that
it has been through one; arrays and tensors, in uV at 200 Hz, are taken as they are. Source: paper, section 2.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mne
import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from tqdm import tqdm

from dataset_maker.pipeline import Pipeline
from eeg_data.hdf5 import printable
from eeg_data.pretraining import UNIT
from electrodes import embedding_rows
from errors import InputError, UsageError
from inference import weights
from inference.recordings import BLOCK_BYTES, Options, Windows, of_array, of_epochs, of_raw
from inference.weights import Description
from layers import PATCH_SAMPLES
from modeling_vqnsp import VQNSP, spectrum_targets
from training import checkpoints
from utils import find_device

logger = logging.getLogger(__name__)

BATCH = 32  # windows
POOLS = ("patches", "electrodes", "mean")
VERBS = {  # and the stages of checkpoints that can do each
    "tokenize": ("tokenizer",),
    "reconstruct": ("tokenizer",),
    "embed": ("pretraining", "classifier"),
    "predict": ("classifier",),
}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Result:
    """What a model says of the windows of one recording: W windows, N electrodes, A patches of T samples."""

    recording: str
    electrodes: tuple[str, ...]
    times: np.ndarray  # (W,) s, where each window begins
    window: float  # s


@dataclass(frozen=True)
class Codes(Result):
    """Of `tokenize`."""

    codes: np.ndarray  # (W, N, A) int64


@dataclass(frozen=True)
class Features(Result):
    """Of `embed`."""

    features: np.ndarray  # (W, N, A, D), (W, N, D) or (W, D) float32: of patches, electrodes or windows


@dataclass(frozen=True)
class Spectra(Result):
    """Of `reconstruct`: z-scored over the T frequencies of a patch, frequency k being k Hz (above T/2: negative)."""

    codes: np.ndarray  # (W, N, A) int64
    amplitude: np.ndarray  # (W, N, A, T) float32, of the signal
    phase: np.ndarray
    predicted_amplitude: np.ndarray  # by the decoder, from the codes
    predicted_phase: np.ndarray
    amplitude_error: np.ndarray  # (W, N, A): mean squared difference over the frequencies
    phase_error: np.ndarray


@dataclass(frozen=True)
class Predictions(Result):
    """Of `predict`."""

    classes: tuple[str, ...]  # or names of the outputs of a regression
    probabilities: np.ndarray  # (W, classes) float32; of a regression the values
    recording_probabilities: np.ndarray  # (classes,): the mean over the windows


class Model:
    """A trained model in evaluation mode. Its methods take a recording as `windows` does, with the same options."""

    def __init__(self, module: nn.Module, description: Description, *, where: str, device: str = "cpu") -> None:
        """description: of the module's weights; where: for messages."""
        self.description, self.where = description, where
        self.device = find_device(device)
        self.module: Any = module.eval().requires_grad_(False).to(self.device)

    @property
    def stage(self) -> str:
        """What the checkpoint is: tokenizer, pretraining or classifier."""
        return self.description.stage

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of what is predicted, numbers where the checkpoint does not say."""
        outputs = self.description.settings.get("num_classes", 0)
        count = 2 if self._is_binary() else outputs
        return tuple(map(printable, self.description.classes)) or tuple(f"class {number}" for number in range(count))

    def _is_binary(self) -> bool:
        task = self.description.task or (
            "binary" if self.description.settings.get("num_classes") == 1 else "multiclass"
        )
        return task == "binary"

    def check(self, verb: str) -> None:
        """Raise UsageError if this is no model for the verb."""
        if self.stage not in VERBS[verb]:
            needed = " or ".join(checkpoints.STAGES[stage] for stage in VERBS[verb])
            raise UsageError(
                f"{self.where} is {checkpoints.STAGES[self.stage]}; {verb} needs {needed}: choose another --checkpoint"
            )
        if verb == "predict" and not self.description.settings["num_classes"]:
            raise UsageError(f"{self.where} has no head, so it predicts nothing: embed, or choose another --checkpoint")

    # What one batch of windows gives. eeg: (B, N, A, T), units of 100 uV; channels: (N + 1,) rows

    @torch.inference_mode()
    def _tokenize(self, eeg: Tensor, channels: Tensor) -> dict[str, Tensor]:
        codes = self.module.get_codebook_indices(eeg, channels)
        return {"codes": rearrange(codes, "B (N A) -> B N A", N=eeg.shape[1])}

    @torch.inference_mode()
    def _reconstruct(self, eeg: Tensor, channels: Tensor) -> dict[str, Tensor]:
        module: VQNSP = self.module
        amplitude, phase = spectrum_targets(eeg)
        quantized, codes, _ = module.encode(eeg, channels)
        predicted = module.decode(quantized, channels)
        each = {"amplitude": amplitude, "phase": phase}
        each |= dict(zip(("predicted_amplitude", "predicted_phase"), predicted, strict=True))
        found = {name: rearrange(x, "B (N A) T -> B N A T", N=eeg.shape[1]) for name, x in each.items()}
        for name in ("amplitude", "phase"):
            found[f"{name}_error"] = (found[name] - found[f"predicted_{name}"]).square().mean(-1)
        return {"codes": rearrange(codes, "(B N A) -> B N A", B=len(eeg), N=eeg.shape[1]), **found}

    @torch.inference_mode()
    def _embed(self, eeg: Tensor, channels: Tensor, *, pool: str) -> dict[str, Tensor]:
        if pool == "mean" and self.module.fc_norm is not None:
            return {"features": self.module.forward_features(eeg, channels)}  # what a head sees
        module = self.module
        tokens = module.run_blocks(module.embed(eeg, channels))[:, 1:]  # (B, N*A, D)
        if module.fc_norm is None:
            tokens = module.norm(tokens)
        tokens = rearrange(tokens, "B (N A) D -> B N A D", N=eeg.shape[1])
        axes = {"patches": "B N A D", "electrodes": "B N D", "mean": "B D"}[pool]
        tokens = reduce(tokens, f"B N A D -> {axes}", "mean")
        return {"features": tokens if module.fc_norm is None else module.fc_norm(tokens)}

    @torch.inference_mode()
    def _predict(self, eeg: Tensor, channels: Tensor) -> dict[str, Tensor]:
        logits = self.module(eeg, channels).float()
        if self.description.task == "regression":
            return {"probabilities": logits}
        if self._is_binary():
            return {"probabilities": torch.cat((torch.sigmoid(-logits), torch.sigmoid(logits)), dim=1)}
        return {"probabilities": logits.softmax(1)}

    def batches(
        self, verb: str, windows: Windows, *, batch_size: int = BATCH, pool: str = "patches", visible: bool = False
    ) -> Iterator[tuple[slice, Arrays]]:
        """What `verb` gives of some consecutive windows at a time: which they are, arrays by name.

        Memory does not grow with the number of windows. visible: show a progress bar.
        """
        self.check(verb)
        if pool not in POOLS:
            raise UsageError(f"--pool {pool}: allowed are {', '.join(POOLS)}")
        if batch_size < 1:
            raise UsageError(f"--batch_size {batch_size}: must be at least 1")
        self._compare(windows)
        function = partial(self._embed, pool=pool) if verb == "embed" else getattr(self, f"_{verb}")
        rows = self._table_rows()
        channels = torch.tensor(embedding_rows(windows.electrodes, table_rows=rows, where=windows.where))
        channels = channels.to(self.device)
        with tqdm(
            total=len(windows), desc=windows.name, unit="window", leave=False, disable=None if visible else True
        ) as bar:
            for first in range(0, len(windows), batch_size):
                part = slice(first, min(first + batch_size, len(windows)))
                eeg = torch.from_numpy(windows.batch(part.start, part.stop)).to(self.device) / UNIT
                found = function(rearrange(eeg, "B N (A T) -> B N A T", T=PATCH_SAMPLES), channels)
                if not all(torch.isfinite(value).all() for value in found.values()):
                    raise InputError(
                        f"{windows.where}: windows {part.start} to {part.stop - 1} give NaN or infinity: the signal is "
                        f"of another unit (--scale), or the weights of {self.where} are damaged"
                    )
                yield part, {name: value.cpu().numpy() for name, value in found.items()}
                bar.update(part.stop - part.start)

    def _compare(self, windows: Windows) -> None:
        """Say where a recording has other electrodes than a classifier was trained with."""
        trained, given = self.description.electrodes, windows.electrodes
        if self.stage == "classifier" and trained and set(trained) != set(given):
            lacks, new = [name for name in trained if name not in given], [n for n in given if n not in trained]
            parts = [f"{words} {', '.join(names)}" for words, names in (("without", lacks), ("besides", new)) if names]
            logger.warning(
                "%s: other electrodes than %s was trained with (%s): what it says may be worse.",
                windows.where,
                self.where,
                "; ".join(parts),
            )

    def _table_rows(self) -> int:
        """Rows of the electrode table."""
        trunk = self.module.encoder if self.stage == "tokenizer" else self.module
        return trunk.pos_embed.shape[1] if trunk.pos_embed is not None else 1 << 30

    # On whole recordings

    def windows(
        self,
        eeg: Any,
        *,
        electrodes: Sequence[str] | None = None,
        window: int | None = None,
        stride: float | None = None,
        prepared: bool = False,
        pipeline: Pipeline | None = None,
        scale: float | None = None,
    ) -> Windows:
        """Windows of a recording: `mne.io.Raw`, `mne.Epochs`, or an array or tensor (N, time) or (pieces, N, time).

        electrodes: names of an array's rows. window, stride: s (default: a classifier's own window, else as many as
        256 patches allow, 16 at most; the window). prepared: MNE's data have been filtered and resampled to 200 Hz.
        pipeline: filters and names in place of the usual. scale: factor on the values; without it, amplitudes that no
        EEG in uV has are refused. Raises InputError for recordings that cannot be used.
        """
        if electrodes is not None and isinstance(eeg, mne.io.BaseRaw | mne.BaseEpochs):
            raise UsageError("electrodes name an array's rows; channels of MNE's objects have names: pipeline renames")
        options = Options(
            pipeline or Pipeline(block_bytes=BLOCK_BYTES),
            prepared,
            scale,
            window,
            stride,
            self.description.window_seconds or None,
        )
        if isinstance(eeg, mne.io.BaseRaw):
            return of_raw(eeg, options)
        if isinstance(eeg, mne.BaseEpochs):
            return of_epochs(eeg, options)
        if isinstance(eeg, Tensor):
            eeg = eeg.detach().cpu()
            eeg = (eeg.float() if eeg.dtype == torch.bfloat16 else eeg).numpy()  # NumPy has no such type
        if isinstance(eeg, np.ndarray):
            return of_array(eeg, electrodes, options)
        raise InputError(
            f"{type(eeg).__name__} is no recording: give mne.io.Raw, mne.Epochs, a NumPy array or a tensor"
        )

    def _whole(
        self, verb: str, eeg: Any, batch_size: int, options: dict[str, Any], **more: Any
    ) -> tuple[Windows, dict[str, Any]]:
        self.check(verb)
        if isinstance(eeg, Windows) and options:
            raise UsageError(f"{', '.join(options)}: windows are made already; give it to the call that makes them")
        windows = eeg if isinstance(eeg, Windows) else self.windows(eeg, **options)
        parts = [arrays for _, arrays in self.batches(verb, windows, batch_size=batch_size, **more)]
        return windows, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def tokenize(self, eeg: Any, *, batch_size: int = BATCH, **options: Any) -> Codes:
        """Code of every patch, by a tokenizer."""
        windows, found = self._whole("tokenize", eeg, batch_size, options)
        return Codes(**_common(windows), **found)

    def reconstruct(self, eeg: Any, *, batch_size: int = BATCH, **options: Any) -> Spectra:
        """True spectrum of every patch, and the one that a tokenizer predicts from the codes."""
        windows, found = self._whole("reconstruct", eeg, batch_size, options)
        return Spectra(**_common(windows), **found)

    def embed(self, eeg: Any, *, pool: str = "patches", batch_size: int = BATCH, **options: Any) -> Features:
        """Features of a masked model or a classifier, of every patch, or means over time or over time and electrodes.

        The mean over both is what a classifier's head sees, where that takes the mean and not the CLS token.
        """
        windows, found = self._whole("embed", eeg, batch_size, options, pool=pool)
        return Features(**_common(windows), **found)

    def predict(self, eeg: Any, *, batch_size: int = BATCH, **options: Any) -> Predictions:
        """Probability of every class, by a classifier, or the values of a regression."""
        windows, found = self._whole("predict", eeg, batch_size, options)
        mean = found["probabilities"].mean(axis=0, dtype=np.float64)
        return Predictions(**_common(windows), classes=self.classes, **found, recording_probabilities=mean)


def _common(windows: Windows) -> dict[str, Any]:
    """What all results say of their windows."""
    seconds = windows.samples / PATCH_SAMPLES
    return {
        "recording": windows.name,
        "electrodes": windows.electrodes,
        "times": windows.starts,
        "window": seconds,
    }


def load(path: str | Path, *, device: str = "cpu", averaged: bool = False) -> Model:
    """Model of a checkpoint of any stage, recognised by its keys and shapes; averaged: weights of --model_ema.

    A masked model becomes the trunk of a classifier, see `weights.features`. Raises InputError for a file that is no
    checkpoint or none of this architecture.
    """
    state, found = weights.read(path, averaged=averaged)
    build = weights.features if found.stage == "pretraining" else weights.build
    module, description = build(state, found, path)
    return Model(module, description, where=str(path), device=device)
