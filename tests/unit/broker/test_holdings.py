"""Waiting tokens by client, and the tokens that are served before a new request."""

from hypothesis import given
from hypothesis import strategies as st

from broker.core.holdings import Holdings

tokens = st.integers(1, 5000)


@given(st.dictionaries(st.integers(0, 50), st.lists(tokens, min_size=1, max_size=5)), st.integers(0, 50), tokens)
def test_tokens_before_request_are_estimated_within_bound(
    holdings_by_client: dict[int, list[int]], client: int, request_tokens: int
) -> None:
    holdings = Holdings()
    for holder, parts in holdings_by_client.items():
        for part in parts:
            holdings.add_tokens(holder, part)
    totals = {holder: sum(parts) for holder, parts in holdings_by_client.items()}
    client_tokens = totals.pop(client, 0)
    limit = client_tokens + request_tokens
    exact = client_tokens + sum(min(total, limit) for total in totals.values())
    same_digits = [total for total in totals.values() if total.bit_length() == limit.bit_length()]
    assert holdings.total == client_tokens + sum(totals.values())
    assert exact <= holdings.count_before(client, request_tokens) <= exact + sum(same_digits)


@given(st.dictionaries(st.integers(0, 50), tokens))
def test_clients_without_tokens_are_removed(holdings_by_client: dict[int, int]) -> None:
    holdings = Holdings()
    for holder, count in holdings_by_client.items():
        holdings.add_tokens(holder, count)
        holdings.add_tokens(holder, 0)
    for holder, count in holdings_by_client.items():
        holdings.add_tokens(holder, -count)
    assert (len(holdings), holdings.total, holdings.count_before("new", 10)) == (0, 0, 0)
