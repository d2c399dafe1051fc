/** What went wrong, in sentences, and what to do about it. */

import { formatBytes } from "./dom.js";

/** @typedef {import("./state.js").Trouble} Trouble @typedef {import("./api.js").ApiError} ApiError */

/** Codes of the API that the page can say more about: what it means here, and what helps. */
const KNOWN = /** @type {Record<string, [string, string]>} */ ({
  no_face: [
    "No face was found in this photo",
    "Try one in which the face is larger and seen from the front, or add its landmarks.",
  ],
  face_index: ["There are fewer faces in this photo", "Choose the first face again."],
  detection_unavailable: [
    "This service cannot find faces by itself",
    "Add the landmarks of the face as a JSON file, or ask whoever runs the service to set up its models.",
  ],
  image_unsupported_format: ["This is no picture that the service reads", "Save it as PNG, JPEG or WebP, and choose it again."],
  image_empty: ["The file is empty", "Choose another one."],
  image_truncated: ["The picture is cut off", "It may not have been saved or downloaded to its end. Get the file again."],
  image_corrupt: ["The picture is damaged", "Open it in a picture editor, save it anew, and choose that."],
  image_too_large: ["The picture has too many pixels", "Scale it down, and choose it again."],
  body_too_large: ["The files are too large", "Choose a smaller photo, or save it as JPEG."],
  task_too_large: ["The files are too large for a task", "Choose a smaller photo, or save it as JPEG."],
  landmarks_count: ["The landmarks are not those of a face mesh", "Choose a file with MediaPipe’s 478 points, or with 468."],
  landmarks_out_of_range: [
    "The landmarks lie outside the photo",
    "Check that they belong to this photo, and whether they are in pixels or from 0 to 1.",
  ],
  label_map_format: ["The label map cannot be read as labels", "Use a PNG or lossless WebP with one label or colour a region."],
  unauthorized: ["The key was not accepted", "Check it with whoever gave it to you."],
  saturated: ["The service is busy", ""],
  shutting_down: ["The service is restarting", ""],
  queue_full: ["The queue is full", "Without a task, the photo can still be processed at once."],
  queue_unavailable: ["The queue cannot be reached", "Without a task, the photo can still be processed at once."],
  task_unknown: ["The task is gone", "Its record may have been kept for its time. Send it again."],
  unreadable: [
    "The answer cannot be read",
    "It is not the service’s own; something between this page and the service may have changed it.",
  ],
  network: [
    "The service cannot be reached",
    "Check your connection, and that the service runs; the photo is still here.",
  ],
});
const LANDMARK_HINT = "Check the landmarks file: a JSON list of points, each as {\"x\": 1.5, \"y\": 2} or [1.5, 2].";
const MAP_HINT = "Check the label map: a PNG or lossless WebP of labels, or a JSON object of region name to landmark indices.";
/** What the details of the API begin with, where one of the files is at fault. */
const FIELD = /^(image|landmarks|segmentation_map)(?:\[[^:]*)?: (.*)$/s;
const OF_FIELD = /** @type {Record<string, [string, string]>} */ ({
  landmarks: ["The landmarks cannot be used", LANDMARK_HINT],
  segmentation_map: ["The label map cannot be used", MAP_HINT],
});
/** And how the codes begin of what is found in them later. */
const OF_CODE = [["landmarks_", "landmarks"], ["label_map_", "segmentation_map"], ["region_", "segmentation_map"]];
const SERVER_HINT = "This is the service’s fault. Try again; if it stays, tell whoever runs it, with the request id below.";
const TOO_LARGE = 413;

/**
 * Say what an error is.
 * @param {ApiError} error
 * @returns {Trouble}
 */
export function describeError(error) {
  const code = error.status === TOO_LARGE && !(error.code in KNOWN) ? "body_too_large" : error.code;
  const { heading, detail, hint } = explain(code, error.title, error.detail, error.status);
  const canRetry = error.status === 0 || error.status === 408 || error.status >= 500 || code === "unreadable";
  return {
    heading,
    detail,
    hint: [error.retryAfter ? waitSentence(error.retryAfter) : "", hint].filter(Boolean).join(" "),
    code,
    requestId: error.requestId,
    canRetry,
  };
}

/**
 * Say why a task has no result.
 * @param {{code: string, title: string, detail: string}} fault
 * @returns {Trouble}
 */
export function describeFault({ code, title, detail }) {
  return { ...explain(code, title, detail, 0), code, requestId: "", canRetry: false };
}

/**
 * @param {string} code
 * @param {string} title
 * @param {string} text the detail, which may begin with the field's name
 * @param {number} status
 */
function explain(code, title, text, status) {
  const [, field, said] = FIELD.exec(text) || ["", OF_CODE.find(([start]) => code.startsWith(start))?.[1] || "", text];
  // What helps with a picture is meant for the photo: a label map is no JPEG, and may be JSON.
  const isOther = field in OF_FIELD && (code.startsWith("image_") || !(code in KNOWN));
  const fallback = /** @type {[string, string]} */ ([title || `The service answered with status ${status}`, ""]);
  const [heading, hint] = isOther ? OF_FIELD[field] : KNOWN[code] || fallback;
  return { heading, detail: toSentence(said), hint: hint || (status >= 500 ? SERVER_HINT : "") };
}

/**
 * Say that the files are more than a request may have, before they are sent.
 * @param {number} bytes
 * @param {number} limit
 * @returns {Trouble}
 */
export function describeTooLarge(bytes, limit) {
  const detail = `Together they have ${formatBytes(bytes)}; this service takes ${formatBytes(limit)} at a time. Nothing was sent.`;
  const [heading, hint] = KNOWN.body_too_large;
  return { heading, detail, hint, code: "body_too_large", requestId: "", canRetry: false };
}

/**
 * Say that this browser could not paint the picture.
 * @returns {Trouble}
 */
export function describeUnsaved() {
  const detail = "This browser could not paint it; most often, because the photo is very large.";
  const hint = "The SVG and the JSON can be saved all the same.";
  return { heading: "The picture cannot be saved", detail, hint, code: "not_painted", requestId: "", canRetry: false };
}

/** @param {number} seconds */
function waitSentence(seconds) {
  return `It asks to wait ${seconds === 1 ? "a second" : `${seconds} seconds`}.`;
}

/** @param {string} text */
function toSentence(text) {
  if (!text) return "";
  const start = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(start) ? start : `${start}.`;
}
