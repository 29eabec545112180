// Copy buttons, the light/dark switch, htmx's CSRF header. Loaded in the head: no page flashes in the wrong colours.
(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("js");

  const stored = () => {
    try { return localStorage.getItem("theme"); } catch { return null; }
  };
  if (["light", "dark"].includes(stored())) root.dataset.theme = stored();

  const isDark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

  const switchTheme = () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* it then lasts for this page */ }
  };

  const sourceOf = (button) =>
    button.dataset.copy ? document.getElementById(button.dataset.copy) : button.parentElement.querySelector("code");

  const copy = async (button) => {
    const source = sourceOf(button);
    try {
      await navigator.clipboard.writeText(source.value ?? source.textContent);
      button.textContent = "Copied";
    } catch {  // no permission, or no https: select it, so that the keyboard can copy
      if (source.select) source.select();
      else getSelection().selectAllChildren(source);
      button.textContent = "Press Ctrl+C";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  };

  const reveal = (part) => {
    for (const button of part.querySelectorAll("[data-copy][hidden], [data-theme-switch][hidden]")) button.hidden = false;
  };

  document.addEventListener("DOMContentLoaded", () => reveal(document));
  document.addEventListener("htmx:load", (event) => reveal(event.target));
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy], [data-theme-switch]");
    if (button?.hasAttribute("data-theme-switch")) switchTheme();
    else if (button) copy(button);
  });
  // A second click while the answer is on its way: the first may have made a secret that only its own answer shows.
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method !== "post" || form.hasAttribute("hx-post")) return;
    if ("sent" in form.dataset) event.preventDefault();
    form.dataset.sent = "";
    setTimeout(() => delete form.dataset.sent, 10_000);  // it was stopped, or got lost
  });
  addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
  });

  document.addEventListener("htmx:afterSwap", (event) => {
    if (event.detail.target.id === "notices") event.detail.target.scrollIntoView({ block: "center" });
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && document.activeElement?.classList.contains("tip")) document.activeElement.blur();
  });
  document.addEventListener("htmx:configRequest", (event) => {
    event.detail.headers["X-CSRF-Token"] = document.querySelector('meta[name="csrf"]').content;
  });
})();
