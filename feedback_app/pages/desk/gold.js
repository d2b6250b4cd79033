// --- check items: after the answer the page says what was expected, and why ---------------------------------

function showGold(gold, goOn) {
  const expected = state.kind.describe(gold.expected || {});
  const panel = $("rd-gold");
  panel.dataset.correct = String(gold.correct);
  panel.replaceChildren(
    el("h2", {}, gold.correct ? "That is how we see it too" : "We see this one differently"),
    el("p", {}, gold.correct ? "This task was a check with a known answer." : "This task was a check with a known answer. We expected ", gold.correct ? null : el("b", {}, expected), gold.correct ? null : "."),
    gold.explanation ? el("p", { class: "rd-why" }, gold.explanation) : null,
    button({ class: "rd-save", id: "rd-goon", onclick: () => state.gold && state.gold() }, "Go on", kbd("Enter")));
  panel.hidden = false;
  $("rd-answer").hidden = true;
  state.gold = () => { state.gold = null; goOn(); };
  panel.scrollIntoView({ block: "nearest" });
  $("rd-goon").focus({ preventScroll: true });
}

function hideGold() { state.gold = null; $("rd-gold").hidden = true; $("rd-answer").hidden = false; }
