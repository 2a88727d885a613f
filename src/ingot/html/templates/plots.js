// The plots: bytes by layer before and after, bytes by element type from stage to stage, errors of measured sites.

const plotsBox = document.getElementById("plots");
const DTYPES = ["f64", "f32", "bf16", "f16", "f8e4m3", "f8e5m2", "f8e8m0", "f4e2m1", "i64", "i32", "i16", "i8", "i4", "i2", "u32", "u8", "u4", "u3", "u2", "bool"];

function showPlots(stage) {
  const plots = [layersPlot(stage), dtypesPlot(), ...errorPlots(stage)].filter((plot) => plot !== null);
  plotsBox.replaceChildren(...plots.map(([title, note, drawPlot, rows]) => {
    const figure = make("figure", {}, make("figcaption", {}, make("h2", {}, title), note));
    const box = make("div", { class: "plot" });
    figure.append(box, make("details", {}, make("summary", {}, "as a table"), tableOf(rows)));
    requestAnimationFrame(() => box.append(drawPlot(Math.max(box.clientWidth, 280))));
    return figure;
  }));
}

function tableOf([head, ...rows]) {
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, ...head.map((cell) => make("th", { scope: "col" }, cell)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, cell)))))));
}

function legend(items) {
  return make("span", { class: "legend" }, ...items.map(([style, text]) => make("span", {}, make("i", { class: style }), text)));
}

/** A round step for an axis up to `most`, about `n` of them; bytes and plain numbers alike step in tens. */
function ticks(most, n = 4) {
  const raw = most / n || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const by = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= raw * 0.999);
  const out = [];
  for (let value = 0; value <= most * 1.0001; value += by) out.push(value);
  return out;
}

/** Axes with room for labels; `column(i)` gives the left edge and width of the i-th of n columns. */
function frameOf(width, n, most, text, label) {
  const height = 190;
  const [left, right, top, bottom] = [58, 6, 10, 26];
  const y = (value) => height - bottom - (value / (most || 1)) * (height - top - bottom);
  const pitch = (width - left - right) / Math.max(n, 1);
  const bar = Math.min(pitch * 0.76, 38);
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const value of ticks(most)) {
    root.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }), svg("text", { class: "tick", x: left - 7, y: y(value) + 4, "text-anchor": "end" }, value ? text(value).replace(/\.?0+(?= |$)/, "") : "0"));
  }
  const column = (i) => [left + i * pitch + (pitch - bar) / 2, bar];
  const every = Math.ceil(26 / pitch);
  const below = (i, words) => {
    if (i % every) return;
    const at = left + i * pitch + pitch / 2;
    root.append(svg("text", { class: "tick", x: at, y: height - bottom + 16, "text-anchor": "middle" }, words));
  };
  return { root, y, column, below };
}

function bar(style, x, y, width, height, title) {
  return svg("rect", { class: style, x, y, width, height: Math.max(height, 0), rx: 1 }, svg("title", {}, title));
}

function layersPlot(stage) {
  const before = stages[0].layers;
  const names = [...new Set([...Object.keys(before), ...Object.keys(stage.layers)])].filter((name) => name !== "");
  if (!names.length) return null;
  names.push("");
  const most = Math.max(...names.map((name) => Math.max(before[name] || 0, stage.layers[name] || 0)), 1);
  const layers = names.filter((name) => name !== "");
  const apart = layers.length && most > 3 * Math.max(...layers.map((name) => Math.max(before[name] || 0, stage.layers[name] || 0)));
  const shown = apart ? layers : names;
  const top = Math.max(...shown.map((name) => Math.max(before[name] || 0, stage.layers[name] || 0)), 1);
  const called = (name) => name || "in no layer";
  const alone = stages.length === 1;
  const note = make("p", {}, alone ? "" : legend([["before", "at import"], ["after", `after ${stage.name}`]]),
    apart ? ` Weights in no layer: ${step(before[""] || 0, stage.layers[""] || 0, bytes)}.` : "");
  const paint = (width) => {
    const { root, y, column, below } = frameOf(width, shown.length, top, bytes, "bytes of weights by layer");
    shown.forEach((name, i) => {
      const [x, w] = column(i);
      const [a, b] = [before[name] || 0, stage.layers[name] || 0];
      const title = `${called(name)}: ${step(a, b, bytes)}`;
      if (!alone) root.append(bar("before", x, y(a), w, y(0) - y(a), title));
      root.append(bar("after", alone ? x : x + w * 0.18, y(b), alone ? w : w * 0.64, y(0) - y(b), title));
      below(i, name ? name.slice(name.lastIndexOf(".") + 1) : "rest");
    });
    return root;
  };
  const row = (name) => (alone ? [called(name)] : [called(name), bytes(before[name] || 0)]).concat(bytes(stage.layers[name] || 0));
  const head = alone ? ["layer", "bytes"] : ["layer", "at import", `after ${stage.name}`];
  return ["Weights by layer", note, paint, [head, ...names.map(row)]];
}

function dtypesPlot() {
  const kinds = DTYPES.filter((kind) => stages.some((stage) => stage.dtypes[kind]));
  const style = (kind) => `kind k${kinds.indexOf(kind) % 8}`;
  const total = (stage) => kinds.reduce((sum, kind) => sum + (stage.dtypes[kind] || 0), 0);
  const paint = (width) => {
    const { root, y, column, below } = frameOf(width, stages.length, Math.max(...stages.map(total), 1), bytes, "bytes of weights by element type");
    stages.forEach((stage, i) => {
      const [x, w] = column(i);
      let sum = 0;
      for (const kind of kinds) {
        const part = stage.dtypes[kind] || 0;
        if (part) root.append(bar(style(kind), x, y(sum + part), w, y(sum) - y(sum + part), `${stage.name}: ${kind} ${bytes(part)} of ${bytes(total(stage))}`));
        sum += part;
      }
      if (i === state.stage && stages.length > 1) root.append(svg("rect", { class: "here", x: x - 3, y: y(sum) - 3, width: w + 6, height: y(0) - y(sum) + 5, rx: 2 }));
      below(i, stages.length > 1 ? String(i) : "");
    });
    return root;
  };
  return ["Weights by element type", make("p", {}, legend(kinds.map((kind) => [style(kind), kind])), stages.length > 1 ? " A column for each stage." : ""), paint,
    [["stage", ...kinds], ...stages.map((stage) => [stage.name, ...kinds.map((kind) => (stage.dtypes[kind] ? bytes(stage.dtypes[kind]) : "–"))])]];
}

function errorPlots(stage) {
  const measured = stage.receipt ? stage.receipt.measured : [];
  if (!measured.length) return [];
  return [["error", "Error by site", short], ["bytes", "Bytes by site", bytes]].map(([what, title, text]) => {
    const found = measured.filter((site) => site[what] !== undefined);
    if (!found.length) return null;
    const most = Math.max(...found.map((site) => site[what]), 0);
    const worst = found.reduce((a, b) => (b[what] > a[what] ? b : a));
    const paint = (width) => {
      const { root, y, column, below } = frameOf(width, found.length, most, text, title);
      found.forEach((site, i) => {
        const [x, w] = column(i);
        root.append(bar(site === worst ? "after worst" : "after", x, y(site[what]), w, y(0) - y(site[what]), `${site.name}: ${text(site[what])}`));
        below(i, String(i));
      });
      return root;
    };
    return [title, make("p", {}, `${found.length} sites of ${stage.name}, in order; most: ${worst.name}, ${text(worst[what])}.`), paint,
      [["", "site", what], ...found.map((site, i) => [String(i), site.name, text(site[what])])]];
  });
}
