"""Reloads of models, as the HTTP handler awaits them."""

import asyncio
from types import SimpleNamespace

import pytest

from frontend.config import Config
from frontend.session.broker_client import BrokerClient


def test_reload_that_times_out_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    client = BrokerClient(Config())
    monkeypatch.setattr(BrokerClient, "connected", True)
    sent: list[object] = []
    monkeypatch.setattr(client, "_link", SimpleNamespace(send=sent.append))
    reloaded = asyncio.run(client.reload_models(0.01))
    assert len(sent) == 1
    assert reloaded is not None
    assert reloaded.failure == "Models are still loading after 0.01 s; see GET /v1/config for their states."
