// The leads' pages in the browser. Gradio's HTML component runs this once with `element`.
const $ = (id) => element.querySelector("#" + id);
const API = "/api/v1/lead";
const root = $("lead-desk"), main = $("ld-main");
const DASHBOARDS = ["overview", "annotators", "queue", "models", "drift"];
const PAGES = { disputes: showDisputes, gold: showGold, settings: showSettings, members: showMembers };
const WIDE = new Set(["annotators", "leases", "agreement_by_week", "win_rates", "win_matrix", "queue", "throughput_hours"]);
const REFRESH_MS = 60000;
let lead = null, project = null, page = "overview", turn = 0, drawn = [];

const newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");

async function call(path, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  let reply;
  try { reply = await fetch(API + path, { credentials: "same-origin", ...options }); } catch { throw new Error("No connection; try again."); }
  if (reply.ok) return reply.json();
  let detail = "";
  try { detail = (await reply.json()).detail; } catch { /* no JSON, the status will do */ }
  if (Array.isArray(detail)) detail = detail.map((d) => `${(d.loc || []).slice(1).join(".")}: ${d.msg}`).join("; ");
  throw new Error(reply.status === 401 ? "Logged out. Log in again in another tab, then try again." : detail || `The server answered ${reply.status}.`);
}
const here = (path) => `${path}${path.includes("?") ? "&" : "?"}project=${encodeURIComponent(project)}`;
function complain(error) { const alert = $("ld-alert"); alert.textContent = error.message[0].toUpperCase() + error.message.slice(1); alert.hidden = false; alert.scrollIntoView({ block: "nearest" }); }

// --- panels ------------------------------------------------------------------------------------------------------

function tiles(list) {
  return html("div", { class: "ld-tiles" }, ...list.map((t) => html("div", { class: "ld-tile" }, html("span", {}, t.label), html("b", {}, shown(t.value, t.kind)), html("small", {}, t.note))));
}

function panelView(panel) {
  const wide = WIDE.has(panel.name);
  const head = html("div", { class: "ld-head" }, html("h2", {}, panel.title),
    panel.rows.length ? html("a", { class: "ld-csv", href: `${API}/${encodeURIComponent(project)}/${panel.name}.csv`, download: `${panel.name}.csv` }, "CSV") : null);
  const box = html("section", { class: "ld-panel" + (wide ? " ld-wide" : ""), "data-panel": panel.name }, head);
  if (!panel.rows.length) { box.append(html("p", { class: "ld-empty" }, panel.empty)); return box; }
  if (panel.chart) {
    const plot = html("div", { class: "ld-plot" });
    box.append(plot);
    drawn.push({ plot, panel });
  }
  if (panel.note) box.append(html("p", { class: "ld-note" }, panel.note));
  if (panel.chart) {
    const open = panel.name === "annotators";
    box.append(html("details", { class: "ld-more", open }, html("summary", {}, "Table"), table(panel)));
  } else box.append(table(panel));
  return box;
}

function draw({ plot, panel }) {
  const width = Math.floor(plot.clientWidth);
  if (width < 40 || plot.dataset.width === String(width)) return;
  plot.dataset.width = width;
  plot.replaceChildren(...CHARTS[panel.chart.kind](panel, width));
}
new ResizeObserver(() => drawn.forEach(draw)).observe(main);

function table(panel, sorted = null, down = true) {
  const isNumber = (column) => !["text", "flag"].includes(column.kind);
  const rows = sorted === null ? panel.rows : [...panel.rows].sort((a, b) => {
    const [x, y] = [a[sorted], b[sorted]];
    if (x === y) return 0;
    if (x === null || x === undefined || x === "") return 1;
    if (y === null || y === undefined || y === "") return -1;
    return (x < y ? -1 : 1) * (down ? -1 : 1);
  });
  const columns = panel.columns.filter((c) => !(panel.action && c.key === "lease"));
  const heads = columns.map((c) => html("th", { scope: "col", class: isNumber(c) ? "ld-number" : "", title: c.help, "aria-sort": sorted === c.key ? (down ? "descending" : "ascending") : "none" },
    html("button", { type: "button", onclick: () => { const old = box.isConnected ? box : null; const next = table(panel, c.key, sorted === c.key ? !down : isNumber(c)); if (old) old.replaceWith(next); } }, c.label)));
  if (panel.action) heads.push(html("th", {}, html("span", { class: "rd-sr" }, panel.action)));
  const body = rows.map((row) => html("tr", {}, ...columns.map((c) => cell(row, c, isNumber(c))), panel.action ? html("td", { class: "ld-number" }, html("button", { type: "button", class: "ld-button ld-small-button", onclick: () => act(panel.action, row) }, "Release")) : null));
  const box = html("div", { class: "ld-scroll" }, html("table", {}, html("thead", {}, html("tr", {}, ...heads)), html("tbody", {}, ...body)));
  return box;
}
function cell(row, column, number) {
  const box = html("td", { class: number ? "ld-number" : column.key === "note" ? "ld-wrap ld-warn" : "" }, column.key === "note" ? row[column.key] : shown(row[column.key], column.kind));
  const low = row[column.key + "_low"];
  if (column.ranged && low !== null && low !== undefined) box.append(" ", html("small", {}, `${shown(low, column.kind)}–${shown(row[column.key + "_high"], column.kind)}`.replaceAll(" %–", "–")));
  return box;
}
async function act(action, row) {
  try { await call("/" + action, { lease: row.lease }); await load(); } catch (error) { complain(error); }
}

async function showDashboard(mine) {
  const view = await call(here("/view/" + page));
  if (mine !== turn) return;
  const wasOpen = new Map([...main.querySelectorAll("[data-panel]")].map((p) => [p.dataset.panel, p.querySelector("details")?.open]));
  drawn = [];
  main.replaceChildren(...(view.tiles.length ? [tiles(view.tiles)] : []), ...view.panels.map(panelView));
  for (const [name, open] of wasOpen) { const found = main.querySelector(`[data-panel="${name}"] details`); if (found) found.open = open; }
  drawn.forEach(draw);
}

// --- disputes and gold -------------------------------------------------------------------------------------------

async function showDisputes(mine) {
  const found = await call(here("/disputes"));
  if (mine !== turn) return;
  count(found.number);
  const cases = found.cases;
  const next = () => {
    const item = cases.shift();
    if (!item) { if (found.number) load(); else main.replaceChildren(panelView({ name: "disputes", title: "Disputes", rows: [], empty: "Nobody contradicts anybody. When people do, or a reward model does, the task comes here." })); return; }
    const reason = html("textarea", { rows: 2, maxlength: 10000, placeholder: "Why? People learn from it (optional)" }), key = newKey(), since = performance.now();
    const take = async (answer) => {
      try { await call("/decide", { task: item.task, key, reason: reason.value, seconds: Math.min(86400, (performance.now() - since) / 1000), ...answer }); } catch (error) { complain(error); return; }
      found.number--; count(found.number); next(); scrollTo({ top: 0 });
    };
    main.replaceChildren(
      html("section", { class: "ld-panel ld-wide" }, html("div", { class: "ld-head" }, html("h2", {}, `${shown(found.number, "count")} open ${found.number === 1 ? "dispute" : "disputes"}`), html("button", { type: "button", class: "ld-button ld-small-button", onclick: next }, "Later")),
        html("p", { class: "ld-note" }, "Your decision stands in exports in place of what people said; their answers stay and still count in agreement. Who wrote the answers is not shown.")),
      caseView(item, html("div", { class: "ld-panel" }, html("div", { class: "ld-head" }, html("h2", {}, "What people said")), html("div", { class: "ld-plot" }, answersOf(item, "This one is right", take)),
        field("reason", "Your decision", reason), choices(item, take))));
  };
  next();
}
function count(number) { const badge = $("ld-disputes"); badge.hidden = !number; badge.textContent = number; }

async function showGold(mine) {
  const found = await call(here("/gold"));
  if (mine !== turn) return;
  const rows = found.items.map((item) => html("tr", {}, html("td", { class: "ld-wrap" }, item.prompt, item.explanation ? html("div", {}, html("small", {}, item.explanation)) : null), html("td", {}, item.kind), html("td", { class: "ld-number" }, shown(item.answers, "count")),
    html("td", { class: "ld-number" }, item.answers ? shown(item.correct / item.answers, "share") : "–"), html("td", { class: "ld-number" }, item.retired ? html("small", {}, "retired") : html("button", { type: "button", class: "ld-button ld-small-button", onclick: () => retire(item) }, "Retire"))));
  const retire = async (item) => { try { await call("/gold/retire", { task: item.task, reopen: true }); await load(); } catch (error) { complain(error); } };
  const list = html("section", { class: "ld-panel ld-wide" }, html("div", { class: "ld-head" }, html("h2", {}, "Gold items")),
    rows.length ? html("div", { class: "ld-scroll" }, html("table", {}, html("thead", {}, html("tr", {}, ...["prompt", "kind", "first answers", "right", ""].map((t, i) => html("th", { class: i > 1 ? "ld-number" : "" }, t)))), html("tbody", {}, ...rows)))
      : html("p", { class: "ld-empty" }, "No gold items yet. Take one of the tasks below, then set the share of gold in Settings."),
    html("p", { class: "ld-note" }, "Gold items are mixed in at the rate in Settings. Retiring one puts its task back into the queue. An item that good people miss is a bad item."));
  main.replaceChildren(list, ...candidates(found.candidates));
}
function candidates(cases) {
  const box = html("div", { class: "ld-wide" });
  const next = (index) => {
    const item = cases[index];
    if (!item) { box.replaceChildren(html("section", { class: "ld-panel" }, html("p", { class: "ld-empty" }, cases.length ? "These were all candidates for now." : "No candidates: tasks that several people answered alike, and disputes that were decided, come here."))); return; }
    const why = html("textarea", { rows: 2, maxlength: 10000, placeholder: "Why this is the right answer; shown to people after theirs" });
    const take = async (answer) => {
      delete answer.strength;
      try { await call("/gold", { task: item.task, explanation: why.value, ...answer }); } catch (error) { complain(error); return; }
      await load();
    };
    box.replaceChildren(html("section", { class: "ld-panel" }, html("div", { class: "ld-head" }, html("h2", {}, `Candidate ${index + 1} of ${cases.length}`), html("button", { type: "button", class: "ld-button ld-small-button", onclick: () => next(index + 1) }, "Next candidate"))), html("br"),
      caseView(item, html("div", { class: "ld-panel" }, html("div", { class: "ld-head" }, html("h2", {}, "Make it gold: the expected answer")), html("div", { class: "ld-plot" }, answersOf(item, "Expect this", take)), field("why", "Explanation", why), choices(item, take, false))));
  };
  next(0);
  return [box];
}

// --- settings and members ----------------------------------------------------------------------------------------

async function showSettings(mine) {
  const found = await call(here("/settings"));
  if (mine !== turn) return;
  const info = lead.projects.find((p) => p.id === project) || {};
  const save = async (changes) => { if (!Object.keys(changes).length) return "Nothing changed"; Object.assign(found.settings, (await call("/settings", { project, changes })).settings); $("ld-alert").hidden = true; return "Saved"; };
  const form = settingsForm(found.settings, save);
  const rubric = rubricForm(found.rubrics, async (body) => { const made = await call("/rubric", { project, ...body }); await load(); return `Saved as version ${made.version}`; });
  const archive = html("section", { class: "ld-panel ld-wide" }, html("div", { class: "ld-head" }, html("h2", {}, info.archived ? "This project is archived" : "Archive this project")), html("p", { class: "ld-note" }, "An archived project is not offered on the desk. Everything in it stays."),
    saidButton(info.archived ? "Put it back" : "Archive", async () => { await call("/archive", { project, archived: !info.archived }); await start(); return "Done"; }));
  main.replaceChildren(form, rubric, archive);
}

async function showMembers(mine) {
  const found = await call(here("/members"));
  if (mine !== turn) return;
  const rows = found.people.map((person) => {
    const box = html("input", { type: "checkbox", checked: person.member, "aria-label": `${person.name} is a member` });
    box.addEventListener("change", async () => { try { await call("/member", { project, person: person.id, member: box.checked }); } catch (error) { box.checked = !box.checked; complain(error); } });
    const notes = [person.simulated && "simulated", person.disabled && "disabled"].filter(Boolean).join(", ");
    return html("tr", {}, html("td", {}, box), html("td", {}, person.name, notes ? html("small", {}, ` ${notes}`) : null), html("td", {}, person.role), html("td", { class: "ld-number" }, shown(person.answers, "count")), html("td", { class: "ld-number" }, shown(person.last_at, "time")));
  });
  main.replaceChildren(html("section", { class: "ld-panel ld-wide" }, html("div", { class: "ld-head" }, html("h2", {}, "Members")),
    html("p", { class: "ld-note" }, found.members_only ? "Only members may rate here; leads and administrators always may." : "Everybody may rate here. Switch on “Members only” in Settings to keep it to those chosen here."),
    html("div", { class: "ld-scroll" }, html("table", {}, html("thead", {}, html("tr", {}, ...["member", "name", "role", "answers here", "last answer"].map((t, i) => html("th", { class: i > 2 ? "ld-number" : "" }, t)))), html("tbody", {}, ...rows))),
    html("p", { class: "ld-note" }, "New accounts are made with: rlhf users add NAME")));
}

// --- where we are ------------------------------------------------------------------------------------------------

async function load() {
  const mine = ++turn;
  if (project === null) { main.replaceChildren(panelView({ name: "none", title: "No project yet", rows: [], empty: "When somebody imports or samples prompts, their project appears here." })); return; }
  main.toggleAttribute("data-busy", true);
  try {
    await (PAGES[page] || showDashboard)(mine);
    if (mine === turn) { $("ld-alert").hidden = true; root.dataset.state = "ready"; root.dataset.page = page; $("ld-as-of").textContent = `as of ${new Date().toLocaleTimeString("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" })}`; }
  } catch (error) { if (mine === turn) { complain(error); root.dataset.state = "failed"; } }
  if (mine === turn) main.toggleAttribute("data-busy", false);
}
function go() {
  const name = location.hash.slice(1);
  page = DASHBOARDS.includes(name) || PAGES[name] ? name : "overview";
  for (const tab of $("ld-tabs").children) tab.toggleAttribute("aria-current", false) || (tab.hash === "#" + page && (tab.setAttribute("aria-current", "page"), tab.scrollIntoView({ block: "nearest", inline: "nearest" })));
  root.dataset.state = "loading"; main.replaceChildren(); drawn = [];
  load();
}
async function start() {
  try { lead = await call(""); } catch (error) { complain(error); root.dataset.state = "failed"; return; }
  $("ld-name").textContent = lead.me.name;
  const known = lead.projects.map((p) => p.id);
  if (!known.includes(project)) project = known.includes(localStorage.getItem("rd-lead-project")) ? localStorage.getItem("rd-lead-project") : known[0] ?? null;
  $("ld-project").replaceChildren(...lead.projects.map((p) => { const option = html("option", {}, p.title + (p.archived ? " (archived)" : p.purpose === "evaluate" ? " (evaluation)" : "")); option.value = p.id; option.selected = p.id === project; return option; }));
  count(lead.projects.find((p) => p.id === project)?.disputes || 0);
  go();
}
$("ld-project").addEventListener("change", (event) => { project = event.target.value; localStorage.setItem("rd-lead-project", project); count(lead.projects.find((p) => p.id === project).disputes); go(); });
function theme(dark) { document.body.classList.toggle("dark", dark); document.documentElement.style.colorScheme = dark ? "dark" : "light"; }
const kept = localStorage.getItem("rd-theme");
theme(kept ? kept === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
$("ld-theme").addEventListener("click", () => { const dark = !document.body.classList.contains("dark"); localStorage.setItem("rd-theme", dark ? "dark" : "light"); theme(dark); });
addEventListener("hashchange", go);
setInterval(() => { if (!document.hidden && DASHBOARDS.includes(page) && root.dataset.state === "ready") load(); }, REFRESH_MS);
start();
