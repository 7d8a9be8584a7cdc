"""Settings of a worker that name models and properties."""

import pytest

from broker.shared.settings import SettingsError
from workers.config import Config, make_options, parse_aliases


@pytest.mark.parametrize("alias", ["a" * 513, "a\udc80"])
def test_alias_that_cannot_be_sent_is_refused(alias: str) -> None:
    with pytest.raises(SettingsError, match="a name has at most 512 characters"):
        parse_aliases(Config(aliases=f"{alias}=model"))


def test_longest_alias_is_accepted() -> None:
    assert parse_aliases(Config(aliases=f"{'a' * 512}=model")) == {"a" * 512: "model"}


def test_property_with_half_a_pair_is_refused() -> None:
    with pytest.raises(SettingsError, match="must be a JSON object"):
        make_options(Config(plugin_config=r'{"a": "\ud800"}'))
