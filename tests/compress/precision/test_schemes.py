"""Which precisions are made: what is asked for, what a target gains by, and why the others are left out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from compress.precision.schemes import channel_step, left_out, variants, wanted
from compress.results import Result
from compress.values.configs import SCHEMES, SEARCHED
from compress.values.domains import Choice
from compress.values.search_spaces import SearchSpace
from targets.errors import TargetError
from targets.runtimes.fake.fake_target import FakeTarget
from targets.target import Capabilities

Search = Callable[..., Result]
PLAIN = Capabilities()
HALF = Capabilities(precisions=("fp32", "fp16"))
FLOATS = Capabilities(precisions=("fp32",), refuses=("int8", "mixed", "int8-dynamic", "int4-weights"))
EVERYTHING = SearchSpace(precision=Choice(*(scheme for scheme in SCHEMES if scheme != "int8-qat")), qat_epochs=1)


def _names(space: SearchSpace, **abilities: Capabilities) -> list[str]:
    schemes = wanted(space, [one.precisions for one in abilities.values()])
    return [variant.name for variant in variants(schemes, abilities)]


def test_nothing_new_is_made_unless_it_is_asked_for_or_gained_by() -> None:
    assert _names(SearchSpace(), a=PLAIN) == list(SEARCHED)
    assert _names(SearchSpace(), a=HALF) == ["fp32", "fp16"]
    assert _names(SearchSpace(precision=Choice("fp32", "int8")), a=HALF, b=PLAIN) == ["fp32", "int8"]
    assert set(_names(EVERYTHING, a=PLAIN)) == set(SCHEMES)


def test_what_is_asked_for_is_made_where_it_runs() -> None:
    assert _names(EVERYTHING, a=FLOATS) == ["fp32", "fp16", "int8-weights"]
    lacking = Capabilities(lacks=("com.microsoft:MatMulNBits",))
    assert "int4-weights" not in _names(EVERYTHING, a=lacking)
    schemes = wanted(EVERYTHING, [PLAIN.precisions, FLOATS.precisions])
    found = {one.scheme: one.targets for one in variants(schemes, {"a": PLAIN, "b": FLOATS})}
    assert found["fp16"] == ("a", "b")
    assert found["int4-weights"] == found["int8-qat"] == ("a",)
    with pytest.raises(TargetError, match="none of the precisions int4-weights"):
        variants(("int4-weights",), {"a": FLOATS})


def test_training_in_int8_is_done_in_every_format_and_stored_weights_have_none() -> None:
    schemes = ("int8-qat", "fp16")
    found = variants(schemes, {"a": PLAIN, "b": Capabilities(int8_format="s8s8", reduce_range=True)})
    assert [(one.name, one.format) for one in found] == [
        ("int8-qat", "u8s8"), ("int8-qat-s8s8-7bit", "s8s8"), ("fp16", "")
    ]  # fmt: skip


def test_widths_are_in_steps_of_what_is_computed() -> None:
    stepped = {"a": Capabilities(channel_step=8, int8_step=3)}
    assert channel_step(("int8-qat",), stepped) == 3
    assert channel_step(("fp16",), stepped) == 8
    assert channel_step(("fp16", "int8-qat"), stepped) == 24


def test_what_is_left_out_is_said_with_its_reason() -> None:
    found = left_out(SearchSpace(), {"a": PLAIN, "b": FLOATS})
    assert [scheme for scheme, _ in found["a"]] == ["int8-qat", "fp16", "int8-weights", "int4-weights"]
    why = dict(found["b"])
    assert why["int8"] == why["int8-qat"] == why["int4-weights"] == "does not run there"
    assert why["fp16"].startswith("not asked for")
    assert dict(found["a"])["int8-qat"] == "qat_epochs is 0 in the space"
    gained = left_out(EVERYTHING, {"a": Capabilities(precisions=("fp32", "int8", "mixed"))})
    assert gained["a"] == [("int8-dynamic", "nothing is gained by it there")]


def test_a_search_measures_what_is_asked_for_and_tells_the_sampler_so(search: Search) -> None:
    space = SearchSpace(epochs=1, l1=0.0, precision=Choice("fp32", "fp16", "int8-weights", "int4-weights"))
    result = search(space=space, trials=1, constraints=["size<=0.5x"])
    by_id = {candidate.id: candidate.candidate for candidate in result.candidates()}
    made = {name.partition("-")[2] for name in by_id if name != "baseline"}
    assert made >= {"fp16", "int8-weights", "int4-weights"}
    number = next(name for name in by_id if name.endswith("-fp16")).partition("-")[0]
    assert by_id[f"{number}-int8-weights"].size < by_id[f"{number}-fp16"].size < by_id["baseline"].size
    told = {trial.params["precision"] for trial in result.study().trials}
    assert told == made


def test_a_config_that_stored_weights_alone_can_save_is_not_thrown_away(search: Search) -> None:
    # Uncut, only a file of half its size fits.
    space = SearchSpace(prune_ratio=0.0, epochs=1, l1=0.0, precision=Choice("fp32", "fp16"))
    result = search(space=space, trials=1, constraints=["size<=0.7x"])
    assert result.report["trials"]["gated"] == 0
    assert result.pick("smallest").id.endswith("-fp16")


def test_a_target_that_gains_by_half_precision_gets_it(search: Search) -> None:
    target = FakeTarget(capabilities=HALF)
    result = search(target=target, space=SearchSpace(epochs=1, l1=0.0), trials=1)
    assert any(candidate.id.endswith("-fp16") for candidate in result.candidates())
    assert "fp16" in {trial.params["precision"] for trial in result.study().trials}
