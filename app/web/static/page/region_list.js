/** The list of regions: each row shows or hides a region and its label, and highlights the region. */

import { byId, createElement, createSvgElement, formatArea, hasPointerMoved } from "./dom.js";
import { displayedFaces, displayedRegions } from "./faces.js";
import { hasChanged, withMember } from "./state.js";

/** @typedef {import("./state.js").Store} Store @typedef {import("./state.js").State} State @typedef {import("./state.js").Region} Region */

/** Next row by key. */
const STEPS = /** @type {Record<string, (row: number, count: number) => number>} */ ({
  ArrowDown: (row, count) => Math.min(row + 1, count - 1),
  ArrowUp: (row) => Math.max(row - 1, 0),
  Home: () => 0,
  End: (_, count) => count - 1,
});

/** @param {Store} store */
export function initRegionList(store) {
  const list = byId("regions");
  addListeners(list, store);
  const showAll = /** @type {HTMLInputElement} */ (byId("show-regions"));
  showAll.addEventListener("change", () => store.set({ hidden: new Set(showAll.checked ? [] : idsOf(store.state)) }));
  const labelAll = /** @type {HTMLInputElement} */ (byId("show-labels"));
  labelAll.addEventListener("change", () => store.set({ labelled: new Set(labelAll.checked ? idsOf(store.state) : []) }));

  store.subscribe((state, before) => {
    if (hasChanged(state, before, "result", "face")) renderRows(list, state);
    if (hasChanged(state, before, "result", "face", "hidden", "labelled")) {
      const ids = idsOf(state);
      for (const row of rowsOf(list)) updateRow(row, state);
      setTristate(showAll, ids.filter((id) => !state.hidden.has(id)).length, ids.length);
      setTristate(labelAll, ids.filter((id) => state.labelled.has(id)).length, ids.length);
    }
    if (hasChanged(state, before, "result", "face", "highlighted")) updateHighlight(list, state);
  });
}

/**
 * @param {HTMLElement} list
 * @param {Store} store
 */
function addListeners(list, store) {
  list.addEventListener("change", ({ target }) => {
    const input = /** @type {HTMLInputElement} */ (target);
    const id = idOf(input);
    if (id !== null) store.set({ hidden: withMember(store.state.hidden, id, !input.checked) });
  });
  list.addEventListener("click", ({ target }) => {
    const id = idOf(/** @type {Element} */ (target).closest("button"));
    if (id !== null) store.set({ labelled: withMember(store.state.labelled, id, !store.state.labelled.has(id)) });
  });
  list.addEventListener("pointermove", (event) => {
    const id = idOf(/** @type {Element} */ (event.target));
    if (hasPointerMoved(event) && store.state.highlighted !== id) store.set({ highlighted: id });
  });
  list.addEventListener("pointerleave", () => store.set({ highlighted: idOf(document.activeElement) }));
  list.addEventListener("focusin", ({ target }) => {
    const row = rowOf(/** @type {Element} */ (target));
    for (const other of rowsOf(list)) setTabbable(other, other === row);
    store.set({ highlighted: idOf(row) });
  });
  list.addEventListener("focusout", ({ relatedTarget }) => {
    if (!list.contains(/** @type {Node | null} */ (relatedTarget))) store.set({ highlighted: null });
  });
  list.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    const control = /** @type {Element} */ (event.target);
    const row = rowOf(control);
    if (!step || !row) return;
    event.preventDefault();
    const rows = rowsOf(list);
    const next = rows[step(rows.indexOf(row), rows.length)];
    // Browsers scroll a focused element to the middle of the window, and the photo would leave it.
    /** @type {HTMLElement | null} */ (next.querySelector(control.tagName))?.focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest" });
  });
}

/**
 * @param {HTMLElement} list
 * @param {State} state
 */
function renderRows(list, state) {
  const { result } = state;
  const focused = list.contains(document.activeElement) ? idOf(document.activeElement) : null;
  const regions = displayedRegions(state);
  byId("regions-card").hidden = !result;
  byId("regions-count").textContent = result ? String(regions.length) : "";
  list.replaceChildren(...regions.map(createRow));
  const first = rowsOf(list)[0];
  if (first) setTabbable(first, true);
  if (focused !== null) /** @type {HTMLElement | null} */ (list.querySelector(`[data-row="${focused}"] input`))?.focus();
  const faces = displayedFaces(state);
  const omitted = new Set(faces.flatMap(({ response }) => response.omitted.map(({ name }) => name)));
  const note = byId("omitted");
  note.hidden = !omitted.size;
  const where = faces.length > 1 ? "on at least one face" : "on this face";
  note.textContent = `Omitted because they have no area ${where}: ${Array.from(omitted).join(", ")}.`;
}

/** @param {Region} region */
function createRow(region) {
  const input = createElement("input", { type: "checkbox", tabindex: -1 });
  const name = createElement("span", { class: "name" }, region.name);
  const area = createElement("span", { class: "area" }, formatArea(region.area_px));
  const icon = createSvgElement("svg", { class: "icon", "aria-hidden": "true" }, createSvgElement("use", { href: "#icon-tag" }));
  const button = createElement("button", { type: "button", tabindex: -1, "aria-label": `Label of ${region.name}` }, icon);
  const row = createElement("li", { "data-row": region.id }, createElement("label", {}, input, name, area), button);
  row.style.setProperty("--colour", region.colour);
  return row;
}

/**
 * @param {HTMLElement} row
 * @param {State} state
 */
function updateRow(row, { hidden, labelled }) {
  const id = idOf(row);
  const input = /** @type {HTMLInputElement} */ (row.querySelector("input"));
  input.checked = id !== null && !hidden.has(id);
  row.querySelector("button")?.setAttribute("aria-pressed", String(id !== null && labelled.has(id)));
}

/**
 * @param {HTMLElement} list
 * @param {State} state
 */
function updateHighlight(list, { highlighted }) {
  for (const row of rowsOf(list)) row.classList.toggle("highlighted", highlighted !== null && idOf(row) === highlighted);
  const row = highlighted === null ? null : list.querySelector(`[data-row="${highlighted}"]`);
  // Scroll only the list, so that the page does not move below the pointer.
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
function setTristate(input, count, total) {
  input.checked = total > 0 && count === total;
  input.indeterminate = count > 0 && count < total;
}

/** @param {State} state */
function idsOf(state) {
  return displayedRegions(state).map(({ id }) => id);
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
