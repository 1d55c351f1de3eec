"""Downloads from a hub that stalls, breaks off, refuses and lies; only the loopback is used."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.weights.fake_hub import COMMIT, FakeHub, Fault
from turbodiffusion.errors import CapacityError, TurboDiffusionError, WeightsError
from turbodiffusion.weights import download, hub, transfer, verify
from turbodiffusion.weights.catalogue import RemoteFile
from turbodiffusion.weights.download import Item, fetch, fetch_all, fetch_folder, into
from turbodiffusion.weights.identity import full_hash

ROOT = Path(__file__).parents[2]
REPOSITORY = "someone/net"
BIG = random.Random(0).randbytes(3_000_003)
SMALL = b'{"a": 1}\n' * 40


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """An empty machine and a hub with one repository."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    fake = FakeHub()
    fake.files = {(REPOSITORY, "big.pth"): BIG, (REPOSITORY, "sub/config.json"): SMALL}
    fake.small = {"sub/config.json"}
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "TURBODIFFUSION_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", fake.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TURBODIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.setattr(transfer, "PAUSES", (0.01, 0.02))
    monkeypatch.chdir(tmp_path)
    close_session()
    yield fake
    close_session()
    fake.close()


class Watch:
    """Adds up what it is told."""

    def __init__(self) -> None:
        self.count = 0
        self.notes: list[str] = []

    def moved(self, count: int) -> None:
        self.count += count

    def note(self, text: str) -> None:
        self.notes.append(text)


def remote(data: bytes = BIG, path: str = "big.pth", known: bool = False) -> RemoteFile:
    digest = hashlib.sha256(data).hexdigest() if known else ""
    return RemoteFile(REPOSITORY, path, len(data), digest)


def get(one: RemoteFile | None = None, folder: Path | None = None) -> tuple[Path, Watch]:
    watch = Watch()
    return fetch(Item("network", one or remote()), folder, watch), watch


def blobs(tmp_path: Path) -> Path:
    return tmp_path / "hub" / "models--someone--net" / "blobs"


def test_into_the_cache_as_the_library_lays_it_out(server: FakeHub, tmp_path: Path) -> None:
    path, watch = get()
    assert path == tmp_path / "hub/models--someone--net/snapshots" / COMMIT / "big.pth"
    assert path.read_bytes() == BIG and watch.count == len(BIG)
    assert path.resolve() == (blobs(tmp_path) / hashlib.sha256(BIG).hexdigest()).resolve()
    assert hub.cached_file(REPOSITORY, "big.pth") == path
    assert [p.name for p in blobs(tmp_path).iterdir()] == [hashlib.sha256(BIG).hexdigest()]
    assert verify.known_hash(remote()) == hashlib.sha256(BIG).hexdigest()  # recorded
    assert len(server.gets("big.pth")) == 1
    get()  # again: the blob is there
    assert len(server.gets("big.pth")) == 1


def test_without_links_the_file_itself_lies_in_the_snapshot(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "can_link", lambda: False)
    path, _ = get()
    assert path.read_bytes() == BIG and not path.is_symlink()
    assert hub.cached_file(REPOSITORY, "big.pth") == path
    assert not list(blobs(tmp_path).iterdir())


def test_small_files_are_compared_with_their_git_id(server: FakeHub, tmp_path: Path) -> None:
    server.faults["GET sub/config.json"] = [Fault(wrong=True)]
    path, watch = get(remote(SMALL, "sub/config.json"), tmp_path / "models")
    assert path == tmp_path / "models/sub/config.json" and path.read_bytes() == SMALL
    assert watch.notes == ["wrong bytes came; once more from the start"]
    assert sorted(p.name for p in path.parent.iterdir()) == ["config.json"]


FAULTS: dict[str, tuple[list[Fault], list[int]]] = {
    "breaks-off": ([Fault(after=1_000_000), Fault(after=1_500_000)], [0, 1_000_000, 2_500_000]),
    "breaks-off-at-once": ([Fault(after=0), Fault(after=1)], [0, 0, 1]),
    "goes-silent": ([Fault(after=700_000, stall=1.0)], [0, 700_000]),
    "429": ([Fault(status=429, headers={"Retry-After": "0"})], [-1, 0]),
    "503": ([Fault(after=900), Fault(status=503), Fault(status=502)], [0, -1, -1, 900]),
    "no-ranges": ([Fault(after=800_000), Fault(no_range=True)], [0, 0]),
    "wrong-bytes": ([Fault(wrong=True)], [0, 0]),
    "wrong-beginning": ([Fault(wrong=True, after=500_000)], [0, 500_000, 0]),
}


@pytest.mark.parametrize("known", [False, True], ids=["stated-hash", "published-hash"])
@pytest.mark.parametrize(("faults", "starts"), FAULTS.values(), ids=FAULTS)
def test_faults(server: FakeHub, faults: list[Fault], starts: list[int], known: bool) -> None:
    server.faults["GET big.pth"] = list(faults)
    path, watch = get(remote(known=known))
    assert path.read_bytes() == BIG
    assert [r.start for r in server.gets("big.pth")] == starts
    assert watch.count == len(BIG)


def test_patience_ends(server: FakeHub, tmp_path: Path) -> None:
    server.faults["GET big.pth"] = [Fault(after=600_000)] + [Fault(status=503)] * 10
    with pytest.raises(WeightsError, match="503") as caught:
        get()
    assert caught.value.code == "weights-download" and "goes on where it" in caught.value.fix
    assert len(server.gets("big.pth")) == 1 + 1 + len(transfer.PAUSES)
    server.faults.clear()
    assert get()[0].read_bytes() == BIG
    assert server.gets("big.pth")[-1].start == 600_000


def test_wrong_bytes_twice(server: FakeHub, tmp_path: Path) -> None:
    server.faults["GET big.pth"] = [Fault(wrong=True)] * 2
    with pytest.raises(WeightsError) as caught:
        get(folder=tmp_path / "models")
    assert caught.value.code == "weights-hash"
    assert list((tmp_path / "models").iterdir()) == []


def test_another_file_than_the_published_one_is_not_even_fetched(server: FakeHub) -> None:
    with pytest.raises(WeightsError) as caught:
        get(RemoteFile(REPOSITORY, "big.pth", len(BIG), "0" * 64))
    assert caught.value.code == "weights-hash" and not server.gets("big.pth")


def test_what_is_not_there(server: FakeHub) -> None:
    with pytest.raises(WeightsError) as caught:
        get(RemoteFile(REPOSITORY, "no.pth", 1))
    assert caught.value.code == "weights-download" and "no.pth" in caught.value.message


def test_metadata_is_asked_for_again(server: FakeHub) -> None:
    server.faults["HEAD big.pth"] = [Fault(status=503)]
    assert get()[0].read_bytes() == BIG


def test_full_disk_keeps_what_fits(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 1_234_567

    def write(file, piece: bytes) -> int:
        free = room - file.tell()
        file.write(piece[: max(free, 0)])
        if free < len(piece):
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(piece)

    monkeypatch.setattr(transfer, "_write", write)
    with pytest.raises(CapacityError) as caught:
        get()
    assert caught.value.code == "disk-full" and caught.value.exit_code == 4
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert get()[0].read_bytes() == BIG
    assert server.gets("big.pth")[-1].start == room


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(OSError) as caught:
        transfer._write(file, b"x")
    assert caught.value.errno == errno.ENOSPC


def test_space_is_checked_before_the_start(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 10**9 + len(BIG)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    monkeypatch.setattr(download, "RESERVE", 10**9)
    item = Item("network", RemoteFile(REPOSITORY, "big.pth", len(BIG) + 1))
    with pytest.raises(CapacityError):
        download.require_space([item], tmp_path / "models")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/.big.pth.incomplete").write_bytes(b"x")  # what is there counts
    download.require_space([item], tmp_path / "models")


def test_offline_touches_no_network(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("socket.socket.connect", None)
    for ask in (
        lambda: fetch_all([Item("network", remote())], None, lambda item: Watch()),
        lambda: fetch_folder(REPOSITORY),
        lambda: download.fetch_file(REPOSITORY, "big.pth"),
    ):
        with pytest.raises(WeightsError) as caught:
            ask()
        assert caught.value.code == "weights-offline"
    assert server.requests == []


def test_a_whole_repository(server: FakeHub) -> None:
    server.files[REPOSITORY, "evil.py"] = b"import os"
    folder = fetch_folder(REPOSITORY)
    assert (folder / "big.pth").read_bytes() == BIG
    assert (folder / "sub/config.json").read_bytes() == SMALL
    assert not server.gets("evil.py")


def test_one_failure_stops_the_others_and_keeps_their_bytes(
    server: FakeHub, tmp_path: Path
) -> None:
    server.files[REPOSITORY, "bad.pth"] = b"x" * 1000
    server.faults["GET bad.pth"] = [Fault(wrong=True)] * 2
    server.faults["GET big.pth"] = [Fault(after=400_000, stall=0.2)] * 9
    items = [Item("", remote()), Item("", remote(b"x" * 1000, "bad.pth"))]
    with pytest.raises(WeightsError, match=r"bad\.pth"):
        fetch_all(items, tmp_path / "models", lambda item: Watch())
    assert (tmp_path / "models/.big.pth.incomplete").stat().st_size % 400_000 == 0
    server.faults.clear()
    paths = fetch_all(items, tmp_path / "models", lambda item: Watch())
    assert [p.name for p in paths] == ["big.pth", "bad.pth"]
    assert server.gets("big.pth")[-1].start >= 400_000


@pytest.mark.parametrize("layout", ["flat", "by-path", "cache"])
def test_from_a_folder_without_the_network(
    server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    origin = tmp_path / "usb"
    place = {
        "flat": origin / "config.json",
        "by-path": origin / "sub/config.json",
        "cache": origin / "models--someone--net/snapshots" / COMMIT / "sub/config.json",
    }[layout]
    place.parent.mkdir(parents=True)
    place.write_bytes(SMALL)
    one = remote(SMALL, "sub/config.json", known=True)
    (item,) = into([Item("", one)], None, origin)
    assert item.source == place
    (path,) = fetch_all([item], None, lambda item: Watch())
    assert path == Path("checkpoints/sub/config.json") and path.read_bytes() == SMALL
    place.write_bytes(SMALL[::-1])
    with pytest.raises(WeightsError) as caught:
        fetch_all([item], tmp_path / "other", lambda item: Watch())
    assert caught.value.code == "weights-hash" and server.requests == []


def test_what_lies_elsewhere_is_copied_into_the_folder(server: FakeHub, tmp_path: Path) -> None:
    cached, _ = get()
    (item,) = into([Item("", remote(), here=cached)], tmp_path / "models", None)
    assert item.here is None and item.source == cached
    (path,) = fetch_all([item], tmp_path / "models", lambda item: Watch())
    assert path.read_bytes() == BIG and len(server.gets("big.pth")) == 1
    (item,) = into([Item("", remote(), here=cached)], tmp_path / "models", None)
    assert item.here == path


def test_the_hash_is_not_computed_again(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = get()
    monkeypatch.setattr("turbodiffusion.weights.identity.compute_hash", None)
    assert full_hash(path) == hashlib.sha256(BIG).hexdigest()


def test_verdicts(server: FakeHub, tmp_path: Path, files: dict[str, Path]) -> None:
    known = remote(known=True)
    good = tmp_path / "big.pth"
    good.write_bytes(BIG)
    assert verify.check(known, good).state == "verified"
    good.write_bytes(BIG[:-1] + bytes([BIG[-1] ^ 1]))
    os.utime(good, ns=(1, 1))
    verdict = verify.check(known, good)
    assert verdict.state == "damaged" and known.sha256 in verdict.reason
    good.write_bytes(BIG[:-1])
    assert "bytes, and 3000003 are published" in verify.check(known, good).reason
    unknown = RemoteFile(REPOSITORY, "bf16.pth", 0)
    assert verify.check(unknown, files["bf16"]).state == "recorded"
    assert verify.check(unknown, files["bf16"]).state == "verified"  # against the record
    assert verify.check(unknown, files["safetensors"]).state == "recorded"  # a conversion
    assert verify.check(RemoteFile(REPOSITORY, "other.pth", 0), good).state == "damaged"


CHILD = """
import sys
from turbodiffusion.weights import transfer
transfer.PAUSES = (0.01, 0.02)
from turbodiffusion.cli.main import main
sys.exit(main(["download", "someone/net", *sys.argv[1:]]))
"""


@pytest.mark.skipif(os.name == "nt", reason="kills as Unix does")
@pytest.mark.parametrize("where", ["cache", "folder"])
def test_kill_9_anywhere_then_resume(server: FakeHub, tmp_path: Path, where: str) -> None:
    """The server kills the client after a random number of bytes, and once after the last."""
    words = ["--dir", str(tmp_path / "models")] if where == "folder" else []
    rng = random.Random(where)
    digest = hashlib.sha256(BIG).hexdigest()
    partial = {
        "folder": tmp_path / "models/.big.pth.incomplete",
        "cache": blobs(tmp_path) / f"{digest}.incomplete",
    }[where]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, *words], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    final = {"folder": tmp_path / "models/big.pth", "cache": blobs(tmp_path) / digest}[where]
    kept = [0]
    for number in range(7):
        children: list[subprocess.Popen[str]] = []
        rest = len(BIG) - kept[-1]
        after = rest if number == 6 else rng.randrange(rest // 2 + 1)

        def kill(children: list[subprocess.Popen[str]] = children) -> None:
            time.sleep(rng.uniform(0, 0.03))  # some of the bytes are on the disk, or none, or all
            children[0].send_signal(signal.SIGKILL)

        server.faults["GET big.pth"] = [Fault(after=after, call=kill, stall=0.05)]
        children.append(start())
        children[0].communicate(timeout=20)
        assert children[0].returncode == -signal.SIGKILL
        if final.exists():
            break
        kept.append(partial.stat().st_size if partial.exists() else 0)
    child = start()
    out, err = child.communicate(timeout=20)
    assert child.returncode == 0, err
    path = next(Path(line) for line in out.splitlines() if line.endswith("big.pth"))
    assert path.read_bytes() == BIG and not partial.exists()
    starts = [r.start for r in server.gets("big.pth")]
    assert starts == kept[: len(starts)]  # no byte that was on the disk is asked for again
    assert kept == sorted(kept) and kept[-1] > 0


def test_errors_explain_themselves(server: FakeHub) -> None:
    server.faults["GET big.pth"] = [Fault(status=401)]
    with pytest.raises(TurboDiffusionError) as caught:
        get()
    assert caught.value.code == "weights-download" and "HF_TOKEN" in caught.value.fix
