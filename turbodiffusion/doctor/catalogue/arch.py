"""Code for the wrong GPU."""

from __future__ import annotations

from turbodiffusion.doctor.catalogue.entry import Entry, do, either, run

ENTRIES = (
    Entry(
        id="NVCC-ARCH-TOO-NEW",
        title="nvcc is older than the GPU it is asked to compile for.",
        cause=(
            "Capability 10.0 and 12.0 need CUDA 12.8, 10.3 and 12.1 need 12.9, 11.0 needs "
            "13.0. The released build script of TurboDiffusion always asks for 12.0, so it "
            "fails with an older toolkit on every GPU."
        ),
        fixes=(
            do(
                "Nothing to do for turbodiffusion, which compiles for the GPU that is there "
                "when it is used."
            ),
            do("For other software, install CUDA 12.8 or newer."),
            either(
                "Or build for the GPU that is there, such as capability 8.6.",
                "export TORCH_CUDA_ARCH_LIST=8.6",
                "$env:TORCH_CUDA_ARCH_LIST = '8.6'",
            ),
        ),
        patterns=(r"Unsupported gpu architecture 'compute_(?P<capability>1\d\d[af]?)'",),
        seen=(
            "nvcc fatal   : Unsupported gpu architecture 'compute_120a'",
            "nvcc fatal   : Unsupported gpu architecture 'compute_120'",
            "nvcc fatal : Unsupported gpu architecture 'compute_100'",
        ),
        stage="install",
        platforms="linux windows wsl docker",
        relation="N",
        probes="P04 P25",
    ),
    Entry(
        id="NVCC-ARCH-REMOVED",
        title="nvcc does not know the GPU architecture it is asked for.",
        cause=(
            "Either this CUDA dropped it (12 dropped 3.5 and 3.7, 13 everything below 7.5), "
            "or it is too old to know it (8.6 came with 11.1, 8.9 and 9.0 with 11.8)."
        ),
        fixes=(
            do("Nothing to do for turbodiffusion, which compiles nothing."),
            either(
                "For other software, build for the GPU that is there, such as capability 8.6.",
                "export TORCH_CUDA_ARCH_LIST=8.6",
                "$env:TORCH_CUDA_ARCH_LIST = '8.6'",
            ),
            do("Or use a CUDA release that knows the GPU."),
        ),
        patterns=(r"Unsupported gpu architecture 'compute_ ?(?P<capability>\d\d)(?!\d)",),
        seen=(
            "nvcc fatal : Unsupported gpu architecture 'compute_35'",
            "nvcc fatal : Unsupported gpu architecture 'compute_72'",
            "nvcc fatal : Unsupported gpu architecture 'compute_86'",
        ),
        stage="install",
        platforms="linux windows wsl docker",
        relation="N",
        probes="P04 P25",
    ),
    Entry(
        id="ARCH-LIST-REJECTED",
        title="An extension refuses the architectures in TORCH_CUDA_ARCH_LIST.",
        cause=(
            "Its own list of architectures lacks them. SpargeAttn lists 8.0 to 9.0, which "
            "leaves out the RTX 50 series."
        ),
        fixes=(
            do(
                "Nothing to do for turbodiffusion, whose sparse attention is compiled in "
                "use for capability 8.0 and newer."
            ),
            either(
                "For other software, let the build find the GPU by itself.",
                "unset TORCH_CUDA_ARCH_LIST",
                "Remove-Item Env:TORCH_CUDA_ARCH_LIST",
            ),
        ),
        patterns=(
            (
                r"None of the CUDA architectures in .TORCH_CUDA_ARCH_LIST. env variable \("
                r"(?P<asked>[^)]{0,200})\) is supported"
            ),
        ),
        seen=(
            (
                "RuntimeError: None of the CUDA architectures in `TORCH_CUDA_ARCH_LIST` env "
                "variable (12.0) is supported."
            ),
        ),
        stage="install",
        platforms="linux windows wsl",
        relation="N",
        probes="P18",
    ),
    Entry(
        id="SAGE-KERNEL-MISSING",
        title="SageAttention has no kernel for this GPU.",
        cause=(
            "It was compiled for other architectures, an old build was used again, or the "
            "wheel belongs to another torch. Its 8.9 kernels also serve 12.0, so RTX 50 "
            "owners read of SM89."
        ),
        fixes=(
            do("Nothing to do for turbodiffusion, which compiles nothing."),
            run(
                "For other software, remove it and install it for exactly this torch and CUDA.",
                "python -m pip uninstall -y sageattention",
            ),
        ),
        patterns=(r"SM(?P<sm>80|89|90|100|120) kernel is not available",),
        seen=(
            (
                "AssertionError: SM89 kernel is not available. Make sure you GPUs with compute "
                "capability 8.9."
            ),
            (
                "Error running sage attention: SM80 kernel is not available. make sure you GPUs "
                "with compute capability 8.0 or higher., using pytorch attention instead."
            ),
        ),
        severity="major",
        stage="first-kernel",
        platforms="linux windows",
        relation="N",
        probes="P19",
    ),
    Entry(
        id="SAGE-ARCH-UNSUPPORTED",
        title="SageAttention does not support this GPU.",
        cause="It has no code path for the compute capability.",
        fixes=(
            do(
                "turbodiffusion runs from capability 7.5 on, with portable operators where "
                "kernels do not fit."
            ),
            run("See which form of each operator is chosen and why.", "turbodiffusion doctor -v"),
        ),
        patterns=(r"Unsupported CUDA architecture: (?P<architecture>sm\d{1,4})",),
        seen=("ValueError: Unsupported CUDA architecture: sm75",),
        severity="major",
        stage="first-kernel",
        platforms="linux windows",
        relation="N",
        probes="P04",
    ),
    Entry(
        id="TORCH-SM-NOT-COMPATIBLE",
        title="This build of torch has no code for the GPU.",
        cause=(
            "Builds up to cu126 never hold code for capability 10.0 and 12.0 (RTX 50, "
            "B200); CUDA 13 builds no longer hold 5.0 to 7.0 (GTX 10, V100)."
        ),
        fixes=(
            run("Let the set-up choose the build.", "turbodiffusion setup --fix"),
            run(
                "By hand for RTX 50 and B200: cu128 or newer, cu130 from driver 580 on.",
                "uv pip install --reinstall torch torchvision --torch-backend=cu128",
            ),
            run(
                "By hand for GTX 10 and V100: cu126.",
                "uv pip install --reinstall torch torchvision --torch-backend=cu126",
            ),
        ),
        patterns=(
            (
                r"with CUDA capability sm_(?P<capability>\d{1,4}) is not compatible with the "
                r"current PyTorch installation"
            ),
        ),
        seen=(
            (
                "NVIDIA GeForce RTX 5090 with CUDA capability sm_120 is not compatible with the "
                "current PyTorch installation. The current PyTorch install supports CUDA "
                "capabilities sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90."
            ),
            (
                "GeForce RTX 5090 D with CUDA capability sm_120 is not compatible with the "
                "current PyTorch installation."
            ),
        ),
        stage="import",
        platforms="linux windows wsl docker",
        relation="P",
        probes="P04 P05 P06",
    ),
    Entry(
        id="TORCH-CC-NOT-IN-BUILD",
        title="This build of torch does not list the GPU's capability.",
        cause=(
            "torch 2.13 and later say it this way and list below it the builds of the same "
            "release that do."
        ),
        fixes=(
            run("Let the set-up choose the build.", "turbodiffusion setup --fix"),
            do("By hand, take one of the tags that the message lists."),
        ),
        patterns=(
            (
                r"Found GPU\d{1,3} .{1,80}? which is of (compute capability \(CC\)|cuda "
                r"capability) (?P<capability>\d{1,3}\.\d)"
            ),
        ),
        seen=("Found GPU0 NVIDIA GeForce RTX 5090 which is of compute capability (CC) 12.0.",),
        stage="import",
        platforms="linux windows",
        relation="P",
        probes="P06",
    ),
    Entry(
        id="NO-KERNEL-IMAGE",
        title="A loaded library has no code for this GPU.",
        cause=(
            "Neither machine code nor usable PTX. If torch lists the GPU among its own "
            "architectures, the culprit is an extension such as flash-attn, sageattention "
            "or xformers."
        ),
        fixes=(
            run("See whether torch covers the GPU.", "turbodiffusion doctor"),
            run(
                "Remove the extension; turbodiffusion runs without it.",
                "python -m pip uninstall -y flash-attn xformers sageattention",
            ),
            run("If it is torch, let the set-up choose the build.", "turbodiffusion setup --fix"),
        ),
        patterns=(
            r"no kernel image is available for execution on the device",
            r"cudaErrorNoKernelImageForDevice",
        ),
        seen=(
            ("RuntimeError: CUDA error: no kernel image is available for execution on the device"),
            "CUDA error: no kernel image is available for execution on the device",
        ),
        stage="first-kernel",
        platforms="linux windows wsl docker",
        relation="P",
        probes="P06 P11 P19",
    ),
)
