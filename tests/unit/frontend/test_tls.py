"""A certificate and its key in any state: served, or refused in one sentence."""

import subprocess
from pathlib import Path

import pytest

from frontend.__main__ import TlsError, tls_context
from frontend.config import Config
from tests.harness.damage import DAMAGE


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate, its key, that key with a pass phrase, and another key."""
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


def refusal(cert: Path | str, key: Path | str) -> str:
    """Why these cannot be used."""
    with pytest.raises(TlsError) as caught:
        tls_context(Config(tls_cert=str(cert), tls_key=str(key)))
    text = str(caught.value)
    assert text.startswith(f"the certificate {cert} and the key {key} cannot be used: ")
    assert "\n" not in text
    return text


def test_certificate_and_key_are_served_from_one_file_or_two(pems: Path) -> None:
    assert tls_context(Config()) is None
    assert tls_context(Config(tls_cert=str(pems / "cert.pem"), tls_key=str(pems / "key.pem")))
    assert tls_context(Config(tls_cert=str(pems / "both.pem")))


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_file_is_refused(pems: Path, tmp_path: Path, kind: str) -> None:
    damaged = tmp_path / "damaged.pem"
    DAMAGE[kind](damaged)
    texts = [refusal(damaged, pems / "key.pem"), refusal(pems / "cert.pem", damaged)]
    if kind in ("directory", "fifo", "loop of links", "dangling link", "huge"):
        assert all(f"cannot be used: {damaged}: " in text for text in texts)


@pytest.mark.parametrize(
    ("cert", "key"),
    [("cert", "other"), ("cert", "locked"), ("cert", "cert"), ("key", "key"), ("half", "key"), ("cert", "half")],
)
def test_files_that_do_not_belong_together_are_refused(pems: Path, cert: str, key: str) -> None:
    assert "both must be PEM and belong together" in refusal(pems / f"{cert}.pem", pems / f"{key}.pem")


def test_path_that_can_be_none_is_refused(pems: Path) -> None:
    assert "null byte" in refusal(pems / "cert.pem", "a\0b")
