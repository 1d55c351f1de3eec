"""What only Windows says."""

from __future__ import annotations

from turbodiffusion.doctor.catalogue.entry import Entry, do, either, linux, run, windows

ENTRIES = (
    Entry(
        id="TRITON-LIBTRITON-DLL",
        title="Triton's library cannot be loaded.",
        cause=(
            "The Visual C++ runtime is old, or an old copy of vcruntime140.dll beside "
            "python.exe hides the new one."
        ),
        fixes=(
            windows(
                "Install the current Visual C++ runtime, then open a new shell.",
                "winget install --exact --id Microsoft.VCRedist.2015+.x64",
            ),
            windows(
                "Copy the new files over those beside python.exe, if there are any (version "
                "14.42 or newer).",
                "Copy-Item C:\\Windows\\System32\\msvcp140.dll, "
                "C:\\Windows\\System32\\vcruntime140.dll, "
                "C:\\Windows\\System32\\vcruntime140_1.dll (Split-Path (Get-Command "
                "python).Source)",
            ),
            windows("In conda, update its own copy.", "conda install -c conda-forge vc14_runtime"),
        ),
        patterns=(r"DLL load failed while importing libtriton",),
        seen=(
            (
                "ImportError: DLL load failed while importing libtriton: A dynamic link library "
                "(DLL) initialization routine failed."
            ),
            (
                "ImportError: DLL load failed while importing libtriton: Eine "
                "DLL-Initialisierungsroutine ist fehlgeschlagen."
            ),
        ),
        stage="import",
        platforms="windows",
        relation="P",
        probes="P23",
    ),
    Entry(
        id="TRITON-CUDA-UTILS-DLL",
        title="Triton's launcher cannot be loaded.",
        cause=(
            "It is left from another Python, Triton or compiler, or packages of several "
            "environments mix."
        ),
        fixes=(
            either(
                "Clear Triton's cache.",
                "rm -rf ~/.triton/cache",
                'Remove-Item -Recurse -Force "$env:USERPROFILE\\.triton\\cache"',
            ),
            windows(
                "Clear the compiler's cache too.",
                'Remove-Item -Recurse -Force "$env:TEMP\\torchinductor_*"',
            ),
            windows(
                "See whether more than one Python is found, and keep to one.",
                "Get-Command -All python",
            ),
        ),
        patterns=(r"DLL load failed while importing (cuda_utils|__triton_launcher)",),
        seen=("ImportError: DLL load failed while importing cuda_utils",),
        stage="first-kernel",
        platforms="windows",
        relation="P",
        probes="P11 P13 P17",
    ),
    Entry(
        id="TRITON-CACHE-PERMISSION",
        title="Triton's cache cannot be written.",
        cause=(
            "Controlled folder access of Windows, another owner, or a home folder that is "
            "read-only, as in containers."
        ),
        fixes=(
            either(
                "Use another folder.",
                "export TRITON_CACHE_DIR=/var/tmp/$USER/triton",
                "$env:TRITON_CACHE_DIR = 'D:\\cache\\triton'",
            ),
            linux("Or make it yours.", "sudo chown -R $USER ~/.triton"),
        ),
        patterns=(r"PermissionError.{0,60}[\\/]\.triton",),
        seen=(
            "PermissionError: [WinError 5] Access is denied: 'C:\\\\Users\\\\<user>\\\\.triton'",
        ),
        stage="first-kernel",
        platforms="windows linux",
        relation="P",
        probes="P13",
    ),
    Entry(
        id="WIN-SYMLINK-PRIVILEGE",
        title="Windows does not let this account make links.",
        cause="The hub's cache uses links, which need Developer Mode or administrator rights.",
        fixes=(
            run(
                "turbodiffusion downloads into a plain folder.",
                "turbodiffusion download MODEL --dir FOLDER",
            ),
            windows(
                "For other software, open the page where Developer Mode is switched on.",
                "Start-Process ms-settings:developers",
            ),
        ),
        patterns=(r"WinError 1314\b",),
        seen=("OSError: [WinError 1314] A required privilege is not held by the client",),
        severity="major",
        stage="download",
        platforms="windows",
        relation="P",
        probes="P23",
    ),
    Entry(
        id="WIN-TORCH-DLL",
        title="A library of torch cannot be loaded.",
        cause=(
            "Something it needs is missing: the Visual C++ runtime, or with torch 2.4.0 "
            "libomp140.x86_64.dll. The sentence is translated; the number is not."
        ),
        fixes=(
            windows(
                "Install the current Visual C++ runtime, then open a new shell.",
                "winget install --exact --id Microsoft.VCRedist.2015+.x64",
            ),
            run("If that does not help, put torch back.", "turbodiffusion setup --fix"),
            do("Single DLLs from download pages are no remedy and a risk."),
        ),
        patterns=(r"WinError (?P<number>126|127|193|1114)\].{0,120}Error loading",),
        seen=(
            (
                "OSError: [WinError 126] The specified module could not be found. Error loading "
                '".venv\\Lib\\site-packages\\torch\\lib\\fbgemm.dll" or one of its dependencies.'
            ),
            (
                "OSError: [WinError 126] 找不到指定的模块。 Error loading "
                '"...\\torch\\lib\\fbgemm.dll" or one of its dependencies'
            ),
        ),
        stage="import",
        platforms="windows",
        relation="P",
        probes="P23 P05",
    ),
    Entry(
        id="WIN-VCREDIST-MISSING",
        title="The Visual C++ runtime is not installed.",
        cause="torch needs it.",
        fixes=(
            windows(
                "Install the current Visual C++ runtime, then open a new shell.",
                "winget install --exact --id Microsoft.VCRedist.2015+.x64",
            ),
        ),
        patterns=(r"Microsoft Visual C\+\+ Redistributable is not installed",),
        seen=(
            (
                "Microsoft Visual C++ Redistributable is not installed, this may lead to the "
                "DLL load failure."
            ),
        ),
        stage="import",
        platforms="windows",
        relation="P",
        probes="P23",
    ),
    Entry(
        id="WIN-LONG-PATH",
        title="A path is longer than Windows allows.",
        cause=(
            "260 characters, unless long paths are switched on. Compile caches and nested "
            "environments reach that; it can also look like a missing file."
        ),
        fixes=(
            windows(
                "Switch long paths on, as administrator, then restart.",
                "New-ItemProperty -Path HKLM:\\SYSTEM\\CurrentControlSet\\Control\\FileSystem "
                "-Name LongPathsEnabled -Value 1 -PropertyType DWORD -Force",
            ),
            windows(
                "Or use a short folder for compiled kernels.", "$env:TRITON_CACHE_DIR = 'C:\\t'"
            ),
        ),
        patterns=(r"WinError 206\b", r"The filename or extension is too long"),
        seen=("[WinError 206] The filename or extension is too long",),
        severity="major",
        stage="first-kernel",
        platforms="windows",
        relation="P",
        probes="P13 P23",
    ),
    Entry(
        id="WIN-EXECUTION-POLICY",
        title="PowerShell may not run scripts.",
        cause="The policy blocks Activate.ps1, conda's hook and set-up scripts.",
        fixes=(
            windows(
                "Allow scripts of this computer.",
                "Set-ExecutionPolicy -Scope CurrentUser RemoteSigned",
            ),
            windows("Or do without them.", ".venv\\Scripts\\python.exe -m turbodiffusion --help"),
        ),
        patterns=(r"running scripts is disabled on this system", r"PSSecurityException"),
        seen=(
            ("profile.ps1 cannot be loaded because running scripts is disabled on this system."),
        ),
        severity="minor",
        stage="install",
        platforms="windows",
        relation="P",
        probes="P23",
    ),
    Entry(
        id="WIN-RENAME-183",
        title="Two processes made the same cache file.",
        cause="torch before 2.6 loses that race.",
        fixes=(run("Start again; it also goes away with a newer torch.", "turbodiffusion setup"),),
        patterns=(r"WinError 183\b",),
        seen=(
            ("FileExistsError: [WinError 183] Cannot create a file when that file already exists"),
        ),
        severity="minor",
        stage="run",
        platforms="windows",
        relation="P",
        probes="P05",
    ),
    Entry(
        id="DLL-LOAD-GENERIC",
        title="A compiled module cannot be loaded.",
        cause=(
            "The Visual C++ runtime is too old, or the module was built for another Python, "
            "torch or CUDA."
        ),
        fixes=(
            windows(
                "Install the current Visual C++ runtime, then open a new shell.",
                "winget install --exact --id Microsoft.VCRedist.2015+.x64",
            ),
            do("Otherwise reinstall the module that is named, for this torch and Python."),
        ),
        patterns=(r"DLL load failed while importing (?P<module>\w{1,80})",),
        seen=(
            (
                "ImportError: DLL load failed while importing triton: The specified module "
                "could not be found."
            ),
        ),
        rank=3,
        stage="import",
        platforms="windows",
        relation="P",
        probes="P19 P23",
    ),
)
