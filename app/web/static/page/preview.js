/**
 * The image as the page displays it: at a size that a screen can show, decoded by the browser or, if it does not support
 * the format, by the service.
 */

import { cropSvg } from "./api.js";

/** @typedef {import("./state.js").Field} Field @typedef {import("./state.js").CropResponse} CropResponse @typedef {import("./state.js").State} State */

/** Larger images are scaled once, so that the browser does not decode and scale all their pixels for each frame. */
const MAX_PIXELS = 8_000_000;
const MAX_SIDE_PX = 2048;
const WORKER_URL = new URL("preview_worker.js", import.meta.url).href;
/** The only policy that the Content-Security-Policy allows; it returns nothing but the URL of the worker. */
const POLICY = /** @type {any} */ (globalThis).trustedTypes?.createPolicy("preview-worker", { createScriptURL: () => WORKER_URL });
/** The embedded image of an overlay. */
const EMBEDDED = /<image class="photo" [^<>]*href="data:(image\/(?:jpeg|png));base64,([A-Za-z0-9+/=]*)"/;

/**
 * Return the URL of an image that the browser displays quickly.
 * @param {File} file
 * @param {AbortSignal} signal
 * @returns {Promise<string>} an object URL; empty if the browser cannot decode the file
 */
export async function createPreview(file, signal) {
  const url = URL.createObjectURL(file);
  const size = await readSize(url);
  if (!size) {
    URL.revokeObjectURL(url);
    return "";
  }
  if (size.width * size.height <= MAX_PIXELS) return url;
  try {
    const preview = URL.createObjectURL(await scaleImage(file, size, signal));
    URL.revokeObjectURL(url);
    return preview;
  } catch {
    return url; // slow, but displayed
  }
}

/**
 * Return the size of an image, as displayed, or null if the browser cannot decode it.
 * @param {string} url
 * @returns {Promise<{width: number, height: number} | null>}
 */
function readSize(url) {
  const image = new Image();
  return new Promise((resolve) => {
    // Browsers decode the pixels only when they draw the image.
    image.addEventListener("load", () => resolve(image.naturalWidth ? { width: image.naturalWidth, height: image.naturalHeight } : null));
    image.addEventListener("error", () => resolve(null));
    image.src = url;
  });
}

/**
 * Decode and scale an image in a worker.
 * @param {File} file
 * @param {{width: number, height: number}} size
 * @param {AbortSignal} signal
 * @returns {Promise<Blob>}
 */
async function scaleImage(file, { width, height }, signal) {
  const scale = MAX_SIDE_PX / Math.max(width, height);
  const worker = new Worker(/** @type {string} */ (POLICY ? POLICY.createScriptURL("") : WORKER_URL));
  try {
    return await new Promise((resolve, reject) => {
      worker.addEventListener("message", ({ data }) => (data ? resolve(data) : reject(new Error("image: scaling failed"))));
      worker.addEventListener("error", reject);
      signal.addEventListener("abort", reject);
      worker.postMessage({ file, width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) });
    });
  } finally {
    worker.terminate(); // frees the memory of the decoded image
  }
}

/**
 * Return the URL of an image that the service has decoded: the background of an overlay.
 * @param {Field[]} fields see `previewFields`
 * @param {AbortSignal} signal
 * @returns {Promise<string>} an object URL
 */
export async function fetchPreview(fields, signal) {
  const [, type, content] = EMBEDDED.exec(await cropSvg(fields, signal)) || ["", "", ""];
  if (!type) throw new Error("overlay: expected an embedded image, got none");
  const text = atob(content);
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at += 1) bytes[at] = text.charCodeAt(at);
  return URL.createObjectURL(new Blob([bytes], { type }));
}

/**
 * Return the fields of a request for the whole image. It contains the landmarks of a result, so that the service does not
 * detect them again.
 * @param {State} state with an image and a result
 * @returns {Field[]}
 */
export function previewFields({ image, result, landmarks, options }) {
  if (!image || !result) return [];
  const [response] = result.responses;
  const fields = /** @type {Field[]} */ ([
    { name: "image", value: image.file },
    { name: "orientation", value: "displayed" },
    { name: "background", value: "image" },
    { name: "output_size", value: String(Math.max(16, Math.min(MAX_SIDE_PX, Math.max(response.image.width, response.image.height)))) },
  ]);
  if (response.landmarks) return [...fields, { name: "landmarks", value: JSON.stringify(toImage(response)) }];
  if (landmarks) fields.push({ name: "landmarks", value: landmarks.file }, { name: "landmark_units", value: options.units });
  return fields;
}

/**
 * Return the landmarks of a response in pixels of the image.
 * @param {CropResponse} response
 */
function toImage({ landmarks, inverse_transform: [[a, c, x], [b, d, y]] }) {
  const pairs = (landmarks || []).map((point) => (Array.isArray(point) ? point : [point.x, point.y]));
  return pairs.map(([u, v]) => [a * u + c * v + x, b * u + d * v + y]);
}
