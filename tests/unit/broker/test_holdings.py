"""Tokens by client."""

from hypothesis import given
from hypothesis import strategies as st

from broker.core.holdings import Holdings

tokens = st.integers(1, 5000)


@given(st.dictionaries(st.integers(0, 50), st.lists(tokens, min_size=1, max_size=5)), st.integers(0, 50), tokens)
def test_tokens_before_a_request_are_right_but_for_clients_that_have_about_as_many(
    held: dict[int, list[int]], client: int, asked: int
) -> None:
    holdings = Holdings()
    for one, parts in held.items():
        for part in parts:
            holdings.add_tokens(one, part)
    totals = {one: sum(parts) for one, parts in held.items()}
    own = totals.pop(client, 0)
    limit = own + asked
    exact = own + sum(min(total, limit) for total in totals.values())
    near = [total for total in totals.values() if total.bit_length() == limit.bit_length()]
    assert holdings.total == own + sum(totals.values())
    assert exact <= holdings.count_before(client, asked) <= exact + sum(near)


@given(st.dictionaries(st.integers(0, 50), tokens))
def test_nothing_is_left_of_clients_that_have_nothing(held: dict[int, int]) -> None:
    holdings = Holdings()
    for one, count in held.items():
        holdings.add_tokens(one, count)
        holdings.add_tokens(one, 0)
    for one, count in held.items():
        holdings.add_tokens(one, -count)
    assert (len(holdings), holdings.total, holdings.count_before("new", 10)) == (0, 0, 0)
