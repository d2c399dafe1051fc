/** Messages to the user: errors, ignored files, the API key form, the summary and the warnings of a result. */

import { byId, createElement, formatBytes } from "./dom.js";
import { displayedFaces, displayedRegions } from "./faces.js";
import { hasChanged } from "./state.js";

/** @typedef {import("./controller.js").Controller} Controller @typedef {import("./state.js").State} State */
/** @typedef {import("./state.js").CropResponse} CropResponse @typedef {import("./state.js").ErrorNotice} ErrorNotice @typedef {import("./api.js").ApiError} ApiError */

/** Heading and hint by error code. For other codes, the page shows the title of the problem document. */
const MESSAGES = /** @type {Record<string, [string, string]>} */ ({
  no_face: ["No face was found", "Use a photo with a larger face seen from the front, or add its landmarks."],
  face_index: ["The photo has fewer faces", "Select the first face again."],
  detection_unavailable: [
    "This service cannot detect faces",
    "Add the landmarks of the face as a JSON file, or ask the operator to install the face-detection models.",
  ],
  image_unsupported_format: ["Unsupported file type", ""],
  image_empty: ["The file is empty", "Choose another file."],
  image_truncated: ["The file is incomplete", "Download or copy it again."],
  image_corrupt: ["The file is corrupt", "Save it again in an image editor."],
  image_too_large: ["The photo is too large", "Scale it down, and choose it again."],
  body_too_large: ["The files are too large", "Choose a smaller photo, or save it as JPEG."],
  task_too_large: ["The files are too large for a task", "Choose a smaller photo, or save it as JPEG."],
  landmarks_count: ["Wrong number of landmarks", "Choose a file with the points of MediaPipe’s face mesh."],
  landmarks_out_of_range: [
    "The landmarks are outside the photo",
    "Check that they belong to this photo, and whether their units are pixels or 0 to 1.",
  ],
  label_map_format: ["Unsupported type of label map", "Use a label image with one label or colour for each region."],
  unauthorized: ["The API key was not accepted", "Check the key, or request a new one from the operator."],
  saturated: ["The service is at capacity", ""],
  shutting_down: ["The service is restarting", ""],
  queue_full: ["The task queue is full", "You can still process the photo without a task."],
  queue_unavailable: ["The task queue is unreachable", "You can still process the photo without a task."],
  task_unknown: ["The task was not found, or its result has expired", "Submit it again."],
  unreadable: ["The response cannot be read", "A proxy between this page and the service may have changed it."],
  network: ["The service is unreachable", "Check your connection, and that the service is running. Your photo is still loaded."],
});
/** Codes whose heading contains the whole detail of the API. */
const WITHOUT_DETAIL = new Set([
  "no_face", "face_index", "detection_unavailable", "image_empty", "image_truncated", "unauthorized", "saturated",
  "shutting_down", "queue_full", "queue_unavailable", "task_unknown",
]);
/** Numbers of pixels in the detail of an image that is too large. */
const PIXELS = /at most (\d+) pixels, got .* (\d+) pixels$/;

/** Headings and hints for a file that is not valid, by field. */
const FIELD_MESSAGES = /** @type {Record<string, [string, string]>} */ ({
  landmarks: [
    "The landmarks are not valid",
    "Use a JSON list of points, each as {\"x\": 1.5, \"y\": 2} or [1.5, 2].",
  ],
  segmentation_map: [
    "The label map is not valid",
    "Use a PNG or lossless WebP of labels, or a JSON object of region name to landmark indices.",
  ],
});
/** Text of a warning, by its code. For other codes, the page shows the message of the API. */
const WARNINGS = /** @type {Record<string, (response: CropResponse) => string>} */ ({
  exif_orientation: () => "Viewers rotate or mirror this photo. The result refers to its pixels as stored.",
  faces_omitted: () => "The photo has too many possible faces to examine all of them, so some faces may be missing.",
  not_frontal: ({ face }) =>
    `The face is turned away (yaw ${formatAngle(face.yaw_deg)}, pitch ${formatAngle(face.pitch_deg)}), so its hidden side is less accurate.`,
  landmarks_normalized: () => "All landmarks are between -1 and 2, so they were read as fractions of the width and height.",
  label_colours: () => "The label map contains colours instead of labels. They were numbered by ascending RGB value; see the JSON response.",
  regions_omitted: ({ omitted }) =>
    `${omitted.length === 1 ? "1 region is" : `${omitted.length} regions are`} not drawn: too few points, or no area.`,
});
/** Start of an error detail that names a file. */
const FIELD = /^(image|landmarks|segmentation_map)(?:\[[^:]*)?: (.*)$/s;
/** Fields by the prefix of an error code, for details that do not name one. */
const CODE_PREFIXES = [["landmarks_", "landmarks"], ["label_map_", "segmentation_map"], ["region_", "segmentation_map"]];
const SERVER_HINT = "The error is in the service. Try again; if it persists, report it to the operator with the request ID below.";
const CONTENT_TOO_LARGE = 413;

/** @param {Controller} controller */
export function initNotices(controller) {
  const form = /** @type {HTMLFormElement} */ (byId("key-form"));
  const input = /** @type {HTMLInputElement} */ (byId("key"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const isValid = controller.useKey(input.value);
    input.value = "";
    byId("key-error").textContent = isValid ? "" : "API key: expected printable ASCII characters, got others. The key was not saved.";
  });
  byId("key-forget").addEventListener("click", () => controller.forgetKey());

  controller.store.subscribe((state, before) => {
    if (hasChanged(state, before, "errorNotice")) renderErrorNotice(state, () => controller.retry());
    if (hasChanged(state, before, "uploadNotice")) {
      byId("upload-notice").textContent = state.uploadNotice;
      if (state.uploadNotice) byId("upload-notice").scrollIntoView({ block: "nearest" });
    }
    if (hasChanged(state, before, "isKeyRequested")) {
      form.hidden = !state.isKeyRequested;
      if (state.isKeyRequested) input.focus();
    }
    byId("key-forget").hidden = !state.hasKey;
    if (hasChanged(state, before, "result", "face", "isBusy", "isKeyRequested")) {
      const text = summarize(state);
      if (byId("summary").textContent !== text) byId("summary").textContent = text; // screen readers announce each assignment
    }
    if (hasChanged(state, before, "result", "face")) renderWarnings(state);
  });
}

/**
 * @param {State} state
 * @param {() => void} retry
 */
function renderErrorNotice({ errorNotice }, retry) {
  const notice = byId("error-notice");
  notice.hidden = !errorNotice;
  notice.replaceChildren();
  if (!errorNotice) return;
  notice.append(createElement("h2", {}, errorNotice.heading));
  for (const text of [errorNotice.detail, errorNotice.hint]) if (text) notice.append(createElement("p", {}, text));
  if (errorNotice.canRetry) {
    const button = createElement("button", { type: "button" }, "Try again");
    button.addEventListener("click", retry);
    notice.append(button);
  }
  const code = errorNotice.requestId ? `${errorNotice.code}, request ${errorNotice.requestId}` : errorNotice.code;
  notice.append(createElement("p", { class: "fine" }, createElement("code", {}, code)));
  notice.scrollIntoView({ block: "nearest" });
}

/** @param {State} state */
function summarize(state) {
  const { result, isBusy, image, isKeyRequested } = state;
  if (isBusy) return "Processing the photo…";
  if (isKeyRequested && image) return "The photo has not been processed. Enter the API key to continue.";
  if (!result) return "";
  const faces = displayedFaces(state);
  const count = displayedRegions(state).length;
  const time = faces[0].response.processing_time_ms;
  return [
    count === 1 ? "1 region" : `${count} regions`,
    ...(faces.length > 1 ? summarizeFaces(faces) : summarizeFace(faces[0].response)),
    `${time.toFixed(time < 10 ? 1 : 0)} ms${result.taskId ? " as a task" : ""}`,
  ].join(" · ");
}

/** @param {import("./faces.js").Face[]} faces */
function summarizeFaces(faces) {
  const [{ response }] = faces;
  return [describeSize(response.image), response.detection ? `${faces.length} faces detected` : `landmarks of ${faces.length} faces from file`];
}

/** @param {CropResponse} response */
function summarizeFace({ image, output, face, detection }) {
  const isResized = output.width !== image.width || output.height !== image.height;
  return [
    isResized ? `${describeSize(image)}, output ${output.width} × ${output.height}` : describeSize(image),
    detection ? `face detected with ${Math.round(100 * detection.confidence)} % confidence` : "landmarks from file",
    `roll ${Math.abs(face.roll_deg).toFixed(1)}°`,
  ];
}

/** @param {CropResponse["image"]} image */
function describeSize({ width, height, format }) {
  return `${width} × ${height} ${format.toUpperCase()}`;
}

/** @param {State} state */
function renderWarnings(state) {
  const faces = displayedFaces(state);
  const facesByText = /** @type {Map<string, number[]>} */ (new Map());
  for (const { face, response } of faces) {
    for (const { code, message } of response.warnings) {
      const text = WARNINGS[code]?.(response) || message;
      facesByText.set(text, [...(facesByText.get(text) || []), face]);
    }
  }
  const items = Array.from(facesByText, ([text, its]) => (its.length === faces.length ? text : `Face ${its.map((face) => face + 1).join(", ")}: ${text}`));
  const list = byId("warnings");
  list.hidden = !items.length;
  list.replaceChildren(...items.map((text) => createElement("li", {}, text)));
}

/** @param {number | undefined} degrees */
function formatAngle(degrees) {
  return `${Math.round(degrees || 0)}°`;
}

/**
 * Describe an error of the API.
 * @param {ApiError} error
 * @returns {ErrorNotice}
 */
export function describeError(error) {
  const code = error.status === CONTENT_TOO_LARGE && !(error.code in MESSAGES) ? "body_too_large" : error.code;
  const { heading, detail, hint } = explain(code, error.title, error.detail, error.status);
  const canRetry = error.status === 0 || error.status === 408 || error.status >= 500 || code === "unreadable";
  const wait = error.retryAfter ? `Retry after ${error.retryAfter === 1 ? "1 second" : `${error.retryAfter} seconds`}.` : "";
  return { heading, detail, hint: [wait, hint].filter(Boolean).join(" "), code, requestId: error.requestId, canRetry };
}

/**
 * Describe the error of a failed task.
 * @param {{code: string, title: string, detail: string}} error
 * @returns {ErrorNotice}
 */
export function describeTaskError({ code, title, detail }) {
  return { ...explain(code, title, detail, 0), code, requestId: "", canRetry: false };
}

/**
 * @param {string} code
 * @param {string} title
 * @param {string} text detail of the error, which may start with the name of a field
 * @param {number} status
 */
function explain(code, title, text, status) {
  const [, field, message] = FIELD.exec(text) || ["", CODE_PREFIXES.find(([prefix]) => code.startsWith(prefix))?.[1] || "", text];
  // Messages about images refer to the photo, but a label map may be an image too.
  const isOtherFile = field in FIELD_MESSAGES && (code.startsWith("image_") || !(code in MESSAGES));
  const fallback = /** @type {[string, string]} */ ([title || `The service returned status ${status}`, ""]);
  const [heading, hint] = isOtherFile ? FIELD_MESSAGES[field] : MESSAGES[code] || fallback;
  const detail = WITHOUT_DETAIL.has(code) && !isOtherFile ? "" : toSentence(message.replace(PIXELS, formatPixels));
  return { heading, detail, hint: hint || (status >= 500 ? SERVER_HINT : "") };
}

/**
 * Describe files that exceed the limit for a request.
 * @param {number} bytes
 * @param {number} limit
 * @returns {ErrorNotice}
 */
export function describeBodyTooLarge(bytes, limit) {
  const detail = `${formatBytes(bytes)}; the limit is ${formatBytes(limit)}. Nothing was sent.`;
  const [heading, hint] = MESSAGES.body_too_large;
  return { heading, detail, hint, code: "body_too_large", requestId: "", canRetry: false };
}

/**
 * Describe an image that the browser cannot render.
 * @returns {ErrorNotice}
 */
export function describePngError() {
  return {
    heading: "The PNG cannot be saved",
    detail: "This browser cannot render the image, probably because it is very large.",
    hint: "Save the SVG or the JSON instead.",
    code: "not_painted",
    requestId: "",
    canRetry: false,
  };
}

/**
 * Format the numbers of pixels of an image, and of the limit, which is smaller.
 * @param {string} _
 * @param {string} limit
 * @param {string} pixels
 */
function formatPixels(_, limit, pixels) {
  const format = (/** @type {string} */ count) => `${Math.ceil(Number(count) / 100_000) / 10} MP`;
  return `${format(pixels)}; the limit is ${format(limit)}`;
}

/** @param {string} text */
function toSentence(text) {
  if (!text) return "";
  const sentence = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(sentence) ? sentence : `${sentence}.`;
}
