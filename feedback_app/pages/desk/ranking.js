// --- rankings: the best first, ties side by side ----------------------------------------------------------
// Typing the letters from best to worst ranks them. The texts stay where they are; what moves are letters on
// a ladder: by key, by dragging (mouse or finger), or with the buttons below it.

KINDS.ranking = (() => {
  let sides = [], tiers = [], selected = null, cards = {}, ladder, tools, changed = () => {};
  const ordinal = (n) => n + (["th", "st", "nd", "rd"][n > 3 ? 0 : n]);
  const tierOf = (side) => tiers.findIndex((tier) => tier.includes(side));
  const isPlaced = (side) => tierOf(side) >= 0;
  const place = (side) => tiers.slice(0, tierOf(side)).flat().length + 1;

  function takeOut(side) { tiers = tiers.map((tier) => tier.filter((other) => other !== side)).filter((tier) => tier.length); }
  // Put a side into the tier at `index`, or, with `own`, into a new one in front of it.
  function putAt(side, index, own) {
    const anchor = own ? tiers.slice(index).flat().find((other) => other !== side) : tiers[index].find((other) => other !== side);
    takeOut(side);
    const at = anchor === undefined ? tiers.length : tierOf(anchor);
    if (own || anchor === undefined) tiers.splice(at, 0, [side]); else tiers[at] = [...tiers[at], side].sort();
  }
  function choose(side) {
    if (!isPlaced(side)) tiers.push([side]);
    selected = side;
    draw(); changed();
  }
  // One step: out of a tie into a place of its own, from there into a tie with the neighbour.
  function move(step) {
    if (selected === null || !isPlaced(selected)) return;
    const at = tierOf(selected), tied = tiers[at].length > 1;
    if (tied) putAt(selected, step < 0 ? at : at + 1, true);
    else if (tiers[at + step]) putAt(selected, at + step, false);
    draw(); changed();
  }
  function drop(side, target) {
    if (target.dataset.tier !== undefined) putAt(side, Number(target.dataset.tier), false);
    else if (target.dataset.gap !== undefined) putAt(side, Number(target.dataset.gap), true);
    else takeOut(side);
    selected = side;
    draw(); changed();
  }
  function remove() {
    const side = selected !== null && isPlaced(selected) ? selected : (tiers.at(-1) || []).at(-1);
    if (side === undefined) return;
    takeOut(side);
    selected = null;
    draw(); changed();
  }

  function chip(side) {
    const where = isPlaced(side) ? `${ordinal(place(side))} of ${sides.length}` : "not placed yet";
    const node = button({ class: "rd-chip", "data-chip": side, "aria-pressed": String(side === selected), "aria-label": `Answer ${upper(side)}, ${where}`,
      onclick: pressed(() => { if (!state.busy && !dragging.justDropped()) choose(side); }) }, upper(side));
    dragging.from(node, side, drop);
    return node;
  }
  function draw() {
    const focused = document.activeElement && document.activeElement.dataset.chip;
    const gap = (index) => el("li", { class: "rd-gap", "data-gap": index, "aria-hidden": "true" });
    const steps = tiers.flatMap((tier, index) => [gap(index),
      el("li", { class: "rd-tier", "data-tier": index }, el("span", { class: "rd-place" }, ordinal(place(tier[0])) + (tier.length > 1 ? " · tie" : "")), el("div", { class: "rd-chips" }, ...tier.map(chip)))]);
    const open = sides.filter((side) => !isPlaced(side));
    ladder.replaceChildren(
      el("ol", { class: "rd-steps", "aria-label": "Ranking, best first" }, ...steps, gap(tiers.length),
        open.length ? el("li", { class: "rd-tier rd-todo", "data-gap": tiers.length }, el("span", { class: "rd-place" }, tiers.length ? "next" : "best first"), el("div", { class: "rd-hole" })) : null),
      el("div", { class: "rd-tray", "data-tray": "", hidden: !open.length }, el("span", { class: "rd-place" }, "not placed"), el("div", { class: "rd-chips" }, ...open.map(chip))));
    for (const side of sides) {
      cards[side].classList.toggle("rd-selected", side === selected);
      cards[side].querySelector(".rd-rank").textContent = isPlaced(side) ? ordinal(place(side)) : "";
    }
    const usable = selected !== null && isPlaced(selected);
    for (const tool of tools.querySelectorAll("button")) tool.disabled = tool.dataset.tool === "undo" ? !tiers.length : !usable;
    tools.querySelector("span").textContent = usable ? `Answer ${upper(selected)} is ${ordinal(place(selected))}` : open.length ? "Choose the best answer first, then the next …" : "Choose an answer to move it";
    if (focused && ladder.querySelector(`[data-chip="${focused}"]`)) ladder.querySelector(`[data-chip="${focused}"]`).focus();
  }
  return {
    get keys() { return [["A", upper(SIDES[sides.length - 1]), "best first"], ["←", "→", "move, tie"], ["⌫", "take out"]]; },
    mount(body, controls, onChange) {
      changed = onChange; tiers = []; selected = null; cards = {};
      sides = [...SIDES.slice(0, state.task.sides.length)];
      sides.forEach((side, i) => {
        cards[side] = sideCard(i, { onclick: () => { if (!state.busy && !String(getSelection()) && !dragging.justDropped()) choose(side); } });
        cards[side].querySelector(".rd-head").append(el("span", { class: "rd-rank" }));
        dragging.from(cards[side].querySelector(".rd-letter"), side, drop);
      });
      body.append(el("div", { class: "rd-many" }, ...Object.values(cards)));
      ladder = el("div", { class: "rd-ladder" });
      const tool = (name, work, ...label) => button({ "data-tool": name, onclick: pressed(() => { if (!state.busy) work(); }) }, ...label);
      tools = el("div", { class: "rd-tools" }, el("span", { role: "status" }),
        tool("better", () => move(-1), "↑ Better"), tool("worse", () => move(1), "↓ Worse"), tool("undo", remove, "Take out"));
      body.append(el("div", { class: "rd-board" }, ladder, tools));
      draw();
    },
    put(given) {
      tiers = (given.ranking || []).map((tier) => tier.filter((side) => sides.includes(side))).filter((tier) => tier.length);
      selected = null;
      draw();
    },
    given: () => tiers.length ? { ranking: tiers } : {},
    ready: () => tiers.flat().length === sides.length,
    key(key) {
      const side = sides.includes(key) ? key : sides[Number(key) - 1];
      if (side !== undefined) choose(side);
      else if (key === "ArrowLeft" || key === "ArrowUp") move(-1);
      else if (key === "ArrowRight" || key === "ArrowDown") move(1);
      else if (key === "=" && selected !== null && tierOf(selected) > 0) { putAt(selected, tierOf(selected) - 1, false); draw(); changed(); }
      else if (key === "Backspace" || key === "Delete") remove();
      else return false;
      return true;
    },
    describe: (given) => given.best ? `${upper(given.best)} first` : (given.ranking || []).map((tier) => tier.map(upper).join(" = ")).join(" > "),
  };
})();
