/** What the page does: it takes files, asks the service, and keeps what comes of it. */

import * as api from "./api.js";
import { readColours } from "./drawing.js";
import { looksNormalized, readPoints } from "./files.js";
import { describeError, describeTooLarge } from "./problems.js";

/** @typedef {import("./state.js").Field} Field @typedef {import("./state.js").Origin} Origin @typedef {import("./state.js").State} State */
/** @typedef {{photo?: File, landmarks?: File, map?: File}} Files */

const DEFAULT_MARGIN = 0.25;
/** Room for what stands between the parts of a form. */
const FORM_BYTES = 4096;

/**
 * The fields of the request that the state asks for; what is as the service has it anyway is left out.
 * @param {State} state
 * @returns {Field[]}
 */
export function fieldsOf({ photo, landmarks, map, options }) {
  const fields = /** @type {Field[]} */ ([]);
  if (photo) fields.push({ name: "image", value: photo.file, origin: photo.origin });
  if (landmarks) fields.push({ name: "landmarks", value: landmarks.file, origin: landmarks.origin });
  if (landmarks && options.units !== "pixels") fields.push({ name: "landmark_units", value: options.units });
  if (map) fields.push({ name: "segmentation_map", value: map.file, origin: map.origin });
  if (options.face && !landmarks) fields.push({ name: "face", value: String(options.face) });
  if (options.upright) fields.push({ name: "upright", value: "true" });
  if (options.crop) fields.push({ name: "crop", value: "face" });
  if (options.crop && options.margin !== DEFAULT_MARGIN) fields.push({ name: "margin", value: String(options.margin) });
  return fields;
}

export class Work {
  /**
   * @param {import("./state.js").Store} store
   * @param {{isKeyNeeded: boolean, maxBodyBytes: number}} config
   */
  constructor(store, config) {
    this.store = store;
    this.config = config;
    this.running = new AbortController();
    this.taking = Promise.resolve();
    /** What to do again, once there is a key or the user says so. @type {() => void} */
    this.again = () => {};
  }

  /**
   * Take files, and process at once where there is a photo. Reading takes a moment: what comes later waits for it.
   * @param {Files} files
   * @param {Origin} origin
   */
  take(files, origin) {
    this.taking = this.taking.catch(() => {}).then(() => this.takeNow(files, origin));
    return this.taking;
  }

  /**
   * @param {Files} files
   * @param {Origin} origin
   */
  async takeNow(files, origin) {
    if (files.photo) this.takePhoto(files.photo, origin);
    if (files.landmarks) await this.takeLandmarks(files.landmarks, origin);
    if (files.map) this.store.set({ map: { file: files.map, origin } });
    if (this.store.state.photo) this.process();
  }

  /**
   * @param {File} file
   * @param {Origin} origin
   */
  takePhoto(file, origin) {
    const { photo, landmarks, map, options } = this.store.state;
    if (photo) URL.revokeObjectURL(photo.url);
    // Landmarks and label images belong to one photo; regions by name suit any. What was there before any photo was
    // meant for this one.
    const isForOld = Boolean(photo);
    const isImageMap = map !== null && map.file.type.startsWith("image/");
    this.store.set({
      photo: { file, url: URL.createObjectURL(file), origin },
      landmarks: isForOld ? null : landmarks,
      map: isForOld && isImageMap ? null : map,
      options: { ...options, face: 0, units: isForOld ? "pixels" : options.units },
      result: null,
      lit: null,
    });
  }

  /**
   * @param {File} file
   * @param {Origin} origin
   */
  async takeLandmarks(file, origin) {
    const points = await readPoints(file);
    const units = points && looksNormalized(points) ? "normalized" : "pixels";
    this.store.set({ landmarks: { file, origin, points }, options: { ...this.store.state.options, units } });
  }

  /** @param {"landmarks" | "map"} name */
  leaveOut(name) {
    this.store.set({ [name]: null });
    if (this.store.state.photo) this.process();
  }

  /** @param {Partial<State["options"]>} changes */
  setOptions(changes) {
    this.store.set({ options: { ...this.store.state.options, ...changes } });
    if (this.store.state.photo) this.process();
  }

  /** Take the sample that comes with the page. */
  async takeSample() {
    this.again = () => this.takeSample();
    await this.run(async (signal) => {
      const [photo, landmarks] = await Promise.all(["astronaut.jpg", "astronaut.landmarks.json"].map(api.asset));
      if (signal.aborted) return; // something else was chosen meanwhile
      this.store.set({ map: null });
      await this.take({ photo, landmarks }, "sample");
    });
  }

  /** Send the photo, and show what comes back; a request before that is still on its way is given up. */
  async process() {
    const fields = fieldsOf(this.store.state);
    this.again = () => this.process();
    if (!this.isAllowed(fields)) return;
    await this.run(async (signal) => {
      const { answer, text } = await api.crop(fields, signal);
      this.finish({ answer, text, colours: readColours(answer), fields, taskId: null });
    });
  }

  /**
   * Tell whether a request may be sent: not without a key where one is needed, and not if it is too large anyway.
   * @param {Field[]} fields
   */
  isAllowed(fields) {
    this.running.abort();
    if (this.config.isKeyNeeded && !api.key.get()) {
      this.store.set({ isKeyAsked: true, isBusy: false, trouble: null });
      return false;
    }
    const bytes = fields.reduce((sum, { value }) => sum + (value instanceof File ? value.size : 0), FORM_BYTES);
    if (bytes > this.config.maxBodyBytes) {
      this.store.set({ isBusy: false, result: null, trouble: describeTooLarge(bytes - FORM_BYTES, this.config.maxBodyBytes) });
      return false;
    }
    return true;
  }

  /**
   * Run something that may fail, and tell of it if it does.
   * @param {(signal: AbortSignal) => Promise<void>} action
   * @returns {Promise<boolean>} whether it came to its end
   */
  async run(action) {
    this.running.abort();
    const mine = new AbortController();
    this.running = mine;
    this.store.set({ isBusy: true, trouble: null, isKeyAsked: false });
    try {
      await action(mine.signal);
    } catch (error) {
      if (mine === this.running && !mine.signal.aborted) this.fail(error);
      return false;
    }
    if (mine === this.running) this.store.set({ isBusy: false });
    return true;
  }

  /** @param {State["result"] & {}} result */
  finish(result) {
    const { result: before, labelled } = this.store.state;
    const ids = result.answer.regions.map(({ id }) => id);
    const wereAllLabelled = Boolean(before?.answer.regions.length) && before?.answer.regions.every(({ id }) => labelled.has(id));
    this.store.set({ result, labelled: wereAllLabelled ? new Set(ids) : labelled, lit: null, trouble: null, isBusy: false });
  }

  /**
   * @param {unknown} error
   * @param {boolean} [isResultKept]
   */
  fail(error, isResultKept = false) {
    if (!(error instanceof api.ApiError)) throw error;
    if (error.status === 401) {
      const had = api.key.get();
      api.key.set("");
      this.store.set({ isBusy: false, isKeyAsked: true, hasKey: false, trouble: had ? describeError(error) : null });
      return;
    }
    const kept = isResultKept ? {} : { result: null };
    this.store.set({ isBusy: false, trouble: describeError(error), ...kept });
  }

  /** @param {string} value */
  useKey(value) {
    api.key.set(value.trim());
    this.store.set({ isKeyAsked: false, hasKey: true, trouble: null });
    this.again();
  }

  forgetKey() {
    api.key.set("");
    this.store.set({ hasKey: false });
  }
}
