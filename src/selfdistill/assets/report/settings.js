// The method's parts and the settings, a column for each set of runs that share them.

/** Columns of runs with the same values. */
const alike = (read) => Array.from(d3.group(runs, (run) => JSON.stringify(read(run))), ([, members]) => ({ members, values: read(members[0]) }));

function settingsTable(title, read, id) {
  const columns = alike(read);
  const keys = [...new Set(columns.flatMap((c) => Object.keys(c.values)))];
  const differs = (key) => new Set(columns.map((c) => c.values[key])).size > 1;
  const some = columns.length > 1 && keys.some(differs);
  const body = el("tbody");
  let only = some, asked = "";
  const fill = () => {
    const shown = keys.filter((key) => (!only || differs(key)) && (key + " " + columns.map((c) => c.values[key] ?? "").join(" ")).toLowerCase().includes(asked));
    body.replaceChildren(...shown.map((key) => el("tr", { class: !only && differs(key) ? "differs" : null }, el("th", { scope: "row" }, key), columns.map((c) => el("td", {}, c.values[key] ?? "\u2013")))));
    if (!shown.length) body.append(el("tr", {}, el("td", { class: "empty", colspan: columns.length + 1 }, "Nothing here has these words.")));
  };
  const filter = el("input", { type: "search", placeholder: "name or value \u2026", oninput: () => { asked = filter.value.toLowerCase(); fill(); } });
  const controls = el("div", { class: "controls" },
    some ? toggle("only what differs", only, (on) => { only = on; fill(); }, { id: `${id}-differs` }) : null,
    el("label", { class: "field" }, el("span", {}, "Filter"), filter));
  const names = (c) => [el("b", {}, c.members.length > 3 ? `${count(c.members.length, "run")}` : c.members.map((run) => run.name).join(", "))];
  const table = el("table", { class: "settings" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, title), columns.map((c) => el("th", { scope: "col", title: c.members.map((run) => run.name).join(", ") }, names(c))))), body);
  fill();
  return [controls, el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title }, table)];
}

function settings() {
  const lost = runs.filter((run) => run.parts_note);
  section("settings").append(
    el("h3", {}, "Parts of the method"),
    ...lost.map((run) => note(`The parts of ${run.name} cannot be told: ${run.parts_note}`)),
    ...(lost.length < runs.length ? settingsTable("part", (run) => run.parts, "parts") : []),
    el("h3", {}, "Settings"),
    ...settingsTable("setting", (run) => run.settings, "settings"),
  );
}
