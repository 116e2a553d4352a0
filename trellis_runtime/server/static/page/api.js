// The server's API: one token, one kind of refusal, progress as it comes.
import { $ } from "./dom.js";

const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem("token", given);
  history.replaceState(null, "", location.pathname);  // it must not stay in the address
}
let token = sessionStorage.getItem("token");
let asking = null;
const blobs = new Map();

export const signedIn = () => token !== null;

export class Refusal extends Error {
  constructor(status, body, retryAfter) {
    super(body.error || `the server answered ${status}`);
    this.status = status;
    this.answer = { error: this.message, code: "internal", ...body };
    this.retryAfter = Number(retryAfter) || 2;
  }
}

async function asked(path, options) {
  try {
    return await fetch(path, options);
  } catch (err) {
    if (err.name === "AbortError") throw err;
    document.dispatchEvent(new Event("unreachable"));
    throw new Error("The server does not answer. The page goes on by itself when it does.");
  }
}

export async function api(path, options = {}) {
  for (;;) {
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    const response = await asked(path, { ...options, headers });
    if (response.ok) return response;
    const body = await response.json().catch(() => ({}));
    if (response.status !== 401) throw new Refusal(response.status, body, response.headers.get("Retry-After"));
    await askToken(token !== null);
  }
}

export const json = async (path, options) => (await api(path, options)).json();

export const post = (path, content, signal) => json(path, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content), signal,
});

// An address that an <img> or a viewer can load: they cannot carry a token, a blob needs none.
export async function address(path) {
  if (!token) return path;
  if (!blobs.has(path)) blobs.set(path, api(path).then((r) => r.blob()).then((b) => URL.createObjectURL(b)));
  try {
    return await blobs.get(path);
  } catch (err) {
    blobs.delete(path);
    throw err;
  }
}

export async function events(path, hear) {
  // fetch, not EventSource: it can carry a token.
  const response = await api(path);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) hear(JSON.parse(part.slice(6)));
  }
}

function askToken(refused) {
  asking ||= new Promise((resolve) => {
    const dialog = $("sign-in");
    $("sign-in-words").textContent = refused ? "That token was not accepted. Try again." : "This server wants a token.";
    $("token").value = "";
    dialog.showModal();
    $("sign-in-form").onsubmit = (event) => {
      event.preventDefault();
      token = $("token").value.trim();
      sessionStorage.setItem("token", token);
      dialog.close();
      asking = null;
      document.dispatchEvent(new Event("signed-in"));
      resolve();
    };
  });
  return asking;
}

export function signOut() {
  sessionStorage.removeItem("token");
  location.reload();
}
