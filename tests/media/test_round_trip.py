"""What is written comes back: frames, colours, rate and settings, in every format."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image, ImageSequence

from tests.media.clips import COLOURS, FORMATS, SETTINGS, halves, ramps
from turbodiffusion.errors import MediaError
from turbodiffusion.media import Video, open_writer, probe, read_settings, read_video
from turbodiffusion.media.settings import Document

EXACT = {"gif", "png"}


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("size", [(64, 48), (33, 17), (50, 31), (2, 3), (1, 1)], ids=str)
def test_pure_colours(tmp_path, extension, size):
    """Frames of one colour come back to 6 levels: the matrix used is the matrix named."""
    width, height = size
    clip = np.zeros((len(COLOURS), height, width, 3), np.uint8)
    clip[:] = np.array(COLOURS)[:, None, None]
    path = Video(clip, 16, SETTINGS).save(tmp_path / f"a clip ü 红.{extension}")
    back = read_video(path)
    assert back.frames.shape == clip.shape
    assert (back.fps, back.settings) == (16, SETTINGS)
    error = np.abs(back.frames.astype(int) - clip)
    assert error.max() <= (0 if extension in EXACT else 6)


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("size", [(64, 48), (33, 17), (50, 31)], ids=str)
def test_places(tmp_path, extension, size):
    """Two colours side by side: nothing moves, flips or leaks across.

    The codecs ring up to one 8-pixel transform block beside so hard an edge, VP9 a little further
    in its larger blocks, so that its maximum says nothing about colours (the test above does).
    """
    clip = halves(*size)
    back = read_video(Video(clip).save(tmp_path / f"x.{extension}")).frames
    edge = size[0] // 2
    flat = np.r_[0 : edge - 8, edge + 8 : size[0]]
    error = np.abs(back.astype(int) - clip)[:, :, flat]
    assert error.max() <= {"mp4": 6, "webm": 16}.get(extension, 0)
    assert error.mean() <= {"mp4": 2, "webm": 2}.get(extension, 0)


@pytest.mark.parametrize("extension", FORMATS)
def test_settings_and_facts(tmp_path, extension):
    assert len(json.dumps(SETTINGS)) > 4096
    path = Video(halves(32, 16, 9), 24, SETTINGS).save(tmp_path / f"x.{extension}")
    assert read_settings(path) == SETTINGS
    facts = probe(path)
    wanted = "frames" if extension == "png" else extension
    assert (facts.format, facts.width, facts.height) == (wanted, 32, 16)
    assert (facts.frames, facts.fps) == (9, 24)
    assert facts.duration == pytest.approx(9 / 24)


@pytest.mark.parametrize("extension", ["mp4", "webm"])
@pytest.mark.parametrize("fps", [16, 12.5, 24000 / 1001, 60], ids="{:.4g}".format)
def test_container_rate(tmp_path, extension, fps):
    """The stream itself, not only our document, plays at the right speed."""
    import av

    path = Video(halves(16, 16, 30), fps).save(tmp_path / f"x.{extension}")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stamps = [float(f.pts * f.time_base) for f in container.decode(stream)]
        assert container.duration / 1e6 == pytest.approx(30 / fps, abs=0.002)
    # Matroska counts in milliseconds
    assert np.allclose(np.diff(stamps), 1 / fps, atol=1.01e-3 if extension == "webm" else 1e-6)


@pytest.mark.parametrize("extension", ["mp4", "webm"])
def test_stream_names_its_colours(tmp_path, extension):
    import av

    path = Video(halves(16, 16)).save(tmp_path / f"x.{extension}")
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert context.pix_fmt == "yuv420p"
        tags = context.colorspace, context.color_primaries, context.color_trc, context.color_range
        assert tuple(map(int, tags)) == (1, 1, 1, 1)


def test_mp4_index_comes_first(tmp_path):
    content = Video(halves(16, 16)).save(tmp_path / "x.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize("extension", ["mp4", "webm", "gif"])
def test_same_frames_same_bytes(tmp_path, extension):
    saved = [
        Video(ramps(32, 32), 16, SETTINGS).save(tmp_path / f"{n}.{extension}").read_bytes()
        for n in "ab"
    ]
    assert saved[0] == saved[1]


def test_gif_keeps_equal_frames_and_time(tmp_path):
    still = np.repeat(halves(20, 10, 1), 33, axis=0)
    with Image.open(Video(still, 16).save(tmp_path / "x.gif")) as gif:
        assert gif.n_frames == 33
        delays = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
        assert gif.info["loop"] == 0
    assert set(delays) == {60, 70}  # 62.5 ms is between two hundredths
    assert sum(delays) == 10 * math.floor(100 * 33 / 16 + 0.5)


@pytest.mark.parametrize(("size", "mean"), [((64, 64), 4), ((256, 192), 6)], ids=str)
def test_gif_of_many_colours(tmp_path, size, mean):
    """Small frames by their best palette, large ones dithered: the average stays true."""
    clip = ramps(*size)
    back = read_video(Video(clip).save(tmp_path / "x.gif")).frames.astype(int)
    assert np.abs(back - clip).mean() < mean
    assert np.abs((back - clip).mean((1, 2))).max() < 2


def test_mp4_of_ramps(tmp_path):
    clip = ramps(64, 64)
    error = np.abs(read_video(Video(clip).save(tmp_path / "x.mp4")).frames.astype(int) - clip)
    assert error.mean() < 4


@pytest.mark.parametrize("extension", ["png", "jpg", "jpeg", "gif"])
def test_single_frame(tmp_path, extension):
    clip = ramps(40, 24, 1) if extension != "gif" else halves(40, 24, 1)
    path = Video(clip, 16, SETTINGS).save(tmp_path / f"one.{extension}")
    assert path.name == f"one.{extension}"
    back = read_video(path)
    assert back.settings == SETTINGS
    error = np.abs(back.frames.astype(int) - clip)
    assert error.max() == 0 if extension in ("png", "gif") else error.mean() < 4


def test_jpg_quality_is_85(tmp_path):
    import io

    path = Video(ramps(40, 24, 1)).save(tmp_path / "one.jpg")
    buffer = io.BytesIO()
    Image.fromarray(ramps(40, 24, 1)[0]).save(buffer, "JPEG", quality=85)
    with Image.open(path) as ours, Image.open(buffer) as reference:
        assert ours.quantization == reference.quantization


@pytest.mark.parametrize("name", ["one.mp4", "one.webm", "one"])
def test_single_frame_becomes_a_picture(tmp_path, name):
    video = Video(halves(32, 32, 1), 16, SETTINGS)
    if "." in name:
        with pytest.warns(UserWarning, match=r"writing one\.jpg instead of one\."):
            path = video.save(tmp_path / name)
    else:
        path = video.save(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["one.jpg"] == [path.name]
    assert read_settings(path) == SETTINGS


def test_jpeg_named_mp4_is_read(tmp_path):
    """The released scripts write one frame as a JPEG under the name of a video."""
    path = tmp_path / "generated_video.mp4"
    Image.fromarray(halves(32, 16, 1)[0]).save(path, "JPEG")
    assert read_video(path).frames.shape == (1, 16, 32, 3)
    assert probe(path).format == "jpg"


def test_png_folder_and_its_frames(tmp_path):
    path = Video(halves(16, 16, 12), 16, SETTINGS).save(tmp_path / "clip.png")
    assert path == tmp_path / "clip"
    assert sorted(p.name for p in path.iterdir()) == [f"{i:05d}.png" for i in range(12)]
    assert read_settings(path / "00007.png") == SETTINGS


@pytest.mark.parametrize("extension", [*FORMATS, "jpg"])
def test_file_without_settings(tmp_path, extension):
    """Files of other programs are read, and asked for settings they say that they have none."""
    path = tmp_path / f"x.{extension}"
    if extension in ("mp4", "webm"):
        import av

        with av.open(str(path), "w") as container:
            container.metadata["comment"] = '{"prompt": "of another program"}'
            codec = "libx264" if extension == "mp4" else "libvpx-vp9"
            stream = container.add_stream(codec, rate=10)
            stream.width = stream.height = 16
            stream.pix_fmt = "yuv420p"
            for rgb in halves(16, 16, 3):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
            container.mux(stream.encode(None))
        assert (len(read_video(path)), read_video(path).fps) == (3, 10)
    else:
        Image.fromarray(halves(16, 16, 1)[0]).save(path)
    assert read_video(path).settings == {}
    with pytest.raises(MediaError, match="holds no settings") as caught:
        read_settings(path)
    assert caught.value.code == "media-no-settings"


@pytest.mark.parametrize("extension", ["mp4", "webm", "gif", "png"])
def test_empty_settings_are_settings(tmp_path, extension):
    assert read_settings(Video(halves(16, 16, 2)).save(tmp_path / f"x.{extension}")) == {}


def test_unusual_settings(tmp_path):
    import torch

    given = {"path": tmp_path, "n": np.int64(3), "f": torch.tensor(0.5), "bad": "\udc80", "t": (1,)}
    path = Video(halves(16, 16, 2), 16, given).save(tmp_path / "x.mp4")
    wanted = {"path": str(tmp_path), "n": 3, "f": 0.5, "bad": "\udc80", "t": [1]}
    assert read_settings(path) == wanted
    with pytest.raises(MediaError, match="cannot be stored as JSON"):
        Video(halves(16, 16, 2), 16, {"x": object()}).save(tmp_path / "y.mp4")
    assert not (tmp_path / "y.mp4").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"turbodiffusion": 3}', '{"workflow": {}}'])
def test_other_comments_are_not_ours(text):
    assert Document.from_json(text) is None


@pytest.mark.parametrize("extension", ["mp4", "webm", "gif", "png", "jpg"])
def test_truncated(tmp_path, extension):
    frames = 1 if extension in ("png", "jpg") else 20
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (frames, 64, 64, 3), dtype=np.uint8)
    path = Video(clip).save(tmp_path / f"x.{extension}")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(MediaError):
        read_video(path)


def test_not_a_video(tmp_path):
    path = tmp_path / "x.mp4"
    path.write_text("<html>Not found</html>")
    for read in (read_video, read_settings, probe):
        with pytest.raises(MediaError) as caught:
            read(path)
        assert caught.value.code == "media-damaged"
        with pytest.raises(MediaError, match="There is no file"):
            read(tmp_path / "missing.mp4")
        with pytest.raises(MediaError, match="holds no frames"):
            read(tmp_path)


def test_long_settings_in_a_jpg(tmp_path):
    video = Video(halves(16, 16, 1), 16, {"prompt": "x" * 70_000})
    with pytest.raises(MediaError, match=r"a jpg holds 65533"):
        video.save(tmp_path / "x.jpg")
    assert list(tmp_path.iterdir()) == []
    assert read_settings(video.save(tmp_path / "x.png"))["prompt"] == "x" * 70_000


def test_pieces_make_the_same_video(tmp_path):
    """Streaming in pieces of any length gives the bytes of writing at once."""
    clip = ramps(32, 32, 9)
    whole = Video(clip, 16, SETTINGS).save(tmp_path / "whole.mp4")
    for name, cuts, known in (("a", [1, 5], 9), ("b", [1, 1, 2], None), ("c", [4], None)):
        with open_writer(tmp_path / f"{name}.mp4", 32, 32, 16, SETTINGS, frames=known) as writer:
            buffer = np.empty_like(clip)
            for piece in np.split(clip, cuts):
                buffer[: len(piece)] = piece  # a caller may reuse its memory
                writer.write(buffer[: len(piece)])
        assert writer.frames == 9
        assert writer.path.read_bytes() == whole.read_bytes()
