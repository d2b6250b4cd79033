// Texts of models and people on the page: trees of `feedback_app.rendering`, plain texts, names.
// Only createElement, createElementNS and text nodes: nothing here is ever parsed as markup. The lists say which tags
// and attributes may come from a tree (the same as in rendering.py; a test compares them); anything else is shown as text.
const RENDER_TAGS = {
  p: [], h3: [], h4: [], h5: [], h6: [], ul: [], li: [], blockquote: [], pre: [], em: [], strong: [], s: [], hr: [], br: [],
  table: [], thead: [], tbody: [], tr: [], div: ["class"], span: ["class"], code: ["class"], th: ["class"], td: ["class"],
  ol: ["start"], a: ["href"],
};
const RENDER_MATH = {
  math: ["display"], mrow: ["mathvariant"], mi: ["mathvariant"], mn: ["mathvariant"], ms: ["mathvariant"], mtext: ["mathvariant"],
  msqrt: ["mathvariant"], mroot: ["mathvariant"], msub: ["mathvariant"], msup: ["mathvariant"], msubsup: ["mathvariant"],
  merror: ["mathvariant"], mstyle: ["displaystyle", "mathvariant", "scriptlevel"],
  munder: ["accent", "accentunder"], mover: ["accent", "accentunder"], munderover: ["accent", "accentunder"],
  mo: ["accent", "fence", "form", "largeop", "lspace", "mathvariant", "maxsize", "minsize", "movablelimits", "rspace", "separator", "stretchy"],
  mfrac: ["linethickness"], mspace: ["width"], mtable: ["columnalign", "columnlines", "displaystyle", "rowlines"], mtr: [],
  mtd: ["columnalign"], menclose: ["notation"],
};
const MATHML = "http://www.w3.org/1998/Math/MathML";
const RENDER_DEPTH = 200;
const OWN_DIRECTION = new Set(["ul", "ol", "blockquote", "table"]); // these have a start side; all else is plaintext in render.css

// Characters that cannot be seen or that reorder what stands around them. Joiners and marks of direction are part of
// many scripts and of emoji: behind such a character they stay what they are.
const UNSEEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb]|[\u{e0000}-\u{e0fff}]/u;
const UNSEEN_RUN = new RegExp(`(?:${UNSEEN.source})+|[\\p{Mn}\\p{Me}]{9,}`, "gu");
const SCRIPT_JOINERS = /^[\u200c-\u200f\u061c\ufe0f]+$/;
const BEFORE_JOINER = /[^\u0000-\u02ff\s]$/u;
const FLAG = /\u{1f3f4}$/u;

// The text with a visible mark in place of what cannot be seen. -> DocumentFragment of text nodes and spans
function visibleText(text) {
  const fragment = document.createDocumentFragment();
  let from = 0, marks = 0;
  for (const match of String(text).matchAll(UNSEEN_RUN)) {
    const run = match[0], before = text.slice(Math.max(0, match.index - 2), match.index);
    if (SCRIPT_JOINERS.test(run) && run.length <= 2 && BEFORE_JOINER.test(before)) continue;
    if (FLAG.test(before) && /^[\u{e0020}-\u{e007f}]{2,7}$/u.test(run)) continue;
    fragment.append(text.slice(from, match.index));
    from = match.index + run.length;
    if (++marks > 500) continue; // a page of marks says no more
    const points = [...run].map((c) => "U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0"));
    const mark = document.createElement("span");
    mark.className = "rt-unseen";
    mark.title = `${points.length === 1 ? "a character" : points.length + " characters"} that cannot be seen: ${points.slice(0, 20).join(" ")}`;
    mark.textContent = points[0] + (points.length > 1 ? ` ×${points.length}` : "");
    fragment.append(mark);
  }
  fragment.append(String(text).slice(from));
  return fragment;
}

// A short text of a person (name, title, reason) that cannot reorder its neighbours. -> HTMLElement
function isolatedText(text) {
  const box = document.createElement("bdi");
  box.append(visibleText(text));
  return box;
}

// A text as it was written, line for line. -> DocumentFragment with one element
function renderPlain(text) { return renderTree(text ? [["div", { class: "rt-plain" }, [text]]] : []); }

// A tree of rendering.py. -> DocumentFragment with one element of class "rt"
function renderTree(nodes) {
  const fragment = document.createDocumentFragment(), box = document.createElement("div");
  box.className = "rt";
  box.dir = "auto";
  renderInto(box, nodes, 0);
  fragment.append(box);
  return fragment;
}

function renderInto(parent, nodes, depth) {
  for (const node of nodes) {
    if (typeof node === "string") { parent.append(visibleText(node)); continue; }
    const [tag, attributes, children] = node;
    const math = Object.hasOwn(RENDER_MATH, tag), known = math || Object.hasOwn(RENDER_TAGS, tag);
    if (!known || depth > RENDER_DEPTH) { parent.append(visibleText(JSON.stringify(node))); continue; }
    const made = math ? document.createElementNS(MATHML, tag) : document.createElement(tag);
    for (const name of (math ? RENDER_MATH : RENDER_TAGS)[tag]) {
      if (!Object.hasOwn(attributes, name)) continue;
      const value = String(attributes[name]);
      if (name === "class" && !/^rt-[a-z]+$/.test(value)) continue;
      if (name === "href" && !/^(https?:\/\/|mailto:)/i.test(value)) continue;
      made.setAttribute(name, value);
    }
    if (tag === "a") {
      made.target = "_blank";
      made.rel = "noopener noreferrer nofollow";
      made.referrerPolicy = "no-referrer";
      made.dir = "auto";
    } else if (tag === "pre" || made.className === "rt-url") made.dir = "ltr";
    else if (OWN_DIRECTION.has(tag)) made.dir = "auto";
    if (tag === "pre" || made.className === "rt-scroll") { // may scroll sideways: the keyboard must reach it
      made.tabIndex = 0;
      made.setAttribute("role", "group");
      made.setAttribute("aria-label", tag === "pre" ? "Code" : children[0] && children[0][0] === "table" ? "Table" : "Formula");
    }
    renderInto(made, children, depth + 1);
    parent.append(made);
  }
}

