"""The driver, which GPUs are visible, and containers."""

from __future__ import annotations

from turbodiffusion.doctor.catalogue.entry import (
    Entry,
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
        id="DRIVER-NOT-FOUND",
        title="No NVIDIA driver can be reached.",
        cause=(
            "The driver is not installed, its kernel module is not loaded (Secure Boot, a "
            "new kernel), the container was started without the GPU, or WSL has no driver "
            "on the Windows side."
        ),
        fixes=(
            linux(
                "Install the distribution's driver and restart.",
                "sudo ubuntu-drivers install && sudo reboot",
            ),
            linux(
                "If it is installed, see whether the module is loaded and whether Secure "
                "Boot blocks it.",
                "lsmod | grep nvidia; mokutil --sb-state",
            ),
            windows(
                "Install the current Game Ready or Studio driver, restart, and check that "
                "it answers.",
                "Start-Process https://www.nvidia.com/drivers",
            ),
            wsl(
                "Install the driver on Windows only, never inside WSL, and start WSL again.",
                powershell="wsl --update; wsl --shutdown",
            ),
            docker("Give the container the GPU.", "docker run --rm --gpus all ubuntu nvidia-smi"),
        ),
        patterns=(
            r"Found no NVIDIA driver on your system",
            r"NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver",
            r"nvidia-smi: command not found",
        ),
        seen=(
            (
                "RuntimeError: Found no NVIDIA driver on your system. Please check that you "
                "have an NVIDIA GPU and installed a driver"
            ),
        ),
        stage="import",
        platforms="linux windows wsl docker",
        relation="P",
        probes="P02 P03",
    ),
    Entry(
        id="DRIVER-TOO-OLD",
        title="The NVIDIA driver is too old for this build of torch.",
        cause=(
            "torch was built for a CUDA release that the driver does not serve. The number "
            "in the message is the newest CUDA the driver knows: 1000 × major + 10 × minor, "
            "so 11040 is CUDA 11.4."
        ),
        fixes=(
            linux(
                "Update the driver: CUDA 12 builds need 525.60.13, CUDA 13 builds 580.",
                "sudo ubuntu-drivers install && sudo reboot",
            ),
            windows(
                "Update the driver: CUDA 12 builds need 528.33, CUDA 13 builds 580.",
                "Start-Process https://www.nvidia.com/drivers",
            ),
            run("Or take the build of torch that this driver can run.", "turbodiffusion setup"),
            run(
                "The same by hand, in any environment with uv.",
                "uv pip install --reinstall torch torchvision --torch-backend=cu126",
            ),
        ),
        patterns=(
            (
                r"NVIDIA driver on your system is too old \(found version "
                r"(?P<driver_cuda>\d{1,9})\)"
            ),
        ),
        seen=(
            (
                "RuntimeError: The NVIDIA driver on your system is too old (found version "
                "11040). Please update your GPU driver"
            ),
        ),
        stage="import",
        platforms="linux windows wsl docker",
        relation="P",
        probes="P03 P05 P07",
    ),
    Entry(
        id="CUDA-DRIVER-INSUFFICIENT",
        title="The CUDA runtime is newer than the driver.",
        cause=(
            "CUDA runtime error 35. In a container the same words appear when no GPU was passed in."
        ),
        fixes=(
            linux("Update the driver.", "sudo ubuntu-drivers install && sudo reboot"),
            windows("Update the driver.", "Start-Process https://www.nvidia.com/drivers"),
            run("Or take a build of torch that this driver can run.", "turbodiffusion setup"),
            docker(
                "Give the container the GPU, and compare the driver shown with the host's.",
                "docker run --rm --gpus all ubuntu nvidia-smi",
            ),
        ),
        patterns=(
            r"CUDA driver version is insufficient for CUDA runtime version",
            r"cudaErrorInsufficientDriver",
        ),
        seen=(
            "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version",
            "CUDA driver version is insufficient for CUDA runtime version",
        ),
        stage="import",
        platforms="linux windows wsl docker",
        relation="P",
        probes="P02 P03 P07 P24",
    ),
    Entry(
        id="DRIVER-LIBRARY-MISMATCH",
        title="The driver was updated, and the old kernel module is still loaded.",
        cause=(
            "The user-space half of the driver was replaced, often by unattended updates, "
            "and no longer fits the module in the kernel."
        ),
        fixes=(
            linux("Restart the machine.", "sudo reboot"),
            linux(
                "Without a restart, when no process uses the GPU.",
                "sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia && nvidia-smi",
            ),
            linux("Keep updates from doing it again.", "sudo apt-mark hold 'nvidia-driver-*'"),
        ),
        patterns=(
            r"Failed to initialize NVML: Driver/library version mismatch",
            r"NVML_ERROR_LIB_RM_VERSION_MISMATCH",
            r"kernel version [\d.]{1,20} does not match DSO version",
        ),
        seen=(
            (
                "Failed to initialize NVML: Driver/library version mismatch\nNVML library "
                "version: 550.144"
            ),
            "kernel version 460.91.3 does not match DSO version 470.57.2",
        ),
        stage="import",
        platforms="linux docker",
        relation="P",
        probes="P03",
    ),
    Entry(
        id="PTX-TOOLCHAIN-TOO-NEW",
        title="The driver is older than the CUDA toolkit that made a kernel.",
        cause=(
            "The program holds only PTX for this GPU, which the driver has to translate, "
            "and a driver translates only the PTX of its own CUDA release and earlier ones. "
            "Compatibility between minor releases holds for finished machine code, not for "
            "PTX."
        ),
        fixes=(
            linux("Update the driver.", "sudo ubuntu-drivers install && sudo reboot"),
            windows("Update the driver.", "Start-Process https://www.nvidia.com/drivers"),
            run(
                "Or take a build that holds code for this GPU, or one of an older CUDA release.",
                "turbodiffusion setup",
            ),
        ),
        patterns=(
            r"provided PTX was compiled with an unsupported toolchain",
            r"CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        ),
        seen=(
            (
                "RuntimeError: CUDA error: the provided PTX was compiled with an unsupported "
                "toolchain."
            ),
        ),
        stage="first-kernel",
        platforms="linux windows wsl docker",
        relation="P",
        probes="P03 P06 P11",
    ),
    Entry(
        id="KERNEL-IMAGE-INVALID",
        title="The driver refuses a compiled kernel.",
        cause=(
            "The kernel was assembled by the ptxas of a newer CUDA major than the driver "
            "serves, or it comes from a compile cache that GPUs of different kinds share. "
            "Triton 3.9 assembles with ptxas 13.4 from capability 9.0 on, whatever torch "
            "was built for."
        ),
        fixes=(
            do("Update the driver to 580 or newer."),
            either(
                "Clear Triton's cache.",
                "rm -rf ~/.triton/cache",
                'Remove-Item -Recurse -Force "$env:USERPROFILE\\.triton\\cache"',
            ),
            run("Or go back to the tested pair of torch and Triton.", "turbodiffusion setup"),
        ),
        patterns=(r"device kernel image is invalid", r"CUDA_ERROR_INVALID_IMAGE"),
        seen=(
            "RuntimeError: Triton Error [CUDA]: device kernel image is invalid",
            "Triton Error [CUDA]: device kernel image is invalid",
        ),
        stage="first-kernel",
        platforms="linux windows wsl docker",
        relation="P",
        probes="P03 P08 P11",
    ),
    Entry(
        id="FORWARD-COMPAT-804",
        title="A CUDA compatibility library is in use on a GPU that does not allow it.",
        cause=(
            "CUDA images carry a newer libcuda in a directory called compat, meant for "
            "data-centre GPUs; GeForce GPUs refuse it. It also appears when the host's "
            "driver and the libraries in the container differ."
        ),
        fixes=(
            do("Update the driver of the host, so that the compatibility library is not needed."),
            linux(
                "Take the directory off the loader path, inside the container.",
                "export LD_LIBRARY_PATH=$(echo $LD_LIBRARY_PATH | tr ':' '\\n' | grep -v "
                "compat | paste -sd:)",
            ),
            linux("After a driver update, restart the machine.", "sudo reboot"),
        ),
        patterns=(r"forward compatibility was attempted on non supported HW",),
        seen=(
            (
                "UserWarning: CUDA initialization: Unexpected error from cudaGetDeviceCount(). "
                "Did you run some cuda functions before calling NumCudaDevices() that might "
                "have already set an error? Error 804: forward compatibility was attempted on "
                "non supported HW"
            ),
        ),
        stage="import",
        platforms="docker linux",
        relation="P",
        probes="P02 P04 P18 P24",
    ),
    Entry(
        id="NO-GPU-VISIBLE",
        title="The driver works, but no GPU is visible.",
        cause=(
            "CUDA_VISIBLE_DEVICES names a GPU that is not there, the container was given "
            "none, or the GPU is in a bad state."
        ),
        fixes=(
            either(
                "Make every GPU visible.",
                "unset CUDA_VISIBLE_DEVICES",
                "Remove-Item Env:CUDA_VISIBLE_DEVICES",
            ),
            run("See whether the driver lists it.", "nvidia-smi -L"),
            docker("Give the container the GPU.", "docker run --rm --gpus all ubuntu nvidia-smi"),
        ),
        patterns=(r"No CUDA GPUs are available",),
        seen=("RuntimeError: No CUDA GPUs are available",),
        stage="import",
        platforms="linux windows wsl docker",
        relation="P",
        probes="P04 P18",
    ),
    Entry(
        id="CUDA-UNKNOWN-ERROR",
        title="CUDA could not start and gave no reason.",
        cause=(
            "cuInit returned 999: the module nvidia_uvm is unusable, often after suspend "
            "and resume, device files are missing, or CUDA_VISIBLE_DEVICES was changed "
            "while the program ran."
        ),
        fixes=(
            linux("Load the module again.", "sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm"),
            linux(
                "Make the device files and look at them.",
                "sudo nvidia-modprobe -u -c=0 && ls -l /dev/nvidia*",
            ),
            linux("Restart the machine.", "sudo reboot"),
        ),
        patterns=(r"CUDA unknown error - this may be due to an incorrectly set up environment",),
        seen=(
            (
                "UserWarning: CUDA initialization: CUDA unknown error - this may be due to an "
                "incorrectly set up environment, e.g. changing env variable "
                "CUDA_VISIBLE_DEVICES after program start. Setting the available devices to be "
                "zero."
            ),
        ),
        stage="import",
        platforms="linux docker",
        relation="P",
        probes="P02 P04",
    ),
    Entry(
        id="LIBCUDA-NOT-FOUND",
        title="The driver's library libcuda is not on the loader path.",
        cause=(
            "WSL keeps it in /usr/lib/wsl/lib, small images have no loader entry for it, "
            "and Triton asks `/sbin/ldconfig -p` for libcuda.so.1."
        ),
        fixes=(
            wsl(
                "Name its folder.",
                bash=(
                    "export LD_LIBRARY_PATH=/usr/lib/wsl/lib:$LD_LIBRARY_PATH "
                    "TRITON_LIBCUDA_PATH=/usr/lib/wsl/lib"
                ),
            ),
            linux(
                "Renew the loader's list and see whether it is there now.",
                "sudo ldconfig && ldconfig -p | grep libcuda",
            ),
            docker(
                "Start the container with the NVIDIA runtime.",
                "docker run --rm --gpus all ubuntu nvidia-smi",
            ),
        ),
        patterns=(
            r"libcuda\.so(\.1)?: cannot open shared object file",
            r"libcuda\.so cannot found",
            r"Failed to dlopen libcuda\.so",
            r"cannot find -lcuda",
        ),
        seen=(
            "OSError: libcuda.so: cannot open shared object file: No such file or directory",
            "/usr/bin/ld: cannot find -lcuda",
            "RuntimeError: Failed to dlopen libcuda.so",
        ),
        stage="import",
        platforms="linux wsl docker",
        relation="P",
        probes="P01 P02",
    ),
    Entry(
        id="WSL-LIBCUDA-NOT-SYMLINK",
        title="ldconfig remarks that WSL's libcuda is no link.",
        cause=(
            "Windows puts copies there instead of links, and ldconfig says so at every "
            "package installation. It does no harm."
        ),
        fixes=(
            do("Ignore it."),
            wsl(
                "To silence it, replace the copies in C:\\Windows\\System32\\lxss\\lib by links "
                "to libcuda.so.1.1, as administrator."
            ),
        ),
        patterns=(r"libcuda\.so\.1 is not a symbolic link",),
        seen=("ldconfig: /usr/lib/wsl/lib/libcuda.so.1 is not a symbolic link",),
        severity="info",
        stage="install",
        platforms="wsl",
        relation="P",
        probes="P01",
    ),
    Entry(
        id="DOCKER-NO-GPU-RUNTIME",
        title="Docker has no NVIDIA runtime.",
        cause=(
            "The NVIDIA container toolkit is missing or unknown to the daemon. The snap "
            "package of Docker ignores it."
        ),
        fixes=(
            linux(
                "Install the package nvidia-container-toolkit from NVIDIA's repository, "
                "then tell Docker.",
                "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl "
                "restart docker",
            ),
            linux(
                "If Docker is a snap, replace it by the vendor's package.",
                "snap list docker && sudo snap remove docker",
            ),
            windows(
                "Use Docker Desktop with the WSL 2 back end and the driver on Windows, then check.",
                "docker run --rm --gpus all ubuntu nvidia-smi",
            ),
        ),
        patterns=(r'could not select device driver "[^"]{0,80}" with capabilities: \[\[gpu\]\]',),
        seen=(
            (
                'docker: Error response from daemon: could not select device driver "" with '
                "capabilities: [[gpu]]."
            ),
        ),
        stage="install",
        platforms="docker",
        relation="P",
        probes="P24",
    ),
    Entry(
        id="TRITON-NO-ACTIVE-DRIVER",
        title="Triton finds no GPU to compile for.",
        cause=(
            "The driver's library is absent or does not start, there is no GPU, or torch is "
            "a CPU build."
        ),
        fixes=(
            run("See which of the three it is.", "turbodiffusion doctor"),
            either(
                "To go on without a GPU, use the portable operators.",
                "export TURBODIFFUSION_BACKEND=portable",
                "$env:TURBODIFFUSION_BACKEND = 'portable'",
            ),
        ),
        patterns=(r"\d{1,3} active drivers \(\[[^]]{0,400}\]\)\. There should only be one",),
        seen=("RuntimeError: 0 active drivers ([]). There should only be one.",),
        stage="first-kernel",
        platforms="linux windows wsl docker",
        relation="P",
        probes="P02 P11",
    ),
)
