"""Every dialect maps to released names and back, checked against the other libraries."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from turbodiffusion.errors import WeightsError
from turbodiffusion.models.cards import (
    DIT_1_3B,
    DIT_A14B,
    MICRO_DIT,
    MICRO_TEXT,
    MINI_VAE,
    UMT5_XXL,
    WAN_VAE,
    DiTConfig,
    TextEncoderConfig,
    VAEConfig,
)
from turbodiffusion.weights.infer import Config, infer
from turbodiffusion.weights.layouts import INFIX, PREFIXES, rename, resolve
from turbodiffusion.weights.spec import dit_spec, text_spec, vae_spec

Shapes = dict[str, tuple[int, ...]]
WAN_SMALL = replace(WAN_VAE, dim=16)


def spec_shapes(config: Config, **options: bool) -> Shapes:
    if isinstance(config, DiTConfig):
        spec = dit_spec(config, **options)
    else:
        spec = vae_spec(config) if isinstance(config, VAEConfig) else text_spec(config)
    return {name: tensor.shape for name, tensor in spec.items()}


def diffusers_shapes(config: DiTConfig | VAEConfig) -> Shapes:
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    with torch.device("meta"):
        if isinstance(config, DiTConfig):
            model = WanTransformer3DModel(
                patch_size=config.patch,
                num_attention_heads=config.num_heads,
                attention_head_dim=config.head_dim,
                in_channels=config.in_dim,
                out_channels=config.out_dim,
                text_dim=config.text_dim,
                freq_dim=config.freq_dim,
                ffn_dim=config.ffn_dim,
                num_layers=config.num_layers,
            )
        else:
            model = AutoencoderKLWan(
                base_dim=config.dim,
                z_dim=config.z_dim,
                dim_mult=list(config.dim_mult),
                num_res_blocks=config.num_res_blocks,
                temperal_downsample=list(config.temporal_downsample),
                latents_mean=[0.0] * config.z_dim,
                latents_std=[1.0] * config.z_dim,
            )
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def transformers_shapes(config: TextEncoderConfig) -> Shapes:
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        model = UMT5EncoderModel(
            UMT5Config(
                vocab_size=config.vocab_size,
                d_model=config.dim,
                d_kv=config.head_dim,
                d_ff=config.ffn_dim,
                num_layers=config.num_layers,
                num_heads=config.num_heads,
            )
        )
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


@pytest.mark.parametrize("config", [DIT_1_3B, DIT_A14B, MICRO_DIT], ids=["1.3B", "A14B", "micro"])
def test_diffusers_dit(config: DiTConfig) -> None:
    there = diffusers_shapes(config)
    here = spec_shapes(config, sla=False)
    assert set(rename(here, "dit", "diffusers").values()) == set(there)
    layout = resolve(there)
    assert (layout.kind, layout.dialect, layout.others) == ("dit", "diffusers", ())
    assert layout.wrappers == ("5-D patch_embedding",)
    assert layout.names == rename(here, "dit", "diffusers")
    flat = {name: there[key] for name, key in layout.names.items()}
    dim, *inner = flat.pop("patch_embedding.weight")
    assert (dim, torch.Size(inner).numel()) == here.pop("patch_embedding.weight")
    assert flat == here


def test_the_third_norm_is_the_second_there() -> None:
    names = rename(spec_shapes(MICRO_DIT, sla=False), "dit", "diffusers")
    assert names["blocks.3.norm3.weight"] == "blocks.3.norm2.weight"
    assert names["head.modulation"] == "scale_shift_table"
    assert names["blocks.0.cross_attn.o.bias"] == "blocks.0.attn2.to_out.0.bias"


# diffusers builds its VAE for any depth, so the card of the embedded models is an oracle as well.
@pytest.mark.parametrize("config", [WAN_VAE, WAN_SMALL, MINI_VAE], ids=["wan", "small", "mini"])
def test_diffusers_vae(config: VAEConfig) -> None:
    there, here = diffusers_shapes(config), spec_shapes(config)
    layout = resolve(there)
    assert (layout.kind, layout.dialect, layout.others) == ("vae", "diffusers", ())
    assert {name: there[key] for name, key in layout.names.items()} == here
    assert rename(here, "vae", "diffusers") == layout.names


@pytest.mark.parametrize("config", [UMT5_XXL, MICRO_TEXT], ids=["xxl", "micro"])
def test_transformers_text_encoder(config: TextEncoderConfig) -> None:
    there, here = transformers_shapes(config), spec_shapes(config)
    assert "encoder.embed_tokens.weight" in there  # tied: the same tensor under two names
    layout = resolve(there)
    assert (layout.kind, layout.dialect, layout.others) == ("text_encoder", "transformers", ())
    assert {name: there[key] for name, key in layout.names.items()} == here
    assert rename(here, "text_encoder", "transformers") == layout.names
    del there["shared.weight"]  # some writers keep only the other one
    assert resolve(there).names["token_embedding.weight"] == "encoder.embed_tokens.weight"


def test_a_tokenizer_packed_into_the_text_encoder_is_left_out() -> None:
    there = transformers_shapes(MICRO_TEXT) | {"spiece_model": (4_548_313,)}
    layout = resolve(there)
    assert layout.others == () and "spiece_model" not in layout.names.values()


CASES = {
    "dit": spec_shapes(MICRO_DIT),
    "int8": spec_shapes(MICRO_DIT, quantized=True),
    "vae": spec_shapes(MINI_VAE),
    "text_encoder": spec_shapes(MICRO_TEXT),
}


@pytest.mark.parametrize("prefix", ["", *PREFIXES, "module.net."])
@pytest.mark.parametrize("case", CASES)
def test_prefixes(case: str, prefix: str) -> None:
    shapes = {prefix + name: shape for name, shape in CASES[case].items()}
    layout = resolve(shapes)
    assert layout.names == {name: prefix + name for name in CASES[case]}
    assert layout.dialect == "released" and layout.others == ()
    assert layout.wrappers == ((prefix,) if prefix else ())


def test_prefix_over_a_renamed_dialect() -> None:
    there = {f"model.{k}": v for k, v in diffusers_shapes(MICRO_DIT).items()}
    layout = resolve(there)
    assert layout.dialect == "diffusers" and layout.others == ()
    assert layout.names["head.head.bias"] == "model.proj_out.bias"


def test_checkpoint_wrapper_infix() -> None:
    def wrap(name: str) -> str:
        part, _, rest = name.partition(".")
        if part == "blocks":
            number, _, rest = rest.partition(".")
            return f"net.blocks.{number}.{INFIX}{rest}"
        return f"net.head.{INFIX}{rest}" if part == "head" else f"net.{name}"

    shapes = {wrap(name): shape for name, shape in CASES["dit"].items()}
    layout = resolve(shapes, wrapper="state_dict")
    assert layout.names == {name: wrap(name) for name in CASES["dit"]}
    assert layout.wrappers == ('{"state_dict": …}', INFIX, "net.")


def test_foreign_keys_are_kept_apart() -> None:
    shapes = {f"net.{k}": v for k, v in CASES["dit"].items()} | {"net_ema.step": ()}
    layout = resolve(shapes)
    assert layout.others == ("net_ema.step",) and len(layout.names) == len(CASES["dit"])
    there = diffusers_shapes(MICRO_DIT) | {"blocks.0.attn1.extra.weight": (1,)}
    assert resolve(there).others == ("blocks.0.attn1.extra.weight",)


def test_unknown_names() -> None:
    layout = resolve({"conv.weight": (3, 3)})
    assert (layout.kind, layout.dialect, layout.names) == ("", "", {"conv.weight": "conv.weight"})


def test_rename_refuses_what_has_no_place() -> None:
    with pytest.raises(WeightsError, match="proj_l"):
        rename(CASES["dit"], "dit", "diffusers")
    with pytest.raises(WeightsError, match="no 'transformers' naming"):
        rename(CASES["vae"], "vae", "transformers")


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("dit", DIT_1_3B),
        ("dit", replace(MICRO_DIT, text_len=512)),
        ("vae", replace(WAN_VAE, latent_mean=(), latent_std=())),
        ("vae", MINI_VAE),
        ("vae", VAEConfig(8, 4, (1, 2), 3, (False,))),
        ("text_encoder", UMT5_XXL),
        ("text_encoder", replace(MICRO_TEXT, text_len=512)),
    ],
)
def test_configurations_are_read_back_from_shapes(kind: str, config: Config) -> None:
    assert infer(kind, spec_shapes(config)) == config
