// The selected line in words: what it is, what it takes, who uses it.

function showInspector() {
  const box = document.getElementById("inspector");
  document.getElementById("where").textContent = state.line === null ? "" : `line ${state.line + 1}`;
  if (state.line === null) {
    box.replaceChildren(make("p", { class: "hint" }, "Click an op or a value to see what it takes and who uses it."));
    return;
  }
  const text = parse(stages[state.stage]);
  const line = text.lines[state.line];
  const rows = [];
  const types = line.pieces.filter(([, style]) => style === "type").map(([type]) => type);
  if (line.kind === "op") rows.push(["gives", ...line.defines.map((key, i) => link(key, types[i] || ""))]);
  const takes = [...new Set(line.uses)];
  if (takes.length && line.kind === "op") rows.push(["takes", ...takes.map((key) => link(key, typeOf(text, key)))]);
  const key = state.value;
  const users = key === null ? [] : [...new Set(text.uses.get(key) || [])];
  if (key !== null) {
    rows.push([`${nameOf(key)} used by`, ...(users.length ? users.slice(0, 12).map((n) => lineLink(text.lines[n])) : ["nothing"]),
      ...(users.length > 12 ? [`and ${users.length - 12} more`] : [])]);
  }
  const origin = /loc\((".*")\)$/.exec(line.text);
  if (origin) rows.push(["from", JSON.parse(origin[1])]);
  const title = line.kind === "op" ? line.op : line.kind === "const" ? "weight" : line.kind;
  box.replaceChildren(make("h3", {}, title, make("code", {}, attributesOf(line))), make("dl", {}, ...rows.map(([name, ...values]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, ...values.flatMap((value, i) => (i ? [" ", value] : [value])))))));
}

function attributesOf(line) {
  if (line.kind === "const") return line.text.slice(line.text.indexOf(" = ") + 3);
  const found = line.kind === "op" ? /\) (\{.*\}) : /.exec(line.text) : null;
  return found ? found[1] : "";
}

function typeOf(text, key) {
  const n = text.definition.get(key);
  if (n === undefined) return "";
  const pieces = text.lines[n].pieces;
  if (text.lines[n].kind === "op") return pieces.filter(([, style]) => style === "type")[text.lines[n].defines.indexOf(key)]?.[0] || "";
  const at = pieces.findIndex((piece) => piece[2] === key);
  return pieces.slice(at).find(([, style]) => style === "type")?.[0] || "";
}

function link(key, type) {
  const button = make("button", { type: "button", class: "link" }, nameOf(key));
  button.addEventListener("click", () => {
    const n = parse(stages[state.stage]).definition.get(key);
    if (n !== undefined) select(n, key);
  });
  return make("span", { class: "item" }, button, type ? make("span", { class: "type" }, ` ${type}`) : "");
}

function lineLink(line) {
  const name = line.kind === "return" ? "return" : `${line.op} → ${line.defines.map(nameOf).join(", ")}`;
  const button = make("button", { type: "button", class: "link" }, name);
  button.addEventListener("click", () => select(line.n));
  return make("span", { class: "item" }, button);
}
