"""The neural tokenizer: EEG patches to codes, trained by predicting each patch's Fourier spectrum (VQ-NSP).

Paper, section 2.2. Spectrum targets, the tokenizer, loading a trained one, its sizes. Not here: the codebook
(`norm_ema_quantizer.py`) and the training loop (`engine_for_vqnsp.py`).
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange
from timm.models import create_model
from torch import Tensor, nn
from torch.nn import functional as F

from electrodes import PUBLISHED_ELECTRODES
from errors import InputError
from layers import (
    LAYER_NORM_EPS,
    PATCH_SAMPLES,
    Channels,
    CodeEmbed,
    TemporalConv,
    Trunk,
    check_window,
    initialize_weights,
    load_strictly,
    matmul_type,
    register_sizes,
    to_patches,
)
from norm_ema_quantizer import NormEMAVectorQuantizer, full_precision

PHASE_LOSSES = {"angle": 1, "sincos": 2}  # and the numbers that say one phase


def standardize(x: Tensor) -> Tensor:
    """z-score each sample over all axes, with the unbiased std; a flat one becomes zeros. x: (B, N, A, T) -> same."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    std = x.std(dim=(1, 2, 3), keepdim=True)
    return (x - mean) / torch.where(std > 0, std, 1.0)


def spectrum_targets(patches: Tensor, phase_loss: str = "angle") -> tuple[Tensor, Tensor]:
    """Compute the Fourier amplitude and phase of each patch, z-scored. patches: (B, N, A, T) -> twice (B, N*A, T).

    phase_loss: "sincos" gives the phase as a point on the unit circle, (B, N*A, 2 T): T cosines, then T sines.
    Source: paper, equations 6 and 7; z-scores over the whole sample as in the released code.
    """
    # Not abs and angle: kernels of complex numbers are compiled at run time on a GPU. Same values, same time on a CPU.
    real, imaginary = torch.view_as_real(torch.fft.fft(patches)).movedim(-1, 0).contiguous()
    size = torch.hypot(real, imaginary)
    if phase_loss == "sincos":
        phase = torch.stack((real, imaginary), -2) / torch.where(size > 0, size, 1.0).unsqueeze(-2)  # (B, N, A, 2, T)
        phase = phase.flatten(-2)
    else:
        phase = standardize(torch.atan2(imaginary, real))
    return rearrange(standardize(size), "B N A T -> B (N A) T"), rearrange(phase, "B N A T -> B (N A) T")


def angles(points: Tensor) -> Tensor:
    """Compute the angles of points in the plane. points: (..., 2 T), cosines before sines -> (..., T), radians."""
    cosines, sines = points.chunk(2, dim=-1)
    return torch.atan2(sines, cosines)


def signal_of(patches: Tensor, amplitude: Tensor, phase: Tensor, phase_loss: str = "angle") -> Tensor:
    """Turn predicted spectra into EEG by the inverse Fourier transform. All (B, N, A, T) -> (B, N, A, T).

    patches: the true ones. Predictions are z-scores, which have no scale: they get mean and deviation of these spectra.
    phase_loss: "sincos" says that phases are radians. Amplitudes below 0 become 0; the real part is taken.
    """
    real, imaginary = torch.view_as_real(torch.fft.fft(patches.float())).unbind(-1)
    amplitude = _unstandardize(amplitude.float(), torch.hypot(real, imaginary)).clamp(min=0)
    if phase_loss == "angle":
        phase = _unstandardize(phase.float(), torch.atan2(imaginary, real))
    return torch.fft.ifft(torch.complex(amplitude * phase.cos(), amplitude * phase.sin())).real


def _unstandardize(z: Tensor, x: Tensor) -> Tensor:
    """Give z-scores mean and deviation of each sample of x."""
    return z * x.std(dim=(1, 2, 3), keepdim=True) + x.mean(dim=(1, 2, 3), keepdim=True)


def phase_loss_of(weights: Iterable[str]) -> str:
    """Return the kind of phase that a tokenizer with these keys predicts: one of PHASE_LOSSES."""
    return next((kind for kind in PHASE_LOSSES if f"decode_task_layer_{kind}.0.weight" in set(weights)), "angle")


class TokenTrunk(Trunk):
    """Encoder or decoder of the tokenizer: a trunk with a LayerNorm on the patch tokens."""

    def __init__(self, patch_embed: nn.Module, **sizes: Any) -> None:
        """patch_embed: TemporalConv for the encoder, CodeEmbed for the decoder; sizes as for Trunk."""
        super().__init__(patch_embed, qkv_bias=True, qk_norm=False, **sizes)
        self.fc_norm = nn.LayerNorm(self.width, eps=LAYER_NORM_EPS)
        self.initialize()

    def forward(self, x: Tensor, channels: Channels) -> Tensor:
        """x: (B, N, A, T) or (B, code width, N, A) -> patch tokens (B, N*A, D)."""
        return self.fc_norm(self.run_blocks(self.embed(x, channels))[:, 1:])  # (B, N*A, D)


def head(width: int, outputs: int) -> nn.Sequential:
    """Build the map from tokens to code space or spectra: Linear, Tanh, Linear. (..., width) -> (..., outputs)."""
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs))


class VQNSP(nn.Module):
    """Vector-quantised neural spectrum prediction: encoder, codebook, decoder, amplitude and phase heads."""

    def __init__(
        self,
        *,
        encoder_depth: int,
        decoder_depth: int,
        width: int = 200,
        heads: int = 10,
        n_code: int = 8192,
        code_dim: int = 64,
        EEG_size: int = 1600,
        decay: float = 0.99,
        quantize_kmeans_init: bool = True,
        smooth_l1_loss: bool = False,
        phase_loss: str = "angle",
        num_electrodes: int = PUBLISHED_ELECTRODES,
    ) -> None:
        """n_code x code_dim: the codebook. decay: of its rows. EEG_size: nominal window in samples, checked only.

        quantize_kmeans_init: start from k-means of the first training batch. smooth_l1_loss: instead of squared error.
        phase_loss: distance between angles, or between points on the unit circle ("sincos").
        """
        super().__init__()
        self.EEG_size = check_window(EEG_size)
        sizes = {"width": width, "heads": heads, "num_electrodes": num_electrodes}
        self.encoder = TokenTrunk(TemporalConv(width), depth=encoder_depth, **sizes)
        self.decoder = TokenTrunk(CodeEmbed(code_dim, width), depth=decoder_depth, **sizes)
        self.quantize = NormEMAVectorQuantizer(n_code, code_dim, decay=decay, kmeans_init=quantize_kmeans_init)
        self.encode_task_layer = head(width, code_dim)
        self.decode_task_layer = head(width, PATCH_SAMPLES)
        # The head is named after what it predicts, so that no file is read as the other kind.
        self.phase_loss, self._phase_head = phase_loss, f"decode_task_layer_{phase_loss}"
        self.add_module(self._phase_head, head(width, PHASE_LOSSES[phase_loss] * PATCH_SAMPLES))
        for part in (self.encode_task_layer, self.decode_task_layer, self.get_submodule(self._phase_head)):
            initialize_weights(part)
        self.distance = F.smooth_l1_loss if smooth_l1_loss else F.mse_loss

    def to_code_space(self, x: Tensor, input_chans: Channels = None) -> Tensor:
        """Encode before quantisation. x: (B, N, A, T), units of 100 uV -> (B, N*A, code width), not half."""
        with self._not_bf16(x):
            tokens = self.encoder(x, input_chans)  # (B, N*A, D)
        with full_precision(x.device):  # half precision often gives another code
            return self.encode_task_layer(tokens.to(self.encode_task_layer[0].weight.dtype))

    def _not_bf16(self, x: Tensor) -> AbstractContextManager[Any]:
        """Encode in fp16 on a GPU, in float32 on a CPU, where autocast says bf16 and no gradient is wanted.

        In bf16 9.3 % of the patches get another code than in float32, in fp16 about a seventh as many.
        """
        if torch.is_grad_enabled() or matmul_type(x) != torch.bfloat16:
            return nullcontext()
        return torch.autocast(x.device.type, dtype=torch.float16, enabled=x.is_cuda)

    def halve_encoder(self) -> None:
        """Keep the encoder's matrices in fp16, to which autocast would round them for each batch: the same codes."""
        for part in self.encoder.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                part.half()

    def encode(self, x: Tensor, input_chans: Channels = None) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise. x: (B, N, A, T) -> quantised (B, width, N, A), codes (B*N*A,) int64, quantiser loss ()."""
        quantized, codes, loss = self.quantize(self.to_code_space(x, input_chans))
        return rearrange(quantized, "B (N A) C -> B C N A", N=x.shape[1]), codes, loss

    def decode(self, quantized: Tensor, input_chans: Channels = None) -> tuple[Tensor, Tensor]:
        """Predict the spectrum. quantized: (B, width, N, A) -> amplitude and phase as in `spectrum_targets`."""
        tokens = self.decoder(quantized, input_chans)
        return self.decode_task_layer(tokens), self.get_submodule(self._phase_head)(tokens)

    def forward(self, eeg: Tensor, input_chans: Channels = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss. eeg: (B, N, A*T), units of 100 uV -> loss (), its parts by name, without gradient.

        Raises InputError for other lengths than 1 to 16 whole seconds.
        """
        patches = to_patches(eeg)  # (B, N, A, T)
        amplitude, phase = spectrum_targets(patches, self.phase_loss)
        quantized, _, quant_loss = self.encode(patches, input_chans)
        rec_amplitude, rec_phase = self.decode(quantized, input_chans)
        rec_loss = self.distance(rec_amplitude.to(amplitude.dtype), amplitude)
        # Cosine and sine add up: a prediction that knows nothing costs 1, as of a z-scored angle.
        rec_angle_loss = self.distance(rec_phase.to(phase.dtype), phase) * PHASE_LOSSES[self.phase_loss]
        loss = quant_loss + rec_loss + rec_angle_loss
        split = "train" if self.training else "val"
        names = ("quant_loss", "rec_loss", "rec_angle_loss", "total_loss")
        parts = zip(names, (quant_loss, rec_loss, rec_angle_loss, loss), strict=True)
        return loss, {f"{split}/{name}": part.detach() for name, part in parts}

    @torch.no_grad()
    def get_tokens(self, x: Tensor, input_chans: Channels = None) -> dict[str, Tensor]:
        """Quantise. x: (B, N, A, T) -> `token`: codes (B, N*A), `input_img`: x, `quantize`: rows (B, N*A, width)."""
        quantized, codes, _ = self.encode(x, input_chans)
        rows = rearrange(quantized, "B C N A -> B (N A) C")
        return {"token": codes.view(len(x), -1), "input_img": x, "quantize": rows}

    @torch.no_grad()
    def get_codebook_indices(self, x: Tensor, input_chans: Channels = None) -> Tensor:
        """Look up the code of every patch, without counting it. x: (B, N, A, T), units of 100 uV -> (B, N*A) int64."""
        return self.quantize.nearest(self.to_code_space(x, input_chans)).view(len(x), -1)


def load_tokenizer(
    name: str,
    weights: dict[str, Tensor],
    *,
    where: str | Path,
    codebook_size: int | None = None,
    codebook_dim: int | None = None,
    num_electrodes: int = PUBLISHED_ELECTRODES,
) -> VQNSP:
    """Build tokenizer `name` with the weights of a stage 1 checkpoint, frozen and in evaluation mode.

    The sizes of codebook and electrode table come from the weights. where: their file, for messages.
    Raises InputError if they contradict `codebook_size`, `codebook_dim` or `num_electrodes`.
    """
    n_code, code_dim = weights["quantize.embedding.weight"].shape
    for flag, asked, held in (("size", codebook_size, n_code), ("dim", codebook_dim, code_dim)):
        if asked is not None and asked != held:
            raise InputError(
                f"{where} holds a codebook of {flag} {held}, --codebook_{flag} says {asked}: leave the flag "
                f"out or set --codebook_{flag} {held}"
            )
    known = weights["encoder.pos_embed"].shape[1] - 1 if "encoder.pos_embed" in weights else PUBLISHED_ELECTRODES
    if known < num_electrodes:
        raise InputError(
            f"{where} knows {known} electrodes, --num_electrodes says {num_electrodes}: train the tokenizer with it too"
        )
    sizes = {"n_code": n_code, "code_dim": code_dim, "num_electrodes": known}
    options: dict[str, Any] = {**sizes, "phase_loss": phase_loss_of(weights)}
    tokenizer = cast(VQNSP, create_model(name, **options))
    load_strictly(tokenizer, weights, where=f"{where} into {name}")
    return tokenizer.eval().requires_grad_(False)


SIZES: dict[str, dict[str, Any]] = {
    "vqnsp_encoder_base_decoder_3x200x12": {"encoder_depth": 12, "decoder_depth": 3},
    "vqnsp_encoder_large_decoder_3x200x24": {"encoder_depth": 24, "decoder_depth": 3},
    "vqnsp_encoder_tiny_decoder_1x200x4": {"encoder_depth": 4, "decoder_depth": 1},  # ours: tests and ablations
}
register_sizes(SIZES, VQNSP, __name__)
