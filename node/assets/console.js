// The console of a torc node. Keys, values and names come from anywhere: all of it enters the page as
// text (textContent, values of fields), never as markup, and the policy of the page allows no other script.

const REFRESH_MS = 2000;
const PATIENCE_MS = 15000;
/** For how long a queued write is followed. */
const FOLLOW_MS = 60000;
const TEXT_SHOWN_MAX = 64 * 1024;
const HEX_SHOWN_MAX = 1024;
const PICTURES = ["image/png", "image/jpeg", "image/gif", "image/webp"];
const PAGE_KEYS = 50;

const $ = (id) => document.getElementById(id);
const onAdmin = document.documentElement.dataset.listener === "admin";

/** An element with properties and children; strings become text. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// ---- talking to the node --------------------------------------------------------------------------

/** A refusal of the node, or its silence, in words. */
class Refused extends Error {
  constructor(title, detail, status = 0, facts = {}) {
    super(title);
    Object.assign(this, { detail, status, facts });
  }
}

async function ask(path, options = {}) {
  try {
    return await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS), ...options });
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new Refused(late ? "No answer in time" : "The node does not answer",
      late ? `Nothing came within ${PATIENCE_MS / 1000} s. A write may still have taken effect.`
        : "It may have stopped, or the network is down. A write may still have taken effect.");
  }
}

/** What a failed answer says; the node explains itself as RFC 9457 has it. */
async function refusal(response) {
  const text = await response.text().catch(() => "");
  try {
    const { title, detail, type, status, ...facts } = JSON.parse(text);
    return new Refused(title ?? `Status ${response.status}`, detail ?? "", response.status, facts);
  } catch {
    return new Refused(`Status ${response.status}`, text.slice(0, 500), response.status);
  }
}

async function json(path) {
  const response = await ask(path, { headers: { Accept: "application/json" } });
  if (!response.ok) throw await refusal(response);
  return response.json();
}

// ---- bytes ----------------------------------------------------------------------------------------

const base64 = (bytes) => btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
const unbase64 = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

/** The text that bytes are, or null when they are none that a person could read. */
function readable(bytes) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    return /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f]/.test(text) ? null : text;
  } catch {
    return null;
  }
}

function hexDump(bytes) {
  const lines = [];
  for (let at = 0; at < bytes.length; at += 16) {
    const row = Array.from(bytes.subarray(at, at + 16));
    const hex = row.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const letters = row.map((byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : "·")).join("");
    lines.push(`${at.toString(16).padStart(6, "0")}  ${hex.padEnd(47)}  ${letters}`);
  }
  return lines.join("\n");
}

function size(bytes) {
  const units = ["bytes", "KiB", "MiB", "GiB"];
  let unit = 0;
  while (bytes >= 1024 && unit + 1 < units.length) { bytes /= 1024; unit += 1; }
  return unit === 0 ? `${bytes} ${bytes === 1 ? "byte" : "bytes"}` : `${bytes.toFixed(1)} ${units[unit]}`;
}

// ---- one key --------------------------------------------------------------------------------------

/** Contexts of what was read here, so that a write orders after what its author saw. */
const contexts = new Map();

function chosenKey() {
  const text = $("key").value;
  if (text === "") throw new Refused("Which key?", "A key has 1 to 1024 bytes.");
  if ($("key-form-of").value === "text") return new TextEncoder().encode(text);
  try {
    return unbase64(text);
  } catch {
    throw new Refused("This is no base64", "Choose “text” to use the key as it stands.");
  }
}

function target(bucket, key) {
  const escape = (byte) => {
    const letter = String.fromCharCode(byte);
    return /[A-Za-z0-9_~-]/.test(letter) ? letter : `%${byte.toString(16).toUpperCase().padStart(2, "0")}`;
  };
  return `/kv/${encodeURIComponent(bucket)}/${Array.from(key, escape).join("")}`;
}

/** Browsers take these keys for steps through folders, also when escaped; a batch names them in its body. */
const isDots = (key) => [".", ".."].includes(readable(key));

async function byBatch(bucket, line) {
  const response = await ask(`/kv/${encodeURIComponent(bucket)}/_batch`, {
    method: "POST", headers: { "Content-Type": "application/x-ndjson" }, body: JSON.stringify(line),
  });
  if (!response.ok) throw await refusal(response);
  const answer = JSON.parse(await response.text());
  if (answer.status >= 400) throw new Refused(answer.title ?? "Refused", answer.detail ?? "", answer.status);
  return answer;
}

const named = (key) => readable(key) ?? `base64 ${base64(key)}`;

async function getKey() {
  const bucket = $("bucket").value;
  const key = chosenKey();
  if (isDots(key)) {
    const answer = await byBatch(bucket, { op: "get", key: named(key) });
    const value = answer.encoding === "base64" ? unbase64(answer.value) : new TextEncoder().encode(answer.value);
    return showValue(key, { bytes: value, type: answer.content_type ?? "", facts: { ETag: answer.etag } });
  }
  const path = target(bucket, key);
  let response = await ask($("one").checked ? `${path}?r=one` : path);
  const context = response.headers.get("X-Torc-Context");
  if (context) contexts.set(path, context); else contexts.delete(path);
  if (response.status === 300) {
    response = await ask(path, { headers: { Accept: "application/json" } });
    return showSiblings(key, await response.json());
  }
  if (!response.ok) {
    const refused = await refusal(response);
    if (refused.status === 404 && context) refused.detail = "It was deleted, or its time to live is over.";
    throw refused;
  }
  return showValue(key, {
    bytes: new Uint8Array(await response.arrayBuffer()),
    type: response.headers.get("Content-Type") ?? "",
    facts: { ETag: response.headers.get("ETag"), Written: response.headers.get("Last-Modified"), Context: context },
  });
}

async function putKey() {
  const bucket = $("bucket").value;
  const key = chosenKey();
  const file = $("file").files[0];
  const bytes = file ? new Uint8Array(await file.arrayBuffer()) : new TextEncoder().encode($("value").value);
  const type = $("type").value.trim() || file?.type || (file ? "application/octet-stream" : "text/plain; charset=utf-8");
  const ttl = $("ttl").value.trim();
  const what = `Stored ${size(bytes.length)} as ${named(key)}`;
  if (isDots(key)) {
    const line = { op: "put", key: base64(key), value: base64(bytes), encoding: "base64", content_type: type };
    if (ttl) line.ttl = ttl;
    const answer = await byBatch(bucket, line);
    return say("good", what, "", { ETag: answer.etag });
  }
  const path = target(bucket, key);
  const headers = { "Content-Type": type };
  if (contexts.has(path)) headers["X-Torc-Context"] = contexts.get(path);
  if ($("queued").checked) headers.Prefer = "respond-async";
  const response = await ask(ttl ? `${path}?ttl=${encodeURIComponent(ttl)}` : path, { method: "PUT", headers, body: bytes });
  if (!response.ok) throw await refusal(response);
  remember(path, response);
  if (response.status === 202) return follow(what, response);
  const superseded = response.headers.get("X-Torc-Superseded") === "true";
  return say(superseded ? "warn" : "good", what,
    superseded ? "A newer version was there already, and stays." : "", { ETag: response.headers.get("ETag") });
}

async function deleteKey() {
  const bucket = $("bucket").value;
  const key = chosenKey();
  const what = `Deleted ${named(key)}`;
  if (isDots(key)) {
    await byBatch(bucket, { op: "delete", key: named(key) });
    return say("good", what);
  }
  const path = target(bucket, key);
  const headers = contexts.has(path) ? { "X-Torc-Context": contexts.get(path) } : {};
  if ($("queued").checked) headers.Prefer = "respond-async";
  const response = await ask(path, { method: "DELETE", headers });
  if (!response.ok) throw await refusal(response);
  remember(path, response);
  if (response.status === 202) return follow(what, response);
  return say("good", what, "Deleting a key that is not there is no error.");
}

/** A write that was accepted: looks every half second what has become of it, and says so. */
async function follow(what, response) {
  const write = response.headers.get("Location");
  const more = { ETag: response.headers.get("ETag"), Write: write };
  const until = Date.now() + FOLLOW_MS;
  say("good", "Accepted, and waits for a worker", what, more);
  while (Date.now() < until) {
    const { state, superseded, reason } = await json(write);
    if (state === "applied") {
      return say(superseded ? "warn" : "good", `${what}, by a worker`, superseded ? "A newer version was there already, and stays." : "", more);
    }
    if (state === "failed") return say("bad", "The write was given up", reason ?? "", more);
    await new Promise((done) => setTimeout(done, 500));
  }
  return say("warn", "Accepted, and still waits for a worker", what, more);
}

function remember(path, response) {
  const context = response.headers.get("X-Torc-Context");
  if (context) contexts.set(path, context);
}

// ---- what came of it ------------------------------------------------------------------------------

let blobUrl = null;

function clearResult() {
  if (blobUrl) URL.revokeObjectURL(blobUrl);
  blobUrl = null;
  $("result").replaceChildren();
}

function facts(entries) {
  const list = make("dl");
  for (const [name, value] of Object.entries(entries)) {
    if (value !== null && value !== undefined) list.append(make("dt", {}, name), make("dd", {}, String(value)));
  }
  return list.childElementCount ? [list] : [];
}

function say(mood, title, detail = "", more = {}) {
  clearResult();
  $("result").append(make("p", { className: `outcome ${mood}` }, title));
  if (detail) $("result").append(make("p", { className: "detail" }, detail));
  $("result").append(...facts(more));
}

function shown(bytes, type) {
  const text = readable(bytes);
  if (bytes.length === 0) return [make("p", { className: "detail" }, "The value is empty.")];
  if (text !== null) {
    const parts = [make("pre", { className: "shown", tabIndex: 0 }, text.slice(0, TEXT_SHOWN_MAX))];
    if (text.length > TEXT_SHOWN_MAX) parts.push(make("p", { className: "hint" }, "Only the beginning is shown; the download is whole."));
    return parts;
  }
  const hex = make("pre", { className: "shown hex", tabIndex: 0 }, hexDump(bytes.subarray(0, HEX_SHOWN_MAX)));
  const note = bytes.length > HEX_SHOWN_MAX ? `Binary; the first ${HEX_SHOWN_MAX} bytes are shown.` : "Binary.";
  const parts = [make("p", { className: "hint" }, note), hex];
  if (PICTURES.includes(type)) parts.unshift(make("img", { className: "picture", alt: "The value, as a picture", src: blobUrl }));
  return parts;
}

function showValue(key, { bytes, type, facts: more }) {
  const name = named(key);
  say("good", name);
  // Offered as bytes, whatever the value calls itself: a page that was stored as a value must not run here.
  const media = PICTURES.includes(type) ? type : "application/octet-stream";
  blobUrl = URL.createObjectURL(new Blob([bytes], { type: media }));
  const download = make("a", { href: blobUrl, download: name.split("/").pop() || "value" }, "Download");
  const row = make("p", { className: "hint" }, `${size(bytes.length)} · ${type || "no content type"} · `, download, " ");
  const text = readable(bytes);
  if (text !== null && text.length <= TEXT_SHOWN_MAX) {
    const edit = make("button", { type: "button", className: "quiet", id: "edit" }, "Edit");
    edit.addEventListener("click", () => {
      $("file").value = "";
      $("value").value = text;
      $("type").value = type;
      $("value").focus();
    });
    row.append(edit);
  }
  $("result").append(row, ...shown(bytes, type), ...facts(more));
}

function showSiblings(key, document_) {
  const siblings = document_.siblings ?? document_.values ?? [];
  say("warn", `${named(key)} has ${siblings.length} values`,
    "They were written without knowledge of each other. Store one value, and it replaces all that are shown here.");
  for (const sibling of siblings) {
    const value = sibling.encoding === "base64" || sibling.encoding === undefined
      ? unbase64(sibling.value ?? "") : new TextEncoder().encode(sibling.value ?? "");
    $("result").append(...shown(value, ""), make("p", { className: "hint" }, `${size(value.length)} · ${sibling.content_type ?? "no content type"}`));
  }
}

/** Runs what a button stands for; the others wait meanwhile. */
async function run(work) {
  const buttons = document.querySelectorAll("#key-form button");
  for (const button of buttons) button.disabled = true;
  try {
    await work();
  } catch (error) {
    const { outcome, required, received, limit } = error.facts ?? {};
    say("bad", error.message, error.detail ?? "", { Status: error.status || null, Outcome: outcome, Required: required, Received: received, Limit: limit });
  } finally {
    for (const button of buttons) button.disabled = false;
  }
}

// ---- keys of a bucket -----------------------------------------------------------------------------

let cursor = null;

async function listKeys(more) {
  // A prefix filters and does not shorten the way, so that a large bucket takes its time.
  const query = new URLSearchParams({ prefix: $("prefix").value, limit: PAGE_KEYS, deadline: "10s" });
  if (more && cursor) query.set("cursor", cursor);
  const note = $("list-note");
  $("list").disabled = $("more").disabled = true;
  try {
    const page = await json(`/kv/${encodeURIComponent($("bucket").value)}?${query}`);
    if (!more) $("keys").replaceChildren();
    for (const entry of page.keys) $("keys").append(listed(entry));
    cursor = page.cursor;
    $("more").hidden = !cursor || page.keys.length === 0;
    const count = $("keys").childElementCount;
    note.textContent = count === 0 ? "No such keys." : `${count} ${count === 1 ? "key" : "keys"}${$("more").hidden ? "." : ", and maybe more."}`;
    note.className = "hint";
  } catch (error) {
    note.textContent = `${error.message}. ${error.detail ?? ""}`;
    note.className = "hint bad";
  } finally {
    $("list").disabled = $("more").disabled = false;
  }
}

function listed(entry) {
  const isBytes = entry.encoding === "base64";
  const open = make("button", { type: "button" }, isBytes ? `base64 ${entry.key}` : entry.key);
  open.addEventListener("click", () => {
    $("key-form-of").value = isBytes ? "base64" : "text";
    $("key").value = entry.key;
    run(getKey);
  });
  return make("li", {}, open, make("span", {}, size(entry.size)));
}

// ---- cluster --------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";
const hue = (at) => `hsl(${(38 + at * 137.5) % 360} 55% 52%)`;

function svg(tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

function drawRing(nodes, alive) {
  const parts = [svg("circle", { cx: 60, cy: 60, r: 48 })];
  const whole = nodes.reduce((sum, node) => sum + node.share, 0) || 1;
  let from = 0;
  nodes.forEach((node, at) => {
    const part = node.share / whole;
    // A whole circle has no end that differs from its start; a gap shows where one share ends.
    const to = from + Math.min(part, 0.9999);
    const point = (turn) => `${60 + 48 * Math.sin(2 * Math.PI * turn)} ${60 - 48 * Math.cos(2 * Math.PI * turn)}`;
    const gap = nodes.length > 1 ? Math.min(0.004, part / 4) : 0;
    const path = svg("path", {
      d: `M ${point(from + gap)} A 48 48 0 ${part > 0.5 ? 1 : 0} 1 ${point(to - gap)}`,
      stroke: hue(at), class: node.alive ? "" : "dead",
    });
    path.append(svg("title", {}, `${node.name}: ${percent(node.share)}`));
    if (part > 0) parts.push(path);
    from += part;
  });
  parts.push(svg("text", { x: 60, y: 63 }, `${alive} / ${nodes.length}`), svg("text", { x: 60, y: 76, class: "small" }, "nodes alive"));
  $("donut").replaceChildren(...parts);
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function nodeRow(node, at, self) {
  const dot = make("span", { className: "dot" });
  dot.style.background = hue(at);
  const name = make("td", {}, dot, node.name, node.id === self ? " (this)" : "");
  const state = node.alive ? node.state : `${node.state}, does not answer`;
  const bar = make("span", { className: "bar" }, make("i"));
  bar.firstChild.style.width = `${Math.min(100, 100 * node.share)}%`;
  bar.firstChild.style.background = hue(at);
  const drift = typeof node.clock_offset_us === "number" ? `${(node.clock_offset_us / 1000).toFixed(1)} ms` : "–";
  return make("tr", {}, name, make("td", { className: !node.alive ? "bad" : node.state === "member" ? "good" : "warn" }, state),
    make("td", {}, node.zone), make("td", { className: "number" }, String(node.weight)),
    make("td", {}, bar, percent(node.share)), make("td", {}, node.http),
    make("td", { className: "number admin-only" }, String(node.hints_waiting ?? "–")), make("td", { className: "number admin-only" }, drift));
}

function showCluster(picture) {
  const nodes = [...(picture.nodes ?? picture.members)].sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  const self = picture.seen_from?.id ?? picture.node;
  const alive = nodes.filter((node) => node.alive).length;
  drawRing(nodes, alive);
  $("nodes").replaceChildren(...nodes.map((node, at) => nodeRow(node, at, self)));
  const copies = Math.max(0, ...picture.buckets.filter((bucket) => bucket.name === "default").map((bucket) => bucket.n));
  const moving = nodes.filter((node) => node.state !== "member").map((node) => `${node.name} is ${node.state}`);
  const said = [];
  if (alive < nodes.length) said.push(`${nodes.length - alive} of ${nodes.length} nodes ${nodes.length - alive === 1 ? "does" : "do"} not answer.`);
  if (nodes.length < copies) said.push(`Keys should have ${copies} copies; with ${nodes.length} ${nodes.length === 1 ? "node" : "nodes"} they have ${nodes.length}.`);
  if (moving.length) said.push(`${moving.join(", ")}.`);
  $("verdict").textContent = said.join(" ") || `All ${nodes.length} nodes answer; each key has ${Math.min(copies, nodes.length)} copies.`;
  $("versions").textContent = `Cluster ${picture.cluster} · config ${picture.config_version} · ring ${picture.ring_version}`;
  const names = picture.buckets.map((bucket) => bucket.name);
  const options = Array.from($("bucket").options, (option) => option.value);
  if (names.join("\n") !== options.join("\n")) {
    const chosen = $("bucket").value;
    $("bucket").replaceChildren(...names.map((name) => make("option", {}, name)));
    if (names.includes(chosen)) $("bucket").value = chosen;
  }
}

const MOODS = { ok: "good", degraded: "warn", down: "bad", absent: "" };

function showHealth(health) {
  const words = { ok: "healthy", degraded: "degraded", down: "down" };
  $("health").textContent = words[health.status] ?? health.status;
  $("health").className = `pill ${MOODS[health.status] ?? ""}`;
  const parts = Object.entries(health.components ?? {}).map(([name, part]) => {
    const item = make("li", {}, make("b", {}, name), make("span", { className: MOODS[part.status] ?? "" }, part.status === "absent" ? "not configured" : part.status));
    const more = Object.entries(part).filter(([key]) => key !== "status").map(([key, value]) => (key === "reason" ? value : `${key.replaceAll("_", " ")} ${value}`));
    if (more.length) item.append(make("small", {}, more.join(", ")));
    return item;
  });
  $("parts").replaceChildren(...parts);
  const queue = health.components?.queue?.status ?? "absent";
  $("queued-row").hidden = queue === "absent";
  if (queue === "absent") $("queued").checked = false;
}

async function refresh() {
  const offline = $("offline");
  try {
    // 503 has the components too.
    const health = await (await ask("/health")).json();
    showHealth(health);
    showCluster(await json(onAdmin ? "/cluster" : "/ring"));
    offline.hidden = true;
    $("seen").textContent = `Seen ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    const said = `${error.message}. ${error.detail ?? ""} Trying again.`;
    // Said once: a screen reader reads out every change.
    if (offline.hidden || offline.textContent !== said) offline.textContent = said;
    offline.hidden = false;
    if (!error.status) { $("health").textContent = "no answer"; $("health").className = "pill bad"; }
  }
}

async function keepFresh() {
  for (;;) {
    if (!document.hidden) await refresh();
    await new Promise((done) => setTimeout(done, REFRESH_MS));
  }
}

// ---- start ----------------------------------------------------------------------------------------

$("key-form").addEventListener("submit", (event) => { event.preventDefault(); run(getKey); });
$("put").addEventListener("click", () => run(putKey));
$("delete").addEventListener("click", () => run(deleteKey));
$("value").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(putKey); }
});
$("value").addEventListener("input", () => { $("file").value = ""; });
$("list-form").addEventListener("submit", (event) => { event.preventDefault(); listKeys(false); });
$("more").addEventListener("click", () => listKeys(true));
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
keepFresh();
