"""The DiT: layout of the released files, an independent oracle, and how it may be called."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from turbodiffusion.errors import UsageError
from turbodiffusion.models.cards import DIT_1_3B, DIT_14B, DIT_A14B, Attention, DiTConfig
from turbodiffusion.models.dit import WanDiT, sinusoid
from turbodiffusion.models.layers import Int8Linear
from turbodiffusion.ops import backend
from turbodiffusion.ops.linear import dequantize_weight, quantize_weight

T2V = DiTConfig(dim=256, ffn_dim=640, num_heads=2, num_layers=3, text_dim=64, text_len=32)
I2V = replace(T2V, in_dim=36)
TINY = DiTConfig(
    dim=128, ffn_dim=256, num_heads=2, num_layers=2, in_dim=8, out_dim=8,
    text_dim=32, text_len=12, freq_dim=64,
)  # fmt: skip
DENSE = Attention("dense")
SLA = Attention("sla", topk=0.3, block_q=16, block_k=8)
FULL = {
    "1.3B": (DIT_1_3B, 885, 1185, 1_418_996_800),
    "14B": (DIT_14B, 1175, 1575, 14_288_491_584),
    "A14B": (DIT_A14B, 1175, 1575, 14_288_901_184),
}


def random_network(config: DiTConfig, attention: Attention = DENSE, std: float = 0.08) -> WanDiT:
    """Every parameter normal; norms around one, so that no term is hidden by a zero."""
    network = WanDiT(config, attention)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(std=std, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter += 1
    return network


def inputs(config: DiTConfig, batch: int = 2, grid: tuple[int, int, int] = (3, 8, 12)) -> dict:
    generator = torch.Generator().manual_seed(2)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    found = {
        "x_BCTHW": randn(batch, config.out_dim, *grid),
        "timestep_B1": torch.tensor([[988.0], [608.0], [31.5]][:batch]),
        "context_BSD": randn(batch, config.text_len, config.text_dim),
    }
    if config.condition_dim:
        found["y_BCTHW"] = randn(batch, config.condition_dim, *grid)
    return found


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def released_keys(config: DiTConfig, quantized: bool, proj_l: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a released file, from the table of its layout."""
    d, f, h = config.dim, config.ffn_dim, config.head_dim
    found: dict[str, tuple[int, ...]] = {"head.modulation": (1, 2, d)}

    def linear(name: str, out: int, into: int, int8: bool = False) -> None:
        if int8:
            found[f"{name}.int8_weight"] = out, into
            found[f"{name}.scale"] = math.ceil(out / 128), math.ceil(into / 128)
        else:
            found[f"{name}.weight"] = out, into
        found[f"{name}.bias"] = (out,)

    for name, out, into in (
        ("patch_embedding", d, config.in_dim * 4), ("text_embedding.0", d, config.text_dim),
        ("text_embedding.2", d, d), ("time_embedding.0", d, config.freq_dim),
        ("time_embedding.2", d, d), ("time_projection.1", 6 * d, d),
        ("head.head", 4 * config.out_dim, d),
    ):  # fmt: skip
        linear(name, out, into)
    for i in range(config.num_layers):
        block = f"blocks.{i}"
        found[f"{block}.modulation"] = 1, 6, d
        found[f"{block}.norm3.weight"] = found[f"{block}.norm3.bias"] = (d,)
        for part in ("self_attn", "cross_attn"):
            for name in "qkvo":
                linear(f"{block}.{part}.{name}", d, d, quantized)
            found[f"{block}.{part}.norm_q.weight"] = found[f"{block}.{part}.norm_k.weight"] = (d,)
        linear(f"{block}.ffn.0", f, d, quantized)
        linear(f"{block}.ffn.2", d, f, quantized)
        if proj_l:
            linear(f"{block}.self_attn.attn_op.local_attn.proj_l", h, h)
    return found


@pytest.mark.parametrize("name", FULL)
@pytest.mark.parametrize("quantized", [False, True], ids=["bf16", "quant"])
def test_full_size_layout_is_the_released_one(name, quantized):
    config, plain_keys, quantized_keys, parameters = FULL[name]
    with torch.device("meta"):
        network = WanDiT(config, Attention("sagesla"), quantized)
        dense = WanDiT(config, Attention("dense"), quantized)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert shapes == released_keys(config, quantized, proj_l=True)
    assert len(shapes) == (quantized_keys if quantized else plain_keys)
    assert {k: tuple(v.shape) for k, v in dense.state_dict().items()} == released_keys(
        config, quantized, proj_l=False
    )
    counted = [v.numel() for k, v in dense.state_dict().items() if not k.endswith(".scale")]
    assert sum(counted) == parameters
    if quantized:
        types = {k.rsplit(".", 1)[1]: v.dtype for k, v in network.state_dict().items()}
        assert types["int8_weight"] is torch.int8 and types["scale"] is torch.float32


def test_sinusoid_of_released_timesteps():
    values = sinusoid(torch.tensor([988.0, 852.0]), 256)
    picked = values[:, [0, 1, 2, 127, 128, 129, 130, 255]]
    expected = [
        [0.0308846, -0.4700304, 0.4892648, 0.9943691, 0.999523, 0.8826502, 0.8721353, 0.1059719],
        [-0.8089744, 0.3938038, -0.8903559, 0.9958116, -0.5878438, 0.9191945, 0.4552652, 0.0914287],
    ]
    assert values.dtype is torch.float32
    torch.testing.assert_close(picked, torch.tensor(expected), atol=1e-7, rtol=0)


def diffusers_name(key: str) -> str:
    """Our name of a parameter in the spelling of diffusers."""
    renames = (
        ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
        ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
        ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
        ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
        ("time_projection.1", "condition_embedder.time_proj"),
        ("head.modulation", "scale_shift_table"), ("head.head", "proj_out"),
        ("modulation", "scale_shift_table"), ("norm3", "norm2"),
        ("self_attn", "attn1"), ("cross_attn", "attn2"), (".o.", ".to_out.0."),
        (".q.", ".to_q."), (".k.", ".to_k."), (".v.", ".to_v."),
        ("ffn.0", "ffn.net.0.proj"), ("ffn.2", "ffn.net.2"),
    )  # fmt: skip
    for ours, theirs in renames:
        key = key.replace(ours, theirs)
    return key


@pytest.mark.parametrize("config", [T2V, I2V], ids=["t2v", "a14b"])
def test_equals_diffusers(config, monkeypatch):
    transformer_wan = pytest.importorskip("diffusers.models.transformers.transformer_wan")
    # Its own sinusoid is float32, which alone costs 1e-4; the released one is float64.
    monkeypatch.setattr(
        transformer_wan.Timesteps, "forward", lambda self, t: sinusoid(t, self.num_channels)
    )
    oracle = transformer_wan.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim, in_channels=config.in_dim,
        out_channels=config.out_dim, text_dim=config.text_dim, freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim, num_layers=config.num_layers, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", eps=1e-6, rope_max_seq_len=1024,
    ).eval()  # fmt: skip
    network = random_network(config)
    state = {diffusers_name(key): value for key, value in network.state_dict().items()}
    weight = state["patch_embedding.weight"]
    state["patch_embedding.weight"] = weight.view(config.dim, config.in_dim, 1, 2, 2)
    oracle.load_state_dict(state)
    arguments = inputs(config)
    latents = [arguments[name] for name in ("x_BCTHW", "y_BCTHW") if name in arguments]
    with torch.no_grad():
        expected = oracle(
            torch.cat(latents, 1), arguments["timestep_B1"][:, 0], arguments["context_BSD"]
        ).sample
        out = network(**arguments)
    assert expected.std() > 0.5
    assert (out - expected).abs().max() < 1e-5


@pytest.mark.parametrize("config", [TINY, replace(TINY, in_dim=20)], ids=["t2v", "i2v"])
def test_precomputed_text_changes_nothing(config):
    network, arguments = random_network(config), inputs(config)
    with torch.no_grad():
        expected = network(**arguments)
        text_kv = network.text_kv(arguments.pop("context_BSD"))
        assert len(text_kv) == config.num_layers
        assert text_kv[0][0].shape == (2, config.text_len, config.num_heads, config.head_dim)
        assert torch.equal(network(**arguments, text_kv=text_kv), expected)


@pytest.mark.parametrize("attention", [DENSE, SLA], ids=["dense", "sla"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_dtypes_and_gradients(attention, dtype):
    network = random_network(TINY, attention).to(dtype)
    seen = {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda m, a, out, name=name: seen.__setitem__(name, out.dtype))
    out = network(**inputs(TINY))
    assert out.dtype is torch.float32 and out.shape == (2, 8, 3, 8, 12)
    assert seen["time_embedding"] is seen["time_projection"] is seen["head"] is torch.float32
    half = ("patch_embedding", "text_embedding", "blocks.0", "blocks.1.self_attn.norm_q",
            "blocks.1.norm3", "blocks.1.cross_attn", "blocks.1.ffn")  # fmt: skip
    assert {seen[name] for name in half} == {dtype}
    out.square().mean().backward()
    for name, parameter in network.named_parameters():
        gradient = parameter.grad
        assert gradient is not None and gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name


def test_gradients_agree_between_forms(monkeypatch):
    gradients = []
    for name in ("naive", "portable"):
        monkeypatch.setenv("TURBODIFFUSION_BACKEND", name)
        network = random_network(TINY, SLA)
        arguments = inputs(TINY)
        arguments["x_BCTHW"].requires_grad_()
        network(**arguments).square().mean().backward()
        gradients.append([arguments["x_BCTHW"].grad, *(p.grad for p in network.parameters())])
    for a, b in zip(*gradients, strict=True):
        assert relative(b, a) < 1e-4


def test_samples_of_a_batch_do_not_meet():
    network, arguments = random_network(TINY), inputs(TINY, batch=3)
    with torch.no_grad():
        whole = network(**arguments)
        single = network(**{name: value[1:2] for name, value in arguments.items()})
    assert relative(whole[1:2], single) < 1e-5


@pytest.mark.parametrize("grid", [(1, 2, 2), (1, 6, 10), (5, 4, 2)], ids=str)
def test_any_grid(grid):
    arguments = inputs(TINY, grid=grid)
    assert random_network(TINY)(**arguments).shape == (2, 8, *grid)


@pytest.mark.parametrize("attention", [DENSE, SLA], ids=["dense", "sla"])
def test_compiles_into_one_graph(attention, monkeypatch):
    network, arguments = random_network(TINY, attention), inputs(TINY)
    monkeypatch.setattr(backend, "_choices", {})  # nothing was resolved before the compilation
    torch.compiler.reset()
    out = torch.compile(network, fullgraph=True, backend="eager")(**arguments)
    assert relative(out, network(**arguments)) < 1e-6
    out.square().mean().backward()
    assert network.patch_embedding.weight.grad is not None


def quantise(network: WanDiT) -> WanDiT:
    """The int8 network of an unquantised one."""
    result = WanDiT(network.config, network.attention, quantized=True)
    state = network.state_dict()
    for name, module in result.named_modules():
        if isinstance(module, Int8Linear):
            weight = state.pop(f"{name}.weight")
            state[f"{name}.int8_weight"], state[f"{name}.scale"] = quantize_weight(weight)
    result.load_state_dict(state)
    return result


def expand(network: WanDiT, small: WanDiT) -> WanDiT:
    """``network`` with the weights that the int8 ones of ``small`` stand for."""
    state = small.state_dict()
    for name, module in small.named_modules():
        if isinstance(module, Int8Linear):
            weight, scale = state.pop(f"{name}.int8_weight"), state.pop(f"{name}.scale")
            state[f"{name}.weight"] = dequantize_weight(weight, scale)
    network.load_state_dict(state)
    return network


@torch.no_grad()
def test_quantised_network(monkeypatch):
    network, arguments = random_network(TINY, std=0.05), inputs(TINY)
    small = quantise(network)
    expected = network(**arguments)
    as_stored = small(**arguments)
    monkeypatch.setenv(backend.VARIABLE, "portable")  # 8-bit products also on the CPU
    out = small(**arguments)
    assert 1e-4 < relative(out, expected) < 0.05
    # With the weights it stands for, only the quantised activations differ, or nothing.
    expand(network, small)
    expected = network(**arguments)
    assert relative(as_stored, expected) < 1e-5 < relative(out, expected)
    by_group = relative(out, expected)
    for module in small.modules():
        if isinstance(module, Int8Linear):
            module.activation = "tile"
    assert relative(small(**arguments), expected) > by_group


def test_proj_l_starts_at_zero_and_counts():
    network, arguments = random_network(TINY, SLA), inputs(TINY)
    with torch.no_grad():
        before = network(**arguments)
        for block in network.blocks:
            block.self_attn.attn_op["local_attn"].proj_l.weight.zero_()
        assert relative(network(**arguments), before) > 1e-4
    network.init_weights()
    assert all(p.eq(0).all() for name, p in network.named_parameters() if "proj_l" in name)


@torch.no_grad()
def test_every_layer_takes_its_own_ratio():
    arguments = inputs(TINY)

    def out(attention: Attention) -> Tensor:
        return random_network(TINY, attention)(**arguments)

    uneven = out(replace(SLA, topk_per_layer=(1.0, 0.3)))
    assert relative(uneven, out(SLA)) > 1e-4
    assert relative(uneven, out(replace(SLA, topk_per_layer=(0.3, 1.0)))) > 1e-4
    same = replace(SLA, topk=0.7, topk_per_layer=(0.3, 0.3))
    assert torch.equal(out(same), out(SLA)) and same.mean_topk == 0.3


@torch.no_grad()
def test_a_layer_that_keeps_all_keys_is_dense_where_the_linear_branch_is_zero():
    network = random_network(TINY, replace(SLA, topk_per_layer=(1.0, 1.0)))
    dense = WanDiT(TINY, replace(network.attention, kind="dense", topk_per_layer=(1.0,)))
    state = network.state_dict()
    for name in [name for name in state if "proj_l" in name]:
        state.pop(name).zero_()
    dense.load_state_dict(state)
    assert relative(network(**inputs(TINY)), dense(**inputs(TINY))) < 1e-5


def test_a_wrong_number_of_ratios_is_refused_and_a_new_ratio_replaces_them():
    three = replace(SLA, topk_per_layer=[0.1, 0.2, 0.3])  # a list, as stored in a video
    with pytest.raises(UsageError, match=r"3 ratios for a network of 2 layers") as caught:
        WanDiT(TINY, three)
    assert caught.value.code == "dit-topk-layers" and "Give 2 ratios" in caught.value.fix
    assert three.with_topk(None) is three and hash(three) and three.mean_topk == pytest.approx(0.2)
    assert three.with_topk(0.5) == replace(SLA, topk=0.5)


def test_init_weights_is_reproducible_and_starts_with_zero_velocity():
    networks = [WanDiT(TINY, SLA) for _ in range(2)]
    for network in networks:
        network.init_weights(torch.Generator().manual_seed(7))
    for (name, a), (_, b) in zip(*(n.named_parameters() for n in networks), strict=True):
        assert torch.equal(a, b), name
    network = networks[0]
    assert network(**inputs(TINY)).eq(0).all()
    assert network.text_embedding[0].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert network.blocks[0].modulation.std().item() == pytest.approx(128**-0.5, rel=0.1)
    bound = (6 / (128 + 256)) ** 0.5
    assert network.blocks[0].ffn[0].weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert network.blocks[0].norm3.weight.eq(1).all()


def test_errors():
    network, arguments = WanDiT(TINY), inputs(TINY)
    with pytest.raises(UsageError, match="Neither context nor text_kv"):
        network(arguments["x_BCTHW"], arguments["timestep_B1"])
    with pytest.raises(UsageError, match="3×7×12"):
        network(arguments["x_BCTHW"][..., :7, :], *list(arguments.values())[1:])
    conditioned = WanDiT(replace(TINY, in_dim=20))
    with pytest.raises(UsageError, match=r"8 channels.*takes 20 channels, 12 of them as y"):
        conditioned(**arguments)
