"""Settings of a frontend that change what requests may be."""

import pytest

from broker.shared.settings import SettingsError
from frontend.config import Config, load


@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        ([], {}, Config()),
        (["--no-token-ids", "--truncate", "end"], {}, Config(no_token_ids=True, truncate="end")),
        (["--truncate", "start", "--no-token-ids"], {}, Config(no_token_ids=True, truncate="start")),
        (["--no-token-ids", "false"], {"VECMILL_FRONTEND_NO_TOKEN_IDS": "true"}, Config()),
        ([], {}, Config(truncate="")),
        ([], {"VECMILL_FRONTEND_NO_TOKEN_IDS": "1"}, Config(no_token_ids=True)),
    ],
)
def test_flag_without_value_is_true(arguments: list[str], environ: dict[str, str], expected: Config) -> None:
    assert load(arguments, environ) == expected


def test_switch_of_another_value_is_rejected() -> None:
    with pytest.raises(SettingsError, match=r"^VECMILL_FRONTEND_NO_TOKEN_IDS is 'maybe', but must be true or false$"):
        load([], {"VECMILL_FRONTEND_NO_TOKEN_IDS": "maybe"})
