"""Checkpoint files that are damaged or are something else."""

from __future__ import annotations

from turbodiffusion.doctor.catalogue.entry import Entry, do, either, run

ENTRIES = (
    Entry(
        id="CKPT-TRUNCATED",
        title="A checkpoint is incomplete.",
        cause=(
            "The download was interrupted; curl and wget leave such a file under its final name."
        ),
        fixes=(
            run(
                "Fetch it again; what is right on the disk is kept.",
                "turbodiffusion download MODEL --verify",
            ),
            either(
                "By hand, let curl go on where it stopped.",
                "curl -L -C - -o FILE URL",
                "curl.exe -L -C - -o FILE URL",
            ),
        ),
        patterns=(
            r"PytorchStreamReader failed reading zip archive",
            r"failed finding central directory",
            r"unexpected EOF, expected \d{1,15} more bytes",
        ),
        seen=(
            (
                "RuntimeError: PytorchStreamReader failed reading zip archive: failed finding "
                "central directory"
            ),
        ),
        stage="model-load",
        platforms="linux windows",
        relation="P",
        probes="P21",
    ),
    Entry(
        id="CKPT-LFS-POINTER",
        title="A checkpoint is a git-lfs pointer.",
        cause=(
            "The repository was cloned without git-lfs, so the file holds a few lines of "
            "text that begin with `version`."
        ),
        fixes=(
            run("Fetch the real files, in that repository.", "git lfs pull"),
            run("Or download them.", "turbodiffusion download MODEL"),
        ),
        patterns=(r"invalid load key, 'v'",),
        seen=(
            "UnpicklingError: invalid load key, 'v'.",
            "_pickle.UnpicklingError: invalid load key, 'v'.",
        ),
        stage="model-load",
        platforms="linux windows",
        relation="P",
        probes="P21",
    ),
    Entry(
        id="CKPT-HTML-PAGE",
        title="A checkpoint is a web page.",
        cause="A login or error page was saved under the checkpoint's name.",
        fixes=(
            run("Delete it and download the file.", "turbodiffusion download MODEL"),
            either(
                "By hand, let curl fail instead of saving such a page.",
                "curl --fail -L -o FILE URL",
                "curl.exe --fail -L -o FILE URL",
            ),
        ),
        patterns=(r"invalid load key, '<'",),
        seen=("_pickle.UnpicklingError: invalid load key, '<'.",),
        stage="model-load",
        platforms="linux windows",
        relation="P",
        probes="P21",
    ),
    Entry(
        id="WEIGHTS-ONLY-REFUSED",
        title="torch refuses to unpickle a checkpoint.",
        cause=(
            "It asks for Python objects besides tensors, which could run code, or it is damaged."
        ),
        fixes=(
            run(
                "Copy its tensors alone, without running anything.",
                "turbodiffusion convert FILE OUT.safetensors",
            ),
            do(
                "If the message goes on with `invalid load key`, the file is no checkpoint: "
                "see CKPT-LFS-POINTER and CKPT-HTML-PAGE."
            ),
        ),
        patterns=(r"Weights only load failed",),
        seen=(
            (
                "Weights only load failed. This file can still be loaded, to do so you have two "
                "options"
            ),
        ),
        stage="model-load",
        platforms="linux windows",
        relation="P",
        probes="P21",
    ),
    Entry(
        id="SAFETENSORS-HEADER",
        title="A safetensors file has a broken header.",
        cause=(
            "MetadataIncompleteBuffer: the file ends early. HeaderTooLarge: it is something "
            "else, such as a git-lfs pointer, a web page or a renamed pickle."
        ),
        fixes=(
            run("See what it is.", "turbodiffusion inspect FILE"),
            run(
                "Fetch it again; what is right on the disk is kept.",
                "turbodiffusion download MODEL --verify",
            ),
        ),
        patterns=(r"Error while deserializing header: ?(?P<kind>\w[\w ]{0,60}\w)",),
        seen=(
            (
                "safetensors_rust.SafetensorError: Error while deserializing header: "
                "MetadataIncompleteBuffer"
            ),
            ("safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge"),
        ),
        stage="model-load",
        platforms="linux windows",
        relation="P",
        probes="P21",
    ),
    Entry(
        id="HUB-CONSISTENCY-CHECK",
        title="A downloaded file has another size than announced.",
        cause="The transfer ended early, or a proxy changed it.",
        fixes=(
            run("Start it again; it goes on where it stopped.", "turbodiffusion download MODEL"),
            either(
                "If a proxy blocks the hub's newer protocol, use the plain one.",
                "export HF_HUB_DISABLE_XET=1",
                "$env:HF_HUB_DISABLE_XET = '1'",
            ),
        ),
        patterns=(r"Consistency check failed: file should be of size (?P<wanted>\d{1,15})",),
        seen=(
            ("Consistency check failed: file should be of size 11361920418 but has size 734003200"),
        ),
        stage="download",
        platforms="linux windows",
        relation="P",
        probes="P20 P21",
    ),
)
