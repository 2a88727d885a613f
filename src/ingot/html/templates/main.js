// What is shown, and what happens when it changes. The address after # holds it: stage, open (a layer), value, tab.

const state = { stage: stages.length - 1, value: null, line: null, open: null, tab: "text" };

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const n = Number(given.get("stage"));
  state.stage = given.has("stage") && Number.isInteger(n) && n >= 0 && n < stages.length ? n : stages.length - 1;
  state.open = given.get("open");
  state.tab = given.get("tab") === "changes" ? "changes" : "text";
  const wanted = given.get("value");
  const known = parse(stages[state.stage]).definition;
  state.value = wanted === null ? null : [...known.keys()].find((key) => nameOf(key) === wanted) || null;
  state.line = state.value === null ? null : known.get(state.value);
}

function writeAddress() {
  const out = new URLSearchParams({ stage: state.stage });
  if (state.open) out.set("open", state.open);
  if (state.value) out.set("value", nameOf(state.value));
  if (state.tab !== "text") out.set("tab", state.tab);
  history.replaceState(null, "", `#${out}`);
}

function showStage(n) {
  state.stage = n;
  const known = parse(stages[n]).definition;
  if (state.value !== null) state.line = known.has(state.value) ? known.get(state.value) : null;
  if (state.line === null) state.value = null;
  show();
}

function show() {
  const stage = stages[state.stage];
  showStrip();
  showText(stage);
  showChanges(stage);
  showTab();
  showGraph(stage);
  showPlots(stage);
  mark(true);
  writeAddress();
}

/** Select a line, and the value it defines (or `key`), in text and picture alike. `from`: where it was clicked. */
function select(line, key = null, from = "") {
  const found = parse(stages[state.stage]).lines[line];
  state.line = line;
  state.value = key || found.defines[0] || null;
  if (from !== "text" && state.tab !== "text") {
    state.tab = "text";
    showTab();
  }
  mark(false, from);
  writeAddress();
}

function mark(instantly, from = "") {
  markText(instantly, from);
  markGraph(instantly, from);
  showInspector();
}

document.getElementById("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).getPropertyValue("--is-dark").trim() === "1";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});
window.addEventListener("hashchange", () => {
  readAddress();
  show();
});
let width = innerWidth;
window.addEventListener("resize", () => {
  if (innerWidth !== width) showPlots(stages[state.stage]);
  width = innerWidth;
});

readAddress();
makeStrip();
show();
