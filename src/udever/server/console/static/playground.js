// The playground's live parts: rows without reloading, token counts while writing, the size slider, Ctrl+Enter.
// A run is htmx's: it posts the form and puts in the new #result.
(() => {
  "use strict";
  const form = document.querySelector("[data-play]");
  const price = form.querySelector("[data-price]");
  const free = price.dataset.free === "true";
  const result = () => document.getElementById("result");
  const rowsOf = (side) => [...side.querySelectorAll(".text-row")];
  const areas = (name) => [...form.querySelectorAll(`textarea[name="${name}"]`)];
  const numberFormat = new Intl.NumberFormat("en");

  // ---- rows

  const renumber = (side) => {
    const role = side.dataset.side;
    rowsOf(side).forEach((row, index) => {
      const area = row.querySelector("textarea");
      const remove = row.querySelector("[data-remove]");
      area.id = row.querySelector("label").htmlFor = `${role}-${index + 1}`;
      row.querySelector("[data-label]").textContent = role[0].toUpperCase() + (index + 1);
      remove.value = `${role}-${index}`;
      remove.setAttribute("aria-label", `Remove ${role} ${index + 1}`);
    });
    side.querySelector("[data-add]").disabled = rowsOf(side).length >= Number(side.dataset.limit);
  };

  const append = (side) => {
    const row = document.getElementById(`row-${side.dataset.side}`).content.cloneNode(true);
    side.querySelector(".rows").append(row);
  };

  const add = (side) => {
    append(side);
    renumber(side);
    rowsOf(side).at(-1).querySelector("textarea").focus();
  };

  const remove = (side, row) => {
    const next = row.nextElementSibling ?? row.previousElementSibling;
    if (next) row.remove();
    else row.querySelector("textarea").value = "";
    renumber(side);
    (next ?? row).querySelector("textarea").focus();
    changed();
  };

  form.addEventListener("click", (event) => {
    const button = event.target.closest("[data-add], [data-remove]");
    if (!button) return;
    event.preventDefault();
    event.stopPropagation();  // htmx would send the button with the next run
    const side = button.closest("[data-side]");
    if (button.hasAttribute("data-add")) add(side);
    else remove(side, button.closest(".text-row"));
  }, { capture: true });

  // ---- tokens and price

  let waiting;
  let asking;

  const show = (counted) => {
    const over = [];
    for (const [name, counts] of [["query", counted.queries], ["document", counted.documents]]) {
      areas(name).forEach((area, index) => {
        const row = area.closest(".text-row");
        const tooLong = counts[index] > counted.max_tokens;
        row.querySelector("[data-tokens]").textContent = counts[index] || "";
        row.classList.toggle("text-row-wrong", tooLong);
        area.setAttribute("aria-invalid", String(tooLong));
        if (tooLong) over.push(row.querySelector("[data-label]").textContent);
      });
    }
    const [tokens, cost] = price.children;
    tokens.textContent = `${numberFormat.format(counted.total_tokens)} tokens`;
    if (!free) cost.textContent = `${credits(counted.microcredits)} credits`;
    price.querySelector("[data-over]").textContent =
      over.length ? `${over.join(", ")}: more than the model’s ${counted.max_tokens} tokens` : "";
  };

  const credits = (microcredits) =>
    (microcredits / 1e6).toLocaleString("en", { maximumFractionDigits: 6 });

  const count = async () => {
    asking?.abort();
    asking = new AbortController();
    const texts = (name) => areas(name).map((area) => area.value);
    const body = { model: form.elements.model.value, queries: texts("query"), documents: texts("document") };
    try {
      const response = await fetch("/playground/count", {
        method: "POST",
        headers: { "Content-Type": "application/json", "X-CSRF-Token": form.elements.csrf.value },
        body: JSON.stringify(body),
        signal: asking.signal,
      });
      if (response.ok) show(await response.json());
      else forget();
    } catch (error) {
      if (error.name !== "AbortError") forget();
    }
  };

  const forget = () => {  // better no count than an old one
    for (const row of form.querySelectorAll(".text-row")) {
      row.querySelector("[data-tokens]").textContent = "";
      row.classList.remove("text-row-wrong");
      row.querySelector("textarea").removeAttribute("aria-invalid");
    }
    const [tokens, cost, over] = price.children;
    tokens.textContent = over.textContent = "";
    if (!free) cost.textContent = "";
  };

  let edited = false;  // since the run began whose result is shown, or will be

  const mark = () => {
    const stale = result().querySelector("[data-stale]");
    if (stale) stale.hidden = !edited;
    result().classList.toggle("result-stale", Boolean(stale) && edited);
  };

  const changed = () => {
    edited = true;
    mark();
    if (!("counts" in form.dataset)) return;
    clearTimeout(waiting);
    waiting = setTimeout(count, 350);
  };

  form.addEventListener("input", (event) => {
    if (event.target.matches("textarea, select")) changed();
    if (event.target.id === "model") keepModel(event.target.value);
  });

  const keepModel = (model) => {  // an example changes the texts, not the model
    for (const link of form.querySelectorAll(".play-presets a")) {
      const to = new URL(link.href);
      to.searchParams.set("model", model);
      link.href = to;
    }
  };

  // ---- what was typed before signing in is there after it

  const DRAFT = "playground";

  document.addEventListener("click", (event) => {
    if (!edited || !event.target.closest('main a[href^="/signin"]')) return;
    const texts = (name) => areas(name).map((area) => area.value);
    const draft = { model: form.elements.model.value, query: texts("query"), document: texts("document") };
    try { sessionStorage.setItem(DRAFT, JSON.stringify(draft)); } catch { /* then it is lost */ }
  });

  const restore = () => {
    let draft;
    try {
      draft = JSON.parse(sessionStorage.getItem(DRAFT));
      sessionStorage.removeItem(DRAFT);
    } catch { return; }
    if (!draft || !form.hasAttribute("data-counts")) return;
    form.elements.model.value = draft.model;
    keepModel(draft.model);
    for (const side of form.querySelectorAll("[data-side]")) {
      const texts = draft[side.dataset.side];
      while (rowsOf(side).length > texts.length) rowsOf(side).at(-1).remove();
      while (rowsOf(side).length < texts.length) append(side);
      areas(side.dataset.side).forEach((area, index) => { area.value = texts[index]; });
      renumber(side);
    }
    changed();
  };

  // ---- run

  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      const run = document.getElementById("run");
      if (run.matches("button") && !run.disabled) form.requestSubmit(run);
    }
  });

  let began;
  form.addEventListener("htmx:beforeRequest", () => {
    began = performance.now();
    edited = false;
  });
  document.addEventListener("htmx:afterSwap", (event) => {
    if (event.detail.target.id !== "result") return;
    mark();
    const trip = result().querySelector("[data-round-trip]");
    if (trip) {
      trip.querySelector("span").textContent = `${Math.round(performance.now() - began)} ms`;
      trip.hidden = false;
    }
    const said = result().querySelector("[data-summary], .alert");
    document.getElementById("said").textContent = said?.textContent ?? "";
    const { top } = result().getBoundingClientRect();
    if (top > innerHeight * 0.7 || top < 0) result().scrollIntoView({ block: "start" });
  });
  form.addEventListener("htmx:sendError", () => {
    document.getElementById("said").textContent = "The server cannot be reached.";
    const note = document.createElement("div");
    note.className = "alert alert-error";
    note.textContent = "The server cannot be reached. Your texts are still here; try again in a moment.";
    result().replaceChildren(note);
  });

  // ---- the size slider: every number of the grid is there already, one for each size

  const shown = (cosine) => {
    const text = Math.abs(cosine).toFixed(2);
    return (cosine < 0 && Number(text) ? "−" : "") + text;
  };

  document.addEventListener("input", (event) => {
    const slider = event.target;
    if (slider.id !== "size") return;
    const size = Number(slider.value);
    const dimensions = slider.dataset.sizes.split(",")[size];
    slider.setAttribute("aria-valuetext", `${dimensions} dimensions`);
    for (const cell of result().querySelectorAll("[data-c]")) {
      const rank = cell.dataset.r.split(",")[size];
      cell.className = `h${cell.dataset.h[size]}${rank === "1" ? " best" : ""}`;
      cell.querySelector("b").textContent = shown(Number(cell.dataset.c.split(",")[size]));
      cell.querySelector("small").lastChild.textContent = rank;
    }
    for (const place of result().querySelectorAll("[data-dimensions]")) place.textContent = dimensions;
    result().querySelectorAll("[data-cost]").forEach((cost, index) => { cost.hidden = index !== size; });
    result().querySelectorAll(".size-ticks span").forEach((tick, index) => tick.classList.toggle("on", index === size));
    result().querySelectorAll("[data-size-row]").forEach((row, index) => row.classList.toggle("own", index === size));
  });

  restore();
})();
