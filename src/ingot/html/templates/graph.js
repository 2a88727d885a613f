// The picture of a stage: boxes and edges placed beforehand; opening a stack of layers moves what is below and beside it.

const canvas = document.querySelector("#graph .canvas");
const MARGIN = 16;
const HEAD = 34;
let zoom = 1;
let boxes = new Map(); // spot -> boxes that show it; a spot is the line of an op, p%x for a param, r%x for a return
let drawnOpen = null;

/** Heights of the rows of a drawing. */
function heights(drawing) {
  const out = drawing.tops.slice(0, -1).map(() => 0);
  for (const [, row, , height] of drawing.boxes) out[row] = Math.max(out[row], height);
  return out;
}

function showGraph(stage) {
  boxes = new Map();
  const picture = stage.picture;
  const outline = data.drawings[picture.drawing];
  const open = openStack(picture);
  const root = svg("g");
  const size = draw(root, outline, picture.spots, { picture, open });
  drawnOpen = open && open.member.name;
  const image = svg("svg", { viewBox: `${size.left - MARGIN} ${-MARGIN} ${size.width + 2 * MARGIN} ${size.height + 2 * MARGIN}`, role: "group", "aria-label": "ops of this stage" },
    svg("defs", {}, svg("marker", { id: "tip", viewBox: "0 0 6 6", refX: 5, refY: 3, markerWidth: 8, markerHeight: 8, markerUnits: "userSpaceOnUse", orient: "auto" }, svg("path", { d: "M0 0 6 3 0 6z" }))), root);
  image.dataset.width = size.width + 2 * MARGIN;
  image.dataset.height = size.height + 2 * MARGIN;
  canvas.replaceChildren(image);
  document.querySelector("#graph .hint").hidden = !Object.keys(picture.stacks).length;
  rescale();
  const first = canvas.querySelector(".frame, .box");
  if (first) canvas.scrollLeft += middle(first) - middle(canvas);
}

/** Where the middle of an element is across the screen. */
function middle(element) {
  const { left, right } = element.getBoundingClientRect();
  return (left + right) / 2;
}

/** The stack that is open and which of its layers is shown. */
function openStack(picture) {
  for (const [n, stack] of Object.entries(picture.stacks)) {
    const at = stack.members.findIndex((member) => member.name === state.open);
    if (at >= 0) return { box: Number(n), stack, at, member: stack.members[at], drawing: data.drawings[stack.drawing] };
  }
  return null;
}

/** Draw boxes and edges into a group. `of`: for the outline, its picture and the open stack. Returns where it lies. */
function draw(group, drawing, spots, of = null) {
  const open = of && of.open;
  const high = heights(drawing);
  const grown = open ? { width: Math.max(open.drawing.width + 2 * MARGIN, 290), height: open.drawing.tops.at(-1) + HEAD + 2 * MARGIN } : null;
  const [atX, atRow, atWidth] = open ? drawing.boxes[open.box] : [0, -1, 0];
  const more = open ? Math.max(0, grown.height - high[atRow]) : 0;
  if (open) high[atRow] += more;
  const top = (row) => drawing.tops[row] + (open && row > atRow ? more : 0);
  const aside = open ? (grown.width - atWidth) / 2 : 0;
  const across = (x, row) => (!open || row !== atRow || x === atX ? x : x < atX ? x - aside : x + aside);
  const place = drawing.boxes.map(([x, row, width, height], n) => {
    const [w, h] = open && n === open.box ? [grown.width, grown.height] : [width, height];
    const slack = row === atRow && !Object.keys(of.picture.stacks).includes(String(n)) ? high[row] - h - 6 : (high[row] - h) / 2;
    return { x: across(x, row), y: top(row) + slack, w, h, row };
  });
  const shared = new Set(); // pieces of path: those that edges share are drawn once
  const edges = drawing.edges.map(([from, to, start, end, lanes]) => {
    const a = place[from];
    const b = place[to];
    let [x, y] = [a.x + start - drawing.boxes[from][0], a.y + a.h];
    let path = "";
    const go = (x2, y2, straight) => {
      if (straight && y2 <= y) return;
      const piece = straight ? `V${y2}` : `C${x} ${(y + y2) / 2} ${x2} ${(y + y2) / 2} ${x2} ${y2}`;
      shared.add(`M${x} ${y}${piece}`);
      path += path ? piece : `M${x} ${y}${piece}`;
      [x, y] = [x2, y2];
    };
    go(x, top(a.row) + high[a.row], true);
    lanes.forEach((lane, i) => {
      const row = a.row + 1 + i;
      go(across(lane, row), top(row), false);
      go(x, top(row) + high[row], true);
    });
    go(b.x + end - drawing.boxes[to][0], top(b.row) - (b.y > top(b.row) ? 0 : 1), false);
    go(x, b.y - 1, true);
    return svg("path", { class: "edge", d: path, "marker-end": "url(#tip)", "data-from": spots[from], "data-to": spots[to] });
  });
  group.append(svg("g", { class: "edges" }, svg("path", { d: [...shared].join("") }), ...edges));
  place.forEach((at, n) => {
    const stack = of && of.picture.stacks[n];
    if (open && n === open.box) group.append(frame(at, open));
    else group.append(stack ? stackBox(at, drawing.labels[n], stack) : opBox(at, drawing.labels[n], spots[n]));
  });
  const left = Math.min(0, ...place.map((p) => p.x - p.w / 2));
  const right = Math.max(drawing.width + (open ? aside : 0), ...place.map((p) => p.x + p.w / 2));
  return { left, width: right - left, height: drawing.tops.at(-1) + more };
}

function boxText(label, note, height) {
  const out = [svg("text", { class: "label", y: note ? height / 2 - 4 : height / 2 + 4 }, label)];
  if (note) out.push(svg("text", { class: "note", y: height / 2 + 11 }, note));
  return out;
}

function remember(spot, element) {
  if (!boxes.has(spot)) boxes.set(spot, []);
  boxes.get(spot).push(element);
}

/** The line of a spot, and the key of the value it is about where the line alone does not tell. */
function placeOf(spot) {
  const { picture } = stages[state.stage];
  const line = typeof spot === "number" ? spot : spot[0] === "p" ? picture.first : picture.last;
  const { defines, uses } = parse(stages[state.stage]).lines[line];
  return [line, typeof spot === "number" ? null : (spot[0] === "p" ? defines : uses).find((key) => nameOf(key) === spot.slice(1))];
}

/** Where a line shows in the picture: with `key`, what it has to do with that value. */
function spotOf(line, key) {
  const { kind } = parse(stages[state.stage]).lines[line];
  return kind === "func" || kind === "return" ? key && (kind === "func" ? "p" : "r") + nameOf(key) : line;
}

function opBox({ x, y, w, h }, [label, note, kind], spot) {
  const [line, key] = placeOf(spot);
  const text = parse(stages[state.stage]).lines[line];
  const element = svg("g", { class: `box ${kind}`, transform: `translate(${x} ${y})`, tabindex: 0, role: "button", "data-line": line, "aria-label": `${label} ${note}` },
    svg("title", {}, key ? `${text.kind === "func" ? "parameter" : "return"} ${nameOf(key)}` : text.text.trim()),
    svg("rect", { x: -w / 2, width: w, height: h, rx: ["input", "output", "param", "return"].includes(kind) ? h / 2 : 5 }), ...boxText(label, note, h));
  if (stages[state.stage].marks["+"]?.includes(spot) && !["input", "output"].includes(kind)) {
    element.append(svg("circle", { class: "new", cx: w / 2 - 1, cy: 1, r: 4 }));
  }
  act(element, () => select(line, key, "graph"));
  remember(spot, element);
  return element;
}

function stackBox({ x, y, w, h }, [label, note], stack) {
  const element = svg("g", { class: "box stack", transform: `translate(${x} ${y})`, tabindex: 0, role: "button", "aria-expanded": "false", "aria-label": `${label}, ${note}`, "data-layer": stack.members[0].name },
    svg("title", {}, `${label}: ${note}; click to open`));
  const behind = stack.members.length > 1 ? [8, 4] : [];
  for (const by of behind) element.append(svg("rect", { x: -w / 2 + by, y: by, width: w, height: h, rx: 5 }));
  element.append(svg("rect", { x: -w / 2, width: w, height: h, rx: 5 }), ...boxText(label, note, h));
  act(element, () => openLayer(stack.members[0].name));
  for (const member of stack.members) for (const spot of member.spots) remember(spot, element);
  return element;
}

/** An open stack: one of its layers drawn inside a frame, with buttons to step through the equal ones. */
function frame({ x, y, w, h }, open) {
  const { stack, at, member, drawing } = open;
  const group = svg("g", { class: "frame", transform: `translate(${x - w / 2} ${y})`, "data-layer": member.name }, svg("rect", { class: "back", width: w, height: h, rx: 8 }));
  group.append(svg("text", { class: "label title", x: 14, y: 22 }, member.name));
  const several = stack.members.length > 1;
  if (several) group.append(svg("text", { class: "note title", x: w - 104, y: 22, "text-anchor": "end" }, `${at + 1} of ${stack.members.length} alike`));
  const button = (offset, text, name, action) => {
    const element = svg("g", { class: "button", transform: `translate(${w - offset} 6)`, tabindex: 0, role: "button", "aria-label": name }, svg("title", {}, name), svg("rect", { width: 24, height: 22, rx: 4 }), svg("text", { x: 12, y: 15 }, text));
    act(element, action);
    group.append(element);
  };
  if (several) {
    button(92, "‹", "the layer before", () => openLayer(stack.members[(at + stack.members.length - 1) % stack.members.length].name, true));
    button(64, "›", "the next layer", () => openLayer(stack.members[(at + 1) % stack.members.length].name, true));
  }
  button(32, "×", "close", () => openLayer(null));
  const inner = svg("g", { transform: `translate(${(w - drawing.width) / 2} ${HEAD + MARGIN})` });
  draw(inner, drawing, member.spots);
  group.append(inner);
  for (const [i, other] of stack.members.entries()) if (i !== at) for (const spot of other.spots) if (!boxes.has(spot)) boxes.set(spot, [group]);
  return group;
}

function act(element, action) {
  element.addEventListener("click", (event) => {
    event.stopPropagation();
    if (!dragged) action();
  });
  element.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    event.stopPropagation();
    action();
  });
}

function openLayer(name, stay = false) {
  const keep = [canvas.scrollLeft, canvas.scrollTop];
  state.open = name;
  showGraph(stages[state.stage]);
  if (stay) [canvas.scrollLeft, canvas.scrollTop] = keep;
  markGraph(true, "graph");
  const target = canvas.querySelector(name === null ? ".box.stack" : ".frame");
  if (target && !stay) {
    canvas.scrollTo(canvas.scrollLeft + middle(target) - middle(canvas), canvas.scrollTop + target.getBoundingClientRect().top - canvas.getBoundingClientRect().top - 24);
  }
  const focus = stay ? canvas.querySelector(".frame .button") : target;
  if (focus && focus.focus) focus.focus({ preventScroll: true });
  writeAddress();
}

/** Light the boxes of the selected line, and the edges of the selected value. A closed layer it is in opens. */
function markGraph(instantly, from) {
  const here = state.line === null ? null : spotOf(state.line, state.value);
  if (here !== null && from !== "graph" && drawnOpen !== null) {
    const homes = Object.values(stages[state.stage].picture.stacks).flatMap((stack) => stack.members).filter((layer) => layer.spots.includes(here));
    if (homes.length && !homes.some((layer) => layer.name === drawnOpen)) {
      state.open = homes[0].name;
      showGraph(stages[state.stage]);
    }
  }
  for (const old of canvas.querySelectorAll(".selected, .user, .lit")) old.classList.remove("selected", "user", "lit");
  if (here === null) return;
  const users = state.value === null ? [] : (parse(stages[state.stage]).uses.get(state.value) || []).map((n) => spotOf(n, state.value));
  for (const spot of users) for (const box of boxes.get(spot) || []) box.classList.add("user");
  for (const box of boxes.get(here) || []) box.classList.add("selected");
  for (const edge of canvas.querySelectorAll(`[data-from="${CSS.escape(here)}"]`)) {
    if (users.some((spot) => String(spot) === edge.dataset.to)) edge.classList.add("lit");
  }
  const target = canvas.querySelector(".box.selected:not(.input):not(.output)") || canvas.querySelector(".selected");
  if (target && from !== "graph") within(canvas, target, instantly);
}

function hoverGraph(key, on) {
  const text = parse(stages[state.stage]);
  for (const n of [text.definition.get(key), ...(text.uses.get(key) || [])]) {
    if (n !== undefined) for (const box of boxes.get(spotOf(n, key)) || []) box.classList.toggle("hover", on);
  }
}

for (const [type, on] of [["mouseover", true], ["mouseout", false]]) {
  canvas.addEventListener(type, (event) => {
    const box = event.target.closest(".box[data-line]");
    if (!box) return;
    const row = linesBox.querySelector(`[data-line="${box.dataset.line}"]`);
    if (row) row.classList.toggle("hover", on);
  });
}

// --- zoom and pan ----------------------------------------------------------------------------------------------------

/** Give the picture its size on screen: its own, or less so that it fits the width. */
function rescale() {
  const image = canvas.firstChild;
  const fit = Math.min(1, Math.max(0.75, (canvas.clientWidth - 2) / image.dataset.width));
  image.setAttribute("width", image.dataset.width * fit * zoom);
  image.setAttribute("height", image.dataset.height * fit * zoom);
}

function zoomTo(value) {
  const before = zoom;
  zoom = Math.min(4, Math.max(0.2, value));
  const [x, y] = [(canvas.scrollLeft + canvas.clientWidth / 2) / before, (canvas.scrollTop + canvas.clientHeight / 2) / before];
  rescale();
  canvas.scrollTo({ left: x * zoom - canvas.clientWidth / 2, top: y * zoom - canvas.clientHeight / 2, behavior: "instant" });
}

document.querySelector("#graph .zoom").addEventListener("click", (event) => {
  const how = event.target.dataset.zoom;
  if (how) zoomTo({ in: zoom * 1.25, out: zoom / 1.25, fit: 1 }[how]);
});
canvas.addEventListener("wheel", (event) => {
  if (!event.ctrlKey && !event.metaKey) return;
  event.preventDefault();
  zoomTo(zoom * Math.exp(-event.deltaY / 300));
}, { passive: false });
canvas.addEventListener("keydown", (event) => {
  const to = { "+": zoom * 1.25, "=": zoom * 1.25, "-": zoom / 1.25, 0: 1 }[event.key];
  if (to && !event.ctrlKey && !event.metaKey) zoomTo(to);
});

let dragged = false;
canvas.addEventListener("pointerdown", (event) => {
  dragged = false;
  if (event.button !== 0 || event.pointerType !== "mouse") return;
  const from = [event.clientX, event.clientY, canvas.scrollLeft, canvas.scrollTop];
  const move = (at) => {
    const [dx, dy] = [at.clientX - from[0], at.clientY - from[1]];
    if (Math.hypot(dx, dy) > 4) dragged = true;
    if (dragged) [canvas.scrollLeft, canvas.scrollTop] = [from[2] - dx, from[3] - dy];
    canvas.classList.toggle("dragging", dragged);
  };
  const end = () => {
    canvas.classList.remove("dragging");
    window.removeEventListener("pointermove", move);
    window.removeEventListener("pointerup", end);
  };
  window.addEventListener("pointermove", move);
  window.addEventListener("pointerup", end);
});
