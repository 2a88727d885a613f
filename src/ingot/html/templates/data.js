// The data of the page, stages unpacked on demand, and small helpers for building elements.

const data = JSON.parse(document.getElementById("data").textContent);
const stages = data.stages.map((stage) => (stage.like === undefined ? stage : { ...data.stages[stage.like], receipt: undefined, ...stage }));

/** A new element: `make("b", {class: "x", title: "y"}, "text", child, ...)`. Text is never read as markup. */
function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

function bytes(n) {
  for (const unit of ["B", "kB", "MB"]) {
    if (Math.abs(n) < 1000) return unit === "B" ? `${n} B` : `${n.toFixed(n < 10 ? 2 : 1)} ${unit}`;
    n /= 1000;
  }
  return `${n.toFixed(2)} GB`;
}

const count = (n) => n.toLocaleString("en-US");
const short = (n) => (n === 0 ? "0" : Math.abs(n) >= 0.001 && Math.abs(n) < 1000 ? n.toPrecision(3) : n.toExponential(1));

/** The lines of a stage's text. */
function linesOf(stage) {
  const out = [];
  for (let i = 0; i < stage.text.length; i += 2) {
    out.push(...data.lines.slice(stage.text[i], stage.text[i] + stage.text[i + 1]));
  }
  return out;
}

const TOKEN = /"(?:[^"\\]|\\.)*"|[%@][\w.\-]*\w|\b(?:bool|[iuf]\d+|bf16|f8e4m3|f8e5m2|f8e8m0|f4e2m1)\[[^\]]*\]/g;
const DEFINES = /^ +(?:%[\w.]+(?:, )?)+ = ([\w.]+)\(/;
const parsed = new Map();

/**
 * A stage's text, read once: for every line its kind, its pieces [text, class, key], the keys it defines and uses.
 * A key names a value in the whole stage: `forward|%x` for a value of a func, `@w` for a weight.
 */
function parse(stage) {
  if (parsed.has(stage)) return parsed.get(stage);
  const out = { lines: [], definition: new Map(), uses: new Map() };
  let func = "";
  linesOf(stage).forEach((text, n) => {
    const opens = /^ {2}func @([\w.\-]+)/.exec(text);
    if (opens) func = opens[1];
    const op = DEFINES.exec(text);
    const kind = opens ? "func" : op ? "op" : /^ +return\b/.test(text) ? "return" : /^ {2}const /.test(text) ? "const" : "other";
    const line = { n, text, kind, op: op ? op[1] : "", pieces: [], defines: [], uses: [] };
    let at = 0;
    const source = op ? / {2}loc\("(?:[^"\\]|\\.)*"\)$/.exec(text) : null;
    const body = source ? text.slice(0, source.index) : text;
    const plain = (until) => {
      if (until > at) line.pieces.push([text.slice(at, until), "", null]);
    };
    for (const found of body.matchAll(TOKEN)) {
      const token = found[0];
      plain(found.index);
      at = found.index + token.length;
      const named = (token[0] === "%" || token[0] === "@") && ["func", "op", "return", "const"].includes(kind);
      if (!named || (opens && token[0] === "@")) {
        line.pieces.push([token, token[0] === '"' ? "string" : "type", null]);
        continue;
      }
      const key = token[0] === "@" ? token : `${func}|${token}`;
      const defines = kind === "const" || (op && found.index < text.indexOf(" = ")) ||
        (opens && text[at] === ":" && !out.definition.has(key));
      line.pieces.push([token, defines ? "def" : "use", key]);
      line[defines ? "defines" : "uses"].push(key);
      if (defines) out.definition.set(key, n);
      else if (!opens) out.uses.set(key, [...(out.uses.get(key) || []), n]);
    }
    plain(body.length);
    if (source) line.pieces.push([source[0], "loc", null]);
    out.lines.push(line);
  });
  parsed.set(stage, out);
  return out;
}

const nameOf = (key) => key.slice(key.indexOf("|") + 1);
