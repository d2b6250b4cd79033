// --- pairs: A or B, how much better, a tie, both bad -----------------------------------------------------

KINDS.pairwise = (() => {
  const SCALE = [ // choice, strength, word, key; the order of the page
    ["a", 3, "Much", "1"], ["a", 2, "Clearly", "2"], ["a", 1, "Slightly", "3"], ["tie", null, "Tie", "4"],
    ["both_bad", null, "Both bad", "0"], ["b", 1, "Slightly", "5"], ["b", 2, "Clearly", "6"], ["b", 3, "Much", "7"]];
  const ALONG = [0, 1, 2, 3, 5, 6, 7]; // in order of the scale: tie in the middle, "both bad" off it
  let picked = null, radios = [], cards = [], changed = () => {};

  function pick(index, byHand = true) {
    picked = index >= 0 ? index : null;
    radios.forEach((radio, i) => {
      radio.setAttribute("aria-checked", String(i === picked));
      radio.tabIndex = i === (picked ?? 0) ? 0 : -1;
    });
    root.dataset.choice = picked === null ? "" : SCALE[picked][0];
    if (byHand) changed();
  }
  function group(name, caption, from, to) {
    const keys = SCALE.slice(from, to).map(([choice, strength, word, key], i) => {
      const radio = button({ role: "radio", "aria-checked": "false", "data-choice": choice, "data-strength": strength, onclick: () => { if (!state.busy) pick(from + i); } },
        el("span", {}, word), kbd(key));
      const who = { a: "A ", b: "B " }[choice];
      if (who) radio.setAttribute("aria-label", `${who}${word.toLowerCase()} better`);
      return radio;
    });
    radios.push(...keys);
    return el("div", { class: "rd-group", "data-group": name }, el("span", { class: "rd-cap", "aria-hidden": "true" }, ...caption), el("div", { class: "rd-keys" }, ...keys));
  }
  return {
    keys: [["1", "7", "choose"], ["0", "both bad"], ["←", "→", "move"]],
    mount(body, controls, onChange) {
      changed = onChange; radios = []; picked = null;
      cards = [0, 1].map((i) => sideCard(i, { onclick: () => {
        if (state.busy || String(getSelection())) return; // selecting text is not choosing
        if (picked === null || SCALE[picked][0] !== SIDES[i]) pick(i === 0 ? 1 : 6);
      } }));
      body.append(el("div", { class: "rd-pair" }, ...cards));
      controls.append(el("div", { class: "rd-scale", role: "radiogroup", "aria-label": "Which answer is better?" },
        group("a", [el("b", {}, "A"), " is better"], 0, 3), group("even", ["Even"], 3, 5), group("b", [el("b", {}, "B"), " is better"], 5, 8)));
      pick(-1, false);
    },
    put(given) { pick(SCALE.findIndex(([choice, strength]) => choice === given.choice && strength === (given.strength || null)), false); },
    given: () => picked === null ? {} : { choice: SCALE[picked][0], strength: SCALE[picked][1] },
    ready: () => picked !== null,
    key(key) {
      const index = SCALE.findIndex((entry) => entry[3] === key);
      if (index >= 0) pick(index);
      else if (key === "ArrowRight" || key === "ArrowLeft") {
        const at = ALONG.indexOf(picked), step = key === "ArrowRight" ? 1 : -1;
        pick(ALONG[at < 0 ? 3 : Math.min(6, Math.max(0, at + step))]);
        if (radios.includes(document.activeElement)) radios[picked].focus();
      } else return false;
      return true;
    },
    describe(given) {
      if (given.choice === "tie") return "Tie";
      if (given.choice === "both_bad") return "Both bad";
      const word = (SCALE.find(([choice, strength]) => choice === given.choice && strength === given.strength) || [])[2];
      return `${upper(given.choice)} ${word ? word.toLowerCase() + " " : "is "}better`;
    },
  };
})();
