// What the other scripts share: the model, elements, numbers as text, colours of runs, and what the reader has chosen.

const model = JSON.parse(document.getElementById("model").textContent);
const runs = model.runs;

/** An element with attributes (onclick and its like are listeners) and children; strings become text, never HTML. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false).map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

const known = (value) => value !== null && value !== undefined;
const MINUS = "\u2212";
const signed = (text) => text.replace("-", MINUS);
const percent = (x, digits = 1) => (known(x) ? signed((100 * x).toFixed(digits)) + "\u2009%" : "\u2013");
const points = (x) => (known(x) ? (x >= 0 ? "+" : MINUS) + Math.abs(100 * x).toFixed(1) : "\u2013");
const plain = (x) => (known(x) ? signed(String(Number(x.toPrecision(3)))) : "\u2013");
const seconds = (x) => (!known(x) ? "\u2013" : x < 120 ? `${x.toFixed(0)}\u2009s` : x < 7200 ? `${(x / 60).toFixed(0)}\u2009min` : `${(x / 3600).toFixed(1)}\u2009h`);
const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

/** Eight colours told apart without red and green, then the same ones dashed. */
const COLOURS = 8;
const DASHES = [null, "6 3", "2 3", "8 3 2 3"];
const look = (i) => ({ colour: `var(--c${i % COLOURS})`, dash: DASHES[Math.floor(i / COLOURS) % DASHES.length] });

/** Runs that differ in nothing but their seed. */
const experiments = Array.from(d3.group(runs, (run) => run.group), ([name, members]) => ({ name, members })).map((e, i) => ({ ...e, ...look(i) }));
// a run has its experiment's colour and a dash of its own; where there is but one experiment, a colour of its own
for (const [e, experiment] of experiments.entries()) experiment.members.forEach((run, i) => Object.assign(run, experiments.length > 1 ? look(e + COLOURS * i) : look(i)));

/** A short line in a run's colour and dash. */
function swatch({ colour, dash }) {
  const box = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [name, value] of Object.entries({ class: "swatch", viewBox: "0 0 18 8", width: 18, height: 8, "aria-hidden": "true" })) box.setAttribute(name, value);
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  for (const [name, value] of Object.entries({ x1: 0, x2: 18, y1: 4, y2: 4, stroke: colour, "stroke-width": 3, "stroke-dasharray": dash ?? "none" })) line.setAttribute(name, value);
  box.append(line);
  return box;
}

/** What the reader chose, kept while the tab is open, so that a page that reloads itself stays where it was. */
const chosen = (() => {
  const key = "selfdistill-report " + runs.map((run) => run.name).join(" ");
  let kept = {};
  try { kept = JSON.parse(sessionStorage.getItem(key)) ?? {}; } catch { /* a browser may refuse storage to files */ }
  return new Proxy(kept, {
    set(target, name, value) {
      target[name] = value;
      try { sessionStorage.setItem(key, JSON.stringify(target)); } catch { /* as above */ }
      return true;
    },
  });
})();

/** A labelled <select> of [value, text] pairs. */
function picker(label, options, value, onpick) {
  const select = el("select", { onchange: () => onpick(select.value) }, options.map(([v, text]) => el("option", { value: v, selected: String(v) === String(value) }, text)));
  return el("label", { class: "field" }, el("span", {}, label), select);
}

/** A button that is on or off. */
function toggle(label, on, onpress, attributes = {}) {
  const button = el("button", { type: "button", class: "chip", "aria-pressed": String(on), ...attributes, onclick: () => {
    const now = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(now));
    onpress(now);
  } }, label);
  return button;
}

/** One of several, as a group of buttons. */
function choice(label, options, value, onpick) {
  const group = el("div", { class: "choice", role: "group", "aria-label": label });
  group.append(...options.map(([v, text]) => el("button", { type: "button", "aria-pressed": String(v === value), onclick: (event) => {
    for (const other of group.children) other.setAttribute("aria-pressed", String(other === event.currentTarget));
    onpick(v);
  } }, text)));
  return group;
}

const note = (...text) => el("p", { class: "note" }, ...text);
const section = (name) => document.getElementById(name);
