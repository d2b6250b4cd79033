// --- the keyboard ------------------------------------------------------------------------------------------------

function drawHelp() {
  const shown = state.task.kind === "demonstration" ? [] : [["Enter", "save"]];
  const more = [["R", "reason"], ["S", "skip"], ["L", "my answers"], ...($("rd-view").hidden ? [] : [["V", "plain text"]])];
  $("rd-help").replaceChildren(...[...state.kind.keys, ...shown, ...more].map((entry) =>
    el("span", {}, ...entry.slice(0, -1).flatMap((key, i) => i ? [el("i", {}, /^\d|^[A-Z]$/.test(key) ? "to" : ""), kbd(key)] : [kbd(key)]), " " + entry.at(-1))));
}

// "1" whether it is typed above the letters, on the number pad, or on a keyboard where it needs Shift.
function nameOf(event) {
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code || "");
  if (/^\d$/.test(event.key)) return event.key;
  if (digit && !event.shiftKey && event.key.length === 1) return digit[1];
  return event.key.length === 1 ? event.key.toLowerCase() : event.key;
}

function onKey(event) {
  if (!element.isConnected) return document.removeEventListener("keydown", onKey);
  const typing = /^(TEXTAREA|INPUT|SELECT)$/.test(event.target.tagName);
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat) { event.preventDefault(); if (state.gold) state.gold(); else save(); }
    return;
  }
  if (event.key === "Escape") return leave(event, typing);
  if (typing || event.repeat || state.busy) return;
  const key = nameOf(event);
  if (use(key, event)) event.preventDefault();
}

function leave(event, typing) {
  if (typing) event.target.blur();
  else if (!$("rd-skipbox").hidden) { closeSkip(); $("rd-skip").focus(); }
  else if (state.correcting) leaveCorrection();
}

// True when the key meant something here.
function use(key, event) {
  // Enter and Space on a button, a link or a summary press it; on a radio Enter saves.
  const control = event.target.closest("button:not([role=radio]), a, summary");
  if (control && control.offsetParent && element.contains(control) && (key === "Enter" || key === " ")) return false;
  if (key === "l") return focusHistory();
  if (key === "v") { if (!$("rd-view").hidden) switchView(); return true; }
  if (state.gold) { if (key === "Enter") state.gold(); return key === "Enter"; }
  if (!state.task) return false;
  if (!$("rd-skipbox").hidden && SKIP_REASONS[Number(key) - 1]) { skipTask(SKIP_REASONS[Number(key) - 1]); return true; }
  const inside = event.target === document.body || element.querySelector(".rd-main").contains(event.target);
  if (!inside && key.startsWith("Arrow")) return false; // the side panel scrolls
  if (state.kind.key(key)) return true;
  if (key === "Enter") save();
  else if (key in flagKeys) toggleFlag(flagKeys[key]);
  else if (key === "s") toggleSkip();
  else if (key === "r") $("rd-reason").focus();
  else return false;
  return true;
}

function focusHistory() {
  $("rd-history").open = true;
  const first = $("rd-history-list").querySelector("button");
  if (first) first.focus(); else $("rd-history").querySelector("summary").focus();
  return true;
}
