/** Files that the user chooses, drops or pastes: the image, its landmarks and its label map. */

import { byId, formatBytes } from "./dom.js";
import { hasChanged } from "./state.js";

/** @typedef {import("./controller.js").Controller} Controller @typedef {import("./state.js").State} State */
/** @typedef {"image" | "landmarks" | "map"} Slot @typedef {Partial<Record<Slot, File>>} Files */

const MAX_JSON_BYTES = 4 * 1024 * 1024;
/** Largest coordinate of normalized landmarks; a face in pixels has larger ones. */
const MAX_NORMALIZED = 2;
const MIN_POINTS = 468;
/** Members of the results of MediaPipe that contain landmarks. */
const MEDIAPIPE_MEMBERS = ["faceLandmarks", "face_landmarks", "multiFaceLandmarks", "multi_face_landmarks", "landmark"];

/** Files of each sample. */
const SAMPLES = /** @type {Record<string, [image: string, landmarks?: string]>} */ ({
  "sample-portrait": ["astronaut.jpg"],
  "sample-faces": ["faces.jpg"],
  "sample-landmarks": ["astronaut.jpg", "astronaut.landmarks.json"],
});

/**
 * @param {Controller} controller
 * @param {boolean} hasDetection without it, samples without landmarks are not offered
 */
export function initFileInputs(controller, hasDetection) {
  byId("choose").addEventListener("click", () => byId("image-file").click());
  for (const [id, files] of Object.entries(SAMPLES)) {
    byId(id).addEventListener("click", () => controller.loadSample(...files));
    byId(id).hidden = files.length === 1 && !hasDetection;
  }
  const sample = SAMPLES[hasDetection ? "sample-portrait" : "sample-landmarks"];
  byId("sample").addEventListener("click", () => controller.loadSample(...sample));
  for (const slot of ["image", "landmarks", "map"]) {
    const input = /** @type {HTMLInputElement} */ (byId(`${slot}-file`));
    byId(`${slot}-choose`).addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      const [file] = Array.from(input.files || []);
      input.value = ""; // so that the user can choose the same file again
      if (file) controller.addFiles({ [slot]: file }, "file");
    });
  }
  byId("landmarks-clear").addEventListener("click", () => removeFile(controller, "landmarks"));
  byId("map-clear").addEventListener("click", () => removeFile(controller, "map"));
  initDragAndDrop(controller);
  document.addEventListener("paste", async (event) => {
    const pasted = Array.from(event.clipboardData?.files || []);
    if (!pasted.length) return; // text is pasted into the focused field
    event.preventDefault();
    const { files, notice } = await assignFiles(pasted);
    controller.addFiles(files, "pasted", notice);
  });
  controller.store.subscribe((state, before) => {
    if (hasChanged(state, before, "image", "landmarks", "map", "options")) renderNames(state);
  });
}

/**
 * @param {Controller} controller
 * @param {"landmarks" | "map"} name
 */
function removeFile(controller, name) {
  controller.removeFile(name);
  byId(`${name}-choose`).focus(); // the focused button is hidden now
}

/** @param {Controller} controller */
function initDragAndDrop(controller) {
  let depth = 0; // number of nested elements that the dragged files have entered
  const hasFiles = (/** @type {DragEvent} */ event) => Boolean(event.dataTransfer?.types.includes("Files"));
  const setDepth = (/** @type {number} */ value) => {
    depth = Math.max(value, 0);
    document.body.classList.toggle("dragging", depth > 0);
  };
  document.addEventListener("dragenter", (event) => hasFiles(event) && setDepth(depth + 1));
  document.addEventListener("dragleave", (event) => hasFiles(event) && setDepth(depth - 1));
  document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  document.addEventListener("drop", async (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    setDepth(0);
    const target = event.target instanceof Element ? event.target.closest("[data-slot]") : null;
    const slot = target instanceof HTMLElement ? target.dataset.slot : "";
    const { files, notice } = await assignFiles(Array.from(event.dataTransfer?.files || []), slot);
    controller.addFiles(files, "file", notice);
  });
}

/** @param {State} state */
function renderNames({ image, landmarks, map, options }) {
  byId("image-name").textContent = image ? describeFile(image.file) : "none";
  byId("image-choose").textContent = image ? "Change" : "Choose";
  byId("landmarks-name").textContent = landmarks ? describeFile(landmarks.file) : "detected in the photo";
  byId("landmarks-choose").hidden = Boolean(landmarks);
  byId("landmarks-clear").hidden = !landmarks;
  byId("map-name").textContent = map ? describeFile(map.file) : "none";
  byId("map-choose").hidden = Boolean(map);
  byId("map-clear").hidden = !map;
  byId("units-row").hidden = !landmarks;
  /** @type {HTMLSelectElement} */ (byId("units")).value = options.units;
}

/** @param {File} file */
function describeFile(file) {
  return `${file.name}, ${formatBytes(file.size)}`;
}

/**
 * Assign files to slots: a JSON list or a result of MediaPipe is landmarks, a JSON object of lists is a label map, any
 * other file is the image.
 * @param {File[]} candidates
 * @param {string} [slot] slot onto which the files were dropped; empty to detect it
 * @returns {Promise<{files: Files, notice: string}>} one file for each slot, and a notice about ignored files
 */
async function assignFiles(candidates, slot = "") {
  const files = /** @type {Files} */ ({});
  const surplus = /** @type {string[]} */ ([]);
  const unknown = /** @type {string[]} */ ([]);
  for (const file of candidates) {
    const kind = /** @type {Slot | ""} */ (slot) || (await detectSlot(file));
    if (!kind) unknown.push(file.name);
    else if (files[kind]) surplus.push(file.name);
    else files[kind] = file;
  }
  return { files, notice: describeIgnored(files, surplus, unknown) };
}

/** @param {File} file */
async function detectSlot(file) {
  if (file.type !== "application/json" && !file.name.toLowerCase().endsWith(".json")) return "image";
  const value = await readJson(file);
  if (typeof value !== "object" || value === null || Array.isArray(value)) return "landmarks"; // the API validates them
  if (MEDIAPIPE_MEMBERS.some((name) => name in value)) return "landmarks";
  return Object.values(value).every(Array.isArray) ? "map" : "";
}

/**
 * @param {Files} files
 * @param {string[]} surplus names of files whose slot was occupied
 * @param {string[]} unknown names of files with unknown content
 */
function describeIgnored(files, surplus, unknown) {
  const used = Object.values(files).map(({ name }) => name);
  const sentences = [];
  if (surplus.length) sentences.push(`Only ${used.join(" and ")} ${used.length === 1 ? "is" : "are"} used; ignored ${surplus.join(", ")}.`);
  if (surplus.length && files.image) sentences.push("To use a label image, drop it onto “Label map”.");
  if (unknown.length) sentences.push(`Ignored ${unknown.join(", ")}: expected landmarks or a label map.`);
  return sentences.join(" ");
}

/**
 * Read files into memory, because files on disk may change before they are sent, and dropped items may be folders.
 * Files above the limit are not read.
 * @param {Files} files
 * @param {number} limit in bytes
 * @returns {Promise<{files: Files, unreadable: string}>} the files, or the name of one that cannot be read
 */
export async function readFiles(files, limit) {
  const read = /** @type {Files} */ ({});
  for (const [slot, file] of Object.entries(files)) {
    try {
      const isRead = file.size <= limit;
      const copy = isRead ? new File([await file.arrayBuffer()], file.name, { type: file.type }) : file;
      read[/** @type {Slot} */ (slot)] = copy;
    } catch {
      return { files: {}, unreadable: file.name };
    }
  }
  return { files: read, unreadable: "" };
}

/**
 * Return the points of a landmarks file, or null if it contains something else.
 * @param {File} file
 * @returns {Promise<number[][] | null>}
 */
export async function readPoints(file) {
  const value = await readJson(file);
  if (!Array.isArray(value)) return null;
  const points = value.map((point) => (Array.isArray(point) ? [point[0], point[1]] : [point?.x, point?.y]));
  return points.every((point) => point.every(Number.isFinite)) ? points : null;
}

/** @param {number[][]} points */
export function looksNormalized(points) {
  return points.length >= MIN_POINTS && points.every(([x, y]) => Math.abs(x) <= MAX_NORMALIZED && Math.abs(y) <= MAX_NORMALIZED);
}

/**
 * @param {File} file
 * @returns {Promise<unknown>}
 */
async function readJson(file) {
  if (file.size > MAX_JSON_BYTES) return null;
  try {
    return JSON.parse(await file.text());
  } catch {
    return null;
  }
}
