"""The Wan diffusion transformer (DiT): velocity of a noisy latent video, given time and text.

One class serves Wan2.1 text-to-video, both experts of Wan2.2 image-to-video and the embedded
models; only its configuration differs. Parameters carry the names of the released files, so a
state dict loads without renaming. The file holds mathematics only: attention, linears, norms and
rotations are operators, and loading, offloading or sharding are applied from outside.

Rounding. Activations have the dtype of the weights. With bf16 weights every operator rounds once
to bf16, the residual stream is bf16 and gates are rounded before they multiply, while the time
embedding, the modulation and the head are float32 with weights cast up. With float32 weights
nothing is rounded.

Shape letters: B batch, C channels, T H W latent frames, height and width, L tokens, S text
positions, D model width, N heads, P elements of a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from turbodiffusion.errors import UsageError
from turbodiffusion.models import fused
from turbodiffusion.models.cards import Attention, DiTConfig
from turbodiffusion.models.layers import Float32, HeadNorm, Int8Linear, LayerNorm, Linear, RMSNorm
from turbodiffusion.ops.attention import attention
from turbodiffusion.ops.norm import layer_norm, layer_norm_modulate
from turbodiffusion.ops.rope import rope_table
from turbodiffusion.ops.sage import sage_sparse_linear_attention
from turbodiffusion.ops.sla import sparse_linear_attention

Grid = tuple[int, int, int]
Table = tuple[Tensor, Tensor]
KeysValues = tuple[Tensor, Tensor]
Text = Tensor | KeysValues
"""What a block takes of the prompt: the embedded text, or its own keys and values of it."""


class SparseLinearAttention(nn.Module):
    """SLA with its projection ``proj_l``, zero at first and shared by the heads of the layer.

    ``sagesla`` is the same function with an 8-bit sparse branch, for inference only.
    """

    def __init__(self, head_dim: int, settings: Attention) -> None:
        super().__init__()
        self.settings = settings
        self.proj_l = Linear(head_dim, head_dim)
        nn.init.zeros_(self.proj_l.weight)
        nn.init.zeros_(self.proj_l.bias)

    def forward(self, q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor) -> Tensor:
        s = self.settings
        operator = sage_sparse_linear_attention if s.kind == "sagesla" else sparse_linear_attention
        return operator(
            q_BLND, k_BLND, v_BLND, self.proj_l.weight, self.proj_l.bias,
            topk=s.topk, block_q=s.block_q, block_k=s.block_k, feature_map=s.feature_map,
        )  # fmt: skip


class SelfAttention(nn.Module):
    """Attention among the tokens, rotated by their place in time, height and width."""

    def __init__(self, config: DiTConfig, settings: Attention, layer: type[nn.Module]) -> None:
        super().__init__()
        dim = config.dim
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.o = (layer(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = (HeadNorm(dim, config.eps, self.num_heads) for _ in range(2))
        self.attn_op: nn.ModuleDict | None = None
        if settings.kind != "dense":
            sparse = SparseLinearAttention(config.head_dim, settings)
            self.attn_op = nn.ModuleDict({"local_attn": sparse})

    def forward(self, x_BLD: Tensor, table: Table) -> Tensor:
        q_BLND = self.norm_q(self.q(x_BLD), table)
        k_BLND = self.norm_k(self.k(x_BLD), table)
        v_BLND = self.v(x_BLD).unflatten(-1, (self.num_heads, -1))
        return self.o(self.attend(q_BLND, k_BLND, v_BLND).flatten(-2))

    def attend(self, q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor) -> Tensor:
        """Dense or sparse attention, as configured."""
        operator = attention if self.attn_op is None else self.attn_op["local_attn"]
        return operator(q_BLND, k_BLND, v_BLND)


class CrossAttention(nn.Module):
    """Attention from the tokens to the text. All positions count, those of the padding too."""

    def __init__(self, config: DiTConfig, layer: type[nn.Module]) -> None:
        super().__init__()
        dim = config.dim
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.o = (layer(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim, config.eps), RMSNorm(dim, config.eps)

    def keys_values(self, text_BSD: Tensor) -> KeysValues:
        """Keys and values (B, S, N, head_dim) of the embedded text, the same for every step."""
        heads = (self.num_heads, -1)
        k_BSND = self.norm_k(self.k(text_BSD)).unflatten(-1, heads)
        return k_BSND, self.v(text_BSD).unflatten(-1, heads)

    def forward(self, x_BLD: Tensor, text: Text) -> Tensor:
        k_BSND, v_BSND = text if isinstance(text, tuple) else self.keys_values(text)
        q_BLND = self.norm_q(self.q(x_BLD)).unflatten(-1, (self.num_heads, -1))
        return self.o(attention(q_BLND, k_BSND, v_BSND).flatten(-2))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, the outer two modulated by time."""

    def __init__(self, config: DiTConfig, settings: Attention, quantized: bool) -> None:
        super().__init__()
        layer = Int8Linear if quantized else Linear
        dim, ffn_dim = config.dim, config.ffn_dim
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)
        self.self_attn = SelfAttention(config, settings, layer)
        self.norm3 = LayerNorm(dim, config.eps)
        self.cross_attn = CrossAttention(config, layer)
        self.ffn = nn.Sequential(
            layer(dim, ffn_dim), nn.GELU(approximate="tanh"), layer(ffn_dim, dim)
        )

    def forward(self, x_BLD: Tensor, e_B6D: Tensor, table: Table, text: Text) -> Tensor:
        if fused.obstacle(self, x_BLD.device) is None:
            return fused.forward(self, x_BLD, e_B6D, table, text)
        m_B6D = self.modulation.float() + e_B6D
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = m_B6D.chunk(6, dim=1)
        y_BLD = layer_norm_modulate(x_BLD, scale, shift, self.eps)
        x_BLD = x_BLD + self.self_attn(y_BLD, table) * gate.to(x_BLD.dtype)
        x_BLD = x_BLD + self.cross_attn(self.norm3(x_BLD), text)
        y_BLD = layer_norm_modulate(x_BLD, ffn_scale, ffn_shift, self.eps)
        return x_BLD + self.ffn(y_BLD) * ffn_gate.to(x_BLD.dtype)


class Head(nn.Module):
    """Last norm, modulation and projection to the latent cells of each token; float32."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)
        self.head = Linear(config.dim, config.patch_volume * config.out_dim)

    def forward(self, x_BLD: Tensor, e_BD: Tensor) -> Tensor:
        shift, scale = (self.modulation.float() + e_BD.unsqueeze(1)).chunk(2, dim=1)
        n_BLD = layer_norm(x_BLD, eps=self.eps).float()
        return self.head.float32(n_BLD * (1 + scale) + shift)


class WanDiT(nn.Module):
    """The network. See the module's page for dtypes.

    Args:
        config: shape of the network.
        attention: how self-attention is computed; anything but ``dense`` adds ``proj_l``.
        quantized: the linears of the blocks hold int8 weights (the ``-quant`` files).
    """

    def __init__(
        self,
        config: DiTConfig,
        attention: Attention = Attention("dense"),  # noqa: B008 - frozen
        quantized: bool = False,
    ) -> None:
        super().__init__()
        dim = config.dim
        self.config, self.attention, self.quantized = config, attention, quantized
        self.patch_embedding = Linear(config.in_dim * config.patch_volume, dim)
        self.text_embedding = nn.Sequential(
            Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), Linear(dim, dim)
        )
        self.time_embedding = Float32(Linear(config.freq_dim, dim), nn.SiLU(), Linear(dim, dim))
        self.time_projection = Float32(nn.SiLU(), Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(
            Block(config, settings, quantized) for settings in attention.by_layer(config.num_layers)
        )
        self.head = Head(config)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the activations, which is that of the weights."""
        return self.patch_embedding.weight.dtype

    def forward(
        self,
        x_BCTHW: Tensor,
        timestep_B1: Tensor,
        context_BSD: Tensor | None = None,
        y_BCTHW: Tensor | None = None,
        text_kv: list[KeysValues] | None = None,
    ) -> Tensor:
        """Velocity dx/dt of ``x_t = (1 - t) x_0 + t noise``.

        Args:
            x_BCTHW: noisy latents, ``out_dim`` channels.
            timestep_B1: 1000 t; released models expect it rounded to bf16, by the caller.
            context_BSD: text encoder output (B, text_len, text_dim), rows past the prompt zero.
            y_BCTHW: image-to-video only: mask and image latents, ``condition_dim`` channels.
            text_kv: :meth:`text_kv` of the context, used instead of it.

        Returns:
            float32 (B, out_dim, T, H, W).
        """
        x_BLP, grid = self._patchify(x_BCTHW, y_BCTHW)
        x_BLD = self.patch_embedding(x_BLP)
        e_BD = self.time_embedding(sinusoid(timestep_B1[:, 0], self.config.freq_dim))
        e_B6D = self.time_projection(e_BD).unflatten(-1, (6, -1))
        table = rope_table(grid, self.config.rope_split, x_BLD.device)
        if text_kv is not None:
            texts: Sequence[Text] = text_kv
        elif context_BSD is not None:
            texts = [self.text_embedding(context_BSD.to(self.dtype))] * len(self.blocks)
        else:
            raise UsageError(
                "dit-no-text", "Neither context nor text_kv was given.", "Give one of the two."
            )
        for block, text in zip(self.blocks, texts, strict=True):
            x_BLD = block(x_BLD, e_B6D, table, text)
        return self._unpatchify(self.head(x_BLD, e_BD), grid)

    def text_kv(self, context_BSD: Tensor) -> list[KeysValues]:
        """Keys and values of the text for every block; they depend on the prompt only."""
        text_BSD = self.text_embedding(context_BSD.to(self.dtype))
        blocks = cast("Iterable[Block]", self.blocks)
        return [block.cross_attn.keys_values(text_BSD) for block in blocks]

    def _patchify(self, x_BCTHW: Tensor, y_BCTHW: Tensor | None) -> tuple[Tensor, Grid]:
        """Tokens, time-major; inside a token the channel is slowest."""
        parts = [x_BCTHW] if y_BCTHW is None else [x_BCTHW, y_BCTHW]
        z = torch.cat([part.to(self.dtype) for part in parts], dim=1)
        pt, ph, pw = self.config.patch
        b, c, frames, height, width = z.shape
        if c != self.config.in_dim or frames % pt or height % ph or width % pw:
            raise UsageError(
                "dit-input-shape",
                f"The network got latents of {c} channels and size {frames}×{height}×{width}; it "
                f"takes {self.config.in_dim} channels, {self.config.condition_dim} of them as y, "
                f"and sizes that divide by {pt}×{ph}×{pw}.",
                "Check the model, its condition y and the frame size.",
            )
        t, h, w = frames // pt, height // ph, width // pw
        z = z.view(b, c, t, pt, h, ph, w, pw).permute(0, 2, 4, 6, 1, 3, 5, 7)
        return z.reshape(b, t * h * w, c * pt * ph * pw), (t, h, w)

    def _unpatchify(self, x_BLP: Tensor, grid: Grid) -> Tensor:
        """Latents again; inside a token the channel is now fastest."""
        (pt, ph, pw), (t, h, w) = self.config.patch, grid
        z = x_BLP.view(-1, t, h, w, pt, ph, pw, self.config.out_dim)
        z = z.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return z.reshape(z.shape[0], self.config.out_dim, t * pt, h * ph, w * pw)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Fill the parameters for training from scratch, as the original Wan does.

        Linears are Xavier uniform with zero bias, text and time embeddings normal with deviation
        0.02, modulation normal with variance 1/dim, norms one, head and ``proj_l`` zero.
        """
        std = self.config.dim**-0.5
        for module in self.modules():
            if isinstance(module, Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, (RMSNorm, HeadNorm, LayerNorm)):
                nn.init.ones_(module.weight)
            if isinstance(module, LayerNorm):
                nn.init.zeros_(module.bias)
            if isinstance(module, (Block, Head)):
                nn.init.normal_(module.modulation, std=std, generator=generator)
        for module in (*self.text_embedding, *self.time_embedding):
            if isinstance(module, Linear):
                nn.init.normal_(module.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.head.weight)
        for module in self.modules():
            if isinstance(module, SparseLinearAttention):
                nn.init.zeros_(module.proj_l.weight)


def sinusoid(timestep_B: Tensor, width: int) -> Tensor:
    """``[cos a, sin a]`` with ``a = t · 10000^(-2i/width)``, in float64, returned as float32."""
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float64, device=timestep_B.device) / half
    angle_BF = timestep_B.double()[:, None] * torch.exp(exponent * -math.log(10000.0))
    return torch.cat([angle_BF.cos(), angle_BF.sin()], dim=-1).float()
