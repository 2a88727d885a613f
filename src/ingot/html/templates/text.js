// The text of a stage, with links from uses to definitions, and the list of what the stage changed.

const linesBox = document.getElementById("lines");
const changesBox = document.getElementById("changes");
const tokens = new Map(); // key -> elements that show it
let shownStage = null;

function showText(stage) {
  if (shownStage === stage) return;
  shownStage = stage;
  tokens.clear();
  const text = parse(stage);
  const signs = new Map(Object.entries(stage.marks).flatMap(([sign, lines]) => lines.map((n) => [n, sign])));
  const consts = text.lines.filter((line) => line.kind === "const");
  const out = [];
  for (const line of text.lines) {
    if (line === consts[0] && consts.length > 8) out.push(foldOf(consts));
    out.push(lineElement(line, signs.get(line.n)));
  }
  linesBox.classList.toggle("folded", consts.length > 8);
  linesBox.replaceChildren(...out);
  linesBox.scrollTop = 0;
}

function foldOf(consts) {
  const button = make("button", { type: "button", class: "fold", "aria-expanded": "false" });
  const label = () => {
    const folded = linesBox.classList.contains("folded");
    button.textContent = `${folded ? "show" : "hide"} ${count(consts.length)} weights`;
    button.setAttribute("aria-expanded", String(!folded));
  };
  button.addEventListener("click", () => {
    linesBox.classList.toggle("folded");
    label();
  });
  button.textContent = `show ${count(consts.length)} weights`;
  return button;
}

function lineElement(line, sign) {
  const code = make("code");
  for (const [text, style, key] of line.pieces) {
    if (key !== null) {
      const token = make("a", { class: style, href: `#stage=${state.stage}&value=${encodeURIComponent(nameOf(key))}`, tabindex: "-1", "data-key": key }, text);
      if (!tokens.has(key)) tokens.set(key, []);
      tokens.get(key).push(token);
      code.append(token);
    } else if (style) {
      code.append(make("span", { class: style }, text));
    } else if (line.op && text.includes(`= ${line.op}(`)) {
      const at = text.indexOf(`= ${line.op}(`) + 2;
      code.append(text.slice(0, at), make("b", {}, line.op), text.slice(at + line.op.length));
    } else {
      code.append(text);
    }
  }
  const row = make("div", { class: `line ${line.kind}`, "data-line": line.n }, make("span", { class: "gutter" }, String(line.n + 1)), code);
  if (sign) row.dataset.sign = sign;
  if (line.text.length > 500) {
    row.classList.add("long");
    row.append(make("button", { type: "button", class: "more", "aria-expanded": "false" }, "all"));
  }
  const indent = /^ */.exec(line.text)[0].length;
  row.style.setProperty("--indent", indent);
  if (code.firstChild && code.firstChild.nodeType === Node.TEXT_NODE) code.firstChild.data = code.firstChild.data.slice(indent);
  return row;
}

linesBox.addEventListener("click", (event) => {
  const row = event.target.closest(".line");
  if (event.target.className === "more") {
    const whole = row.classList.toggle("whole");
    event.target.setAttribute("aria-expanded", String(whole));
    event.target.textContent = whole ? "less" : "all";
    return;
  }
  if (!row || String(getSelection())) return;
  event.preventDefault();
  linesBox.focus({ preventScroll: true });
  const token = event.target.closest("a[data-key]");
  if (!token) {
    select(Number(row.dataset.line), null, "text");
    return;
  }
  const key = token.dataset.key;
  const definition = parse(stages[state.stage]).definition.get(key);
  const goes = token.classList.contains("use") && definition !== undefined;
  select(goes ? definition : Number(row.dataset.line), key, goes ? "" : "text");
});

document.getElementById("sources").addEventListener("click", (event) => {
  event.target.setAttribute("aria-pressed", String(linesBox.classList.toggle("sources")));
});

for (const [type, on] of [["mouseover", true], ["mouseout", false]]) {
  linesBox.addEventListener(type, (event) => {
    const token = event.target.closest("a[data-key]");
    if (!token) return;
    for (const same of tokens.get(token.dataset.key) || []) same.classList.toggle("hover", on);
    hoverGraph(token.dataset.key, on);
  });
}

linesBox.addEventListener("keydown", (event) => {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
  const lines = parse(stages[state.stage]).lines;
  let to = state.line === null ? lines.findIndex((line) => line.kind === "func") : state.line + by;
  while (linesBox.classList.contains("folded") && lines[to] && lines[to].kind === "const") to += by;
  if (!lines[to]) return;
  event.preventDefault();
  select(to);
});

/** Light the selected line and every place of the selected value. */
function markText(instantly, from) {
  for (const old of linesBox.querySelectorAll(".selected, .same")) old.classList.remove("selected", "same");
  for (const token of tokens.get(state.value) || []) token.classList.add("same");
  if (state.line === null) return;
  if (parse(stages[state.stage]).lines[state.line].kind === "const" && linesBox.classList.contains("folded")) {
    linesBox.querySelector(".fold").click();
  }
  const row = linesBox.querySelector(`[data-line="${state.line}"]`);
  row.classList.add("selected");
  if (from !== "text") within(linesBox, row, instantly);
}

/** Scroll a box so that an element in it can be seen; the page itself stays where it is. */
function within(box, element, instantly) {
  const outer = box.getBoundingClientRect();
  const inner = element.getBoundingClientRect();
  const out = (a, b, low, high) => a < low + 20 || b > high - 20;
  box.scrollBy({
    top: out(inner.top, inner.bottom, outer.top, outer.bottom) ? (inner.top + inner.bottom) / 2 - (outer.top + outer.bottom) / 2 : 0,
    left: out(inner.left, inner.right, outer.left, outer.right) && box !== linesBox ? (inner.left + inner.right) / 2 - (outer.left + outer.right) / 2 : 0,
    behavior: instantly || matchMedia("(prefers-reduced-motion: reduce)").matches ? "instant" : "smooth",
  });
}

// --- changes ---------------------------------------------------------------------------------------------------------

const SUBJECTS = { func: "funcs", op: "ops", type: "types of results, as they follow", weight: "weights", param: "parameters", return: "returns", dim: "dims", meta: "facts" };

function showChanges(stage) {
  const tab = document.getElementById("tab-changes");
  tab.textContent = stage.changes.length ? `Changes (${stage.changes.length})` : "Changes";
  if (!stage.changes.length) {
    const n = stages.indexOf(stage);
    changesBox.replaceChildren(make("p", { class: "empty" }, n ? "This pass changed nothing." : "This is the graph as it was read; changes start with the next stage."));
    return;
  }
  changesBox.replaceChildren(...[...grouped(stage.changes)].flatMap(([subject, changes]) => [make("h3", {}, SUBJECTS[subject]),
    ...changes.map(([sign, , text, times]) => make("div", { class: "change", "data-sign": sign }, make("span", { class: "gutter" }, sign === "-" ? "−" : sign),
      make("code", {}, text, times ? make("span", { class: "times" }, times) : "")))]));
}

function grouped(changes) {
  const out = new Map();
  for (const change of changes) out.set(change[1], [...(out.get(change[1]) || []), change]);
  return out;
}

function showTab() {
  for (const name of ["text", "changes"]) {
    const here = state.tab === name;
    document.getElementById(`tab-${name}`).setAttribute("aria-selected", String(here));
    document.getElementById(`tab-${name}`).tabIndex = here ? 0 : -1;
  }
  linesBox.hidden = state.tab !== "text";
  changesBox.hidden = state.tab === "text";
}

for (const name of ["text", "changes"]) {
  const tab = document.getElementById(`tab-${name}`);
  tab.addEventListener("click", () => {
    state.tab = name;
    showTab();
    markText(true, "");
    writeAddress();
  });
  tab.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
    const other = document.getElementById(`tab-${name === "text" ? "changes" : "text"}`);
    other.click();
    other.focus();
  });
}
