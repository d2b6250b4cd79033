// --- what goes with every answer: a reason, flags, skipping -----------------------------------------------

const RESERVED = "abcdefghirslvw"; // letters of answers, and keys that mean something else
const SKIP_REASONS = ["I cannot judge this", "The prompt makes no sense", "Harmful or private content", "Something else"];
let flagKeys = {};

// The first free letter of a flag's name is its key: unsafe U, off topic O, personal data P ...
function keysOfFlags(flags) {
  const taken = new Set(RESERVED), keys = {};
  for (const flag of flags) {
    const letter = [...flag.toLowerCase()].find((c) => /[a-z]/.test(c) && !taken.has(c));
    if (letter) { taken.add(letter); keys[letter] = flag; }
  }
  return keys;
}

function drawFlags() {
  const flags = (state.info.settings || {}).flags || [];
  state.flags = new Set([...state.flags].filter((flag) => flags.includes(flag))); // some may be offered no more
  flagKeys = keysOfFlags(flags);
  const keyOf = Object.fromEntries(Object.entries(flagKeys).map(([key, flag]) => [flag, upper(key)]));
  $("rd-flags").hidden = !flags.length;
  $("rd-flags").replaceChildren(el("span", {}, "Flag"), ...flags.map((flag) =>
    button({ class: "rd-flag", "data-flag": flag, "aria-pressed": String(state.flags.has(flag)), onclick: pressed(() => toggleFlag(flag)) }, flag.replaceAll("_", " "), keyOf[flag] ? kbd(keyOf[flag]) : null)));
}

function toggleFlag(flag) {
  if (state.busy || !state.task) return;
  if (!state.flags.delete(flag)) state.flags.add(flag);
  for (const chip of element.querySelectorAll(".rd-flag")) chip.setAttribute("aria-pressed", String(state.flags.has(chip.dataset.flag)));
  changed();
}

function drawSkip() {
  $("rd-skipbox").replaceChildren(el("span", {}, "Why skip?"), ...SKIP_REASONS.map((reason, i) =>
    button({ "data-skip": reason, onclick: () => skipTask(reason) }, reason, kbd(String(i + 1)))));
}
function closeSkip() { $("rd-skipbox").hidden = true; $("rd-skip").setAttribute("aria-expanded", "false"); }
function toggleSkip() {
  if (!state.task || state.correcting) return;
  const opening = $("rd-skipbox").hidden;
  $("rd-skipbox").hidden = !opening;
  $("rd-skip").setAttribute("aria-expanded", String(opening));
  if (opening) { $("rd-skipbox").querySelector("button").focus(); $("rd-skipbox").scrollIntoView({ block: "nearest" }); }
}
function growReason() { const box = $("rd-reason"); box.style.height = "auto"; box.style.height = Math.min(220, box.scrollHeight + 2) + "px"; }

// --- drafts: what is chosen and written is on the server a moment later ------------------------------------

let draftTimer = 0;
const draft = () => ({
  lease: state.task.lease, ...state.kind.given(), reason: $("rd-reason").value, flags: [...state.flags], spent: clock.seconds(),
  ...(state.correcting ? { corrects: state.correcting.version } : {}) });

function changed() {
  $("rd-save").disabled = state.busy || !state.kind.ready();
  say("");
  clearTimeout(draftTimer);
  const lease = state.task.lease;
  draftTimer = setTimeout(() => {
    draftTimer = 0;
    if (state.task && state.task.lease === lease && !state.busy) call("/draft", draft()).catch(() => {});
  }, 500);
}

// What was typed in the last half second survives the page being closed, too.
function flushDraft() {
  if (!draftTimer || !state.task || state.busy) return;
  clearTimeout(draftTimer);
  draftTimer = 0;
  call("/draft", draft(), { keepalive: true }).catch(() => {});
}
