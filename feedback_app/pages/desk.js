// The rating desk in the browser. Gradio's HTML component runs this once with `element`.
// Everything that came from a model or a person is put on the page as text, never as markup.
// An answer gets its key when it is first sent; every retry sends the same key, so it is stored once.
const $ = (id) => element.querySelector("#" + id);
const API = "/api/v1/desk";
const root = $("rating-desk");
const radios = [...element.querySelectorAll("[role=radio]")];
const ALONG = [0, 1, 2, 3, 5, 6, 7]; // radios in order of the scale: tie in the middle, "both bad" off it
const KEYS = { 1: 0, 2: 1, 3: 2, 4: 3, 0: 4, 5: 5, 6: 6, 7: 7 };
let desk = null, project = null, task = null, ready = null, fetching = null;
let picked = null, busy = false, shownAt = 0, hiddenFor = 0, hiddenSince = 0, saved = 0, draftTimer = 0, generation = 0;

const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
const number = (n) => n.toLocaleString("en");

async function call(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const reply = await fetch(API + path, { credentials: "same-origin", ...options });
  if (reply.ok) return reply.json();
  const error = new Error("status " + reply.status);
  error.status = reply.status;
  try { error.detail = (await reply.json()).detail; } catch { /* no JSON, the status will do */ }
  throw error;
}

// Repeat until the server has answered: network loss, a restart and a lost session all end well.
async function insist(path, body) {
  for (let attempt = 0; ; attempt++) {
    try { return await call(path, body); } catch (error) {
      if (error.status === 401) say("Logged out. Log in again in another tab, then this goes on by itself.", "bad", "/login");
      else if (error.status && error.status < 500 && error.status !== 429) throw error;
      else say("No connection. Nothing is lost; trying again …", "bad");
      await wait(Math.min(8000, 400 * 2 ** attempt));
    }
  }
}

function say(text, kind = "", link = "") {
  const status = $("rd-status");
  status.replaceChildren(text);
  status.dataset.kind = kind;
  if (link) {
    const anchor = document.createElement("a");
    anchor.href = link; anchor.target = "_blank"; anchor.rel = "noopener"; anchor.textContent = "Log in";
    status.append(" ", anchor);
  }
}

// --- what is on the page ---------------------------------------------------------------------------------

function show(next) {
  task = next;
  hiddenFor = 0; shownAt = performance.now();
  root.dataset.state = task ? "task" : "empty";
  $("rd-loading").hidden = true;
  $("rd-task").hidden = !task;
  $("rd-empty").hidden = !!task;
  if (!task) return empty();
  const turns = task.messages.map((message, index) => turn(message, index === task.messages.length - 1));
  if (task.context) turns.unshift(turn({ role: "context", content: task.context }, false));
  $("rd-prompt").replaceChildren(...turns);
  $("rd-a").textContent = task.sides[0] || "(empty answer)";
  $("rd-b").textContent = task.sides[1] || "(empty answer)";
  for (const side of ["a", "b"]) $("rd-" + side).classList.toggle("rd-blank", !task.sides[side === "a" ? 0 : 1]);
  const draft = task.draft || {};
  $("rd-reason").value = draft.reason || "";
  grow();
  pick(radios.findIndex((r) => r.dataset.choice === draft.choice && (r.dataset.strength || null) === (draft.strength ? String(draft.strength) : null)), false);
  closeSkip();
  simulatedNote();
  for (const card of element.querySelectorAll(".rd-side")) card.scrollTop = 0;
  if (matchMedia("(max-width: 720px)").matches) scrollTo({ top: 0 });
}

function turn(message, last) {
  const block = document.createElement("div");
  block.className = "rd-turn" + (last ? " rd-last" : "");
  block.dataset.role = message.role;
  const who = document.createElement("span");
  who.className = "rd-role";
  who.textContent = { user: last ? "Prompt" : "User", assistant: "Assistant", system: "Instruction", tool: "Tool", context: "Context" }[message.role] || message.role;
  const text = document.createElement("div");
  text.className = "rd-words";
  text.textContent = message.content;
  block.append(who, text);
  return block;
}

function empty() {
  const found = desk.projects.length > 0;
  $("rd-empty-title").textContent = found ? "All done here" : "Nothing to rate yet";
  $("rd-empty-text").textContent = !found
    ? "When somebody adds prompts with two answers, they appear here."
    : saved ? "Thank you. There is nothing left for you in this project; new tasks appear by themselves."
      : "There is nothing for you in this project right now; new tasks appear by themselves.";
  say("");
  const mine = ++generation;
  setTimeout(() => { if (mine === generation && !task) load(); }, 15000);
}

function simulatedNote() {
  const info = desk.projects.find((p) => p.id === project) || {};
  const parts = [];
  if (info.simulated || (task && task.simulated)) parts.push("the prompts and answers of this project come from a made-up world");
  if (desk.me.simulated) parts.push("this account is a simulated rater");
  $("rd-simulated").hidden = !parts.length;
  $("rd-simulated-text").textContent = parts.length ? " " + parts.join("; ") + "." : "";
}

function progress(p) {
  const total = p.mine + p.open;
  $("rd-bar").style.width = (total ? (100 * p.mine) / total : 0) + "%";
  $("rd-count").textContent = `${number(p.mine)} rated · ${number(p.open)} open`;
}

// A little Markdown for the rubric, built as elements: headings, lists, **bold**, *emphasis*.
function rubric(info) {
  $("rd-rubric-title").textContent = info.title || "How to choose";
  const box = $("rd-rubric-text");
  box.replaceChildren();
  let list = null;
  for (const line of (info.text || "").split("\n")) {
    const item = line.match(/^\s*(?:([-*])|(\d+)[.)])\s+(.*)/);
    const kind = item ? (item[1] ? "UL" : "OL") : "";
    if (item) {
      if (!list || list.tagName !== kind) { list = document.createElement(kind); box.append(list); }
      const entry = document.createElement("li");
      inline(entry, item[3]); list.append(entry);
    } else {
      list = null;
      const heading = line.match(/^#+\s+(.*)/);
      if (!line.trim()) continue;
      const block = document.createElement(heading ? "h3" : "p");
      inline(block, heading ? heading[1] : line); box.append(block);
    }
  }
}

function inline(parent, text) {
  for (const part of text.split(/(\*\*[^*]+\*\*|\*[^*]+\*)/)) {
    const strong = part.startsWith("**") && part.length > 4, soft = !strong && part.startsWith("*") && part.length > 2;
    if (!strong && !soft) { parent.append(part); continue; }
    const mark = document.createElement(strong ? "strong" : "em");
    mark.textContent = strong ? part.slice(2, -2) : part.slice(1, -1);
    parent.append(mark);
  }
}

// --- choosing --------------------------------------------------------------------------------------------

function pick(index, byHand = true) {
  picked = index >= 0 ? index : null;
  radios.forEach((radio, i) => {
    radio.setAttribute("aria-checked", String(i === picked));
    radio.tabIndex = i === (picked ?? 0) ? 0 : -1;
  });
  const choice = picked === null ? "" : radios[picked].dataset.choice;
  root.dataset.choice = choice;
  $("rd-save").disabled = picked === null || busy;
  if (byHand) { say(""); keepDraft(); }
}

function keepDraft() {
  clearTimeout(draftTimer);
  const lease = task && task.lease;
  draftTimer = setTimeout(() => {
    if (!task || task.lease !== lease || busy) return;
    call("/draft", { lease, ...answer(), reason: $("rd-reason").value }).catch(() => {});
  }, 600);
}

function answer() {
  if (picked === null) return { choice: null, strength: null };
  const { choice, strength } = radios[picked].dataset;
  return { choice, strength: strength ? Number(strength) : null };
}

// --- saving and the next task ----------------------------------------------------------------------------

async function save() {
  if (!task || picked === null || busy) return;
  setBusy(true);
  say("Saving …");
  const seconds = Math.max(0, (performance.now() - shownAt - hiddenFor) / 1000);
  const body = { lease: task.lease, key: newKey(), ...answer(), reason: $("rd-reason").value, seconds: Math.min(86400, Math.round(seconds * 10) / 10) };
  await settle("/answer", body, (reply) => { saved++; progress(reply.progress); return "Saved"; });
}

async function skipTask(reason) {
  if (!task || busy) return;
  setBusy(true);
  await settle("/skip", { lease: task.lease, key: newKey(), reason }, () => "Skipped");
}

async function settle(path, body, done) {
  clearTimeout(draftTimer);
  try {
    const word = done(await insist(path, body));
    const next = await takeNext();
    setBusy(false);
    show(next);
    if (next) say(word, "good");
  } catch (error) {
    setBusy(false);
    say(`Not saved: ${error.detail && typeof error.detail === "string" ? error.detail : "the server refused it"}`, "bad");
  }
}

function setBusy(value) {
  busy = value;
  root.toggleAttribute("data-busy", value);
  $("rd-save").disabled = value || picked === null;
}

// The next task is leased while this one is read, so that it is there at once.
function prefetch() {
  const holding = task ? [task.lease] : [];
  const mine = generation;
  fetching = call("/next", { project, holding }).then((reply) => { if (mine === generation) ready = reply.task; }).catch(() => {});
}

async function takeNext() {
  const done = task && task.lease;
  await fetching;
  let next = ready; ready = null;
  if (!next || next.lease === done) next = (await insist("/next", { project, holding: [] })).task;
  task = next;
  if (next) prefetch();
  return next;
}

async function load() {
  const mine = ++generation;
  ready = null; fetching = null; task = null;
  const reply = await insist("/next", { project, holding: [] });
  if (mine !== generation) return;
  progress(reply.progress);
  show(reply.task);
  if (reply.task) prefetch();
}

function choose(id) {
  project = id;
  $("rd-project").value = id;
  const info = desk.projects.find((p) => p.id === id);
  rubric(info.rubric || {});
  simulatedNote();
  history.replaceState(null, "", "#" + encodeURIComponent(id));
  load();
}

// --- skip box, theme, keys -------------------------------------------------------------------------------

function closeSkip() { $("rd-skipbox").hidden = true; $("rd-skip").setAttribute("aria-expanded", "false"); }
function toggleSkip() {
  const opening = $("rd-skipbox").hidden;
  $("rd-skipbox").hidden = !opening;
  $("rd-skip").setAttribute("aria-expanded", String(opening));
  if (opening) $("rd-skipbox").querySelector("button").focus();
}
function grow() { const box = $("rd-reason"); box.style.height = "auto"; box.style.height = Math.min(220, box.scrollHeight + 2) + "px"; }
function theme(dark) { document.body.classList.toggle("dark", dark); document.documentElement.style.colorScheme = dark ? "dark" : "light"; }

function onKey(event) {
  if (!element.isConnected) return document.removeEventListener("keydown", onKey);
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.id === "rd-reason") { event.preventDefault(); save(); }
    return;
  }
  const typing = /^(TEXTAREA|INPUT|SELECT)$/.test(event.target.tagName);
  if (event.key === "Escape") {
    if (typing) event.target.blur(); else if (!$("rd-skipbox").hidden) { closeSkip(); $("rd-skip").focus(); }
    return;
  }
  if (typing || event.repeat || busy || !task) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const inSkip = !$("rd-skipbox").hidden && $("rd-skipbox").contains(event.target);
  if (key in KEYS) pick(KEYS[key]);
  else if (key === "ArrowRight" || key === "ArrowLeft") {
    const at = ALONG.indexOf(picked), step = key === "ArrowRight" ? 1 : -1;
    const index = ALONG[at < 0 ? 3 : Math.min(6, Math.max(0, at + step))];
    pick(index);
    if (radios.includes(document.activeElement)) radios[index].focus();
  } else if (key === "Enter" && !inSkip && !event.target.closest("#rd-skip, #rd-theme, summary, a, form")) save();
  else if (key === "s") toggleSkip();
  else if (key === "r") $("rd-reason").focus();
  else return;
  event.preventDefault();
}

async function start() {
  const kept = localStorage.getItem("rd-theme");
  theme(kept ? kept === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  if (matchMedia("(max-width: 1080px)").matches) $("rd-rubric").open = false;
  radios.forEach((radio, index) => radio.addEventListener("click", () => { if (!busy) pick(index); }));
  for (const card of element.querySelectorAll(".rd-side")) {
    card.addEventListener("click", () => {
      if (busy || String(getSelection())) return; // selecting text is not choosing
      const side = card.dataset.side;
      if (!radios[picked] || radios[picked].dataset.choice !== side) pick(radios.findIndex((r) => r.dataset.choice === side && r.dataset.strength === "2"));
    });
  }
  $("rd-save").addEventListener("click", save);
  $("rd-skip").addEventListener("click", toggleSkip);
  $("rd-skipbox").addEventListener("click", (event) => { if (event.target.dataset.skip) skipTask(event.target.dataset.skip); });
  $("rd-reason").addEventListener("input", () => { grow(); keepDraft(); });
  $("rd-project").addEventListener("change", (event) => choose(event.target.value));
  $("rd-theme").addEventListener("click", () => {
    const dark = !document.body.classList.contains("dark");
    localStorage.setItem("rd-theme", dark ? "dark" : "light"); theme(dark);
  });
  document.addEventListener("keydown", onKey);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) hiddenSince = performance.now(); else if (hiddenSince) { hiddenFor += performance.now() - hiddenSince; hiddenSince = 0; }
  });
  desk = await insist("", undefined);
  $("rd-name").textContent = desk.me.name;
  $("rd-project").replaceChildren(...desk.projects.map((p) => new Option(p.title, p.id)));
  root.toggleAttribute("data-one", desk.projects.length < 2);
  setInterval(() => {
    const leases = [task, ready].filter(Boolean).map((t) => t.lease);
    if (leases.length && !document.hidden) call("/heartbeat", { leases }).catch(() => {});
  }, Math.max(1000, desk.lease_s * 333));
  const wanted = decodeURIComponent(location.hash.slice(1));
  const first = desk.projects.find((p) => p.id === wanted) || desk.projects.find((p) => p.open) || desk.projects[0];
  if (first) choose(first.id); else { rubric({}); show(null); }
}
start();
