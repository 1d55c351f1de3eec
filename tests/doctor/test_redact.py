"""Planted names and secrets never reach a report, and what a maintainer needs does."""

from __future__ import annotations

import json

import pytest

from turbodiffusion.doctor.redact import Redactor, of_this_machine

VARIABLES = {
    "HF_TOKEN": "plainvaluewithoutform",
    "WANDB_API_KEY": "0123456789abcdef0123",
    "DB_PASSWORD": "korrekt pferd batterie",
    "SSH_AUTH_SOCK": "/",
    "TERM": "xterm-256color",
}
LINUX = Redactor("/home/maria", "maria", "studio-pc", VARIABLES)
WINDOWS = Redactor("C:\\Users\\Maria Huber", "Maria Huber", "HUBER-PC", {})

PLANTED = [
    # a secret, and texts it may stand in
    ("hf_AbCdEfGhIjKlMnOp", "token hf_AbCdEfGhIjKlMnOp was refused"),
    ("ghp_0123456789abcdefABCD", "https://ghp_0123456789abcdefABCD@github.com/x/y"),
    ("github_pat_11ABCDEFG0abcdef", "remote: github_pat_11ABCDEFG0abcdef"),
    ("glpat-abcdEFGH1234", "GITLAB glpat-abcdEFGH1234"),
    ("sk-proj-abcd1234efgh", "key sk-proj-abcd1234efgh"),
    ("AKIAIOSFODNN7EXAMPLE", "aws AKIAIOSFODNN7EXAMPLE"),
    ("hunter22", "--password hunter22 --seed 3"),
    ("hunter22", "password: hunter22"),
    ("hunter22", '{"api_key": "hunter22"}'),
    ("hunter22", "MY_SECRET_VALUE=hunter22"),
    ("bob:pass", "index-url = https://bob:pass@pypi.example.org/simple"),
    ("eyJhbGciOiJIUzI1", "Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIi.abc"),
    ("dXNlcjpwYXNz", "Authorization: Basic dXNlcjpwYXNz"),
    ("abc123sig", "GET /file?x=1&X-Amz-Signature=abc123sig&y=2"),
    ("MIIEpAIBAAKCAQEA", "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n"),
    ("maria.huber@example.org", "From: maria.huber@example.org"),
    ("00:1a:2B:3c:4d:5e", "ether 00:1a:2B:3c:4d:5e"),
    ("8c6e3d0a-1111-2222-3333-444455556666", "GPU-8c6e3d0a-1111-2222-3333-444455556666"),
    ("plainvaluewithoutform", "the value is plainvaluewithoutform."),
    ("0123456789abcdef0123", "header x: 0123456789abcdef0123"),
    ("pferd batterie", "connect korrekt pferd batterie"),
    ("maria", "/home/maria/turbo/.venv/bin/python"),
    ("maria", "drwxr-xr-x maria users turbo"),
    ("otto", 'File "/home/otto/x.py", line 3'),
    ("otto", 'File "/Users/otto/x.py", line 3'),
    ("studio-pc", "Linux studio-pc 6.8.0"),
]


@pytest.mark.parametrize(("secret", "text"), PLANTED)
def test_planted_secrets_are_taken_out(secret, text):
    for form in (text, f"[{text}]", f"{text}\n{text}", json.dumps({"log": text})):
        assert secret in form or "\\n" in json.dumps(text)
        assert secret not in LINUX(form), LINUX(form)


@pytest.mark.parametrize(
    "text",
    [
        "C:\\Users\\Maria Huber\\turbo\\.venv",
        "C:/Users/Maria Huber/turbo",
        json.dumps({"path": "C:\\Users\\Maria Huber\\turbo"}),
        "d:\\users\\maria huber\\x".replace("d:\\users", "D:\\Users"),
        "Microsoft Windows HUBER-PC",
    ],
)
def test_windows_names(text):
    shown = WINDOWS(text)
    assert "huber" not in shown.lower() and "maria" not in shown.lower(), shown


@pytest.mark.parametrize(
    "text",
    [
        "tokenizers==0.22.1",
        "HF_ENDPOINT=https://hub.example.org",
        "TERM=xterm-256color",
        "torch 2.13.0+cu130, driver 580.65.06, capability 12.0",
        "the tokenizer has 256384 tokens: fine",
        "text tokens (B, 512, 4096), sk-learn",
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
        "python turbo.py setup --torch cu130 --yes",
        "docker run --rm --gpus all -it IMAGE",
        "sha256:3b1c5a 2026-11-24 08:53:11",
    ],
)
def test_what_a_maintainer_needs_stays(text):
    assert LINUX(text) == text


def test_home_becomes_a_tilde():
    assert LINUX("/home/maria/.triton/cache") == "~/.triton/cache"


def test_common_names_stay():
    assert Redactor("/root", "root", "localhost", {})("root cause on localhost") == (
        "root cause on localhost"
    )


def test_this_machine(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "planted-value-123")
    assert "planted-value-123" not in of_this_machine()("x planted-value-123 y")
