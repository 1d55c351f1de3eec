"""Our own codes: the environment, the doctor, and what no other file is about."""

from __future__ import annotations

from turbodiffusion.doctor.catalogue.entry import do, either, linux, own, run

LARGER_DISK = either(
    "Or put the environment on a larger disk.",
    "export TURBODIFFUSION_VENV=/data/turbodiffusion TMPDIR=/data/tmp",
    "$env:TURBODIFFUSION_VENV = 'D:\\turbodiffusion'; $env:TEMP = 'D:\\tmp'",
)
OTHER_FOLDER = either(
    "Or name another folder for the environment.",
    "export TURBODIFFUSION_VENV=$HOME/turbodiffusion-venv",
    '$env:TURBODIFFUSION_VENV = "$HOME\\turbodiffusion-venv"',
)

ENTRIES = (
    own(
        "setup-python",
        "This Python is too old, too new or 32 bit.",
        "Install a 64-bit Python from 3.10 to 3.13 and start turbo.py with it.",
        stage="install",
    ),
    own(
        "setup-incomplete",
        "A command needs a package that is not installed yet.",
        run("Let the set-up install everything.", "python turbo.py setup"),
        stage="install",
    ),
    own(
        "setup-folder",
        "The environment cannot be made where it should be.",
        "Move the checkout to a folder that you may write to.",
        OTHER_FOLDER,
        stage="install",
    ),
    own(
        "setup-folder-taken",
        "There is a folder in the environment's place that the set-up did not make.",
        "Rename it, if it is not needed there.",
        OTHER_FOLDER,
        stage="install",
    ),
    own(
        "setup-folder-busy",
        "A program uses the environment, so it cannot be changed.",
        "Close programs that run from it, leave it (`deactivate`), and start again.",
        stage="install",
    ),
    own(
        "setup-inside",
        "The set-up runs from the environment that it is to change.",
        run("Leave the environment.", "deactivate"),
        run("Then start with the Python outside of it.", "python turbo.py setup"),
        stage="install",
    ),
    own(
        "uninstall-inside",
        "The uninstaller runs from the environment that it is to remove.",
        run("Leave the environment.", "deactivate"),
        run("Then start with the Python outside of it.", "python turbo.py uninstall"),
        stage="install",
    ),
    own(
        "setup-no-undo",
        "The environment cannot be kept aside while it is changed, so nothing was changed.",
        do("Free some space beside it."),
        run("Or start afresh.", "turbodiffusion setup --clean"),
        stage="install",
    ),
    own(
        "setup-no-checkout",
        "The package was installed by pip, so there is no checkout whose environment to set up.",
        run("Let doctor give the pip commands for it.", "turbodiffusion doctor"),
        "Or start turbo.py of a checkout.",
        stage="install",
    ),
    own(
        "setup-flags",
        "Two things were asked of the set-up that exclude each other.",
        "Give one of --fix, --wsl, --docker and --clean.",
        stage="install",
    ),
    own(
        "setup-no-venv",
        "This Python cannot make virtual environments.",
        linux("Install its package for that.", "sudo apt install python3-venv"),
        "Or use a Python from python.org, pyenv or uv.",
        stage="install",
    ),
    own(
        "setup-venv",
        "Python could not make a virtual environment.",
        "Use a Python from python.org, pyenv or uv.",
        OTHER_FOLDER,
        rank=3,
        stage="install",
    ),
    own(
        "setup-pip",
        "pip stopped for a reason that the set-up does not know.",
        "Start again; what was downloaded is kept.",
        run(
            "If it stops again, find the cause in pip's log.", "turbodiffusion doctor --explain LOG"
        ),
        rank=3,
        stage="install",
    ),
    own(
        "setup-broken",
        "The installed packages do not work together.",
        run("Repair what fails.", "turbodiffusion setup --fix"),
        run("Or remove the environment and start again.", "python turbo.py uninstall"),
        rank=3,
        stage="install",
    ),
    own(
        "setup-certificate",
        "The package index's certificate was refused.",
        run("Give pip the certificate of the proxy.", "pip config set global.cert PATH_TO_CA.pem"),
        cause="A proxy that opens encrypted connections shows a certificate of its own.",
        stage="install",
    ),
    own(
        "setup-proxy",
        "The proxy did not let pip through.",
        either(
            "Name the proxy, with user and password if it wants them.",
            "export HTTPS_PROXY=http://HOST:PORT",
            "$env:HTTPS_PROXY = 'http://HOST:PORT'",
        ),
        stage="install",
    ),
    own(
        "setup-network",
        "The package index cannot be reached.",
        "Connect to the network and start again; what was downloaded is kept.",
        run("See what is in the way.", "python turbo.py doctor --only network"),
        stage="install",
    ),
    own(
        "setup-index",
        "The package index lacks a package for this Python or system.",
        "Use a 64-bit Python from 3.10 to 3.13.",
        run("If pip uses a mirror, see which.", "python -m pip config list"),
        stage="install",
    ),
    own(
        "setup-conflict",
        "Packages want versions of each other that exclude one another.",
        run("Start with an environment of its own.", "turbodiffusion setup --clean"),
        stage="install",
    ),
    own(
        "setup-driver-old",
        "The NVIDIA driver is too old for this GPU.",
        "Update the driver.",
        either(
            "Or go on without the GPU.",
            "export TURBODIFFUSION_TORCH=cpu",
            "$env:TURBODIFFUSION_TORCH = 'cpu'",
        ),
        stage="install",
    ),
    own(
        "setup-torch-tag",
        "TURBODIFFUSION_TORCH names no build of torch.",
        either(
            "Let the machine decide.",
            "unset TURBODIFFUSION_TORCH",
            "Remove-Item Env:TURBODIFFUSION_TORCH",
        ),
        stage="install",
    ),
    own(
        "disk-full",
        "There is too little room on a disk.",
        "Free some space and start again; finished downloads are kept.",
        LARGER_DISK,
        stage="install",
    ),
    own(
        "memory-exhausted",
        "The GPU or the computer ran out of memory.",
        run("See what fits, and with which settings.", "turbodiffusion plan"),
        "Use a smaller --resolution, fewer --frames or a quantised checkpoint.",
        rank=2,
    ),
    own(
        "run-stopped",
        "The run was stopped before it was complete.",
        "Start it again; finished videos are kept.",
    ),
    own(
        "internal-error",
        "A command met something that it did not expect.",
        run("Collect what a report needs.", "turbodiffusion bugreport"),
        rank=3,
    ),
    own(
        "doctor-probe-unknown",
        "The doctor has no check of this name.",
        run("List all checks.", "turbodiffusion doctor -v"),
    ),
    own(
        "errors-unknown",
        "The error catalogue has no entry of this name.",
        run("List all entries.", "turbodiffusion errors"),
    ),
    own(
        "explain-unreadable",
        "A log cannot be read.",
        "Give the path of a text file, or - and paste the log.",
    ),
    own(
        "bugreport-log-unreadable",
        "A log for the report cannot be read.",
        "Give the path of a text file, or - and paste the log.",
    ),
    own(
        "monitor-no-driver",
        "The NVIDIA driver does not answer, so there are no readings.",
        run("See why.", "turbodiffusion doctor"),
    ),
    own(
        "monitor-no-nvml",
        "Nothing on this machine can read GPUs.",
        "Install the NVIDIA driver, if there is an NVIDIA GPU.",
        run("Then the package for readings.", "python -m pip install nvidia-ml-py"),
    ),
    own(
        "monitor-number",
        "The interval or count of the monitor is not above 0.",
        "Leave --interval and --count out for a reading a second.",
    ),
)
