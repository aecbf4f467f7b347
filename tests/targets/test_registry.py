"""Names of targets: what is accepted, what is said otherwise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets import registry
from targets.errors import TargetError, TargetUnavailable
from targets.runtimes.fake.fake_target import FakeTarget
from targets.settings import Setting, canonical_name


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("ort-cpu", "ort-cpu"),
        ("ort-cpu:threads=1", "ort-cpu"),
        (" ort-cpu:threads=2 ", "ort-cpu:threads=2"),
        ("ort-cpu:threads=2,opt=basic", "ort-cpu:opt=basic,threads=2"),
        ("ort-cpu:opt=all,spinning=1", "ort-cpu:spinning=1"),
        ("fake", "fake"),
    ],
)
def test_names_are_canonical(spec, name):
    assert registry.get(spec).name == name
    assert registry.get(name).name == name


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("", "NAME"),
        ("ort-cpu:", "NAME"),
        ("ort-cpu:threads", "KEY=VALUE"),
        ("ort-cpu:threads=", "KEY=VALUE"),
        ("ort-cpu:threads=1,threads=2", "twice"),
        ("ort-cpu:threads=0", "threads=0 is not allowed; threads is an integer, 1 or more"),
        ("ort-cpu:threads=two", "threads=two"),
        ("ort-cpu:spinning=2", "an integer, 0 to 1"),
        ("ort-cpu:opt=fast", "one of all, extended, basic, none"),
        ("ort-cpu:speed=1", "no setting 'speed'; it takes opt, spinning, threads"),
        ("fake:x=1", "takes no settings"),
        ("ort-cpuu", "did you mean 'ort-cpu'"),
        ("zzz", "there are arm-emulated, cortex-m, ethos-u, fake, litert-cpu, ncnn-cpu, openvino-cpu, ort-cpu"),
    ],
)
def test_what_is_wrong_is_said(spec, said):
    with pytest.raises(TargetError, match=said):
        registry.get(spec)


def test_what_a_class_finds_missing_is_said_with_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("PARETOPRESS_ARM_ROOT", str(tmp_path / "none"))
    with pytest.raises(TargetUnavailable, match=r"which is not installed; run: paretopress targets --install arm-"):
        registry.get("arm-emulated")


def test_what_pip_brings_is_not_installed_here(monkeypatch):
    from targets.runtimes.ort.ort_cpu import OrtCpu

    with pytest.raises(TargetError, match="'ort-cpu' is there, nothing to install"):
        registry.install("ort-cpu", print)
    monkeypatch.setattr(OrtCpu, "requires", ("no_such_module_here",))
    with pytest.raises(TargetError, match="comes with pip; run: pip install onnxruntime"):
        registry.install("ort-cpu", print)


def test_a_target_is_given_back_as_it_is():
    target = FakeTarget()
    assert registry.get(target) is target


def test_a_missing_runtime_names_the_command(monkeypatch):
    from targets.runtimes.ort.ort_cpu import OrtCpu

    monkeypatch.setattr(OrtCpu, "requires", ("no_such_module_here",))
    with pytest.raises(TargetUnavailable, match="pip install onnxruntime"):
        registry.get("ort-cpu")
    row = next(row for row in registry.available() if row["name"] == "ort-cpu")
    assert (row["available"], row["install"]) == (False, "pip install onnxruntime")


def test_a_plug_in_that_cannot_be_imported_names_the_command(monkeypatch):
    monkeypatch.setitem(registry.BUILT_IN, "other-cpu", "no_such_module_here:Other")
    with pytest.raises(TargetUnavailable, match=r"pip install 'paretopress\[other\]'"):
        registry.get("other-cpu")
    rows = {row["name"]: row["available"] for row in registry.available()}
    assert (rows["other-cpu"], rows["fake"]) == (False, True)


def test_what_is_there_is_listed():
    rows = {row["name"]: row for row in registry.available()}
    assert set(rows) >= {"ort-cpu", "fake"}
    assert all(row["install"] is None for row in rows.values() if row["available"])
    assert all(row["description"] for row in rows.values())


KNOWN = {"b": Setting(1), "a": Setting("x"), "c": Setting(3)}


@given(st.integers(0, 5), st.sampled_from("xyz"), st.integers(0, 5))
def test_a_canonical_name_says_all_that_is_not_default(b, a, c):
    values = {"b": b, "a": a, "c": c}
    name, said = registry.parse(canonical_name("t", KNOWN, values))
    assert name == "t"
    assert list(said) == sorted(said)
    parsed = {key: one.parse("t", key, said.get(key, one.default)) for key, one in KNOWN.items()}
    assert parsed == values
    assert all(str(KNOWN[key].default) != value for key, value in said.items())


def test_a_plug_in_that_names_no_class_is_said(monkeypatch):
    monkeypatch.setitem(registry.BUILT_IN, "odd", "targets.registry:Odd")
    with pytest.raises(
        TargetError, match=r"target 'odd' is registered as 'targets\.registry:Odd', which does not exist"
    ):
        registry.get("odd")
