// --- the rubric beside the task, and how far I am --------------------------------------------------------------

function drawRubric() {
  const rubric = state.info.rubric || {};
  $("rd-rubric-title").textContent = rubric.title || "How to choose";
  $("rd-rubric-version").textContent = rubric.version ? `Version ${rubric.version}` : "";
  const box = $("rd-rubric-text");
  box.replaceChildren(renderTree(rubric.tree || [rubric.text || ""]));
  $("rd-guidelines").hidden = !state.info.guidelines;
  $("rd-guidelines").replaceChildren(renderTree(state.info.guidelines || []));
}

async function refreshDesk() {
  state.desk = await insist(overview());
  state.info = state.desk.projects.find((p) => p.id === state.project) || state.info;
  drawRubric();
}

// New guidelines while somebody works: they are opened and marked; the task on the page keeps its state.
async function rubricChanged() {
  await refreshDesk();
  $("rd-rubric").open = true;
  $("rd-rubric").classList.add("rd-new");
  say("The guidelines have changed; please read them again.");
}

// The server counts days in this person's own time.
const overview = () => "?shift=" + -new Date().getTimezoneOffset();

function progress(p) {
  state.progress = { ...state.progress, ...p };
  const { mine, open = 0, more = false, sitting, seconds } = state.progress;
  const total = mine + open;
  $("rd-bar").style.width = (total ? (100 * mine) / total : 0) + "%";
  $("rd-count").textContent = `${number(mine)} rated · ${number(open)}${more ? "+" : ""} open`;
  const days = Math.max(state.desk.me.days, sitting ? 1 : 0);
  const figure = (value, label) => el("div", {}, el("dt", {}, label), el("dd", {}, value));
  const span = (s) => s === null || s === undefined ? "–" : s < 100 ? `${Math.round(s)}\u00a0s` : `${Math.round(s / 60)}\u00a0min`;
  $("rd-figures").replaceChildren(
    figure(number(days), days === 1 ? "day in a row" : "days in a row"), figure(number(sitting), "this sitting"),
    figure(span(seconds), state.last === null ? "per task" : `per task · last ${span(state.last)}`));
}
