/** The request of what is shown, as a line for a shell. */

import { cropUrl } from "./api.js";
import { byId } from "./dom.js";
import { hasChanged } from "./state.js";

/** @typedef {import("./state.js").State} State @typedef {import("./state.js").Field} Field */

const PLAIN = /^[A-Za-z0-9_@%+=:,./-]+$/;
const KEY_HEADER = '-H "X-API-Key: $API_KEY"';

/**
 * @param {import("./state.js").Store} store
 * @param {boolean} isKeyNeeded
 */
export function showCurl(store, isKeyNeeded) {
  const form = /** @type {HTMLSelectElement} */ (byId("curl-form"));
  const draw = (/** @type {State} */ state) => {
    byId("curl-card").hidden = !state.result;
    if (!state.result) return;
    const isSvg = form.value === "svg";
    byId("curl").textContent = makeCommand(state, isSvg, isKeyNeeded);
    byId("curl-note").textContent = makeNote(state, isKeyNeeded);
  };
  form.addEventListener("change", () => draw(store.state));
  byId("curl-copy").addEventListener("click", () => copy(byId("curl")));
  store.show((state, before) => hasChanged(state, before, "result", "view", "labelled") && draw(state));
}

/**
 * Write the command; it works as it stands where the files are in the current folder.
 * @param {State} state
 * @param {boolean} isSvg
 * @param {boolean} isKeyNeeded
 */
export function makeCommand(state, isSvg, isKeyNeeded) {
  const { result } = state;
  if (!result) return "";
  const common = ["curl -fsS", ...(isKeyNeeded ? [KEY_HEADER] : [])];
  const fields = [...result.fields.map(toArgument), ...(isSvg ? lookOf(state) : [])];
  const output = isSvg ? ["-H 'Accept: image/svg+xml' -o face.svg"] : ["-o face.json"];
  const samples = result.fields.filter(({ origin }) => origin === "sample").map(({ value }) => sampleUrl(/** @type {File} */ (value).name));
  const first = samples.length ? `curl -fsS ${samples.map((url) => `-O ${quote(url)}`).join(" \\\n  ")}\n\n` : "";
  if (!result.taskId) return first + joined(...common, ...fields, ...output, quote(cropUrl()));
  const submit = joined(...common, ...fields, quote(cropUrl("/submit")));
  const status = joined(...common, ...output, `"${cropUrl("/status/")}$task?wait=60"`);
  return `${first}task=$(${submit} \\\n  | sed 's/.*"task_id":"\\([0-9a-f]*\\)".*/\\1/')\n\n${status}`;
}

/** @param {...string} parts */
function joined(...parts) {
  return parts.join(" \\\n  ");
}

/**
 * @param {Field} field
 */
function toArgument({ name, value }) {
  if (typeof value === "string") return `-F ${quote(`${name}=${value}`)}`;
  // curl takes commas and semicolons in a file's name for its own, unless the name stands in quotes, drops blanks at its
  // ends, and reads from the terminal for a dash.
  const isOdd = /[",;\\]|^\s|\s$/.test(value.name);
  const file = isOdd ? `"${value.name.replace(/["\\]/g, "\\$&")}"` : value.name.replace(/^-$/, "./-");
  return `-F ${quote(`${name}=@${file}`)}`;
}

/**
 * How the overlay looks, where that is not as the service draws it anyway.
 * @param {State} state
 */
function lookOf({ view, labelled, result }) {
  const isLabelled = Boolean(result?.answer.regions.length) && result?.answer.regions.every(({ id }) => labelled.has(id));
  return [
    ...(isLabelled ? ["-F show_labels=true"] : []),
    ...(view.landmarks ? ["-F show_landmarks=true"] : []),
    ...(view.opacity === 0.35 ? [] : [`-F region_opacity=${view.opacity}`]),
    ...(view.photo ? ["-F background=image"] : []),
  ];
}

/**
 * Where a sample file is, whatever the version of the page.
 * @param {string} name
 */
function sampleUrl(name) {
  return new URL(`page/sample/${name}`, document.baseURI).href;
}

/**
 * Write text so that a shell reads it as one word.
 * @param {string} text
 */
export function quote(text) {
  return PLAIN.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/**
 * @param {State} state
 * @param {boolean} isKeyNeeded
 */
function makeNote({ result }, isKeyNeeded) {
  const files = result?.fields.filter(({ value, origin }) => value instanceof File && origin !== "sample") || [];
  const names = files.map(({ value }) => /** @type {File} */ (value).name).join(", ");
  const isPasted = files.some(({ origin }) => origin === "pasted");
  return [
    isKeyNeeded ? "Set API_KEY to your key first." : "",
    isPasted ? `Save what you pasted as ${names}, and run it in that folder.` : names && `Run it in the folder that has ${names}.`,
  ].filter(Boolean).join(" ");
}

/** @param {HTMLElement} source */
async function copy(source) {
  const button = byId("curl-copy");
  const text = source.textContent || "";
  const label = /** @type {ChildNode} */ (button.lastChild);
  label.textContent = (await write(text, source)) ? " Copied" : " Selected: press Ctrl+C";
  setTimeout(() => (label.textContent = " Copy"), 2500);
}

/**
 * @param {string} text
 * @param {HTMLElement} source
 */
async function write(text, source) {
  try {
    await navigator.clipboard.writeText(text); // not there without https, but on this machine's own address
    return true;
  } catch {
    getSelection()?.selectAllChildren(source);
    return document.execCommand("copy");
  }
}
