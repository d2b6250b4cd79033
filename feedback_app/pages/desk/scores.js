// --- scores: 1 to 5 for each attribute of the rubric and each answer --------------------------------------
// A digit scores the cell that is lit and lights the next one without a score.

KINDS.scores = (() => {
  let attributes = [], sides = [], values = {}, at = [0, 0], cells = {}, changed = () => {};
  const valueAt = ([row, column]) => values[attributes[row].name][sides[column]];
  const order = () => attributes.flatMap((_, row) => sides.map((_, column) => [row, column]));

  function score(row, column, value) {
    values[attributes[row].name][sides[column]] = value;
    at = [row, column];
    const all = order(), here = row * sides.length + column;
    const next = [...all.slice(here + 1), ...all.slice(0, here)].find((cell) => !valueAt(cell));
    if (next) at = next;
    draw(); changed();
  }
  function clear() {
    if (!valueAt(at)) { const here = at[0] * sides.length + at[1]; at = order()[Math.max(0, here - 1)]; }
    delete values[attributes[at[0]].name][sides[at[1]]];
    draw(); changed();
  }
  function go(rows, columns) {
    at = [Math.min(attributes.length - 1, Math.max(0, at[0] + rows)), Math.min(sides.length - 1, Math.max(0, at[1] + columns))];
    draw();
  }
  function draw(follow = true) {
    for (const [row, column] of order()) {
      const cell = cells[`${row} ${column}`], value = valueAt([row, column]), here = row === at[0] && column === at[1];
      cell.classList.toggle("rd-here", here);
      cell.toggleAttribute("data-scored", Boolean(value));
      [...cell.querySelectorAll("button")].forEach((radio, i) => {
        radio.setAttribute("aria-checked", String(i + 1 === value));
        radio.classList.toggle("rd-upto", i + 1 < (value || 0));
        radio.tabIndex = here && i + 1 === (value || 1) ? 0 : -1;
      });
      cell.closest(".rd-attribute").classList.toggle("rd-here", row === at[0]);
      if (here && follow) cell.scrollIntoView({ block: "nearest" });
    }
    for (const side of element.querySelectorAll(".rd-side")) side.classList.toggle("rd-selected", side.dataset.side === sides[at[1]] && sides.length > 1);
  }
  function cellOf(row, column) {
    const { name, anchors = {} } = attributes[row], letter = upper(sides[column]);
    const radios = [1, 2, 3, 4, 5].map((value) => button({ role: "radio", "aria-checked": "false", title: anchors[value], "aria-label": anchors[value] ? `${value}: ${anchors[value]}` : String(value),
      onclick: pressed(() => { if (!state.busy) score(row, column, value); }) }, String(value)));
    const cell = el("div", { class: "rd-cell" }, sides.length > 1 ? el("span", { class: "rd-mini", "aria-hidden": "true" }, letter) : null,
      el("div", { class: "rd-keys", role: "radiogroup", "aria-label": `${name}, answer ${letter}` }, ...radios));
    cells[`${row} ${column}`] = cell;
    return cell;
  }
  function rowOf(attribute, row) {
    const anchors = Object.entries(attribute.anchors || {}).sort(([a], [b]) => Number(a) - Number(b));
    return el("section", { class: "rd-attribute", "aria-label": attribute.name },
      el("div", { class: "rd-what" }, el("h3", {}, attribute.name.replaceAll("_", " ")), attribute.definition ? el("p", {}, attribute.definition) : null,
        anchors.length ? el("p", { class: "rd-anchors" }, ...anchors.map(([value, meaning]) => el("span", {}, el("b", {}, value), " " + meaning))) : null),
      el("div", { class: "rd-cells" }, ...sides.map((_, column) => cellOf(row, column))));
  }
  return {
    keys: [["1", "5", "score, then on"], ["←", "→", "answer"], ["↑", "↓", "attribute"], ["⌫", "take back"]],
    mount(body, controls, onChange) {
      changed = onChange; at = [0, 0]; cells = {};
      attributes = state.info.rubric.attributes;
      sides = [...SIDES.slice(0, state.task.sides.length)];
      values = Object.fromEntries(attributes.map(({ name }) => [name, {}]));
      body.append(el("div", { class: sides.length === 2 ? "rd-pair" : sides.length > 2 ? "rd-many" : "rd-one" }, ...sides.map((_, i) => sideCard(i))));
      controls.append(attributes.length ? el("div", { class: "rd-matrix", "data-columns": sides.length }, ...attributes.map(rowOf))
        : el("p", { class: "rd-note" }, "The guidelines of this project name nothing to score yet. Tell whoever leads it; until then a task can only be skipped."));
      draw(false);
    },
    put(given) {
      for (const { name } of attributes) {
        for (const side of sides) { const value = ((given.scores || {})[name] || {})[side]; if (value) values[name][side] = value; }
      }
      at = order().find((cell) => !valueAt(cell)) || [0, 0];
      draw(false);
    },
    given() {
      const some = Object.entries(values).filter(([, scored]) => Object.keys(scored).length);
      return some.length ? { scores: Object.fromEntries(some) } : {};
    },
    ready: () => attributes.length > 0 && order().every(valueAt),
    key(key) {
      if (!attributes.length) return false;
      if (/^[1-5]$/.test(key)) score(...at, Number(key));
      else if (key === "ArrowLeft") go(0, -1);
      else if (key === "ArrowRight") go(0, 1);
      else if (key === "ArrowUp") go(-1, 0);
      else if (key === "ArrowDown") go(1, 0);
      else if (key === "Backspace" || key === "Delete") clear();
      else return false;
      return true;
    },
    describe(given) {
      const mean = (side) => { const all = Object.values(given.scores).map((scored) => scored[side]).filter(Boolean); return (all.reduce((a, b) => a + b, 0) / all.length).toFixed(1); };
      const scored = [...new Set(Object.values(given.scores || {}).flatMap(Object.keys))].sort();
      if (scored.length === 1) return Object.entries(given.scores).map(([name, values]) => `${name.replaceAll("_", " ")} ${values[scored[0]]}`).join(", ");
      return scored.map((side) => `${upper(side)} ${mean(side)}`).join(", ") + " on average";
    },
  };
})();
