/** Call every operation of a running service through the generated types; exit with an error if a response differs. */

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";

import createClient from "openapi-fetch";

import type { components, paths } from "./schema.js";

type Schemas = components["schemas"];
type CropResult = Schemas["CropResult"];

const [url = "", photoPath = "", landmarksPath = "", key = ""] = process.argv.slice(2);
const photo = await readFile(photoPath);
const landmarks = JSON.parse(await readFile(landmarksPath, "utf-8")) as Schemas["Point"][];
const client = createClient<paths>({ baseUrl: url, headers: key ? { "X-API-Key": key } : {} });
const image = photo.toString("base64");

/** Return the data of a response, or fail with its problem document. */
function unwrap<T>(result: { data?: T; error?: Schemas["Problem"] | Schemas["Health"] }): T {
  assert.ok(result.data !== undefined, JSON.stringify(result.error));
  return result.data;
}

/** Return a result for one face. */
function single<T>(result: T | T[]): T {
  assert.ok(!Array.isArray(result));
  return result;
}

// Results, from a JSON body without options, a form and an image file.
const cropped: CropResult = single(unwrap(await client.POST("/api/v1/frontal/crop", { body: { image, landmarks } })));
assert.ok(cropped.regions_detected === cropped.regions.length && cropped.regions_detected > 0);
assert.ok(Buffer.from(cropped.svg, "base64").toString().startsWith("<svg"));

const form = new FormData();
form.append("image", new Blob([photo]), "face.png");
form.append("landmarks", JSON.stringify(landmarks));
const fromForm = single(
  unwrap(
    await client.POST("/api/v1/frontal/crop", {
      body: { image: "" },
      bodySerializer: () => form,
      params: { query: { upright: true, background: "image" } },
    }),
  ),
);
assert.ok(Math.abs(fromForm.face.roll_deg) < 0.1);

const all = unwrap(
  await client.POST("/api/v1/frontal/crop", { body: { image, landmarks: [landmarks, landmarks], face: "all" } }),
);
assert.ok(Array.isArray(all) && all.length === 2);

// The other forms of a result, which are not part of the schema.
const svg = await client.POST("/api/v1/frontal/crop", {
  body: { image, landmarks },
  headers: { Accept: "image/svg+xml" },
  parseAs: "text",
});
assert.ok(svg.data?.startsWith("<svg"));

const found: Schemas["LandmarksResult"] = single(unwrap(await client.POST("/api/v1/frontal/landmarks", { body: { image } })));
assert.equal(found.landmarks.length, 478);

// Tasks.
const submitted = await client.POST("/api/v1/frontal/crop/submit", {
  body: { image, landmarks },
  params: { header: { "Idempotency-Key": "typescript" } },
});
const task: Schemas["Task"] = unwrap(submitted);
assert.equal(submitted.response.status, 202);
const path = { task_id: task.task_id };
const ended = unwrap(await client.GET("/api/v1/frontal/crop/status/{task_id}", { params: { path, query: { wait: 30 } } }));
const success: Schemas["TaskStatus"] = "SUCCESS";
assert.equal(ended.status, success);
assert.ok(ended.result !== null);
assert.equal(single(ended.result).regions_detected, cropped.regions_detected);
for (const cancel of [
  await client.DELETE("/api/v1/frontal/crop/status/{task_id}", { params: { path } }),
  await client.DELETE("/api/v1/frontal/crop/{task_id}", { params: { path } }),
]) {
  assert.equal(cancel.error?.code, "task_ended");
}

// Errors.
const refused = await client.POST("/api/v1/frontal/crop", { body: { image: "" } });
assert.equal(refused.data, undefined);
assert.equal(refused.error?.code, "image_empty");

// Operation.
for (const health of [
  await client.GET("/health"),
  await client.GET("/health/live"),
  await client.GET("/health/ready"),
]) {
  assert.equal(unwrap(health).live, true);
}
assert.ok(unwrap(await client.GET("/metrics", { parseAs: "text" })).includes("app_build_info"));
assert.match(unwrap(await client.GET("/version")).version, /^\d+\.\d+\.\d+/);
