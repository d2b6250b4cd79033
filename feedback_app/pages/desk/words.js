// --- texts: plain or formatted ---------------------------------------------------------------------------

const written = new WeakMap(); // element -> { text, tree, empty }

function setWords(box, text, tree, empty = "") {
  box.dataset.words = "";
  written.set(box, { text: text || "", tree, empty });
  paint(box);
  return box;
}

function paint(box) {
  const { text, tree, empty } = written.get(box);
  const formatted = Boolean(tree && text && recall("view") !== "plain");
  box.classList.toggle("rd-formatted", formatted);
  box.classList.toggle("rd-blank", !text && Boolean(empty));
  box.replaceChildren(formatted ? renderTree(tree) : text ? renderPlain(text) : empty);
}

function switchView() {
  remember("view", recall("view") === "plain" ? "formatted" : "plain");
  showView();
  for (const box of element.querySelectorAll("[data-words]")) if (written.has(box)) paint(box);
}

function showView() {
  const plain = recall("view") === "plain";
  $("rd-view").setAttribute("aria-pressed", String(plain));
  $("rd-view").hidden = !(state.info.settings && state.info.settings.markdown);
}

// The card of one side. The texts are the same whichever kind of task shows them.
function sideCard(index, attributes = {}, ...more) {
  const side = SIDES[index], letter = upper(side);
  const head = el("h2", { class: "rd-head" }, el("span", { class: "rd-letter" }, letter));
  const text = setWords(el("div", { class: "rd-text", id: "rd-" + side }), state.task.sides[index], (state.task.trees || [])[index], "(empty answer)");
  return el("article", { class: "rd-side", "data-side": side, tabindex: "0", "aria-label": "Answer " + letter, ...attributes }, head, text, ...more);
}

function showPrompt(task) {
  const last = task.messages.length - 1;
  const turns = task.messages.map((message, index) => turn(message.role, message.content, message.tree, index === last));
  if (task.context) turns.unshift(turn("context", task.context, task.context_tree, false));
  const box = $("rd-prompt");
  box.replaceChildren(...turns);
  // A long conversation opens at its end: that is what is answered.
  box.scrollTop = turns.length > 1 ? turns[turns.length - 1].offsetTop - box.offsetTop - 40 : 0;
}

function turn(role, content, tree, last) {
  const name = { user: last ? "Prompt" : "User", assistant: "Assistant", system: "Instruction", tool: "Tool", context: "Context" }[role] || role;
  return el("div", { class: "rd-turn" + (last ? " rd-last" : ""), "data-role": role },
    el("span", { class: "rd-role" }, name), setWords(el("div", { class: "rd-words" }), content, tree));
}
