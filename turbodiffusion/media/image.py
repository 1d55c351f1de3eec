"""Images in: from anything a user has to what the VAE encodes.

:func:`load_image` makes uint8 RGB of a file, a Pillow image, an array or a tensor;
:func:`prepare_image` resizes it the way the released image-to-video script does, on uint8, since
doing it in float or with Pillow changes pixels by a grey level.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from turbodiffusion.errors import MediaError, TurboDiffusionError, UsageError
from turbodiffusion.media.libraries import import_pillow
from turbodiffusion.media.settings import unreadable
from turbodiffusion.media.sizes import RESOLUTIONS, adaptive_size, parse_size, resolution

__all__ = [
    "RESOLUTIONS", "adaptive_size", "load_image", "parse_size", "prepare_image", "resolution",
]  # fmt: skip


def load_image(source: Any) -> Tensor:
    """uint8 RGB tensor (3, H, W) of an image.

    Args:
        source: a path, a Pillow image, an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a
            tensor (H, W), (1, H, W), (3, H, W) or (4, H, W). Arrays and tensors are uint8,
            uint16, or floating point in [0, 1].

    The orientation stored by cameras is applied. Transparent parts are laid over white: what lies
    below them in the file is arbitrary. 16-bit values are scaled, not cut off. Colour profiles
    are ignored, as in the released script.

    Raises:
        MediaError: missing, truncated, not an image, or so large that it may be an attack.
        UsageError: an array that is not an image.
    """
    if isinstance(source, str | os.PathLike):
        return _from_file(Path(source))
    if isinstance(source, Tensor):
        return _from_values(source.detach().cpu(), channels_first=True)
    if hasattr(source, "__array_interface__") and not hasattr(source, "getbands"):
        return _from_values(_tensor(source), channels_first=False)
    if hasattr(source, "getbands"):
        return _from_pillow(source)
    raise UsageError(
        "media-image-type",
        f"A {type(source).__name__} is not an image.",
        "Give a path, a Pillow image, an array (H, W, 3) or a tensor (3, H, W).",
    )


def centre_crop(image: Tensor, height: int, width: int) -> Tensor:
    """The largest centred part of (3, H, W) that has the shape of ``height`` × ``width``."""
    _, h, w = image.shape
    new_h, new_w = min(h, round(w * height / width)), min(w, round(h * width / height))
    top, left = (h - new_h) // 2, (w - new_w) // 2
    return image[:, top : top + max(1, new_h), left : left + max(1, new_w)]


def prepare_image(image: Tensor, height: int, width: int) -> Tensor:
    """Resize uint8 (3, H, W) to float32 (3, height, width) in [-1, 1].

    Bilinear with antialias on uint8; the shape of the image is not preserved, see
    :func:`adaptive_size` for a size that does. Then (x/255 - 0.5)/0.5.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise UsageError(
            "media-image-type",
            f"An image of shape {tuple(image.shape)} and type {image.dtype} cannot be prepared.",
            "It must be uint8 (3, H, W), as load_image gives it.",
        )
    if min(height, width) < 2:  # torch 2.13 resizes uint8 to a width of 1 wrongly, or crashes
        raise UsageError(
            "media-size",
            f"An image cannot be resized to {width}×{height} pixels.",
            "Both sides must be at least 2; the networks need multiples of 8 or 16.",
        )
    resized = functional.interpolate(
        image.cpu()[None], (height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return (resized[0].float() / 255 - 0.5) / 0.5


def _from_file(path: Path) -> Tensor:
    if not path.is_file():
        raise MediaError(
            "media-missing",
            f"There is no image {path}." if not path.is_dir() else f"{path} is a folder.",
            "Give the path of a picture such as photo.jpg.",
        )
    pillow = import_pillow()
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 megapixels on and refuses at twice that; refusing is enough.
            warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
            with pillow.open(path) as image:
                return _from_pillow(image)
    except pillow.DecompressionBombError as error:
        raise MediaError(
            "media-image-huge",
            f"{path} is refused: {error}",
            "Make the image smaller first; it is scaled down to the size of the video anyway.",
        ) from error
    except (TurboDiffusionError, MemoryError):
        raise
    except Exception as error:  # a damaged file raises whatever its format's parser raises
        raise unreadable(path, error) from error


def _from_pillow(image: Any) -> Tensor:
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        return _from_values(_tensor(image), channels_first=False)
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16-bit grey; convert() would clip
        return _from_values(_tensor(image).to(torch.int32), channels_first=False)
    if not image.has_transparency_data:
        return _tensor(image.convert("RGB")).permute(2, 0, 1).contiguous()
    rgba = image.convert("RGBA")
    white = import_pillow().new("RGBA", rgba.size, "white")
    white.alpha_composite(rgba)
    return _tensor(white.convert("RGB")).permute(2, 0, 1).contiguous()


def _tensor(source: Any) -> Tensor:
    import numpy as np

    array = np.array(source)  # a copy: Pillow's memory is read-only
    if array.dtype.kind not in "uif" or array.dtype.itemsize > 8:
        raise UsageError(
            "media-image-type",
            f"An array of type {array.dtype} is not an image.",
            "Use uint8, uint16, or floating point in [0, 1].",
        )
    native = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(native.astype(np.int32) if native.dtype == np.uint16 else native)


def _from_values(values: Tensor, *, channels_first: bool) -> Tensor:
    """Arrays and tensors: bring to (C, H, W) and 8 bits, grey to three channels, alpha to white."""
    shape = tuple(values.shape)
    if values.ndim == 2:
        planes = values[None]
    else:
        planes = values if channels_first or values.ndim != 3 else values.permute(2, 0, 1)
    if planes.ndim != 3 or planes.shape[0] not in (1, 3, 4) or not planes.numel():
        layout = "(3, H, W)" if channels_first else "(H, W, 3)"
        raise UsageError(
            "media-image-shape",
            f"Shape {shape} is not an image.",
            f"Use {layout}; arrays have their channels last, tensors first.",
        )
    unit = _unit_range(planes)
    if planes.shape[0] == 4:
        unit = unit[:3] * unit[3:] + (1 - unit[3:])
    return unit.mul(255).add(0.5).floor().byte().expand(3, -1, -1).contiguous()


def _unit_range(values: Tensor) -> Tensor:
    """float64 in [0, 1], exact for 8 bits."""
    top = 1 if values.is_floating_point() else 255 if values.dtype == torch.uint8 else 65535
    unit = values.double() / top
    low, high = float(unit.min()), float(unit.max())
    if not (low >= 0 and high <= 1):
        raise UsageError(
            "media-image-range",
            f"The image's values range from {low * top:g} to {high * top:g}.",
            f"A {values.dtype} image lies in 0 to {top}.",
        )
    return unit
