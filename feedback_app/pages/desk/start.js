// --- the start -----------------------------------------------------------------------------------------------------

function theme(dark) { document.body.classList.toggle("dark", dark); document.documentElement.style.colorScheme = dark ? "dark" : "light"; }

async function start() {
  const kept = recall("theme");
  theme(kept ? kept === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.lang = "en";
  if (matchMedia("(max-width: 1080px)").matches) $("rd-rubric").open = $("rd-history").open = false;
  drawSkip();
  $("rd-save").addEventListener("click", save);
  $("rd-skip").addEventListener("click", toggleSkip);
  $("rd-reason").addEventListener("input", () => { growReason(); changed(); });
  $("rd-project").addEventListener("change", (event) => choose(event.target.value));
  $("rd-view").addEventListener("click", pressed(switchView));
  $("rd-back").addEventListener("click", () => leaveCorrection());
  $("rd-history-more").addEventListener("click", () => loadHistory(past.answers.at(-1).id));
  $("rd-theme").addEventListener("click", pressed(() => {
    const dark = !document.body.classList.contains("dark");
    remember("theme", dark ? "dark" : "light");
    theme(dark);
  }));
  document.addEventListener("keydown", onKey);
  document.addEventListener("visibilitychange", () => { clock.turn(); if (document.hidden) flushDraft(); });
  addEventListener("pagehide", flushDraft);
  [state.desk] = await Promise.all([insist(overview()), tabs.meet()]);
  const { me, projects, lease_s } = state.desk;
  $("rd-name").textContent = me.name;
  $("rd-lead").hidden = me.role === "annotator";
  $("rd-project").replaceChildren(...projects.map((p) => new Option(p.title, p.id)));
  root.toggleAttribute("data-one", projects.length < 2);
  setInterval(() => {
    const leases = tabs.mine();
    if (leases.length && !document.hidden) call("/heartbeat", { leases }).catch(() => {});
  }, Math.max(1000, lease_s * 333));
  const wanted = decodeURIComponent(location.hash.slice(1));
  const first = projects.find((p) => p.id === wanted) || projects.find((p) => p.open) || projects[0];
  if (first) choose(first.id); else show(null);
}
start();
