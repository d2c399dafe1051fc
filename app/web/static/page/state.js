/**
 * What the page knows, in one object that is replaced and never changed; views redraw what differs from before.
 *
 * @typedef {"file" | "pasted" | "sample"} Origin
 * @typedef {{file: File, url: string, origin: Origin}} Photo `url` is an object URL, revoked with the photo
 * @typedef {{file: File, origin: Origin, points: number[][] | null}} Landmarks `points` is null where it is no list of points
 * @typedef {{file: File, origin: Origin}} LabelMap
 * @typedef {{upright: boolean, crop: boolean, margin: number, face: number, units: "pixels" | "normalized"}} Options
 * @typedef {{photo: boolean, landmarks: boolean, opacity: number}} View
 *
 * @typedef {{id: number, name: string, area_px: number, bbox: number[], contours: number[][][],
 *   holes: {parent: number, contour: number[][]}[]}} Region
 * @typedef {{svg: string, regions: Region[], omitted: {id: number, name: string, reason: string}[],
 *   image: {width: number, height: number, format: string, exif_orientation: number},
 *   face: {roll_deg: number, interocular_px: number, bbox: number[]}, landmarks: number[][] | null,
 *   detection: {confidence: number, face: number, faces: {bbox: number[], confidence: number}[]} | null,
 *   output: {width: number, height: number}, transform: number[][], warnings: {code: string, message: string}[],
 *   processing_time_ms: number}} Answer the document of the API; see its documentation
 * @typedef {{name: string, value: string | File, origin?: Origin}} Field
 * @typedef {{answer: Answer, text: string, colours: Map<number, string>, fields: Field[], taskId: string | null}} Result
 * @typedef {{task_id: string, status: string, progress: number, result: Answer | null,
 *   error: {code: string, title: string, detail: string} | null}} Task
 * @typedef {{heading: string, detail: string, hint: string, code: string, requestId: string, canRetry: boolean}} Trouble
 *
 * @typedef {object} State
 * @property {Photo | null} photo
 * @property {Landmarks | null} landmarks
 * @property {LabelMap | null} map
 * @property {Options} options
 * @property {View} view
 * @property {ReadonlySet<number>} hidden ids of regions that are switched off
 * @property {ReadonlySet<number>} labelled ids of regions whose names are written
 * @property {number | null} lit id of the region that is lit up
 * @property {boolean} isBusy
 * @property {Result | null} result
 * @property {Trouble | null} trouble
 * @property {string} aside said of the files that came last, where not all of them were taken
 * @property {boolean} isKeyAsked
 * @property {boolean} hasKey
 * @property {Task | null} task
 * @property {boolean} isTaskRunning
 * @property {string} taskNote said instead of the task's status; empty where that says it all
 */

/**
 * @param {boolean} hasKey whether a key is kept from before
 * @returns {State}
 */
export function initialState(hasKey) {
  return {
    photo: null,
    landmarks: null,
    map: null,
    options: { upright: false, crop: false, margin: 0.25, face: 0, units: "pixels" },
    view: { photo: true, landmarks: false, opacity: 0.35 },
    hidden: new Set(),
    labelled: new Set(),
    lit: null,
    isBusy: false,
    result: null,
    trouble: null,
    aside: "",
    isKeyAsked: false,
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
   * Draw now, and again whenever something has changed.
   * @param {(state: State, before: State | null) => void} view
   */
  show(view) {
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
 * Tell whether any of these parts differs.
 * @param {State} state
 * @param {State | null} before
 * @param {...keyof State} names
 */
export function hasChanged(state, before, ...names) {
  return before === null || names.some((name) => state[name] !== before[name]);
}

/**
 * A set with one member more or fewer.
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
 * Take ids of regions over to a result that may number its regions otherwise: what was chosen was a name.
 * @param {ReadonlySet<number>} ids
 * @param {ReadonlyMap<number, string>} names by id, as they were until now
 * @param {Region[]} regions of the new result
 */
export function carryOver(ids, names, regions) {
  const chosen = new Set(Array.from(ids, (id) => names.get(id)));
  const taken = new Set(regions.map(({ id }) => id));
  const absent = Array.from(ids).filter((id) => !taken.has(id)); // a region without an area now may have one later
  return new Set([...absent, ...regions.filter(({ name }) => chosen.has(name)).map(({ id }) => id)]);
}
