/**
 * Layout of region labels, as in `app/face/rendering/label_layout.py`. A label is inside its region if it fits.
 * Otherwise it is in a column next to the regions, with a leader line to a visible point of its region.
 */

import { CENTRE_RATIO, COLUMN_GAP_EM, GRID_SIDE, LETTER_WIDTH_EM, LINE_HEIGHT_EM, MARGIN_EM } from "./drawing_constants.js";
import { toPathData } from "./rendering.js";

/** @typedef {import("./state.js").Region} Region */
/** @typedef {{width: number, height: number}} Size @typedef {{x: number, y: number, width: number, height: number}} Box */
/** @typedef {{region: Region, x: number, y: number, halfWidth: number, halfHeight: number}} FreeSpace in pixels of the frame */
/** @typedef {{left: number, top: number, columns: number, rows: number}} GridWindow a part of the grid, in cells */
/** @typedef {{region: Region, x: number, y: number, anchor: "start" | "middle" | "end", target: [number, number] | null}} PlacedLabel */

/** Empty cells on each side of the grid, so that its edge is an edge for the distances too. */
const PADDING = 2;
const OPAQUE = 128;

/**
 * Compute the position of each label.
 * @param {Region[]} regions in drawing order
 * @param {ReadonlySet<number>} labelled ids of the regions to label
 * @param {Size} size of the frame
 * @param {number} fontSize in pixels of the frame
 * @returns {PlacedLabel[]}
 */
export function layoutLabels(regions, labelled, size, fontSize) {
  if (!regions.some((region) => labelled.has(region.id))) return [];
  const box = findExtent(regions);
  const labels = /** @type {PlacedLabel[]} */ ([]);
  const left = /** @type {FreeSpace[]} */ ([]);
  const right = /** @type {FreeSpace[]} */ ([]);
  for (const space of findFreeSpaces(regions, labelled, box).sort((a, b) => a.y - b.y)) {
    if (2 * space.halfHeight >= fontSize && 2 * space.halfWidth >= estimateWidth(space.region, fontSize)) {
      labels.push({ region: space.region, x: space.x, y: space.y, anchor: "middle", target: null });
      continue;
    }
    let offset = (space.x - (box.x + box.width / 2)) / box.width;
    if (Math.abs(offset) < CENTRE_RATIO) offset = left.length - right.length;
    (offset <= 0 ? left : right).push(space);
  }
  return [...labels, ...stackLabels(left, "end", box, size, fontSize), ...stackLabels(right, "start", box, size, fontSize)];
}

/**
 * Place labels in a column, evenly spaced, at about the height of their regions. The font size is fixed, unlike in the
 * API's SVG, so in a frame that is too low the smallest regions have no label.
 * @param {FreeSpace[]} spaces sorted by height
 * @param {"start" | "end"} anchor "end" for the left column
 * @param {Box} box of all regions
 * @param {Size} size
 * @param {number} fontSize
 * @returns {PlacedLabel[]}
 */
function stackLabels(spaces, anchor, box, size, fontSize) {
  const limit = Math.floor(size.height / fontSize);
  const largest = new Set([...spaces].sort((a, b) => b.region.area_px - a.region.area_px).slice(0, limit));
  const shown = spaces.filter((space) => largest.has(space));
  if (!shown.length) return [];
  const range = shown[shown.length - 1].y - shown[0].y;
  const line = Math.min(Math.max(LINE_HEIGHT_EM * fontSize, range / Math.max(shown.length - 1, 1)), size.height / shown.length);
  const centre = shown.reduce((sum, { y }) => sum + y, 0) / shown.length;
  const highest = Math.min(centre - (line * (shown.length - 1)) / 2, size.height - line * (shown.length - 0.5));
  const top = Math.max(line / 2, highest);
  const width = Math.max(...shown.map(({ region }) => estimateWidth(region, fontSize))) + MARGIN_EM * fontSize;
  const gap = COLUMN_GAP_EM * fontSize;
  // Regions that fill the frame leave no space next to them. Labels then overlap them instead of being cut off.
  const x = anchor === "end" ? Math.max(box.x - gap, width) : Math.min(box.x + box.width + gap, size.width - width);
  return shown.map((space, row) => ({ region: space.region, x, y: top + line * row, anchor, target: [space.x, space.y] }));
}

/**
 * @param {Region} region
 * @param {number} fontSize
 */
function estimateWidth(region, fontSize) {
  return region.name.length * LETTER_WIDTH_EM * fontSize;
}

/**
 * @param {Region[]} regions
 * @returns {Box}
 */
function findExtent(regions) {
  const left = Math.min(...regions.map(({ bbox }) => bbox[0]));
  const top = Math.min(...regions.map(({ bbox }) => bbox[1]));
  const right = Math.max(...regions.map(({ bbox }) => bbox[0] + bbox[2]));
  const bottom = Math.max(...regions.map(({ bbox }) => bbox[1] + bbox[3]));
  return { x: left, y: top, width: right - left, height: bottom - top };
}

/**
 * Find in each labelled region the point that is farthest from its edge and from the regions drawn over it.
 * @param {Region[]} regions
 * @param {ReadonlySet<number>} labelled
 * @param {Box} box
 * @returns {FreeSpace[]}
 */
function findFreeSpaces(regions, labelled, box) {
  const scale = (GRID_SIDE - 2 * PADDING) / Math.max(box.width, box.height, 1);
  const width = Math.ceil(box.width * scale) + 2 * PADDING;
  const height = Math.ceil(box.height * scale) + 2 * PADDING;
  const windows = regions.map(({ bbox }) => toWindow(bbox, box, scale, width, height));
  const grid = drawGrid(regions, windows, box, scale, width, height);
  return regions.flatMap((region, index) => {
    if (!labelled.has(region.id)) return [];
    const { left, top, columns } = windows[index];
    const distances = computeDistances(grid, index, width, windows[index]);
    let best = -1;
    distances.forEach((distance, cell) => {
      if (distance > (best < 0 ? 0 : distances[best])) best = cell;
    });
    if (best < 0) {
      // Other regions hide all of it, so any point of its outline is as good.
      const [x, y] = region.contours[0][0];
      return [{ region, x, y, halfWidth: 0, halfHeight: 0 }];
    }
    let reach = 1;
    while (distances[best - reach] > 0 && distances[best + reach] > 0) reach += 1;
    return [{
      region,
      x: (left + (best % columns) + 0.5 - PADDING) / scale + box.x,
      y: (top + Math.floor(best / columns) + 0.5 - PADDING) / scale + box.y,
      halfWidth: reach / scale,
      halfHeight: distances[best] / scale,
    }];
  });
}

/**
 * Return the cells around a region, with padding.
 * @param {number[]} bbox
 * @param {Box} box
 * @param {number} scale
 * @param {number} width of the grid
 * @param {number} height of the grid
 * @returns {GridWindow}
 */
function toWindow([x, y, w, h], box, scale, width, height) {
  const left = Math.max(Math.floor((x - box.x) * scale), 0);
  const top = Math.max(Math.floor((y - box.y) * scale), 0);
  const right = Math.min(Math.ceil((x + w - box.x) * scale) + 2 * PADDING, width);
  const bottom = Math.min(Math.ceil((y + h - box.y) * scale) + 2 * PADDING, height);
  return { left, top, columns: right - left, rows: bottom - top };
}

/**
 * Draw all regions on a grid; each cell contains the index of the topmost region, or -1.
 * @param {Region[]} regions
 * @param {GridWindow[]} windows
 * @param {Box} box
 * @param {number} scale
 * @param {number} width
 * @param {number} height
 */
function drawGrid(regions, windows, box, scale, width, height) {
  const grid = new Int16Array(width * height).fill(-1);
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) return grid;
  regions.forEach((region, index) => {
    const { left, top, columns, rows } = windows[index];
    context.resetTransform();
    context.clearRect(left, top, columns, rows);
    context.setTransform(scale, 0, 0, scale, PADDING - box.x * scale, PADDING - box.y * scale);
    context.fill(new Path2D(toPathData(region)), "evenodd");
    const { data } = context.getImageData(left, top, columns, rows);
    for (let cell = 0; cell < columns * rows; cell += 1) {
      if (data[4 * cell + 3] < OPAQUE) continue;
      grid[(top + Math.floor(cell / columns)) * width + left + (cell % columns)] = index;
    }
  });
  return grid;
}

/**
 * Compute the distance of each cell of a region to the nearest other cell: 3-4 chamfer distance in two passes.
 * @param {Int16Array} grid
 * @param {number} index of the region
 * @param {number} width of the grid
 * @param {GridWindow} window
 */
function computeDistances(grid, index, width, { left, top, columns, rows }) {
  const distances = new Float32Array(columns * rows);
  const relax = (/** @type {number} */ cell, /** @type {number} */ step) => {
    const straight = Math.min(distances[cell - step], distances[cell - step * columns]) + 1;
    const diagonal = Math.min(distances[cell - step * columns - 1], distances[cell - step * columns + 1]) + 4 / 3;
    distances[cell] = Math.min(distances[cell], straight, diagonal);
  };
  for (let y = 1; y < rows - 1; y += 1) {
    for (let x = 1; x < columns - 1; x += 1) {
      if (grid[(top + y) * width + left + x] !== index) continue;
      distances[y * columns + x] = Infinity;
      relax(y * columns + x, 1);
    }
  }
  for (let cell = columns * rows - 1; cell >= 0; cell -= 1) if (distances[cell] > 0) relax(cell, -1);
  return distances;
}
