// The photograph against the model seen from the front, their outlines laid over each other.
import { api, post } from "./api.js";
import { base64, canvasOf, encode, fromBase64 } from "./picture.js";

const SIDE = 900, MARGIN = 0.1, SOLID = 128;

// Where an image's alpha is solid: [left, top, right, bottom] in its pixels; all of it where nowhere.
function outline(image) {
  const { width, height } = image;
  const alpha = canvasOf(image).getContext("2d").getImageData(0, 0, width, height).data;
  let [left, top, right, bottom] = [width, height, 0, 0];
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      if (alpha[4 * (y * width + x) + 3] < SOLID) continue;
      [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x + 1), Math.max(bottom, y + 1)];
    }
  }
  return right > left ? [left, top, right, bottom] : [0, 0, width, height];
}

// The object's place in a photograph, as the server's cut-out has it; all of it where there is none.
async function placeOf(photograph, blob, background) {
  try {
    const told = await post("/cutout", { image: await base64(blob), ...(background ? { background } : {}) });
    const cut = await createImageBitmap(await fromBase64(told.cutout));
    const found = outline(cut);
    const [left, top, right, bottom] = told.box;
    const across = (x) => (left + x / cut.width * (right - left)) * photograph.width;
    const down = (y) => (top + y / cut.height * (bottom - top)) * photograph.height;
    return [across(found[0]), down(found[1]), across(found[2]), down(found[3])];
  } catch {
    return [0, 0, photograph.width, photograph.height];
  }
}

// Draws an image so that `place` of it fills a square but for a margin.
function framed(image, [left, top, right, bottom]) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const scale = SIDE * (1 - 2 * MARGIN) / Math.max(right - left, bottom - top);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.translate(SIDE / 2, SIDE / 2);
  pen.scale(scale, scale);
  pen.drawImage(image, -(left + right) / 2, -(top + bottom) / 2);
  return canvas;
}

// Returns the two pictures' blobs; `front` draws the model from the front, on nothing.
export async function pair(job, front) {
  const blob = await (await api(job.input)).blob();
  const [photograph, model] = [await createImageBitmap(blob), await createImageBitmap(await front())];
  const place = await placeOf(photograph, blob, job.request.background);
  return Promise.all([framed(photograph, place), framed(model, outline(model))].map((canvas) => encode(canvas, "image/png")));
}
