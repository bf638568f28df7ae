// The token view: one rollout at a time, its tokens coloured by what the method makes of them, its prompts and a peer beside it.

const verdict = (r) => (!known(r.reward) ? "\u2013" : r.reward >= 1 ? "\u2713" : r.reward <= 0 ? "\u2717" : plain(r.reward));
const shown = { steps: [], step: null, problem: null, rollout: null, teacher: null, quantity: null };

/** What is chosen, put right where the run, step or rollout does not have it. */
function resolve() {
  const kept = runs.filter((run) => run.tokens.steps.length);
  shown.run = kept.find((run) => run.name === chosen.run) ?? kept[0];
  const view = shown.run.tokens;
  shown.step = view.steps.find((s) => s.step === Number(chosen.step)) ?? view.steps[0];
  shown.problem = shown.step.problems[Number(chosen.problem)] ?? shown.step.problems[0];
  const taught = shown.problem.rollouts.find((r) => Object.keys(r.teachers[0].views).length) ?? shown.problem.rollouts[0];
  shown.rollout = known(chosen.rollout) ? shown.problem.rollouts[chosen.rollout] ?? taught : taught;
  shown.teacher = shown.rollout.teachers[chosen.teacher ?? 0] ?? shown.rollout.teachers[0];
  shown.quantity = view.quantities.find((q) => q.key === chosen.quantity) ?? view.quantities[0] ?? null;
}

/** Chooses again; what lies below a choice starts over. */
function pickToken(change) {
  const below = { run: ["step", "problem", "rollout", "teacher", "peer"], step: ["problem", "rollout", "teacher", "peer"], problem: ["rollout", "teacher", "peer"], rollout: ["teacher", "peer"] };
  for (const name of below[Object.keys(change)[0]] ?? []) chosen[name] = null;
  for (const [name, value] of Object.entries(change)) chosen[name] = value;
  redrawTokens();
}

const visible = (text) => (text === "" ? "\u25ab" : text.replace(/\n/g, "\u21b5\n").replace(/^\t+$/, "\u21e5"));
const reading = (quantity, value) => (!known(value) ? "not read" : `${quantity.signed && value > 0 ? "+" : ""}${plain(value)}${quantity.unit ? ` ${quantity.unit}` : ""}`);

/** Tokens as coloured spans; hover, click and arrow keys say their values. */
function tokenText(rollout, teacher, { from = 0, to = rollout.tokens.length, label, onpoint = () => {}, readout }) {
  const quantity = shown.quantity, values = quantity ? teacher.values[quantity.key] ?? [] : [];
  const read = Object.keys(teacher.values).length > 0;
  const spans = rollout.tokens.slice(from, to).map((text, k) => {
    const value = values[from + k];
    const kind = !known(value) ? (read ? "unread" : "") : !quantity.signed ? "seq" : value < 0 ? "neg" : "pos";
    const strength = known(value) ? Math.round(100 * Math.min(1, Math.abs(value) / quantity.limit)) : 0;
    return el("span", { class: `tok ${kind}`, style: strength ? `--a:${strength}` : null, "data-i": from + k }, visible(text));
  });
  const box = el("div", { class: "tokens", tabindex: "0", role: "group", "aria-label": `${label}, ${count(spans.length, "token")}. Arrow keys go from token to token.` }, spans);
  let now = null;
  const point = (k) => {
    spans[now]?.classList.remove("now");
    now = k;
    readout.classList.toggle("on", k !== null);
    spans[k]?.classList.add("now");
    if (k === null || !spans[k]) return readout.replaceChildren(el("span", { class: "small" }, "Point at a token, or go through them with the arrow keys."));
    const i = from + k;
    readout.replaceChildren(el("span", { class: "word" }, visible(rollout.tokens[i]).trim() || "\u2423"), el("span", { class: "small" }, `${i + 1} of ${rollout.tokens.length}`),
      ...shown.run.tokens.quantities.filter((q) => q.key in teacher.values).map((q) => el("span", { class: q === quantity ? "value chosen" : "value" }, `${q.name} `, el("b", {}, reading(q, teacher.values[q.key][i])))));
    onpoint(i);
  };
  box.addEventListener("pointerover", (event) => { const i = event.target.dataset?.i; if (i !== undefined) point(Number(i) - from); });
  box.addEventListener("click", (event) => { const i = event.target.dataset?.i; if (i !== undefined) point(Number(i) - from); });
  box.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (!step) return;
    event.preventDefault();
    point(Math.max(0, Math.min(spans.length - 1, now === null ? (step > 0 && step < Infinity ? 0 : step > 0 ? spans.length - 1 : 0) : now + step)));
    spans[now].scrollIntoView({ block: "nearest" });
  });
  box.point = point;
  return box;
}

/** What full colour means. */
function scaleOf(quantity) {
  const end = (x) => el("span", {}, x);
  return el("div", { class: "scale" },
    el("span", { class: "about" }, el("b", {}, quantity.name), ` \u2014 ${quantity.about}`),
    el("span", { class: "ramp" }, quantity.signed ? end(`${MINUS}${plain(quantity.limit)}`) : end("0"),
      el("span", { class: quantity.signed ? "bar diverging" : "bar sequential", "aria-hidden": "true" }), end(`${quantity.signed ? "+" : ""}${plain(quantity.limit)}${quantity.unit ? ` ${quantity.unit}` : ""}`)));
}

/** The chosen quantity along the rollout. */
function profile(rollout, teacher, ontoken) {
  const quantity = shown.quantity;
  const values = (teacher.values[quantity?.key] ?? []).map((value, i) => ({ i, value })).filter((p) => known(p.value));
  const box = el("div", { class: "plot profile" });
  box.draw = () => {
    if (!values.length) return;
    const width = Math.max(260, box.clientWidth || 600);
    const plot = Plot.plot({
      width, height: 120, marginLeft: 46, marginRight: 10, marginTop: 8, marginBottom: 30,
      style: { background: "transparent", color: "inherit", fontSize: "11px", overflow: "visible" },
      x: { label: "token", labelAnchor: "center", labelArrow: "none", domain: [-0.5, rollout.length - 0.5], tickFormat: (i) => (Number.isInteger(i) ? i + 1 : ""), ticks: Math.min(10, rollout.length) },
      y: { label: null, grid: true, ticks: 3, nice: true },
      marks: [
        Plot.rectY(values, { x1: (p) => p.i - 0.42, x2: (p) => p.i + 0.42, y: "value", fill: (p) => (quantity.signed ? (p.value < 0 ? "var(--neg-ink)" : "var(--pos-ink)") : "var(--seq-ink)"), ariaLabel: () => `${quantity.name} by token` }),
        Plot.ruleY([0], { stroke: "currentColor", strokeOpacity: 0.4 }),
      ],
      color: { type: "identity" },
    });
    plot.setAttribute("role", "img");
    const highest = d3.greatest(values, (p) => Math.abs(p.value));
    plot.setAttribute("aria-label", `${quantity.name} along the rollout; largest at token ${highest.i + 1}: ${reading(quantity, highest.value)}`);
    const x = plot.scale("x");
    plot.addEventListener("pointermove", (event) => {
      const frame = plot.getBoundingClientRect();
      const i = Math.round(x.invert((event.clientX - frame.left) * plot.viewBox.baseVal.width / frame.width));
      if (i >= 0 && i < rollout.length) ontoken(i);
    });
    box.replaceChildren(plot);
  };
  return box;
}

/** A chat with what its reader has beyond the student marked. */
function chat(messages, student) {
  const own = student?.at(-1)?.content;
  return messages.map((message, i) => el("div", { class: "message" }, el("span", { class: "role" }, message.role),
    el("p", { class: "said" }, own && i === messages.length - 1 ? beyond(message.content, own) : message.content)));
}

/** The text with all marked that is not the student's. */
function beyond(text, own) {
  const extra = (part) => (part.trim() ? el("mark", {}, part) : part);
  const at = text.indexOf(own);
  if (at >= 0) return [extra(text.slice(0, at)), own, extra(text.slice(at + own.length))];
  let same = 0;
  while (same < text.length && text[same] === own[same]) same += 1;
  same = text.lastIndexOf(" ", same) + 1;
  return [text.slice(0, same), extra(text.slice(same))];
}

function prompts(rollout, teacher) {
  const views = Object.entries(teacher.views);
  const weights = { teacher: "the teacher's weights", student: "the student's weights", initial: "the weights of the start" };
  const same = (view) => JSON.stringify(view.messages) === JSON.stringify(rollout.prompt);
  const card = (title, who, body) => el("div", { class: "card prompt" }, el("h4", {}, title, el("span", {}, who)), body);
  return el("div", { class: "pair" },
    card("The student read", "and answered", chat(rollout.prompt)),
    views.length
      ? views.map(([role, view]) => card(role === "teacher" ? "The teacher read" : `\u201c${role}\u201d read`, `by ${weights[view.weights]}${same(view) ? ", the student's own prompt" : ""}`, chat(view.messages, rollout.prompt)))
      : card("No teacher", "", el("p", { class: "empty" }, "Nobody else read this rollout: its credit comes from its reward alone, or it is not trained on.")));
}

/** Another rollout of the problem, level with this one where the two part. */
function beside(rollout, readout) {
  const others = shown.problem.rollouts.map((r, i) => ({ r, i })).filter(({ r }) => r !== rollout);
  if (!others.length) return null;
  const place = known(chosen.peer) ? Number(chosen.peer) : rollout.peer?.place ?? others[0].i;
  const peer = shown.problem.rollouts[place] ?? others[0].r;
  const tag = ({ r, i }) => `${i + 1} ${verdict(r)}${rollout.peer?.shown && rollout.peer.place === i ? " (the teacher read it)" : ""}`;
  const [mine, theirs] = [rollout.ids ?? rollout.tokens, peer.ids ?? peer.tokens];
  let same = 0;
  while (same < Math.min(mine.length, theirs.length) && mine[same] === theirs[same]) same += 1;
  const column = (title, r, teacher) => el("div", { class: "card" }, el("h4", {}, title, el("span", {}, count(r.tokens.length - same, "token"))),
    same < r.tokens.length ? tokenText(r, teacher, { from: same, label: title, readout }) : el("p", { class: "empty" }, "ends here"));
  const alike = same === mine.length && same === theirs.length;
  return el("div", { id: "peer" },
    el("div", { class: "controls" }, el("h3", {}, "Beside a peer"), withId(picker("peer", others.map((o) => [o.i, tag(o)]), place, (i) => pickToken({ peer: i })), "pick-peer")),
    same ? el("div", { class: "card shared" }, el("h4", {}, "Both begin with", el("span", {}, count(same, "token"))), tokenText(rollout, shown.teacher, { to: same, label: "What both begin with", readout })) : null,
    alike ? note("The two are the same tokens throughout.") : el("p", { class: "parting" }, same ? `they part at token ${same + 1}` : "they part at the first token"),
    alike ? null : el("div", { class: "pair" }, column(`This rollout ${verdict(rollout)}`, rollout, shown.teacher), column(`Peer ${shown.problem.rollouts.indexOf(peer) + 1} ${verdict(peer)}`, peer, peer.teachers[0])));
}

function withId(field, id) {
  field.querySelector("select").id = id;
  return field;
}

function chooser() {
  const { run, step, problem, rollout, teacher, quantity } = shown;
  const view = run.tokens, kept = runs.filter((r) => r.tokens.steps.length);
  const fields = [
    kept.length > 1 ? withId(picker("run", kept.map((r) => [r.name, r.name]), run.name, (v) => pickToken({ run: v })), "pick-run") : null,
    withId(picker("step", view.steps.map((s) => [s.step, s.step]), step.step, (v) => pickToken({ step: v })), "pick-step"),
    withId(picker("problem", step.problems.map((p, i) => [i, p.id || `${i + 1}`]), step.problems.indexOf(problem), (v) => pickToken({ problem: v })), "pick-problem"),
    rollout.teachers.length > 1 ? withId(picker("teacher", rollout.teachers.map((t, i) => [i, `${i + 1} of ${rollout.teachers.length}`]), rollout.teachers.indexOf(teacher), (v) => pickToken({ teacher: v })), "pick-teacher") : null,
    quantity ? withId(picker("colour by", view.quantities.map((q) => [q.key, q.name]), quantity.key, (v) => pickToken({ quantity: v })), "pick-quantity") : null,
  ];
  const chips = el("div", { class: "chips", role: "group", "aria-label": "Rollouts of the problem" }, problem.rollouts.map((r, i) =>
    el("button", { type: "button", class: "chip", id: `rollout-${i}`, "aria-pressed": String(r === rollout), title: `rollout ${i + 1}, reward ${plain(r.reward)}, ${count(r.length, "token")}`, onclick: () => pickToken({ rollout: i }) }, `${i + 1} `, el("span", { class: r.reward >= 1 ? "right" : "wrong" }, verdict(r)))));
  return [el("div", { class: "controls" }, fields), chips];
}

/** Which weights the colours come from, and how far these are from those that wrote the rollout. */
function provenance() {
  const { run, step } = shown;
  if (!known(step.weights)) return null;
  const name = (at) => (at ? `the weights after step ${at}` : "the weights the run started from");
  const exact = step.weights === step.step - 1;
  const gap = known(step.gap) ? ` Log-probabilities differ from those of sampling by ${plain(step.gap)} nats a token.` : "";
  return el("p", { class: "small" }, exact ? `Step ${step.step} was written and is read here by ${name(step.weights)}.${gap}`
    : `Step ${step.step} was written by ${name(step.step - 1)}; it is read here by ${name(step.weights)}, the nearest that the run keeps.${gap}`,
    run.tokens.left_out ? ` ${count(run.tokens.left_out, "more problem")} did not fit the page; --steps and --problems choose others.` : "");
}

let redrawTokens = () => {};

function tokenView() {
  const home = section("tokens");
  const stage = el("div");
  home.append(stage);
  const without = runs.filter((run) => !run.tokens.steps.length);
  if (without.length === runs.length) return stage.append(note(runs[0].tokens.note ?? "No rollouts are kept."));
  redrawTokens = () => {
    const focused = document.activeElement?.id;
    resolve();
    const { run, rollout, teacher, quantity, problem } = shown;
    const readout = el("div", { class: "values", role: "status" });
    let text;
    const drawn = profile(rollout, teacher, (i) => text.point(i));
    text = tokenText(rollout, teacher, { label: "The completion", readout });
    const facts = [["reward", plain(rollout.reward)], ["advantage", known(rollout.advantage) ? plain(rollout.advantage) : null], ["tokens", rollout.length], ["gold answer", problem.answer || null],
      ["cut off", rollout.truncated ? "at the length limit" : null], ...Object.entries(rollout.feedback)];
    stage.replaceChildren(
      ...chooser(),
      run.tokens.note ? note(run.tokens.note) : "",
      el("dl", { class: "facts" }, facts.filter(([, value]) => known(value)).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
      prompts(rollout, teacher),
      el("div", { class: "card completion" }, el("h4", {}, "The student wrote", el("span", {}, count(rollout.length, "token"))), quantity ? scaleOf(quantity) : "", text, drawn),
      readout,
      beside(rollout, readout) ?? "",
      provenance() ?? "",
    );
    text.point(null);
    drawn.draw();
    if (focused && stage.querySelector(`#${CSS.escape(focused)}`)) document.getElementById(focused).focus();
  };
  redrawTokens();
  if (without.length) stage.after(note(`No rollouts are kept of ${without.map((run) => run.name).join(", ")}.`));
}
