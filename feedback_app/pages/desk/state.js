// The rating desk in the browser. Gradio's HTML component runs these files, joined in the order of
// __init__.py, once with `element`: they share one scope, and each holds one idea.
// Everything that came from a model or a person is put on the page as text or through renderTree, which makes
// nothing but whitelisted elements; never as markup.
const $ = (id) => element.querySelector("#" + id);
const root = $("rating-desk");
const SIDES = "abcdefghi";
const KINDS = {}; // one entry per kind of task: mount, put, given, ready, key, describe, keys
const state = {
  desk: null, project: null, info: {}, // who I am and what there is; the project on the page
  task: null, kind: null, // the task on the page and its entry in KINDS
  ready: null, fetching: null, // the task that is leased next, and the call that fetches it
  correcting: null, aside: null, // an earlier answer that is open for correction, and the task set aside for it
  gold: null, // called to go on, while the answer of a check item is explained
  busy: false, saved: 0, generation: 0, flags: new Set(), progress: null, last: null,
};

const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const number = (n) => n.toLocaleString("en");
const upper = (side) => side.toUpperCase();
const onPhone = () => matchMedia("(max-width: 720px)").matches;
const newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");

// el("button", { type: "button", onclick: save }, "Save"): an element, its attributes, its children.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
const button = (attributes, ...children) => el("button", { type: "button", ...attributes }, ...children);
const kbd = (key) => el("kbd", {}, key);

// A click with the mouse leaves the keyboard to the desk: Enter then saves, it does not press the button again.
const pressed = (work) => (event) => { if (event.detail > 0) event.currentTarget.blur(); work(event); };

function say(text, kind = "", link = "") {
  const status = $("rd-status");
  status.replaceChildren(text);
  status.dataset.kind = kind;
  if (link) status.append(" ", el("a", { href: link, target: "_blank", rel: "noopener" }, "Log in"));
}

function remember(name, value) { try { localStorage.setItem("rd-" + name, value); } catch { /* private window */ } }
function recall(name) { try { return localStorage.getItem("rd-" + name); } catch { return null; } }
