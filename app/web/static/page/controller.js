/** Actions of the page: they accept files, call the API and update the state. */

import * as api from "./api.js";
import { DEFAULT_OPACITY } from "./drawing_constants.js";
import { displayedRegions } from "./faces.js";
import { looksNormalized, readFiles, readPoints } from "./files.js";
import { describeBodyTooLarge, describeError } from "./notices.js";
import { createPreview, fetchPreview, previewFields } from "./preview.js";
import { areAllLabelled, mapRegionIds } from "./state.js";

/** @typedef {import("./state.js").Field} Field @typedef {import("./state.js").Origin} Origin @typedef {import("./state.js").State} State */
/** @typedef {import("./files.js").Files} Files */

const DEFAULT_MARGIN = 0.25;
/** Estimated size of a form without its files. */
const FORM_BYTES = 4096;
/** Characters of an HTTP header; a key with other characters would make every request fail. */
const KEY = /^[\x20-\x7e]+$/;

/**
 * Return the fields of a crop request, without those that have their default value.
 * @param {State} state
 * @returns {Field[]}
 */
export function requestFields({ image, landmarks, map, options }) {
  const fields = /** @type {Field[]} */ ([]);
  if (image) fields.push({ name: "image", value: image.file, origin: image.origin });
  fields.push({ name: "orientation", value: "displayed" }); // as browsers display images
  if (landmarks) fields.push({ name: "landmarks", value: landmarks.file, origin: landmarks.origin });
  if (landmarks && options.units !== "pixels") fields.push({ name: "landmark_units", value: options.units });
  if (map) fields.push({ name: "segmentation_map", value: map.file, origin: map.origin });
  fields.push({ name: "face", value: "all" });
  if (options.upright) fields.push({ name: "upright", value: "true" });
  if (options.crop) fields.push({ name: "crop", value: "face" });
  if (options.crop && options.margin !== DEFAULT_MARGIN) fields.push({ name: "margin", value: String(options.margin) });
  return fields;
}

/**
 * Return the fields that select the style of the overlay, without those that have their default value.
 * @param {import("./state.js").View} view
 * @param {boolean} hasLabels
 * @returns {Field[]}
 */
export function overlayFields(view, hasLabels) {
  const fields = /** @type {Field[]} */ ([]);
  if (hasLabels) fields.push({ name: "show_labels", value: "true" });
  if (view.landmarks) fields.push({ name: "show_landmarks", value: "true" });
  if (view.opacity !== DEFAULT_OPACITY) fields.push({ name: "region_opacity", value: String(view.opacity) });
  return fields;
}

export class Controller {
  /**
   * @param {import("./state.js").Store} store
   * @param {{isKeyNeeded: boolean, maxBodyBytes: number}} config
   */
  constructor(store, config) {
    this.store = store;
    this.config = config;
    this.current = new AbortController();
    /** Aborts the preview of the previous image. */
    this.currentPreview = new AbortController();
    this.pendingFiles = Promise.resolve();
    /** Repeats the failed action, after "Try again" or with a new API key. @type {() => void} */
    this.retry = () => {};
    /** Last known name of each region, by id. @type {Map<number, string>} */
    this.regionNames = new Map();
  }

  /**
   * Add files, and process the image if there is one. Reading is asynchronous, so calls run one after another.
   * @param {Files} files
   * @param {Origin} origin
   * @param {string} [notice] notice about ignored files
   */
  addFiles(files, origin, notice = "") {
    this.pendingFiles = this.pendingFiles.catch(() => {}).then(async () => {
      const read = await readFiles(files, this.config.maxBodyBytes);
      const unreadable = `${read.unreadable} cannot be read. It is a folder, or it was moved, changed or deleted.`;
      this.store.set({ uploadNotice: read.unreadable ? unreadable : notice });
      await this.applyFiles(read.files, origin);
    });
    return this.pendingFiles;
  }

  /**
   * @param {Files} files
   * @param {Origin} origin
   */
  async applyFiles(files, origin) {
    if (!Object.keys(files).length) return;
    if (files.image) {
      this.current.abort(); // its response would belong to the previous image
      this.setImage(files.image, origin);
    }
    if (files.landmarks) await this.setLandmarks(files.landmarks, origin);
    if (files.map) this.store.set({ map: { file: files.map, origin } });
    if (this.store.state.image) this.process();
  }

  /**
   * @param {File} file
   * @param {Origin} origin
   */
  setImage(file, origin) {
    const { image, landmarks, map, options, preview } = this.store.state;
    if (preview.url) URL.revokeObjectURL(preview.url);
    // Landmarks and label images belong to one image; custom regions apply to any. Files that were added before the
    // first image are kept for it.
    const isReplaced = Boolean(image);
    const isLabelImage = map !== null && map.file.type.startsWith("image/");
    this.store.set({
      image: { file, origin },
      landmarks: isReplaced ? null : landmarks,
      map: isReplaced && isLabelImage ? null : map,
      options: { ...options, units: isReplaced ? "pixels" : options.units },
      face: "all",
      isZoomed: false,
      result: null,
      highlighted: null,
    });
    this.loadPreview((signal) => createPreview(file, signal), "browser");
  }

  /**
   * Load the preview of the current image, instead of one that is still loading.
   * @param {(signal: AbortSignal) => Promise<string>} load returns its URL, or an empty text if there is none
   * @param {"browser" | "service"} source
   */
  async loadPreview(load, source) {
    this.currentPreview.abort();
    const own = new AbortController();
    this.currentPreview = own;
    this.store.set({ preview: { source: source === "browser" ? "loading" : "requested", url: "" } });
    const url = await load(own.signal).catch(() => "");
    if (own.signal.aborted) {
      if (url) URL.revokeObjectURL(url);
      return;
    }
    this.store.set({ preview: { source: url ? source : "none", url } });
    if (source === "browser") this.requestPreview();
  }

  /** Request the preview from the service if the browser cannot decode the image, and the service has found a face. */
  requestPreview() {
    const { preview, result } = this.store.state;
    if (!result || preview.source !== "none") return;
    const fields = previewFields(this.store.state);
    this.loadPreview((signal) => fetchPreview(fields, signal), "service");
  }

  /**
   * @param {File} file
   * @param {Origin} origin
   */
  async setLandmarks(file, origin) {
    const points = await readPoints(file);
    const units = points && looksNormalized(points) ? "normalized" : "pixels";
    this.store.set({ landmarks: { file, origin, points }, options: { ...this.store.state.options, units } });
  }

  /** @param {"landmarks" | "map"} name */
  removeFile(name) {
    this.store.set({ [name]: null });
    if (this.store.state.image) this.process();
  }

  /** @param {Partial<State["options"]>} changes */
  setOptions(changes) {
    this.store.set({ options: { ...this.store.state.options, ...changes } });
    if (this.store.state.image) this.process();
  }

  /**
   * Load a sample of the page, instead of all files of the user.
   * @param {...string} names of the image and, optionally, its landmarks
   */
  async loadSample(...names) {
    await this.run(() => this.loadSample(...names), async (signal) => {
      const [image, landmarks] = await Promise.all(names.map(api.fetchAsset));
      if (signal.aborted) return; // the user has chosen another file
      this.store.set({ map: null, landmarks: null });
      await this.addFiles({ image, ...(landmarks ? { landmarks } : {}) }, "sample");
    });
  }

  /** Send a crop request and show its result. Abort the previous request if it is still running. */
  async process() {
    const fields = requestFields(this.store.state);
    const retry = () => this.process();
    this.current.abort();
    if (!this.canSend(fields, retry)) return;
    await this.run(retry, async (signal) => {
      const { responses, text } = await api.crop(fields, signal);
      if (signal.aborted) return; // the response arrived before the abort, and is out of date
      this.showResult({ responses, text, fields, taskId: null });
    });
  }

  /**
   * Return whether a request can be sent. If the API key is missing, ask for it; if the body is too large, show an error.
   * @param {Field[]} fields
   * @param {() => void} retry runs when the user has entered a key
   */
  canSend(fields, retry) {
    if (this.config.isKeyNeeded && !api.apiKey.get()) {
      this.retry = retry;
      this.store.set({ isKeyRequested: true, isBusy: false, errorNotice: null });
      return false;
    }
    const bytes = fields.reduce((sum, { value }) => sum + (value instanceof File ? value.size : 0), FORM_BYTES);
    if (bytes > this.config.maxBodyBytes) {
      const errorNotice = describeBodyTooLarge(bytes - FORM_BYTES, this.config.maxBodyBytes);
      this.store.set({ isBusy: false, result: null, errorNotice });
      return false;
    }
    return true;
  }

  /**
   * Run an action, instead of the current one, and report its error.
   * @param {() => void} retry
   * @param {(signal: AbortSignal) => Promise<void>} action
   */
  async run(retry, action) {
    this.current.abort();
    const own = new AbortController();
    this.current = own;
    this.store.set({ isBusy: true, errorNotice: null, isKeyRequested: false });
    try {
      await action(own.signal);
    } catch (error) {
      if (own === this.current && !own.signal.aborted) this.reportError(error, retry);
      return;
    }
    if (own === this.current) this.store.set({ isBusy: false });
  }

  /** @param {State["result"] & {}} result */
  showResult(result) {
    const { hidden, labelled, face: selected } = this.store.state;
    const face = selected === "all" || selected >= result.responses.length ? "all" : selected;
    const regions = displayedRegions({ ...this.store.state, result, face: "all" });
    const nowLabelled = areAllLabelled(this.store.state)
      ? new Set(regions.map(({ id }) => id))
      : mapRegionIds(labelled, this.regionNames, regions);
    const nowHidden = mapRegionIds(hidden, this.regionNames, regions);
    for (const { id, name } of regions) this.regionNames.set(id, name);
    this.store.set({ result, face, hidden: nowHidden, labelled: nowLabelled, highlighted: null, errorNotice: null, isBusy: false });
    this.requestPreview();
  }

  /** @param {"all" | number} face index of the face to display, or all faces */
  selectFace(face) {
    this.store.set({ face, highlighted: null });
  }

  /**
   * Show an error.
   * @param {unknown} thrown
   * @param {() => void} retry
   * @param {{keepsResult?: boolean}} [options] `keepsResult`: the error does not concern the current result or request
   */
  reportError(thrown, retry, { keepsResult = false } = {}) {
    const error = thrown instanceof api.ApiError ? thrown : new api.ApiError({ status: 0, code: "unreadable" });
    if (error !== thrown) console.error(thrown); // an unexpected response, or a bug of the page
    this.retry = retry;
    const isBusy = keepsResult && this.store.state.isBusy;
    if (error.status === 401) {
      const hadKey = api.apiKey.get();
      api.apiKey.set("");
      this.store.set({ isBusy, isKeyRequested: true, hasKey: false, errorNotice: hadKey ? describeError(error) : null });
      return;
    }
    this.store.set({ isBusy, errorNotice: describeError(error), ...(keepsResult ? {} : { result: null }) });
  }

  /**
   * Save an API key and repeat the action that needs it.
   * @param {string} text
   * @returns {boolean} false if the text cannot be a key; then it is not saved
   */
  useKey(text) {
    const value = text.trim();
    if (!KEY.test(value)) return false;
    api.apiKey.set(value);
    this.store.set({ isKeyRequested: false, hasKey: true, errorNotice: null });
    this.retry();
    return true;
  }

  forgetKey() {
    api.apiKey.set("");
    this.store.set({ hasKey: false });
  }
}
