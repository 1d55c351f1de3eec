"""Where each file of each model is published, and what it is called on disk.

Repositories are Hugging Face ids. Sizes and sha256 are given where they are public; the
TurboDiffusion files publish neither hash, so their size is that of the tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

from turbodiffusion.models.cards import ModelCard
from turbodiffusion.weights.spec import dit_spec, spec_bytes

BASE_REPOSITORY = "Wan-AI/Wan2.1-T2V-1.3B"


@dataclass(frozen=True)
class RemoteFile:
    """One published file: repository, path in it, size in bytes, sha256 (``""`` if unknown)."""

    repository: str
    path: str
    bytes: int
    sha256: str = ""

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


BASE_FILES: dict[str, RemoteFile] = {
    "vae": RemoteFile(
        BASE_REPOSITORY,
        "Wan2.1_VAE.pth",
        507_609_880,
        "38071ab59bd94681c686fa51d75a1968f64e470262043be31f7a094e442fd981",
    ),
    "text_encoder": RemoteFile(
        BASE_REPOSITORY,
        "models_t5_umt5-xxl-enc-bf16.pth",
        11_361_920_418,
        "7cace0da2b446bbbbc57d031ab6cf163a3d59b366da94e5afe36745b746fd81d",
    ),
    "tokenizer": RemoteFile(
        BASE_REPOSITORY,
        "google/umt5-xxl/tokenizer.json",
        16_837_417,
        "6e197b4d3dbd71da14b4eb255f4fa91c9c1f2068b20a2de2472967ca3d22602b",
    ),
}


def stem(card: ModelCard, expert: str = "", quantized: bool = False) -> str:
    """File name of a DiT without extension: the expert goes before the resolution."""
    name = card.name
    if expert:
        head, _, resolution = name.rpartition("-")
        name = f"{head}-{expert}-{resolution}"
    return name + ("-quant" if quantized else "")


def dit_files(card: ModelCard, quantized: bool = False) -> dict[str, RemoteFile]:
    """Expert → published DiT file of a released card; empty for embedded cards."""
    if card.embedded:
        return {}
    repository = f"TurboDiffusion/{card.name}"
    size = spec_bytes(dit_spec(card.dit, quantized))
    return {
        expert: RemoteFile(repository, f"{stem(card, expert, quantized)}.pth", size)
        for expert in card.experts
    }
