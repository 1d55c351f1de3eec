"""The video autoencoder: released shapes, whole clip against stream, causality, bf16, errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from turbodiffusion.errors import UsageError
from turbodiffusion.models.cards import MINI_VAE, WAN_VAE, VAEConfig
from turbodiffusion.models.vae import WanVAE
from turbodiffusion.models.vae_layers import CausalConv3d, Down, RMSNorm, Up, convolve

# Every pattern of time transitions; 8× in time and space; one that never touches time.
CONFIGS = {
    "wan": VAEConfig(dim=4, z_dim=6),
    "mini": VAEConfig(4, 5, (1, 2, 4), 1, (True, True)),
    "8x": VAEConfig(4, 3, (1, 2, 2, 4), 1, (True, True, True)),
    "early": VAEConfig(4, 3, (1, 2, 3), 1, (True, False)),
    "images": VAEConfig(4, 3, (1, 2), 1, (False,)),
}


def build(config: VAEConfig, seed: int = 0) -> WanVAE:
    """A network whose every parameter matters: random, of a size that keeps the signal's."""
    vae = WanVAE(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("gamma"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return vae


def clip(config: VAEConfig, latent_frames: int = 3, batch: int = 1, cells: int = 3) -> torch.Tensor:
    """A random video, taller than wide, whose latent is ``latent_frames × cells+1 × cells``."""
    generator = torch.Generator().manual_seed(1)
    frames = 1 + config.temporal_stride * (latent_frames - 1)
    height, width = (cells + 1) * config.spatial_stride, cells * config.spatial_stride
    return torch.rand(batch, 3, frames, height, width, generator=generator) * 2 - 1


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request) -> VAEConfig:
    return request.param


@pytest.fixture(scope="module")
def released_shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        vae = WanVAE(WAN_VAE)
    return {name: tuple(value.shape) for name, value in vae.state_dict().items()}


class TestReleasedShapes:
    @pytest.mark.parametrize(
        ("prefix", "parameters"),
        [("", 126892531), ("encoder.", 53595872), ("decoder.", 73295331), ("conv1.", 1056),
         ("conv2.", 272)],
    )  # fmt: skip
    def test_parameter_counts(self, released_shapes, prefix, parameters):
        sizes = (
            torch.Size(s).numel() for name, s in released_shapes.items() if name.startswith(prefix)
        )
        assert sum(sizes) == parameters

    def test_count_of_tensors(self, released_shapes):
        assert len(released_shapes) == 194

    @pytest.mark.parametrize(
        ("name", "shape"),
        {
            "encoder.conv1.weight": (96, 3, 3, 3, 3),
            "encoder.downsamples.0.residual.0.gamma": (96, 1, 1, 1),
            "encoder.downsamples.2.resample.1.weight": (96, 96, 3, 3),
            "encoder.downsamples.3.shortcut.weight": (192, 96, 1, 1, 1),
            "encoder.downsamples.5.time_conv.weight": (192, 192, 3, 1, 1),
            "encoder.downsamples.8.time_conv.weight": (384, 384, 3, 1, 1),
            "encoder.downsamples.10.residual.6.bias": (384,),
            "encoder.middle.1.norm.gamma": (384, 1, 1),
            "encoder.middle.1.to_qkv.weight": (1152, 384, 1, 1),
            "encoder.head.2.weight": (32, 384, 3, 3, 3),
            "conv1.weight": (32, 32, 1, 1, 1),
            "conv2.weight": (16, 16, 1, 1, 1),
            "decoder.conv1.weight": (384, 16, 3, 3, 3),
            "decoder.upsamples.3.time_conv.weight": (768, 384, 3, 1, 1),
            "decoder.upsamples.3.resample.1.weight": (192, 384, 3, 3),
            "decoder.upsamples.4.shortcut.weight": (384, 192, 1, 1, 1),
            "decoder.upsamples.7.time_conv.weight": (768, 384, 3, 1, 1),
            "decoder.upsamples.11.resample.1.weight": (96, 192, 3, 3),
            "decoder.upsamples.14.residual.2.weight": (96, 96, 3, 3, 3),
            "decoder.head.0.gamma": (96, 1, 1, 1),
            "decoder.head.2.weight": (3, 96, 3, 3, 3),
        }.items(),
    )
    def test_tensor(self, released_shapes, name, shape):
        assert released_shapes[name] == shape

    @pytest.mark.parametrize(
        "name",
        ["encoder.downsamples.2.time_conv.weight", "decoder.upsamples.11.time_conv.weight",
         "encoder.downsamples.0.shortcut.weight", "decoder.upsamples.8.shortcut.weight"],
    )  # fmt: skip
    def test_tensor_that_must_not_be(self, released_shapes, name):
        assert name not in released_shapes

    def test_slots_of_the_cache(self):
        vae = build(CONFIGS["wan"])
        video = clip(vae.config, latent_frames=2)
        slots: dict = {}
        moments = [vae.encoder(part, slots) for part in video.split([1, 4], dim=2)]
        assert len(slots) == 24
        slots = {}
        for z in torch.cat(moments, dim=2)[:, : vae.config.z_dim].split(1, dim=2):
            vae.decoder(z, slots)
        tensors = [module for module in slots if isinstance(module, CausalConv3d)]
        assert len(tensors) == 32


class TestForms:
    def test_encode_equals_parallel(self, config):
        vae, video = build(config), clip(config)
        streamed, parallel = vae.encode(video), vae.encode_parallel(video)
        assert streamed.shape == (1, config.z_dim, 3, 4, 3)
        torch.testing.assert_close(streamed, parallel.detach(), atol=1e-5, rtol=0)

    def test_decode_equals_parallel(self, config):
        vae = build(config)
        latent = torch.randn(1, config.z_dim, 4, 4, 3, generator=torch.Generator().manual_seed(2))
        streamed, parallel = vae.decode(latent), vae.decode_parallel(latent)
        assert streamed.shape == clip(config, latent_frames=4).shape
        torch.testing.assert_close(streamed, parallel.detach(), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("latent_frames", [1, 2, 3, 6])
    def test_lengths(self, config, latent_frames):
        vae, video = build(config), clip(config, latent_frames, cells=1)
        latent = vae.encode(video)
        assert latent.shape[2] == config.latent_frames(video.shape[2]) == latent_frames
        torch.testing.assert_close(latent, vae.encode_parallel(video).detach(), atol=1e-5, rtol=0)
        assert vae.decode(latent).shape == vae.decode_parallel(latent).shape == video.shape

    def test_longer_stretches_change_nothing(self):
        vae = build(CONFIGS["mini"])
        video = clip(vae.config, latent_frames=5)
        slots: dict = {}
        with torch.no_grad():
            parts = [vae.encoder(part, slots) for part in video.split([1, 8, 4, 4], dim=2)]
            expected = vae.encoder(video)
        torch.testing.assert_close(torch.cat(parts, dim=2), expected, atol=1e-5, rtol=0)

    def test_clips_of_a_batch_do_not_mix(self, config):
        vae, video = build(config), clip(config, batch=2)
        latent = vae.encode(video)
        for i in range(2):
            alone = vae.encode(video[i : i + 1])
            torch.testing.assert_close(latent[i : i + 1], alone, atol=1e-5, rtol=0)
            one = vae.decode(latent)[i : i + 1]
            # From the same latent: the decoder would enlarge what encoding left between the two.
            same = vae.decode(latent[i : i + 1])
            torch.testing.assert_close(one, same, atol=1e-5, rtol=0)

    def test_moments_are_unscaled_and_agree_with_encode(self):
        vae = build(MINI_VAE)
        mean = [0.1 * i for i in range(8)]
        std = [0.5 + i for i in range(8)]
        vae.set_latent_stats(mean, torch.tensor(std))
        video = clip(MINI_VAE)
        mu, logvar = vae.encode_moments(video)
        assert mu.shape == logvar.shape == (1, 8, 3, 4, 3)
        scale = torch.tensor([mean, std]).view(2, 1, 8, 1, 1, 1)
        expected = (mu - scale[0]) / scale[1]
        torch.testing.assert_close(vae.encode(video), expected.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            vae.decode(expected.detach()),
            vae.decoder(vae.conv2(mu)).detach(),
            atol=1e-5,
            rtol=0,
        )

    def test_inputs_stay_untouched(self):
        vae, video = build(MINI_VAE), clip(MINI_VAE)
        latent = vae.encode(video)
        kept = video.clone(), latent.clone()
        vae.encode(video)
        vae.decode(latent)
        assert torch.equal(video, kept[0]) and torch.equal(latent, kept[1])


class TestStream:
    def test_frames_come_as_they_are_decoded(self, config):
        vae = build(config)
        latent = torch.randn(1, config.z_dim, 3, 4, 3)
        parts = list(vae.decode_frames(latent))
        assert [part.shape[2] for part in parts] == [1] + [config.temporal_stride] * 2
        assert torch.equal(torch.cat(parts, dim=2), vae.decode(latent))

    def test_prefix_of_decode_bit_for_bit(self, config):
        vae = build(config)
        latent = torch.randn(1, config.z_dim, 4, 4, 3, generator=torch.Generator().manual_seed(3))
        whole = vae.decode(latent)
        for n in (1, 2, 3):
            part = vae.decode(latent[:, :, :n])
            assert torch.equal(part, whole[:, :, : part.shape[2]])

    def test_prefix_of_encode_bit_for_bit(self, config):
        vae, video = build(config), clip(config)
        prefix = video[:, :, : -config.temporal_stride]
        assert torch.equal(vae.encode(prefix), vae.encode(video)[:, :, :-1])

    def test_every_frame_reaches_its_latent_frame(self, config):
        vae, video = build(config), clip(config)
        before = vae.encode(video)
        for frame in range(video.shape[2]):
            changed = video.clone()
            changed[:, :, frame] += 0.5
            moved = (vae.encode(changed) - before).abs().amax(dim=(0, 1, 3, 4)) > 0
            first = -(-frame // config.temporal_stride)
            assert not moved[:first].any()
            assert moved[first:].any()

    def test_it_is_lazy(self):
        vae = build(MINI_VAE)
        decoded = []
        vae.decoder.register_forward_hook(lambda *_: decoded.append(1))
        frames = vae.decode_frames(torch.randn(1, 8, 3, 4, 4))
        next(frames)
        assert len(decoded) == 1

    def test_no_graph_is_kept_and_the_mode_of_the_caller_stays(self):
        vae = build(MINI_VAE)
        for part in vae.decode_frames(torch.randn(1, 8, 2, 4, 4)):
            assert not part.requires_grad
            assert torch.is_grad_enabled()


class TestTraining:
    def test_every_parameter_has_a_gradient(self, config):
        vae, video = build(config), clip(config)
        mu, logvar = vae.encode_moments(video)
        (vae.decode_parallel(mu + logvar).square().mean()).backward()
        for name, parameter in vae.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name

    def test_gradient_against_finite_difference(self):
        vae = build(CONFIGS["mini"]).double()
        vae.set_latent_stats([0.1] * 5, [2.0] * 5)
        video = clip(vae.config, latent_frames=2, cells=1).double()
        names = ("encoder.downsamples.1.time_conv.weight", "decoder.upsamples.2.time_conv.weight",
                 "decoder.middle.1.to_qkv.weight", "encoder.head.0.gamma")  # fmt: skip

        def loss() -> torch.Tensor:
            return vae.decode_parallel(vae.encode_parallel(video)).square().sum()

        loss().backward()
        for name in names:
            weight = vae.get_parameter(name)
            step = torch.randn(
                weight.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64
            )
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight += sign * 1e-5 * step
                    values.append(loss())
                    weight -= sign * 1e-5 * step
            slope = (values[0] - values[1]) / 2e-5
            assert weight.grad is not None
            torch.testing.assert_close(slope, (weight.grad * step).sum(), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
    def test_one_graph_for_the_compiler(self, grad):
        vae = build(CONFIGS["mini"])
        video = clip(vae.config, latent_frames=2, cells=1)
        latent = vae.encode(video)
        with torch.set_grad_enabled(grad):
            for form, x in ((vae.encode_parallel, video), (vae.decode_parallel, latent)):
                compiled = torch.compile(form, fullgraph=True, backend="eager")
                # Compiled code takes the convolution of PyTorch, which sums in another order.
                torch.testing.assert_close(compiled(x), form(x), atol=1e-5, rtol=0)

    def test_initial_weights(self):
        vae = WanVAE(MINI_VAE)
        vae.init_weights(torch.Generator().manual_seed(0))
        again = WanVAE(MINI_VAE)
        again.init_weights(torch.Generator().manual_seed(0))
        assert all(
            torch.equal(a, b) for a, b in zip(vae.parameters(), again.parameters(), strict=True)
        )
        weight = vae.decoder.conv1.weight
        assert weight.std().item() == pytest.approx((8 * 27) ** -0.5, rel=0.02)
        assert not vae.decoder.conv1.bias.any()
        assert not vae.get_parameter("encoder.downsamples.0.residual.6.weight").any()
        x = torch.randn(1, 64, 2, 4, 4)
        middle = vae.decoder.middle
        assert torch.equal(middle(x), x)

    def test_initial_time_convolutions_pass_frames_through(self):
        vae = WanVAE(MINI_VAE)
        vae.init_weights()
        for module in vae.modules():
            if isinstance(module, Up):
                channels = module.resample[1].in_channels
                x = torch.randn(1, channels, 3, 4, 4)
                doubled = module._double_frames(x, None)
                assert torch.equal(doubled, x[:, :, [0, 1, 1, 2, 2]])
            elif isinstance(module, Down):
                x = torch.randn(1, module.time_conv.in_channels, 5, 4, 4)
                assert torch.equal(module.time_conv(x), x[:, :, 2::2])

    def test_signal_keeps_its_size(self):
        vae = WanVAE(MINI_VAE)
        vae.init_weights(torch.Generator().manual_seed(0))
        video = clip(MINI_VAE)
        with torch.no_grad():
            assert 0.1 < vae.encode_parallel(video).std() < 3
            assert 0.1 < vae.decode_parallel(torch.randn(1, 8, 3, 4, 3)).std() < 3

    def test_a_few_steps_lower_the_error(self):
        torch.manual_seed(0)
        vae = WanVAE(VAEConfig(8, 4, (1, 2, 2), 1, (True, True)))
        vae.init_weights()
        video = F.interpolate(torch.rand(4, 3, 1, 2, 2) * 2 - 1, (5, 16, 16))
        optimiser = torch.optim.Adam(vae.parameters(), lr=3e-3)
        errors = []
        for _ in range(25):
            error = (vae.decode_parallel(vae.encode_parallel(video)) - video).square().mean()
            optimiser.zero_grad()
            error.backward()
            optimiser.step()
            errors.append(error.item())
        assert errors[-1] < 0.3 * errors[0]


class TestLayers:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_norm(self, dtype):
        norm = RMSNorm(24).to(dtype)
        with torch.no_grad():
            norm.gamma.copy_(torch.rand(24, 1, 1, 1) + 0.5)
            x = torch.randn(2, 24, 3, 2, 2).to(dtype)
            wide = x.double()
            expected = wide / wide.square().sum(1, keepdim=True).sqrt() * 24**0.5 * norm.gamma
            tolerance = 1e-6 if dtype is torch.float32 else 2e-2
            torch.testing.assert_close(
                norm(x).double(), expected, rtol=tolerance, atol=tolerance / 10
            )

    @pytest.mark.parametrize("size", [0.0, 1e-20, 1e15])
    def test_norm_of_extreme_values(self, size):
        x = torch.full((1, 4, 1, 1, 1), size, requires_grad=True)
        y = RMSNorm(4)(x)
        # √4 · x / max(2·size, 1e-12): one where the norm counts, nothing where it is too small.
        expected = 1.0 if size > 1 else 2 * size / 1e-12
        torch.testing.assert_close(y.detach(), torch.full_like(x, expected), rtol=1e-5, atol=0)
        y.sum().backward()
        assert x.grad is not None and x.grad.isfinite().all()

    @pytest.mark.parametrize(
        "conv",
        [CausalConv3d(3, 4, (3, 3, 3)), CausalConv3d(3, 4, (3, 1, 1)), CausalConv3d(3, 4, (1,) * 3),
         torch.nn.Conv3d(3, 4, (3, 1, 1), stride=(2, 1, 1))],
        ids=["3x3x3", "3x1x1", "1x1x1", "strided"],
    )  # fmt: skip
    def test_onednn_form_equals_the_module(self, conv):
        x = torch.randn(1, 3, 5, 6, 7)
        expected = torch.nn.Conv3d.forward(conv, x)
        with torch.no_grad():
            actual = convolve(conv, x)
        torch.testing.assert_close(actual, expected.detach(), atol=1e-5, rtol=0)

    def test_causal_convolution_pads_the_past_only(self):
        conv = CausalConv3d(2, 2, (3, 3, 3))
        x = torch.randn(1, 2, 4, 5, 5)
        expected = F.conv3d(F.pad(x, (1, 1, 1, 1, 2, 0)), conv.weight, conv.bias)
        torch.testing.assert_close(conv(x), expected, atol=1e-6, rtol=0)

    def test_spatial_down_pads_right_and_bottom(self):
        down = Down(2, temporal=False)
        x = torch.randn(1, 2, 1, 6, 8)
        conv = down.resample[1]
        expected = F.conv2d(F.pad(x[:, :, 0], (0, 1, 0, 1)), conv.weight, conv.bias, stride=2)
        torch.testing.assert_close(down(x)[:, :, 0], expected, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def bf16_vae() -> WanVAE:
    config = VAEConfig(dim=4, latent_mean=WAN_VAE.latent_mean, latent_std=WAN_VAE.latent_std)
    return build(config).to(torch.bfloat16)


class TestPrecision:
    MEAN = (-0.7578125, -0.70703125, -0.91015625, 0.107421875, -0.1748046875, 0.96484375,
            -0.1513671875, 1.5546875, 0.4140625, -0.0712890625, 0.55078125, -0.36328125,
            -0.1923828125, -0.94921875, 0.25, -0.29296875)  # fmt: skip
    INV_STD = (0.35546875, 0.6875, 0.4296875, 0.376953125, 0.8203125, 0.5625, 0.3828125,
               0.48046875, 0.306640625, 0.462890625, 0.349609375, 0.64453125, 0.609375, 0.890625,
               0.353515625, 0.5234375)  # fmt: skip

    def test_constants_are_rounded_before_they_are_inverted(self, bf16_vae):
        moments = torch.zeros(1, 32, 1, 1, 1, dtype=torch.bfloat16)
        mean, inv_std = torch.tensor([self.MEAN, self.INV_STD]).bfloat16()
        assert mean.float().tolist() == list(self.MEAN)
        assert bf16_vae._scaled(moments).flatten().tolist() == ((0 - mean) * inv_std).tolist()
        moments[:, :16] = mean.view(1, 16, 1, 1, 1) + 1
        expected = ((mean + 1) - mean) * inv_std
        assert bf16_vae._scaled(moments).flatten().tolist() == expected.tolist()
        ones = torch.ones(1, 16, 1, 1, 1, dtype=torch.bfloat16)
        assert bf16_vae._unscaled(ones).flatten().tolist() == (1 / inv_std + mean).tolist()

    def test_constants_come_back_with_the_weights(self, bf16_vae):
        single = WanVAE(bf16_vae.config).to(torch.bfloat16).to(torch.float32)
        mean, inv_std = single._latent_stats(torch.zeros(1))
        assert mean.flatten().tolist() == torch.tensor(WAN_VAE.latent_mean).tolist()
        assert inv_std.flatten().tolist() == (1 / torch.tensor(WAN_VAE.latent_std)).tolist()

    def test_bf16_is_close_and_returns_the_type_of_the_input(self, bf16_vae):
        exact = WanVAE(bf16_vae.config)
        exact.load_state_dict(bf16_vae.state_dict())
        video = clip(bf16_vae.config)
        latent = bf16_vae.encode(video)
        assert latent.dtype is torch.float32
        assert bf16_vae.encode(video.bfloat16()).dtype is torch.bfloat16
        assert torch.equal(latent, latent.bfloat16().float())
        expected = exact.encode(video)
        assert (latent - expected).abs().mean() < 0.03 * expected.std()
        decoded, expected = bf16_vae.decode(latent), exact.decode(latent)
        assert decoded.dtype is torch.float32
        assert (decoded - expected).abs().mean() < 0.03 * expected.std()

    def test_built_without_memory_and_filled(self, bf16_vae):
        with torch.device("meta"):
            empty = WanVAE(bf16_vae.config)
        empty.load_state_dict(bf16_vae.state_dict(), assign=True)
        latent = torch.randn(1, 16, 2, 2, 2)
        assert torch.equal(empty.decode(latent), bf16_vae.decode(latent))


class TestErrors:
    @pytest.mark.parametrize(
        ("frames", "fits"), [(2, "1 or 5"), (4, "1 or 5"), (6, "5 or 9"), (80, "77 or 81")]
    )
    @pytest.mark.parametrize("form", ["encode", "encode_parallel", "encode_moments"])
    def test_frames(self, form, frames, fits):
        vae = WanVAE(CONFIGS["mini"])
        with pytest.raises(UsageError, match=rf"{frames} frames.* 4·n \+ 1.*Use {fits} ") as caught:
            getattr(vae, form)(torch.zeros(1, 3, frames, 8, 8))
        assert caught.value.code == "vae-frames"

    def test_frames_of_another_stride(self):
        with pytest.raises(UsageError, match=r"8·n \+ 1.*Use 1 or 9 "):
            WanVAE(CONFIGS["8x"]).encode(torch.zeros(1, 3, 5, 8, 8))

    def test_size(self):
        with pytest.raises(UsageError, match=r"66×31 .* by 4.*64×32") as caught:
            WanVAE(CONFIGS["mini"]).encode(torch.zeros(1, 3, 1, 31, 66))
        assert caught.value.code == "vae-size"

    @pytest.mark.parametrize(
        "shape", [(3, 1, 8, 8), (1, 4, 1, 8, 8), (1, 3, 0, 8, 8), (0, 3, 1, 8, 8)], ids=str
    )
    def test_video_shape(self, shape):
        with pytest.raises(UsageError) as caught:
            WanVAE(CONFIGS["mini"]).encode(torch.zeros(shape))
        assert caught.value.code == "vae-video-shape"
        assert str(shape) in caught.value.message

    @pytest.mark.parametrize("form", ["decode", "decode_frames", "decode_parallel"])
    @pytest.mark.parametrize("shape", [(5, 1, 2, 2), (1, 4, 1, 2, 2), (1, 5, 0, 2, 2)], ids=str)
    def test_latent_shape(self, form, shape):
        with pytest.raises(UsageError) as caught:
            getattr(WanVAE(CONFIGS["mini"]), form)(torch.zeros(shape))
        assert caught.value.code == "vae-latent-shape"

    @pytest.mark.parametrize(
        ("mean", "std"),
        [([0.0] * 4, [1.0] * 5), ([0.0] * 5, [1.0] * 6), ([0.0] * 5, [1.0, 1.0, 0.0, 1.0, 1.0]),
         ([0.0] * 5, [1.0, 1.0, float("nan"), 1.0, 1.0])],
        ids=["mean too short", "std too long", "zero", "nan"],
    )  # fmt: skip
    def test_latent_stats(self, mean, std):
        vae = WanVAE(CONFIGS["mini"])
        with pytest.raises(ValueError):
            vae.set_latent_stats(mean, std)
        assert vae.config == CONFIGS["mini"]
