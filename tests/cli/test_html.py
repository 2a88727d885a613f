"""`ingot show --html`: the page holds everything, needs nothing else, and works in a browser."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from ingot.cli import main
from ingot.dumps import stage_texts
from ingot.html.figures import bytes_by_layer, sites
from ingot.html.layout import GAP_X, layered
from ingot.html.page import render_page
from ingot.html.picture import Drawings, picture
from ingot.ir.module import Module
from ingot.ir.text import parse_module
from tests.cli.artifacts import staged
from tests.ir.test_scale import llama

PASSES = "canonicalize,dce,fuse,canonicalize,quantize"
NASTY = """# ingot ir v1
module @nasty {
  meta source = "</script><script>document.title = 'broken'</script>"
  const @w : f32[4] = safetensors(file="<img src=x onerror=alert(1)>", key="</script>")
  func @forward(%x: f32[4]) -> (f32[4]) {
    %y = mul(%x, @w) : f32[4]  loc("<!--<script>.py:3")
    return %y
  }
}
"""
SITES = [{"name": "l0.q", "error": 0.25, "bytes": 100}, {"name": "l1.q", "error": 0.5}, {"name": "l2.q", "error": float("nan")},
         {"error": 1.0}, "l3.q", {"name": "l4.q", "error": "much", "bytes": 7}]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    details = {"error": {"kl": 0.0123}, "sites": SITES[:2]}
    return staged(tmp_path_factory.mktemp("page"), llama(4), PASSES, details=details)


@pytest.fixture(scope="module")
def page(artifact: Path) -> str:
    return render_page(artifact)


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def text_of(data: dict[str, Any], stage: dict[str, Any]) -> str:
    runs = stage["text"]
    lines = [line for first, n in zip(runs[::2], runs[1::2]) for line in data["lines"][first:first + n]]
    return "\n".join([*lines, ""])


# --- the file ---------------------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Checks nesting and gathers elements."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br", "hr", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    return reader


def test_elements_nest_and_ids_resolve(page: str) -> None:
    elements = read(page).elements
    ids = [attrs["id"] for _, attrs in elements if "id" in attrs]
    assert len(set(ids)) == len(ids)
    for _, attrs in elements:
        for key in ("aria-controls", "aria-labelledby"):
            assert attrs.get(key) in (*ids, None)
    script = page[page.index('"use strict"'):]
    assert set(re.findall(r'getElementById\("([\w-]+)"\)', script)) <= set(ids)
    assert [tag for tag, _ in elements].count("script") == 2


def test_nothing_is_fetched(page: str) -> None:
    reader = read(page)
    addresses = [attrs[key] for _, attrs in reader.elements for key in ("src", "href", "action", "srcset") if key in attrs]
    assert addresses == ["data:,"]
    rest = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|@import|url\((?!#)|fetch\(|XMLHttpRequest|import\(", rest)
    policy = next(attrs["content"] for tag, attrs in reader.elements if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_text_that_looks_like_markup_stays_text(tmp_path: Path) -> None:
    (tmp_path / "nasty.ir").write_text(NASTY)
    page = render_page(tmp_path / "nasty.ir")
    assert [tag for tag, _ in read(page).elements].count("script") == 2
    assert "<img" not in page
    data = data_of(page)
    assert text_of(data, data["stages"][0]) == NASTY


def contrast(a: str, b: str) -> float:
    """The contrast of two colours, as in WCAG 2.1."""
    def light(colour: str) -> float:
        parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_stands_out(page: str, theme: int) -> None:
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", page)
    colours = {name: (light, dark)[theme] for name, light, dark in pairs}
    on = {"ink": "back panel accent-back", "mute": "back panel sunk accent-back turn-back", "add": "add-back", "cut": "cut-back",
          "accent": "panel accent-back turn-back", "turn": "turn-back panel"}
    for ink, back in [(ink, back) for ink, backs in on.items() for back in backs.split()]:
        assert contrast(colours[ink], colours[back]) >= 4.5, (ink, back)
    for light, dark in re.findall(r"--fill: light-dark\((#\w{6}), (#\w{6})\)", page):
        assert contrast((light, dark)[theme], colours["ink"]) >= 4.5


# --- what it holds ----------------------------------------------------------------------------------------------------


def test_every_stage_with_its_text_and_receipt(artifact: Path, page: str) -> None:
    data = data_of(page)
    assert [stage["name"] for stage in data["stages"]] == ["00-import", "01-canonicalize", "02-dce", "03-fuse", "04-canonicalize",
                                                            "05-quantize"]
    for stage, (_, text) in zip(data["stages"], stage_texts(artifact), strict=True):
        assert text_of(data, stage) == text
    assert "receipt" not in data["stages"][0]
    assert data["stages"][5]["receipt"]["error"] == "kl 0.0123"
    assert data["stages"][5]["receipt"]["measured"] == SITES[:2]
    assert data["stages"][3]["receipt"]["sites"] > 0
    assert data["stages"][5]["totals"]["bytes"] < data["stages"][0]["totals"]["bytes"]


def test_changes_and_marks(page: str) -> None:
    stages = data_of(page)["stages"]
    assert stages[0]["changes"] == []
    assert stages[4]["changes"] == []
    fused = [(sign, text.partition(" : ")[0], times) for sign, subject, text, times in stages[3]["changes"] if subject == "op"]
    assert ("+", "%qkv = linear(%n0, @l0.qkv)", "x 4 layers") in fused
    text = text_of(data_of(page), stages[3]).split("\n")
    added = [text[n] for n in stages[3]["marks"]["+"]]
    assert sum("skip_rms_norm" in line for line in added) == sum("skip_rms_norm" in line for line in text) > 0
    assert not any("attention" in line for line in added)


def test_sites_are_read_as_far_as_they_are_sites() -> None:
    assert sites({"sites": SITES}) == [*SITES[:2], {"name": "l4.q", "bytes": 7}]
    assert sites({"sites": 3}) == sites({}) == []


def test_stages_that_change_nothing_cost_nothing(tmp_path: Path) -> None:
    once = render_page(staged(tmp_path / "a", llama(8), "canonicalize"))
    often = render_page(staged(tmp_path / "b", llama(8), ",".join(["canonicalize"] * 12)))
    assert len(often) - len(once) < 11 * 600
    assert data_of(often)["stages"][12]["like"] == 0


def test_bytes_by_layer() -> None:
    module = parse_module(llama(11))
    found = bytes_by_layer(module)
    assert list(found) == [*(f"l.{i}" for i in range(11)), ""]
    assert sum(found.values()) == sum(const.weight.nbytes for const in module.consts.values())


# --- pictures ---------------------------------------------------------------------------------------------------------


@st.composite
def dags(draw: st.DrawFn) -> tuple[list[tuple[float, float]], list[tuple[int, int]]]:
    n = draw(st.integers(0, 14))
    sizes = draw(st.lists(st.tuples(st.floats(20, 200), st.floats(10, 60)), min_size=n, max_size=n))
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda p: p[0] < p[1])
    return sizes, draw(st.lists(pairs, max_size=30)) if n > 1 else []


@given(dags())
@settings(max_examples=80)
def test_layouts_lead_down_and_do_not_overlap(graph: tuple[list[tuple[float, float]], list[tuple[int, int]]]) -> None:
    sizes, edges = graph
    drawn = layered(sizes, edges)
    assert drawn == layered(sizes, edges)
    spans: dict[int, list[tuple[float, float]]] = {}
    for box in drawn.boxes:
        spans.setdefault(box.row, []).append((box.x - box.width / 2, box.x + box.width / 2))
        assert box.height <= drawn.tops[box.row + 1] - drawn.tops[box.row] + 1e-6
    lanes = {(edge.source, drawn.boxes[edge.source].row + 1 + i, x) for edge in drawn.edges for i, x in enumerate(edge.lanes)}
    for _, row, x in lanes:
        spans[row].append((x - 4, x + 4))
    for row in spans.values():
        row.sort()
        assert all(right + GAP_X - 1e-6 <= left for (_, right), (left, _) in pairwise(row))
        assert row[0][0] >= -1e-6
        assert row[-1][1] <= drawn.width + 1e-6
    assert {(edge.source, edge.target) for edge in drawn.edges} == set(edges)
    for edge in drawn.edges:
        a, b = drawn.boxes[edge.source], drawn.boxes[edge.target]
        assert b.row - a.row == len(edge.lanes) + 1
        assert abs(edge.end - b.x) <= b.width / 2


def test_a_chain_is_straight_and_crossings_are_undone() -> None:
    chain = layered([(50, 20)] * 4, [(0, 1), (1, 2), (2, 3)])
    assert len({round(box.x, 6) for box in chain.boxes}) == 1
    crossed = layered([(50, 20)] * 4, [(0, 3), (1, 2)])
    left, right = crossed.boxes[0].x < crossed.boxes[1].x, crossed.boxes[3].x < crossed.boxes[2].x
    assert left == right
    with pytest.raises(ValueError, match="lower to a higher"):
        layered([(1, 1), (1, 1)], [(1, 0)])


def pictured(text: str) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    drawings = Drawings()
    made = picture(parse_module(text), drawings)
    return made, drawings.items, text.split("\n")


def test_equal_layers_are_one_stack_and_every_box_has_its_line() -> None:
    made, drawings, lines = pictured(llama(5))
    assert [label for label, _, _ in drawings[made["drawing"]]["labels"]] == [
        "%ids", "%pos", "embedding", "l 0–4", "linear", "%y"]
    stack, = made["stacks"].values()
    assert [member["name"] for member in stack["members"]] == [f"l.{i}" for i in range(5)]
    labels = drawings[stack["drawing"]]["labels"]
    for i, member in enumerate(stack["members"]):
        for (label, _, kind), spot in zip(labels, member["spots"], strict=True):
            if kind not in ("input", "output"):
                assert f" = {label}(" in lines[spot]
                assert re.search(rf"[a-z]{i}\b", lines[spot])
    assert made["spots"][0] == "p%ids"
    assert lines[made["first"]].startswith("  func @forward")
    assert lines[made["last"]].startswith("    return")


def test_another_layer_parts_the_stack() -> None:
    made, drawings, _ = pictured(llama(5).replace("%s2 = silu", "%s2 = relu"))
    assert [label for label, _, kind in drawings[made["drawing"]]["labels"] if kind == "stack"] == ["l 0–1", "l 2", "l 3–4"]


def test_layers_that_depend_on_each_other_are_drawn_flat() -> None:
    """A weight of layer 0 used again after layer 1: closed boxes would form a circle."""
    made, drawings, _ = pictured("""module @m {
  const @h.0.w : f32[4] = zeros()
  const @h.1.w : f32[4] = zeros()
  func @forward(%x: f32[4]) -> (f32[4]) {
    %a = mul(%x, @h.0.w) : f32[4]
    %b = mul(%a, @h.1.w) : f32[4]
    %c = mul(%b, @h.0.w) : f32[4]
    return %c
  }
}
""")
    assert made["stacks"] == {}
    assert [label for label, _, _ in drawings[made["drawing"]]["labels"]] == ["%x", "mul", "mul", "mul", "%c"]


def test_modules_without_layers_or_ops() -> None:
    made, drawings, _ = pictured(NASTY)
    assert [label for label, _, _ in drawings[made["drawing"]]["labels"]] == ["%x", "mul", "%y"]
    assert picture(Module(), Drawings())["spots"] == []


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command(artifact: Path, page: str, tmp_path: Path) -> None:
    run: Callable[..., Any] = lambda *args: CliRunner().invoke(main, ["show", *map(str, args)])  # noqa: E731
    result = run(artifact, "--html", tmp_path / "a.html")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == page
    assert run(artifact, "--html", tmp_path / "a.html", "--stats").exit_code == 2
    missing = run(tmp_path / "none.ir", "--html", tmp_path / "b.html")
    assert missing.exit_code == 1
    assert "cannot read the dump" in missing.output
    assert not (tmp_path / "b.html").exists()
    assert "cannot write" in run(artifact, "--html", tmp_path / "no/such/folder.html").output


# --- in a browser -----------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome on this machine")


def shown(page: str, folder: Path, address: str = "", *, then: str = "", size: str = "1280,1000") -> tuple[str, list[bytes]]:
    """The document after the page drew itself and `then` (a script) ran, and the rows of pixels of a screenshot."""
    (folder / "page.html").write_text(page.replace("</body>", f"<script>{then}</script></body>"), encoding="utf-8")
    done = subprocess.run([str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
                           "--virtual-time-budget=3000", f"--window-size={size}", "--dump-dom",
                           f"--screenshot={folder / 'shot.png'}", f"{(folder / 'page.html').as_uri()}#{address}"],
                          capture_output=True, text=True, timeout=240, check=True)
    return done.stdout, list(pixels((folder / "shot.png").read_bytes()))


def pixels(png: bytes) -> Iterator[bytes]:
    """The rows of an 8-bit RGB or RGBA picture, as filtered (equal rows stay telling: a blank picture has one or two)."""
    width, height, _, kind = struct.unpack(">IIBB", png[16:26])
    packed, at = b"", 8
    while at < len(png):
        length, name = struct.unpack(">I4s", png[at:at + 8])
        if name == b"IDAT":
            packed += png[at + 8:at + 8 + length]
        at += length + 12
    raw, step = zlib.decompress(packed), width * {2: 3, 6: 4}[kind] + 1
    yield from (raw[i * step:(i + 1) * step] for i in range(height))


@browser
def test_a_browser_draws_it(page: str, tmp_path: Path) -> None:
    document, rows = shown(page, tmp_path, "stage=3&open=l.2&value=%25qkv_2")
    assert len(set(rows)) > len(rows) / 3
    assert document.count('class="stage') == 6
    assert re.search(r'data-stage="3"[^>]*aria-current="step"', document)
    assert re.search(r'class="line op selected"[^>]*data-line="\d+"[^>]*>.{0,200}%qkv_2', document)
    assert re.search(r'class="frame"[^>]*data-layer="l.2"', document)
    assert re.search(r'class="box matmul selected"', document)
    assert re.search(r'class="box layout user"', document)
    assert document.count('class="edge lit"') == 1
    assert 'class="fold"' in document
    assert document.count("<figure>") == 2


STEPS = """
const log = [];
const say = (what) => log.push(what);
const click = (element) => element.dispatchEvent(new MouseEvent("click", {bubbles: true, cancelable: true}));
window.addEventListener("error", (event) => say("error " + event.message));
click(document.querySelector('[data-stage="5"]'));
say("figures " + document.querySelectorAll("figure").length);
say("stacks " + document.querySelectorAll(".box.stack").length);
click(document.querySelector('.box.stack[data-layer="l.1"]'));
say("frame " + document.querySelector(".frame").dataset.layer);
click(document.querySelectorAll(".frame .button")[1]);
say("next " + document.querySelector(".frame").dataset.layer);
click([...document.querySelectorAll(".frame .box")].find((box) => box.textContent.includes("attention")));
say("line " + document.querySelector(".line.selected code").textContent.trim().split(" ")[0]);
say("inspector " + document.querySelector("#inspector h3").firstChild.data);
click(document.querySelector(".line.selected a.use"));
say("definition " + document.querySelector(".line.selected code").textContent.trim().split(" ")[0]);
say("same " + document.querySelectorAll("#lines a.same").length);
click([...document.querySelectorAll(".box.param")].find((box) => box.textContent.includes("%ids")));
say("param " + document.querySelector(".line.selected").className);
say("value " + new URLSearchParams(location.hash.slice(1)).get("value"));
click(document.getElementById("tab-changes"));
say("changes " + !document.getElementById("changes").hidden + " " + document.querySelectorAll(".change").length);
document.querySelector('[data-stage="5"]').dispatchEvent(new KeyboardEvent("keydown", {key: "Home", bubbles: true}));
say("home " + new URLSearchParams(location.hash.slice(1)).get("stage") + " " + document.activeElement.dataset.stage);
location.hash = "stage=4&open=l.0&value=%40l0.qkv";
setTimeout(() => {
  const here = document.querySelector("[aria-current]").dataset.stage;
  say("address " + document.querySelector(".line.selected").className + " " + here);
  document.body.append(Object.assign(document.createElement("pre"), {id: "log", textContent: JSON.stringify(log)}));
}, 200);
"""


@browser
def test_clicks_and_keys(page: str, tmp_path: Path) -> None:
    document, _ = shown(page, tmp_path, "stage=0", then=STEPS)
    found = re.search(r'<pre id="log">(.*?)</pre>', document)
    assert found is not None
    changes = len(data_of(page)["stages"][5]["changes"])
    assert json.loads(found[1].replace("&gt;", ">").replace("&amp;", "&")) == [
        "figures 4", "stacks 3", "frame l.1", "next l.2", "line %a2", "inspector attention", "definition %qr2", "same 2",
        "param line func selected", "value %ids", f"changes true {changes}", "home 0 0", "address line const selected 4"]


@browser
def test_markup_in_names_does_nothing_in_a_browser(tmp_path: Path) -> None:
    (tmp_path / "nasty.ir").write_text(NASTY)
    document, rows = shown(render_page(tmp_path / "nasty.ir"), tmp_path, "value=%40w", size="400,800")
    assert "<title>nasty · ingot</title>" in document
    assert "&lt;/script&gt;" in document
    assert "<img" not in document
    assert len(set(rows)) > 100
