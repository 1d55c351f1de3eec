"""Named and adaptive sizes, (width, height)."""

from __future__ import annotations

import pytest

from turbodiffusion.errors import UsageError
from turbodiffusion.media import RESOLUTIONS, adaptive_size, parse_size, resolution

TABLE = """
480p 640×640 640×480 480×640 832×480 480×832
720p 960×960 960×720 720×960 1280×720 720×1280
480 480×480 640×480 480×640 768×432 432×768
512 512×512 640×512 512×640 640×384 384×640
720 960×960 960×704 704×960 1280×704 704×1280
"""


def test_table():
    rows = [line.split() for line in TABLE.strip().splitlines()]
    assert list(RESOLUTIONS) == [row[0] for row in rows]
    for name, *sizes in rows:
        for aspect, size in zip(["1:1", "4:3", "3:4", "16:9", "9:16"], sizes, strict=True):
            assert "×".join(map(str, resolution(name, aspect))) == size
            assert all(side % 16 == 0 for side in resolution(name, aspect))


@pytest.mark.parametrize(("name", "aspect"), [("1080p", "16:9"), ("480p", "21:9"), ("", "1:1")])
def test_unknown_names(name, aspect):
    with pytest.raises(UsageError, match="known are"):
        resolution(name, aspect)


@pytest.mark.parametrize(
    ("name", "image", "wanted"),
    [
        ("720p", (1024, 768), (1104, 832)),
        ("720p", (768, 1024), (832, 1104)),
        ("720p", (1920, 1080), (1280, 720)),
        ("720p", (1000, 1000), (960, 960)),
        ("720p", (4000, 1000), (1920, 480)),
        ("480p", (1920, 1080), (848, 480)),
        ("480p", (1000, 1000), (624, 624)),
    ],
)
def test_adaptive(name, image, wanted):
    width, height = resolution(name, "16:9")
    assert adaptive_size(image[1], image[0], width * height) == wanted


def test_adaptive_rounds_half_to_even():
    assert adaptive_size(1, 1, 40 * 40) == (32, 32)  # 2.5 → 2
    assert adaptive_size(1, 1, 56 * 56) == (64, 64)  # 3.5 → 4


def test_adaptive_multiple():
    assert adaptive_size(90, 160, 64 * 64, multiple=8) == (88, 48)


def test_adaptive_refuses_slivers():
    with pytest.raises(UsageError, match="too narrow"):
        adaptive_size(1, 100_000, 832 * 480)
    with pytest.raises(UsageError, match="0×5"):
        adaptive_size(5, 0, 832 * 480)


@pytest.mark.parametrize("text", ["832x480", "832X480", "832×480", "832*480", " 832 x 480 "])
def test_parse(text):
    assert parse_size(text, 16) == (832, 480)


@pytest.mark.parametrize("text", ["", "832", "x480", "0x480", "-8x8", "8.5x8", "8x8x8", "480p"])
def test_parse_refuses(text):
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


def test_parse_names_the_nearest():
    with pytest.raises(UsageError, match=r"multiples of 16\. The nearest is 832x16\."):
        parse_size("830x3", 16)
