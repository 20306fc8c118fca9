"""Building blocks of the three models: patch encoders, attention, transformer block and trunk; loading weights.

Paper, sections 2.1 and 2.2. The trunk is a base class, because a member would prefix every state-dict key and
published checkpoints would not load. Not here: the quantiser (`norm_ema_quantizer.py`), the models and their sizes
(`modeling_*.py`).

Axes: B batch, N electrodes, A patches in time, T samples a patch, D width, H heads, L = N*A patch tokens.
"""

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange, repeat
from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from attention import attend
from electrodes import PUBLISHED_ELECTRODES
from errors import InputError

PATCH_SAMPLES = 200  # T: one second at 200 Hz
MAX_PATCHES = 16  # rows of the time embedding: the longest window in seconds
LAYER_NORM_EPS = 1e-6
INIT_STD = 0.02
MESSAGE_WIDTH = 300  # characters of the differences between a file and a model
MEMORY_BUDGET = 0.7  # of what compiled blocks keep for the gradient; the rest, no matrix product, is computed again
CACHED_TOKENS = 1024  # sent through all blocks together on a CPU without gradients: they stay in its cache

Channels = Sequence[int] | Tensor | None  # `[0, row, row, ...]` of length N + 1; None: every row in order


def check_window(samples: int) -> int:
    """Return `samples` if the models take windows of this length: 1 to 16 whole seconds. Raises InputError if not."""
    if samples < PATCH_SAMPLES or samples % PATCH_SAMPLES or samples > MAX_PATCHES * PATCH_SAMPLES:
        raise InputError(
            f"a window of {samples} samples does not fit the models: allowed are multiples of {PATCH_SAMPLES} up to "
            f"{MAX_PATCHES * PATCH_SAMPLES} ({MAX_PATCHES} s, the rows of the time embedding)"
        )
    return samples


def to_patches(eeg: Tensor) -> Tensor:
    """Split EEG into one-second patches. eeg: (B, N, A*T) -> (B, N, A, T).

    Raises InputError for other lengths than 1 to 16 whole seconds. Source: paper, section 2.1.
    """
    check_window(eeg.shape[-1])
    return rearrange(eeg, "B N (A T) -> B N A T", T=PATCH_SAMPLES)


class TemporalConv(nn.Module):
    """Encode raw EEG as tokens: three convolutions along time. (B, N, A, T) -> (B, N*A, D).

    D = 25 C, where C (8, 16 or 32) is the number of convolution channels. The N*A patches are the image's other axis,
    so GroupNorm's statistics run over all patches of a sample. Source: paper, section 2.1, "Temporal Encoder".
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        C = width // (PATCH_SAMPLES // 8)  # the first convolution's stride is 8: 25 steps a patch
        self.conv1 = nn.Conv2d(1, C, kernel_size=(1, 15), stride=(1, 8), padding=(0, 7))
        self.norm1 = nn.GroupNorm(4, C)
        self.conv2 = nn.Conv2d(C, C, kernel_size=(1, 3), padding=(0, 1))
        self.norm2 = nn.GroupNorm(4, C)
        self.conv3 = nn.Conv2d(C, C, kernel_size=(1, 3), padding=(0, 1))
        self.norm3 = nn.GroupNorm(4, C)

    def forward(self, eeg: Tensor) -> Tensor:
        """eeg: (B, N, A, T), units of 100 uV -> (B, N*A, D)."""
        x = rearrange(eeg, "B N A T -> B 1 (N A) T")
        x = F.gelu(self.norm1(self.conv1(x)))  # (B, C, N*A, 25)
        x = F.gelu(self.norm2(self.conv2(x)))
        x = F.gelu(self.norm3(self.conv3(x)))
        return rearrange(x, "B C L S -> B L (S C)")


class CodeEmbed(nn.Module):
    """Embed codebook rows as tokens of the decoder: a 1x1 convolution. (B, code width, N, A) -> (B, N*A, D)."""

    def __init__(self, code_dim: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(code_dim, width, kernel_size=1)

    def forward(self, codes: Tensor) -> Tensor:
        """codes: (B, code width, N, A) -> (B, N*A, D)."""
        rows = rearrange(codes, "B C N A -> B (N A) C")
        # As a linear layer, because then the gradient keeps the weight's memory order, which DDP wants.
        return F.linear(rows, self.proj.weight.flatten(1), self.proj.bias)


class QKV(nn.Linear):
    """Matrix of queries, keys and values; the bias is an argument of forward. (B, L, D) -> (B, L, 3 D)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 3 * width, bias=False)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x: (B, L, D); bias: (3 D,) -> (B, L, 3 D)."""
        return F.linear(x, self.weight, bias)


class Attention(nn.Module):
    """Multi-head self-attention. qkv_bias: of q and v alone; qk_norm: LayerNorm over each head's q and k."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool, qk_norm: bool, attn_drop: float, drop: float) -> None:
        super().__init__()
        self.heads = heads
        self.attn_drop = attn_drop
        self.q_bias = nn.Parameter(torch.zeros(width)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if qkv_bias else None
        self.qkv = QKV(width)
        self.q_norm = nn.LayerNorm(width // heads, eps=LAYER_NORM_EPS) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads, eps=LAYER_NORM_EPS) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, L, D) -> (B, L, D)."""
        bias = None
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = self.qkv(x, bias)  # (B, L, 3 D); the module is called, so that LoRA can wrap it
        q, k, v = rearrange(qkv, "B L (three H d) -> three B H L d", three=3, H=self.heads)
        # Under autocast LayerNorm returns float32 and v is half: attention wants one type.
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        x = attend(q, k, v, dropout=self.attn_drop if self.training else 0.0)
        return self.proj_drop(self.proj(rearrange(x, "B H L d -> B L (H d)")))  # (B, L, D)


def matmul_type(x: Tensor) -> torch.dtype:
    """Return the type in which autocast multiplies x: without autocast, its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class GeluLinear(torch.autograd.Function):
    """GELU, then a linear layer. The gradient computes GELU again: of two large tensors only `hidden` is kept.

    torch's checkpoint does the same and takes 2 % more time of a step on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """hidden: (..., n); weight: (m, n); bias: (m,) -> (..., m)."""
        kind = matmul_type(weight)
        ctx.save_for_backward(hidden, weight)
        return F.linear(F.gelu(hidden).to(kind), weight.to(kind), bias.to(kind))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """grad: (..., m) -> gradients of hidden, weight (None if it is frozen) and bias."""
        hidden, weight = ctx.saved_tensors
        d_hidden = torch.ops.aten.gelu_backward((grad @ weight.to(grad.dtype)).to(hidden.dtype), hidden)
        rows = grad.flatten(0, -2)
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = (rows.t() @ F.gelu(hidden).to(grad.dtype).flatten(0, -2)).to(weight.dtype)
        return d_hidden, d_weight, rows.sum(0, dtype=weight.dtype)


class Mlp(nn.Module):
    """Two linear layers with exact (erf) GELU between, hidden width 4 D. (B, L, D) -> (B, L, D)."""

    def __init__(self, width: int, *, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, L, D) -> (B, L, D)."""
        hidden = self.fc1(x)  # (B, L, 4 D)
        return self.drop(GeluLinear.apply(hidden, self.fc2.weight, self.fc2.bias))


class Block(nn.Module):
    """Pre-norm transformer block with layer scale (initially `init_values`; 0: none) and drop path.

    drop: of attention and MLP; drop_path: of this block; attention: the other options of Attention.
    """

    def __init__(
        self, width: int, heads: int, *, init_values: float, drop: float, drop_path: float, **attention: Any
    ) -> None:
        super().__init__()
        scaled = init_values > 0
        self.gamma_1 = nn.Parameter(init_values * torch.ones(width)) if scaled else None
        self.gamma_2 = nn.Parameter(init_values * torch.ones(width)) if scaled else None
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = Attention(width, heads, drop=drop, **attention)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width, drop=drop)
        self.drop_path = DropPath(drop_path)

    def draw_paths(self, x: Tensor) -> Tensor | None:
        """Draw drop path for `forward`: factors of each sample's attention and MLP, (2, B, 1, 1). None: all are 1."""
        if not self.drop_path.drop_prob or not self.drop_path.training:
            return None
        return torch.stack([self.drop_path(x.new_ones(len(x), 1, 1)) for _ in range(2)])

    def forward(self, x: Tensor, paths: Tensor | None = None) -> Tensor:
        """x: (B, L, D) -> (B, L, D). paths: from `draw_paths`, outside, so that all rates share a compiled graph."""
        attended = self.attn(self.norm1(x))
        attended = attended if self.gamma_1 is None else self.gamma_1 * attended
        x = x + (attended if paths is None else attended * paths[0])
        hidden = self.mlp(self.norm2(x))
        hidden = hidden if self.gamma_2 is None else self.gamma_2 * hidden
        return x + (hidden if paths is None else hidden * paths[1])


class Trunk(nn.Module):
    """Embeddings and transformer blocks: the base class of tokenizer, masked model and classifier.

    The released code has a copy of it for each. Where these differ there is an argument here: `cls_position_row`, and
    `cut` and `convolutions` of `initialize`.
    """

    def __init__(
        self,
        patch_embed: nn.Module,
        *,
        width: int,
        depth: int,
        heads: int,
        qkv_bias: bool,
        qk_norm: bool,
        init_values: float = 0.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        use_abs_pos_emb: bool = True,
        num_electrodes: int = PUBLISHED_ELECTRODES,
        cls_position_row: str = "own",
        masked: bool = False,
        grad_checkpoint: bool = False,
    ) -> None:
        """Build the trunk. A subclass adds its norm and head, then calls `initialize`.

        patch_embed: module from the model's input to (B, N*A, D). cls_position_row: "own" gives CLS row 0,
        "first_electrode" the row of the input's first electrode. masked: add the mask token. drop_path_rate: of the
        last block; rates rise linearly from 0. grad_checkpoint: compute each block again for the gradient.
        """
        super().__init__()
        assert cls_position_row in ("own", "first_electrode")
        self.cls_position_row, self.grad_checkpoint = cls_position_row, grad_checkpoint
        self.width = width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width)) if masked else None
        self.pos_embed = nn.Parameter(torch.zeros(1, num_electrodes + 1, width)) if use_abs_pos_emb else None
        self.time_embed = nn.Parameter(torch.zeros(1, MAX_PATCHES, width))
        self.embed_drop = nn.Dropout(drop_rate)
        self.patch_embed = patch_embed
        rates = [drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        parts: dict[str, Any] = {"qkv_bias": qkv_bias, "qk_norm": qk_norm, "init_values": init_values}
        drops: dict[str, Any] = {"drop": drop_rate, "attn_drop": attn_drop_rate}
        self.blocks = nn.ModuleList(Block(width, heads, **parts, **drops, drop_path=rate) for rate in rates)

    def position_embedding(self, table: Tensor, channels: Channels, electrodes: int) -> Tensor:
        """Look up the position embedding (`table`) of CLS and each electrode: (1, N + 1, D).

        Raises InputError if `channels` does not name N electrodes or names a row that the table does not have.
        """
        rows = table.shape[1]
        index = torch.arange(rows, device=table.device) if channels is None else torch.as_tensor(channels).long()
        if index.shape != (electrodes + 1,):
            raise InputError(
                f"input_chans has {index.numel()} entries for {electrodes} electrodes: pass [0, row, row, ...] of "
                f"length {electrodes + 1}, see electrodes.embedding_rows (None: all {rows - 1} electrodes in order)"
            )
        # A tensor on a GPU is trusted: to check it, every step would wait for the GPU.
        outside = [] if index.is_cuda else index[(index < 0) | (index >= rows)].tolist()
        if outside:
            raise InputError(
                f"input_chans names row {outside[0]}, the position embedding has rows 0 to {rows - 1}: for electrodes "
                "beyond them build the model with num_electrodes=136 (--num_electrodes 136) and train it from scratch"
            )
        if self.cls_position_row == "first_electrode":
            index = torch.cat((index[1:2], index[1:]))
        return table[:, index.to(table.device)]  # (1, N + 1, D)

    def embed(self, x: Tensor, channels: Channels, mask: Tensor | None = None) -> Tensor:
        """Make CLS and patch tokens with their embeddings. x: (B, N, A, T) or (B, code width, N, A) -> (B, N*A + 1, D).

        mask: (B, N*A) bool, true where the mask token replaces the patch, before positions are added; or (M*B, N*A),
        M masks for each sample -> (M*B, N*A + 1, D). Each patch is encoded once in either case.
        """
        N, A = (x.shape[2], x.shape[3]) if isinstance(self.patch_embed, CodeEmbed) else (x.shape[1], x.shape[2])
        check_window(A * PATCH_SAMPLES)
        tokens = self.patch_embed(x)  # (B, N*A, D)
        if mask is not None:
            assert self.mask_token is not None, "this trunk has no mask token (masked=False)"
            hidden = mask.view(-1, *tokens.shape[:2], 1)  # (M, B, N*A, 1)
            tokens = torch.where(hidden, self.mask_token.to(tokens.dtype), tokens).flatten(0, 1)  # (M*B, N*A, D)
        cls_token = self.cls_token.expand(len(tokens), -1, -1)
        if self.pos_embed is not None:
            position = self.position_embedding(self.pos_embed, channels, N)
            cls_token = cls_token + position[:, :1]
            tokens = tokens + repeat(position[:, 1:], "1 N D -> 1 (N A) D", A=A)
        tokens = tokens + repeat(self.time_embed[:, :A], "1 A D -> 1 (N A) D", N=N)
        return self.embed_drop(torch.cat((cls_token, tokens), dim=1))  # (B, N*A + 1, D)

    def run_blocks(self, tokens: Tensor) -> Tensor:
        """tokens: (B, N*A + 1, D) -> (B, N*A + 1, D)."""
        size = max(1, CACHED_TOKENS // tokens.shape[1])  # samples
        if len(tokens) > size and not (tokens.is_cuda or torch.is_grad_enabled()):
            return torch.cat([self.run_blocks(piece) for piece in tokens.split(size)])
        for block in self.blocks:
            paths = block.draw_paths(tokens)  # type: ignore[operator]  # a Block's
            if self.grad_checkpoint and block.training:  # frozen blocks are in evaluation mode and keep nothing
                # torch restores the random state for the second pass, so dropout draws the same numbers again.
                tokens = checkpoint(block, tokens, paths, use_reentrant=False)
            else:
                tokens = block(tokens, paths)
        return tokens

    def initialize(self, *, cut: float = 2.0, convolutions: bool = False) -> None:
        """Draw weights from a normal with std 0.02, cut at +-`cut` (absolute); divide block i's outputs by sqrt(2 i).

        convolutions: draw them the same way, instead of PyTorch's. i counts from 1.
        """
        for table in (self.cls_token, self.mask_token, self.pos_embed, self.time_embed):
            if table is not None:
                nn.init.trunc_normal_(table, std=INIT_STD, a=-cut, b=cut)
        initialize_weights(self, cut=cut, convolutions=convolutions)
        with torch.no_grad():
            for i, block in enumerate(self.blocks, start=1):
                assert isinstance(block, Block)
                block.attn.proj.weight.div_(math.sqrt(2 * i))
                block.mlp.fc2.weight.div_(math.sqrt(2 * i))


def initialize_weights(module: nn.Module, *, cut: float = 2.0, convolutions: bool = False) -> None:
    """Draw truncated normal weights for linear layers (and convolutions); biases 0. Norms keep weight 1 and bias 0."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d) if convolutions else nn.Linear):
            nn.init.trunc_normal_(part.weight, std=INIT_STD, a=-cut, b=cut)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def compile_blocks(model: nn.Module, *, backend: str = "inductor") -> None:
    """Compile the blocks with dynamic shapes: all blocks, batches and montages share one graph."""
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # torch would go on uncompiled, with one warning
    torch._dynamo.config.recompile_limit = 16  # frozen blocks, evaluation and batches of one window need 7
    torch._dynamo.config.optimize_ddp = False  # splits graphs for DDP, which blocks are too small for
    torch._functorch.config.activation_memory_budget = MEMORY_BUDGET
    for part in model.modules():
        if isinstance(part, Block):
            part.compile(dynamic=True, backend=backend)


def load_strictly(module: nn.Module, weights: dict[str, Tensor], *, where: str) -> None:
    """Load weights that must all fit. Raises InputError with the first differences if they do not."""
    adapted, adaptable = (any(".lora_" in key for key in keys) for keys in (weights, module.state_dict()))
    if adapted != adaptable:
        way_out = "use the --lora of its training, or take model-merged.pth" if adapted else "leave out --lora"
        raise InputError(f"{where}: only the {'file' if adapted else 'model'} has LoRA adapters: {way_out}")
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        differences = textwrap.shorten(str(error).partition(":")[2], MESSAGE_WIDTH).rstrip(".")
        way_out = "choose the model of the same size, and the --phase_loss, or --pool and --dataset, of its training"
        raise InputError(f"{where}: another architecture: {differences}: {way_out}") from error


def register_sizes(sizes: dict[str, dict[str, Any]], build: Callable[..., nn.Module], module_name: str) -> None:
    """Make `timm.create_model(name, **kwargs)` build(**row, **kwargs). module_name: under which timm lists it."""
    for name, size in sizes.items():

        def create(pretrained: bool = False, _name: str = name, _size: Any = size, **kwargs: Any) -> nn.Module:
            if pretrained:
                raise InputError(f"{_name}: there are no weights to fetch; build the model and load a checkpoint file")
            for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):  # timm always passes them
                kwargs.pop(key, None)
            return build(**{**_size, **kwargs})

        create.__name__, create.__module__ = name, module_name
        register_model(create)
