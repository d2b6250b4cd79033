// --- answers on the page, and what can be said about them ----------------------------------------------------

// The cards of one question: `grow` while text comes, `end` with what render.js makes of it.
function answerCards(names) {
  const two = names.length > 1;
  const cards = names.map((name, side) => {
    const words = el("div", { class: "ct-raw" }, el("span", { class: "ct-wait", "aria-label": "being written" }, el("i"), el("i"), el("i")));
    const card = el("article", { class: "ct-answer", "aria-label": two ? `Answer ${"AB"[side]}` : "Answer" },
      two ? el("span", { class: "ct-letter", "aria-hidden": "true" }, "AB"[side]) : null, words);
    return { name, card, words, text: "" };
  });
  const box = el("div", { class: "ct-answers", "data-two": two }, ...cards.map((one) => one.card));
  return { box, cards };
}

function grow(one, text) {
  one.text += text;
  one.words.className = "ct-raw";
  one.words.replaceChildren(visibleText(one.text));
}

function end(one, tree, cut) {
  one.text = one.text.trim();
  one.words.className = one.text ? "rt" : "ct-none";
  one.words.replaceChildren(one.text ? renderTree(tree) : "The answer is empty.");
  if (cut) one.card.append(el("span", { class: "ct-cut" }, "cut at the length limit"));
}

// Good, bad, or what it should have been.
function rateOne(one, box) {
  const status = el("span", { role: "status" });
  const up = button({ class: "ct-act", "aria-pressed": "false", onclick: () => thumb("up") }, el("span", { "aria-hidden": "true" }, "✓"), "Good", kbd("G"));
  const down = button({ class: "ct-act", "aria-pressed": "false", onclick: () => thumb("down") }, el("span", { "aria-hidden": "true" }, "✕"), "Bad", kbd("B"));
  const correct = button({ class: "ct-act", onclick: () => edit() }, el("span", { "aria-hidden": "true" }, "✎"), "Correct", kbd("C"));
  const after = el("div", { class: "ct-after", role: "group", "aria-label": "What do you think of this answer?" }, up, down, correct, status);
  let asked = null;

  async function thumb(value, reason = "") {
    try {
      status.className = "";
      status.textContent = "saving …";
      await keep("/thumb", { answer: one.name, thumb: value, reason });
    } catch (error) { status.textContent = why(error); return; }
    up.setAttribute("aria-pressed", String(value === "up"));
    down.setAttribute("aria-pressed", String(value === "down"));
    saved();
    if (asked) { asked.remove(); asked = null; }
    if (value === "down" && !reason) askWhy();
  }
  function askWhy() {
    const text = el("textarea", { rows: "1", maxlength: "10000", "aria-label": "What is wrong with it?", placeholder: "What is wrong with it? (optional)" });
    asked = el("form", { class: "ct-why", onsubmit: (event) => { event.preventDefault(); if (text.value.trim()) thumb("down", text.value.trim()); } },
      text, el("button", { class: "rd-save ct-small", type: "submit" }, "Add"));
    text.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); asked.requestSubmit(); } });
    after.append(asked);
  }
  function edit() {
    const text = el("textarea", { rows: String(Math.min(16, 2 + one.text.split("\n").length + (one.text.length / 90 | 0))), maxlength: "100000", "aria-label": "The answer as it should have been" });
    text.value = one.text;
    const form = el("form", { class: "ct-edit", onsubmit: save }, text,
      el("div", { class: "ct-row" }, el("span", { role: "status" }), button({ class: "rd-quiet", onclick: leave }, "Cancel"),
        el("button", { class: "rd-save ct-small", type: "submit" }, el("span", {}, "Save correction"), kbd("Ctrl+Enter"))));
    const note = form.querySelector("[role=status]");
    text.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); leave(); }
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); form.requestSubmit(); }
    });
    one.words.hidden = true;
    one.card.append(form);
    after.hidden = true;
    text.focus();

    function leave() { form.remove(); one.words.hidden = false; after.hidden = false; correct.focus(); }
    async function save(event) {
      event.preventDefault();
      note.textContent = "saving …";
      try {
        const kept = await keep("/correct", { answer: one.name, text: text.value });
        one.text = text.value.trim();
        end(one, kept.tree, false);
        one.card.querySelectorAll(".ct-cut").forEach((old) => old.remove());
        leave();
        saved("Correction saved");
      } catch (error) { note.textContent = why(error); }
    }
  }
  function saved(text = "Saved") {
    status.className = "ct-saved";
    status.textContent = text;
    say("");
  }
  box.append(after);
  state.last = { good: () => thumb("up"), bad: () => thumb("down"), correct: edit };
}

// Which of two is better. The conversation goes on with it.
function rateTwo(cards, box) {
  const choose = (choice) => async () => {
    if (state.pair !== pair) return;
    const note = panel.querySelector("[role=status]");
    note.textContent = "saving …";
    try {
      const kept = await keep("/choose", { answers: cards.map((one) => one.name), choice });
      state.pair = null;
      const on = cards.find((one) => one.name === kept.goes_on_with);
      if (choice === "a" || choice === "b") cards.forEach((one) => { one.card.dataset.chosen = one === on ? "yes" : "no"; });
      panel.remove();
      if (kept.saved) {
        box.append(el("div", { class: "ct-after" }, el("span", { class: "ct-saved", role: "status" }, "Saved"),
          choice === "a" || choice === "b" ? null : "The conversation goes on with answer A."));
        state.last = null;
      } else rateOne(on, box);
      ready();
      $("ct-text").focus();
    } catch (error) { note.textContent = why(error); }
  };
  const pair = { a: choose("a"), b: choose("b"), tie: choose("tie"), both_bad: choose("both_bad"), none: choose("none") };
  const panel = el("div", { class: "ct-choice", role: "group", "aria-label": "Which answer is better?" },
    el("p", {}, "Which answer is better?"),
    button({ onclick: pair.a }, "A", kbd("1")), button({ onclick: pair.b }, "B", kbd("2")),
    button({ onclick: pair.tie }, "Equally good", kbd("3")), button({ onclick: pair.both_bad }, "Both bad", kbd("0")),
    el("span", { role: "status" }),
    button({ class: "ct-later", onclick: pair.none }, "Go on without choosing"));
  box.append(panel);
  state.pair = pair;
}
