"""C++ compilers that builds of other packages want."""

from __future__ import annotations

from turbodiffusion.doctor.catalogue.entry import Entry, do, linux, run, windows

ENTRIES = (
    Entry(
        id="GCC-TOO-NEW",
        title="The C++ compiler is outside the range that nvcc accepts.",
        cause=(
            "The newest gcc is 12 for CUDA 12.0 to 12.2, 13 up to 12.7, 14 for 12.8 and "
            "12.9, 15 for 13."
        ),
        fixes=(
            do("Nothing to do for turbodiffusion: Triton is content with any gcc or clang."),
            linux(
                "For other software, install an older one and name it.",
                "sudo apt install g++-13 && export CC=gcc-13 CXX=g++-13 NVCC_CCBIN=g++-13",
            ),
            linux(
                "As a last resort, switch the check off.",
                "export NVCC_APPEND_FLAGS=-allow-unsupported-compiler",
            ),
        ),
        patterns=(
            r"unsupported (GNU|clang) version!",
            (
                r"current installed version of [\w+.-]{1,40} \([\d.]{1,20}\) is (greater|less) "
                r"than the (maximum|minimum) required version by CUDA"
            ),
        ),
        seen=(
            ("#error -- unsupported GNU version! gcc versions later than 15 are not supported!"),
            (
                "The current installed version of g++ (14.2.0) is greater than the maximum "
                "required version by CUDA 12.6."
            ),
        ),
        stage="install",
        platforms="linux wsl",
        relation="N",
        probes="P25",
    ),
    Entry(
        id="MSVC-UNSUPPORTED",
        title="Visual Studio is newer than this CUDA toolkit knows.",
        cause=(
            "The toolkit checks the version of cl.exe, and refuses Visual Studio 2026 up to "
            "CUDA 13.0."
        ),
        fixes=(
            do("Nothing to do for turbodiffusion, which compiles nothing."),
            windows(
                "For other software, open a shell with an older toolset.",
                'cmd /k "C:\\Program Files (x86)\\Microsoft Visual '
                'Studio\\2022\\BuildTools\\Common7\\Tools\\VsDevCmd.bat" -arch=amd64 '
                "-vcvars_ver=14.43",
            ),
            windows(
                "Or switch the check off.", "$env:NVCC_APPEND_FLAGS = '-allow-unsupported-compiler'"
            ),
        ),
        patterns=(r"unsupported Microsoft Visual Studio version!",),
        seen=(
            (
                "fatal error C1189: #error:  -- unsupported Microsoft Visual Studio version! "
                "Only the versions between 2017 and 2022 (inclusive) are supported!"
            ),
        ),
        stage="install",
        platforms="windows",
        relation="N",
        probes="P25",
    ),
    Entry(
        id="CL-NOT-FOUND",
        title="A build runs in a shell without Visual Studio's compiler.",
        cause="cl.exe is only on PATH in a developer shell.",
        fixes=(
            do("Nothing to do for turbodiffusion: Triton for Windows brings a small C compiler."),
            windows(
                "For other software, open a developer shell.",
                "& 'C:\\Program Files (x86)\\Microsoft Visual "
                "Studio\\2022\\BuildTools\\Common7\\Tools\\Launch-VsDevShell.ps1' -Arch amd64",
            ),
        ),
        patterns=(
            r"Error checking compiler version for cl\b",
            r"'where', 'cl'\]' returned non-zero exit status",
            r"'cl' is not recognized",
        ),
        seen=(
            (
                "UserWarning: Error checking compiler version for cl: [WinError 2] The system "
                "cannot find the file specified"
            ),
            "Command '['where', 'cl']' returned non-zero exit status 1.",
        ),
        stage="install",
        platforms="windows",
        relation="N",
        probes="P25",
    ),
    Entry(
        id="MSVC-BUILD-TOOLS-MISSING",
        title="A package is being compiled that needs Microsoft's C++ compiler.",
        cause="pip found no wheel for this Python and tries to build from source.",
        fixes=(
            run(
                "Use wheels only; pip then names the package that has none.",
                "python -m pip install --only-binary=:all: PACKAGE",
            ),
            windows(
                "Or install the compiler.",
                "winget install --exact --id Microsoft.VisualStudio.2022.BuildTools "
                '--override "--wait --passive --add Microsoft.VisualStudio.Workload.VCTools '
                '--includeRecommended"',
            ),
        ),
        patterns=(r"Microsoft Visual C\+\+ 14\.\d or greater is required",),
        seen=(
            (
                "error: Microsoft Visual C++ 14.0 or greater is required. Get it with "
                '"Microsoft C++ Build Tools"'
            ),
        ),
        stage="install",
        platforms="windows",
        relation="N",
        probes="P25",
    ),
)
