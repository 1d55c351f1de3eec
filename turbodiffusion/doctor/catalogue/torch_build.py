"""Builds of torch, and what was linked to another one."""

from __future__ import annotations

from turbodiffusion.doctor.catalogue.entry import Entry, do, either, linux, run

ENTRIES = (
    Entry(
        id="TORCH-NOT-INSTALLED",
        title="torch is not installed in the Python that runs.",
        cause="The environment is another one than intended, or nothing was installed yet.",
        fixes=(
            run("Install what is needed.", "python turbo.py setup"),
            either("See which Python runs.", "which -a python", "Get-Command -All python"),
        ),
        patterns=(r"ModuleNotFoundError: No module named 'torch'",),
        seen=("ModuleNotFoundError: No module named 'torch'",),
        rank=3,
        stage="import",
        platforms="linux windows wsl docker",
        relation="P",
        probes="P05 P17",
    ),
    Entry(
        id="TORCH-CPU-BUILD",
        title="This torch is a CPU build.",
        cause=(
            "On Windows the default package index holds only CPU builds of torch, so an "
            "upgrade of any package that needs torch replaces the CUDA build without a "
            "word."
        ),
        fixes=(
            run("Put the right build back.", "turbodiffusion setup --fix"),
            run(
                "The same by hand, with uv.",
                "uv pip install --reinstall torch torchvision --torch-backend=auto",
            ),
            run(
                "The same by hand, with pip.",
                "python -m pip install --force-reinstall torch torchvision --index-url "
                "https://download.pytorch.org/whl/cu130",
            ),
            do(
                "To keep it, install packages that need torch in the same command, or with "
                "a constraints file that pins torch."
            ),
        ),
        patterns=(
            r"Torch not compiled with CUDA enabled",
            r"PyTorch was compiled without CUDA support",
        ),
        seen=("AssertionError: Torch not compiled with CUDA enabled",),
        stage="import",
        platforms="windows linux",
        relation="P",
        probes="P05",
    ),
    Entry(
        id="TORCH-CPU-TAG-SEEN",
        title="The log mentions a CPU build of torch.",
        cause=("That is right on a machine without an NVIDIA GPU. With one, the GPU stays unused."),
        fixes=(run("Let the set-up choose the build.", "turbodiffusion setup --fix"),),
        patterns=(r"\b(?P<version>\d{1,3}\.\d{1,3}\.\d{1,3})\+cpu\b",),
        seen=(">>> print(torch.__version__)\n2.3.0+cpu",),
        rank=3,
        severity="major",
        stage="import",
        platforms="windows linux",
        relation="P",
        probes="P05",
        sign=True,
    ),
    Entry(
        id="CUDA-LIB-SONAME-MISSING",
        title="A CUDA library that an extension was linked to is not there.",
        cause=(
            "The extension was built for another CUDA major than torch, such as a CUDA 12 "
            "flash-attn beside a CUDA 13 torch, or torch's own nvidia packages are missing."
        ),
        fixes=(
            run(
                "Remove the extension; turbodiffusion runs without it.",
                "python -m pip uninstall -y flash-attn xformers sageattention",
            ),
            run("If torch itself cannot be imported, put it back.", "turbodiffusion setup --fix"),
            do(
                "Otherwise install the extension for exactly this torch and CUDA. Links "
                "between library versions of different majors only move the crash."
            ),
        ),
        patterns=(
            (
                r"lib(?P<library>cudart|cublas|cublasLt|cudnn\w{0,40}|nvrtc|cusparse\w{0,40}"
                r"|cusolver|cufft|curand|nccl|nvJitLink|cupti)\.so\.(?P<version>[\d.]{1,20}): "
                r"cannot open shared object file"
            ),
        ),
        seen=(
            (
                "ImportError: libcudart.so.12: cannot open shared object file: No such file or "
                "directory"
            ),
            (
                "ImportError: libcudart.so.11.0: cannot open shared object file: No such file "
                "or directory"
            ),
        ),
        stage="import",
        platforms="linux docker",
        relation="P",
        probes="P05 P19",
    ),
    Entry(
        id="NVJITLINK-MIXED-CUDA",
        title="A CUDA library of the system was loaded in place of torch's own.",
        cause=(
            "LD_LIBRARY_PATH leads the loader to an older libnvJitLink before the one that "
            "came with torch."
        ),
        fixes=(
            linux("Start without it, or without the CUDA folders in it.", "unset LD_LIBRARY_PATH"),
            run(
                "If that does not help, make a fresh environment.",
                "turbodiffusion setup --venv .venv-new",
            ),
        ),
        patterns=(r"undefined symbol: __nvJitLink\w{1,80}",),
        seen=(
            (
                "ImportError: .../nvidia/cusparse/lib/libcusparse.so.12: undefined symbol: "
                "__nvJitLinkComplete_12_4, version libnvJitLink.so.12"
            ),
        ),
        stage="import",
        platforms="linux",
        relation="P",
        probes="P18 P05",
    ),
    Entry(
        id="TORCH-ABI-UNDEFINED-SYMBOL",
        title="An extension was built for another version of torch.",
        cause=(
            "It looks for functions that this torch does not have, or for those of the "
            "other C++ ABI."
        ),
        fixes=(
            run(
                "Remove the extension; turbodiffusion runs without it.",
                "python -m pip uninstall -y flash-attn xformers sageattention",
            ),
            do("Otherwise install the wheel whose name has this torch, CUDA, Python and cxx11abi."),
        ),
        patterns=(r"undefined symbol: _ZNK?(3c10|2at|5torch|6caffe2)",),
        seen=(
            (
                "ImportError: flash_attn_2_cuda.cpython-312-x86_64-linux-gnu.so: undefined "
                "symbol: "
                "_ZN3c105ErrorC2ENS_14SourceLocationENSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"
            ),
            "undefined symbol: _ZN2at4_ops9_pad_enum4callERKNS_6TensorEN3c108ArrayRef",
            "undefined symbol: _ZNK3c1017SymbolicShapeMeta18init_is_contiguousEv",
        ),
        stage="import",
        platforms="linux",
        relation="P",
        probes="P19",
    ),
    Entry(
        id="PIP-NO-TORCH-FOR-PYTHON",
        title="There is no torch for this Python, platform or tag.",
        cause=(
            "The Python is 32 bit, or newer than the release of torch, or the tag is not "
            "published for that release."
        ),
        fixes=(
            run("Use a 64-bit Python from 3.10 to 3.13.", "uv venv --python 3.12"),
            run("Let the set-up choose a build that exists.", "turbodiffusion setup"),
        ),
        patterns=(
            r"Could not find a version that satisfies the requirement torch(vision|audio)?\b",
            r"No matching distribution found for torch(vision|audio)?\b",
        ),
        seen=(
            (
                "ERROR: Could not find a version that satisfies the requirement torch==2.8.0 "
                "(from versions: none)"
            ),
        ),
        stage="install",
        platforms="linux windows",
        relation="P",
        probes="P17 P05",
    ),
)
