/** How the result is cut and shown: the controls beside and under the picture. */

import { byId, make } from "./dom.js";
import { landmarksOf } from "./drawing.js";
import { hasChanged } from "./state.js";

/** @typedef {import("./work.js").Work} Work @typedef {import("./state.js").State} State */

/** @param {Work} work */
export function showOptions(work) {
  const { store } = work;
  const upright = input("upright");
  const crop = input("crop");
  const margin = input("margin");
  upright.addEventListener("change", () => work.setOptions({ upright: upright.checked }));
  crop.addEventListener("change", () => work.setOptions({ crop: crop.checked }));
  margin.addEventListener("input", () => showPercent(margin));
  margin.addEventListener("change", () => work.setOptions({ margin: Number(margin.value) / 100 }));
  const units = /** @type {HTMLSelectElement} */ (byId("units"));
  units.addEventListener("change", () => work.setOptions({ units: units.value === "normalized" ? "normalized" : "pixels" }));
  byId("faces").addEventListener("change", ({ target }) => {
    work.setOptions({ face: Number(/** @type {HTMLInputElement} */ (target).value) });
  });

  const photo = input("show-photo");
  const landmarks = input("show-landmarks");
  const opacity = input("opacity");
  photo.addEventListener("change", () => store.set({ view: { ...store.state.view, photo: photo.checked } }));
  landmarks.addEventListener("change", () => store.set({ view: { ...store.state.view, landmarks: landmarks.checked } }));
  opacity.addEventListener("input", () => {
    store.set({ view: { ...store.state.view, opacity: Number(opacity.value) / 100 } });
  });

  store.show((state, before) => {
    if (hasChanged(state, before, "options")) {
      upright.checked = state.options.upright;
      crop.checked = state.options.crop;
      byId("margin-row").hidden = !state.options.crop;
      showPercent(margin, state.options.margin);
    }
    if (hasChanged(state, before, "view")) {
      photo.checked = state.view.photo;
      landmarks.checked = state.view.landmarks;
      showPercent(opacity, state.view.opacity);
    }
    if (hasChanged(state, before, "result", "landmarks")) {
      byId("tools").hidden = !state.result;
      landmarks.disabled = !state.result || !landmarksOf(state.result.answer, state.landmarks, state.options.units);
    }
    if (hasChanged(state, before, "result", "photo")) showFaces(state, before);
  });
}

/**
 * @param {string} id
 * @returns {HTMLInputElement}
 */
function input(id) {
  return byId(id);
}

/**
 * @param {HTMLInputElement} slider in hundredths
 * @param {number} [share] 0 to 1
 */
function showPercent(slider, share) {
  if (share !== undefined) slider.value = String(Math.round(100 * share));
  if (slider.nextElementSibling) slider.nextElementSibling.textContent = `${slider.value} %`;
}

/**
 * Offer the faces that were found. While a choice is worked on, or has failed, the choice stays to be changed.
 * @param {State} state
 * @param {State | null} before
 */
function showFaces({ result, photo, options }, before) {
  if (before && !result && photo === before.photo) return;
  const box = byId("faces");
  const faces = result?.answer.detection?.faces || [];
  box.hidden = faces.length < 2;
  const hadFocus = box.contains(document.activeElement);
  const choices = faces.map((_, face) => {
    const radio = make("input", { type: "radio", name: "face", value: face, checked: face === options.face });
    return make("label", { class: "chip" }, radio, make("span", {}, `Face ${face + 1}`));
  });
  box.querySelector("div")?.replaceChildren(...choices);
  if (hadFocus) /** @type {HTMLElement | null} */ (box.querySelector("input:checked"))?.focus();
}
