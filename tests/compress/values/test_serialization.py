"""JSON there and back, a hash that must not drift, and refusals in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.values.candidates import Candidate, Parity, Quality
from compress.values.configs import (
    CALIBRATIONS,
    SCHEDULES,
    SCHEMES,
    SEARCHED,
    Config,
    FinetuneSettings,
    PrecisionSettings,
    PruneSettings,
)
from compress.values.domains import Choice, Float, Int
from compress.values.search_spaces import SearchSpace
from compress.values.serialization import canonical, from_json, stable_hash, to_json, write_json
from targets.documents import file_hash, write_text
from targets.errors import SpaceError

SHARE = st.floats(0.0, 0.95)
NAMES = st.text(min_size=1, max_size=8)
CONFIGS = st.builds(
    Config,
    st.builds(PruneSettings, SHARE, st.floats(-2, 2), st.dictionaries(NAMES, st.floats(-1, 1), max_size=4)),
    st.builds(
        FinetuneSettings,
        epochs=st.integers(0, 100),
        batch_size=st.integers(1, 1024),
        lr=st.floats(1e-6, 1.0),
        schedule=st.sampled_from(SCHEDULES),
        weight_decay=SHARE,
        l1=SHARE,
        dropout=SHARE,
        label_smoothing=SHARE,
        distill_weight=SHARE,
        temperature=st.floats(0.1, 100.0),
        patience=st.integers(0, 20),
    ),
    st.builds(PrecisionSettings, st.sampled_from(SCHEMES), st.sampled_from(CALIBRATIONS), SHARE),
)


@st.composite
def _spaces(draw: st.DrawFn) -> SearchSpace:
    share = st.tuples(SHARE, SHARE).map(sorted)
    domain = st.one_of(SHARE, share.map(lambda x: Float(*x)), st.lists(SHARE, min_size=1, max_size=3).map(Choice))
    epochs = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted)
    return SearchSpace(
        prune_ratio=draw(domain),
        dropout=draw(domain),
        float_share=draw(domain),
        epochs=draw(st.one_of(st.integers(0, 99), epochs.map(lambda x: Int(*x)))),
        lr=draw(st.sampled_from([0.1, Float(1e-4, 1e-2, log=True)])),
        precision=draw(st.sampled_from(["int8", Choice("fp32", "int8"), Choice(*SEARCHED)])),
    )


@given(CONFIGS)
def test_configs_survive_json(config: Config) -> None:
    again = from_json(Config, json.loads(canonical(config)))
    assert again == config
    assert stable_hash(again) == stable_hash(config)


@given(_spaces())
def test_spaces_survive_json(space: SearchSpace) -> None:
    assert from_json(SearchSpace, json.loads(json.dumps(to_json(space)))) == space


def test_the_default_space_survives_json() -> None:
    assert from_json(SearchSpace, json.loads(json.dumps(to_json(SearchSpace())))) == SearchSpace()


@given(CONFIGS, CONFIGS)
def test_only_equal_configs_have_equal_hashes(a: Config, b: Config) -> None:
    assert (stable_hash(a) == stable_hash(b)) == (canonical(a) == canonical(b))


def test_order_of_keys_does_not_matter() -> None:
    assert stable_hash({"a": 1, "b": 2}) == stable_hash({"b": 2, "a": 1})


def test_an_exact_network_is_written_where_one_is_asked_for() -> None:
    plain, exact = PruneSettings(), PruneSettings(widths={"conv": 16}, dropped=("layer1.0",))
    assert {"widths", "dropped"}.isdisjoint(to_json(Config(plain))["prune"])
    assert to_json(exact)["widths"] == {"conv": 16}
    assert to_json(exact)["dropped"] in (["layer1.0"], ("layer1.0",))
    for settings in (plain, exact):
        assert from_json(PruneSettings, json.loads(json.dumps(to_json(settings)))) == settings
    with pytest.raises(SpaceError, match=r"widths.conv=0: must be within"):
        PruneSettings(widths={"conv": 0})
    with pytest.raises(SpaceError, match=r"dropped='layer1.0': must be a tuple of blocks' names"):
        PruneSettings(dropped="layer1.0")


def test_hashes_do_not_drift() -> None:
    """Cache keys: if these change, every cache is void, and that must be on purpose."""
    data = {"x": Float(0.0, 0.9, log=False), "y": (1, "a"), "z": Quality("accuracy", 0.5, 0.25, 0.75, 8)}
    assert stable_hash(data) == "321a7c4d6e97f0af"
    assert stable_hash({"b": [1, 2.5, None, True], "a": "ä"}) == "f11879da5f07e530"


@pytest.mark.parametrize("seed", ["0", "1", "4242"])
def test_hashes_are_equal_across_processes(seed: str) -> None:
    code = (
        "from compress.values.configs import *; from compress.values.serialization import stable_hash\n"
        "print(stable_hash({'x': Config(PruneSettings(deltas={k: 0.1 for k in {'a', 'b', 'c', 'd'}}))}))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    expected = stable_hash({"x": Config(PruneSettings(deltas=dict.fromkeys("abcd", 0.1)))})
    assert found.stdout.strip() == expected


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        (Config, {"finetune": {"epochs": -1}}, "epochs=-1: must be within [0, 1000000]"),
        (Config, {"finetune": {"epochs": 1.5}}, "1.5 is not a whole number"),
        (Config, {"finetune": {"epochs": True}}, "True is not a whole number"),
        (Config, {"prune": {"ratio": "much"}}, "'much' is not a number"),
        (Config, {"prune": {"ratio": 10**400}}, "a number is too large"),
        (Config, {"prune": {"deltas": {"conv": 3.0}}}, "prune_delta.conv=3.0"),
        (Config, {"precision": {"correct_bias": 1}}, "1 is neither true nor false"),
        (Config, {"precision": {"scheme": "int3"}}, "precision='int3'"),
        (Config, {"colour": 1}, "colour"),
        (Config, {"finetune": {"epocs": 1}}, "epocs"),
        (Config, 3, "not a Config"),
        (Config, None, "not a Config"),
        (SearchSpace, {"lr": {"domain": "Float", "low": 2.0, "high": 1.0}}, "needs low <= high"),
        (SearchSpace, {"lr": {"domain": "Float", "low": 0.1, "high": 1.0, "step": 3}}, "step"),
        (SearchSpace, {"lr": {"domain": "Gauss", "mean": 1.0}}, "lr"),
        (SearchSpace, {"lr": [1, 2]}, "lr=[1, 2]"),
        (SearchSpace, {"precision": {"domain": "Choice", "values": ["fp32"], "p": [1]}}, "'p'"),
        (SearchSpace, {"precision": {"domain": "Choice", "values": []}}, "at least one value"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(kind: type, data: Any, said: str) -> None:
    with pytest.raises(SpaceError) as caught:
        from_json(kind, data)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_nan_is_written_as_null_and_read_back(tmp_path: Path) -> None:
    candidate = Candidate("0001-int8", None, {}, 1, 2, 3, Parity(float("nan"), float("inf")), {})
    write_json(tmp_path / "c.json", candidate)
    data = json.loads((tmp_path / "c.json").read_text())
    assert data["parity"] == {"max_abs": None, "agreement": None}
    assert from_json(Candidate, data).parity.max_abs != from_json(Candidate, data).parity.max_abs


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_file_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_hash(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
