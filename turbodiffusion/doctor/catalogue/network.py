"""The hub and the way to it."""

from __future__ import annotations

from turbodiffusion.doctor.catalogue.entry import Entry, do, either, run, wsl

ENTRIES = (
    Entry(
        id="HUB-RATE-LIMIT",
        title="The hub takes no more requests for now.",
        cause="Too many came from this address or account.",
        fixes=(
            do("Wait a few minutes and start again; what has come is kept."),
            run("Requests of an account have a larger limit.", "hf auth login"),
        ),
        patterns=(r"429 (Client Error: )?Too Many Requests", r"HTTP status client error \(429"),
        seen=(
            "requests.exceptions.HTTPError: 429 Client Error: Too Many Requests for URL",
            "Reqwest Error: HTTP status client error (429 Too Many Requests)",
        ),
        severity="major",
        stage="download",
        platforms="linux windows",
        relation="P",
        probes="P20",
    ),
    Entry(
        id="HUB-NOT-FOUND-OR-PRIVATE",
        title="The hub does not have this repository or file, or not for you.",
        cause=(
            "A wrong name, or a private repository without a token: the hub answers 401 to both."
        ),
        fixes=(
            run("See the names that exist.", "turbodiffusion models"),
            run("For a private repository, sign in.", "hf auth login"),
        ),
        patterns=(
            r"(Repository|Revision|Entry|Bucket) Not Found for url",
            r"RepositoryNotFoundError",
            r"RemoteEntryNotFoundError",
        ),
        seen=("RepositoryNotFoundError: 401 Client Error. Repository Not Found for url",),
        stage="download",
        platforms="linux windows",
        relation="P",
        probes="P20",
    ),
    Entry(
        id="HUB-GATED",
        title="The model's licence has to be accepted first.",
        cause=(
            "The account of the token has not done so. None of the files that "
            "turbodiffusion uses is gated."
        ),
        fixes=(
            do("Accept the licence on the model's page."),
            run("Then sign in.", "hf auth login"),
        ),
        patterns=(
            r"Cannot access gated repo",
            r"is restricted and you are not in the authorized list",
            r"GatedRepoError",
        ),
        seen=("GatedRepoError: 403 Client Error. Cannot access gated repo for url",),
        stage="download",
        platforms="linux windows",
        relation="P",
        probes="P20",
    ),
    Entry(
        id="HUB-TIMEOUT",
        title="A download got no answer in time.",
        cause="A slow line, a hub in trouble, or a filter in between.",
        fixes=(
            do("Start it again; it goes on where it stopped."),
            either(
                "Wait longer for answers.",
                "export HF_HUB_DOWNLOAD_TIMEOUT=60",
                "$env:HF_HUB_DOWNLOAD_TIMEOUT = '60'",
            ),
            either(
                "Or use a mirror.",
                "export HF_ENDPOINT=https://MIRROR",
                "$env:HF_ENDPOINT = 'https://MIRROR'",
            ),
        ),
        patterns=(r"Read timed out", r"The read operation timed out"),
        exact=(r"ReadTimeout(Error)?(?![\w=]|: ?\d)", r"ConnectTimeout(Error)?(?![\w=]|: ?\d)"),
        seen=(
            (
                "ReadTimeoutError(\"HTTPSConnectionPool(host='<hub>', port=443): Read timed out. "
                '(read timeout=10)")'
            ),
            "TimeoutError: The read operation timed out",
        ),
        severity="major",
        stage="download",
        platforms="linux windows",
        relation="P",
        probes="P20",
    ),
    Entry(
        id="TLS-VERIFY",
        title="The certificate of a server was not accepted.",
        cause=(
            "A proxy that opens encrypted connections has a certificate of its own, or this "
            "computer's clock is wrong (`not yet valid`)."
        ),
        fixes=(
            either(
                "Name the proxy's certificate.",
                "export SSL_CERT_FILE=/path/to/ca.pem REQUESTS_CA_BUNDLE=/path/to/ca.pem",
                "$env:SSL_CERT_FILE = 'C:\\path\\ca.pem'; $env:REQUESTS_CA_BUNDLE = "
                "$env:SSL_CERT_FILE",
            ),
            either("Or set the clock.", "sudo timedatectl set-ntp true", "w32tm /resync"),
            wsl("Or set WSL's clock.", "sudo hwclock -s"),
            do("Leave verification on: without it anyone in between can replace the weights."),
        ),
        patterns=(r"CERTIFICATE_VERIFY_FAILED", r"SSL certificate problem"),
        seen=(
            (
                'SSLError(SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] '
                "certificate verify failed: Hostname mismatch"
            ),
            "curl: (60) SSL certificate problem: certificate is not yet valid",
        ),
        stage="download",
        platforms="linux windows",
        relation="P",
        probes="P20",
    ),
    Entry(
        id="DNS-FAILURE",
        title="The name of a server could not be looked up.",
        cause="No network, or no name server; in WSL often under a VPN.",
        fixes=(
            wsl(
                "Put networkingMode=mirrored and dnsTunneling=true below [wsl2] in "
                ".wslconfig, then restart it.",
                powershell="notepad $env:USERPROFILE\\.wslconfig; wsl --shutdown",
            ),
            run(
                "Without a network, copy the model's folder and name it.",
                "turbodiffusion download MODEL --from DIR",
            ),
        ),
        patterns=(
            r"Name or service not known",
            r"getaddrinfo failed",
            r"Temporary failure in name resolution",
            r"Could not resolve host",
        ),
        seen=(
            "Failed to establish a new connection: [Errno -2] Name or service not known",
            "curl: (6) Could not resolve host: example.com",
        ),
        stage="download",
        platforms="linux windows wsl",
        relation="P",
        probes="P20",
    ),
    Entry(
        id="HUB-OFFLINE",
        title="Files are missing, and the network is switched off.",
        cause="HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set.",
        fixes=(
            either(
                "Switch it on.",
                "unset HF_HUB_OFFLINE TRANSFORMERS_OFFLINE",
                "Remove-Item Env:HF_HUB_OFFLINE",
            ),
            either(
                "Or name the folder that holds the files.",
                "export HF_HOME=/path/to/huggingface",
                "$env:HF_HOME = 'D:\\huggingface'",
            ),
        ),
        patterns=(r"outgoing traffic has been disabled", r"OfflineModeIsEnabled"),
        seen=(
            (
                "Cannot find the requested files in the disk cache and outgoing traffic has "
                "been disabled."
            ),
        ),
        stage="download",
        platforms="linux windows",
        relation="P",
        probes="P18 P20",
    ),
)
