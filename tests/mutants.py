"""How many small faults in the code do the fast tests notice? ``make mutants`` (COUNT=200 SEED=1 for others).

Cosmic Ray makes the faults, one at a time: another comparison, another number, ``and`` for ``or``, a loop that is never
entered. A seeded sample of lines is changed, never the same line twice. For each, the tests that run the line are run
on a copy of the tree, the quickest first, until one fails; a line that no test runs in its own process (what workers
do runs in others) gets the tests of its name, or of its folder. More tests than a fault has time for are not begun, so
that one that hangs has been noticed. What no test notices is printed with the change, to be judged: some faults do not
count, since nothing that they change can be seen.

Which tests run which line is found once, by running the fast suite under coverage (as long as the suite takes, and
half as long again), and kept in ``.mutants/`` until the code changes. ``--raises`` lists, from the same table, the
``raise`` statements that no fast test reaches.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("compress", "targets")
KEPT = REPOSITORY / ".mutants"
MOST_TESTS, MOST_SECONDS = 60, 300
"""Tests run for one fault, and seconds for all of them."""
OPERATORS = (
    "AddNot", "ExceptionReplacer", "NumberReplacer", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak", "ReplaceFalseWithTrue", "ReplaceTrueWithFalse", "ReplaceUnaryOperator",
    "ReplaceBinaryOperator", "ReplaceComparisonOperator", "ZeroIterationForLoop",
)  # fmt: skip
"""Cosmic Ray's faults that are used. Binary operators in annotations (``int | None``) are left alone."""


@dataclass(frozen=True)
class Mutant:
    """One fault: ``occurrence`` counts where ``operator`` applies in the file."""

    file: str
    line: int
    operator: str
    occurrence: int


def sources() -> list[Path]:
    """All files that faults are put into."""
    return sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))


def fingerprint() -> str:
    """Hash of code and tests."""
    files = [*sources(), *sorted((REPOSITORY / "tests").rglob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def table() -> sqlite3.Connection:
    """Coverage's database with a context for every test; made where it is absent or of other code."""
    KEPT.mkdir(exist_ok=True)
    mark, data = KEPT / "fingerprint", KEPT / "coverage"
    if not data.exists() or not mark.exists() or mark.read_text() != fingerprint():
        (KEPT / "rc").write_text(
            "[run]\nbranch = false\ndynamic_context = test_function\nsource = compress\n    targets\n"
        )
        command = [sys.executable, "-m", "coverage", "run", f"--rcfile={KEPT / 'rc'}", f"--data-file={data}"]
        tests = ["-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", f"--junitxml={KEPT / 'times.xml'}"]
        print("running the fast suite under coverage ...", file=sys.stderr)
        subprocess.run([*command, *tests], cwd=REPOSITORY, check=False)
        mark.write_text(fingerprint())
    return sqlite3.connect(data)


def lines_and_tests() -> dict[str, dict[int, list[str]]]:
    """File -> line -> tests that run it, as coverage names them (``module.function``)."""
    from coverage.numbits import numbits_to_nums

    base = f"{REPOSITORY}{os.sep}"
    found: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    rows = table().execute(
        "select file.path, context.context, line_bits.numbits from line_bits "
        "join file on file.id = line_bits.file_id join context on context.id = line_bits.context_id"
    )
    for path, context, bits in rows:
        for line in numbits_to_nums(bits):
            found[path.removeprefix(base)][line].append(context)
    return found


def test_files() -> dict[str, list[tuple[str, float]]]:
    """Test function's name -> (node id of its file and function, seconds it took), the quickest first."""
    import xml.etree.ElementTree as ElementTree

    seconds: dict[tuple[str, str], float] = defaultdict(float)
    for case in ElementTree.parse(KEPT / "times.xml").iter("testcase"):
        seconds[case.attrib["classname"], case.attrib["name"].partition("[")[0]] += float(case.attrib["time"])
    found: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for (module, name), took in sorted(seconds.items(), key=lambda entry: entry[1]):
        parts = module.split(".")
        for end in range(len(parts), 0, -1):
            file = Path(*parts[:end]).with_suffix(".py")
            if (REPOSITORY / file).exists():
                found[name].append(("::".join([str(file), *parts[end:], name]), took))
                break
    return found


def executable(path: Path) -> set[int]:
    """Lines within functions that are statements, messages of ``raise`` and annotations left out."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for inner in ast.walk(node):
                if isinstance(inner, ast.stmt) and not isinstance(
                    inner, (ast.Raise, ast.FunctionDef, ast.Import, ast.ImportFrom)
                ):
                    first = inner.lineno
                    last = inner.body[0].lineno - 1 if getattr(inner, "body", None) else inner.end_lineno or first
                    is_text = isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant)
                    if not is_text:
                        found.update(range(first, max(first, last) + 1))
    return found


def all_mutants(path: Path) -> list[Mutant]:
    """Every fault that can be put into one file."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    name, lines = str(path.relative_to(REPOSITORY)), executable(path)
    tree = get_ast(path.read_text())
    found = []
    for operator in sorted(operator_names()):
        if not operator.removeprefix("core/").startswith(OPERATORS):
            continue
        made, occurrence = get_operator(operator)(), 0
        for node in ast_nodes(tree):
            for (start, _), _ in made.mutation_positions(node):
                if start in lines:
                    found.append(Mutant(name, start, operator, occurrence))
                occurrence += 1
    return found


def sample(count: int, seed: int, only: str = "") -> list[Mutant]:
    """``count`` faults, on lines drawn evenly, one of those that are possible on each."""
    dice = random.Random(seed)
    by_line: dict[tuple[str, int], list[Mutant]] = defaultdict(list)
    for path in sources():
        if str(path.relative_to(REPOSITORY)).startswith(only):
            for mutant in all_mutants(path):
                by_line[mutant.file, mutant.line].append(mutant)
    drawn = dice.sample(sorted(by_line), min(count, len(by_line)))
    return [dice.choice(by_line[line]) for line in drawn]


def changed(mutant: Mutant) -> str | None:
    """The file's text with the fault in it; None where it changes nothing."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    before = (REPOSITORY / mutant.file).read_text()
    after = mutate_code(before, get_operator(mutant.operator)(), mutant.occurrence)
    try:
        if after is None or ast.dump(ast.parse(after)) == ast.dump(ast.parse(before)):
            return None
    except SyntaxError:
        return None
    return str(after)


def tests_for(
    mutant: Mutant, table: dict[str, dict[int, list[str]]], files: dict[str, list[tuple[str, float]]]
) -> list[str]:
    """Node ids of the tests to run, the quickest first."""
    wanted: dict[str, float] = {}
    for context in table.get(mutant.file, {}).get(mutant.line, []):
        for node, took in files.get(context.rpartition(".")[2], []):
            module = node.partition("::")[0].removesuffix(".py").replace("/", ".")
            if context.startswith(module) or module.endswith(context.rpartition(".")[0]):
                wanted[node] = took
    if not wanted:
        # Run by no test in its own process: what bears its name, else what lies beside it in the mirror.
        folder, name = REPOSITORY / "tests" / Path(mutant.file).parent, f"{os.sep}test_{Path(mutant.file).stem}.py::"
        while not folder.is_dir() or not list(folder.glob("test_*.py")):
            folder = folder.parent
        every = {node: took for nodes in files.values() for node, took in nodes}
        beside = f"{folder.relative_to(REPOSITORY)}{os.sep}"
        wanted = {node: took for node, took in every.items() if name in node}
        wanted = wanted or {node: took for node, took in every.items() if node.startswith(beside)}
    return quickest(wanted)


def quickest(wanted: dict[str, float]) -> list[str]:
    """Of tests and the seconds that they take, the quickest: so few that all of them end long before they are ended."""
    found, left = list[str](), MOST_SECONDS / 3
    for node in sorted(wanted, key=wanted.__getitem__)[:MOST_TESTS]:
        left -= wanted[node]
        if left < 0 and found:
            break
        found.append(node)
    return found


def survives(mutant: Mutant, text: str, tests: list[str]) -> tuple[bool, str]:
    """Whether all tests pass with the fault in a copy of the tree, and what was seen."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        copy = Path(name) / "tree"
        listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, text=True)
        for file in listed.split():
            if (REPOSITORY / file).is_file():
                (copy / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(REPOSITORY / file, copy / file)
        (copy / mutant.file).write_text(text)
        environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests]
        try:
            done = subprocess.run(
                command, cwd=copy, env=environment, capture_output=True, text=True, timeout=MOST_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return False, "hangs"
    last = (done.stdout.strip().splitlines() or [""])[-1]
    return done.returncode == 0, last


def difference(mutant: Mutant, text: str) -> str:
    """The changed lines."""
    before = (REPOSITORY / mutant.file).read_text().splitlines()
    lines = difflib.unified_diff(before, text.splitlines(), mutant.file, mutant.file, n=0, lineterm="")
    return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))


def unreached_raises() -> list[str]:
    """``file:line`` of every ``raise`` that no fast test reaches in its own process."""
    table, found = lines_and_tests(), []
    for path in sources():
        name = str(path.relative_to(REPOSITORY))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and not any(
                table.get(name, {}).get(line) for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
            ):
                found.append(f"{name}:{node.lineno}: {ast.unparse(node)[:150]}")
    return found


def main() -> None:
    """Print what was not noticed, and how many were."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="files whose path begins so")
    parser.add_argument("--raises", action="store_true", help="list what no test reaches, and change nothing")
    parser.add_argument("--out", type=Path, help="a JSON file with every fault and what became of it")
    asked = parser.parse_args()
    if asked.raises:
        lines = unreached_raises()
        print(*lines, f"{len(lines)} raise statements are reached by no fast test", sep="\n")
        return
    table, files, results = lines_and_tests(), test_files(), []
    for mutant in sample(asked.count, asked.seed, asked.only):
        text = changed(mutant)
        if text is None:
            continue
        start = time.monotonic()
        alive, seen = survives(mutant, text, tests_for(mutant, table, files))
        results.append({**asdict(mutant), "noticed": not alive, "seen": seen, "change": difference(mutant, text)})
        print(f"{'NOT NOTICED' if alive else 'noticed'} {mutant.file}:{mutant.line} {mutant.operator} "
              f"({time.monotonic() - start:.0f} s): {seen}", flush=True)  # fmt: skip
        if alive:
            print(difference(mutant, text), flush=True)
        if asked.out:
            asked.out.write_text(json.dumps(results, indent=1))
    noticed = sum(bool(result["noticed"]) for result in results)
    print(f"{noticed} of {len(results)} faults were noticed")


if __name__ == "__main__":
    main()
