// --- dragging a letter, with the mouse or a finger --------------------------------------------------------
// Pointer events: the browser's own drag and drop knows no touch.

const dragging = (() => {
  const START_PX = 6;
  let droppedAt = 0;
  const targetAt = (x, y) => {
    const under = document.elementFromPoint(x, y);
    const found = under && under.closest("[data-tier], [data-gap], [data-tray]");
    return found && element.contains(found) ? found : null;
  };
  function from(handle, side, drop) {
    handle.classList.add("rd-handle");
    handle.addEventListener("pointerdown", (down) => {
      if (down.button !== 0 || state.busy) return;
      let ghost = null, target = null;
      const moved = (event) => {
        if (event.pointerId !== down.pointerId) return;
        if (!ghost) {
          if (Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY) < START_PX) return;
          ghost = el("div", { class: "rd-ghost", "aria-hidden": "true" }, upper(side));
          root.append(ghost);
          root.toggleAttribute("data-dragging", true);
        }
        event.preventDefault();
        ghost.style.transform = `translate(${event.clientX}px, ${event.clientY}px)`;
        if (target) target.classList.remove("rd-over");
        target = targetAt(event.clientX, event.clientY);
        if (target) target.classList.add("rd-over");
        if (event.clientY > innerHeight - 48) scrollBy(0, 14); else if (event.clientY < 48) scrollBy(0, -14);
      };
      const ended = (event) => {
        if (event.pointerId !== down.pointerId) return;
        for (const [name, listener] of listeners) removeEventListener(name, listener);
        root.toggleAttribute("data-dragging", false);
        if (!ghost) return;
        ghost.remove();
        droppedAt = performance.now();
        if (target) target.classList.remove("rd-over");
        if (target && event.type === "pointerup" && !state.busy) drop(side, target);
      };
      const listeners = [["pointermove", moved], ["pointerup", ended], ["pointercancel", ended]];
      for (const [name, listener] of listeners) addEventListener(name, listener);
    });
  }
  return { from, justDropped: () => performance.now() - droppedAt < 100 };
})();
