/** A result as SVG elements, and the API's SVG overlay as text. */

import * as constants from "./drawing_constants.js";
import { createSvgElement } from "./dom.js";

/** @typedef {import("./state.js").CropResponse} CropResponse @typedef {import("./state.js").Region} Region */
/** @typedef {{width: number, height: number}} Size */

/** A region, and a label with its leader line, in the API's SVG. Names are escaped, so they cannot match markup. */
const SVG_REGION = /<g class="region" data-name="([^"]*)" data-label-id="(\d+)".*?<\/g>/gs;
const SVG_LABEL = /(?:<path class="leader"[^>]*>){0,2}(?:<circle[^>]*>)?<text[^>]*>([^<]*)<\/text>/g;

/**
 * Remove regions and labels from the API's SVG, which has no options for that.
 * @param {string} svg
 * @param {(id: number) => boolean} hasRegion
 * @param {(id: number) => boolean} hasLabel
 */
export function filterSvg(svg, hasRegion, hasLabel) {
  const ids = new Map(Array.from(svg.matchAll(SVG_REGION), ([, name, id]) => [name, Number(id)]));
  return svg
    .replace(SVG_REGION, (region, _, id) => (hasRegion(Number(id)) ? region : ""))
    .replace(SVG_LABEL, (label, name) => (hasLabel(ids.get(name) ?? -1) ? label : ""));
}

/** @param {Region} region */
export function toPathData(region) {
  const rings = [...region.contours, ...region.holes.map((hole) => hole.contour)];
  return rings.map((ring) => `M${ring.map(([x, y]) => `${x},${y}`).join("L")}Z`).join("");
}

/**
 * Render regions, one group each.
 * @param {CropResponse} response
 * @param {Size} size of the visible part of the frame, to which the width of outlines is proportional
 */
export function renderRegions(response, size) {
  const stroke = (constants.STROKE_PX * longerSide(size)) / constants.REFERENCE_SIDE_PX;
  const group = createSvgElement("g", {
    class: "regions",
    "fill-rule": "evenodd",
    "stroke-width": stroke,
    "stroke-dasharray": `${constants.DASH * stroke} ${constants.GAP * stroke}`,
    "stroke-linejoin": "round",
  });
  for (const region of response.regions) {
    const paint = { fill: region.colour, stroke: region.colour };
    const attributes = { class: "region", "data-region": region.id, "data-name": region.name, ...paint };
    group.append(createSvgElement("g", attributes, createSvgElement("path", { d: toPathData(region) })));
  }
  return group;
}

/**
 * Render labels with their leader lines.
 * @param {import("./label_layout.js").PlacedLabel[]} labels
 * @param {number} fontSize in pixels of the frame
 */
export function renderLabels(labels, fontSize) {
  const group = createSvgElement("g", {
    class: "labels",
    "font-family": "sans-serif",
    "font-size": fontSize,
    fill: constants.TEXT_COLOUR,
    stroke: constants.HALO_COLOUR,
    "stroke-linejoin": "round",
    "paint-order": "stroke",
  });
  for (const { region, x, y, anchor, target } of labels) {
    const label = createSvgElement("g", { class: "label", "data-label": region.id });
    if (target) label.append(...renderLeader(x, y, anchor, target, region.colour, fontSize));
    const position = { x: round(x), y: round(y), dy: `${constants.BASELINE_EM}em`, "text-anchor": anchor };
    label.append(createSvgElement("text", { ...position, "stroke-width": round(constants.HALO_EM * fontSize) }, region.name));
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
function renderLeader(x, y, anchor, [toX, toY], colour, fontSize) {
  const start = x + (anchor === "start" ? -1 : 1) * constants.LEADER_GAP_EM * fontSize;
  const d = `M${round(start)},${round(y)}L${round(toX)},${round(toY)}`;
  const width = constants.LEADER_EM * fontSize;
  const halo = { "stroke-width": round(constants.LEADER_HALO * width), "stroke-opacity": constants.LEADER_HALO_OPACITY };
  const dot = { cx: round(toX), cy: round(toY), r: round(constants.LEADER_DOT * width) };
  return [
    createSvgElement("path", { d, fill: "none", ...halo }),
    createSvgElement("path", { d, fill: "none", stroke: colour, "stroke-width": round(width) }),
    createSvgElement("circle", { ...dot, fill: colour, "stroke-width": round(width) }),
  ];
}

/**
 * Render landmarks as dots: one path of lines with zero length and round caps.
 * @param {number[][]} points in the frame
 * @param {Size} size of the visible part of the frame
 */
export function renderLandmarks(points, size) {
  return createSvgElement("path", {
    class: "landmarks",
    d: points.map(([x, y]) => `M${round(x)},${round(y)}h0`).join(""),
    fill: "none",
    stroke: constants.DOT_COLOUR,
    "stroke-width": (constants.DOT_PX * longerSide(size)) / constants.REFERENCE_SIDE_PX,
    "stroke-linecap": "round",
  });
}

/**
 * Return the landmarks of a result, in its frame: those of the response, or those of the request.
 * @param {CropResponse} response
 * @param {import("./state.js").Landmarks | null} landmarks
 * @param {"pixels" | "normalized"} units
 */
export function landmarksOf(response, landmarks, units) {
  if (response.landmarks) return response.landmarks.map((point) => (Array.isArray(point) ? point : [point.x, point.y]));
  const points = landmarks?.points;
  if (!points || units === "pixels") return points || null;
  return points.map(([x, y]) => [x * response.image.width, y * response.image.height]);
}

/**
 * Position the image in the frame with CSS. Sizes are percentages of the frame and the translation is a percentage of
 * the image, so the position is independent of the displayed size.
 * @param {HTMLImageElement} image
 * @param {CropResponse} response
 */
export function positionImage(image, { image: source, output, transform }) {
  const [[a, c, x], [b, d, y]] = transform;
  image.style.width = `${(100 * source.width) / output.width}%`;
  image.style.height = `${(100 * source.height) / output.height}%`;
  const translation = `translate(${(100 * x) / source.width}%, ${(100 * y) / source.height}%)`;
  image.style.transform = `${translation} matrix(${a}, ${b}, ${c}, ${d}, 0, 0)`;
}

/**
 * Draw the image on a canvas, once in each cell. Both the canvas and the response apply the EXIF orientation.
 * @param {CanvasRenderingContext2D} context
 * @param {HTMLImageElement} image
 * @param {import("./faces.js").Cell[]} cells
 */
export function drawImage(context, image, cells) {
  context.imageSmoothingQuality = "high";
  for (const { x, y, width, height, faces: [{ response }] } of cells) {
    const [[a, c, left], [b, d, top]] = response.transform;
    context.save();
    context.translate(x, y);
    context.beginPath();
    context.rect(0, 0, width, height);
    context.clip();
    context.transform(a, b, c, d, left, top);
    context.drawImage(image, 0, 0, response.image.width, response.image.height);
    context.restore();
  }
}

/**
 * Return a region with other coordinates: those relative to a point.
 * @param {Region} region
 * @param {{x: number, y: number}} origin
 * @returns {Region}
 */
export function moveOrigin(region, { x, y }) {
  const move = (/** @type {number[][]} */ ring) => ring.map((point) => [point[0] - x, point[1] - y]);
  const [left, top, width, height] = region.bbox;
  return {
    ...region,
    bbox: [left - x, top - y, width, height],
    contours: region.contours.map(move),
    holes: region.holes.map((hole) => ({ ...hole, contour: move(hole.contour) })),
  };
}

/** @param {Size} size */
function longerSide({ width, height }) {
  return Math.max(width, height);
}

/** @param {number} value */
function round(value) {
  return Math.round(100 * value) / 100;
}
