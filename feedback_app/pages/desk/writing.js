// --- writing: the ideal answer, from nothing or from a given one ------------------------------------------

KINDS.demonstration = (() => {
  let box, counter, original = "", changed = () => {};

  function count() {
    const words = (box.value.match(/\S+/g) || []).length;
    const edited = original && box.value.trim() === original.trim() ? " · unchanged" : "";
    counter.textContent = `${number(words)} ${words === 1 ? "word" : "words"}${edited}`;
    box.style.height = "auto";
    box.style.height = Math.max(180, box.scrollHeight + 2) + "px";
  }
  function reset(text) { box.value = text; count(); changed(); box.focus(); }
  return {
    keys: [["W", "write"], ["Esc", "leave the text"], ["Ctrl", "Enter", "save"]],
    mount(body, controls, onChange) {
      changed = onChange;
      original = state.task.sides[0] || "";
      const given = state.task.sides.length ? el("details", { class: "rd-given" }, el("summary", {}, "The answer you start from"),
        setWords(el("div", { class: "rd-text" }), original, (state.task.trees || [])[0], "(empty answer)")) : null;
      counter = el("span", { class: "rd-counter" });
      box = el("textarea", { id: "rd-written", class: "rd-written", maxlength: "100000", rows: "8", "aria-label": "Your answer", spellcheck: "true",
        placeholder: "Write the answer that you would like to receive …", oninput: () => { count(); changed(); } });
      const again = original ? button({ class: "rd-quiet", onclick: pressed(() => reset(original)) }, "Start again") : null;
      const clear = original ? button({ class: "rd-quiet", onclick: pressed(() => reset("")) }, "Write from nothing") : null;
      body.append(el("div", { class: "rd-sheet" },
        el("div", { class: "rd-sheethead" }, el("h2", {}, original ? "Make it the ideal answer" : "Write the ideal answer"), counter), box,
        original ? el("div", { class: "rd-sheetfoot" }, again, clear) : null, given));
      box.value = original;
      count();
      // Ready to type at once, except where that would open a keyboard over half of the screen.
      if (matchMedia("(pointer: fine)").matches) box.focus({ preventScroll: true });
    },
    put(given) { if (given.text !== undefined && given.text !== null) { box.value = given.text; count(); } },
    given: () => ({ text: box.value }),
    ready: () => Boolean(box.value.trim()),
    key(key) { if (key === "w") box.focus(); return key === "w"; },
    describe: (given) => `“${(given.text || "").trim().replace(/\s+/g, " ").slice(0, 60)}${(given.text || "").length > 60 ? "…" : ""}”`,
  };
})();
