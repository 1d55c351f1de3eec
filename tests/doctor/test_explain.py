"""From a pasted log to its cause."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.doctor.codes import ROOT
from turbodiffusion.cli.main import main
from turbodiffusion.doctor import explain_text
from turbodiffusion.doctor.catalogue import FAILURES
from turbodiffusion.doctor.catalogue.entry import Near
from turbodiffusion.doctor.explain import explain, explain_source, explain_stream
from turbodiffusion.errors import UsageError

LOGS = sorted((Path(__file__).parent / "logs").glob("*.txt"))
SAMPLES = [
    pytest.param(one.id, sample, id=f"{one.id}-{number}")
    for one in FAILURES
    for number, sample in enumerate(one.seen)
]


def headline(text: str) -> str | None:
    found = explain(text).headline
    return found.entry.id if found else None


def coloured(text: str) -> str:
    return "\x1b[1m\x1b[31m" + text.replace(" ", "\x1b[0m \x1b[38;5;196m") + "\x1b[0m\x1b[K"


def wrapped(text: str) -> str:
    """Broken at every blank and indented, as pip does."""
    return "\r\n        ".join(text.split())


def cut(text: str) -> str:
    """Broken in the middle of words at column 60, as a narrow window does."""
    return "\n".join(
        line[start : start + 60] for line in text.split("\n") for start in range(0, len(line), 60)
    )


def framed(text: str) -> str:
    """In the box that rich draws around a traceback."""
    return "\n".join(["╭" + "─" * 40 + "╮", *(f"│ {w} │" for w in text.split()), "╰" + "─" * 40])


def amid(text: str) -> str:
    noise = "INFO loading shard 3 of 7 | 43% [00:12<00:16] everything as usual\r\n" * 50
    return f"{noise}Traceback (most recent call last):\r\n{text}\r\n{noise}"


FORMS = {
    "plain": str,
    "coloured": coloured,
    "colours without escapes": lambda text: coloured(text).replace("\x1b", ""),
    "carets": lambda text: coloured(text).replace("\x1b[K", "").replace("\x1b", "^["),
    "wrapped": wrapped,
    "cut": cut,
    "framed": framed,
    "curly quotes": lambda text: text.replace("'", "’"),
    "amid": amid,
    "other case": str.swapcase,
}


@pytest.mark.parametrize(("entry", "sample"), SAMPLES)
def test_samples(entry: str, sample: str):
    """Every sample gets its own entry as the headline, however it was pasted."""
    cased = {one.id for one in FAILURES if one.exact}
    for name, form in FORMS.items():
        if name == "other case" and entry in cased:
            continue
        assert headline(form(sample)) == entry, name


@pytest.mark.parametrize(("entry", "sample"), SAMPLES)
def test_encodings(entry: str, sample: str):
    log = amid(sample).encode("utf-8")
    text = log.decode()
    for data in (
        log,
        b"\xef\xbb\xbf" + log,
        text.encode("utf-16"),  # PowerShell 5's >
        b"\xfe\xff" + text.encode("utf-16-be"),
        text.encode("utf-16-le"),  # without the mark
        "PS> éé\n".encode("cp1252") + text.encode("utf-16-le"),  # PowerShell 5's >>
    ):
        found = explain_stream(io.BytesIO(data)).headline
        assert found and found.entry.id == entry


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_clean_logs(path: Path):
    found = explain(path.read_text("utf-8")).findings
    assert not [one.entry.id for one in found if one.entry.rank < 3]


def test_clean_logs_are_there():
    assert len(LOGS) >= 7


def test_the_report_of_torch_and_our_own_output_are_clean():
    for words in (["torch.utils.collect_env"], ["pip", "list"], ["turbodiffusion", "errors"]):
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, check=False, timeout=120
        )
        found = explain_stream(io.BytesIO(done.stdout + done.stderr)).findings
        assert not [one.entry.id for one in found if one.entry.rank < 3], words


def test_a_failed_test_still_shows_its_reason():
    line = "FAILED tests/x.py::test_a[No space left on device] - No CUDA GPUs are available"
    assert [one.entry.id for one in explain(line).findings] == ["NO-GPU-VISIBLE"]


def test_a_specific_cause_hides_wrappers():
    log = (
        "nvcc fatal   : Unsupported gpu architecture 'compute_120a'\n"
        "ninja: build stopped: subcommand failed.\n"
        "subprocess.CalledProcessError: Command '['ninja', '-v']' returned non-zero exit status 1."
    )
    assert [one.entry.id for one in explain(log).findings] == ["NVCC-ARCH-TOO-NEW"]
    assert headline(log.split("\n", 1)[1]) == "NINJA-BUILD-FAILED"


def test_worse_comes_first_then_earlier():
    log = (
        "SM89 kernel is not available\n"
        "RuntimeError: CUDA error: no kernel image is available for execution on the device\n"
        "RuntimeError: Triton Error [CUDA]: device kernel image is invalid\n"
    )
    order = [one.entry.id for one in explain(log).findings]
    assert order == ["NO-KERNEL-IMAGE", "KERNEL-IMAGE-INVALID", "SAGE-KERNEL-MISSING"]


def test_what_a_run_survives_hides_nothing():
    """pynvml's warning stands at the top of many logs; it is not why they end."""
    log = "The pynvml package is deprecated.\nCUDA out of memory. Tried to allocate 2.00 GiB"
    found = [one.entry.id for one in explain(log).findings]
    assert found == ["CUDA-OOM", "PYNVML-DEPRECATED"]
    assert headline(log.split("\n")[0]) == "PYNVML-DEPRECATED"


def test_nested_tracebacks_tell_the_root_first():
    log = (
        "Traceback (most recent call last):\n"
        '  File "driver.py", line 8, in init\n'
        "OSError: libcuda.so.1: cannot open shared object file: No such file or directory\n\n"
        "During handling of the above exception, another exception occurred:\n\n"
        "Traceback (most recent call last):\n"
        "RuntimeError: 0 active drivers ([]). There should only be one.\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        "RuntimeError: Found no NVIDIA driver on your system.\n"
    )
    order = [one.entry.id for one in explain(log).findings]
    assert order == ["LIBCUDA-NOT-FOUND", "TRITON-NO-ACTIVE-DRIVER", "DRIVER-NOT-FOUND"]


def test_values_lines_and_the_line_itself():
    found = explain(
        "ok\n\n  out of resource: shared memory, Required: 131072, Hardware limit: 101376. x"
    )
    one = found.headline
    assert one and one.values == {"needed": "131072", "limit": "101376"}
    assert one.line == 3 and one.seen.startswith("out of resource") and found.lines == 3


def test_line_numbers_far_down():
    for blank in ("", "   \t "):
        text = (f"step done{blank}\n" * 400_000) + "RuntimeError: No CUDA GPUs are available\n"
        found = explain(text)
        assert found.headline and found.headline.line == 400_001 == found.lines


def test_a_message_across_the_edge_of_a_part_is_found():
    message = "RuntimeError: No CUDA GPUs are available"
    for shift in (0, 7, 20, len(message)):
        start = explain_text.CHUNK - shift
        text = "x" * 7 + "\n" * (start - 7) + message + "\n" * (explain_text.OVERLAP + 100)
        assert headline(text) == "NO-GPU-VISIBLE"
        assert (
            headline("y " * (start // 2) + message + " z" * explain_text.CHUNK) == "NO-GPU-VISIBLE"
        )


def test_a_search_of_two_distant_words_across_parts():
    for place in (explain_text.CHUNK - 4000, explain_text.CHUNK - 100):
        text = (
            "\n" * place
            + "F.conv3d(\n"
            + "frame " * 900
            + "CUDA error: out of memory"
            + "\n" * 99999
        )
        assert headline(text) == "CONV3D-MEMORY-REGRESSION"
    far = "F.conv3d(\n" + "frame " * 2000 + "CUDA error: out of memory"
    assert headline(far) == "CUDA-OOM"


def test_unknown_and_empty_logs_say_so():
    found = explain("step 1\nValueError: no such thing\nbye\n")
    assert found.headline is None and found.findings == ()
    text = found.render()
    assert "None of the known failures" in text and "ValueError: no such thing" in text
    assert "bugreport" in text
    assert "looks like an error" in explain("all is well").render()
    assert explain("").render() == "The log is empty."
    assert explain("").as_json()["headline"] is None


def test_json():
    table = json.loads(
        json.dumps(explain("CUDA out of memory. Tried to allocate 2.00 GiB").as_json())
    )
    assert table["headline"]["id"] == "CUDA-OOM" == table["findings"][0]["id"]
    assert {"id", "title", "severity", "rank", "cause", "fixes", "values", "line", "seen"} <= set(
        table["headline"]
    )
    assert table["headline"]["fixes"][0]["bash"] == "turbodiffusion plan"
    assert json.loads(json.dumps(explain("hello").as_json()))["findings"] == []


def test_rendered_for_both_shells_or_one():
    text = explain(
        "RuntimeError: No CUDA GPUs are available\nDLL load failed while importing x"
    ).render()
    assert text.startswith("[NO-GPU-VISIBLE] The driver works, but no GPU is visible.\n  line 1: ")
    assert "bash:       unset CUDA_VISIBLE_DEVICES" in text
    assert "PowerShell: Remove-Item Env:CUDA_VISIBLE_DEVICES" in text
    assert "also in this log" not in text, "the wrapper is left out"
    one = explain("RuntimeError: No CUDA GPUs are available").render("powershell")
    assert "    Remove-Item Env:CUDA_VISIBLE_DEVICES" in one and "unset" not in one


def adversaries() -> list[str]:
    """Texts that make a careless pattern look at everything again from every place."""
    texts = []
    for one in FAILURES:
        for pattern in (*one.patterns, *one.exact):
            parts = (pattern.first, pattern.then) if isinstance(pattern, Near) else (pattern,)
            texts += [part.replace("\\", "").split("(?P")[0][:40] for part in parts]
    return texts


def test_time_is_linear_in_the_length():
    """Beginnings of every pattern again and again: no more than 1 s for 200 000 characters."""
    random.seed(5)
    texts = adversaries()
    runs = [text * (200_000 // max(len(text), 1)) for text in random.sample(texts, 30)]
    runs += ["cutlass/" * 25_000, "1" * 200_000, "1." * 100_000, "conv3d" * 33_000,
             "[a-b" * 50_000,
             "1 active drivers ([" * 20_000, "nvcc " * 40_000, "\x1b[" * 100_000,
             ".py::a[" * 50_000,
             "size mismatch for a." * 20_000, "No such file or directory: 'a" * 14_000,
             '"code": "a-' * 36_000, "\x1b]" * 100_000, " " * 200_000]  # fmt: skip
    for text in runs:
        start = time.perf_counter()
        explain(text)
        assert time.perf_counter() - start < 1, text[:60]


def lines(megabytes: int):
    line = b"2026-01-05 12:34:56,789 INFO step loss 0.123 [worker-3] loading shard 01-of-30 ok\r\n"
    return line * (megabytes * 1_000_000 // len(line))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("megabytes", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_long_logs_in_bounded_time_and_memory(megabytes: int):
    """In a child, so that its memory is its own: below 1 s a megabyte even on a busy machine, and
    a peak that does not grow with the log."""
    script = (
        "import re, time\n"
        "from turbodiffusion.doctor.explain import explain_source\n"
        "start = time.perf_counter()\n"
        "found = explain_source('-')\n"
        "spent = time.perf_counter() - start\n"
        "peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]\n"
        "print(found.headline.entry.id, found.headline.line == found.lines, spent, peak)"
    )
    log = lines(megabytes) + b"RuntimeError: No CUDA GPUs are available"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, input=log,
                          capture_output=True, check=True)  # fmt: skip
    entry, last, seconds, peak = done.stdout.decode().split()
    assert (entry, last) == ("NO-GPU-VISIBLE", "True")
    assert float(seconds) < megabytes
    assert int(peak) < 60_000, "kilobytes"


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="cannot be read") as caught:
        explain_source(str(tmp_path / "missing.log"))
    assert caught.value.code == "explain-unreadable"
    with pytest.raises(UsageError):
        explain_source(str(tmp_path))


def test_the_doctor_explains_a_file_and_standard_input(tmp_path, capsys, monkeypatch):
    log = tmp_path / "build.log"
    log.write_bytes("No CUDA GPUs are available".encode("utf-16"))
    assert main(["doctor", "--explain", str(log), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["headline"]["id"] == "NO-GPU-VISIBLE"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"nvcc was not found")))
    assert main(["doctor", "--explain", "-"]) == 0
    assert capsys.readouterr().out.startswith("[NVCC-NOT-FOUND]")


def test_the_errors_command(capsys):
    assert main(["errors", "cuda-oom"]) == 0
    out = capsys.readouterr().out
    assert (
        out.startswith("[CUDA-OOM] The GPU ran out of memory.\n") and "turbodiffusion plan" in out
    )
    assert main(["errors"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {one.id} " in out for one in FAILURES) and "prompt-empty" in out
    assert main(["errors", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) > 300
    assert main(["errors", "weights-truncated", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == "weights-truncated"
    assert main(["errors", "driver-to-old"]) == 2
    assert "Perhaps DRIVER-TOO-OLD" in capsys.readouterr().err


def test_the_errors_command_needs_nothing_installed():
    """``-S`` hides every installed package."""
    script = (
        "import sys; sys.path.insert(0, '.')\n"
        "from turbodiffusion.bootstrap.main import _command_line\n"
        "_command_line(['errors', 'CUDA-OOM'])\n"
        "from turbodiffusion.doctor.explain import explain\n"
        "print(explain('No CUDA GPUs are available').headline.entry.id)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", script], cwd=ROOT, capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert done.stdout.startswith("[CUDA-OOM]") and done.stdout.strip().endswith("NO-GPU-VISIBLE")
