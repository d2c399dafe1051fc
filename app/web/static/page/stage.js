/** The image with the overlay of its regions. The region below the pointer is highlighted. */

import { byId, createElement, createSvgElement, formatArea, hasPointerMoved } from "./dom.js";
import { layoutLabels } from "./label_layout.js";
import { landmarksOf, positionImage, renderLabels, renderLandmarks, renderRegions } from "./rendering.js";
import { hasChanged } from "./state.js";

/** @typedef {import("./state.js").State} State @typedef {import("./state.js").CropResponse} CropResponse */

/** Font size of labels on the screen. */
const LABEL_PX = 13;

/**
 * @param {import("./state.js").Store} store
 * @param {(face: number) => void} selectFace
 */
export function initStage(store, selectFace) {
  const frame = byId("frame");
  const image = /** @type {HTMLImageElement} */ (createElement("img", { class: "image", alt: "" }));
  const overlay = createSvgElement("svg", { class: "overlay", role: "img" });
  frame.append(image, overlay);
  frame.dataset.ready = "false";
  image.addEventListener("load", () => {
    frame.dataset.ready = "true";
    if (!store.state.result) setAspectRatio(frame, image.naturalWidth, image.naturalHeight);
  });
  image.addEventListener("error", () => {
    if (store.state.result) return;
    byId("welcome").hidden = false; // the browser does not support this image
    frame.hidden = true;
  });

  overlay.addEventListener("pointermove", (event) => {
    const region = findRegion(event);
    if (hasPointerMoved(event) && store.state.highlighted !== region) store.set({ highlighted: region });
  });
  overlay.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") store.set({ highlighted: null }); // on a touch screen, the highlight stays
  });
  overlay.addEventListener("click", (event) => {
    const face = /** @type {Element} */ (event.target).closest("[data-face]");
    if (face) selectFace(Number(face.getAttribute("data-face")));
    else store.set({ highlighted: findRegion(event) });
  });
  new ResizeObserver(() => updateLabels(overlay, store.state)).observe(frame);

  store.subscribe((state, before) => {
    byId("stage").dataset.busy = String(state.isBusy);
    if (hasChanged(state, before, "image")) showImage(frame, image, state);
    if (hasChanged(state, before, "result")) showResult(frame, image, overlay, state);
    if (hasChanged(state, before, "result", "view", "landmarks")) updateView(image, overlay, state);
    if (hasChanged(state, before, "result", "hidden", "labelled")) {
      for (const region of overlay.querySelectorAll("[data-region]")) {
        region.classList.toggle("off", state.hidden.has(Number(region.getAttribute("data-region"))));
      }
      updateLabels(overlay, state);
    }
    if (hasChanged(state, before, "result", "highlighted", "hidden")) updateHighlight(overlay, state);
  });
}

/** @param {Event} event */
function findRegion(event) {
  const region = /** @type {Element} */ (event.target).closest("[data-region]");
  return region ? Number(region.getAttribute("data-region")) : null;
}

/**
 * @param {HTMLElement} frame
 * @param {number} width
 * @param {number} height
 */
function setAspectRatio(frame, width, height) {
  frame.style.setProperty("--width", String(width));
  frame.style.setProperty("--height", String(height));
}

/**
 * @param {HTMLElement} frame
 * @param {HTMLImageElement} image
 * @param {State} state
 */
function showImage(frame, image, state) {
  byId("welcome").hidden = Boolean(state.image);
  frame.hidden = !state.image;
  if (!state.image) return;
  frame.dataset.ready = "false";
  image.src = state.image.url;
}

/**
 * @param {HTMLElement} frame
 * @param {HTMLImageElement} image
 * @param {SVGElement} overlay
 * @param {State} state
 */
function showResult(frame, image, overlay, { result, image: source }) {
  overlay.replaceChildren();
  image.removeAttribute("style");
  image.alt = source ? `Photo ${source.file.name}` : "";
  frame.dataset.result = String(Boolean(result));
  if (!result) {
    if (image.naturalWidth) setAspectRatio(frame, image.naturalWidth, image.naturalHeight);
    overlay.removeAttribute("aria-label");
    overlay.setAttribute("aria-hidden", "true");
    return;
  }
  byId("welcome").hidden = true;
  frame.hidden = false;
  const { response } = result;
  setAspectRatio(frame, response.output.width, response.output.height);
  positionImage(image, response);
  overlay.setAttribute("viewBox", `0 0 ${response.output.width} ${response.output.height}`);
  overlay.setAttribute("aria-label", `${response.regions.length} regions drawn over the photo; see the list of regions`);
  overlay.removeAttribute("aria-hidden");
  overlay.append(renderRegions(response), ...renderFaces(response));
}

/** @param {CropResponse} response */
function renderFaces({ detection }) {
  if (!detection || detection.faces.length < 2) return [];
  return detection.faces.flatMap(({ bbox: [x, y, width, height] }, face) => {
    if (face === detection.face) return [];
    const title = createSvgElement("title", {}, `Face ${face + 1}`);
    return [createSvgElement("rect", { class: "face", "data-face": face, x, y, width, height }, title)];
  });
}

/**
 * @param {HTMLImageElement} image
 * @param {SVGElement} overlay
 * @param {State} state
 */
function updateView(image, overlay, { result, view, landmarks, options }) {
  image.classList.toggle("off", !view.image);
  overlay.querySelector(".regions")?.setAttribute("fill-opacity", String(view.opacity));
  overlay.querySelector(".landmarks")?.remove();
  const points = result && view.landmarks ? landmarksOf(result.response, landmarks, options.units) : null;
  if (result && points) overlay.append(renderLandmarks(points, result.response.output));
}

/**
 * @param {SVGElement} overlay
 * @param {State} state
 */
function updateLabels(overlay, { result, hidden, labelled }) {
  overlay.querySelector(".labels")?.remove();
  const displayedWidth = overlay.getBoundingClientRect().width;
  if (!result || !displayedWidth) return;
  const { response } = result;
  const regions = response.regions.filter((region) => !hidden.has(region.id));
  const fontSize = (LABEL_PX * response.output.width) / displayedWidth;
  const labels = layoutLabels(regions, labelled, response.output, fontSize);
  overlay.append(renderLabels(labels, fontSize));
}

/**
 * @param {SVGElement} overlay
 * @param {State} state
 */
function updateHighlight(overlay, { result, highlighted, hidden }) {
  const region = result?.response.regions.find(({ id }) => id === highlighted && !hidden.has(id));
  for (const shape of overlay.querySelectorAll("[data-region]")) {
    const isHighlighted = Boolean(region) && Number(shape.getAttribute("data-region")) === highlighted;
    shape.classList.toggle("highlighted", isHighlighted);
  }
  overlay.classList.toggle("has-highlight", Boolean(region));
  const caption = byId("caption");
  caption.hidden = !region;
  if (!region) return;
  const swatch = createElement("span", { class: "swatch" });
  swatch.style.setProperty("--colour", region.colour);
  caption.replaceChildren(swatch, region.name, createElement("small", {}, formatArea(region.area_px)));
}
