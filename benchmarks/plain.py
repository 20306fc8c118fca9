"""The straightforward formulation of the three models, as a colleague would write it from the paper's equations.

What `speed.py` measures the product against, and an oracle for the tests: it shares no code with the product, has the
published state-dict keys and the losses of the engines' first 20 steps (`tests/test_plain.py`). Attention is two matrix
products and a softmax, the nearest code has the smallest squared distance of all codes, sums by code are a product with
a one-hot matrix, and the two masked passes follow each other. One process, no configuration beyond the models' sizes.

Axes as in `layers.py`: B batch, N electrodes, A patches in time, T samples a patch, D width, H heads, L = N*A.
"""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

T = 200
MAX_PATCHES = 16
ROWS = 129  # of the electrode embedding, CLS's included


class TemporalConv(nn.Module):
    """Three convolutions along time. (B, N, A, T) -> (B, N*A, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        C = width // 25
        self.conv1 = nn.Conv2d(1, C, (1, 15), stride=(1, 8), padding=(0, 7))
        self.norm1 = nn.GroupNorm(4, C)
        self.conv2 = nn.Conv2d(C, C, (1, 3), padding=(0, 1))
        self.norm2 = nn.GroupNorm(4, C)
        self.conv3 = nn.Conv2d(C, C, (1, 3), padding=(0, 1))
        self.norm3 = nn.GroupNorm(4, C)

    def forward(self, x: Tensor) -> Tensor:
        B, N, A, _ = x.shape
        x = x.reshape(B, 1, N * A, T)
        x = F.gelu(self.norm1(self.conv1(x)))
        x = F.gelu(self.norm2(self.conv2(x)))
        x = F.gelu(self.norm3(self.conv3(x)))  # (B, C, N*A, 25)
        return x.permute(0, 2, 3, 1).reshape(B, N * A, -1)


class CodeEmbed(nn.Module):
    """A 1x1 convolution from the code width to D. (B, code width, N, A) -> (B, N*A, D)."""

    def __init__(self, code_dim: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(code_dim, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention. (B, L, D) -> (B, L, D)."""

    def __init__(self, width: int, heads: int, *, bias: bool, norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        if bias:
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        if norm:
            self.q_norm = nn.LayerNorm(width // heads, eps=1e-6)
            self.k_norm = nn.LayerNorm(width // heads, eps=1e-6)
        self.proj = nn.Linear(width, width)
        self.bias, self.norm = bias, norm

    def forward(self, x: Tensor) -> Tensor:
        B, L, D = x.shape
        qkv = self.qkv(x)
        if self.bias:
            qkv = qkv + torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        q, k, v = qkv.reshape(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)  # (B, H, L, d) each
        if self.norm:
            q, k = self.q_norm(q), self.k_norm(k)
        weights = (q * self.scale @ k.transpose(-2, -1)).softmax(-1)  # (B, H, L, L)
        return self.proj((weights @ v).transpose(1, 2).reshape(B, L, D))


def mlp(width: int) -> nn.Sequential:
    """Two linear layers with GELU between."""
    parts = {"fc1": nn.Linear(width, 4 * width), "act": nn.GELU(), "fc2": nn.Linear(4 * width, width)}
    return nn.Sequential(OrderedDict(parts))


class Block(nn.Module):
    """A pre-norm transformer block with optional layer scale."""

    def __init__(self, width: int, heads: int, *, bias: bool, norm: bool, init_values: float) -> None:
        super().__init__()
        self.scaled = init_values > 0
        if self.scaled:
            self.gamma_1 = nn.Parameter(init_values * torch.ones(width))
            self.gamma_2 = nn.Parameter(init_values * torch.ones(width))
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, bias=bias, norm=norm)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        if self.scaled:
            x = x + self.gamma_1 * self.attn(self.norm1(x))
            return x + self.gamma_2 * self.mlp(self.norm2(x))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Trunk(nn.Module):
    """Embeddings and blocks."""

    mask_token: Tensor  # of the masked model

    def __init__(
        self, patch_embed: nn.Module, *, width: int, depth: int, heads: int, bias: bool, norm: bool, init_values: float
    ) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, ROWS, width))
        self.time_embed = nn.Parameter(torch.zeros(1, MAX_PATCHES, width))
        self.patch_embed = patch_embed
        blocks = [Block(width, heads, bias=bias, norm=norm, init_values=init_values) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)

    def tokens(self, x: Tensor, A: int, channels: Tensor, mask: Tensor | None = None, cls_row: int = 0) -> Tensor:
        """x: the patch encoder's input -> (B, N*A + 1, D) behind the blocks. cls_row: of `channels`."""
        x = self.patch_embed(x)
        B, L, D = x.shape
        N = L // A
        if mask is not None:
            x = torch.where(mask.unsqueeze(-1), self.mask_token, x)
        x = x + self.pos_embed[:, channels[1:]].unsqueeze(2).expand(1, N, A, D).reshape(1, L, D)
        x = x + self.time_embed[:, :A].unsqueeze(1).expand(1, N, A, D).reshape(1, L, D)
        cls_token = (self.cls_token + self.pos_embed[:, channels[cls_row]].unsqueeze(1)).expand(B, -1, -1)
        x = torch.cat((cls_token, x), dim=1)
        for block in self.blocks:
            x = block(x)
        return x


class TokenTrunk(Trunk):
    """The tokenizer's encoder or decoder: patch tokens behind a LayerNorm."""

    def __init__(self, patch_embed: nn.Module, *, width: int, depth: int, heads: int) -> None:
        super().__init__(patch_embed, width=width, depth=depth, heads=heads, bias=True, norm=False, init_values=0.0)
        self.fc_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor, A: int, channels: Tensor) -> Tensor:
        """x: the patch encoder's input -> (B, N*A, D)."""
        return self.fc_norm(self.tokens(x, A, channels)[:, 1:])


class Codebook(nn.Module):
    """The codebook's tensors under their published names."""

    def __init__(self, n_code: int, code_dim: int) -> None:
        super().__init__()
        rows = F.normalize(torch.randn(n_code, code_dim), dim=-1)
        self.weight = nn.Parameter(rows, requires_grad=False)
        self.cluster_size = nn.Parameter(torch.zeros(n_code), requires_grad=False)
        self.embed_avg = nn.Parameter(rows.clone(), requires_grad=False)
        self.register_buffer("initted", torch.ones(1))


class Quantizer(nn.Module):
    """Nearest code by squared distance; rows follow their inputs through a one-hot matrix."""

    cluster_size: Tensor

    def __init__(self, n_code: int, code_dim: int, decay: float = 0.99) -> None:
        super().__init__()
        self.n_code, self.decay = n_code, decay
        self.register_buffer("cluster_size", torch.zeros(n_code))
        self.embedding = Codebook(n_code, code_dim)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z: (B, L, code width) -> quantised (B, L, code width), codes (B, L), loss ()."""
        z = F.normalize(z.to(self.embedding.weight.dtype), dim=-1)
        vectors = z.flatten(0, 1)  # (n, code width)
        rows = self.embedding.weight
        distances = vectors.pow(2).sum(1, keepdim=True) + rows.pow(2).sum(1) - 2 * vectors @ rows.t()  # (n, K)
        codes = distances.argmin(1)
        quantized = rows[codes].view_as(z)
        loss = F.mse_loss(z, quantized.detach())
        with torch.no_grad():
            one_hot = F.one_hot(codes, self.n_code).to(z.dtype)  # (n, K)
            counts = one_hot.sum(0)
            self.cluster_size.mul_(self.decay).add_(counts, alpha=1 - self.decay)
            if self.training:
                means = F.normalize(one_hot.t() @ vectors / counts.clamp(min=1).unsqueeze(1), dim=-1)
                moved = F.normalize(self.decay * rows + (1 - self.decay) * means, dim=-1)
                rows.copy_(torch.where(counts.unsqueeze(1) > 0, moved, rows))
        return z + (quantized - z).detach(), codes.view(z.shape[:-1]), loss


def head(width: int, outputs: int) -> nn.Sequential:
    """Linear, Tanh, Linear."""
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs))


def standardize(x: Tensor) -> Tensor:
    """z-score over a sample."""
    return (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)


class VQNSP(nn.Module):
    """The tokenizer."""

    def __init__(self, *, depths: tuple[int, int] = (12, 3), width: int = 200, n_code: int = 8192) -> None:
        super().__init__()
        code_dim, heads = 64, 10
        self.encoder = TokenTrunk(TemporalConv(width), width=width, depth=depths[0], heads=heads)
        self.decoder = TokenTrunk(CodeEmbed(code_dim, width), width=width, depth=depths[1], heads=heads)
        self.quantize = Quantizer(n_code, code_dim)
        self.encode_task_layer = head(width, code_dim)
        self.decode_task_layer = head(width, T)
        self.decode_task_layer_angle = head(width, T)

    def quantized(self, x: Tensor, channels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, N, A, T) -> quantised (B, N*A, code width), codes (B, N*A), loss."""
        tokens = self.encoder(x, x.shape[2], channels)
        with torch.autocast(x.device.type, enabled=False):
            return self.quantize(self.encode_task_layer(tokens.to(x.dtype)))

    def codes(self, x: Tensor, channels: Tensor) -> Tensor:
        """x: (B, N, A, T) -> (B, N*A)."""
        with torch.no_grad():
            return self.quantized(x, channels)[1]

    def forward(self, eeg: Tensor, channels: Tensor) -> Tensor:
        """eeg: (B, N, A*T), units of 100 uV -> the sum of the three losses; their values are kept in `losses`."""
        B, N, samples = eeg.shape
        x = eeg.view(B, N, samples // T, T)
        spectrum = torch.fft.fft(x)
        amplitude, phase = (standardize(y).flatten(1, 2) for y in (spectrum.abs(), spectrum.angle()))
        quantized, _, quant_loss = self.quantized(x, channels)
        A = x.shape[2]
        tokens = self.decoder(quantized.transpose(1, 2).reshape(B, -1, N, A), A, channels)
        rec_loss = F.mse_loss(self.decode_task_layer(tokens).to(x.dtype), amplitude)
        angle_loss = F.mse_loss(self.decode_task_layer_angle(tokens).to(x.dtype), phase)
        loss = quant_loss + rec_loss + angle_loss
        self.losses = [part.detach() for part in (loss, quant_loss, rec_loss, angle_loss)]
        return loss


class Student(Trunk):
    """The masked trunk; CLS gets the position of the input's first electrode."""

    def __init__(self, *, width: int, depth: int, heads: int, init_values: float) -> None:
        conv = TemporalConv(width)
        super().__init__(conv, width=width, depth=depth, heads=heads, bias=False, norm=True, init_values=init_values)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor, channels: Tensor, mask: Tensor) -> Tensor:
        """x: (B, N, A, T); mask: (B, N*A) -> (B, N*A, D)."""
        return self.norm(self.tokens(x, x.shape[2], channels, mask, cls_row=1))[:, 1:]


class MaskedModel(nn.Module):
    """Masked code prediction, one pass after the other."""

    def __init__(
        self, *, width: int = 200, depth: int = 12, heads: int = 10, vocab_size: int = 8192, init_values: float = 0.1
    ) -> None:
        super().__init__()
        self.student = Student(width=width, depth=depth, heads=heads, init_values=init_values)
        self.lm_head = nn.Linear(width, vocab_size)

    def forward(self, x: Tensor, channels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x: (B, N, A, T); mask: (B, N*A) -> logits at the masked places, logits at the others."""
        logits = self.lm_head(self.student(x, channels, mask)[mask])
        return logits, self.lm_head(self.student(x, channels, ~mask)[~mask])

    def loss(self, x: Tensor, channels: Tensor, mask: Tensor, codes: Tensor) -> Tensor:
        """codes: (B, N*A)."""
        logits, logits_sym = self(x, channels, mask)
        return F.cross_entropy(logits, codes[mask]) + F.cross_entropy(logits_sym, codes[~mask])


class Classifier(Trunk):
    """The classifier with mean pooling, without drop path."""

    def __init__(
        self, *, width: int = 200, depth: int = 12, heads: int = 10, num_classes: int = 1, init_values: float = 0.1
    ) -> None:
        conv = TemporalConv(width)
        super().__init__(conv, width=width, depth=depth, heads=heads, bias=False, norm=True, init_values=init_values)
        self.fc_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)

    def embed(self, x: Tensor, channels: Tensor) -> Tensor:
        """x: (B, N, A, T) -> what the head sees (B, D)."""
        return self.fc_norm(self.tokens(x, x.shape[2], channels)[:, 1:].mean(1))

    def forward(self, x: Tensor, channels: Tensor) -> Tensor:
        """x: (B, N, A, T) -> (B, outputs)."""
        return self.head(self.embed(x, channels))


def initialize(model: nn.Module) -> nn.Module:
    """Draw what PyTorch leaves at zero and linear weights, std 0.02; output projections of block i by sqrt(2 i)."""
    for name, parameter in model.named_parameters():
        if name.split(".")[-1] in ("cls_token", "mask_token", "pos_embed", "time_embed"):
            nn.init.trunc_normal_(parameter, std=0.02)
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
            if name.endswith(("attn.proj", "mlp.fc2")):
                block = int(name.split("blocks.")[1].split(".")[0])
                with torch.no_grad():
                    part.weight.div_(math.sqrt(2 * (block + 1)))
    return model
