// --- showing a task ------------------------------------------------------------------------------------------

function show(task, { correcting = null, draft: kept = task && task.draft } = {}) {
  state.task = task; state.correcting = correcting;
  const known = kept || {};
  clock.start(known.spent || 0);
  root.dataset.state = task ? "task" : "empty";
  root.dataset.choice = root.dataset.thumb = "";
  root.dataset.kind = task ? task.kind : "";
  root.dataset.project = state.project || "";
  root.toggleAttribute("data-correcting", Boolean(correcting));
  $("rd-loading").hidden = true;
  $("rd-task").hidden = !task;
  $("rd-empty").hidden = Boolean(task);
  $("rd-banner").hidden = !correcting;
  hideGold(); closeSkip(); simulatedNote(); showView();
  tabs.tell();
  if (!task) return empty();
  state.kind = KINDS[task.kind];
  $("rd-body").replaceChildren(); $("rd-controls").replaceChildren();
  showPrompt(task);
  state.kind.mount($("rd-body"), $("rd-controls"), changed);
  state.kind.put(known);
  state.flags = new Set(known.flags || []);
  drawFlags();
  $("rd-reason").value = known.reason || "";
  growReason();
  $("rd-save").disabled = !state.kind.ready();
  $("rd-save").querySelector("span").textContent = correcting ? "Save the correction" : "Save and next";
  $("rd-save").querySelector("kbd").textContent = task.kind === "demonstration" ? "Ctrl Enter" : "Enter";
  $("rd-skip").hidden = Boolean(correcting);
  drawHelp();
  if (onPhone()) scrollTo({ top: 0 });
}

function empty() {
  const found = state.desk.projects.length > 0;
  $("rd-empty-title").textContent = found ? "All done here" : "Nothing to rate yet";
  $("rd-empty-text").textContent = !found
    ? "When somebody adds prompts and answers, they appear here."
    : state.saved ? "Thank you. There is nothing left for you in this project; new tasks appear by themselves."
      : "There is nothing for you in this project right now; new tasks appear by themselves.";
  say("");
  const mine = ++state.generation;
  setTimeout(() => { if (mine === state.generation && !state.task) load(); }, 15000);
}

function simulatedNote() {
  const parts = [];
  if (state.info.simulated || (state.task && state.task.simulated)) parts.push("the prompts and answers of this project come from a made-up world");
  if (state.desk.me.simulated) parts.push("this account is a simulated rater");
  $("rd-simulated").hidden = !parts.length;
  $("rd-simulated-text").textContent = parts.length ? " " + parts.join("; ") + "." : "";
}

// --- saving and the next task --------------------------------------------------------------------------------

function setBusy(value) {
  state.busy = value;
  root.toggleAttribute("data-busy", value);
  $("rd-save").disabled = value || !state.task || !state.kind.ready();
}

async function save() {
  if (!state.task || state.busy || state.gold || !state.kind.ready()) return;
  const seconds = clock.seconds();
  const body = { lease: state.task.lease, key: newKey(), ...state.kind.given(), reason: $("rd-reason").value, flags: [...state.flags], seconds };
  say("Saving …");
  const reply = await settle("/answer", body);
  if (!reply) return;
  if (state.correcting) { state.correcting.version = reply.version; await leaveCorrection("Correction saved"); loadHistory(); return; }
  state.saved++;
  state.last = seconds;
  progress(reply.progress);
  const word = reply.surplus ? "Saved. Others had filled this task meanwhile; yours is kept too"
    : reply.version > 1 && !reply.repeated ? "Saved as a correction: you had answered this task in another window" : "Saved";
  if (reply.gold) { $("rd-status").textContent = "Saved"; showGold(reply.gold, () => advance("")); }
  else await advance(word);
  loadHistory();
}

async function skipTask(reason) {
  if (!state.task || state.busy || state.correcting) return;
  const note = $("rd-reason").value.trim();
  const body = { lease: state.task.lease, key: newKey(), reason: note ? `${reason}: ${note}`.slice(0, 1000) : reason };
  if (await settle("/skip", body)) await advance("Skipped");
}

// Send it until the server has it. null when the server refused; what is on the page then stays there.
async function settle(path, body) {
  setBusy(true);
  clearTimeout(draftTimer);
  draftTimer = 0;
  try {
    const reply = await insist(path, body);
    setBusy(false);
    return reply;
  } catch (error) {
    const [why, link] = await refusal(error);
    setBusy(false);
    if (error.status === 422) await lookAgain();
    say(`Not saved: ${why}`, "bad", link);
    return null;
  }
}

// The rubric or the flags may have changed under a task that is open: take them over, and keep what was given.
async function lookAgain() {
  const version = state.info.rubric.version, kept = draft();
  await refreshDesk();
  if (state.info.rubric.version !== version) show(state.task, { correcting: state.correcting, draft: kept }); else drawFlags();
}

async function advance(word) {
  setBusy(true);
  try {
    const next = await takeNext();
    setBusy(false);
    show(next);
    if (next) { say(word, "good"); prefetch(); }
  } catch (error) {
    setBusy(false);
    say(`No next task: ${(await refusal(error))[0]}`, "bad");
  }
}

// The next task is leased while this one is read, so that it is there at once.
function prefetch() {
  const mine = state.generation;
  state.fetching = call("/next", { project: state.project, holding: tabs.holding() }).then((reply) => {
    if (mine !== state.generation) return;
    state.ready = reply.task;
    tabs.tell();
    progress(reply.progress);
    if (reply.rubric !== state.info.rubric.version) rubricChanged();
  }).catch(() => {});
}

async function takeNext() {
  const done = state.task && state.task.lease;
  await state.fetching;
  let next = state.ready;
  state.ready = null;
  if (!next || next.lease === done) {
    const reply = await insist("/next", { project: state.project, holding: tabs.holding().filter((lease) => lease !== done) });
    progress(reply.progress);
    next = reply.task;
  }
  return next;
}

async function load() {
  const mine = ++state.generation;
  state.ready = state.fetching = state.task = state.correcting = state.aside = null;
  const reply = await insist("/next", { project: state.project, holding: tabs.holding() });
  if (mine !== state.generation) return;
  progress(reply.progress);
  show(reply.task);
  if (reply.task) prefetch();
}

function choose(id) {
  flushDraft();
  state.project = id;
  $("rd-project").value = id;
  state.info = state.desk.projects.find((p) => p.id === id);
  state.last = null;
  drawRubric();
  history.replaceState(null, "", "#" + encodeURIComponent(id));
  past.answers = []; drawHistory();
  loadHistory();
  load();
}
