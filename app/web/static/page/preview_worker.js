/** A worker that decodes and scales an image, because that takes seconds for a large one. */

const QUALITY = 0.92;

self.addEventListener("message", async ({ data: { file, width, height } }) => {
  try {
    self.postMessage(await scaleImage(file, width, height));
  } catch {
    self.postMessage(null); // decoding failed, or there is not enough memory
  }
});

/**
 * @param {File} file
 * @param {number} width
 * @param {number} height
 * @returns {Promise<Blob>} with transparency, if the image has it
 */
async function scaleImage(file, width, height) {
  const bitmap = await createImageBitmap(file, { resizeWidth: width, resizeHeight: height, resizeQuality: "medium" });
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d")?.drawImage(bitmap, 0, 0);
  // WebP keeps transparency, but takes several times as long to encode.
  const type = file.type === "image/jpeg" ? file.type : "image/webp";
  return canvas.convertToBlob({ type, quality: QUALITY });
}
