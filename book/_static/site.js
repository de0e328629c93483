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

  // What scrolls must be reachable by keyboard. To ask a box for its width lays out its section,
  // which page.css puts off on a phone: so it is asked once that has happened, when an observer
  // whose margin covers the whole page finds that the box has a place.
  const SCROLLERS = ".bd-article pre, .cell_output > .output, .bd-article figure:has(> svg.q-figure), .pst-scrollable-table-container, .math > .katex-display";
  const laidOut = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      laidOut.unobserve(target);
      const scrolls = target.scrollWidth > target.clientWidth || target.scrollHeight > target.clientHeight;
      if (scrolls) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  }, { rootMargin: "10000000px" });
  const lookAgain = () => {
    laidOut.disconnect();
    document.querySelectorAll(SCROLLERS).forEach((box) => laidOut.observe(box));
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
