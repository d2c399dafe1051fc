/** Files as they come in: which is the photo, which are landmarks, which is a label map. */

const MOST_JSON_BYTES = 4 * 1024 * 1024;
/** Landmarks of a face in pixels are farther apart than this; those from 0 to 1 are not. */
const NORMALIZED_MAX = 2;
const LEAST_POINTS = 468;

/**
 * Tell files apart: pictures are photos, a JSON list is landmarks, and any other JSON is a label map.
 * @param {File[]} files
 * @param {string} slot where they were dropped; empty where they may be anything
 * @returns {Promise<{photo?: File, landmarks?: File, map?: File}>}
 */
export async function sortFiles(files, slot = "") {
  if (slot && files.length) return { [slot]: files[0] };
  const found = /** @type {{photo?: File, landmarks?: File, map?: File}} */ ({});
  for (const file of files) {
    if (!isJson(file)) found.photo ||= file;
    else if (isObject(await readJson(file))) found.map ||= file;
    else found.landmarks ||= file; // the service says what is wrong with it, if anything is
  }
  return found;
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

/** @param {unknown} value */
function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
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
