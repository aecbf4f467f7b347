"""The page: it holds the report's numbers, escapes what it is given, and asks the network for nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import report_fixture as fixture
from compress.reports import figures, pages
from report_fixture import TARGET

VOID = {"meta", "link", "br", "img", "input", "hr"}
EVIL = "</script><script>alert(1)</script><b>&amp;\"'"


class Page(HTMLParser):
    """A page taken apart: balanced or not, its tags with their attributes, its text, its tables by class."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles = ""
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}
        self._table: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        elif tag == "table":
            self._table = self.tables.setdefault(dict(attrs).get("class") or "", [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif "style" in self.open:
            self.styles += data
        else:
            self.text += data
            if "td" in self.open or "th" in self.open:
                self._table[-1][-1] = f"{self._table[-1][-1]} {data}".strip()

    def figures(self) -> list[list[dict[str, Any]]]:
        (text,) = (text for attributes, text in self.scripts if attributes.get("id") == "figures")
        found: list[list[dict[str, Any]]] = json.loads(text)
        return found

    def row(self, table: str, first: str) -> list[str]:
        return next(row for row in self.tables[table] if row[0] == first)


def strings(tree: Any) -> Iterator[str]:
    if isinstance(tree, dict):
        for value in tree.values():
            yield from strings(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from strings(value)
    elif isinstance(tree, str):
        yield tree


@pytest.fixture(autouse=True)
def small_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five megabytes of plotly.js less in every test but the one that is about them."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly.js */")


@pytest.mark.parametrize("variant", fixture.VARIANTS)
def test_every_kind_of_report_renders_to_a_balanced_page(variant: str) -> None:
    page = Page(pages.render(fixture.VARIANTS[variant](), importances=fixture.IMPORTANCES, notes=fixture.NOTES))
    assert page.open == []
    assert fixture.NOTES[0] in page.text
    assert "How much each setting mattered" in page.text
    places = {attributes["id"] for tag, attributes in page.tags if (attributes.get("class") or "").startswith("figure")}
    drawn = {f"figure-{i}-{j}" for i, found in enumerate(page.figures()) for j in range(len(found))}
    assert places == drawn


@pytest.mark.parametrize("variant", fixture.VARIANTS)
def test_every_figure_is_one_that_plotly_accepts(variant: str) -> None:
    import plotly.graph_objects as go

    report = fixture.VARIANTS[variant]()
    for target in report["targets"]:
        for figure in figures.front_figures(report, target):
            go.Figure(data=figure["data"], layout=figure["layout"])


def test_nothing_is_loaded_from_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    from plotly.offline import get_plotlyjs

    text = pages.render(fixture.report(), importances=fixture.IMPORTANCES)
    assert text.count(get_plotlyjs()) == 1
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert "src" not in attributes
        assert ":" not in (attributes.get("href") or ""), "links stay in the run's folder"
    assert "url(" not in page.styles
    assert "@import" not in page.styles
    (policy,) = (a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    own = page.scripts[-1][1]
    assert "http" not in own
    assert "showSendToCloud: false" in own


def test_text_from_outside_is_escaped_everywhere() -> None:
    report = fixture.report()
    report["task"] = EVIL
    report["failures"][0]["cause"] = EVIL
    report["environment"][EVIL] = {"nested": EVIL}
    report["constraints"] = [EVIL]
    report["targets"] = {EVIL: {"runtime": EVIL}}
    for key in ("front", "picks", "nearest_miss"):
        report[key] = {EVIL: report[key][TARGET]}
    for one in report["candidates"]:
        one["measured"] = {EVIL: one["measured"][TARGET]}
        here = one["measured"][EVIL]["quality"]
        here["val"]["metric"] = EVIL
        here["slices"] = {EVIL: {EVIL: here["val"]}} if here["slices"] else {}
    text = pages.render(report, importances={EVIL: {EVIL: 1.0}}, notes=[EVIL])
    page = Page(text)
    assert page.open == []
    assert len(page.scripts) == 3
    assert "alert(1)" not in page.scripts[0][1] + page.scripts[2][1]
    assert not [tag for tag, _ in page.tags if tag == "b"]
    assert page.text.count(EVIL) >= 8
    for figure in page.figures()[0]:
        assert not [text for text in strings(figure) if "<script" in text]


def test_an_absolute_path_or_a_url_is_not_made_a_link() -> None:
    report = fixture.report()
    for one, path in zip(report["candidates"], ("javascript:alert(1)", "/etc/x.onnx") * 20, strict=False):
        one["path"] = path
    assert not [attributes for tag, attributes in Page(pages.render(report)).tags if tag == "a"]


def test_the_table_of_picks_agrees_with_the_report() -> None:
    report = fixture.report()
    page = Page(pages.render(report))
    pick = report["picks"][TARGET]["fastest"]
    one = next(one for one in report["candidates"] if one["id"] == pick["id"])
    here = one["measured"][TARGET]
    row = page.row("picks", "fastest")
    assert row[1] == one["id"]
    for cell, quality in ((row[2], here["quality"]["val"]), (row[3], here["quality"]["test"])):
        value, low, high = (float(number) for number in re.findall(r"\d+\.\d+", cell))
        assert value == pytest.approx(100 * quality["value"], abs=0.051)
        assert (low, high) == pytest.approx((100 * quality["low"], 100 * quality["high"]), abs=0.101)
    assert row[4].startswith(f"{100 * here['quality_drop']['test']['value']:.1f} points")
    assert row[5] == "open the 2nd choice; about 900 test examples needed"
    assert row[6] == f"{here['latency']['p50'] * 1e6:.0f} µs"
    assert row[7].startswith(f"{here['latency']['ratio']:.2f}x")
    assert row[8].startswith(f"{one['size'] / 1000:.1f} kB")
    assert page.row("picks", "most accurate")[5] == "confirmed"
    assert [row[0] for row in page.tables["picks"][1:]] == ["baseline", "fastest", "knee", "smallest", "most accurate"]


def test_every_candidate_stands_in_the_table_of_all_with_what_it_sorts_by() -> None:
    report = fixture.report()
    page = Page(pages.render(report))
    listed = {row[0]: row for row in page.tables["sortable candidates"][1:]}
    assert set(listed) == {one["id"] for one in report["candidates"]}
    front = report["front"][TARGET]
    for one in report["candidates"]:
        feasible = one["measured"][TARGET]["feasible"]
        expected = "front" if one["id"] in front else "dominated" if feasible else "infeasible"
        assert listed[one["id"]][-1].endswith(expected)
    sizes = [one["size"] for one in report["candidates"]]
    keys = [attributes["data-value"] for tag, attributes in page.tags if tag == "td" and "data-value" in attributes]
    assert [int(key or "") for key in keys[6::10]] == sizes


def test_a_figure_shows_every_candidate_once_at_its_place() -> None:
    report = fixture.report()
    figure = figures.front_figure(report, TARGET, "latency")
    places = [
        (x, y)
        for trace in figure["data"]
        if trace["mode"] == "markers"
        for x, y in zip(trace["x"], trace["y"], strict=True)
    ]
    expected = [
        (one["measured"][TARGET]["latency"]["ratio"], 100 * one["measured"][TARGET]["quality"]["val"]["value"])
        for one in report["candidates"]
    ]
    assert sorted(places) == sorted(expected)


def test_bars_are_the_paired_intervals_also_where_less_is_better() -> None:
    for report, higher in ((fixture.report(), True), (fixture.lower_is_better(), False)):
        scale = 100 if higher else 1
        figure = figures.front_figure(report, TARGET, "latency")
        name = report["front"][TARGET][0]
        drop = next(o for o in report["candidates"] if o["id"] == name)["measured"][TARGET]["quality_drop"]["val"]
        trace, index = next(
            (trace, index)
            for trace in figure["data"]
            for index, text in enumerate(trace["text"])
            if f"<b>{name}</b>" in text and trace["mode"] == "markers"
        )
        up, down = drop["value"] - drop["low"], drop["high"] - drop["value"]
        bars = trace["error_y"]
        assert bars["array"][index] == pytest.approx(scale * (up if higher else down))
        assert bars["arrayminus"][index] == pytest.approx(scale * (down if higher else up))


@pytest.mark.parametrize("variant", ["finished", "lower is better"])
def test_the_line_of_the_front_never_turns_back(variant: str) -> None:
    figure = figures.front_figure(fixture.VARIANTS[variant](), TARGET, "latency")
    (line,) = (trace for trace in figure["data"] if trace["mode"] == "lines")
    assert line["x"] == sorted(line["x"])
    assert line["y"] == sorted(line["y"], reverse=variant == "lower is better")


def test_the_baseline_and_the_limit_are_dashed_lines() -> None:
    shapes = figures.front_figure(fixture.report(), TARGET, "latency")["layout"]["shapes"]
    assert [shape["y0"] for shape in shapes] == pytest.approx([95.33, 94.33])


def test_a_ruined_network_does_not_press_the_front_flat() -> None:
    report = fixture.report()
    before = figures.front_figure(report, TARGET, "latency")
    ruined = next(one for one in report["candidates"] if not one["measured"][TARGET]["feasible"])
    ruined["measured"][TARGET]["quality"]["val"]["value"] = 0.1
    after = figures.front_figure(report, TARGET, "latency")
    assert (before["outside"], after["outside"]) == (0, 1)
    assert after["layout"]["yaxis"]["range"][0] > 80
    assert "1 candidate lies outside the frame" in Page(pages.render(report)).text


@pytest.mark.parametrize("nothing", [float("nan"), None])
def test_a_network_that_diverged_is_in_the_table_but_in_no_figure(nothing: float | None) -> None:
    report = fixture.report()
    lost = next(one for one in report["candidates"] if not one["measured"][TARGET]["feasible"])
    lost["measured"][TARGET]["quality"]["val"].update(value=nothing, low=nothing, high=nothing)
    lost["measured"][TARGET]["quality_drop"]["val"] = dict.fromkeys(("value", "low", "high"), nothing)
    page = Page(pages.render(report))
    assert not [text for text in strings(page.figures()[0]) if lost["id"] in text]
    assert page.row("sortable candidates", lost["id"])[4:6] == ["\N{EN DASH}"] * 2


@pytest.mark.parametrize("count", ["instructions", "cycles"])
def test_what_was_not_measured_has_no_column_or_figure(count: str) -> None:
    report = fixture.two_targets(count)
    page = Page(pages.render(report))
    assert f"{count}, x of baseline (lower is better)" in set(strings(page.figures()[1]))
    counted = Page(pages.render({**report, "targets": {fixture.PHONE: {}}}))
    heading = counted.tables["picks"][0]
    assert count in heading
    assert "p50" not in heading
    assert len(counted.row("picks", "fastest")) == len(heading)
    assert counted.row("picks", "knee") == ["knee", "none meets the constraints"]
    assert Page(pages.render(fixture.baseline_only())).figures() == [[]]


def test_slices_of_the_picks_are_shown_where_there_are_any() -> None:
    page = Page(pages.render(fixture.report()))
    assert page.row("slices", "george")[1] == "50"
    assert page.row("slices", "lucas")[2].startswith("91.0 %")
    assert "slices" not in Page(pages.render(fixture.without_test())).tables


def test_importances_and_stages_go_from_most_to_least() -> None:
    page = Page(pages.render(fixture.report(), importances={"quality": {"a": 0.2, "b": 0.7, "c": 0.001}}))
    assert [row[:2] for row in page.tables["importances"]] == [["b", "70 %"], ["a", "20 %"], ["c", "< 1 %"]]
    assert page.tables["stages"][1][:5] == ["finetune", "10", "0", "6 min 31 s", "67 %"]


def test_the_machine_is_described_in_units_and_the_command_that_goes_on_is_there() -> None:
    text = Page(pages.render(fixture.report())).text
    assert "paretopress search keyword-spotting --trials 10 --seed 0" in text
    for shown in ("7.70 GB", "5.10 GB", "1.2, 0.9, 0.5", "1.71 ms"):
        assert shown in text
    assert "7700000000" not in text
    assert "0.0024630580001" not in text


def test_write_replaces_the_page_in_one_step_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")
    assert pages.write_page(path, fixture.report(), notes=["a note"]) == path
    assert "a note" in path.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("compress.reports.pages.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        pages.write_page(path, fixture.report())
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]
