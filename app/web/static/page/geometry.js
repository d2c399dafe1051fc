/** Where things lie in the frame of a result: the photo, by the transform of the answer, and outlines. */

/** @typedef {import("./state.js").Answer} Answer @typedef {import("./state.js").Region} Region */

/**
 * Lay the photo into the frame as styles: sizes in shares of the frame, and a transform whose shift is in shares of the
 * photo, so that it holds however large the frame is shown.
 * @param {HTMLImageElement} photo
 * @param {Answer} answer
 */
export function layPhoto(photo, { image, output, transform }) {
  const [[a, c, x], [b, d, y]] = transform;
  photo.style.width = `${(100 * image.width) / output.width}%`;
  photo.style.height = `${(100 * image.height) / output.height}%`;
  const shift = `translate(${(100 * x) / image.width}%, ${(100 * y) / image.height}%)`;
  photo.style.transform = `${shift} matrix(${a}, ${b}, ${c}, ${d}, 0, 0)`;
}

/**
 * By EXIF orientation, the way from the turned picture to the one that is stored: a, b, c, d of a matrix, and its shift
 * as factors of the stored width and height.
 * @type {Record<number, number[]>}
 */
const UNTURN = {
  2: [-1, 0, 0, 1, 1, 0],
  3: [-1, 0, 0, -1, 1, 1],
  4: [1, 0, 0, -1, 0, 1],
  5: [0, 1, 1, 0, 0, 0],
  6: [0, -1, 1, 0, 0, 1],
  7: [0, -1, -1, 0, 1, 1],
  8: [0, 1, -1, 0, 1, 0],
};

/**
 * Draw the photo into a canvas of the frame's size. A canvas always draws a picture turned as its EXIF tag asks, so
 * that it has to be turned back: the answer is in the pixels as they are stored.
 * @param {CanvasRenderingContext2D} context
 * @param {HTMLImageElement} photo without a style that forbids to turn it
 * @param {Answer} answer
 */
export function paintPhoto(context, photo, { image, transform }) {
  const [[a, c, x], [b, d, y]] = transform;
  const { width, height, exif_orientation: orientation } = image;
  const back = UNTURN[orientation] || [1, 0, 0, 1, 0, 0];
  const isSwapped = back[0] === 0;
  context.imageSmoothingQuality = "high";
  context.setTransform(a, b, c, d, x, y);
  context.transform(back[0], back[1], back[2], back[3], back[4] * width, back[5] * height);
  context.drawImage(photo, 0, 0, isSwapped ? height : width, isSwapped ? width : height);
  context.resetTransform();
}

/** @param {Region} region */
export function toPathData(region) {
  const rings = [...region.contours, ...region.holes.map((hole) => hole.contour)];
  return rings.map((ring) => `M${ring.map(([x, y]) => `${x},${y}`).join("L")}Z`).join("");
}
