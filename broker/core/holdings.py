"""Waiting tokens of each client in a lane, and how many of them leave before a new request. Pure."""

from collections.abc import Hashable


class Holdings:
    """Tokens by client, grouped by powers of two, so that a query costs the same with one client and with 25,000."""

    def __init__(self) -> None:
        self.total = 0
        self._by_client: dict[Hashable, int] = {}
        #: Number of clients and sum of their tokens, by the number of binary digits of a client's tokens.
        self._groups: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._by_client)

    def add_tokens(self, client: Hashable, tokens: int) -> None:
        """Add tokens to a client's holding, or remove them if `tokens` is negative."""
        before = self._by_client.get(client, 0)
        after = before + tokens
        self.total += tokens
        self._update_group(before, -1)
        self._update_group(after, 1)
        if after:
            self._by_client[client] = after
        else:
            self._by_client.pop(client, None)

    def count_before(self, client: Hashable, requested: int) -> int:
        """Return the tokens that leave before the last of `requested` more tokens of a client, by turns.

        These are all tokens of the client, and as many of each other client as the client then has. Where one group
        holds clients with fewer and with more tokens than that, the result may be too high, by less than the group's
        tokens.
        """
        held = self._by_client.get(client, 0)
        limit = held + requested
        count = held
        for digits, (clients, tokens) in self._groups.items():
            if held and held.bit_length() == digits:
                clients, tokens = clients - 1, tokens - held
            count += min(tokens, clients * limit)
        return count

    def _update_group(self, tokens: int, by: int) -> None:
        """Add a client with this many tokens to its group (`by` 1), or remove it (-1)."""
        if not tokens:
            return
        digits = tokens.bit_length()
        clients, total = self._groups.get(digits, (0, 0))
        if clients + by:
            self._groups[digits] = (clients + by, total + by * tokens)
        else:
            del self._groups[digits]
