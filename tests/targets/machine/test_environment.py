"""The machine's description, and the choice of CPUs."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from targets.machine import cpus, environment, memory


def test_the_description_is_json_and_its_stable_part_stays():
    described = json.loads(json.dumps(environment.describe_environment()))
    stable = environment.machine()
    assert stable == environment.machine()
    assert {key: described[key] for key in stable} == json.loads(json.dumps(stable))
    assert "load" in described["now"]
    assert "load" not in stable
    assert stable["cores"] >= 1
    assert set(stable["features"]) <= set(environment.RELEVANT)


def test_versions_of_what_is_not_installed_are_left_out():
    assert environment.installed_versions(["numpy", "no-such-distribution-here"]).keys() == {"numpy"}


READING = st.dictionaries(st.integers(0, 15), st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=1)


@given(READING, st.integers(1, 16))
def test_the_chosen_cpus_are_the_least_busy(spent, count):
    before = dict.fromkeys(spent, (1000, 5000))
    after = {cpu: (1000 + min(busy, total), 5000 + total) for cpu, (busy, total) in spent.items()}

    def share(cpu: int) -> float:
        return (after[cpu][0] - 1000) / (after[cpu][1] - 5000) if after[cpu][1] > 5000 else 0.0

    chosen = cpus.quietest(before, after, count)
    assert len(chosen) == min(count, len(spent))
    left = set(spent) - set(chosen)
    assert all(share(one) <= share(other) for one in chosen for other in left)


def test_own_memory_is_seen_to_grow():
    before = memory.private()
    kept = bytearray(b"x" * 50_000_000)
    after = memory.private()
    assert before is not None
    assert after is not None
    assert after - before > 40_000_000
    assert (memory.resident() or 0) >= after
    assert len(kept) == 50_000_000
