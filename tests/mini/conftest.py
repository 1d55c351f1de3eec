"""A folder with a whole embedded model of random weights."""

import pytest
import torch

from turbodiffusion.mini import export
from turbodiffusion.mini.recipe import recipe
from turbodiffusion.models.dit import WanDiT
from turbodiffusion.models.text_encoder import TextEncoder
from turbodiffusion.models.vae import WanVAE

VAE_REPORT = {
    "complete": True,
    "recipe": {"stage": "VAERecipe", "seed": 11},
    "steps": 3,
    "latent_mean": [0.25 * i - 1 for i in range(8)],
    "latent_std": [0.5 + 0.125 * i for i in range(8)],
}
TEACHER_REPORT = {"complete": False, "recipe": {"stage": "TeacherRecipe"}, "steps": 5, "loss": 0.5}


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Networks this small lose time to threads that wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def random_micro(tmp_path_factory):
    """(folder, vae, dit, text encoder) of size ``micro``, exported as training does."""
    size, folder = recipe("micro"), tmp_path_factory.mktemp("micro")
    generator = torch.Generator().manual_seed(8)
    vae, dit = WanVAE(size.card.vae), WanDiT(size.card.dit)
    text = TextEncoder(size.card.text)
    for module in (vae, dit, text):
        module.init_weights(generator)
    with torch.no_grad():
        dit.head.head.weight.normal_(std=0.1, generator=generator)  # zero at the start
    export.save_vae(size, vae, VAE_REPORT, folder)
    export.write_tokenizer(size, folder)
    export.save_teacher(size, dit, text, TEACHER_REPORT, folder)
    return folder, vae, dit, text
