"""How many tokens each client has waiting in a lane, and how many of all those leave before a new request's. Pure."""

from collections.abc import Hashable


class Holdings:
    """Tokens by client, grouped by powers of two, so that a question costs the same with one client and with 25,000."""

    def __init__(self) -> None:
        self.total = 0
        self._by_client: dict[Hashable, int] = {}
        #: Clients, and their tokens together, of each group: those whose tokens have so many binary digits.
        self._groups: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._by_client)

    def add(self, client: Hashable, tokens: int) -> None:
        """Count tokens of a client that come, or go when `tokens` is negative."""
        before = self._by_client.get(client, 0)
        after = before + tokens
        self.total += tokens
        self._move(before, -1)
        self._move(after, 1)
        if after:
            self._by_client[client] = after
        else:
            self._by_client.pop(client, None)

    def count_before(self, client: Hashable, asked: int) -> int:
        """Return the tokens that leave before the last of `asked` more of a client, when clients take turns.

        They are all of the client's own, and of each other client as many as the client then has. Where a group holds
        clients with fewer and with more than that, the result may be too high, by less than the group's tokens.
        """
        own = self._by_client.get(client, 0)
        limit = own + asked
        count = own
        for digits, (clients, tokens) in self._groups.items():
            if own and own.bit_length() == digits:
                clients, tokens = clients - 1, tokens - own
            count += min(tokens, clients * limit)
        return count

    def _move(self, tokens: int, by: int) -> None:
        """Let a client with so many tokens join a group (1) or leave it (-1)."""
        if not tokens:
            return
        digits = tokens.bit_length()
        clients, held = self._groups.get(digits, (0, 0))
        if clients + by:
            self._groups[digits] = (clients + by, held + by * tokens)
        else:
            del self._groups[digits]
