/** Where the keyboard is: when what had the focus goes, it is not thrown back to the top of the page. */

import { byId } from "./dom.js";

/**
 * Remember what has the focus before views redraw.
 * @param {import("./state.js").Store} store before any other view is added
 * @returns {() => void} a view to be added last: where that element went, and no view gave the focus to another, the line
 *   that says what goes on gets it
 */
export function watchFocus(store) {
  let focused = document.activeElement;
  store.show(() => {
    focused = document.activeElement;
  });
  return () => {
    const now = document.activeElement;
    if (isThere(focused) || (now !== document.body && isThere(now))) return;
    byId("facts").focus();
  };
}

/** @param {Element | null} element */
function isThere(element) {
  return element === null || (element.isConnected && !element.closest("[hidden]"));
}
