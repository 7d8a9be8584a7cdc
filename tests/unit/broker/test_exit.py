"""Exit of a program that cannot start."""

import pytest

from broker.shared.exit import exit_refused


def test_refusal_is_one_line_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        exit_refused("broker", ValueError("the port is taken"))
    assert capsys.readouterr().err == "vecmill broker: the port is taken\n"
