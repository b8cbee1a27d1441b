"""The table of faults names a test for each, and each test of the folder."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
FOLDER = TESTS / "faults"
ROW = re.compile(r"^\| (\d+) \|.*\| ([^|]+) \|$", re.MULTILINE)
ROWS = ROW.findall((FOLDER / "README.md").read_text(encoding="utf-8"))


def named() -> set[Path]:
    names = [name for _, cell in ROWS for name in re.findall(r"`([^`]+)`", cell)]
    return {TESTS.parent / name if "/" in name else FOLDER / name for name in names}


def test_each_fault_has_a_test() -> None:
    assert {int(number) for number, _ in ROWS} == set(range(1, 18))
    assert [path for path in named() if not path.is_file()] == []


def test_each_test_of_the_folder_is_in_the_table() -> None:
    assert set(FOLDER.glob("test_*.py")) - named() == set()
