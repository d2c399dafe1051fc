/** A result as elements of SVG: each region an element of its own, drawn from the contours of the answer. */

import { makeSvg } from "./dom.js";
import { toPathData } from "./geometry.js";
import { placeLabels } from "./labels.js";

/** @typedef {import("./state.js").Answer} Answer @typedef {import("./state.js").Region} Region */
/** @typedef {{width: number, height: number}} Size */

const REFERENCE_SIDE_PX = 1000;
const STROKE_PX = 1.5;
const DOT_PX = 2;
/** Height of the letters in what is saved, as a share of the longer side; on the screen it follows the screen. */
export const FONT_RATIO = 0.022;
const OTHER_COLOUR = "#4dabf7";
const HALO = "#1a1a1a";
/** What XML cannot hold; names of regions are the caller's. */
const FORBIDDEN = /[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu;

/**
 * Read the colours that the service drew its regions in. Its SVG is only searched as text; it never becomes elements.
 * @param {Answer} answer
 * @returns {Map<number, string>} by label id
 */
export function readColours(answer) {
  const found = /** @type {Map<number, string>} */ (new Map());
  // Quotes are escaped in names, so that no name can look like these attributes.
  for (const [, id, colour] of atob(answer.svg).matchAll(/ data-label-id="(\d+)" fill="(#[0-9a-f]{6})"/g)) {
    found.set(Number(id), colour);
  }
  return found;
}

/**
 * @param {Map<number, string>} colours
 * @param {number} id
 */
export function colourOf(colours, id) {
  return colours.get(id) || OTHER_COLOUR;
}

/**
 * Draw the regions.
 * @param {Answer} answer
 * @param {Map<number, string>} colours
 * @param {number} opacity of fills, 0 to 1
 */
export function drawRegions(answer, colours, opacity) {
  const group = makeSvg("g", {
    class: "regions",
    "fill-opacity": opacity,
    "fill-rule": "evenodd",
    "stroke-width": (STROKE_PX * longerSide(answer.output)) / REFERENCE_SIDE_PX,
    "stroke-linejoin": "round",
  });
  for (const region of answer.regions) {
    const colour = colourOf(colours, region.id);
    const shape = makeSvg("path", { d: toPathData(region) });
    group.append(
      makeSvg("g", { class: "region", "data-region": region.id, "data-name": cleanText(region.name), fill: colour, stroke: colour }, shape),
    );
  }
  return group;
}

/**
 * Draw the names of regions: inside where there is room, else beside them with a line.
 * @param {Region[]} regions in drawing order
 * @param {Map<number, string>} colours
 * @param {ReadonlySet<number>} labelled ids of those that are named; the others only stand in the way
 * @param {Size} size of the frame
 * @param {number} fontSize in pixels of the frame
 */
export function drawLabels(regions, colours, labelled, size, fontSize) {
  const group = makeSvg("g", {
    class: "labels",
    "font-family": "sans-serif",
    "font-size": fontSize,
    fill: "#ffffff",
    stroke: HALO,
    "stroke-linejoin": "round",
    "paint-order": "stroke",
  });
  for (const { region, x, y, anchor, target } of placeLabels(regions, labelled, size, fontSize)) {
    const label = makeSvg("g", { class: "label", "data-label": region.id });
    if (target) label.append(...drawLeader(x, y, anchor, target, colourOf(colours, region.id), fontSize));
    const place = { x: round(x), y: round(y), dy: ".35em", "text-anchor": anchor, "stroke-width": round(0.22 * fontSize) };
    label.append(makeSvg("text", place, cleanText(region.name)));
    group.append(label);
  }
  return group;
}

/**
 * @param {number} x
 * @param {number} y
 * @param {string} anchor
 * @param {[number, number]} target
 * @param {string} colour
 * @param {number} fontSize
 */
function drawLeader(x, y, anchor, [toX, toY], colour, fontSize) {
  const start = x + (anchor === "start" ? -0.35 : 0.35) * fontSize;
  const d = `M${round(start)},${round(y)}L${round(toX)},${round(toY)}`;
  const width = round(0.08 * fontSize);
  return [
    makeSvg("path", { d, fill: "none", "stroke-width": 2.5 * width, "stroke-opacity": 0.5 }),
    makeSvg("path", { d, fill: "none", stroke: colour, "stroke-width": width }),
    makeSvg("circle", { cx: round(toX), cy: round(toY), r: 2 * width, fill: colour, "stroke-width": width }),
  ];
}

/**
 * Draw landmarks as dots, all in one path.
 * @param {number[][]} points in the frame
 * @param {Size} size
 */
export function drawLandmarks(points, size) {
  return makeSvg("path", {
    class: "landmarks",
    d: points.map(([x, y]) => `M${round(x)},${round(y)}h0`).join(""),
    fill: "none",
    stroke: "#ffffff",
    "stroke-width": (DOT_PX * longerSide(size)) / REFERENCE_SIDE_PX,
    "stroke-linecap": "round",
  });
}

/**
 * The landmarks of a result in its frame: those of the answer, or those that were sent.
 * @param {Answer} answer
 * @param {import("./state.js").Landmarks | null} sent
 * @param {"pixels" | "normalized"} units
 */
export function landmarksOf(answer, sent, units) {
  if (answer.landmarks) return answer.landmarks;
  const points = sent?.points;
  if (!points || units === "pixels") return points || null;
  return points.map(([x, y]) => [x * answer.image.width, y * answer.image.height]);
}

/** @param {Size} size */
export function longerSide({ width, height }) {
  return Math.max(width, height);
}

/** @param {string} text */
export function cleanText(text) {
  return text.replace(FORBIDDEN, "\ufffd");
}

/** @param {number} value */
function round(value) {
  return Math.round(100 * value) / 100;
}
