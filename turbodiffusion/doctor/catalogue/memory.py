"""Memory of the GPU and of the computer."""

from __future__ import annotations

from turbodiffusion.doctor.catalogue.entry import (
    Entry,
    Near,
    do,
    docker,
    either,
    linux,
    run,
    windows,
    wsl,
)

ENTRIES = (
    Entry(
        id="BUILD-OOM-KILLED",
        title="A build used up the memory and was killed.",
        cause="nvcc jobs that run side by side need several GB each.",
        fixes=(
            do("Nothing to do for turbodiffusion, which compiles nothing."),
            either(
                "For other software, run fewer at a time.",
                "export MAX_JOBS=2 NVCC_THREADS=1",
                "$env:MAX_JOBS = '2'; $env:NVCC_THREADS = '1'",
            ),
            wsl(
                "Give WSL more: a line such as memory=48GB below [wsl2] in .wslconfig, then "
                "restart it.",
                powershell="notepad $env:USERPROFILE\\.wslconfig; wsl --shutdown",
            ),
        ),
        patterns=(r"Killed signal terminated program (cc1plus|cicc|ptxas|nvcc)",),
        exact=(r"\b(cicc|nvcc|cc1plus|ptxas)\b.{0,200}\bKilled\b",),
        seen=("c++: fatal error: Killed signal terminated program cc1plus",),
        stage="install",
        platforms="linux wsl docker",
        relation="N",
        probes="P15 P25",
    ),
    Entry(
        id="CONV3D-MEMORY-REGRESSION",
        title="The VAE ran out of memory, as it does with some versions of torch.",
        cause=(
            "torch 2.9 and 2.10 leave cuDNN out for half-precision 3D convolutions unless "
            "cuDNN is 9.15 or newer; the Wan VAE then needs many times the memory."
        ),
        fixes=(
            run("See the versions of torch and cuDNN.", "turbodiffusion doctor -v"),
            run("Take torch 2.11 or newer, which brings a new cuDNN.", "turbodiffusion setup"),
            run(
                "Or give torch 2.10 a newer cuDNN (nvidia-cudnn-cu13 for CUDA 13 builds).",
                "python -m pip install -U 'nvidia-cudnn-cu12>=9.15'",
            ),
            do(
                "turbodiffusion decodes in tiles when memory is short, so a smaller "
                "--resolution is not needed for this."
            ),
        ),
        patterns=(
            Near(r"conv3d(?!-)", r"out of memory", 8000),
            Near(r"vol2col", r"out of memory", 8000),
        ),
        seen=(
            (
                'File ".../torch/nn/modules/conv.py", line 717, in _conv_forward return '
                "F.conv3d( ... torch.OutOfMemoryError: CUDA out of memory. Tried to allocate "
                "5.06 GiB."
            ),
        ),
        severity="major",
        stage="run",
        platforms="linux windows",
        relation="R",
        probes="P05 P26",
    ),
    Entry(
        id="CUDA-OOM",
        title="The GPU ran out of memory.",
        cause=(
            "The request does not fit beside what is already there: other programs, "
            "fragments (a large `reserved but unallocated`), or attention without a fused "
            "kernel."
        ),
        fixes=(
            run("See what fits this GPU, and with which settings.", "turbodiffusion plan"),
            run("See which other programs hold memory.", "nvidia-smi"),
            linux(
                "Let torch join fragments.",
                "export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
            ),
            do("Ask for fewer frames, 480p, one video at a time or the 1.3B model, in this order."),
        ),
        patterns=(
            r"CUDA out of memory\. Tried to allocate (?P<wanted>[\d.]{1,12} [KMG]iB)",
            r"torch\.(cuda\.)?OutOfMemoryError",
            r"CUDA error: out of memory",
        ),
        exact=(r"Allocation on device",),
        seen=(
            (
                "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 5.06 GiB. GPU 0 "
                "has a total capacity of 15.56 GiB of which 2.74 GiB is free."
            ),
            "!!! Exception during processing !!! Allocation on device",
        ),
        rank=2,
        stage="run",
        platforms="linux windows wsl docker",
        relation="R",
        probes="P16 P26",
    ),
    Entry(
        id="HOST-OOM-KILLED",
        title="The computer ran out of memory.",
        cause=(
            "The system kills the largest process then. Loading the 11.4 GB text encoder "
            "and two 14B experts from pickled files takes twice their size; WSL gets half "
            "of the memory by default, and containers have a limit."
        ),
        fixes=(
            run("See what fits this machine.", "turbodiffusion plan"),
            run(
                "Rewrite checkpoints once, so that they are mapped instead of copied.",
                "turbodiffusion convert FILE.pth FILE.safetensors",
            ),
            wsl(
                "Give WSL more: memory=48GB and swap=64GB below [wsl2] in .wslconfig, then "
                "restart it.",
                powershell="notepad $env:USERPROFILE\\.wslconfig; wsl --shutdown",
            ),
            linux(
                "Add swap space.",
                "sudo fallocate -l 32G /swapfile && sudo chmod 600 /swapfile && sudo mkswap "
                "/swapfile && sudo swapon /swapfile",
            ),
            docker("Raise the container's limit with --memory."),
        ),
        patterns=(
            r"zsh: killed ",
            r"exit(ed with)? code:? 137\b",
            r"exit(ed with)? status 137\b",
            r"returned non-zero exit status -9\b",
            r"DefaultCPUAllocator: (can't allocate memory|not enough memory)",
        ),
        exact=(r"(?:^| )Killed(?: |$)", r"\bOOMKilled\b"),
        seen=("Killed", "Last State: Terminated Reason: OOMKilled Exit Code: 137"),
        rank=2,
        stage="model-load",
        platforms="linux wsl docker",
        relation="R",
        probes="P15",
    ),
    Entry(
        id="WIN-PAGEFILE-TOO-SMALL",
        title="Windows has too little page file.",
        cause=(
            "Windows reserves memory for everything that is mapped, up to RAM plus page "
            "file. The sentence is translated; the number 1455 is not."
        ),
        fixes=(
            windows(
                "Let Windows manage the page file, as administrator, then restart.",
                "Set-CimInstance -Query 'SELECT * FROM Win32_ComputerSystem' -Property "
                "@{AutomaticManagedPagefile=$true}",
            ),
            do(
                "Close programs, and avoid loaders with several processes: each maps the "
                "CUDA libraries again."
            ),
        ),
        patterns=(r"WinError 1455\b", r"os error 1455\b"),
        seen=(
            (
                "OSError: The paging file is too small for this operation to complete. (os "
                "error 1455)"
            ),
            (
                "OSError: [WinError 1455] The paging file is too small for this operation to "
                'complete. Error loading "...\\torch\\lib\\caffe2_module_test_dynamic.dll"'
            ),
        ),
        stage="model-load",
        platforms="windows",
        relation="P",
        probes="P15",
    ),
    Entry(
        id="ILLEGAL-MEMORY-ACCESS",
        title="A kernel read or wrote outside of its memory.",
        cause=(
            "A kernel, often a third-party one on an untested GPU or shape, or unstable "
            "hardware. It is reported late, so the Python line shown is not the culprit, "
            "and the process cannot go on."
        ),
        fixes=(
            either(
                "Run again so that the right line is shown.",
                "export CUDA_LAUNCH_BLOCKING=1",
                "$env:CUDA_LAUNCH_BLOCKING = '1'",
            ),
            either(
                "See whether it also happens without our kernels.",
                "export TURBODIFFUSION_BACKEND=portable",
                "$env:TURBODIFFUSION_BACKEND = 'portable'",
            ),
            run(
                "Take overclocking back and look for memory errors.",
                "nvidia-smi -q -d ECC,PAGE_RETIREMENT",
            ),
        ),
        patterns=(r"an illegal memory access was encountered", r"cudaErrorIllegalAddress"),
        seen=(
            (
                "terminate called after throwing an instance of 'c10::Error'   what():  CUDA "
                "error: an illegal memory access was encountered"
            ),
        ),
        stage="run",
        platforms="linux windows",
        relation="R",
        probes="P11",
    ),
)
