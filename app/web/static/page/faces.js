/** The faces of a result: which ones are displayed, and the frames that they are displayed in. */

/** @typedef {import("./state.js").State} State @typedef {import("./state.js").CropResponse} CropResponse @typedef {import("./state.js").Region} Region */
/** @typedef {import("./state.js").Field} Field @typedef {{face: number, response: CropResponse}} Face a face by its index */
/** @typedef {{x: number, y: number, width: number, height: number, faces: Face[]}} Cell a part of the frame, in its pixels */
/** @typedef {{width: number, height: number, cells: Cell[]}} Frame the displayed image @typedef {{face: number, bbox: number[]}} FaceBox */
/** @typedef {{x: number, y: number, width: number, height: number}} Box */

/** Margin around a zoomed face, in parts of its longer side: enough for the hair, and for labels. */
const ZOOM_MARGIN = 0.4;
/** Largest part of the frame that is worth a zoom. */
const MAX_ZOOM_AREA = 0.7;

/**
 * Return the selected face, or all faces.
 * @param {State} state
 * @returns {Face[]} empty without a result
 */
export function displayedFaces({ result, face }) {
  if (!result) return [];
  const faces = result.responses.map((response, index) => ({ face: index, response }));
  return face === "all" ? faces : faces.slice(face, face + 1);
}

/**
 * Return the regions of the displayed faces. Regions with the same id are one region, with the area of all of them.
 * @param {State} state
 * @returns {Region[]}
 */
export function displayedRegions(state) {
  const merged = /** @type {Map<number, Region>} */ (new Map());
  for (const { response } of drawnFaces(displayedFaces(state))) {
    for (const region of response.regions) {
      const known = merged.get(region.id);
      merged.set(region.id, known ? { ...known, area_px: known.area_px + region.area_px } : region);
    }
  }
  return Array.from(merged.values());
}

/**
 * Return the faces whose regions are drawn: only the first one if all of them have the regions of one label map.
 * @param {Face[]} faces in one frame
 */
export function drawnFaces(faces) {
  return hasSharedRegions(faces) ? faces.slice(0, 1) : faces;
}

/** @param {Face[]} faces */
function hasSharedRegions(faces) {
  const key = ({ response }) => JSON.stringify(response.regions.map(({ id, area_px, bbox }) => [id, area_px, bbox]));
  return faces.length > 1 && areInOneFrame(faces) && faces.every((face) => key(face) === key(faces[0]));
}

/**
 * Arrange the frames of faces as the API does in the SVG of all faces: one below the other if they are the same,
 * otherwise in a grid, whose cells have the size of the largest frame.
 * @param {Face[]} faces at least one
 * @returns {Frame}
 */
export function arrangeFrames(faces) {
  const width = Math.max(...faces.map(({ response }) => response.output.width));
  const height = Math.max(...faces.map(({ response }) => response.output.height));
  if (areInOneFrame(faces)) return { width, height, cells: [{ x: 0, y: 0, width, height, faces }] };
  const columns = Math.ceil(Math.sqrt(faces.length));
  const cells = faces.map((face, index) => ({
    x: (index % columns) * width,
    y: Math.floor(index / columns) * height,
    ...face.response.output,
    faces: [face],
  }));
  return { width: columns * width, height: Math.ceil(faces.length / columns) * height, cells };
}

/**
 * Return the part of the frame that contains the displayed faces, with a margin.
 * @param {State} state
 * @returns {Box | null} null if the faces have their own frames, or fill most of the frame
 */
export function findZoom(state) {
  const faces = displayedFaces(state);
  if (!faces.length || !areInOneFrame(faces)) return null;
  const frame = arrangeFrames(faces);
  const boxes = faces.map(({ response: { face: { bbox: [x, y, width, height] } } }) => {
    const margin = ZOOM_MARGIN * Math.max(width, height);
    return [x - margin, y - margin, x + width + margin, y + height + margin];
  });
  const x = Math.max(0, Math.min(...boxes.map(([left]) => left)));
  const y = Math.max(0, Math.min(...boxes.map(([, top]) => top)));
  const width = Math.min(frame.width, Math.max(...boxes.map(([, , right]) => right))) - x;
  const height = Math.min(frame.height, Math.max(...boxes.map(([, , , bottom]) => bottom))) - y;
  const isSmaller = width > 0 && height > 0 && width * height < MAX_ZOOM_AREA * frame.width * frame.height;
  return isSmaller ? { x, y, width, height } : null;
}

/**
 * Return the visible part of the frame.
 * @param {State} state with a result
 * @returns {Box}
 */
export function visiblePart(state) {
  const { width, height } = arrangeFrames(displayedFaces(state));
  return (state.isZoomed && findZoom(state)) || { x: 0, y: 0, width, height };
}

/** @param {Face[]} faces */
function areInOneFrame(faces) {
  const key = ({ response }) => JSON.stringify([response.transform, response.output]);
  return faces.every((face) => key(face) === key(faces[0]));
}

/**
 * Return the boxes of the faces that can be selected, in pixels of the frame: all of them, or all but the selected one.
 * @param {State} state
 * @returns {FaceBox[]} empty if there is one face
 */
export function selectableBoxes(state) {
  const responses = state.result ? state.result.responses : [];
  if (responses.length < 2) return [];
  const all = responses.map((response, face) => ({ face, response }));
  if (areInOneFrame(all)) {
    return all.filter(({ face }) => face !== state.face).map(({ face, response }) => ({ face, bbox: response.face.bbox }));
  }
  if (state.face === "all") {
    return arrangeFrames(all).cells.map(({ x, y, width, height, faces: [{ face }] }) => ({ face, bbox: [x, y, width, height] }));
  }
  const boxes = responses[state.face].detection?.faces || [];
  return boxes.map(({ bbox }, face) => ({ face, bbox })).filter(({ face }) => face !== state.face);
}

/**
 * Return the fields of a request whose response is what the page displays. The page itself requests all faces, so that
 * selecting one needs no further request.
 * @param {State} state
 * @returns {Field[]}
 */
export function displayedFields({ result, face }) {
  if (!result) return [];
  const others = result.fields.filter(({ name }) => name !== "face");
  if (face === "all") return result.responses.length > 1 ? result.fields : others;
  return face ? [...others, { name: "face", value: String(face) }] : others;
}

/**
 * Return the text of that response.
 * @param {State} state
 */
export function displayedText(state) {
  const { result } = state;
  if (!result) return "";
  const isAll = state.face === "all" && result.responses.length > 1;
  return isAll ? result.text : JSON.stringify(displayedFaces(state)[0].response);
}
