"""Exit of a program that cannot start, and the table of exit statuses."""

import pytest

from broker.shared import exit as exits
from broker.shared.exit import exit_refused
from tests.harness.processes import ROOT


@pytest.mark.parametrize(("program", "begin"), [("broker", "vecmill broker: "), ("", "vecmill: ")])
def test_refusal_is_one_line_with_status_2(program: str, begin: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        exit_refused(program, ValueError("the port is taken"))
    assert capsys.readouterr().err == f"{begin}the port is taken\n"


def test_operators_read_the_same_table_of_statuses() -> None:
    table = [line for line in (exits.__doc__ or "").splitlines() if line.startswith("|")]
    assert "\n".join(table) in (ROOT / "docs" / "operators.md").read_text()
    statuses = {exits.REFUSED_STATUS, exits.HUNG_STATUS, exits.INTERRUPTED_STATUS}
    assert statuses < {int(line.split("|")[1]) for line in table[2:]}
