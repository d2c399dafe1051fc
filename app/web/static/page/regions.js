/** The list of regions: a row each, to switch it and its name on and off, and to light it up. */

import { byId, formatArea, hasMoved, make, makeSvg } from "./dom.js";
import { colourOf } from "./drawing.js";
import { hasChanged, withMember } from "./state.js";

/** @typedef {import("./state.js").Store} Store @typedef {import("./state.js").State} State @typedef {import("./state.js").Region} Region */

const STEPS = /** @type {Record<string, (at: number, count: number) => number>} */ ({
  ArrowDown: (at, count) => Math.min(at + 1, count - 1),
  ArrowUp: (at) => Math.max(at - 1, 0),
  Home: () => 0,
  End: (_, count) => count - 1,
});

/** @param {Store} store */
export function showRegions(store) {
  const list = byId("regions");
  listen(list, store);
  const all = /** @type {HTMLInputElement} */ (byId("show-regions"));
  all.addEventListener("change", () => store.set({ hidden: new Set(all.checked ? [] : idsOf(store.state)) }));
  const names = /** @type {HTMLInputElement} */ (byId("show-labels"));
  names.addEventListener("change", () => store.set({ labelled: new Set(names.checked ? idsOf(store.state) : []) }));

  store.show((state, before) => {
    if (hasChanged(state, before, "result")) fill(list, state);
    if (hasChanged(state, before, "result", "hidden", "labelled")) {
      const ids = idsOf(state);
      for (const row of rowsOf(list)) showRow(row, state);
      setMixed(all, ids.filter((id) => !state.hidden.has(id)).length, ids.length);
      setMixed(names, ids.filter((id) => state.labelled.has(id)).length, ids.length);
    }
    if (hasChanged(state, before, "result", "lit")) showLit(list, state);
  });
}

/**
 * @param {HTMLElement} list
 * @param {Store} store
 */
function listen(list, store) {
  list.addEventListener("change", ({ target }) => {
    const input = /** @type {HTMLInputElement} */ (target);
    store.set({ hidden: withMember(store.state.hidden, idOf(input), !input.checked) });
  });
  list.addEventListener("click", ({ target }) => {
    const button = /** @type {Element} */ (target).closest("button");
    if (!button) return;
    const id = idOf(button);
    store.set({ labelled: withMember(store.state.labelled, id, !store.state.labelled.has(id)) });
  });
  list.addEventListener("pointermove", (event) => {
    const id = idOf(/** @type {Element} */ (event.target));
    if (hasMoved(event) && store.state.lit !== id) store.set({ lit: id });
  });
  list.addEventListener("pointerleave", () => store.set({ lit: idOf(document.activeElement) }));
  list.addEventListener("focusin", ({ target }) => {
    const row = rowOf(/** @type {Element} */ (target));
    for (const other of rowsOf(list)) setTabbable(other, other === row);
    store.set({ lit: idOf(row) });
  });
  list.addEventListener("focusout", ({ relatedTarget }) => {
    if (!list.contains(/** @type {Node | null} */ (relatedTarget))) store.set({ lit: null });
  });
  list.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    const from = /** @type {Element} */ (event.target);
    const row = rowOf(from);
    if (!step || !row) return;
    event.preventDefault();
    const rows = rowsOf(list);
    const next = rows[step(rows.indexOf(row), rows.length)];
    /** @type {HTMLElement | null} */ (next.querySelector(from.tagName))?.focus();
  });
}

/**
 * @param {HTMLElement} list
 * @param {State} state
 */
function fill(list, { result }) {
  const focused = list.contains(document.activeElement) ? idOf(document.activeElement) : null;
  const regions = result ? result.answer.regions : [];
  byId("regions-card").hidden = !result;
  byId("regions-count").textContent = result ? String(regions.length) : "";
  list.replaceChildren(...regions.map((region) => makeRow(region, colourOf(result?.colours || new Map(), region.id))));
  const first = rowsOf(list)[0];
  if (first) setTabbable(first, true);
  if (focused !== null) /** @type {HTMLElement | null} */ (list.querySelector(`[data-row="${focused}"] input`))?.focus();
  const omitted = result ? result.answer.omitted : [];
  const note = byId("omitted");
  note.hidden = !omitted.length;
  note.textContent = `Without an area on this face: ${omitted.map(({ name }) => name).join(", ")}.`;
}

/**
 * @param {Region} region
 * @param {string} colour
 */
function makeRow(region, colour) {
  const input = make("input", { type: "checkbox", tabindex: -1 });
  const icon = makeSvg("svg", { class: "icon", "aria-hidden": "true" }, makeSvg("use", { href: "#icon-tag" }));
  const button = make("button", { type: "button", tabindex: -1, "aria-label": `Label of ${region.name}` }, icon);
  const area = make("span", { class: "area" }, formatArea(region.area_px));
  const row = make("li", { "data-row": region.id }, make("label", {}, input, make("span", { class: "name" }, region.name), area), button);
  row.style.setProperty("--colour", colour);
  return row;
}

/**
 * @param {HTMLElement} row
 * @param {State} state
 */
function showRow(row, { hidden, labelled }) {
  const id = idOf(row);
  const input = /** @type {HTMLInputElement} */ (row.querySelector("input"));
  input.checked = id !== null && !hidden.has(id);
  row.querySelector("button")?.setAttribute("aria-pressed", String(id !== null && labelled.has(id)));
}

/**
 * @param {HTMLElement} list
 * @param {State} state
 */
function showLit(list, { lit }) {
  for (const row of rowsOf(list)) row.classList.toggle("lit", lit !== null && idOf(row) === lit);
  const row = lit === null ? null : list.querySelector(`[data-row="${lit}"]`);
  // Within the list alone: the page itself shall not move under the pointer.
  if (row instanceof HTMLElement && list.scrollHeight > list.clientHeight) {
    const top = row.offsetTop - list.offsetTop;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + row.offsetHeight > list.scrollTop + list.clientHeight) {
      list.scrollTop = top + row.offsetHeight - list.clientHeight;
    }
  }
}

/**
 * @param {HTMLElement} row
 * @param {boolean} isTabbable
 */
function setTabbable(row, isTabbable) {
  for (const control of row.querySelectorAll("input, button")) control.setAttribute("tabindex", isTabbable ? "0" : "-1");
}

/**
 * @param {HTMLInputElement} input
 * @param {number} count
 * @param {number} total
 */
function setMixed(input, count, total) {
  input.checked = total > 0 && count === total;
  input.indeterminate = count > 0 && count < total;
}

/** @param {State} state */
function idsOf({ result }) {
  return result ? result.answer.regions.map(({ id }) => id) : [];
}

/**
 * @param {HTMLElement} list
 * @returns {HTMLElement[]}
 */
function rowsOf(list) {
  return Array.from(list.querySelectorAll("[data-row]"));
}

/**
 * @param {Element | null} element
 * @returns {HTMLElement | null}
 */
function rowOf(element) {
  return element ? element.closest("[data-row]") : null;
}

/** @param {Element | null} element */
function idOf(element) {
  const row = rowOf(element);
  return row ? Number(row.dataset.row) : null;
}
