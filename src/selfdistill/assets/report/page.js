// The page: its head, its theme, and the order in which its parts are drawn.

function intro() {
  const one = runs.length === 1 ? runs[0] : null;
  const best = d3.greatest(runs.filter((run) => known(run.figures.gain)), (run) => run.figures.gain);
  const card = (name, value, more) => el("div", { class: "tile" }, el("span", {}, name), el("b", {}, value), el("small", {}, more));
  const tasks = [...new Set(runs.map((run) => run.task))];
  const state = (run) => (run.finished ? "finished" : `step ${run.steps} of ${run.planned}`);
  const tiles = one
    ? [card("method", one.method, `on ${one.task}, seed ${one.seed}`), card("steps", String(one.steps), state(one)),
      best ? card("gain", `${points(best.figures.gain)} points`, `${percent(best.figures.base.avg)} \u2192 ${percent(best.figures.trained.avg)}, 95 % [${best.figures.gain_ci95.map(points).join(", ")}]`) : null,
      card("training", seconds(one.figures.seconds), "over all steps")]
    : [card("runs", String(runs.length), `${count(experiments.length, "experiment")} on ${tasks.join(", ")}`),
      best ? card("largest gain", `${points(best.figures.gain)} points`, `${best.name}, 95 % [${best.figures.gain_ci95.map(points).join(", ")}]`) : null,
      card("finished", `${runs.filter((run) => run.finished).length} of ${runs.length}`, runs.filter((run) => !run.finished).map((run) => `${run.name}: ${state(run)}`).join(", ") || "all of them"),
      card("training", seconds(d3.sum(runs, (run) => run.figures.seconds)), "together")];
  section("intro").append(el("h1", {}, one ? one.name : count(runs.length, "run")), el("div", { class: "tiles" }, tiles));
  section("foot").append(el("p", {}, `Made by selfdistill ${model.version}, ${model.made}. Figures and intervals are those of selfdistill eval; plots by Observable Plot and D3.`));
}

/** System, light or dark. */
function theme() {
  const button = section("theme"), order = ["system", "light", "dark"];
  const show = () => {
    const now = chosen.theme ?? "system";
    if (now === "system") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.dataset.theme = now;
    button.textContent = { system: "\u25d0 system", light: "\u2600 light", dark: "\u263e dark" }[now];
    button.setAttribute("aria-label", `Colours: ${now}. Changes to ${order[(order.indexOf(now) + 1) % 3]}.`);
  };
  button.addEventListener("click", () => { chosen.theme = order[(order.indexOf(chosen.theme ?? "system") + 1) % 3]; show(); });
  show();
}

/** A page that follows a run loads itself again, unless told to stay. */
function following() {
  if (!model.following) return;
  const every = 10;
  const button = toggle("follow", chosen.follow ?? true, (on) => { chosen.follow = on; }, { id: "follow", title: `Loads the page again every ${every} seconds` });
  section("intro").prepend(el("div", { class: "controls live" }, el("span", { class: "pulse", "aria-hidden": "true" }), el("span", {}, `live, as of ${model.made}`), button));
  if (known(chosen.scroll)) scrollTo(0, chosen.scroll);
  setInterval(() => { if (chosen.follow ?? true) { chosen.scroll = scrollY; location.reload(); } }, 1000 * every);
}

theme();
intro();
comparison();
curves();
tokenView();
settings();
following();
document.documentElement.dataset.ready = String(Math.round(performance.now()));
