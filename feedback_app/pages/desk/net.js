// --- talking to the server ------------------------------------------------------------------------------
// An answer gets its key when it is first sent; every retry sends the same key, so it is stored once.

const API = "/api/v1/desk";
const PATIENCE_MS = 20000;

async function call(path, body, options = {}) {
  const post = body === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const signal = options.keepalive ? undefined : AbortSignal.timeout(PATIENCE_MS);
  const reply = await fetch(API + path, { credentials: "same-origin", signal, ...post, ...options });
  if (reply.ok) return reply.json();
  const error = new Error("status " + reply.status);
  error.status = reply.status;
  try { error.detail = (await reply.json()).detail; } catch { /* no JSON, the status will do */ }
  throw error;
}

// Repeat until the server has answered: network loss, a restart and a lost session all end well.
async function insist(path, body) {
  for (let attempt = 0; ; attempt++) {
    try { return await call(path, body); } catch (error) {
      if (error.status === 401) say("Logged out. Log in again in another tab, then this goes on by itself.", "bad", "/login");
      else if (error.status && error.status < 500 && error.status !== 429) throw error;
      else say("No connection. Nothing is lost; trying again …", "bad");
      await wait(Math.min(8000, 400 * 2 ** attempt));
    }
  }
}

// Why the server refused: somebody else may have logged in meanwhile in this browser.
async function refusal(error) {
  if (error.status === 409 && state.desk) {
    const now = await call("?shift=0").catch(() => null);
    if (now && now.me.name !== state.desk.me.name) {
      return [`this browser is now logged in as ${now.me.name}; log in as ${state.desk.me.name} again and save once more.`, "/login"];
    }
  }
  return [typeof error.detail === "string" ? error.detail : "the server refused it", ""];
}

// --- other tabs of the same person ----------------------------------------------------------------------
// Tabs tell each other what they hold, so that each shows tasks of its own; without that a new tab would be
// given the task that another one shows, as a reload is.

const tabs = {
  channel: "BroadcastChannel" in window ? new BroadcastChannel("rating-desk") : null,
  id: newKey(), others: new Map(),
  mine: () => [state.task, state.ready, state.aside && state.aside.task].filter(Boolean).map((task) => task.lease),
  holding: () => [...new Set([...tabs.mine(), ...[...tabs.others.values()].flat()])].slice(-32),
  tell(question = false) { if (tabs.channel) tabs.channel.postMessage({ from: tabs.id, leases: tabs.mine(), question }); },
  async meet() {
    if (!tabs.channel) return;
    tabs.channel.onmessage = ({ data }) => {
      if (data.gone) tabs.others.delete(data.from); else tabs.others.set(data.from, data.leases);
      if (data.question) tabs.tell();
    };
    addEventListener("pagehide", () => tabs.channel.postMessage({ from: tabs.id, gone: true }));
    addEventListener("pageshow", (event) => { if (event.persisted) tabs.tell(); });
    tabs.tell(true);
    await wait(60);
  },
};
