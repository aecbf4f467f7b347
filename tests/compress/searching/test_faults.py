"""A runtime that crashes, hangs, eats memory or answers nonsense costs one trial, with the cause in words."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from compress.results import Result
from targets.settings import Setting
from targets.target import Capabilities
from targets.workers.local import LocalTarget

Search = Callable[..., Result]
RUNTIMES = Path(__file__).parents[2] / "targets" / "faulty_runtimes"


class Faulty(LocalTarget):
    """Goes wrong once, as a file says."""

    base = "faulty"
    runtime = "faulty:Faulty"
    settings = {  # noqa: RUF012  as a third party writes it
        "threads": Setting(1, least=1),
        "opt": Setting("all"),
        "spinning": Setting(0, least=0, most=1),
    }
    probed = False

    def capabilities(self) -> Capabilities:
        return Capabilities(precisions=("fp32",), channel_step=8, int8_step=8)


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("segfault", "killed by SIGSEGV while"),
        pytest.param("abort", "killed by SIGABRT while", marks=pytest.mark.slow),
        pytest.param("exit", "ended with status 7 while", marks=pytest.mark.slow),
        pytest.param("hang", "hung: no answer in 1.5 s while", marks=pytest.mark.slow),
        pytest.param("eat", "GB of memory, more than the limit of", marks=pytest.mark.slow),
        pytest.param("nan", "returned NaN for", marks=pytest.mark.slow),
        pytest.param("shape", "output 0 has shape 0x10", marks=pytest.mark.slow),
        pytest.param("frames", "answered with garbage while", marks=pytest.mark.slow),
    ],
)
def test_a_fault_costs_one_trial_and_the_next_call_makes_up_for_it(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, cause: str
) -> None:
    fault = tmp_path / "fault"
    known = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{RUNTIMES}{os.pathsep}{known}" if known else str(RUNTIMES))
    monkeypatch.setenv("FAULT_FILE", str(fault))
    target = Faulty()
    target.patience, target.memory_limit = (1.5 if how == "hang" else 60.0), 1_000_000_000
    search(target=target, trials=1)
    # Scored once it is measured: a wrong answer only shows there.
    real = Faulty.run

    def run(self: Faulty, model: Path, *rest: object, **options: object) -> object:
        if how in ("nan", "shape") and Path(model).parent.name != "baseline" and not state:
            state.append(fault.write_text(how))
        return real(self, model, *rest, **options)  # type: ignore[arg-type]

    state: list[int] = []
    monkeypatch.setattr(Faulty, "run", run)
    if how not in ("nan", "shape"):
        fault.write_text(how)
    report = search(target=target, trials=3).report
    assert not fault.exists(), "it was met"
    assert report["trials"]["finished"] == 3, "the search went on"
    [failure] = report["failures"]
    assert cause in failure["cause"]
    assert "\n" not in failure["cause"]
    assert failure["stage"] in ("gate", "measure")
    again = search(target=target, trials=4).report
    assert again["failures"] == [], "the trial that failed was tried again"
    assert again["trials"]["failed"] == 0
    assert failure["trial"] in {candidate["trial"] for candidate in again["candidates"]}
