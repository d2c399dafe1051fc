/** The picture: the photo, and over it what was found; regions light up under the pointer. */

import { byId, formatArea, hasMoved, make, makeSvg } from "./dom.js";
import { colourOf, drawLabels, drawLandmarks, drawRegions, landmarksOf } from "./drawing.js";
import { layPhoto } from "./geometry.js";
import { hasChanged } from "./state.js";

/** @typedef {import("./state.js").State} State @typedef {import("./state.js").Answer} Answer */

const LABEL_PX = 13;

/**
 * @param {import("./state.js").Store} store
 * @param {(face: number) => void} chooseFace
 */
export function showStage(store, chooseFace) {
  const frame = byId("frame");
  const photo = /** @type {HTMLImageElement} */ (make("img", { class: "photo", alt: "" }));
  const overlay = makeSvg("svg", { class: "overlay", role: "img" });
  frame.append(photo, overlay);
  frame.dataset.ready = "false";
  photo.addEventListener("load", () => {
    frame.dataset.ready = "true";
    if (!store.state.result) setRatio(frame, photo.naturalWidth, photo.naturalHeight);
  });
  photo.addEventListener("error", () => {
    if (store.state.result) return;
    byId("welcome").hidden = false; // no picture that this browser knows: there is nothing to look at
    frame.hidden = true;
  });

  overlay.addEventListener("pointermove", (event) => {
    const region = regionAt(event);
    if (hasMoved(event) && store.state.lit !== region) store.set({ lit: region });
  });
  overlay.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") store.set({ lit: null }); // a finger that is lifted leaves what it lit
  });
  overlay.addEventListener("click", (event) => {
    const face = /** @type {Element} */ (event.target).closest("[data-face]");
    if (face) chooseFace(Number(face.getAttribute("data-face")));
    else store.set({ lit: regionAt(event) });
  });
  new ResizeObserver(() => drawNames(overlay, store.state)).observe(frame);

  store.show((state, before) => {
    byId("stage").dataset.busy = String(state.isBusy);
    if (hasChanged(state, before, "photo")) showPhoto(frame, photo, state);
    if (hasChanged(state, before, "result")) showResult(frame, photo, overlay, state);
    if (hasChanged(state, before, "result", "view", "landmarks")) showView(photo, overlay, state);
    if (hasChanged(state, before, "result", "hidden", "labelled")) {
      for (const region of overlay.querySelectorAll("[data-region]")) {
        region.classList.toggle("off", state.hidden.has(Number(region.getAttribute("data-region"))));
      }
      drawNames(overlay, state);
    }
    if (hasChanged(state, before, "result", "lit", "hidden")) showLit(overlay, state);
  });
}

/** @param {Event} event */
function regionAt(event) {
  const found = /** @type {Element} */ (event.target).closest("[data-region]");
  return found ? Number(found.getAttribute("data-region")) : null;
}

/**
 * @param {HTMLElement} frame
 * @param {number} width
 * @param {number} height
 */
function setRatio(frame, width, height) {
  frame.style.setProperty("--width", String(width));
  frame.style.setProperty("--height", String(height));
}

/**
 * @param {HTMLElement} frame
 * @param {HTMLImageElement} photo
 * @param {State} state
 */
function showPhoto(frame, photo, state) {
  byId("welcome").hidden = Boolean(state.photo);
  frame.hidden = !state.photo;
  if (!state.photo) return;
  frame.dataset.ready = "false";
  photo.src = state.photo.url;
}

/**
 * @param {HTMLElement} frame
 * @param {HTMLImageElement} photo
 * @param {SVGElement} overlay
 * @param {State} state
 */
function showResult(frame, photo, overlay, { result, photo: chosen }) {
  overlay.replaceChildren();
  photo.removeAttribute("style");
  photo.alt = chosen ? `The photo ${chosen.file.name}` : "";
  frame.dataset.result = String(Boolean(result));
  if (!result) {
    if (photo.naturalWidth) setRatio(frame, photo.naturalWidth, photo.naturalHeight);
    overlay.removeAttribute("aria-label");
    overlay.setAttribute("aria-hidden", "true");
    return;
  }
  byId("welcome").hidden = true;
  frame.hidden = false;
  const { answer, colours } = result;
  setRatio(frame, answer.output.width, answer.output.height);
  layPhoto(photo, answer);
  overlay.setAttribute("viewBox", `0 0 ${answer.output.width} ${answer.output.height}`);
  overlay.setAttribute("aria-label", `${answer.regions.length} regions over the photo; the list of regions names them`);
  overlay.removeAttribute("aria-hidden");
  overlay.append(drawRegions(answer, colours, 1), ...drawFaces(answer));
}

/** @param {Answer} answer */
function drawFaces({ detection }) {
  if (!detection || detection.faces.length < 2) return [];
  return detection.faces.flatMap(({ bbox: [x, y, width, height] }, face) =>
    face === detection.face
      ? []
      : [makeSvg("rect", { class: "face", "data-face": face, x, y, width, height }, makeSvg("title", {}, `Face ${face + 1}`))],
  );
}

/**
 * @param {HTMLImageElement} photo
 * @param {SVGElement} overlay
 * @param {State} state
 */
function showView(photo, overlay, { result, view, landmarks, options }) {
  photo.classList.toggle("off", !view.photo);
  overlay.querySelector(".regions")?.setAttribute("fill-opacity", String(view.opacity));
  overlay.querySelector(".landmarks")?.remove();
  const points = result && view.landmarks ? landmarksOf(result.answer, landmarks, options.units) : null;
  if (result && points) overlay.append(drawLandmarks(points, result.answer.output));
}

/**
 * @param {SVGElement} overlay
 * @param {State} state
 */
function drawNames(overlay, { result, hidden, labelled }) {
  overlay.querySelector(".labels")?.remove();
  const shown = overlay.getBoundingClientRect().width;
  if (!result || !shown) return;
  const { answer, colours } = result;
  const regions = answer.regions.filter((region) => !hidden.has(region.id));
  overlay.append(drawLabels(regions, colours, labelled, answer.output, (LABEL_PX * answer.output.width) / shown));
}

/**
 * @param {SVGElement} overlay
 * @param {State} state
 */
function showLit(overlay, { result, lit, hidden }) {
  const region = result?.answer.regions.find(({ id }) => id === lit && !hidden.has(id));
  for (const shape of overlay.querySelectorAll("[data-region]")) {
    shape.classList.toggle("lit", Boolean(region) && Number(shape.getAttribute("data-region")) === lit);
  }
  overlay.classList.toggle("has-lit", Boolean(region));
  const caption = byId("caption");
  caption.hidden = !region;
  if (!region || !result) return;
  const swatch = make("span", { class: "swatch" });
  swatch.style.setProperty("--colour", colourOf(result.colours, region.id));
  caption.replaceChildren(swatch, region.name, make("small", {}, formatArea(region.area_px)));
}
