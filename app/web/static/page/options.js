/** Controls for the options of the request and for the layers of the view. */

import { byId, createElement } from "./dom.js";
import { displayedFaces } from "./faces.js";
import { landmarksOf } from "./rendering.js";
import { hasChanged } from "./state.js";

/** @typedef {import("./controller.js").Controller} Controller @typedef {import("./state.js").State} State */

/** @param {Controller} controller */
export function initOptions(controller) {
  const { store } = controller;
  const upright = getInput("upright");
  const crop = getInput("crop");
  const margin = getInput("margin");
  upright.addEventListener("change", () => controller.setOptions({ upright: upright.checked }));
  crop.addEventListener("change", () => controller.setOptions({ crop: crop.checked }));
  margin.addEventListener("input", () => updateSlider(margin));
  margin.addEventListener("change", () => controller.setOptions({ margin: Number(margin.value) / 100 }));
  const units = /** @type {HTMLSelectElement} */ (byId("units"));
  units.addEventListener("change", () => controller.setOptions({ units: units.value === "normalized" ? "normalized" : "pixels" }));
  byId("faces").addEventListener("change", ({ target }) => {
    const { value } = /** @type {HTMLInputElement} */ (target);
    controller.selectFace(value === "all" ? value : Number(value));
  });

  const image = getInput("show-image");
  const landmarks = getInput("show-landmarks");
  const opacity = getInput("opacity");
  const setView = (/** @type {Partial<State["view"]>} */ changes) => store.set({ view: { ...store.state.view, ...changes } });
  image.addEventListener("change", () => setView({ image: image.checked }));
  landmarks.addEventListener("change", () => setView({ landmarks: landmarks.checked }));
  opacity.addEventListener("input", () => setView({ opacity: Number(opacity.value) / 100 }));

  store.subscribe((state, before) => {
    if (hasChanged(state, before, "options")) {
      upright.checked = state.options.upright;
      crop.checked = state.options.crop;
      byId("margin-row").hidden = !state.options.crop;
      updateSlider(margin, state.options.margin);
    }
    if (hasChanged(state, before, "view")) {
      image.checked = state.view.image;
      landmarks.checked = state.view.landmarks;
      updateSlider(opacity, state.view.opacity);
    }
    if (hasChanged(state, before, "result", "landmarks")) {
      byId("tools").hidden = !state.result;
      const faces = displayedFaces(state);
      landmarks.disabled = !faces.some(({ response }) => landmarksOf(response, state.landmarks, state.options.units));
    }
    if (hasChanged(state, before, "result", "image", "face")) renderFaceChoices(state, before);
  });
}

/**
 * @param {string} id
 * @returns {HTMLInputElement}
 */
function getInput(id) {
  return byId(id);
}

/**
 * Update the text of a slider in percent, and its value if one is given.
 * @param {HTMLInputElement} slider
 * @param {number} [value] 0 to 1
 */
function updateSlider(slider, value) {
  if (value !== undefined) slider.value = String(Math.round(100 * value));
  if (slider.nextElementSibling) slider.nextElementSibling.textContent = `${slider.value} %`;
}

/**
 * Render a radio button for all faces and for each of them. While a request is running or has failed, the previous ones
 * stay, so that the page does not move.
 * @param {State} state
 * @param {State | null} before
 */
function renderFaceChoices({ result, image, face: selected }, before) {
  if (before && !result && image === before.image) return;
  const fieldset = byId("faces");
  const count = result ? result.responses.length : 0;
  fieldset.hidden = count < 2;
  const hadFocus = fieldset.contains(document.activeElement);
  const values = ["all", ...Array.from({ length: count }, (_, face) => face)];
  const choices = values.map((value) => {
    const radio = createElement("input", { type: "radio", name: "face", value, checked: value === selected });
    const text = value === "all" ? "All" : `Face ${Number(value) + 1}`;
    return createElement("label", { class: "chip" }, radio, createElement("span", {}, text));
  });
  byId("faces-title").textContent = result?.responses[0]?.detection ? "Faces, largest first" : "Faces";
  fieldset.querySelector("div")?.replaceChildren(...choices);
  if (hadFocus) /** @type {HTMLElement | null} */ (fieldset.querySelector("input:checked"))?.focus();
}
