/** What the page says: what was found, what to know of it, and what went wrong. */

import { byId, make } from "./dom.js";
import { hasChanged } from "./state.js";

/** @typedef {import("./work.js").Work} Work @typedef {import("./state.js").State} State @typedef {import("./state.js").Result} Result */

/** @param {Work} work */
export function showMessages(work) {
  const form = /** @type {HTMLFormElement} */ (byId("key-form"));
  const input = /** @type {HTMLInputElement} */ (byId("key"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const isKey = work.useKey(input.value);
    input.value = "";
    byId("key-wrong").textContent = isKey ? "" : "A key has letters, digits and signs of ASCII alone. This one was not kept.";
  });
  byId("key-forget").addEventListener("click", () => work.forgetKey());

  work.store.show((state, before) => {
    if (hasChanged(state, before, "trouble")) showTrouble(state, () => work.again());
    if (hasChanged(state, before, "aside")) {
      byId("aside").textContent = state.aside;
      if (state.aside) byId("aside").scrollIntoView({ block: "nearest" });
    }
    if (hasChanged(state, before, "isKeyAsked")) {
      form.hidden = !state.isKeyAsked;
      if (state.isKeyAsked) input.focus();
    }
    byId("key-forget").hidden = !state.hasKey;
    if (hasChanged(state, before, "result", "isBusy", "isKeyAsked")) byId("facts").textContent = describe(state);
    if (hasChanged(state, before, "result")) showNotes(state);
  });
}

/**
 * @param {State} state
 * @param {() => void} again
 */
function showTrouble({ trouble }, again) {
  const notice = byId("notice");
  notice.hidden = !trouble;
  notice.replaceChildren();
  if (!trouble) return;
  const parts = [make("h2", {}, trouble.heading)];
  if (trouble.detail) parts.push(make("p", {}, trouble.detail));
  if (trouble.hint) parts.push(make("p", {}, trouble.hint));
  if (trouble.canRetry) {
    const button = make("button", { type: "button" }, "Try again");
    button.addEventListener("click", again);
    parts.push(button);
  }
  const code = trouble.requestId ? `${trouble.code}, request ${trouble.requestId}` : trouble.code;
  parts.push(make("p", { class: "fine" }, make("code", {}, code)));
  notice.append(...parts);
  notice.scrollIntoView({ block: "nearest" });
}

/** @param {State} state */
function describe({ result, isBusy, photo, isKeyAsked }) {
  if (isBusy) return "Looking at the photo…";
  if (isKeyAsked && photo) return "The photo waits for the key; it has not been processed yet.";
  if (!result) return "";
  const { answer, taskId } = result;
  const { image, output, face, detection } = answer;
  const size = `${image.width} × ${image.height} ${image.format.toUpperCase()}`;
  const isCut = output.width !== image.width || output.height !== image.height;
  return [
    answer.regions.length === 1 ? "1 region" : `${answer.regions.length} regions`,
    isCut ? `${size}, cut to ${output.width} × ${output.height}` : size,
    detection ? `face found, ${Math.round(100 * detection.confidence)} % sure` : "landmarks as given",
    `eyes ${Math.abs(face.roll_deg).toFixed(1)}° from level`,
    `${answer.processing_time_ms.toFixed(answer.processing_time_ms < 10 ? 1 : 0)} ms${taskId ? " as a task" : ""}`,
  ].join(" · ");
}

/** @param {State} state */
function showNotes({ result }) {
  const warnings = result ? result.answer.warnings : [];
  const notes = byId("notes");
  notes.hidden = !warnings.length;
  notes.replaceChildren(...warnings.map(({ message }) => make("li", {}, message)));
}
