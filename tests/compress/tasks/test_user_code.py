"""Programs that user code ends: an error of ours, with the line."""

from __future__ import annotations

import sys

import pytest

from compress.tasks.user_code import naming_exits
from targets.errors import TaskError


def leave() -> None:
    sys.exit("enough")


def test_the_end_of_the_program_is_an_error_with_its_line() -> None:
    said = r"^the task's code ended the program: SystemExit: enough \(.*test_user_code\.py:\d+\)$"
    with pytest.raises(TaskError, match=said), naming_exits():
        leave()
    with pytest.raises(KeyboardInterrupt), naming_exits():
        raise KeyboardInterrupt
