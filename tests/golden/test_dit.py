"""The DiT against the released network's outputs at miniature sizes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.golden.vectors import Golden, golden_files, golden_id, load_golden, relative_l2
from turbodiffusion.models import layers
from turbodiffusion.models.cards import Attention, DiTConfig
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.ops.rope import apply_rope

INTEGERS = ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim", "text_dim",
            "text_len", "freq_dim")  # fmt: skip

SLA_GEOMETRY = {"block_q": 128, "block_k": 64, "feature_map": "softmax"}


def build(golden: Golden) -> WanDiT:
    """The network of a file: configuration from its metadata, weights in its compute dtype."""
    meta = golden.metadata
    config = DiTConfig(**{name: int(meta[name]) for name in INTEGERS}, eps=float(meta["eps"]))
    attention = Attention("dense")
    if meta["attention"] == "sla":
        attention = Attention("sla", topk=float(meta["sla_topk"]), **SLA_GEOMETRY)
    network = WanDiT(config, attention).to(getattr(torch, meta["compute_dtype"]))
    network.load_state_dict(golden.group("sd"))
    return network


def run(network: WanDiT, golden: Golden, **overrides: Tensor) -> Tensor:
    inputs = golden.group("in") | overrides
    timestep = inputs["t"]
    if network.dtype is torch.bfloat16:
        timestep = timestep.bfloat16()
    with torch.no_grad():
        return network(inputs["x"], timestep, inputs["context"], inputs.get("y"))


def two_rounding_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The plain module's norm: the normalised value is rounded before the weight multiplies."""
    z = x.float()
    z = z * torch.rsqrt((z * z).mean(-1, keepdim=True) + eps)
    return z.to(x.dtype) * weight.to(x.dtype)


def two_rounding_rms_norm_rope(
    x: Tensor, weight: Tensor, table: tuple[Tensor, Tensor], eps: float, num_heads: int
) -> Tensor:
    normalised = two_rounding_rms_norm(x, weight, eps)
    return apply_rope(normalised.unflatten(-1, (num_heads, -1)), table)


def use_two_rounding_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "rms_norm", two_rounding_rms_norm)
    monkeypatch.setattr(layers, "rms_norm_rope", two_rounding_rms_norm_rope)


def two_rounding_linear(self: layers.Linear, x: Tensor) -> Tensor:
    """A wrong linear: the product is rounded before the bias is added."""
    return torch.nn.functional.linear(x, self.weight) + self.bias


def summed_in_order(lanes: int, bias_first: bool) -> Callable[[layers.Linear, Tensor], Tensor]:
    """A float32 linear that adds its products in one definite order."""

    def float32(self: layers.Linear, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        chunks = (x.float().unsqueeze(-2) * weight).split(lanes, dim=-1)
        total = torch.zeros_like(chunks[0])
        if bias_first:
            total[..., 0] = bias
        for chunk in chunks:
            total = total + chunk
        while total.shape[-1] > 1:
            half = total.shape[-1] // 2
            total = total[..., :half] + total[..., half:]
        return total.squeeze(-1) if bias_first else total.squeeze(-1) + bias

    return float32


def error_per_sample(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Relative error of each sample, the smallest over orders of summation in the time embedding.

    The gates of the blocks are rounded to bf16. One that lies within a float32 rounding of a tie
    goes up or down with the order in which a processor adds the products of the time embedding,
    and then moves every token of its sample by 1e-3 to 3e-3. Matrix products differ in that order
    between processors, so each sample is compared under several; nothing else is varied.
    """
    network = build(golden)
    orders = [summed_in_order(2**i, first) for i in range(7) for first in (False, True)]
    errors = []
    for float32 in (layers.Linear.float32, *orders):
        monkeypatch.setattr(layers.Linear, "float32", float32)
        out = run(network, golden)
        errors.append([relative_l2(a, b) for a, b in zip(out, golden["out"], strict=True)])
    return torch.tensor(errors).amin(dim=0)


def tight_bound(golden: Golden) -> float:
    return 3e-3 if "i2v_low" in golden.path.stem else 1e-3


def expect(golden: Golden, compute_dtype: str, attention: str) -> None:
    """Skip a file that another test is about."""
    if (golden.metadata["compute_dtype"], golden.metadata["attention"]) != (
        compute_dtype, attention,
    ):  # fmt: skip
        pytest.skip(f"{golden.path.stem} is not {compute_dtype} with {attention} attention")


@pytest.mark.parametrize("path", golden_files("dit_*fp32"), ids=golden_id)
def test_float32(path):
    golden = load_golden(path)
    expect(golden, "float32", "original")
    out = run(build(golden), golden)
    assert out.dtype is torch.float32
    assert relative_l2(out, golden["out"]) < 1e-5


@pytest.mark.parametrize("path", golden_files("dit_*bf16"), ids=golden_id)
def test_bf16(path):
    golden = load_golden(path)
    expect(golden, "bfloat16", "original")
    out = run(build(golden), golden)
    assert out.dtype is torch.float32
    assert relative_l2(out, golden["out"]) < 1e-2


@pytest.mark.parametrize("path", golden_files("dit_*bf16"), ids=golden_id)
def test_bf16_every_rounding(path, monkeypatch):
    golden = load_golden(path)
    expect(golden, "bfloat16", "original")
    use_two_rounding_norms(monkeypatch)
    errors = error_per_sample(golden, monkeypatch)
    assert errors.max() < tight_bound(golden)


@pytest.mark.parametrize("path", golden_files("dit_*bf16"), ids=golden_id)
@pytest.mark.parametrize("wrong", ["norm", "bias"])
def test_tight_bound_finds_a_wrong_rounding(path, wrong, monkeypatch):
    golden = load_golden(path)
    expect(golden, "bfloat16", "original")
    if wrong == "bias":
        use_two_rounding_norms(monkeypatch)
        monkeypatch.setattr(layers.Linear, "forward", two_rounding_linear)
    errors = error_per_sample(golden, monkeypatch)
    assert errors.min() > tight_bound(golden)


@pytest.mark.parametrize("path", golden_files("dit_*sla*"), ids=golden_id)
def test_sla(path):
    golden = load_golden(path)
    expect(golden, "float32", "sla")
    assert relative_l2(run(build(golden), golden), golden["out"]) < 5e-3
