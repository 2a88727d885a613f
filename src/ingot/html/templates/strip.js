// The strip of stages with their receipts, and the totals at the head of the page.

function makeStrip() {
  const list = document.querySelector("#strip ol");
  const most = { ops: Math.max(...stages.map((s) => s.totals.ops), 1), bytes: Math.max(...stages.map((s) => s.totals.bytes), 1) };
  stages.forEach((stage, n) => {
    const before = n ? stages[n - 1].totals : stage.totals;
    const idle = n > 0 && !stage.changes.length;
    const [number, name] = /^\d\d-/.test(stage.name) ? [stage.name.slice(0, 2), stage.name.slice(3)] : ["", stage.name];
    const options = stage.pass.includes("{") ? stage.pass.slice(stage.pass.indexOf("{") + 1, -1) : "";
    const button = make("button", { type: "button", class: idle ? "stage idle" : "stage", "data-stage": n, title: stage.pass || stage.name },
      make("span", { class: "title" }, number ? make("span", { class: "number" }, number) : "", name),
      options ? make("span", { class: "options" }, options) : "");
    if (idle) {
      button.setAttribute("aria-description", "no change");
    } else {
      const { receipt } = stage;
      const facts = make("span", { class: "facts" });
      if (receipt) facts.append(make("span", {}, `${count(receipt.sites)} ${receipt.sites === 1 ? "site" : "sites"}, ${receipt.seconds.toFixed(2)} s`));
      facts.append(make("span", {}, step(before.ops, stage.totals.ops, count), " ops"), make("span", {}, step(before.bytes, stage.totals.bytes, bytes)));
      if (receipt && receipt.error) facts.append(make("span", { class: "error" }, `error ${receipt.error}`));
      button.append(facts);
    }
    if (!idle) button.append(make("span", { class: "meters", "aria-hidden": "true" }, meter(stage.totals.ops / most.ops, "ops"),
      meter(stage.totals.bytes / most.bytes, "bytes")));
    button.addEventListener("click", () => showStage(n));
    const beside = idle && list.lastChild && list.lastChild.className === "idle" && list.lastChild.children.length < 4;
    if (beside) list.lastChild.append(button);
    else list.append(make("li", { class: idle ? "idle" : null }, button));
  });
  list.addEventListener("keydown", (event) => {
    const to = { ArrowRight: state.stage + 1, ArrowLeft: state.stage - 1, Home: 0, End: stages.length - 1 }[event.key];
    if (to === undefined || to < 0 || to >= stages.length) return;
    event.preventDefault();
    showStage(to);
    list.querySelector(`[data-stage="${to}"]`).focus();
  });
  showTotals();
}

function step(before, after, text) {
  return text(before) === text(after) ? text(after) : `${text(before)} → ${text(after)}`;
}

function meter(share, kind) {
  return make("span", { class: `meter ${kind}` }, make("span", { style: `width:${(100 * share).toFixed(1)}%` }));
}

function showTotals() {
  const first = stages[0].totals;
  const last = stages[stages.length - 1].totals;
  const rows = [["ops", step(first.ops, last.ops, count)], ["parameters", step(first.parameters, last.parameters, (n) => (n < 1e6 ? count(n) : `${(n / 1e6).toFixed(1)} M`))],
    ["weights", step(first.bytes, last.bytes, bytes)]];
  const seconds = stages.reduce((sum, stage) => sum + (stage.receipt ? stage.receipt.seconds : 0), 0);
  if (stages.length > 1) rows.push(["passes", `${stages.length - 1} in ${seconds.toFixed(1)} s`]);
  document.getElementById("totals").replaceChildren(...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}

function showStrip() {
  for (const button of document.querySelectorAll("#strip button")) {
    const here = Number(button.dataset.stage) === state.stage;
    button.toggleAttribute("data-here", here);
    if (here) button.setAttribute("aria-current", "step");
    else button.removeAttribute("aria-current");
    if (here) button.closest("ol").scrollLeft += button.getBoundingClientRect().left - innerWidth / 2 + button.offsetWidth / 2;
  }
}
