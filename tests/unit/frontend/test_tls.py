"""Certificates and keys in any state: accepted, or rejected in one sentence."""

import subprocess
from pathlib import Path

import pytest

from frontend.__main__ import TlsError, make_tls_context
from frontend.config import Config
from tests.harness.damage import DAMAGE


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a certificate, its key, that key with a pass phrase, and another key."""
    folder = tmp_path_factory.mktemp("pems")
    new_key = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-out"]
    for command in (
        [*new_key, "key.pem"],
        [*new_key, "other.pem"],
        ["openssl", "req", "-x509", "-key", "key.pem", "-subj", "/CN=x", "-days", "2", "-out", "cert.pem"],
        ["openssl", "ec", "-in", "key.pem", "-aes256", "-passout", "pass:abcd", "-out", "locked.pem"],
    ):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (folder / "both.pem").write_bytes((folder / "cert.pem").read_bytes() + (folder / "key.pem").read_bytes())
    (folder / "half.pem").write_bytes((folder / "cert.pem").read_bytes()[:200])
    return folder


def catch_error(cert: Path | str, key: Path | str) -> str:
    """Return the error text for a certificate and a key."""
    with pytest.raises(TlsError) as caught:
        make_tls_context(Config(tls_cert=str(cert), tls_key=str(key)))
    text = str(caught.value)
    assert text.startswith(f"the certificate {cert} and the key {key} cannot be used: ")
    assert "\n" not in text
    return text


def test_certificate_and_key_may_share_a_file(pems: Path) -> None:
    assert make_tls_context(Config()) is None
    assert make_tls_context(Config(tls_cert=str(pems / "cert.pem"), tls_key=str(pems / "key.pem")))
    assert make_tls_context(Config(tls_cert=str(pems / "both.pem")))


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_file_is_rejected(pems: Path, tmp_path: Path, kind: str) -> None:
    damaged = tmp_path / "damaged.pem"
    DAMAGE[kind](damaged)
    texts = [catch_error(damaged, pems / "key.pem"), catch_error(pems / "cert.pem", damaged)]
    if kind in ("directory", "fifo", "loop of links", "dangling link", "huge"):
        assert all(f"cannot be used: {damaged}: " in text for text in texts)


@pytest.mark.parametrize(
    ("cert", "key"),
    [("cert", "other"), ("cert", "locked"), ("cert", "cert"), ("key", "key"), ("half", "key"), ("cert", "half")],
)
def test_mismatched_files_are_rejected(pems: Path, cert: str, key: str) -> None:
    assert "both must be PEM and belong together" in catch_error(pems / f"{cert}.pem", pems / f"{key}.pem")


def test_path_with_null_byte_is_rejected(pems: Path) -> None:
    assert "null byte" in catch_error(pems / "cert.pem", "a\0b")
