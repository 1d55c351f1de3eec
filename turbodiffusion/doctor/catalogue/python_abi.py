"""Python itself, its headers, and packages built against something else."""

from __future__ import annotations

from turbodiffusion.doctor.catalogue.entry import Entry, do, either, linux, run, windows

ENTRIES = (
    Entry(
        id="PYNVML-DEPRECATED",
        title="An old NVML package is installed.",
        cause=(
            "pynvml was renamed to nvidia-ml-py. Readings still come; the warning goes away "
            "with the old name."
        ),
        fixes=(
            run("Replace it: first remove the old one.", "python -m pip uninstall -y pynvml"),
            run("Then install the new one.", "python -m pip install nvidia-ml-py"),
        ),
        patterns=(r"The pynvml package is deprecated",),
        seen=(
            (
                "FutureWarning: The pynvml package is deprecated. Please install nvidia-ml-py "
                "instead."
            ),
        ),
        severity="info",
        stage="import",
        platforms="linux windows",
        relation="P",
        probes="P19",
    ),
    Entry(
        id="PYTHON-HEADERS-MISSING",
        title="Python's C headers are missing.",
        cause=(
            "Triton compiles a small launcher against them. Distributions ship them in a "
            "separate package and the embeddable Python for Windows not at all; a virtual "
            "environment uses those of the Python it was made with."
        ),
        fixes=(
            linux("Install them, for the Python in use.", "sudo apt install python3.12-dev"),
            run("Or use a Python that brings them.", "uv venv --python 3.12 --managed-python"),
            windows(
                "Use the full installation from python.org.",
                "winget install --exact --id Python.Python.3.12",
            ),
        ),
        patterns=(r"""Python\.h['\"]?:? ?(No such file or directory|not found)""",),
        seen=(
            "cuda_utils.c:5:10: fatal error: Python.h: No such file or directory",
            "cuda_utils.c:14: error: include file 'Python.h' not found",
        ),
        stage="first-kernel",
        platforms="linux windows docker",
        relation="P",
        probes="P10",
    ),
    Entry(
        id="GLIBC-TOO-OLD",
        title="A compiled package needs a newer C or C++ library.",
        cause=(
            "It was built on a newer distribution. Ubuntu 20.04 has glibc 2.31 and RHEL 8 "
            "has 2.28, which is what torch itself needs."
        ),
        fixes=(
            run(
                "Remove the extension; turbodiffusion runs without it.",
                "python -m pip uninstall -y flash-attn xformers sageattention",
            ),
            linux(
                "If GLIBCXX or CXXABI is named, conda has a newer C++ library.",
                "conda install -c conda-forge libstdcxx-ng",
            ),
            do("Otherwise use a newer distribution or a container."),
        ),
        patterns=(
            (
                r"version [`'](?P<library>GLIBC|GLIBCXX|CXXABI)_(?P<needed>[\d.]{1,12})' not "
                r"found"
            ),
        ),
        seen=(
            (
                "ImportError: /lib64/libc.so.6: version `GLIBC_2.32' not found (required by "
                ".../flash_attn_2_cuda.cpython-312-x86_64-linux-gnu.so)"
            ),
        ),
        stage="import",
        platforms="linux",
        relation="P",
        probes="P01 P19",
    ),
    Entry(
        id="NUMPY-ABI",
        title="A package was built for NumPy 1 and meets NumPy 2.",
        cause="An old torch, OpenCV or SciPy wheel beside a new NumPy.",
        fixes=(
            run("Update the old packages.", "python -m pip install -U opencv-python scipy"),
            run(
                "If torch is the old one, let the set-up put the right one there.",
                "turbodiffusion setup --fix",
            ),
            run(
                "Or go back to NumPy 1, outside of turbodiffusion's environment.",
                "python -m pip install 'numpy<2'",
            ),
        ),
        patterns=(
            (
                r"A module that was compiled using NumPy 1\.x cannot be run in NumPy "
                r"(?P<numpy>[\d.]{1,12})"
            ),
        ),
        seen=(
            (
                "A module that was compiled using NumPy 1.x cannot be run in NumPy 2.0.2 as it "
                "may crash."
            ),
        ),
        severity="major",
        stage="import",
        platforms="linux windows",
        relation="P",
        probes="P19",
    ),
    Entry(
        id="EXTERNALLY-MANAGED",
        title="The system's Python does not allow pip to install into it.",
        cause="Distributions reserve it for their own packages (PEP 668).",
        fixes=(
            run("turbo.py makes an environment of its own.", "python3 turbo.py setup"),
            linux(
                "For other software, make one by hand.",
                "python3 -m venv .venv && source .venv/bin/activate",
            ),
        ),
        patterns=(r"externally-managed-environment",),
        seen=("error: externally-managed-environment",),
        stage="install",
        platforms="linux wsl",
        relation="P",
        probes="P17",
    ),
    Entry(
        id="CONDA-NOT-INITIALISED",
        title="conda was not set up for this shell.",
        cause=(
            "Its hook is missing from the shell's profile; in PowerShell often because "
            "scripts are not allowed to run."
        ),
        fixes=(
            do("turbodiffusion needs no conda."),
            either(
                "For conda, set it up and open a new shell.",
                "conda init bash",
                "conda init powershell",
            ),
        ),
        patterns=(r"Run ['`]conda init['`] before ['`]conda activate['`]",),
        seen=("Run `conda init` before `conda activate`",),
        severity="minor",
        stage="install",
        platforms="windows linux",
        relation="P",
        probes="P17",
    ),
    Entry(
        id="PY-SSIZE-T-CLEAN",
        title="Triton's cached launcher belongs to another Python or Triton.",
        cause="The cache survived a change of version.",
        fixes=(
            either(
                "Clear Triton's cache.",
                "rm -rf ~/.triton/cache",
                'Remove-Item -Recurse -Force "$env:USERPROFILE\\.triton\\cache"',
            ),
        ),
        patterns=(r"PY_SSIZE_T_CLEAN macro must be defined for '#' formats",),
        seen=("SystemError: PY_SSIZE_T_CLEAN macro must be defined for '#' formats",),
        severity="major",
        stage="first-kernel",
        platforms="windows",
        relation="P",
        probes="P11 P13",
    ),
    Entry(
        id="SETUPTOOLS-IMPIMPORTER",
        title="setuptools is older than this Python.",
        cause="Python 3.12 took away what old versions of setuptools use.",
        fixes=(
            run("Bring pip up to date.", "python -m ensurepip -U"),
            run("Then setuptools.", "python -m pip install -U pip setuptools"),
        ),
        patterns=(r"module 'pkgutil' has no attribute 'ImpImporter'",),
        seen=(
            (
                "AttributeError: module 'pkgutil' has no attribute 'ImpImporter'. Did you mean: "
                "'zipimporter'"
            ),
        ),
        severity="major",
        stage="import",
        platforms="windows linux",
        relation="P",
        probes="P17",
    ),
)
