// --- how long a task took -------------------------------------------------------------------------------
// Only the time in which the page is in sight counts. What was spent before a reload comes back with the draft.

const clock = {
  spent: 0, since: null, // milliseconds; `since` is null while the page is hidden
  start(spent_s = 0) { clock.spent = spent_s * 1000; clock.since = document.hidden ? null : performance.now(); },
  seconds() {
    const ms = clock.spent + (clock.since === null ? 0 : performance.now() - clock.since);
    return Math.min(86400, Math.round(ms / 100) / 10);
  },
  turn() {
    if (document.hidden && clock.since !== null) { clock.spent += performance.now() - clock.since; clock.since = null; }
    else if (!document.hidden && clock.since === null) clock.since = performance.now();
  },
};
