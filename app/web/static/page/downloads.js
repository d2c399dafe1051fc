/** Downloads: the API's SVG overlay, the same over the image as PNG, and the JSON response. */

import { cropSvg } from "./api.js";
import { overlayFields } from "./controller.js";
import { byId } from "./dom.js";
import { arrangeFrames, displayedFaces, displayedFields, displayedRegions, displayedText } from "./faces.js";
import { describePngError } from "./notices.js";
import { drawImage, filterSvg } from "./rendering.js";

/** @typedef {import("./controller.js").Controller} Controller @typedef {import("./state.js").State} State */

/** How long the URL of a download stays valid; browsers read it in the background. */
const REVOKE_MS = 10_000;

/** @param {Controller} controller */
export function initDownloads(controller) {
  const { store } = controller;
  byId("save-svg").addEventListener("click", () => saveSvg(controller));
  byId("save-png").addEventListener("click", () => savePng(controller));
  byId("save-json").addEventListener("click", () => {
    save(store.state, "json", new Blob([displayedText(store.state)], { type: "application/json" }));
  });
}

/** @param {Controller} controller */
async function saveSvg(controller) {
  const { state } = controller.store;
  const svg = await fetchOverlay(controller, [], () => saveSvg(controller));
  if (svg) save(state, "svg", svg);
}

/** @param {Controller} controller */
async function savePng(controller) {
  const { state } = controller.store;
  // The browser draws the image itself, unless it cannot decode it.
  const isEmbedded = state.view.image && state.preview.source !== "browser";
  const background = isEmbedded ? [{ name: "background", value: "image" }] : [];
  const svg = await fetchOverlay(controller, background, () => savePng(controller));
  if (!svg) return;
  try {
    save(state, "png", await renderPng(state, svg, isEmbedded));
  } catch (error) {
    console.error(error);
    controller.store.set({ errorNotice: describePngError() });
  }
}

/**
 * Fetch the overlay of the result as it is displayed. If all regions are visible and either all or none have labels, it
 * is exactly the API's SVG.
 * @param {Controller} controller
 * @param {import("./state.js").Field[]} background
 * @param {() => void} retry
 * @returns {Promise<Blob | null>} null if the request fails; the error is displayed
 */
async function fetchOverlay(controller, background, retry) {
  const { state } = controller.store;
  const { result, hidden, labelled, view } = state;
  if (!result) return null;
  const isVisible = (/** @type {number} */ id) => !hidden.has(id);
  const hasLabel = (/** @type {number} */ id) => isVisible(id) && labelled.has(id);
  const hasLabels = displayedRegions(state).some(({ id }) => hasLabel(id));
  const fields = [...displayedFields(state), ...overlayFields(view, hasLabels), ...background];
  if (!controller.canSend(fields, retry)) return null;
  controller.store.set({ errorNotice: null });
  try {
    return new Blob([filterSvg(await cropSvg(fields), isVisible, hasLabel)], { type: "image/svg+xml" });
  } catch (error) {
    controller.reportError(error, retry, { keepsResult: true });
    return null;
  }
}

/**
 * @param {State} state
 * @param {string} extension
 * @param {Blob} content
 */
function save({ image }, extension, content) {
  const stem = (image?.file.name || "face").replace(/\.[^.]*$/, "");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = `${stem}.regions.${extension}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), REVOKE_MS);
}

/**
 * Render the image, if it is visible, and the overlay at the size of the result.
 * @param {State} state
 * @param {Blob} svg
 * @param {boolean} isEmbedded whether the overlay contains the image
 * @returns {Promise<Blob>}
 */
async function renderPng(state, svg, isEmbedded) {
  const { image, view } = state;
  const { width, height, cells } = arrangeFrames(displayedFaces(state));
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  if (!context) throw new Error("canvas: no 2D context");
  if (view.image && image && !isEmbedded) drawImage(context, await loadImage(image.file), cells);
  context.drawImage(await loadImage(svg), 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("canvas: too large for a PNG"))), "image/png");
  });
}

/**
 * @param {Blob} content
 * @returns {Promise<HTMLImageElement>}
 */
async function loadImage(content) {
  const image = new Image();
  const url = URL.createObjectURL(content);
  try {
    image.src = url;
    await image.decode();
  } finally {
    URL.revokeObjectURL(url);
  }
  return image;
}
