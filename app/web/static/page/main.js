/** Entry point: connects the modules of the page. */

import { apiKey } from "./api.js";
import { Controller } from "./controller.js";
import { byId, formatBytes } from "./dom.js";
import { initDownloads } from "./downloads.js";
import { initFileInputs } from "./files.js";
import { initNotices } from "./notices.js";
import { initOptions } from "./options.js";
import { initRegionList } from "./region_list.js";
import { initSnippets } from "./snippets.js";
import { initStage } from "./stage.js";
import { Store, createInitialState } from "./state.js";
import { initTasks } from "./tasks.js";

/**
 * Remember the focused element before other views redraw.
 * @param {Store} store without views
 * @returns {() => void} a view to add last: if the focused element has disappeared and no view has moved the focus, it
 *   focuses the summary, so that keyboard users do not restart at the top of the page
 */
function trackFocus(store) {
  let focused = document.activeElement;
  store.subscribe(() => {
    focused = document.activeElement;
  });
  return () => {
    const current = document.activeElement;
    if (isFocusable(focused) || (current !== document.body && isFocusable(current))) return;
    byId("summary").focus();
  };
}

/** @param {Element | null} element */
function isFocusable(element) {
  return element === null || (element.isConnected && !element.closest("[hidden]"));
}

const { hasDetection, hasTasks, isKeyNeeded, maxBodyBytes } = document.documentElement.dataset;
const config = { isKeyNeeded: isKeyNeeded === "true", maxBodyBytes: Number(maxBodyBytes) };
const store = new Store(createInitialState(Boolean(apiKey.get())));
const controller = new Controller(store, config);

byId("limit").textContent = formatBytes(config.maxBodyBytes);
const restoreFocus = trackFocus(store);
initStage(store, (face) => controller.selectFace(face));
initRegionList(store);
initOptions(controller);
initTasks(controller, hasTasks === "true");
initSnippets(store, config.isKeyNeeded);
initNotices(controller);
initFileInputs(controller, hasDetection === "true");
initDownloads(controller);
store.subscribe(restoreFocus);
for (const button of document.querySelectorAll("button:disabled")) /** @type {HTMLButtonElement} */ (button).disabled = false;
byId("stalled").hidden = true;
document.documentElement.dataset.ready = "true";
