/** Files as they come in: which is the photo, which are landmarks, which is a label map. */

const MOST_JSON_BYTES = 4 * 1024 * 1024;
/** Landmarks of a face in pixels are farther apart than this; those from 0 to 1 are not. */
const NORMALIZED_MAX = 2;
const LEAST_POINTS = 468;

/** @typedef {Partial<Record<"photo" | "landmarks" | "map", File>>} Files */

/**
 * Tell files apart: a picture is a photo, a JSON list is landmarks, and a JSON object of lists is a label map. There is
 * one of each; of files that are left out, a sentence tells.
 * @param {File[]} given
 * @param {string} slot where they were dropped; empty where they may be anything
 * @returns {Promise<{files: Files, leftOut: string}>}
 */
export async function sortFiles(given, slot = "") {
  const files = /** @type {Files} */ ({});
  const spare = /** @type {string[]} */ ([]);
  const foreign = /** @type {string[]} */ ([]);
  for (const file of given) {
    const kind = /** @type {keyof Files | ""} */ (slot) || (await kindOf(file));
    if (!kind) foreign.push(file.name);
    else if (files[kind]) spare.push(file.name);
    else files[kind] = file;
  }
  return { files, leftOut: tellLeftOut(files, spare, foreign) };
}

/**
 * Read files into memory: what is chosen on a disk may be changed, moved or deleted before it is sent, and what is
 * dropped may be a folder. Those that are too large to be sent are left where they are.
 * @param {Files} files
 * @param {number} limit in bytes
 * @returns {Promise<{files: Files, unreadable: string}>} with the name of one that cannot be read, or none
 */
export async function hold(files, limit) {
  const held = /** @type {Files} */ ({});
  for (const [slot, file] of Object.entries(files)) {
    try {
      const isSent = file.size <= limit;
      const content = isSent ? new File([await file.arrayBuffer()], file.name, { type: file.type }) : file;
      held[/** @type {keyof Files} */ (slot)] = content;
    } catch {
      return { files: {}, unreadable: file.name };
    }
  }
  return { files: held, unreadable: "" };
}

/**
 * The points of a landmarks file; null where it holds something else.
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
  return points.length >= LEAST_POINTS && points.every(([x, y]) => Math.abs(x) <= NORMALIZED_MAX && Math.abs(y) <= NORMALIZED_MAX);
}

/** @param {File} file */
function isJson(file) {
  return file.type === "application/json" || file.name.toLowerCase().endsWith(".json");
}

/** @param {File} file */
async function kindOf(file) {
  if (!isJson(file)) return "photo";
  const value = await readJson(file);
  if (typeof value !== "object" || value === null || Array.isArray(value)) return "landmarks"; // the service says what is wrong, if anything is
  return Object.values(value).every(Array.isArray) ? "map" : "";
}

/**
 * @param {Files} files
 * @param {string[]} spare names of those whose place was taken
 * @param {string[]} foreign names of those that are nothing the page knows
 */
function tellLeftOut(files, spare, foreign) {
  const taken = Object.values(files).map(({ name }) => name);
  const parts = [];
  if (spare.length) parts.push(`Only ${taken.join(" and ")} ${taken.length === 1 ? "was" : "were"} taken, and not ${spare.join(", ")}.`);
  if (spare.length && files.photo) parts.push("Drop a label image onto “Label map”.");
  if (foreign.length) parts.push(`Left out: ${foreign.join(", ")}, neither landmarks nor a label map.`);
  return parts.join(" ");
}

/**
 * @param {File} file
 * @returns {Promise<unknown>}
 */
async function readJson(file) {
  if (file.size > MOST_JSON_BYTES) return null;
  try {
    return JSON.parse(await file.text());
  } catch {
    return null;
  }
}
