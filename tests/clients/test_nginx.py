"""nginx in front of the server, with a path prefix."""

import re
from urllib.parse import urljoin

import httpx
import pytest

from tests.clients.golden import KEY, TEXTS, check_answer, make_body
from tests.harness.api_keys import make_header


@pytest.mark.parametrize("location", ["kept", "default"])
def test_docs_page_is_complete_behind_path_prefix(nginx: str, location: str) -> None:
    with httpx.Client(base_url=nginx) as client:
        page = client.get(f"/{location}/docs")
        links = re.findall(r'(?:href|src)="([^"]+)"', page.text)
        script = next(link for link in links if "start" in link)
        start = client.get(urljoin(str(page.url), script))
        # Swagger UI resolves the description's URL from the page.
        links += re.findall(r'url: "([^"]+)"', start.text)
        assert len(links) >= 4
        answers = {link: client.get(urljoin(str(page.url), link)).status_code for link in links}
    assert answers == dict.fromkeys(links, 200)


@pytest.mark.parametrize("location", ["kept", "default"])
def test_description_names_the_path_prefix(nginx: str, location: str) -> None:
    with httpx.Client(base_url=nginx) as client:
        description = client.get(f"/{location}/openapi.json")
        base = urljoin(str(description.url), description.json()["servers"][0]["url"])
        url = f"{base.rstrip('/')}/v1/embeddings"
        answer = client.post(url, json=make_body(TEXTS), headers=make_header(KEY), timeout=60)
    check_answer(answer.json())
