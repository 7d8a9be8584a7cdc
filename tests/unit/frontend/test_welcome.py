"""What is printed when a server is ready."""

import pytest

from frontend.welcome import format_curl, format_url, list_published_hosts, read_published_address, split_address


@pytest.mark.parametrize(
    ("host", "tls", "url"),
    [
        ("127.0.0.1", False, "http://127.0.0.1:8000"),
        ("0.0.0.0", True, "https://127.0.0.1:8000"),
        ("", False, "http://127.0.0.1:8000"),
        ("::", False, "http://[::1]:8000"),
        ("fd00::1", False, "http://[fd00::1]:8000"),
        ("example.com", False, "http://example.com:8000"),
    ],
)
def test_url_can_be_requested_on_this_host(host: str, tls: bool, url: str) -> None:
    assert format_url(host, 8000, tls=tls) == url


def test_address_may_have_a_host() -> None:
    assert split_address("8000") == ("", 8000)
    assert split_address("127.0.0.1:8000") == ("127.0.0.1", 8000)
    assert split_address("[::1]:8000") == ("::1", 8000)
    with pytest.raises(ValueError, match="invalid literal"):
        split_address("127.0.0.1:")


@pytest.mark.parametrize(
    ("value", "address"),
    [("8001", ("", 8001)), ("127.0.0.1:8001", ("127.0.0.1", 8001)), ("tcp://10.0.0.1:8000", None), ("8000-8010", None)],
)
def test_service_link_is_no_published_address(value: str, address: tuple[str, int] | None) -> None:
    assert read_published_address({"VECMILL_PORT": value}) == address
    assert read_published_address({}) is None


def test_published_hosts_are_those_that_clients_reach() -> None:
    assert list_published_hosts("::1, localhost", {}) == ["::1", "localhost"]
    assert list_published_hosts("0.0.0.0", {"VECMILL_PORT": "127.0.0.1:80"}) == ["127.0.0.1"]
    assert list_published_hosts("0.0.0.0", {"VECMILL_PORT": "80"}) == [""]


def test_curl_has_the_key_and_quotes_the_model() -> None:
    plain = format_curl("http://a:1", "it's", needs_key=False)
    assert plain.startswith("curl http://a:1/v1/embeddings -H 'Content-Type: application/json' -d ")
    assert """'"'"'""" in plain
    secured = format_curl("https://a:1", "m", needs_key=True)
    assert secured.startswith("curl -k https://a:1/")
    assert ' -H "Authorization: Bearer $API_KEY" ' in secured
