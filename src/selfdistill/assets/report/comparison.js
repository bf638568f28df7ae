// The comparison: a row a run, sorted by any column and narrowed by words, and the gains with their intervals.

const measured = (which, name) => (run) => run.figures[which]?.[name];
const interval = (pair, format) => (pair ? el("small", { class: "under" }, `[${format(pair[0])}, ${format(pair[1])}]`) : null);
const change = (name, format) => (run) => {
  const [base, trained] = [run.figures.base?.[name], run.figures.trained?.[name]];
  return known(trained) ? [format(trained), el("small", { class: "under" }, `from ${format(base)}`)] : format(base);
};
const latest = (name) => (run) => run.figures.trained?.[name] ?? run.figures.base?.[name];

/** Heading, what it sorts by, what it shows, what it means; text columns sort from a to z first, figures from the highest. */
const COLUMNS = [
  { title: "run", text: true, value: (run) => run.name, show: (run) => [swatch(run), run.name], about: "folder" },
  { title: "gain", value: (run) => run.figures.gain, show: (run) => [el("b", {}, points(run.figures.gain)), interval(run.figures.gain_ci95, points)], about: "points, paired over problems" },
  { title: "base", value: measured("base", "avg_at_k"), show: (run) => [percent(run.figures.base?.avg_at_k), interval(run.figures.base?.ci95, (x) => (100 * x).toFixed(1))], about: "accuracy before training, avg@k with its 95 % interval over problems" },
  { title: "trained", value: measured("trained", "avg_at_k"), show: (run) => [percent(run.figures.trained?.avg_at_k), interval(run.figures.trained?.ci95, (x) => (100 * x).toFixed(1))], about: "accuracy at the last evaluation" },
  { title: "pass@k", value: latest("pass_at_k"), show: change("pass_at_k", (x) => percent(x)), about: "share of problems with a right sample among all k" },
  { title: "truncated", value: latest("truncated"), show: change("truncated", (x) => percent(x)), about: "share of samples cut at the length limit" },
  { title: "tokens", value: latest("mean_length"), show: change("mean_length", (x) => (known(x) ? x.toFixed(1) : "\u2013")), about: "mean length of a sample" },
  { title: "rescued", value: (run) => run.figures.rescued, show: (run) => run.figures.rescued ?? "\u2013", about: "problems that only the trained model solves" },
  { title: "broken", value: (run) => run.figures.broken, show: (run) => run.figures.broken ?? "\u2013", about: "problems that only the base solves" },
  { title: "method", text: true, value: (run) => run.method, show: (run) => run.method, about: "and what sets it apart: see below" },
  { title: "seed", value: (run) => run.seed, show: (run) => run.seed, about: "of the run" },
  { title: "steps", value: (run) => run.steps, show: (run) => (run.finished ? run.steps : `${run.steps} / ${run.planned}`), about: "done" },
  { title: "time", value: (run) => run.figures.seconds, show: (run) => seconds(run.figures.seconds), about: "of training" },
];

const words = (run) => [run.name, run.group, run.task, `seed ${run.seed}`].join(" ").toLowerCase();
const matching = () => { const asked = (chosen.filter ?? "").toLowerCase().split(/\s+/).filter(Boolean); return runs.filter((run) => asked.every((word) => words(run).includes(word))); };

function sorted(found) {
  const { column, down } = chosen.sort ?? { column: "gain", down: true };
  const by = (COLUMNS.find((c) => c.title === column) ?? COLUMNS[0]).value;
  // what has no value stands last either way
  return d3.sort(found, (a, b) => (known(by(a)) ? 0 : 1) - (known(by(b)) ? 0 : 1) || (down ? d3.descending : d3.ascending)(by(a), by(b)) || d3.ascending(a.name, b.name));
}

/** Gains and their intervals, one above the other. */
function gains() {
  const found = sorted(matching()).filter((run) => known(run.figures.gain));
  const box = section("gains");
  if (found.length < 2) { box.replaceChildren(); box.hidden = true; return; }
  box.hidden = false;
  const names = d3.max(found, (run) => run.name.length);
  const plot = Plot.plot({
    width: Math.max(260, box.clientWidth), height: 46 + 22 * found.length, marginLeft: Math.min(170, 14 + 6.4 * names), marginRight: 44, marginTop: 6, marginBottom: 36,
    style: { background: "transparent", color: "inherit", fontSize: "11.5px", overflow: "visible" },
    x: { label: "gain, points, with its 95 % interval", labelAnchor: "center", labelArrow: "none", grid: true, transform: (v) => 100 * v, nice: true },
    y: { label: null, domain: found.map((run) => run.name), tickSize: 0 },
    marks: [
      Plot.ruleX([0], { stroke: "currentColor", strokeOpacity: 0.5 }),
      Plot.ruleY(found, { y: "name", x1: (run) => run.figures.gain_ci95[0], x2: (run) => run.figures.gain_ci95[1], stroke: "colour", strokeWidth: 2.5, ariaLabel: () => "intervals" }),
      Plot.dot(found, { y: "name", x: (run) => run.figures.gain, fill: "colour", r: 4.5, ariaLabel: () => "gains" }),
      Plot.text(found, { y: "name", x: (run) => run.figures.gain_ci95[1], text: (run) => points(run.figures.gain), textAnchor: "start", dx: 8, fill: "currentColor", fontVariant: "tabular-nums" }),
    ],
    color: { type: "identity" },
  });
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", `Gains over the base in points: ${found.map((run) => `${run.name} ${points(run.figures.gain)}`).join(", ")}`);
  box.replaceChildren(plot);
}

function comparison() {
  const body = el("tbody"), counted = el("span", { class: "small", role: "status" });
  const heads = COLUMNS.map((column) => {
    const button = el("button", { type: "button", title: column.about, onclick: () => {
      const now = chosen.sort ?? { column: "gain", down: true };
      chosen.sort = { column: column.title, down: now.column === column.title ? !now.down : !column.text };
      fill();
    } }, column.title);
    return el("th", { scope: "col", class: column.text ? "" : "figure" }, button);
  });
  function fill() {
    const now = chosen.sort ?? { column: "gain", down: true };
    heads.forEach((head, i) => head.setAttribute("aria-sort", COLUMNS[i].title !== now.column ? "none" : now.down ? "descending" : "ascending"));
    const found = sorted(matching());
    counted.textContent = found.length === runs.length ? count(runs.length, "run") : `${found.length} of ${count(runs.length, "run")}`;
    body.replaceChildren(...found.map((run) => el("tr", {}, COLUMNS.map((c, i) => (i ? el("td", { class: c.text ? "" : "figure" }, c.show(run)) : el("th", { scope: "row" }, c.show(run)))))));
    if (!found.length) body.append(el("tr", {}, el("td", { colspan: COLUMNS.length, class: "empty" }, "No run has these words in its name, method, task or seed.")));
    gains();
  }
  const filter = el("input", { type: "search", id: "filter", placeholder: "name, method, task, seed \u2026", value: chosen.filter ?? "", oninput: () => { chosen.filter = filter.value; fill(); } });
  const table = el("table", { class: "comparison" }, el("caption", { class: "hidden" }, "Runs beside each other"), el("thead", {}, el("tr", {}, heads)), body);
  section("comparison").append(
    el("div", { class: "controls" }, el("label", { class: "field" }, el("span", {}, "Filter"), filter), counted),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Comparison table" }, table),
    el("div", { id: "gains", class: "plot" }),
  );
  const unmeasured = runs.filter((run) => !run.figures.trained);
  if (unmeasured.length) section("comparison").append(note(`Not measured after training: ${unmeasured.map((run) => run.name).join(", ")}.`));
  section("comparison").append(...runs.filter((run) => run.figures.unpaired).map((run) => note(`No gain of ${run.name}: ${run.figures.unpaired}.`)));
  fill();
}
