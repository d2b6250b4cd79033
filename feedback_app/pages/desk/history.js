// --- my last answers: look at each, and correct it ----------------------------------------------------------

const past = { answers: [], more: false };

async function loadHistory(before) {
  const project = state.project;
  const query = `?project=${encodeURIComponent(project)}` + (before ? `&before=${encodeURIComponent(before)}` : "");
  const reply = await call("/history" + query).catch(() => null);
  if (!reply || project !== state.project) return;
  past.answers = before ? [...past.answers, ...reply.answers] : reply.answers;
  past.more = reply.more;
  drawHistory();
}

function drawHistory() {
  const items = past.answers.map((item) => {
    const said = (KINDS[item.kind] || KINDS.pairwise).describe(item.given);
    const marks = [item.version > 1 ? "corrected" : "", item.given.reason ? "with reason" : "", ...(item.given.flags || []).map((flag) => flag.replaceAll("_", " "))].filter(Boolean).join(" · ");
    return el("li", {}, button({ class: "rd-past", "aria-current": state.correcting && state.correcting.id === item.id ? "true" : null, onclick: pressed(() => openAnswer(item.id)) },
      el("span", { class: "rd-said" }, said), el("time", {}, when(item.at)),
      el("span", { class: "rd-asked" }, item.prompt), marks ? el("span", { class: "rd-marks" }, marks) : null));
  });
  $("rd-history-list").replaceChildren(...items);
  $("rd-history-none").hidden = items.length > 0;
  $("rd-history-more").hidden = !past.more;
}

function when(at) {
  const then = new Date(at * 1000), today = new Date().toDateString() === then.toDateString();
  return today ? then.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }) : then.toLocaleDateString([], { day: "numeric", month: "short" });
}

async function openAnswer(id) {
  if (state.busy || state.gold) return;
  flushDraft();
  setBusy(true);
  try {
    const reply = await call("/history/" + encodeURIComponent(id));
    // The task on the page waits, with what was chosen so far and the time it has taken.
    if (!state.correcting && state.task) state.aside = { task: state.task, given: { ...state.kind.given(), reason: $("rd-reason").value, flags: [...state.flags] }, spent: clock.seconds() };
    setBusy(false);
    show(reply.task, { correcting: { id, version: reply.version }, draft: reply.task.draft || reply.task.given });
    $("rd-banner-text").textContent = `This is what you said${reply.version > 1 ? `, corrected ${reply.version - 1}×` : ""}. Change what you like and save: the old answer is kept as history.`;
    drawHistory();
  } catch (error) {
    setBusy(false);
    say(`Cannot be opened: ${(await refusal(error))[0]}`, "bad");
  }
}

async function leaveCorrection(word = "") {
  if (!state.correcting || state.busy) return;
  flushDraft();
  const waiting = state.aside;
  state.aside = null;
  if (waiting) show(waiting.task, { draft: { ...waiting.given, spent: waiting.spent } });
  else { state.correcting = null; await load(); }
  if (word) say(word, "good");
  drawHistory();
}
