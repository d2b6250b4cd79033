// --- asking -------------------------------------------------------------------------------------------------------

function ready() {
  const busy = Boolean(state.busy);
  root.toggleAttribute("data-busy-chat", busy);
  $("ct-send").hidden = busy;
  $("ct-stop").hidden = !busy;
  $("ct-send").disabled = Boolean(state.pair);
  $("ct-text").placeholder = state.pair ? "Choose first" : "Your message";
}

async function ask() {
  const text = $("ct-text").value.trim();
  if (!text || state.busy) return;
  if (state.pair) { say("Choose one of the two answers first.", "bad"); return; }
  $("ct-hello").hidden = true;
  const mine = el("div", { class: "ct-mine" });
  mine.append(visibleText(text));
  $("ct-log").append(mine);
  $("ct-text").value = "";
  fit();
  say("");
  state.busy = new AbortController();
  ready();
  let shown = null;
  try {
    const reply = await call("/ask", { text, talk: state.talk, compare: $("ct-two").checked }, state.busy.signal);
    for await (const event of lines(reply)) {
      const follow = atBottom();
      if (event.start) {
        state.talk = event.start.talk;
        shown = answerCards(event.start.answers);
        $("ct-log").append(shown.box);
      }
      if (event.part) grow(shown.cards[event.part.side], event.part.text);
      if (event.end) end(shown.cards[event.end.side], event.end.tree, event.end.cut);
      if (event.error) throw Object.assign(new Error(event.error), { status: 502, detail: event.error });
      if (event.done) settle(shown, event.done);
      if (follow) toBottom();
    }
  } catch (error) {
    const stopped = error.name === "AbortError";
    if (shown) shown.cards.forEach((one) => { one.card.dataset.stopped = ""; if (!one.text) one.words.textContent = "no answer"; });
    $("ct-text").value = $("ct-text").value || text; // nothing is lost: the question can be sent again
    fit();
    say(stopped ? "Stopped. This question is not part of the conversation; change it or send it again." : `No answer: ${why(error)}. Send it again.`, stopped ? "" : "bad");
    if (error.status === 409 && state.talk && /has ended/.test(error.detail || "")) state.talk = null;
  }
  state.busy = null;
  ready();
  if (!onPhone()) $("ct-text").focus();
}

function settle(shown, done) {
  if (done.choose) { rateTwo(shown.cards, shown.box); $("ct-text").blur(); return; }
  shown.cards.slice(1).forEach((one) => one.card.remove()); // both were the same
  if (shown.cards.length > 1) { shown.box.removeAttribute("data-two"); shown.cards[0].card.querySelector(".ct-letter").remove(); }
  rateOne(shown.cards[0], shown.box);
}

function startAnew() {
  if (state.busy) state.busy.abort();
  Object.assign(state, { talk: null, pair: null, last: null });
  $("ct-log").replaceChildren();
  $("ct-hello").hidden = false;
  say("");
  ready();
  $("ct-text").focus();
}

function fit() {
  const box = $("ct-text");
  box.style.height = "auto";
  box.style.height = box.scrollHeight + 2 + "px";
}

// --- the keyboard -----------------------------------------------------------------------------------------------------

function onKey(event) {
  if (!element.isConnected) return document.removeEventListener("keydown", onKey);
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat) return;
  const typing = /^(TEXTAREA|INPUT|SELECT)$/.test(event.target.tagName) && event.target.type !== "checkbox";
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    if (event.target.id === "ct-text" && event.key === "Enter" && !event.shiftKey) { event.preventDefault(); ask(); }
    return;
  }
  if ((event.key === "Enter" || event.key === " ") && event.target.closest("button, a, label, input")) return;
  const pair = state.pair && { 1: state.pair.a, 2: state.pair.b, 3: state.pair.tie, 0: state.pair.both_bad }[event.key];
  const last = !state.pair && state.last && { g: state.last.good, "+": state.last.good, b: state.last.bad, "-": state.last.bad, c: state.last.correct }[event.key];
  if (pair || last) { event.preventDefault(); (pair || last)(); } else if (event.key === "/") { event.preventDefault(); $("ct-text").focus(); }
}

// --- the beginning ---------------------------------------------------------------------------------------------------------

function remember(name, value) { try { localStorage.setItem("rd-" + name, value); } catch { /* private window */ } }
function recall(name) { try { return localStorage.getItem("rd-" + name); } catch { return null; } }
function theme(dark) { document.body.classList.toggle("dark", dark); }

async function start() {
  const kept = recall("theme");
  theme(kept ? kept === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  $("ct-theme").addEventListener("click", () => {
    const dark = !document.body.classList.contains("dark");
    remember("theme", dark ? "dark" : "light");
    theme(dark);
  });
  $("ct-composer").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  $("ct-stop").addEventListener("click", () => state.busy && state.busy.abort());
  $("ct-new").addEventListener("click", startAnew);
  $("ct-text").addEventListener("input", fit);
  document.addEventListener("keydown", onKey);
  for (let attempt = 0; ; attempt++) {
    try {
      const me = await (await call("")).json();
      $("ct-title").textContent = me.title;
      document.title = me.title;
      $("ct-name").replaceChildren(me.guest ? "" : isolatedText(me.name));
      $("ct-logout").hidden = me.guest;
      $("ct-simulated").hidden = !me.simulated;
      if (!me.multi_turn) $("ct-hello-text").append(" Each question stands alone here.");
      root.dataset.state = me.ready ? "ready" : "waiting";
      if (me.ready) { say(""); break; }
      say(`The model is not there yet: ${me.why}.`, "bad");
    } catch (error) { say(`${why(error)}; trying again …`, "bad"); }
    await wait(Math.min(10000, 1000 * 2 ** attempt));
  }
  if (!onPhone()) $("ct-text").focus();
}
start();
