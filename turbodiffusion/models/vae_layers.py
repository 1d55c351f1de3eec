"""Layers of the causal video autoencoder, each in one form that serves whole clips and streams.

Every layer takes a stretch of frames and an optional :data:`Cache`. Without a cache the stretch is
the whole clip: differentiable, no Python loop over frames, the form for training. With one, the
stretch is the next piece of a clip and the layer finds in the cache the few frames it still needs
of what came before; a layer that has no entry yet sees the beginning of the clip. Both forms do the
same sums, because causal padding is nothing but a history of zeros.

Two rules make time strides work for any pattern of transitions. Frame 0 stands alone: a temporal
down-sampling passes it through, an up-sampling does not double it. From then on ``s`` frames make
one latent frame, so that ``s·n + 1`` frames become ``n + 1`` latent frames and back.

Tensors are B batch, C channels, T frames (of the layer's own rate), H and W. Module and parameter
names are the keys of the released checkpoint.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Cache = dict[nn.Module, Tensor]
"""Past frames by the layer that needs them. A new clip starts with an empty one."""


class RMSNorm(nn.Module):
    """``x / max(‖x‖, 1e-12) · √C · gamma`` over channels, dimension 1 of an image or a video."""

    def __init__(self, channels: int, dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * dims))

    def forward(self, x: Tensor) -> Tensor:
        # √C divides the norm, one value a position, rather than multiplying every channel.
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)
        y = x / (norm * x.shape[1] ** -0.5).to(x.dtype)
        gamma = self.gamma.to(x.dtype)
        return y * gamma if torch.is_grad_enabled() else y.mul_(gamma)


class SiLU(nn.Module):
    """``x · sigmoid(x)``; overwrites its input, always a norm's output, where gradients are off."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x, inplace=not torch.is_grad_enabled())


class CausalConv3d(nn.Conv3d):
    """Convolution that sees the current and past frames, (B, C, T, H, W) → (B, C', T, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int, int]) -> None:
        super().__init__(
            in_channels, out_channels, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2)
        )

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:  # type: ignore[override]
        past = self.kernel_size[0] - 1
        if past:
            history = None if cache is None else cache.get(self)
            if history is None:
                x = F.pad(x, (0, 0, 0, 0, past, 0))
            else:
                x = torch.cat([history, x], dim=2)
            if cache is not None:
                # A copy: a view would keep the whole stretch alive until the next one.
                cache[self] = x[:, :, -past:].clone()
        return convolve(self, x)


class Residual(nn.Module):
    """Norm, SiLU, convolution, twice, plus the input; a 1×1×1 ``shortcut`` if the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            RMSNorm(in_channels),
            SiLU(),
            CausalConv3d(in_channels, out_channels, (3, 3, 3)),
            RMSNorm(out_channels),
            SiLU(),
            nn.Identity(),  # dropout of the released network, 0; keeps the numbering of its keys
            CausalConv3d(out_channels, out_channels, (3, 3, 3)),
        )
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = CausalConv3d(in_channels, out_channels, (1, 1, 1))

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        y = run(self.residual, x, cache)
        return y + self.shortcut(x)


class FrameAttention(nn.Module):
    """Self-attention with one head among the positions of each frame, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, dims=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        frames = to_frames(x)
        qkv = self.to_qkv(self.norm(frames))
        # (B·T, 1 head, H·W, C), three times
        q, k, v = qkv.flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v)
        y = y.squeeze(1).transpose(1, 2).unflatten(2, frames.shape[2:])
        return x + to_video(self.proj(y), x.shape[0])


class Down(nn.Module):
    """Halves height and width and, with ``temporal``, the rate of the frames after the first."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        # One column right and one row below only: the released asymmetric padding.
        self.resample = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2)
        )
        self.time_conv: nn.Conv3d | None = None
        if temporal:
            self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1))

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        x = to_video(self.resample(to_frames(x)), x.shape[0])
        if self.time_conv is None:
            return x
        last = None if cache is None else cache.get(self)
        if cache is not None:
            cache[self] = x[:, :, -1:].clone()
        if last is not None:
            return convolve(self.time_conv, torch.cat([last, x], dim=2))
        if x.shape[2] == 1:
            return x
        return torch.cat([x[:, :, :1], convolve(self.time_conv, x)], dim=2)


class Up(nn.Module):
    """Doubles height and width, halves channels; ``temporal`` doubles frames after the first."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest-exact"),
            nn.Conv2d(channels, channels // 2, 3, padding=1),
        )
        self.time_conv: CausalConv3d | None = None
        if temporal:
            self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1))

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        if self.time_conv is not None:
            x = self._double_frames(x, cache)
        return to_video(self.resample(to_frames(x)), x.shape[0])

    def _double_frames(self, x: Tensor, cache: Cache | None) -> Tensor:
        assert self.time_conv is not None
        first = None
        if cache is None or self not in cache:
            # The time convolution never sees frame 0: its history starts as zeros after it.
            first, x = x[:, :, :1], x[:, :, 1:]
            if cache is not None:
                cache[self] = x.new_empty(0)
            if x.shape[2] == 0:
                return first
        y = self.time_conv(x, cache)
        # The first half of the channels are the even frames, the second half the odd ones. The
        # copy is made with channels innermost, the layout that the rest runs in.
        y = y.unflatten(1, (2, -1)).permute(0, 3, 1, 4, 5, 2).contiguous()
        y = y.flatten(1, 2).permute(0, 4, 1, 2, 3)
        return y if first is None else torch.cat([first, y], dim=2)


def convolve(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """``conv(x)`` on frames that are already padded in time.

    PyTorch sends float32 stretches of a few frames on the CPU to an im2col loop that is 10 to 20
    times slower than oneDNN, which it uses for everything larger; here oneDNN is asked for.
    """
    padding = conv.padding
    assert not isinstance(padding, str)
    onednn = (
        x.device.type == "cpu"
        and x.dtype == conv.weight.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
    )
    if onednn:
        return torch.mkldnn_convolution(
            x, conv.weight, conv.bias, padding, conv.stride, conv.dilation, conv.groups
        )
    return F.conv3d(x, conv.weight, conv.bias, conv.stride, padding)


def run(layers: nn.Sequential | nn.ModuleList, x: Tensor, cache: Cache | None) -> Tensor:
    """Apply ``layers`` in order, handing ``cache`` to those that look back in time."""
    for layer in layers:
        x = layer(x, cache) if isinstance(layer, CausalConv3d | Residual | Down | Up) else layer(x)
    return x


def to_frames(x: Tensor) -> Tensor:
    """(B, C, T, H, W) → (B·T, C, H, W)."""
    # A view of one frame gets strides that hide that channels are innermost; squeezing keeps them.
    return x.squeeze(2) if x.shape[2] == 1 else x.transpose(1, 2).flatten(0, 1)


def to_video(x: Tensor, batch: int) -> Tensor:
    """(B·T, C, H, W) → (B, C, T, H, W)."""
    one_frame = x.shape[0] == batch
    return x.unsqueeze(2) if one_frame else x.unflatten(0, (batch, -1)).transpose(1, 2)
