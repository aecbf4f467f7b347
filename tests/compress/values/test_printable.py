"""Text from outside does not act on a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.values.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("conv1/weight [0] \\ [/b]", "conv1/weight [0] \\ [/b]"),
        ("Größe ≤ 3 kB · 猫", "Größe ≤ 3 kB · 猫"),
        ("\x1b]0;title\x07\x1b[2J", "\\x1b]0;title\\x07\\x1b[2J"),
        ("\x9b2J\x7f", "\\x9b2J\\x7f"),
        ("x\nparetopress: done\r\t", "x\\nparetopress: done\\r\\t"),
        ("a\u2028b\u2029c", "a\\u2028b\\u2029c"),
        ("\u202egpj.exe\u2066\u200b", "\\u202egpj.exe\\u2066\\u200b"),
        ("\udcff\U000e0041", "\\udcff\\U000e0041"),
        ("\u00ad", "\\xad"),
    ],
)
def test_what_acts_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_nothing_is_left_that_acts(text: str) -> None:
    shown = printable(text)
    assert not any(unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp") for one in shown)
    assert len(shown.splitlines()) <= 1
    assert printable(shown) == shown


def test_lines_on_purpose_stay() -> None:
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"
