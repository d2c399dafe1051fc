/** What can be taken along: the overlay and the picture as they are shown, and the answer as it came. */

import { byId, makeSvg } from "./dom.js";
import { FONT_RATIO, drawLabels, drawLandmarks, drawRegions, landmarksOf, longerSide } from "./drawing.js";
import { paintPhoto } from "./geometry.js";
import { describeUnsaved } from "./problems.js";

/** @typedef {import("./state.js").State} State @typedef {import("./state.js").Store} Store */

const XMLNS = "http://www.w3.org/2000/svg";
/** A download has begun long before; until then its address has to hold. */
const REVOKE_MS = 10_000;

/** @param {Store} store */
export function listenForSaving(store) {
  byId("save-svg").addEventListener("click", () => {
    save(store.state, "svg", new Blob([makeOverlay(store.state)], { type: "image/svg+xml" }));
  });
  byId("save-json").addEventListener("click", () => {
    save(store.state, "json", new Blob([store.state.result?.text || ""], { type: "application/json" }));
  });
  byId("save-png").addEventListener("click", () => savePicture(store));
}

/** @param {Store} store */
async function savePicture(store) {
  try {
    save(store.state, "png", await makePicture(store.state));
  } catch (error) {
    console.error(error);
    store.set({ trouble: describeUnsaved() });
  }
}

/**
 * @param {State} state
 * @param {string} extension
 * @param {Blob} content
 */
function save({ photo }, extension, content) {
  const stem = (photo?.file.name || "face").replace(/\.[^.]*$/, "");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = `${stem}.regions.${extension}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), REVOKE_MS);
}

/**
 * Write the overlay as it is shown: the regions, names and landmarks that are switched on.
 * @param {State} state
 */
export function makeOverlay({ result, hidden, labelled, view, landmarks, options }) {
  if (!result) throw new Error("there is no result to save");
  const { answer, colours } = result;
  const { width, height } = answer.output;
  const regions = answer.regions.filter(({ id }) => !hidden.has(id));
  const root = makeSvg("svg", { xmlns: XMLNS, viewBox: `0 0 ${width} ${height}`, width, height });
  root.append(drawRegions({ ...answer, regions }, colours, view.opacity));
  const points = view.landmarks ? landmarksOf(answer, landmarks, options.units) : null;
  if (points) root.append(drawLandmarks(points, answer.output));
  root.append(drawLabels(regions, colours, labelled, answer.output, FONT_RATIO * longerSide(answer.output)));
  return new XMLSerializer().serializeToString(root);
}

/**
 * Paint the picture as it is shown, in the size of the result.
 * @param {State} state
 * @returns {Promise<Blob>}
 */
async function makePicture(state) {
  if (!state.result) throw new Error("there is no result to save");
  const { answer } = state.result;
  const canvas = document.createElement("canvas");
  canvas.width = answer.output.width;
  canvas.height = answer.output.height;
  const context = canvas.getContext("2d");
  if (!context) throw new Error("this browser gives no canvas to paint on");
  if (state.view.photo && state.photo) paintPhoto(context, await load(state.photo.file), answer);
  const overlay = await load(new Blob([makeOverlay(state)], { type: "image/svg+xml" }));
  context.drawImage(overlay, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the picture is too large to be saved"))), "image/png");
  });
}

/**
 * @param {Blob} content
 * @returns {Promise<HTMLImageElement>}
 */
async function load(content) {
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
