"""No secret stands in any file under deploy/."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY, all_files

SECRETS = {
    "a token such as Ray makes": r"\b[0-9a-f]{32,}\b",
    "a token given in place": r"RAY_AUTH_TOKEN\s*[=:]\s*[\"']?[^\s\"'}]",
    "a token as a value": r"RAY_AUTH_TOKEN[\"']?,?\s+value:",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a key of AWS": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a key of Google Cloud": r"\bAIza[0-9A-Za-z_-]{35}\b",
    "a token of GitHub": r"\bgh[opsu]_[0-9A-Za-z]{30,}\b",
    "a password": r"(?i)\bpassword\s*[=:]\s*\S",
    "a Secret's contents": r"(?m)^kind: Secret$|stringData:",
}

PLANTED = {
    "a token such as Ray makes": "0123456789abcdef" * 4,
    "a token given in place": "RAY_AUTH_TOKEN=hunter2",
    "a token as a value": "- { name: RAY_AUTH_TOKEN, value: hunter2 }",
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "a key of AWS": "AKIA" + "A" * 16,
    "a key of Google Cloud": "AIza" + "x" * 35,
    "a token of GitHub": "ghp_" + "x" * 36,
    "a password": "password: hunter2",
    "a Secret's contents": "apiVersion: v1\nkind: Secret\n",
}


@pytest.mark.parametrize("path", all_files(), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_no_secret_stands_in_the_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not [what for what, pattern in SECRETS.items() if re.search(pattern, text)]


@pytest.mark.parametrize("what", SECRETS)
def test_a_secret_would_be_found(what: str) -> None:
    assert re.search(SECRETS[what], PLANTED[what])
