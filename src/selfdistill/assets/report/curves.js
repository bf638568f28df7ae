// Curves: one panel a metric, a line a run or a line and a band an experiment, and one cursor through all panels.

const SMOOTH = 5;
const shares = (unit) => unit.startsWith("share");
let panels = [];
let cursor = null;

/** A metric of one run as points; null where a step has none. */
const pointsOf = (run, key) => (run.metrics[key] ?? []).map((value, i) => ({ step: run.metrics.step[i], value })).filter((p) => known(p.value));

/** The mean of up to SMOOTH steps around each. */
function smoothed(points) {
  if (!chosen.smooth) return points;
  const half = (SMOOTH - 1) / 2;
  return points.map((p, i) => ({ ...p, value: d3.mean(points.slice(Math.max(0, i - half), i + half + 1), (q) => q.value) }));
}

/** Several runs as one: their mean where they have a step in common, and the range between the lowest and the highest. */
function pooled(members, read) {
  if (members.length === 1) return read(members[0]);
  const bySteps = d3.group(members.flatMap(read), (p) => p.step);
  return d3.sort(Array.from(bySteps, ([step, ps]) => ({ step, value: d3.mean(ps, (p) => p.value), low: d3.min(ps, (p) => p.value), high: d3.max(ps, (p) => p.value) })), (p) => p.step);
}

const pooling = () => (chosen.pooled ?? experiments.some((e) => e.members.length > 1)) && experiments.length < runs.length;
const isHidden = (name) => (chosen.hidden ?? []).includes(name);

/** What the panels draw: name, look and a way to points. */
function sources() {
  const all = pooling()
    ? experiments.map((e) => ({ ...e, label: e.members.length > 1 ? `${e.name} (${count(e.members.length, "seed")})` : e.name, points: (read) => pooled(e.members, read) }))
    : runs.map((run) => ({ ...run, label: run.name, points: (read) => read(run) }));
  return all.map((s) => ({ ...s, hidden: isHidden(s.name) }));
}

function series(spec) {
  return sources().filter((s) => !s.hidden).map((s) => ({ name: s.label, colour: s.colour, dash: s.dash, points: s.points(spec.read) })).filter((s) => s.points.length);
}

function marks(found, spec) {
  const few = spec.dots || found.every((s) => s.points.length < 3);
  return found.flatMap((s) => {
    const banded = s.points.filter((p) => known(p.low));
    const options = { x: "step", y: "value", stroke: s.colour };
    return [
      banded.length > 2 ? Plot.areaY(banded, { x: "step", y1: "low", y2: "high", fill: s.colour, fillOpacity: 0.16, ariaLabel: () => `band of ${s.name}` }) : null,
      banded.length && few && banded.length < 3 ? Plot.ruleX(banded, { x: "step", y1: "low", y2: "high", stroke: s.colour, strokeWidth: 2, strokeOpacity: 0.6, ariaLabel: () => `interval of ${s.name}` }) : null,
      Plot.lineY(s.points, { ...options, strokeWidth: 1.8, strokeDasharray: s.dash, ariaLabel: () => `line of ${s.name}` }),
      few ? Plot.dot(s.points, { x: "step", y: "value", fill: s.colour, r: 3, ariaLabel: () => `points of ${s.name}` }) : null,
    ];
  });
}

/** Says in words what a panel shows, for those who do not see it. */
function told(spec, found) {
  const format = shares(spec.unit) ? (x) => percent(x) : plain;
  const ends = found.map((s) => `${s.name} from ${format(s.points[0].value)} at step ${s.points[0].step} to ${format(s.points.at(-1).value)} at step ${s.points.at(-1).step}`);
  return `${spec.title}, ${spec.unit}: ${ends.join("; ")}. Left and right arrow keys read it step by step.`;
}

/** A figure with its title, plot and readout; draws itself again when told to. */
function panel(spec) {
  const box = el("div", { class: "plot" });
  const readout = el("div", { class: "readout", role: "status" });
  const figure = el("figure", { class: "panel", tabindex: "0", role: "group" }, el("figcaption", {}, el("b", {}, spec.title), el("span", {}, spec.unit)), box, readout);
  const self = { figure, draw, point };
  let found = [], x = null, line = null, steps = [];

  function draw() {
    found = series(spec);
    figure.hidden = !found.length;
    if (!found.length) return;
    steps = [...new Set(found.flatMap((s) => s.points.map((p) => p.step)))].sort(d3.ascending);
    const values = found.flatMap((s) => s.points.flatMap((p) => [p.value, p.low ?? p.value, p.high ?? p.value]));
    const flat = d3.min(values) === d3.max(values);
    const plot = Plot.plot({
      width: Math.max(240, box.clientWidth || 340), height: 210, marginLeft: 46, marginRight: 10, marginTop: 10, marginBottom: 34,
      style: { background: "transparent", color: "inherit", fontSize: "11px", overflow: "visible" },
      x: { label: "step", labelArrow: "none", ticks: d3.ticks(steps[0], steps.at(-1), 5).filter(Number.isInteger), tickFormat: "d", labelAnchor: "center" },
      y: { label: null, nice: true, ticks: 5, grid: true, tickFormat: shares(spec.unit) ? (v) => `${+(100 * v).toPrecision(4)} %` : undefined,
        domain: !flat ? undefined : shares(spec.unit) ? [0, 1] : [values[0] - (Math.abs(values[0]) || 1) / 2, values[0] + (Math.abs(values[0]) || 1) / 2] },
      marks: marks(found, spec),
    });
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", told(spec, found));
    x = plot.scale("x");
    line = plot.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "line"));
    for (const [name, value] of Object.entries({ class: "cursor", y1: 10, y2: 176 })) line.setAttribute(name, value);
    plot.addEventListener("pointermove", (event) => {
      const scale = plot.viewBox.baseVal.width / plot.getBoundingClientRect().width;
      const at = x.invert((event.clientX - plot.getBoundingClientRect().left) * scale);
      move(steps[d3.bisectCenter(steps, at)], self);
    });
    plot.addEventListener("pointerleave", () => move(null, null));
    box.replaceChildren(plot);
    figure.setAttribute("aria-label", told(spec, found));
  }

  function point(step, active) {
    if (!line) return;
    line.style.display = step === null ? "none" : "inline";
    readout.classList.toggle("shown", active && step !== null);
    if (step === null) return;
    line.setAttribute("x1", x.apply(step));
    line.setAttribute("x2", x.apply(step));
    if (!active) return;
    const format = shares(spec.unit) ? (v) => percent(v) : plain;
    const rows = found.map((s) => [s, s.points.find((p) => p.step === step)]).filter(([, p]) => p);
    readout.replaceChildren(el("b", {}, `step ${step}`), ...rows.map(([s, p]) => el("span", {}, swatch(s), `${s.name} `, el("b", {}, format(p.value)),
      known(p.low) ? ` [${format(p.low)}, ${format(p.high)}]` : null)));
    readout.classList.toggle("left", x.apply(step) > box.clientWidth / 2);
  }

  figure.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") return move(null, null);
    if (!by || !steps.length) return;
    event.preventDefault();
    const at = cursor === null ? (by > 0 ? -1 : steps.length) : d3.bisectCenter(steps, cursor);
    move(steps[Math.min(steps.length - 1, Math.max(0, at + by))], self);
  });
  figure.addEventListener("blur", () => move(null, null));
  return self;
}

/** The cursor at a step of all panels; the active one says its values. */
function move(step, active) {
  cursor = step;
  for (const p of panels) p.point(step, p === active);
}

const redraw = () => { cursor = null; panels.forEach((p) => p.draw()); };

/** Which lines are drawn. */
function legend() {
  const chips = el("div", { class: "chips legend", role: "group", "aria-label": "Lines shown" });
  const fill = () => chips.replaceChildren(...sources().map((s) => toggle([swatch(s), s.label], !s.hidden, (on) => {
    chosen.hidden = on ? (chosen.hidden ?? []).filter((name) => name !== s.name) : [...(chosen.hidden ?? []), s.name];
    redraw();
  })));
  fill();
  return [chips, fill];
}

function curves() {
  const accuracy = { title: "accuracy", unit: "share of held-out samples", dots: true, read: (run) => run.accuracy };
  const of = (title, unit, key) => ({ title, unit, read: (run) => smoothed(pointsOf(run, key)) });
  const used = new Set(model.panels.map((p) => p.key));
  const live = (key) => runs.some((run) => (run.metrics[key] ?? []).some((v) => v));
  const specs = [accuracy, ...model.panels.filter((p) => live(p.key)).map((p) => of(p.title, p.unit, p.key))];
  const rest = [...new Set(runs.flatMap((run) => Object.keys(run.metrics)))].filter((key) => key !== "step" && !used.has(key) && !key.startsWith("eval_") && live(key));
  const grid = el("div", { class: "grid" }), more = el("div", { class: "grid" });
  const [chips, fill] = legend();
  const band = el("p", { class: "small" });
  const explain = () => { band.textContent = pooling()
    ? "Lines are means over seeds, bands reach from the lowest seed to the highest. A single run's accuracy has its 95 % interval over problems."
    : "Bars and bands of accuracy are 95 % intervals over problems."; };
  explain();
  const smooth = toggle(`smooth (${SMOOTH} steps)`, Boolean(chosen.smooth), (on) => { chosen.smooth = on; redraw(); }, { id: "smooth" });
  const controls = el("div", { class: "controls" },
    experiments.length < runs.length ? choice("Lines", [[true, "mean over seeds"], [false, "every run"]], pooling(), (on) => { chosen.pooled = on; chosen.hidden = []; fill(); explain(); redraw(); }) : null, smooth);
  const details = el("details", { id: "more", ontoggle: () => {
    if (!details.open || more.childElementCount) return;
    const added = rest.map((key) => panel(of(key, "", key)));
    panels.push(...added);
    more.append(...added.map((p) => p.figure));
    added.forEach((p) => p.draw());
  } }, el("summary", {}, `${count(rest.length, "more metric")}`), more);
  section("curves").append(controls, chips, band, grid, rest.length ? details : "");
  panels = specs.map(panel);
  grid.append(...panels.map((p) => p.figure));
  redraw();
  let width = innerWidth, timer = 0;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; clearTimeout(timer); timer = setTimeout(() => { redraw(); redrawTokens(); gains(); }, 120); } });
}
