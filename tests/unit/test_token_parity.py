"""`scripts/token_parity`: errors of its arguments."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("arguments", [["nowhere"], [".", "--texts", "nowhere.jsonl"]])
def test_missing_file_is_one_line(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["token_parity", *arguments])
    monkeypatch.setattr("os.sched_setaffinity", lambda *_: None)
    monkeypatch.setattr("os.environ", {})
    with pytest.raises(SystemExit) as raised:
        runpy.run_path(str(ROOT / "scripts" / "token_parity.py"), run_name="__main__")
    assert raised.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
