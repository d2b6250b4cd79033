// --- thumbs: one answer, good or bad ----------------------------------------------------------------------

KINDS.thumbs = (() => {
  let thumb = null, radios = [], changed = () => {};

  function pick(value, byHand = true) {
    thumb = value;
    radios.forEach((radio, i) => {
      radio.setAttribute("aria-checked", String(radio.dataset.thumb === thumb));
      radio.tabIndex = (thumb === null ? i === 0 : radio.dataset.thumb === thumb) ? 0 : -1;
    });
    root.dataset.thumb = thumb || "";
    if (byHand) changed();
  }
  return {
    keys: [["1", "good"], ["0", "bad"], ["←", "→", "move"]],
    mount(body, controls, onChange) {
      changed = onChange;
      body.append(el("div", { class: "rd-one" }, sideCard(0)));
      const choice = (value, sign, word, key) => button({ role: "radio", "aria-checked": "false", "data-thumb": value, onclick: () => { if (!state.busy) pick(value); } },
        el("span", { class: "rd-sign", "aria-hidden": "true" }, sign), el("span", {}, word), kbd(key));
      radios = [choice("up", "✓", "Good", "1"), choice("down", "✕", "Bad", "0")];
      controls.append(el("div", { class: "rd-thumbs", role: "radiogroup", "aria-label": "Is this answer good?" }, ...radios));
      pick(null, false);
    },
    put(given) { pick(given.thumb || null, false); },
    given: () => thumb ? { thumb } : {},
    ready: () => thumb !== null,
    key(key) {
      const value = { 1: "up", 0: "down", "+": "up", "-": "down", ArrowLeft: "up", ArrowRight: "down" }[key];
      if (!value) return false;
      pick(value);
      if (radios.includes(document.activeElement)) radios.find((radio) => radio.dataset.thumb === value).focus();
      return true;
    },
    describe: (given) => given.thumb === "up" ? "Good" : "Bad",
  };
})();
