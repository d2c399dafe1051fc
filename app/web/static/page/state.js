/**
 * The state of the page: one object that is replaced, never modified. Views redraw the parts that have changed.
 *
 * @typedef {"file" | "pasted" | "sample"} Origin
 * @typedef {{file: File, origin: Origin}} Image
 * @typedef {{source: "loading" | "browser" | "none" | "requested" | "service", url: string}} Preview the image as
 *   displayed, decoded by the browser or, if that fails (`none`), requested from the service. `url` is an object URL,
 *   revoked when the image is replaced, or empty
 * @typedef {{file: File, origin: Origin, points: number[][] | null}} Landmarks `points` is null if the file is not a list of points
 * @typedef {{file: File, origin: Origin}} LabelMap
 * @typedef {{upright: boolean, crop: boolean, margin: number, units: "pixels" | "normalized"}} Options
 * @typedef {{image: boolean, landmarks: boolean, opacity: number}} View
 *
 * @typedef {{id: number, name: string, colour: string, area_px: number, bbox: number[], contours: number[][][],
 *   holes: {parent: number, contour: number[][]}[]}} Region
 * @typedef {{svg: string, regions: Region[], omitted: {id: number, name: string, reason: string}[],
 *   image: {width: number, height: number, format: string, exif_orientation: number},
 *   face: {roll_deg: number, yaw_deg?: number, pitch_deg?: number, interocular_px: number, bbox: number[]}, landmarks: (number[] | {x: number, y: number, z: number})[] | null,
 *   detection: {confidence: number, face: number, faces: {bbox: number[], confidence: number}[]} | null,
 *   output: {width: number, height: number}, transform: number[][], inverse_transform: number[][], warnings: {code: string, message: string}[],
 *   processing_time_ms: number}} CropResponse a response of the API; see its documentation
 * @typedef {{name: string, value: string | File, origin?: Origin}} Field a field of a request
 * @typedef {{responses: CropResponse[], text: string, fields: Field[], taskId: string | null}} Result
 *   the response for each face, the text of all of them, and the fields of the request
 * @typedef {{task_id: string, status: string, progress: number, result: CropResponse[] | null,
 *   error: {code: string, title: string, detail: string} | null}} Task
 * @typedef {{heading: string, detail: string, hint: string, code: string, requestId: string, canRetry: boolean}} ErrorNotice
 *
 * @typedef {object} State
 * @property {Image | null} image
 * @property {Preview} preview
 * @property {Landmarks | null} landmarks
 * @property {LabelMap | null} map
 * @property {Options} options
 * @property {"all" | number} face index of the displayed face, or all faces
 * @property {View} view
 * @property {boolean} isZoomed whether only the displayed faces are visible, not the whole frame
 * @property {ReadonlySet<number>} hidden ids of hidden regions
 * @property {ReadonlySet<number>} labelled ids of regions with a label
 * @property {number | null} highlighted id of the highlighted region
 * @property {boolean} isBusy
 * @property {Result | null} result
 * @property {ErrorNotice | null} errorNotice
 * @property {string} uploadNotice notice about files of the last upload that were ignored or cannot be read
 * @property {boolean} isKeyRequested
 * @property {boolean} hasKey
 * @property {Task | null} task
 * @property {boolean} isTaskRunning
 * @property {string} taskNote replaces the status of the task, unless it is empty
 */

import { DEFAULT_OPACITY } from "./drawing_constants.js";
import { displayedRegions } from "./faces.js";

/**
 * @param {boolean} hasKey whether the session has an API key
 * @returns {State}
 */
export function createInitialState(hasKey) {
  return {
    image: null,
    preview: { source: "loading", url: "" },
    landmarks: null,
    map: null,
    options: { upright: false, crop: false, margin: 0.25, units: "pixels" },
    face: "all",
    view: { image: true, landmarks: false, opacity: DEFAULT_OPACITY },
    isZoomed: false,
    hidden: new Set(),
    labelled: new Set(),
    highlighted: null,
    isBusy: false,
    result: null,
    errorNotice: null,
    uploadNotice: "",
    isKeyRequested: false,
    hasKey,
    task: null,
    isTaskRunning: false,
    taskNote: "",
  };
}

export class Store {
  /** @param {State} state */
  constructor(state) {
    this.state = state;
    /** @type {((state: State, before: State) => void)[]} */
    this.views = [];
  }

  /**
   * Run a view now and after each change.
   * @param {(state: State, before: State | null) => void} view
   */
  subscribe(view) {
    this.views.push(view);
    view(this.state, null);
  }

  /** @param {Partial<State>} changes */
  set(changes) {
    const before = this.state;
    this.state = { ...before, ...changes };
    for (const view of this.views) view(this.state, before);
  }
}

/**
 * Return whether any of the named properties has changed.
 * @param {State} state
 * @param {State | null} before
 * @param {...keyof State} names
 */
export function hasChanged(state, before, ...names) {
  return before === null || names.some((name) => state[name] !== before[name]);
}

/**
 * Return a copy of a set, with or without a member.
 * @param {ReadonlySet<number>} set
 * @param {number} member
 * @param {boolean} isIn
 */
export function withMember(set, member, isIn) {
  const changed = new Set(set);
  if (isIn) changed.add(member);
  else changed.delete(member);
  return changed;
}

/**
 * Convert ids of regions to those of a new result. Users select regions by name, and another label map may assign
 * other ids.
 * @param {ReadonlySet<number>} ids
 * @param {ReadonlyMap<number, string>} names last known name by id
 * @param {Region[]} regions of the new result
 */
export function mapRegionIds(ids, names, regions) {
  const selected = new Set(Array.from(ids, (id) => names.get(id)));
  const used = new Set(regions.map(({ id }) => id));
  const absent = Array.from(ids).filter((id) => !used.has(id)); // the next result may contain these regions again
  return new Set([...absent, ...regions.filter(({ name }) => selected.has(name)).map(({ id }) => id)]);
}

/**
 * Return whether every displayed region has a label.
 * @param {State} state
 */
export function areAllLabelled(state) {
  const regions = displayedRegions(state);
  return regions.length > 0 && regions.every(({ id }) => state.labelled.has(id));
}
