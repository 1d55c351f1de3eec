"""Contact sheets: the right frames in the right places, and text that can be read."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.media.clips import halves, ramps
from turbodiffusion.errors import UsageError
from turbodiffusion.media import contact_sheet, read_settings
from turbodiffusion.media.sheet import GREEN, MARGIN, PAPER, RED


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def find(sheet: np.ndarray, picture: np.ndarray) -> list[tuple[int, int]]:
    """Places (top, left) where ``picture`` is shown exactly."""
    h, w, _ = picture.shape
    corners = np.argwhere((sheet[: -h + 1, : -w + 1] == picture[0, 0]).all(-1))
    return [(y, x) for y, x in corners.tolist() if (sheet[y : y + h, x : x + w] == picture).all()]


def test_frames_are_spread_and_enlarged(tmp_path):
    clip = np.zeros((11, 64, 48, 3), np.uint8)
    clip[:] = ramps(48, 64, 1)
    clip[:, :10, :10] = np.arange(11, dtype=np.uint8)[:, None, None, None] * 20
    path = contact_sheet([clip], ["a ramp"], tmp_path / "s.png", frames_per_row=3, scale=2)
    sheet = pixels(path)
    places = []
    for i in (0, 5, 10):
        enlarged = clip[i].repeat(2, 0).repeat(2, 1)
        assert len(find(sheet, enlarged)) == 1
        places += find(sheet, enlarged)
    assert find(sheet, clip[4].repeat(2, 0).repeat(2, 1)) == []
    tops, lefts = zip(*places, strict=True)
    assert len(set(tops)) == 1 and list(lefts) == sorted(lefts) and lefts[0] == MARGIN


def test_size_is_chosen(tmp_path):
    """64 pixels are doubled, 832 are reduced to 256; each keeps its shape."""
    small, large = halves(64, 64, 2), np.full((2, 480, 832, 3), (9, 99, 199), np.uint8)
    sheet = pixels(contact_sheet([small, large], ["small", "large"], tmp_path / "s.png"))
    assert len(find(sheet, small[0].repeat(2, 0).repeat(2, 1))) == 1
    ys, xs = np.nonzero((sheet == (9, 99, 199)).all(-1))
    assert ys.max() - ys.min() + 1 == round(480 * 256 / 832)
    assert xs.max() - xs.min() + 1 == 2 * 256 + 6


def test_marks_and_margins(tmp_path):
    clips = [halves(64, 64, 3)] * 2
    marks = [{"colour": True, "shape": None}, {"colour": True, "shape": True}]
    good = pixels(contact_sheet(clips, ["a", "b"], tmp_path / "a.png", marks=marks))
    marks = [{"colour": True, "shape": None}, {"colour": True, "shape": False}]
    bad = pixels(contact_sheet(clips, ["a", "b"], tmp_path / "b.png", marks=marks))

    def count(sheet, colour):
        return int((sheet == colour).all(-1).sum())

    assert count(good, GREEN) > count(bad, GREEN) > 0
    assert count(bad, RED) > 20 and count(good, RED) == 0
    for sheet in (good, bad):
        inside = np.zeros(sheet.shape[:2], bool)
        inside[MARGIN - 1 : 1 - MARGIN, MARGIN - 1 : 1 - MARGIN] = True
        assert (sheet[~inside] == PAPER).all()


def test_captions_are_dark_and_stay_on_the_sheet(tmp_path):
    clip = halves(64, 64, 2)
    short = pixels(contact_sheet([clip], ["a red circle"], tmp_path / "a.png"))
    long = pixels(contact_sheet([clip], ["a red circle " * 30], tmp_path / "b.png"))
    word = pixels(contact_sheet([clip], ["x" * 300], tmp_path / "c.png"))
    title = pixels(contact_sheet([clip], ["a red circle"], tmp_path / "d.png", title="Held out"))
    assert short.shape[1] == long.shape[1] == word.shape[1]
    assert long.shape[0] > short.shape[0] and word.shape[0] > short.shape[0]
    assert title.shape[0] > short.shape[0]
    assert short[MARGIN : MARGIN + 24].min() < 60
    assert (long[:, : MARGIN - 1] == PAPER).all() and (long[:, 1 - MARGIN :] == PAPER).all()


def test_other_scripts_are_drawn_in_ascii(tmp_path):
    clip = [halves(64, 64, 2)]
    accents = pixels(contact_sheet(clip, ["é — “ü” × ß"], tmp_path / "a.png"))
    plain = pixels(contact_sheet(clip, ['e - "u" x ss'], tmp_path / "b.png"))
    assert np.array_equal(accents, plain)


def test_settings_and_empty_captions(tmp_path):
    path = contact_sheet([halves(8, 8, 1)], [""], tmp_path / "deep" / "s.png", title="T")
    assert read_settings(path) == {"sheet": "T", "captions": [""]}


@pytest.mark.parametrize(
    "call",
    [
        {"videos": [], "captions": []},
        {"videos": [halves(8, 8, 2)], "captions": []},
        {"videos": [halves(8, 8, 2)], "captions": ["a"], "marks": []},
        {"videos": [halves(8, 8, 2)], "captions": ["a"], "scale": 0},
        {"videos": [halves(8, 8, 2)], "captions": ["a"], "frames_per_row": 0},
        {"videos": [halves(8, 8, 2)[0]], "captions": ["a"]},
        {"videos": [halves(8, 8, 2) / 255], "captions": ["a"]},
    ],
    ids=["none", "caption", "marks", "scale", "frames", "picture", "float"],
)
def test_refused(tmp_path, call):
    with pytest.raises(UsageError):
        contact_sheet(path=tmp_path / "s.png", **call)
    assert list(tmp_path.iterdir()) == []
