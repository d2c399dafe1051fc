/** Small helpers around the document. Text goes in as text nodes: nothing here, or anywhere else, reads HTML. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * The element of an id; the document and the scripts are one thing, so that it has to be there.
 * @template {HTMLElement} T
 * @param {string} id
 * @returns {T}
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`no element #${id}`);
  return /** @type {T} */ (found);
}

/**
 * Make an element of HTML.
 * @param {string} tag
 * @param {Record<string, string | boolean | number>} [attributes] false leaves one out, true makes it empty
 * @param {...(Node | string)} children strings become text
 * @returns {HTMLElement}
 */
export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  setAttributes(made, attributes);
  made.append(...children);
  return made;
}

/**
 * Make an element of SVG.
 * @param {string} tag
 * @param {Record<string, string | boolean | number>} [attributes]
 * @param {...(Node | string)} children
 * @returns {SVGElement}
 */
export function makeSvg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  setAttributes(made, attributes);
  made.append(...children);
  return /** @type {SVGElement} */ (made);
}

/**
 * @param {Element} target
 * @param {Record<string, string | boolean | number>} attributes
 */
function setAttributes(target, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false) target.setAttribute(name, value === true ? "" : String(value));
  }
}

/**
 * A size of a file, for people.
 * @param {number} bytes
 */
export function formatBytes(bytes) {
  if (bytes < 1024) return `${bytes} bytes`;
  if (bytes < 1024 * 1024) return `${Math.round(bytes / 1024)} KB`;
  return `${(bytes / 1024 / 1024).toFixed(1).replace(/\.0$/, "")} MB`;
}

/**
 * An area for people: as many digits as they can use.
 * @param {number} area in square pixels
 */
export function formatArea(area) {
  return `${area < 10 ? area.toFixed(1) : Math.round(area).toLocaleString("en")} px²`;
}

/**
 * Tell whether a pointer has moved, or only the page beneath it: browsers report both, and a pointer that rests shall
 * not take the light from where the keyboard is.
 * @param {PointerEvent} event
 */
export function hasMoved(event) {
  return event.pointerType !== "mouse" || event.movementX !== 0 || event.movementY !== 0;
}
