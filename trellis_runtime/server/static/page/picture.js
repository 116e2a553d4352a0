// A picture before it is sent: checked, made smaller where it has more than the engine uses.
import { bytes } from "./words.js";

const TYPES = /^image\/(png|jpeg|webp|avif|heic|heif)$/;
const NAMES = /\.(png|jpe?g|webp|avif|heic|heif)$/i;

// Returns { name, blob, bitmap, width, height, problem }; bitmap is null where only the server can
// decode it (HEIC).
export async function prepare(file, limits, name = file.name || "pasted picture") {
  const picture = { name, blob: file, bitmap: null, width: 0, height: 0, problem: null, scaledFrom: null };
  if (file.type ? !TYPES.test(file.type) : !NAMES.test(name)) {
    picture.problem = `${name} is not a PNG, JPEG, WebP, AVIF or HEIC picture.`;
    return picture;
  }
  try {
    picture.bitmap = await createImageBitmap(file);
  } catch {
    if (!/hei[cf]/i.test(file.type + name)) picture.problem = `${name} cannot be read as a picture.`;
  }
  if (picture.bitmap) await fit(picture, limits);
  if (!picture.problem && picture.blob.size > limits.max_bytes) {
    picture.problem = `${name} has ${bytes(picture.blob.size)}; the limit is ${bytes(limits.max_bytes)}.`;
  }
  return picture;
}

async function fit(picture, limits) {
  const { width, height } = picture.bitmap;
  [picture.width, picture.height] = [width, height];
  if (Math.min(width, height) < limits.min_side_px) {
    picture.problem = `${picture.name} is ${width} × ${height} px; its shorter side needs ${limits.min_side_px} px.`;
    return;
  }
  const scale = limits.useful_side_px / Math.max(width, height);
  if (scale >= 1) return;
  if (Math.min(width, height) * scale < limits.min_side_px) {
    picture.problem = `${picture.name} is ${width} × ${height} px, which is too long and thin.`;
    return;
  }
  const size = { resizeWidth: Math.round(width * scale), resizeHeight: Math.round(height * scale), resizeQuality: "high" };
  const smaller = await createImageBitmap(picture.bitmap, size);
  picture.scaledFrom = [width, height];
  const kind = picture.blob.type === "image/jpeg" ? "image/jpeg" : "image/png";
  picture.blob = await encode(smaller, kind);
  picture.bitmap = smaller;
  [picture.width, picture.height] = [smaller.width, smaller.height];
}

export function canvasOf(source, width = source.width, height = source.height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").drawImage(source, 0, 0, width, height);
  return canvas;
}

export const encode = (source, kind) => new Promise((resolve) => {
  canvasOf(source).toBlob(resolve, kind, 0.93);
});

export const base64 = (blob) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.split(",")[1] || "");
  reader.onerror = () => reject(new Error("the picture cannot be read"));
  reader.readAsDataURL(blob);
});

export async function fromBase64(told) {
  const response = await fetch(`data:${told.content_type};base64,${told.base64}`);
  return response.blob();
}
