"""Triton, its compiler and its assembler."""

from __future__ import annotations

from turbodiffusion.doctor.catalogue.entry import Entry, Near, do, either, linux, run, windows

ENTRIES = (
    Entry(
        id="TRITON-NO-C-COMPILER",
        title="Triton finds no C compiler.",
        cause=(
            "It compiles a small launcher the first time a kernel runs. Small images have "
            "no compiler; on Windows a Triton without the bundled one is installed."
        ),
        fixes=(
            linux(
                "Install one; nothing else of build-essential is needed.", "sudo apt install gcc"
            ),
            windows(
                "Remove a Triton that brings no compiler.", "python -m pip uninstall -y triton"
            ),
            windows(
                "Then install the one that does, for the torch in use.",
                "turbodiffusion setup --fix",
            ),
            linux(
                "Without administrator rights, take a compiler from conda-forge and name it.",
                "conda install -c conda-forge gcc && export CC=$CONDA_PREFIX/bin/gcc",
            ),
        ),
        patterns=(r"Failed to find C(\+\+)? compiler\. Please specify via (CC|CXX)",),
        seen=(
            (
                "RuntimeError: Failed to find C compiler. Please specify via CC environment "
                "variable."
            ),
        ),
        stage="first-kernel",
        platforms="linux windows docker",
        relation="P",
        probes="P08 P09",
    ),
    Entry(
        id="TRITON-LAUNCHER-COMPILE-FAILED",
        title="Triton's C compiler was found and failed.",
        cause=(
            "CC names a folder, a compiler that was removed, or a list; headers are "
            "missing; or the path of the temporary folder is too long or has letters that "
            "the compiler cannot read."
        ),
        fixes=(
            either("Let Triton choose the compiler.", "unset CC", "Remove-Item Env:CC"),
            windows(
                "Remove CC from the user's variables too.",
                "[Environment]::SetEnvironmentVariable('CC', $null, 'User')",
            ),
            do("If the log names Python.h, see PYTHON-HEADERS-MISSING."),
        ),
        patterns=(
            r"Failed to compile\. cc_cmd",
            Near(r"cuda_utils\.c'", r"returned non-zero exit status", 3000),
        ),
        seen=(
            (
                "Failed to compile. cc_cmd: ['...\\\\triton\\\\runtime\\\\tcc\\\\tcc.exe', "
                "'...\\\\cuda_utils.c', '-O3', '-shared'"
            ),
            "Failed to compile. cc_cmd",
        ),
        stage="first-kernel",
        platforms="windows linux",
        relation="P",
        probes="P09 P10 P18",
    ),
    Entry(
        id="TRITON-TORCH-MISMATCH",
        title="Triton does not fit torch.",
        cause="Every minor release of torch goes with one minor release of Triton.",
        fixes=(
            run("Put the pair back.", "turbodiffusion setup --fix"),
            run("See which Triton this torch declares.", "python -m pip show torch"),
        ),
        patterns=(r"cannot import name '(?P<name>\w{1,80})' from 'triton\.",),
        seen=(
            ("ImportError: cannot import name 'AttrsDescriptor' from 'triton.compiler.compiler'"),
            ("ImportError: cannot import name 'AttrsDescriptor' from 'triton.backends.compiler'"),
        ),
        stage="first-kernel",
        platforms="windows linux",
        relation="P",
        probes="P08",
    ),
    Entry(
        id="TRITON-PTXAS-ARCH",
        title="Triton's assembler does not know this GPU.",
        cause=(
            "10.3 and 12.1 need ptxas 12.9, 11.0 needs 13.0. Triton 3.4 and 3.5 bring 12.8, "
            "3.6 brings 12.9, 3.9 brings 13.4."
        ),
        fixes=(
            run("Take a newer torch, with the Triton that goes with it.", "turbodiffusion setup"),
            linux(
                "Or name the ptxas of an installed toolkit.",
                "export TRITON_PTXAS_PATH=/usr/local/cuda/bin/ptxas "
                "TRITON_PTXAS_BLACKWELL_PATH=/usr/local/cuda/bin/ptxas",
            ),
        ),
        patterns=(
            (
                r"ptxas fatal ?: Value '(?P<architecture>sm_\w{1,8})' is not defined for "
                r"option 'gpu-name'"
            ),
        ),
        seen=(
            "ptxas fatal   : Value 'sm_121a' is not defined for option 'gpu-name'",
            "ptxas fatal: Value 'sm_110a' is not defined for option 'gpu-name'",
        ),
        stage="first-kernel",
        platforms="linux",
        relation="P",
        probes="P04 P08",
    ),
    Entry(
        id="TRITON-PTX-VERSION",
        title="An old assembler is used for new code.",
        cause=("TRITON_PTXAS_PATH or PATH leads Triton to a ptxas older than the one it brings."),
        fixes=(
            either(
                "Let it use its own.",
                "unset TRITON_PTXAS_PATH TRITON_PTXAS_BLACKWELL_PATH",
                "Remove-Item Env:TRITON_PTXAS_PATH",
            ),
        ),
        patterns=(
            (
                r"Unsupported \.version (?P<needed>[\d.]{1,8}); current version is '"
                r"(?P<found>[\d.]{1,8})'"
            ),
        ),
        seen=(
            (
                "ptxas /tmp/triton_k_90kFja, line 5; fatal   : Unsupported .version 7.3; "
                "current version is '7.2'"
            ),
        ),
        stage="first-kernel",
        platforms="linux",
        relation="P",
        probes="P08 P18",
    ),
    Entry(
        id="TRITON-SHARED-MEMORY",
        title="A kernel's tiles do not fit this GPU's shared memory.",
        cause=(
            "They were chosen for another GPU. A block may use 65536 bytes on 7.5, 101376 "
            "on 8.6, 8.9 and 12.0, 166912 on 8.0, 232448 on 9.0 and 10.0."
        ),
        fixes=(
            do(
                "Our tiles are checked against the limit before a launch, so one of ours is "
                "a bug: please report it."
            ),
            either(
                "Until then, use the portable operators.",
                "export TURBODIFFUSION_BACKEND=portable",
                "$env:TURBODIFFUSION_BACKEND = 'portable'",
            ),
            do("In other software, take smaller blocks or fewer stages."),
        ),
        patterns=(
            (
                r"out of resource: shared memory,? ?Required: (?P<needed>\d{1,12}),? ?Hardware "
                r"limit: (?P<limit>\d{1,12})"
            ),
        ),
        seen=(
            (
                "out of resource: shared memory, Required: 131072, Hardware limit: 101376. "
                "Reducing block sizes or `num_stages` may help."
            ),
            (
                "triton.runtime.errors.OutOfResources: out of resource: shared memory, "
                "Required: 98304, Hardware limit: 65536. Reducing block sizes or `num_stages` "
                "may help."
            ),
        ),
        severity="major",
        stage="first-kernel",
        platforms="linux windows",
        relation="R",
        probes="P12 P11",
    ),
    Entry(
        id="TRITON-FP8-UNSUPPORTED",
        title="A kernel uses FP8 on a GPU without it.",
        cause="FP8 (E4M3) starts with capability 8.9.",
        fixes=(
            do(
                "turbodiffusion uses int8 and fp16 there, so the kernel is another "
                "package's: choose fp16 or int8 in it."
            ),
        ),
        patterns=(
            r"type fp8e4nv not supported in this architecture",
            r"fp8e4nv data type is not supported on CUDA arch < 89",
        ),
        seen=(
            (
                'ValueError("type fp8e4nv not supported in this architecture. The supported fp8 '
                "dtypes are ('fp8e4b15', 'fp8e5')\")"
            ),
            "AssertionError: fp8e4nv data type is not supported on CUDA arch < 89",
        ),
        severity="major",
        stage="first-kernel",
        platforms="linux windows",
        relation="R",
        probes="P04",
    ),
    Entry(
        id="TRITON-MISSING",
        title="Triton is not installed.",
        cause=(
            "Its Linux package has no Windows wheels; the one for Windows is called triton-windows."
        ),
        fixes=(
            run("Install the one that fits this system and torch.", "turbodiffusion setup --fix"),
            windows(
                "The same by hand, for torch 2.13.",
                "python -m pip install 'triton-windows>=3.7,<3.8'",
            ),
            linux(
                "It comes with CUDA builds of torch; by hand, for torch 2.13.",
                "python -m pip install 'triton>=3.7,<3.8'",
            ),
        ),
        patterns=(
            r"No module named 'triton'",
            r"No matching distribution found for triton\b(?!-)",
            r"satisfies the requirement triton\b(?!-)",
            r"Cannot find a working triton installation",
        ),
        seen=(
            (
                "ERROR: Could not find a version that satisfies the requirement triton (from "
                "versions: none)\nERROR: No matching distribution found for triton"
            ),
            "Import error: No module named 'triton'",
            "ERROR: No matching distribution found for triton",
        ),
        stage="import",
        platforms="windows linux",
        relation="P",
        probes="P08",
    ),
    Entry(
        id="TRITON-SHADOWED",
        title="A file or folder called triton hides the package.",
        cause="Python found a triton.py or a folder triton in the working directory first.",
        fixes=(
            run("See which file is taken.", 'python -c "import triton; print(triton.__file__)"'),
            do("Rename it, or start in another folder."),
        ),
        patterns=(r"No module named 'triton\.\w{1,40}'; 'triton' is not a package",),
        seen=(
            ("ModuleNotFoundError: No module named 'triton.language'; 'triton' is not a package"),
        ),
        severity="major",
        stage="import",
        platforms="linux windows",
        relation="P",
        probes="P08",
    ),
    Entry(
        id="TRITON-OPS-REMOVED",
        title="An old package uses a part of Triton that is gone.",
        cause="triton.ops left with Triton 3.1; most often bitsandbytes is too old.",
        fixes=(
            run("Update it.", "python -m pip install -U bitsandbytes"),
            run(
                "Or remove it; turbodiffusion does not use it.",
                "python -m pip uninstall -y bitsandbytes",
            ),
        ),
        patterns=(r"No module named 'triton\.ops'",),
        seen=("No module named 'triton.ops'",),
        severity="minor",
        stage="import",
        platforms="windows linux",
        relation="P",
        probes="P19",
    ),
    Entry(
        id="TRITON-PTXAS-GENERIC",
        title="Triton's assembler failed.",
        cause="The line after `ptxas stderr` says why.",
        fixes=(
            do(
                "Explain a log that holds that line; TRITON-PTXAS-ARCH and "
                "TRITON-PTX-VERSION are the usual reasons."
            ),
            run("If nothing else is known, send a report.", "turbodiffusion bugreport"),
        ),
        patterns=(r"`ptxas` (failed with error code|raised SIGSEGV|stderr)",),
        exact=(r"PTXAS error: ",),
        seen=(
            (
                "triton.runtime.errors.PTXASError: PTXAS error: Internal Triton PTX codegen "
                "error\n`ptxas` stderr:"
            ),
        ),
        rank=3,
        stage="first-kernel",
        platforms="linux windows",
        relation="R",
        probes="P11",
    ),
)
