"""Images of every kind become the same uint8 RGB; resizing follows the released script."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from tests.media.clips import ramps
from turbodiffusion.errors import MediaError, SetupError, UsageError
from turbodiffusion.media import load_image, prepare_image
from turbodiffusion.media.image import centre_crop

RGB = ramps(37, 23, 1)[0]  # (23, 37, 3)


def planes(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


@pytest.mark.parametrize("extension", ["png", "bmp", "tiff", "webp"])
def test_file(tmp_path, extension):
    path = tmp_path / f"a photo ü.{extension}"
    Image.fromarray(RGB).save(path, **({"lossless": True} if extension == "webp" else {}))
    for source in (path, str(path)):
        image = load_image(source)
        assert image.dtype == torch.uint8 and image.is_contiguous()
        assert image.equal(planes(RGB))


@pytest.mark.parametrize(
    "source",
    [
        Image.fromarray(RGB),
        RGB,
        RGB / 255,
        (RGB / 255).astype(np.float32),
        RGB.astype(np.uint16) * 257,
        RGB[::-1].copy()[::-1],
        planes(RGB),
        planes(RGB).float() / 255,
        planes(RGB).double() / 255,
    ],
    ids=["pil", "uint8", "double", "float", "uint16", "strided", "tensor", "t-float", "t-double"],
)
def test_objects(source):
    assert load_image(source).equal(planes(RGB))


def test_camera_orientation(tmp_path):
    """Each of the eight orientations shows the upright picture."""
    upright = Image.fromarray(RGB)
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }
    for orientation, image in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(tmp_path / "x.png", exif=exif)
        assert load_image(tmp_path / "x.png").equal(planes(RGB)), orientation


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_over_white(tmp_path, mode):
    rgba = np.zeros((4, 6, 4), np.uint8)
    rgba[..., :3] = (204, 204, 204)  # in the standard palette, and grey for LA
    rgba[:, :2, 3], rgba[:, 2:4, 3], rgba[:, 4:, 3] = 255, 128, 0
    image = Image.fromarray(rgba)
    if mode == "PA":
        image = Image.fromarray(rgba[..., :3]).convert("P").convert("PA")
        image.putalpha(Image.fromarray(rgba[..., 3]))
    else:
        image = image.convert(mode)
    result = load_image(image)
    wanted = [204] * 2 + [round((204 * 128 + 255 * 127) / 255)] * 2 + [255] * 2
    assert (result - torch.tensor(wanted, dtype=torch.uint8)).abs().max() == 0


def test_transparent_palette_colour(tmp_path):
    image = Image.new("P", (4, 2), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((3, 1), 1)
    image.save(tmp_path / "x.png", transparency=0)
    result = load_image(tmp_path / "x.png")
    assert result[:, 0, 0].tolist() == [255, 255, 255]
    assert result[:, 1, 3].tolist() == [200, 100, 50]


def test_array_with_alpha():
    array = np.zeros((2, 2, 4), np.uint8)
    array[0, 0] = (10, 20, 30, 255)
    result = load_image(array)
    assert result[:, 0, 0].tolist() == [10, 20, 30]
    assert result[:, 1, 1].tolist() == [255, 255, 255]
    assert load_image(planes(array)).equal(result)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB"])
def test_modes(mode):
    """Every mode of Pillow that stands for a colour ends where Pillow's conversion does."""
    image = Image.fromarray(RGB)
    image = image.convert(mode) if mode != "LAB" else image.convert("RGB")
    wanted = planes(np.asarray(image.convert("RGB")))
    assert load_image(image).equal(wanted)
    assert wanted.float().std() > 20


def test_grey_of_16_bits_is_scaled(tmp_path):
    values = np.array([[0, 256, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.mode.startswith("I")
    wanted = torch.tensor([0, 1, 128, 255]).byte().expand(3, 1, 4)
    for source in (tmp_path / "x.png", values, values.astype(">u2"), wanted[0]):
        assert load_image(source).equal(wanted)


def test_float_picture():
    values = np.array([[0.0, 0.5, 1.0]], np.float32)
    assert load_image(Image.fromarray(values))[0].tolist() == [[0, 128, 255]]


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (np.zeros((2, 3, 5), np.uint8), r"Shape \(2, 3, 5\)"),
        (np.zeros((3, 8, 8), np.uint8), r"arrays have their channels last"),
        (torch.zeros(8, 8, 3), r"Use \(3, H, W\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"not an image"),
        (np.zeros((0, 8, 3), np.uint8), r"not an image"),
        (np.full((4, 4, 3), 255.0), r"range from 255 to 255"),
        (np.full((4, 4, 3), -0.5), r"0 to 1"),
        (np.full((4, 4, 3), np.nan), r"range from nan"),
        (np.zeros((4, 4, 3), complex), r"type complex128"),
        (7, r"A int is not an image"),
        (None, r"A NoneType is not an image"),
    ],
)
def test_not_images(source, match):
    with pytest.raises(UsageError, match=match):
        load_image(source)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_truncated_file(tmp_path, extension):
    path = tmp_path / f"x.{extension}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(MediaError, match="truncated") as caught:
        load_image(path)
    assert caught.value.code == "media-damaged"


def test_bad_files(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"")
    with pytest.raises(MediaError, match="cannot be read"):
        load_image(path)
    path.write_text("<html></html>")
    with pytest.raises(MediaError, match="cannot be read"):
        load_image(path)
    with pytest.raises(MediaError, match="There is no image"):
        load_image(tmp_path / "missing.png")
    with pytest.raises(MediaError, match="is a folder"):
        load_image(tmp_path)


def test_decompression_bomb(tmp_path, monkeypatch):
    Image.new("1", (300, 100)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(MediaError, match="exceeds limit") as caught:
        load_image(tmp_path / "x.png")
    assert caught.value.code == "media-image-huge"


def test_large_but_allowed(tmp_path, monkeypatch, recwarn):
    Image.new("1", (300, 100)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    assert load_image(tmp_path / "x.png").shape == (3, 100, 300)
    assert not recwarn.list


def test_without_pillow(tmp_path, monkeypatch):
    (tmp_path / "x.png").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(SetupError, match="pip install pillow"):
        load_image(tmp_path / "x.png")


@pytest.mark.parametrize("size", [(16, 32), (240, 416), (23, 37), (2, 2)], ids=str)
def test_prepare(size):
    """Bilinear with antialias on uint8: values on the 8-bit grid, within rounding of the truth."""
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (3, 23, 37), np.uint8))
    result = prepare_image(image, *size)
    assert result.shape == (3, *size) and result.dtype == torch.float32
    levels = (result * 0.5 + 0.5) * 255
    assert (levels - levels.round()).abs().max() < 1e-4
    truth = functional.interpolate(
        image[None].double(), size, mode="bilinear", antialias=True, align_corners=False
    )[0]
    assert (levels - truth).abs().max() <= 1.01  # two 8-bit roundings, one for each direction
    if levels.numel() > 1000:  # enough roundings to average out
        assert (levels - truth).mean().abs() < 0.1
    if size == (23, 37):
        assert levels.round().byte().equal(image)


def test_prepare_differs_from_pillow_by_one_level():
    image = planes(ramps(200, 120, 1)[0])
    ours = ((prepare_image(image, 48, 80) * 0.5 + 0.5) * 255).round()
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((80, 48), Image.BILINEAR)
    assert (ours - planes(np.asarray(resized)).float()).abs().max() <= 1


def test_prepare_range():
    white, black = torch.full((3, 8, 8), 255, dtype=torch.uint8), torch.zeros(3, 8, 8).byte()
    assert prepare_image(white, 16, 16).eq(1).all()
    assert prepare_image(black, 16, 16).eq(-1).all()
    with pytest.raises(UsageError, match="must be uint8"):
        prepare_image(torch.zeros(3, 8, 8), 16, 16)
    with pytest.raises(UsageError, match="16×1 pixels"):
        prepare_image(white, 1, 16)


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1)], ids=str)
def test_prepare_slivers(shape):
    """Images one pixel thin: the tensor looks channels-last to torch, the values must not care."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8))
    truth = functional.interpolate(image[None].double(), (8, 24), mode="bilinear", antialias=True)
    assert ((prepare_image(image, 8, 24) * 0.5 + 0.5) * 255 - truth[0]).abs().max() <= 1.01


@pytest.mark.parametrize(
    ("shape", "size", "rows", "columns"),
    [
        ((60, 100), (128, 128), (0, 60), (20, 80)),
        ((100, 60), (64, 64), (20, 80), (0, 60)),
        ((50, 50), (128, 128), (0, 50), (0, 50)),
        ((90, 160), (480, 832), (0, 90), (2, 158)),
        ((1, 900), (128, 128), (0, 1), (449, 450)),
        ((900, 1), (64, 832), (450, 451), (0, 1)),
    ],
)
def test_centre_crop(shape, size, rows, columns):
    """The middle stays, in the shape of the video; nothing is stretched."""
    image = torch.arange(3 * shape[0] * shape[1], dtype=torch.int32).view(3, *shape)
    wanted = image[:, slice(*rows), slice(*columns)]
    assert torch.equal(centre_crop(image, *size), wanted)
