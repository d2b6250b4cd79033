// The chat in the browser. Gradio's HTML component runs these files, joined, once with `element`: one scope.
// Everything that came from a model or a person is put on the page as text or through renderTree, never as markup.
const $ = (id) => element.querySelector("#" + id);
const root = $("chat-page");
const API = "/api/v1/chat";
const state = { talk: null, busy: null, pair: null, last: null }; // busy: the AbortController of the question on its way

const newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const onPhone = () => matchMedia("(max-width: 720px)").matches;

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

function say(text, kind = "") {
  $("ct-status").replaceChildren(text);
  $("ct-status").dataset.kind = kind;
}

async function call(path, body, signal) {
  const post = body === undefined ? {} : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const reply = await fetch(API + path, { credentials: "same-origin", signal, ...post });
  if (reply.ok) return reply;
  const error = new Error("status " + reply.status);
  error.status = reply.status;
  try { error.detail = (await reply.json()).detail; } catch { /* no JSON, the status will do */ }
  throw error;
}

// A rating is sent until the server has answered; the same key makes every retry the same rating.
async function keep(path, body) {
  const keyed = { ...body, key: newKey() };
  for (let attempt = 0; ; attempt++) {
    try { return await (await call(path, keyed)).json(); } catch (error) {
      if (error.status === 401) say("Logged out. Log in again in another tab, then this goes on by itself.", "bad");
      else if (error.status && error.status < 500 && error.status !== 429) throw error;
      else say("No connection. Nothing is lost; trying again …", "bad");
      await wait(Math.min(8000, 400 * 2 ** attempt));
    }
  }
}

const why = (error) => typeof error.detail === "string" ? error.detail : error.status ? "the server refused it" : "no connection";

// The lines of an answer that comes in parts, each an object.
async function* lines(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) if (part) yield JSON.parse(part);
  }
}

function atBottom() { return innerHeight + scrollY >= document.documentElement.scrollHeight - 120; }
function toBottom() { scrollTo({ top: document.documentElement.scrollHeight }); }
