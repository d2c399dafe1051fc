/** What the page does: it takes files, asks the service, and keeps what comes of it. */

import * as api from "./api.js";
import { readColours } from "./drawing.js";
import { hold, looksNormalized, readPoints } from "./files.js";
import { describeError, describeTooLarge } from "./problems.js";
import { carryOver } from "./state.js";

/** @typedef {import("./state.js").Field} Field @typedef {import("./state.js").Origin} Origin @typedef {import("./state.js").State} State */
/** @typedef {import("./files.js").Files} Files */

const DEFAULT_MARGIN = 0.25;
/** Room for what stands between the parts of a form. */
const FORM_BYTES = 4096;
/** What a header can hold; a key that it cannot hold would break every request. */
const KEY = /^[\x20-\x7e]+$/;

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
    /** Names of the regions that were seen, by the ids that they had last. @type {Map<number, string>} */
    this.names = new Map();
  }

  /**
   * Take files, and process at once where there is a photo. Reading takes a moment: what comes later waits for it.
   * @param {Files} files
   * @param {Origin} origin
   * @param {string} [leftOut] a sentence on files that came with them and are not taken
   */
  take(files, origin, leftOut = "") {
    this.taking = this.taking.catch(() => {}).then(async () => {
      const held = await hold(files, this.config.maxBodyBytes);
      const trouble = `${held.unreadable} cannot be read: it is a folder, or was moved, changed or deleted.`;
      this.store.set({ aside: held.unreadable ? trouble : leftOut });
      await this.takeNow(held.files, origin);
    });
    return this.taking;
  }

  /**
   * @param {Files} files
   * @param {Origin} origin
   */
  async takeNow(files, origin) {
    if (!Object.keys(files).length) return;
    if (files.photo) {
      this.running.abort(); // its answer is of the photo before
      this.takePhoto(files.photo, origin);
    }
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
    await this.run(() => this.takeSample(), async (signal) => {
      const [photo, landmarks] = await Promise.all(["astronaut.jpg", "astronaut.landmarks.json"].map(api.asset));
      if (signal.aborted) return; // something else was chosen meanwhile
      this.store.set({ map: null });
      await this.take({ photo, landmarks }, "sample");
    });
  }

  /** Send the photo, and show what comes back; a request before that is still on its way is given up. */
  async process() {
    const fields = fieldsOf(this.store.state);
    const again = () => this.process();
    this.running.abort();
    if (!this.isAllowed(fields, again)) return;
    await this.run(again, async (signal) => {
      const { answer, text } = await api.crop(fields, signal);
      if (signal.aborted) return; // it came all the same, and is of what was chosen before
      this.finish({ answer, text, colours: readColours(answer), fields, taskId: null });
    });
  }

  /**
   * Tell whether a request may be sent: not without a key where one is needed, and not if it is too large anyway.
   * @param {Field[]} fields
   * @param {() => void} again what to do once there is a key
   */
  isAllowed(fields, again) {
    if (this.config.isKeyNeeded && !api.key.get()) {
      this.again = again;
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
   * @param {() => void} again how to try it once more
   * @param {(signal: AbortSignal) => Promise<void>} action
   */
  async run(again, action) {
    this.running.abort();
    const mine = new AbortController();
    this.running = mine;
    this.store.set({ isBusy: true, trouble: null, isKeyAsked: false });
    try {
      await action(mine.signal);
    } catch (error) {
      if (mine === this.running && !mine.signal.aborted) this.fail(error, again);
      return;
    }
    if (mine === this.running) this.store.set({ isBusy: false });
  }

  /** @param {State["result"] & {}} result */
  finish(result) {
    const { result: before, hidden, labelled } = this.store.state;
    const { regions } = result.answer;
    const wereAllLabelled = Boolean(before?.answer.regions.length) && before?.answer.regions.every(({ id }) => labelled.has(id));
    const nowLabelled = wereAllLabelled ? new Set(regions.map(({ id }) => id)) : carryOver(labelled, this.names, regions);
    const nowHidden = carryOver(hidden, this.names, regions);
    for (const { id, name } of regions) this.names.set(id, name);
    this.store.set({ result, hidden: nowHidden, labelled: nowLabelled, lit: null, trouble: null, isBusy: false });
  }

  /**
   * Tell what went wrong.
   * @param {unknown} thrown
   * @param {() => void} again how to try it once more
   * @param {boolean} [isAside] whether it was beside what the picture shows, which then stays
   */
  fail(thrown, again, isAside = false) {
    const error = thrown instanceof api.ApiError ? thrown : new api.ApiError({ status: 0, code: "unreadable" });
    if (error !== thrown) console.error(thrown); // an answer that is none of the API's, or a fault of this page
    this.again = again;
    const isBusy = isAside && this.store.state.isBusy;
    if (error.status === 401) {
      const had = api.key.get();
      api.key.set("");
      this.store.set({ isBusy, isKeyAsked: true, hasKey: false, trouble: had ? describeError(error) : null });
      return;
    }
    this.store.set({ isBusy, trouble: describeError(error), ...(isAside ? {} : { result: null }) });
  }

  /**
   * @param {string} value
   * @returns {boolean} whether it can be one; nothing is kept that cannot
   */
  useKey(value) {
    const given = value.trim();
    if (!KEY.test(given)) return false;
    api.key.set(given);
    this.store.set({ isKeyAsked: false, hasKey: true, trouble: null });
    this.again();
    return true;
  }

  forgetKey() {
    api.key.set("");
    this.store.set({ hasKey: false });
  }
}
