/** DOM helpers. All text is inserted as text nodes; no module of the page parses HTML. */

const SVG_NAMESPACE = "http://www.w3.org/2000/svg";

/**
 * Return the element with an id; throw an error if it is missing, because document and scripts belong together.
 * @template {HTMLElement} T
 * @param {string} id
 * @returns {T}
 */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`#${id}: element not found`);
  return /** @type {T} */ (element);
}

/**
 * Create an HTML element.
 * @param {string} tag
 * @param {Record<string, string | boolean | number>} [attributes] false omits the attribute, true makes it empty
 * @param {...(Node | string)} children strings become text nodes
 * @returns {HTMLElement}
 */
export function createElement(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  setAttributes(element, attributes);
  element.append(...children);
  return element;
}

/**
 * Create an SVG element.
 * @param {string} tag
 * @param {Record<string, string | boolean | number>} [attributes]
 * @param {...(Node | string)} children
 * @returns {SVGElement}
 */
export function createSvgElement(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG_NAMESPACE, tag);
  setAttributes(element, attributes);
  element.append(...children);
  return /** @type {SVGElement} */ (element);
}

/**
 * @param {Element} element
 * @param {Record<string, string | boolean | number>} attributes
 */
function setAttributes(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
}

/**
 * Format the size of a file.
 * @param {number} bytes
 */
export function formatBytes(bytes) {
  if (bytes < 1024) return `${bytes} bytes`;
  if (bytes < 1024 * 1024) return `${Math.round(bytes / 1024)} KB`;
  return `${(bytes / 1024 / 1024).toFixed(1).replace(/\.0$/, "")} MB`;
}

/**
 * Format an area with a useful number of digits.
 * @param {number} area in square pixels
 */
export function formatArea(area) {
  return `${area < 10 ? area.toFixed(1) : Math.round(area).toLocaleString("en")} px²`;
}

/**
 * Return whether the pointer itself has moved. Browsers also send events when the page scrolls below the pointer, and
 * those must not move the highlight away from the keyboard focus.
 * @param {PointerEvent} event
 */
export function hasPointerMoved(event) {
  return event.pointerType !== "mouse" || event.movementX !== 0 || event.movementY !== 0;
}
