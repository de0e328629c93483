// What the theme lacks for a keyboard, a screen reader and paper. Runs after the theme's
// own scripts, and again on what they add late.
"use strict";
(() => {
  // The accessible name of a toggle must be what it shows.
  const name = (element, text) => {
    if (!element.getAttribute("aria-label") && !element.textContent.trim()) {
      element.setAttribute("aria-label", text);
    }
  };

  const mend = () => {
    document.querySelectorAll("summary").forEach((summary) => name(summary, "Show more"));
    document.querySelectorAll("button.primary-toggle").forEach((button) => name(button, "Contents of the book"));
    document.querySelectorAll("button.secondary-toggle").forEach((button) => name(button, "Contents of this page"));
    // A visible label wins over an aria-label that says something else.
    document.querySelectorAll(".search-button-field[aria-label]").forEach((button) => button.removeAttribute("aria-label"));
  };

  // What scrolls sideways must be reachable by keyboard. To ask a box for its width lays out the
  // section it is in, which page.css puts off: so a few at a time, whenever nothing else runs.
  const whenIdle = window.requestIdleCallback ?? ((work) => setTimeout(() => work({ timeRemaining: () => 8 })));
  let waiting = [];
  const look = (deadline) => {
    do {
      const box = waiting.pop();
      if (!box) {
        document.documentElement.dataset.reachable = "all";
        return;
      }
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    } while (deadline.timeRemaining() > 1);
    whenIdle(look);
  };
  const lookAgain = () => {
    const idle = waiting.length === 0;
    delete document.documentElement.dataset.reachable;
    waiting = [...document.querySelectorAll(".bd-article pre, .pst-scrollable-table-container, .math > .katex-display")].reverse();
    if (idle) whenIdle(look);
  };

  // Paper shows what the screen folds away.
  const folded = new Set();
  const unfold = () => {
    document.querySelectorAll("details:not([open])").forEach((details) => {
      details.open = true;
      folded.add(details);
    });
  };
  addEventListener("beforeprint", unfold);
  addEventListener("afterprint", () => {
    folded.forEach((details) => { details.open = false; });
    folded.clear();
  });

  mend();
  addEventListener("load", () => requestAnimationFrame(() => { mend(); lookAgain(); }));
  addEventListener("resize", lookAgain, { passive: true });
})();
