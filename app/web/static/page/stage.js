/** The image with the overlays of its faces. The region below the pointer is highlighted. */

import { byId, createElement, createSvgElement, formatArea, hasPointerMoved } from "./dom.js";
import { arrangeFrames, displayedFaces, displayedRegions, drawnFaces, findZoom, selectableBoxes, visiblePart } from "./faces.js";
import { layoutLabels } from "./label_layout.js";
import { landmarksOf, moveOrigin, positionImage, renderLabels, renderLandmarks, renderRegions } from "./rendering.js";
import { hasChanged } from "./state.js";

/** @typedef {import("./state.js").State} State */
/** @typedef {import("./faces.js").Cell} Cell */

/** Font size of labels on the screen. */
const LABEL_PX = 13;

/**
 * @param {import("./state.js").Store} store
 * @param {(face: number) => void} selectFace
 */
export function initStage(store, selectFace) {
  const frame = byId("frame");
  const photos = createElement("div", { class: "photos" });
  const overlay = createSvgElement("svg", { class: "overlay", role: "img" });
  frame.append(photos, overlay);
  setPhotos(frame, photos, 1);

  overlay.addEventListener("pointermove", (event) => {
    const region = findRegion(event);
    if (hasPointerMoved(event) && store.state.highlighted !== region) store.set({ highlighted: region });
  });
  overlay.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") store.set({ highlighted: null }); // on a touch screen, the highlight stays
  });
  overlay.addEventListener("click", (event) => {
    const face = findFace(event, overlay, store.state);
    if (face === null) store.set({ highlighted: findRegion(event) });
    else selectFace(face);
  });
  byId("zoom").addEventListener("click", () => store.set({ isZoomed: !store.state.isZoomed }));
  new ResizeObserver(() => updateLabels(overlay, store.state)).observe(frame);

  store.subscribe((state, before) => {
    byId("stage").dataset.busy = String(state.isBusy);
    if (hasChanged(state, before, "result", "face", "isZoomed")) showResult(frame, photos, overlay, state);
    if (hasChanged(state, before, "result", "face", "image", "preview", "isBusy")) showImage(frame, photos, state);
    if (hasChanged(state, before, "result", "face", "isZoomed", "view", "landmarks")) updateView(frame, overlay, state);
    if (hasChanged(state, before, "result", "face", "isZoomed", "hidden", "labelled")) {
      for (const region of overlay.querySelectorAll("[data-region]")) {
        region.classList.toggle("off", state.hidden.has(Number(region.getAttribute("data-region"))));
      }
      updateLabels(overlay, state);
    }
    if (hasChanged(state, before, "result", "face", "isZoomed", "highlighted", "hidden")) updateHighlight(overlay, state);
  });
}

/** @param {Event} event */
function findRegion(event) {
  const region = /** @type {Element} */ (event.target).closest("[data-region]");
  return region ? Number(region.getAttribute("data-region")) : null;
}

/**
 * Return the face to select by a click: the smallest one whose box contains the point, or the one in the cell.
 * @param {MouseEvent} event
 * @param {SVGElement} overlay
 * @param {State} state
 */
function findFace(event, overlay, state) {
  const boxes = selectableBoxes(state);
  if (!boxes.length || (state.face !== "all" && findRegion(event) !== null)) return null;
  const matrix = /** @type {SVGSVGElement} */ (overlay).getScreenCTM();
  if (!matrix) return null;
  const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
  const area = ({ bbox }) => bbox[2] * bbox[3];
  const around = boxes.filter(({ bbox: [left, top, width, height] }) => x >= left && y >= top && x < left + width && y < top + height);
  return around.length ? around.reduce((best, box) => (area(box) < area(best) ? box : best)).face : null;
}

/**
 * @param {HTMLElement} frame
 * @param {number} width
 * @param {number} height
 */
function setAspectRatio(frame, width, height) {
  frame.style.setProperty("--width", String(width));
  frame.style.setProperty("--height", String(height));
}

/**
 * Show the image, or explain why it is missing.
 * @param {HTMLElement} frame
 * @param {HTMLElement} photos
 * @param {State} state
 */
function showImage(frame, photos, { image, preview, result, isBusy }) {
  const isMissing = preview.source === "none" && !result;
  byId("welcome").hidden = image !== null && !(isMissing && !isBusy);
  frame.hidden = image === null || isMissing;
  frame.dataset.preview = preview.source;
  if (!preview.url) frame.dataset.ready = "false";
  for (const photo of photos.querySelectorAll("img")) {
    photo.alt = image && preview.url ? `Photo ${image.file.name}` : "";
    if (!preview.url) photo.removeAttribute("src");
    else if (photo.getAttribute("src") !== preview.url) photo.src = preview.url;
  }
  const note = byId("no-preview");
  const isRequested = preview.source === "requested" || (isMissing && isBusy);
  note.hidden = image === null || !(isRequested || (preview.source === "none" && result));
  note.textContent = isRequested
    ? "This browser cannot display the photo. The service converts it."
    : "This browser cannot display the photo, and the service did not return it.";
}

/**
 * @param {HTMLElement} frame
 * @param {HTMLElement} photos
 * @param {SVGElement} overlay
 * @param {State} state
 */
function showResult(frame, photos, overlay, state) {
  const faces = displayedFaces(state);
  overlay.replaceChildren();
  frame.dataset.result = String(faces.length > 0);
  const zoom = byId("zoom");
  zoom.hidden = !findZoom(state);
  zoom.textContent = state.isZoomed ? "Show the whole photo" : `Zoom to the ${faces.length > 1 ? "faces" : "face"}`;
  if (!faces.length) {
    photos.removeAttribute("style");
    setPhotos(frame, photos, 1);
    overlay.removeAttribute("aria-label");
    overlay.setAttribute("aria-hidden", "true");
    return;
  }
  const { width, height, cells } = arrangeFrames(faces);
  const part = visiblePart(state);
  setAspectRatio(frame, part.width, part.height);
  setPhotos(frame, photos, cells.length);
  photos.style.left = `${(-100 * part.x) / part.width}%`;
  photos.style.top = `${(-100 * part.y) / part.height}%`;
  photos.style.width = `${(100 * width) / part.width}%`;
  photos.style.height = `${(100 * height) / part.height}%`;
  overlay.setAttribute("viewBox", `${part.x} ${part.y} ${part.width} ${part.height}`);
  overlay.setAttribute("aria-label", describeOverlay(state));
  overlay.removeAttribute("aria-hidden");
  overlay.append(...selectableBoxes(state).map(renderBox));
  cells.forEach((cell, index) => {
    placeCell(/** @type {HTMLElement} */ (photos.children[index]), cell, width, height);
    const { x, y, width: w, height: h } = cell;
    const cellElement = createSvgElement("svg", { class: "cell", x, y, width: w, height: h, viewBox: `0 0 ${w} ${h}` });
    for (const { face, response } of drawnFaces(cell.faces)) {
      const size = cells.length === 1 ? part : response.output;
      cellElement.append(createSvgElement("g", { "data-face": face }, renderRegions(response, size)));
    }
    overlay.append(cellElement);
  });
}

/** @param {State} state */
function describeOverlay(state) {
  const count = displayedRegions(state).length;
  const faces = displayedFaces(state).length;
  return `${count} regions ${faces > 1 ? `of ${faces} faces ` : ""}drawn over the photo; see the list of regions`;
}

/**
 * Create the elements of the image, one for each cell. Without a result, there is one that fills the frame.
 * @param {HTMLElement} frame
 * @param {HTMLElement} photos
 * @param {number} count
 */
function setPhotos(frame, photos, count) {
  while (photos.children.length > count) photos.lastElementChild?.remove();
  while (photos.children.length < count) {
    const image = /** @type {HTMLImageElement} */ (createElement("img", { class: "image", alt: "" }));
    image.addEventListener("load", () => {
      frame.dataset.ready = "true";
      if (frame.dataset.result !== "true") setAspectRatio(frame, image.naturalWidth, image.naturalHeight);
    });
    photos.append(createElement("div", { class: "photo" }, image));
  }
  const [first] = /** @type {HTMLElement[]} */ (Array.from(photos.children));
  if (frame.dataset.result === "true") return;
  first.removeAttribute("style");
  const image = /** @type {HTMLImageElement} */ (first.firstElementChild);
  image.removeAttribute("style");
  if (image.naturalWidth) setAspectRatio(frame, image.naturalWidth, image.naturalHeight);
}

/**
 * Position the image in its cell, and the cell in the frame.
 * @param {HTMLElement} photo
 * @param {Cell} cell
 * @param {number} width of the frame
 * @param {number} height of the frame
 */
function placeCell(photo, cell, width, height) {
  photo.style.left = `${(100 * cell.x) / width}%`;
  photo.style.top = `${(100 * cell.y) / height}%`;
  photo.style.width = `${(100 * cell.width) / width}%`;
  photo.style.height = `${(100 * cell.height) / height}%`;
  positionImage(/** @type {HTMLImageElement} */ (photo.firstElementChild), cell.faces[0].response);
}

/** @param {import("./faces.js").FaceBox} box */
function renderBox({ face, bbox: [x, y, width, height] }) {
  const title = createSvgElement("title", {}, `Face ${face + 1}`);
  return createSvgElement("rect", { class: "face", "data-face": face, x, y, width, height }, title);
}

/**
 * @param {HTMLElement} frame
 * @param {SVGElement} overlay
 * @param {State} state
 */
function updateView(frame, overlay, state) {
  const { view, landmarks, options } = state;
  frame.classList.toggle("without-photo", !view.image);
  for (const regions of overlay.querySelectorAll(".regions")) regions.setAttribute("fill-opacity", String(view.opacity));
  for (const dots of overlay.querySelectorAll(".landmarks")) dots.remove();
  if (!view.landmarks) return;
  forEachCell(overlay, state, (element, cell, part) => {
    for (const { response } of cell.faces) {
      const points = landmarksOf(response, landmarks, options.units);
      if (points) element.append(renderLandmarks(points, part));
    }
  });
}

/**
 * Update what has the same size on the screen for any size of the frame: labels, and the numbers of faces.
 * @param {SVGElement} overlay
 * @param {State} state
 */
function updateLabels(overlay, state) {
  for (const labels of overlay.querySelectorAll(".labels, .face-number")) labels.remove();
  const displayedWidth = overlay.getBoundingClientRect().width;
  if (!state.result || !displayedWidth) return;
  const fontSize = (LABEL_PX * visiblePart(state).width) / displayedWidth;
  const frames = arrangeFrames(displayedFaces(state)).cells.length;
  const isOneFace = drawnFaces(displayedFaces(state)).length === 1;
  forEachCell(overlay, state, (element, cell, part) => {
    for (const { response } of drawnFaces(cell.faces)) {
      const regions = response.regions.filter((region) => !state.hidden.has(region.id));
      const moved = part.x || part.y ? regions.map((region) => moveOrigin(region, part)) : regions;
      const all = layoutLabels(moved, state.labelled, part, fontSize);
      // Columns of labels would hide the neighbouring faces.
      const labels = isOneFace ? all : all.filter(({ target }) => !target);
      if (!labels.length) continue;
      const group = renderLabels(labels, fontSize);
      if (moved !== regions) group.setAttribute("transform", `translate(${part.x} ${part.y})`);
      element.append(group);
    }
  });
  for (const { face, bbox: [x, y] } of selectableBoxes(state)) {
    const line = 1.2 * fontSize;
    const place = { x: x + fontSize / 3, y: frames === 1 && y > line ? y - fontSize / 3 : y + line, "font-size": line, "stroke-width": fontSize / 4 };
    overlay.append(createSvgElement("text", { class: "face-number", "aria-hidden": "true", ...place }, String(face + 1)));
  }
}

/**
 * @param {SVGElement} overlay
 * @param {State} state
 * @param {(element: Element, cell: Cell, part: import("./faces.js").Box) => void} action gets the element of a cell, the
 *   cell, and its visible part
 */
function forEachCell(overlay, state, action) {
  const faces = displayedFaces(state);
  if (!faces.length) return;
  const elements = overlay.querySelectorAll(".cell");
  const { cells } = arrangeFrames(faces);
  cells.forEach((cell, index) => action(elements[index], cell, cells.length === 1 ? visiblePart(state) : { ...cell, x: 0, y: 0 }));
}

/**
 * @param {SVGElement} overlay
 * @param {State} state
 */
function updateHighlight(overlay, state) {
  const { highlighted, hidden } = state;
  const region = displayedRegions(state).find(({ id }) => id === highlighted && !hidden.has(id));
  for (const shape of overlay.querySelectorAll("[data-region]")) {
    const isHighlighted = Boolean(region) && Number(shape.getAttribute("data-region")) === highlighted;
    shape.classList.toggle("highlighted", isHighlighted);
  }
  overlay.classList.toggle("has-highlight", Boolean(region));
  const caption = byId("caption");
  caption.hidden = !region;
  if (!region) return;
  const swatch = createElement("span", { class: "swatch" });
  swatch.style.setProperty("--colour", region.colour);
  caption.replaceChildren(swatch, region.name, createElement("small", {}, formatArea(region.area_px)));
}
