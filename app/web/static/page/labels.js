/**
 * Where the names of regions are written: inside a region where there is room for it, else in a column beside all of
 * them, with a line to a spot of the region that no other region covers.
 */

import { toPathData } from "./geometry.js";

/** @typedef {import("./state.js").Region} Region */
/** @typedef {{region: Region, x: number, y: number, halfWidth: number, halfHeight: number, isGround: boolean}} Spot `isGround`: others lie over most of it */
/** @typedef {{left: number, top: number, across: number, down: number}} Window cells of the grid */
/** @typedef {{region: Region, x: number, y: number, anchor: "start" | "middle" | "end", target: [number, number] | null}} Label */

/** Regions are drawn this large to look for room in them. */
const GRID = 200;
const RIM = 2;
const OPAQUE = 128;
const LETTER_EM = 0.56;
const LINE_EM = 1.4;
const GAP_EM = 1.4;
const MARGIN_EM = 0.6;
/** A region this near the middle, as a share of the width of all, goes to the emptier side. */
const MIDDLE = 0.08;
/** A region of which less than this is seen is named outside: lines to others would cross a name inside it. */
const MOSTLY = 0.6;

/**
 * @param {Region[]} regions in drawing order
 * @param {ReadonlySet<number>} labelled
 * @param {{width: number, height: number}} size
 * @param {number} fontSize
 * @returns {Label[]}
 */
export function placeLabels(regions, labelled, size, fontSize) {
  if (!regions.some((region) => labelled.has(region.id))) return [];
  const box = unite(regions);
  const spots = findSpots(regions, labelled, box);
  const placed = /** @type {Label[]} */ ([]);
  const outside = /** @type {Spot[]} */ ([]);
  for (const spot of spots) {
    const fits = !spot.isGround && spot.halfWidth >= textWidth(spot.region, fontSize) / 2 + 0.2 * fontSize && spot.halfHeight >= 0.7 * fontSize;
    if (fits) placed.push({ region: spot.region, x: spot.x, y: spot.y, anchor: "middle", target: null });
    else outside.push(spot);
  }
  for (const [side, column] of Object.entries(intoColumns(outside, box))) {
    placed.push(...placeColumn(column, side === "left", box, size, fontSize));
  }
  return placed;
}

/**
 * @param {Spot[]} spots
 * @param {{x: number, width: number}} box
 */
function intoColumns(spots, box) {
  const columns = { left: /** @type {Spot[]} */ ([]), right: /** @type {Spot[]} */ ([]) };
  const middle = box.x + box.width / 2;
  const isMiddle = (/** @type {Spot} */ spot) => Math.abs(spot.x - middle) < MIDDLE * box.width;
  for (const spot of spots) if (!isMiddle(spot)) columns[spot.x < middle ? "left" : "right"].push(spot);
  for (const spot of spots) {
    if (isMiddle(spot)) columns[columns.left.length < columns.right.length ? "left" : "right"].push(spot);
  }
  return columns;
}

/**
 * Set names under each other, each near its spot and all of them in the frame.
 * @param {Spot[]} spots
 * @param {boolean} isLeft
 * @param {{x: number, width: number}} box
 * @param {{width: number, height: number}} size
 * @param {number} fontSize
 * @returns {Label[]}
 */
function placeColumn(spots, isLeft, box, size, fontSize) {
  // Where names would lie over each other, the largest regions have theirs.
  const most = Math.floor(size.height / fontSize);
  const sorted = [...spots].sort((a, b) => b.region.area_px - a.region.area_px).slice(0, most).sort((a, b) => a.y - b.y);
  const line = Math.min(LINE_EM * fontSize, size.height / Math.max(sorted.length, 1));
  const rows = spread(sorted.map((spot) => spot.y), line, size.height);
  const widest = Math.max(...sorted.map((spot) => textWidth(spot.region, fontSize)));
  const room = widest + MARGIN_EM * fontSize;
  const x = isLeft
    ? Math.max(box.x - GAP_EM * fontSize, Math.min(room, size.width))
    : Math.min(box.x + box.width + GAP_EM * fontSize, Math.max(size.width - room, 0));
  return sorted.map((spot, row) => ({
    region: spot.region,
    x,
    y: rows[row],
    anchor: isLeft ? "end" : "start",
    target: [spot.x, spot.y],
  }));
}

/**
 * Move heights apart as little as it takes: down until none overlaps, then up from the lower edge.
 * @param {number[]} wanted rising
 * @param {number} line least distance
 * @param {number} height
 */
function spread(wanted, line, height) {
  const rows = wanted.map((y) => Math.min(Math.max(y, line / 2), height - line / 2));
  // Those that crowd are spread around the middle of where they want to be.
  for (let pass = 0; pass < 12; pass += 1) {
    for (let row = 1; row < rows.length; row += 1) {
      const lack = line - (rows[row] - rows[row - 1]);
      if (lack > 0) {
        rows[row] += lack / 2;
        rows[row - 1] -= lack / 2;
      }
    }
  }
  rows.forEach((y, row) => (rows[row] = Math.max(y, row ? rows[row - 1] + line : line / 2)));
  for (let row = rows.length - 1, low = height - line / 2; row >= 0; row -= 1, low = rows[row + 1] - line) {
    rows[row] = Math.min(rows[row], low);
  }
  return rows;
}

/**
 * @param {Region} region
 * @param {number} fontSize
 */
function textWidth(region, fontSize) {
  return region.name.length * LETTER_EM * fontSize;
}

/** @param {Region[]} regions */
function unite(regions) {
  const left = Math.min(...regions.map(({ bbox }) => bbox[0]));
  const top = Math.min(...regions.map(({ bbox }) => bbox[1]));
  const right = Math.max(...regions.map(({ bbox }) => bbox[0] + bbox[2]));
  const bottom = Math.max(...regions.map(({ bbox }) => bbox[1] + bbox[3]));
  return { x: left, y: top, width: right - left, height: bottom - top };
}

/**
 * Find for each region that is named the spot that is farthest from its edge and from what is drawn over it.
 * @param {Region[]} regions
 * @param {ReadonlySet<number>} labelled
 * @param {{x: number, y: number, width: number, height: number}} box
 * @returns {Spot[]}
 */
function findSpots(regions, labelled, box) {
  const scale = GRID / Math.max(box.width, box.height, 1);
  const width = Math.ceil(box.width * scale) + 2 * RIM;
  const height = Math.ceil(box.height * scale) + 2 * RIM;
  const windows = regions.map(({ bbox }) => toWindow(bbox, box, scale, width, height));
  const { owners, drawn } = drawOwners(regions, windows, box, scale, width, height);
  return regions.flatMap((region, index) => {
    if (!labelled.has(region.id)) return [];
    const { left, top, across } = windows[index];
    const distances = distancesInside(owners, index, width, windows[index]);
    let best = -1;
    let seen = 0;
    distances.forEach((distance, cell) => {
      if (distance > 0) seen += 1;
      if (distance > (best < 0 ? 0 : distances[best])) best = cell;
    });
    if (best < 0) {
      const [x, y, w, h] = region.bbox; // all of it is covered
      return [{ region, x: x + w / 2, y: y + h / 2, halfWidth: 0, halfHeight: 0, isGround: true }];
    }
    let reach = 0;
    while (distances[best - reach - 1] > 0 && distances[best + reach + 1] > 0) reach += 1;
    return [{
      region,
      x: (left + (best % across) + 0.5 - RIM) / scale + box.x,
      y: (top + Math.floor(best / across) + 0.5 - RIM) / scale + box.y,
      halfWidth: reach / scale,
      halfHeight: distances[best] / scale,
      isGround: seen < MOSTLY * drawn[index],
    }];
  });
}

/**
 * The cells around a region, with a rim that is none of it.
 * @param {number[]} bbox
 * @param {{x: number, y: number}} box
 * @param {number} scale
 * @param {number} width of the grid
 * @param {number} height
 * @returns {Window}
 */
function toWindow([x, y, w, h], box, scale, width, height) {
  const left = Math.max(Math.floor((x - box.x) * scale), 0);
  const top = Math.max(Math.floor((y - box.y) * scale), 0);
  const right = Math.min(Math.ceil((x + w - box.x) * scale) + 2 * RIM, width);
  const bottom = Math.min(Math.ceil((y + h - box.y) * scale) + 2 * RIM, height);
  return { left, top, across: right - left, down: bottom - top };
}

/**
 * Draw every region in turn; a cell belongs to the last one drawn there. Counts the cells that each was drawn in.
 * @param {Region[]} regions
 * @param {Window[]} windows
 * @param {{x: number, y: number}} box
 * @param {number} scale
 * @param {number} width
 * @param {number} height
 */
function drawOwners(regions, windows, box, scale, width, height) {
  const owners = new Int16Array(width * height).fill(-1);
  const drawn = new Array(regions.length).fill(0);
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) return { owners, drawn };
  regions.forEach((region, index) => {
    const { left, top, across, down } = windows[index];
    context.resetTransform();
    context.clearRect(left, top, across, down);
    context.setTransform(scale, 0, 0, scale, RIM - box.x * scale, RIM - box.y * scale);
    context.fill(new Path2D(toPathData(region)), "evenodd");
    const { data } = context.getImageData(left, top, across, down);
    for (let cell = 0; cell < across * down; cell += 1) {
      if (data[4 * cell + 3] < OPAQUE) continue;
      owners[(top + Math.floor(cell / across)) * width + left + (cell % across)] = index;
      drawn[index] += 1;
    }
  });
  return { owners, drawn };
}

/**
 * How far each cell of one owner is from the nearest cell that is not its own: 3-4 chamfer, two passes.
 * @param {Int16Array} owners
 * @param {number} owner
 * @param {number} width of the grid
 * @param {Window} window
 */
function distancesInside(owners, owner, width, { left, top, across, down }) {
  const found = new Float32Array(across * down);
  const relax = (/** @type {number} */ cell, /** @type {number} */ step) => {
    const straight = Math.min(found[cell - step], found[cell - step * across]) + 1;
    const slanting = Math.min(found[cell - step * across - 1], found[cell - step * across + 1]) + 4 / 3;
    found[cell] = Math.min(found[cell], straight, slanting);
  };
  for (let y = 1; y < down - 1; y += 1) {
    for (let x = 1; x < across - 1; x += 1) {
      if (owners[(top + y) * width + left + x] !== owner) continue;
      found[y * across + x] = Infinity;
      relax(y * across + x, 1);
    }
  }
  for (let cell = across * down - 1; cell >= 0; cell -= 1) if (found[cell] > 0) relax(cell, -1);
  return found;
}
