"""Turn a description into an error when the file is not what it is wanted for.

All checks run on the header, before a network is built or a tensor is read.
"""

from __future__ import annotations

from turbodiffusion.errors import WeightsError
from turbodiffusion.models.cards import DiTConfig, TextEncoderConfig
from turbodiffusion.weights.detect import Description
from turbodiffusion.weights.infer import Config, differences

WORDS = {
    "dit": "a diffusion transformer (DiT)",
    "vae": "a VAE",
    "text_encoder": "a text encoder",
    "lora": "a LoRA",
    "unknown": "no network this package knows",
}

_UNSUPPORTED = {
    "clip": (
        "weights-clip-variant",
        "is the Wan2.1 image-to-video variant with a CLIP branch (img_emb, k_img, v_img)",
        "Image to video runs with the two experts of TurboWan2.2-I2V-A14B-720P.",
    ),
    "fp8": (
        "weights-fp8",
        "is an fp8 repackage (scale_weight / scaled_fp8), whose scaling is not supported",
        "Use the bf16 file, or the -quant file for the same memory.",
    ),
    "fastvideo": (
        "weights-dialect",
        "uses FastVideo's tensor names, which are not supported",
        "Use the released .pth or the diffusers form of the model.",
    ),
}


def some(names: tuple[str, ...], limit: int = 3) -> str:
    """The first names of a list and how many follow."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def require_supported(found: Description) -> None:
    """Raise unless the file is a network in a form this package can read."""
    if found.unsupported:
        code, what, fix = _UNSUPPORTED[found.unsupported]
        raise WeightsError(code, f"{found.path} {what}.", fix)


def require_kind(found: Description, kind: str) -> None:
    """Raise unless the file holds a network of this kind (``dit``, ``vae``, ``text_encoder``)."""
    if found.kind == "lora":
        raise WeightsError(
            "weights-lora",
            f"{found.path} is a LoRA ({found.dialect} naming): a change to a network, not one.",
            f"Give {WORDS[kind]}; add the LoRA to it with "
            f"`turbodiffusion merge MODEL OUT --lora {found.path.name}`.",
        )
    if found.kind != kind:
        raise WeightsError(
            "weights-kind",
            f"{found.path} holds {WORDS[found.kind]} where {WORDS[kind]} is wanted.",
            "See what a file is with `turbodiffusion inspect FILE`.",
        )
    require_supported(found)


def require_config(found: Description, wanted: Config, name: str = "") -> None:
    """Raise unless the network has the sizes of ``wanted``, naming those that differ."""
    if found.config is None:
        return  # parts are missing: require_complete names them
    wrong = differences(found.config, wanted, found.attention == "sla")
    if not wrong:
        return
    title = f" of {name}" if name else ""
    fits = f" It fits {', '.join(found.cards)}." if found.cards else ""
    if isinstance(wanted, TextEncoderConfig):
        raise WeightsError(
            "weights-text-width",
            f"{found.path} is not the text encoder{title}: {some(tuple(wrong))}.{fits}",
            "Released models use umT5-xxl (width 4096): models_t5_umt5-xxl-enc-bf16.pth.",
        )
    what = "network" if isinstance(wanted, DiTConfig) else "VAE"
    raise WeightsError(
        "weights-card",
        f"{found.path} is not the {what}{title}: {some(tuple(wrong))}.{fits}",
        "Choose the model by the file: `turbodiffusion inspect FILE` names the card.",
    )


def require_complete(found: Description) -> None:
    """Raise unless every tensor of the released format is there, with its shape, and no other."""
    if found.complete and found.config is not None:
        return
    parts = [
        f"{len(names)} {what} ({some(names)})"
        for what, names in (
            ("missing", found.missing),
            ("unexpected", found.unexpected),
            ("of another shape", found.mismatched),
        )
        if names
    ]
    raise WeightsError(
        "weights-keys",
        f"{found.path} is incomplete or altered: "
        f"{'; '.join(parts) or 'its main tensors are absent'}.",
        "Fetch the file again; `turbodiffusion inspect FILE` lists what it holds.",
    )
