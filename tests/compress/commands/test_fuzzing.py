"""Damaged and made-up files, through everything that reads one: a result or a line of ours, never anything else.

The sample of a quick run takes a minute. With PARETOPRESS_FUZZ=N the slow tests try N inputs of each kind, drawn from
the seed PARETOPRESS_FUZZ_SEED.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import compress
import mutations
from compress.onnx_files import isolation
from compress.results import Result
from compress.tasks import recipes
from entry_points import (
    Verdicts,
    base_models,
    command,
    data_calls,
    model_calls,
    run_calls,
    samples,
    search_model,
)
from targets.probing import probing
from targets.runtimes.fake.fake_target import FakeTarget

SEED = int(os.environ.get("PARETOPRESS_FUZZ_SEED", "0"))
LONG = int(os.environ.get("PARETOPRESS_FUZZ", "300"))
Fuzz = Callable[[int], Verdicts]


def _sizes(quick: int) -> Any:
    return pytest.mark.parametrize("count", [quick, pytest.param(LONG, marks=pytest.mark.slow)])


@pytest.fixture
def draw(request: pytest.FixtureRequest, quick: None) -> random.Random:  # noqa: ARG001
    return random.Random(f"{SEED}/{request.node.name}")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(isolation, "PATIENCE", 15.0)
    monkeypatch.setattr(isolation, "LONG", 25.0)


def _report(verdicts: Verdicts) -> None:
    print(f"{verdicts.count} inputs, {verdicts.refused} refused, slowest {verdicts.slowest:.1f} s")
    assert not verdicts.problems, "\n".join([f"{len(verdicts.problems)} of {verdicts.count}", *verdicts.problems])
    assert verdicts.refused < verdicts.count


def _bases(folder: Path) -> list[tuple[onnx.ModelProto, Path, Path]]:
    """(model, its file, its samples)."""
    found = []
    for number, model in enumerate(base_models()):
        path, data = folder / f"base{number}.onnx", folder / f"base{number}.npz"
        onnx.save(model, path)
        np.savez(data, **samples(model))  # type: ignore[arg-type]
        found.append((model, path, data))
    return found


@_sizes(70)
def test_models(draw: random.Random, tmp_path: Path, count: int) -> None:
    verdicts, bases = Verdicts(), _bases(tmp_path)
    path = tmp_path / "model.onnx"
    for number in range(count):
        model, base, data = draw.choice(bases)
        structured = draw.random() < 0.75
        path.write_bytes(
            mutations.mutated_model(draw, model) if structured else mutations.mutated_bytes(draw, base.read_bytes())
        )
        calls = model_calls(path, base, data, draw)
        slow = {"plan", "check", "check against", "quantize"}
        chosen = [name for name in calls if name not in slow] + [draw.choice(sorted(slow))]
        for name in chosen:
            verdicts.try_(f"{name} of input {number}", calls[name])
        if number % 40 == 7:
            verdicts.try_(f"search of input {number}", lambda d=data: search_model(path, d, tmp_path / "run"))  # type: ignore[misc]
        _keep(verdicts, path, number)
    _report(verdicts)


def _keep(verdicts: Verdicts, path: Path, number: int) -> None:
    """With PARETOPRESS_FUZZ_KEEP=FOLDER, inputs that something was wrong with are copied there, with what it was."""
    folder = os.environ.get("PARETOPRESS_FUZZ_KEEP")
    found = [text for text in verdicts.problems if f"input {number}" in text.partition(":")[0].split(" (")[0]]
    if folder and found:
        shutil.copy(path, Path(folder) / f"{SEED}-{number}-{path.name}")
        (Path(folder) / f"{SEED}-{number}-{path.name}.txt").write_text("\n".join(found))


@_sizes(25)
def test_samples(draw: random.Random, tmp_path: Path, count: int) -> None:
    verdicts, bases = Verdicts(), _bases(tmp_path)
    path = tmp_path / "data.npz"
    for number in range(count):
        model, base, _ = draw.choice(bases)
        arrays = samples(model)
        if draw.random() < 0.5:
            arrays["labels"] = np.arange(20) % 3
        if draw.random() < 0.3:
            arrays["split"] = np.array(["train", "val"] * 10)
        path.write_bytes(mutations.archive(draw, arrays))
        for name, call in data_calls(path, base).items():
            verdicts.try_(f"{name} of input {number}", call)
        _keep(verdicts, path, number)
    _report(verdicts)


def _copied(run: Path, to: Path) -> Path:
    """A copy whose large files are the same ones; what is written into is of its own."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(run, to, copy_function=os.link)
    for path in (*to.glob("*.json*"), *to.glob("candidates/*/*.json")):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    return to


def _damaged(draw: random.Random, path: Path) -> bytes:
    content = path.read_bytes()
    kind = draw.random()
    if kind < 0.25:
        return mutations.mutated_bytes(draw, content)
    if kind < 0.28:
        return mutations.DEEP + b"\n"
    if path.suffix == ".json":
        return mutations.as_json(mutations.mutated_document(draw, json.loads(content)))
    lines = content.splitlines(keepends=True)
    at = draw.randrange(len(lines))
    kind = draw.random()
    if kind < 0.7:
        lines[at] = mutations.as_json(mutations.mutated_document(draw, json.loads(lines[at]))) + b"\n"
    elif kind < 0.8:
        del lines[at]
    elif kind < 0.9:
        lines.insert(draw.randrange(len(lines)), lines[at])
    else:
        draw.shuffle(lines)
    return b"".join(lines)


@_sizes(60)
def test_runs(draw: random.Random, finished: Result, tmp_path: Path, count: int) -> None:
    verdicts = Verdicts()
    for number in range(count):
        folder = _copied(finished.folder, tmp_path / "run")
        name = draw.choice(("run.json", "record.jsonl", "record.jsonl"))
        content = _damaged(draw, folder / name)
        (folder / name).write_bytes(content)
        calls = run_calls(folder, tmp_path / "out")
        for what in draw.sample(sorted(calls), 2):
            verdicts.try_(f"{what} of input {number}", calls[what])
        _keep(verdicts, folder / name, number)
    _report(verdicts)


@_sizes(8)
def test_runs_that_are_continued(
    draw: random.Random, finished: Result, task: compress.Task, tiny: Any, tmp_path: Path, count: int
) -> None:
    verdicts = Verdicts()
    for number in range(count):
        folder = _copied(finished.folder, tmp_path / "run")
        documents = [
            *("run.json", "record.jsonl", "report.json"),
            *(str(path.relative_to(folder)) for path in folder.glob("ca*/**/*.json")),
        ]
        path = folder / draw.choice(documents)
        content = _damaged(draw, path)
        path.unlink()
        path.write_bytes(content)
        verdicts.try_(
            f"continuing input {number} ({path.relative_to(folder)})",
            lambda f=folder: compress.search(task, FakeTarget(), trials=6, space=tiny.SPACE, out=f),  # type: ignore[misc]
        )
        _keep(verdicts, path, number)
    _report(verdicts)


@_sizes(60)
def test_saved_benches(draw: random.Random, tmp_path: Path, count: int) -> None:
    verdicts, (_, base, _) = Verdicts(), _bases(tmp_path)[0]
    saved, path = tmp_path / "saved.json", tmp_path / "bench.json"
    command("bench", base, base, "--target", "fake", "--save", saved)
    document = json.loads(saved.read_text())
    for number in range(count):
        if draw.random() < 0.2:
            path.write_bytes(mutations.mutated_bytes(draw, saved.read_bytes()))
        else:
            path.write_bytes(mutations.as_json(mutations.mutated_document(draw, document)))
        verdicts.try_(f"input {number}", lambda: command("bench", base, base, "--target", "fake", "--compare", path))
        _keep(verdicts, path, number)
    _report(verdicts)


@_sizes(200)
def test_probes_that_are_kept(draw: random.Random, tmp_path: Path, count: int) -> None:
    verdicts, path = Verdicts(), tmp_path / "probe.json"
    probe = probing.Probe(16, 16, "u8s8", {8: 1.0, 16: 1.1}, {8: 0.5}, {"u8s8": 0.5, "s8s8": 0.6}, 2.0)
    probing._save(path, probe, {"target": "fake"})
    document = json.loads(path.read_text())
    for number in range(count):
        path.write_bytes(mutations.as_json(mutations.mutated_document(draw, document)))
        verdicts.try_(f"input {number}", lambda: probing._load(path))
    path.write_bytes(mutations.DEEP)
    verdicts.try_("deep", lambda: probing._load(path))
    _report(verdicts)


@_sizes(100)
def test_expectations(draw: random.Random, tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = Verdicts()
    document = {"digits": {"time": "75s", "fastest_ratio": [0.3, 0.5], "fastest_drop_test": [-0.02, 0.02]}}
    monkeypatch.setattr(recipes.resources, "files", lambda _: tmp_path)
    for number in range(count):
        content = mutations.as_json(mutations.mutated_document(draw, document)) if number else mutations.DEEP
        (tmp_path / "expected.json").write_bytes(content)
        verdicts.try_(f"input {number}: {content[:200]!r}", lambda: command("recipes"))
    _report(verdicts)
