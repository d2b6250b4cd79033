// What is wrong with the page, as a list of words; run in it by test_hostile.py. `root`: the element of our page;
// `tags`, `attributes`: what a rendered text may hold; `controls`: ids of what a person must be able to press.
({ root, tags, attributes, controls }) => {
  const wrong = [];
  for (const box of document.querySelectorAll(".rt")) {
    const inside = [...box.querySelectorAll("*")];
    for (const e of inside) {
      if (!tags.includes(e.localName)) wrong.push("tag " + e.localName);
      for (const { name } of e.attributes) if (!attributes.includes(name)) wrong.push(`attribute ${name} of ${e.localName}`);
      if (e.localName !== "a" || !e.href) continue;
      const safe = /^(https?|mailto):$/.test(e.protocol) && e.target === "_blank" && e.rel === "noopener noreferrer nofollow";
      if (!safe) wrong.push("link " + e.outerHTML.slice(0, 200));
    }
    const inner = box.getBoundingClientRect(), outer = box.parentElement.getBoundingClientRect();
    if (inner.right > outer.right + 2 || inner.left < outer.left - 2) wrong.push("a text wider than its place");
    if (inside.slice(0, 300).some((e) => getComputedStyle(e).position !== "static")) wrong.push("a text that left its place");
  }
  const foreign = "script, iframe, object, embed, svg, video, audio, style, link, base, meta";
  if (document.querySelector(`${root} :is(${foreign})`)) wrong.push("foreign element");
  if ("CANARY" in window || ({}).polluted) wrong.push("a script ran");
  if (window.length) wrong.push("a frame was opened");
  if (document.documentElement.scrollWidth > innerWidth) wrong.push("the page became wider");
  const ids = [...document.querySelectorAll(`${root} [id]`)].map((e) => e.id);
  if (new Set(ids).size < ids.length) wrong.push("an id twice");
  for (const id of controls) {
    const e = document.getElementById(id);
    e.scrollIntoView({ block: "center" });
    const r = e.getBoundingClientRect(), top = document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2);
    if (!r.width || !top || !e.contains(top)) wrong.push(`${id} is covered`);
  }
  return wrong;
}
