"""Builds of other packages: the CUDA toolkit, build isolation, ninja."""

from __future__ import annotations

from turbodiffusion.doctor.catalogue.entry import Entry, Near, do, either, linux, run, windows

ENTRIES = (
    Entry(
        id="NVCC-NOT-FOUND",
        title="A CUDA extension is being compiled without the CUDA toolkit.",
        cause=(
            "The build looks for nvcc, which runtime images and most Windows machines do not have."
        ),
        fixes=(
            do("Nothing to do for turbodiffusion, which compiles nothing: drop the extension."),
            linux(
                "For other software, install the compiler.",
                "conda install -c nvidia cuda-nvcc=12.8",
            ),
            windows(
                "For other software, install the toolkit of torch's CUDA release, then "
                "check in a new shell.",
                "nvcc --version",
            ),
        ),
        patterns=(
            r"nvcc was not found",
            r"nvcc not found at",
            r"nvcc: command not found",
            r"'nvcc' is not recognized",
        ),
        seen=(
            (
                "UserWarning: flash_attn was requested, but nvcc was not found. Are you sure "
                "your environment has nvcc available?"
            ),
        ),
        stage="install",
        platforms="linux windows wsl docker",
        relation="N",
        probes="P25",
    ),
    Entry(
        id="CUDA-HOME-UNSET",
        title="A build cannot find the CUDA toolkit.",
        cause=(
            "torch's extension builder looks at CUDA_HOME, CUDA_PATH, nvcc on PATH and the "
            "usual folder, and found none of them."
        ),
        fixes=(
            do("Nothing to do for turbodiffusion, which compiles nothing."),
            either(
                "For other software, name the toolkit's folder.",
                "export CUDA_HOME=/usr/local/cuda-12.8",
                "$env:CUDA_HOME = 'C:\\Program Files\\NVIDIA GPU Computing Toolkit\\CUDA\\v12.8'",
            ),
        ),
        patterns=(
            r"CUDA_HOME environment variable is not set",
            r"Cannot find CUDA_HOME",
            r"CUDA was not found on the system, please set the CUDA_HOME",
        ),
        seen=(
            (
                "OSError: CUDA_HOME environment variable is not set. Please set it to your CUDA "
                "install root."
            ),
            "OSError: CUDA_HOME environment variable is not set.",
        ),
        stage="install",
        platforms="linux windows wsl docker",
        relation="N",
        probes="P18 P25",
    ),
    Entry(
        id="CUDA-VERSION-MISMATCH",
        title="The CUDA toolkit and torch are of different CUDA majors.",
        cause=(
            "A build compares nvcc's major version with the one torch was built for. torch "
            "2.13 and later print the message as an unformatted tuple with %s in it."
        ),
        fixes=(
            do("Nothing to do for turbodiffusion, which compiles nothing."),
            run(
                "For other software, take the build of torch that fits the toolkit.",
                "uv pip install --reinstall torch torchvision --torch-backend=cu128",
            ),
            either(
                "Or name a toolkit of torch's major.",
                "export CUDA_HOME=/usr/local/cuda-12.8",
                "$env:CUDA_PATH = 'C:\\Program Files\\NVIDIA GPU Computing Toolkit\\CUDA\\v12.8'",
            ),
        ),
        patterns=(
            (
                r"The detected CUDA version \((?P<toolkit>[\d.]{1,12}|%s)\) mismatches the "
                r"version that was used to compile ?PyTorch \((?P<torch>[\d.]{1,12}|%s)\)"
            ),
        ),
        seen=(
            (
                "RuntimeError: The detected CUDA version (11.8) mismatches the version that was "
                "used to compile PyTorch (12.4). Please make sure to use the same CUDA "
                "versions."
            ),
            (
                "RuntimeError: ('The detected CUDA version (%s) mismatches the version that was "
                "used to compilePyTorch (%s). Please make sure to use the same CUDA versions.', "
                "'12.4', '13.0')"
            ),
        ),
        stage="install",
        platforms="linux windows wsl docker",
        relation="N",
        probes="P05 P25",
    ),
    Entry(
        id="CUDA-MINOR-MISMATCH",
        title="The CUDA toolkit and torch differ in the minor version.",
        cause="Same major, so the build works; at most, code for the newest GPUs is missing.",
        fixes=(do("Ignore it, unless NVCC-ARCH-TOO-NEW follows."),),
        patterns=(r"detected CUDA version \([\d.]{1,12}\) has a minor version mismatch",),
        seen=(
            (
                "The detected CUDA version (12.6) has a minor version mismatch with the version "
                "that was used to compile PyTorch (12.8). Most likely this shouldn't be a "
                "problem."
            ),
        ),
        severity="info",
        stage="install",
        platforms="linux windows",
        relation="N",
        probes="P25",
    ),
    Entry(
        id="BUILD-CUDA-TOO-OLD",
        title="A build script asks for a newer CUDA toolkit.",
        cause=(
            "SageAttention and SpargeAttn want 12.4 for capability 8.9, 12.3 or 12.4 for "
            "9.0 and 12.8 for 12.0."
        ),
        fixes=(
            do("Nothing to do for turbodiffusion, which compiles nothing."),
            do("For other software, install the toolkit that the message names."),
        ),
        patterns=(
            (
                r"CUDA (?P<needed>\d{1,3}\.\d{1,3}) or higher is required (for compute "
                r"capability|to build the package|for Sage2)"
            ),
        ),
        seen=(
            "RuntimeError: CUDA 12.8 or higher is required for compute capability 12.0.",
            "CUDA 12.8 or higher is required for Sage2++",
        ),
        stage="install",
        platforms="linux windows",
        relation="N",
        probes="P25",
    ),
    Entry(
        id="CUTLASS-SUBMODULE-MISSING",
        title="A build does not find the CUTLASS headers.",
        cause=(
            "The submodule was not checked out, or include paths are relative and the build "
            "started in another folder."
        ),
        fixes=(
            do("Nothing to do for turbodiffusion, which compiles nothing."),
            run(
                "For other software, fetch its submodules and build again.",
                "git submodule update --init --recursive",
            ),
        ),
        patterns=(
            r"cutlass/[\w/]{1,200}\.h(pp)?'?: No such file or directory",
            r"Cannot find cutlass\. Please run",
            r"Cannot open include file: 'cutlass/",
        ),
        seen=(
            (
                "fatal error C1083: Cannot open include file: 'cutlass/cutlass.h': No such file "
                "or directory"
            ),
            "fatal error: cutlass/bfloat16.h: No such file or directory",
            (
                "RuntimeError: Cannot find cutlass. Please run `git submodule update --init "
                "--recursive`."
            ),
        ),
        stage="install",
        platforms="linux windows wsl",
        relation="N",
        probes="P25",
    ),
    Entry(
        id="BUILD-ISOLATION-NO-TORCH",
        title="A package needs torch to be built, and pip builds where torch is not.",
        cause=(
            "Its setup.py imports torch, while pip builds in an environment of its own that "
            "holds only what the package declares."
        ),
        fixes=(
            do("Nothing to do for turbodiffusion, which compiles nothing."),
            run(
                "For other software, install what its build needs.",
                "python -m pip install torch ninja packaging wheel setuptools",
            ),
            run(
                "Then build in this environment.",
                "python -m pip install --no-build-isolation PACKAGE",
            ),
        ),
        patterns=(
            Near(r"pip-build-env", r"No module named 'torch'", 6000),
            Near(
                r"Getting requirements to build (wheel|editable)", r"No module named 'torch'", 6000
            ),
            Near(r"build_editable", r"No module named 'torch'", 6000),
            Near(r"get_requires_for_build", r"No module named 'torch'", 6000),
        ),
        seen=(
            (
                "Getting requirements to build wheel ... error\n ... "
                "pip-build-env-gwmgwy1l/overlay/lib/python3.12/site-packages/setuptools/"
                "build_meta.py ... ModuleNotFoundError: No module named 'torch'"
            ),
            (
                "Getting requirements to build wheel ... error ... ModuleNotFoundError: No "
                "module named 'torch'"
            ),
        ),
        stage="install",
        platforms="linux windows wsl docker",
        relation="N",
        probes="P25",
    ),
    Entry(
        id="NINJA-MISSING",
        title="A build has no ninja and goes on slowly, or stops.",
        cause="ninja runs compilers side by side; without it they run one after the other.",
        fixes=(
            do("Nothing to do for turbodiffusion, which compiles nothing."),
            run("For other software, install it.", "python -m pip install ninja"),
        ),
        patterns=(r"could not find ninja", r"Ninja is required to load C\+\+ extensions"),
        seen=(
            (
                "Attempted to use ninja as the BuildExtension backend but we could not find "
                "ninja.. Falling back to using the slow distutils backend."
            ),
        ),
        severity="minor",
        stage="install",
        platforms="linux windows",
        relation="N",
        probes="P25",
    ),
    Entry(
        id="NINJA-BUILD-FAILED",
        title="A compilation failed.",
        cause=(
            "ninja reports only that one of its commands failed; the reason is in an earlier line."
        ),
        fixes=(
            do(
                "Look further up for the first line with `error` or `fatal`, and explain a "
                "log that holds it."
            ),
            either(
                "Run the build with one job, so that the first error is the last line.",
                "export MAX_JOBS=1",
                "$env:MAX_JOBS = '1'",
            ),
        ),
        patterns=(
            r"Command '\['ninja', '-v'.{0,40}\]' returned non-zero exit status",
            r"ninja: build stopped: subcommand failed",
        ),
        seen=(
            (
                "subprocess.CalledProcessError: Command '['ninja', '-v']' returned non-zero "
                "exit status 1."
            ),
            "ninja: build stopped: subcommand failed.",
        ),
        rank=3,
        stage="install",
        platforms="linux windows",
        relation="N",
        probes="P25",
    ),
    Entry(
        id="NATIVE-OPS-NOT-BUILT",
        title="The compiled extension of another TurboDiffusion package is missing.",
        cause=(
            "Its native module was not built or cannot be loaded, or one of its plain "
            "dependencies is missing and the wrapper hides that."
        ),
        fixes=(
            do("This package has no native module; uninstall the other one."),
            run("See whether this environment is ready.", "turbodiffusion doctor"),
        ),
        patterns=(
            r"No module named '(turbo_diffusion_ops|spas_sage_attn|sageattention)'",
            r"DLL load failed while importing turbo_diffusion_ops",
            r"TurboDiffusion modules not available",
            r"Could not import vendored TurboDiffusion code",
        ),
        seen=(
            "RuntimeError: TurboDiffusion modules not available!",
            "RuntimeError: Could not import vendored TurboDiffusion code!",
        ),
        stage="import",
        platforms="linux windows",
        relation="N",
        probes="P08 P19",
    ),
    Entry(
        id="SAGESLA-NEEDS-SPARGE",
        title="The released code asks for the SpargeAttn extension.",
        cause="Its fast attention lives in a package that has to be compiled separately.",
        fixes=(
            do("Nothing to do for turbodiffusion, which has this attention built in."),
            do("For the released code, choose the attention type sla."),
        ),
        patterns=(r"Install SpargeAttn first to enable SageSLA",),
        seen=("Error: Install SpargeAttn first to enable SageSLA.",),
        severity="major",
        stage="model-load",
        platforms="linux windows",
        relation="N",
        probes="P19",
    ),
)
