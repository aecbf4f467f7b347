"""What a named chip has is a limit of the search on it."""

from __future__ import annotations

import pytest

from compress.searching.requests import _limits_of
from compress.values.constraints import parse_constraint
from targets.cortex_m.cortex_m import CortexM
from targets.errors import ConstraintError
from targets.runtimes.fake.fake_target import FakeTarget


def test_the_chip_s_ram_and_flash_become_constraints():
    found = [parse_constraint(text) for text in _limits_of([CortexM(chip="stm32f446")])]
    assert {one.quantity: one.limit for one in found} == {"memory": 128 * 1024, "size": 512 * 1024}
    assert _limits_of([CortexM(), FakeTarget()]) == []


def test_limits_of_one_target_are_not_laid_on_another():
    with pytest.raises(ConstraintError, match=r"'cortex-m:chip=stm32f446' sets limits, .* search it alone, or name"):
        _limits_of([FakeTarget(), CortexM(chip="stm32f446")])
