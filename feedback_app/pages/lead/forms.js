// What leads change: a case to decide, gold items, settings, the rubric, members. Builds elements; lead.js owns the calls.
const STRENGTH_CHOICES = [["a", 3, "A much"], ["a", 2, "A clearly"], ["a", 1, "A slightly"], ["tie", null, "Tie"], ["both_bad", null, "Both bad"], ["b", 1, "B slightly"], ["b", 2, "B clearly"], ["b", 3, "B much"]];
const SETTINGS = [
  ["gold_rate", "number", "Gold items", "share of the tasks given whose answer is known, 0 to 1"],
  ["gold_feedback", "check", "Tell people how a gold answer went", ""],
  ["repeat_rate", "number", "Repeats", "share of the tasks given that the person answered before, 0 to 1"],
  ["repeat_after", "number", "Repeat after", "own answers in between"],
  ["min_seconds", "number", "Too fast below", "seconds; faster answers are kept and marked"],
  ["uniform_share", "number", "Uniform share", "of the tasks given, the share not chosen by priority, 0 to 1"],
  ["markdown", "check", "Show Markdown, code and LaTeX formatted", ""],
  ["members_only", "check", "Members only", "annotators must be added under Members"],
  ["flags", "list", "Flags", "separated by commas"],
  ["guidelines", "long", "Guidelines", "Markdown, shown beside the rubric"],
];

function field(name, words, control, help = "") { return html("label", { class: "ld-field" }, html("span", {}, words), control, help ? html("small", {}, help) : null); }
function saidButton(words, run, main = false) {
  const button = html("button", { type: "button", class: "ld-button" + (main ? " ld-main-button" : "") }, words);
  const status = html("span", { class: "ld-saved", role: "status" });
  button.addEventListener("click", async () => {
    button.disabled = true; status.textContent = "";
    try { status.textContent = (await run()) || "Saved"; } catch (error) { complain(error); } finally { button.disabled = false; }
  });
  return html("div", { class: "ld-row" }, button, status);
}

// The prompt, the completions as A, B ..., what people said, and below it what the lead may do.
function caseView(item, below) {
  const turns = item.messages.map((message, i) => html("div", { class: "rd-turn" + (i === item.messages.length - 1 ? " rd-last" : "") },
    html("span", { class: "rd-role" }, message.role === "user" && i === item.messages.length - 1 ? "Prompt" : message.role), texts("rd-words", message)));
  if (item.context) turns.unshift(html("div", { class: "rd-turn" }, html("span", { class: "rd-role" }, "context"), html("div", { class: "rd-words" }, item.context)));
  const sides = html("div", { class: "rd-pair" }, ...item.sides.map((side) => html("article", { class: "rd-side" }, html("h2", {}, html("span", { class: "rd-letter" }, side.letter)), texts("rd-text", side))));
  sides.style.setProperty("--ld-sides", Math.min(3, item.sides.length || 1));
  return html("section", { class: "ld-case ld-wide" }, html("div", { class: "rd-prompt" }, ...turns), sides, below);
}
function texts(name, part) { const box = html("div", { class: name }); box.append(part.tree ? renderTree(part.tree) : renderPlain(part.text)); return box; }

function answersOf(item, words, take) {
  return html("div", { class: "ld-answers" }, ...item.answers.map((answer) => html("div", { class: "ld-answer" },
    html("div", {}, html("b", {}, answer.said), html("span", {}, [answer.name, answer.seconds ? shown(answer.seconds, "seconds") : "", shown(answer.at, "time"), ...answer.flags].filter(Boolean).join(" · ")),
      answer.reason ? html("p", {}, answer.reason) : null, answer.doubt ? html("p", { class: "ld-doubt" }, answer.doubt) : null),
    item.kind === "demonstration" ? null : html("button", { type: "button", class: "ld-button ld-small-button", onclick: () => take({ annotation: answer.annotation }) }, words))));
}
function choices(item, take, strengths = true) {
  if (item.kind !== "pairwise") return null;
  const offered = strengths ? STRENGTH_CHOICES : [["a", null, "A is better"], ["tie", null, "Tie"], ["both_bad", null, "Both bad"], ["b", null, "B is better"]];
  return html("div", { class: "ld-row" }, ...offered.map(([choice, strength, words]) => html("button", { type: "button", class: "ld-button", onclick: () => take(strength ? { choice, strength } : { choice }) }, words)));
}

function settingsForm(settings, save) {
  const controls = {}, body = html("div", { class: "ld-two" });
  for (const [name, kind, words, help] of SETTINGS) {
    const value = settings[name];
    if (kind === "check") {
      controls[name] = html("input", { type: "checkbox", checked: Boolean(value) });
      body.append(html("label", { class: "ld-field" }, html("span", { class: "ld-check" }, controls[name], words), help ? html("small", {}, help) : null));
    } else {
      controls[name] = kind === "long" ? html("textarea", { rows: 4 }) : html("input", kind === "number" ? { type: "number", step: "any", min: 0 } : { type: "text" });
      controls[name].value = kind === "list" ? value.join(", ") : value;
      const line = field(name, words, controls[name], help);
      if (kind === "long" || kind === "list") line.style.gridColumn = "1 / -1";
      body.append(line);
    }
  }
  const read = () => {
    const changes = {};
    for (const [name, kind] of SETTINGS) {
      const control = controls[name];
      const value = kind === "check" ? control.checked : kind === "number" ? Number(control.value) : kind === "list" ? control.value.split(",").map((f) => f.trim()).filter(Boolean) : control.value;
      if (JSON.stringify(value) !== JSON.stringify(settings[name])) changes[name] = value;
    }
    return changes;
  };
  return html("section", { class: "ld-panel" }, html("div", { class: "ld-head" }, html("h2", {}, "Settings")), body, saidButton("Save settings", () => save(read()), true));
}

function rubricForm(rubrics, save) {
  const newest = rubrics[0] || { version: 0, title: "", text: "", attributes: [] };
  const title = html("input", { type: "text", maxlength: 256 }), words = html("textarea", { rows: 14, maxlength: 100000 }), list = html("div");
  title.value = newest.title; words.value = newest.text;
  const add = (attribute = { name: "", definition: "", anchors: {} }) => {
    const name = html("input", { type: "text", placeholder: "name", "aria-label": "Attribute" }), definition = html("input", { type: "text", placeholder: "what 1 and 5 mean", "aria-label": "Definition" });
    name.value = attribute.name; definition.value = attribute.definition || "";
    const line = html("div", { class: "ld-attribute" }, name, definition, html("button", { type: "button", class: "ld-button ld-small-button", "aria-label": "Remove attribute", onclick: () => line.remove() }, "Remove"));
    line.read = () => ({ name: name.value.trim(), definition: definition.value.trim(), anchors: attribute.anchors || {} });
    list.append(line);
  };
  newest.attributes.forEach(add);
  const read = () => ({ title: title.value.trim(), text: words.value, attributes: [...list.children].map((line) => line.read()).filter((a) => a.name) });
  const older = rubrics.slice(1).map((rubric) => html("details", { class: "ld-more" }, html("summary", {}, `Version ${rubric.version}: ${rubric.title} (${shown(rubric.at, "time")}${rubric.by ? ", " + rubric.by : ""})`), html("div", { class: "ld-old" }, html("pre", {}, rubric.text))));
  return html("section", { class: "ld-panel" }, html("div", { class: "ld-head" }, html("h2", {}, `Rubric, version ${newest.version}`)),
    field("title", "Title", title), field("text", "Text", words, "Markdown. Saving makes a new version; every answer keeps the version it was given under."),
    html("div", { class: "ld-field" }, html("span", {}, "Attributes to score, 1 to 5"), list),
    html("div", { class: "ld-row" }, html("button", { type: "button", class: "ld-button ld-small-button", onclick: () => add() }, "Add attribute")),
    saidButton("Save as a new version", () => save(read()), true), ...older);
}
