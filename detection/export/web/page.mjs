// The page: where images come from, what of the detections is shown, and what went wrong.

import { openDetector } from "./detector.mjs";
import { colorOf, draw } from "./drawing.mjs";

const get = id => document.getElementById(id);
const made = (tag, text, more = {}) => Object.assign(document.createElement(tag), { textContent: text }, more);
let detector, shown, stream; // `shown` holds a picture and all its detections

function say(text, wrong = false) {
  Object.assign(get("status"), { textContent: text, className: wrong ? "wrong" : "" });
}

async function look(picture) {
  const result = await detector.detect(picture);
  shown?.picture.close();
  shown = { picture, ...result };
  get("time").textContent =
    `${result.milliseconds.toFixed(0)} ms in the model, ${result.resizing.toFixed(0)} ms to read and resize`;
  show();
  document.dispatchEvent(new CustomEvent("detected", { detail: result })); // for other scripts in this page
}

function show() {
  const least = get("threshold").valueAsNumber, names = detector.facts.class_names;
  get("least").textContent = least.toFixed(2);
  if (!shown) return;
  const on = [...get("classes").querySelectorAll("input")].map(input => input.checked);
  const seen = shown.found.filter(one => one.score >= least && on[one.label]);
  get("hint").hidden = true;
  get("canvas").hidden = get("table").hidden = false;
  get("place").classList.add("filled");
  draw(get("canvas"), shown.picture, seen, names, [get("place").clientWidth, Math.max(240, 0.75 * innerHeight)]);
  say(`${seen.length} of ${shown.found.length} detections shown`);
  get("rows").replaceChildren(...seen.map(one => {
    const row = made("tr", "");
    const cells = [one.score.toFixed(2), ...one.box.map(value => value.toFixed(1))];
    row.append(made("th", names[one.label], { scope: "row" }), ...cells.map(text => made("td", text)));
    return row;
  }));
}

// Sources

async function lookAtFile(file) {
  stopCamera();
  say("Looking");
  let picture;
  try {
    picture = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw Error(`${file.name} is no image that this browser reads: give a PNG, JPEG or WebP file.`);
  }
  await look(picture);
}

async function startCamera() {
  if (!navigator.mediaDevices) throw Error("A browser gives the camera to pages of https and of localhost only.");
  const video = made("video", "", { muted: true, playsInline: true });
  stream = video.srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
  get("camera").textContent = "Stop camera";
  await video.play();
  while (stream && stream === video.srcObject) await look(await createImageBitmap(video));
}

function stopCamera() {
  stream?.getTracks().forEach(track => track.stop());
  stream = null;
  get("camera").textContent = "Start camera";
}

// Settings

function showFacts() {
  const { facts, proof, runtime } = detector, [rows, columns] = facts.size, { agreement } = proof;
  const lines = {
    "Licence": facts.licence,
    "Weights": `${facts.weights}, SHA-256 ${facts.run.slice(0, 12)}`,
    "Model": `${facts.precision}, frame of ${rows} x ${columns} pixels`,
    "Proof": `${agreement.matched} of PyTorch's ${agreement.detections} detections found at export`,
    "Runtime": runtime,
  };
  get("facts").replaceChildren(...Object.entries(lines).flatMap(([name, text]) => [made("dt", name), made("dd", text)]));
}

function showSettings() {
  const { facts } = detector;
  Object.assign(get("threshold"), { min: facts.score_threshold, value: facts.shown_score });
  get("classes").replaceChildren(...facts.class_names.map((name, label) => {
    const line = made("label", ""), swatch = made("i", "");
    swatch.style.background = colorOf(label, facts.class_names.length);
    line.append(made("input", "", { type: "checkbox", checked: true }), swatch, made("span", name));
    return line;
  }));
}

function turnAll(on) {
  get("classes").querySelectorAll("input").forEach(input => { input.checked = on; });
  show();
}

function listen() {
  const tell = action => action.catch(error => { stopCamera(); say(error.message, true); });
  const over = on => event => { event.preventDefault(); get("place").classList.toggle("over", on); };
  get("file").onchange = ({ target }) => {
    if (target.files[0]) tell(lookAtFile(target.files[0]));
    target.value = ""; // else the same file could not be chosen again
  };
  get("camera").onclick = () => (stream ? stopCamera() : tell(startCamera()));
  get("threshold").oninput = get("classes").onchange = show;
  get("all").onclick = () => turnAll(true);
  get("none").onclick = () => turnAll(false);
  Object.assign(document, { ondragover: over(true), ondragleave: over(false) });
  document.ondrop = event => {
    over(false)(event);
    if (event.dataTransfer.files[0]) tell(lookAtFile(event.dataTransfer.files[0]));
  };
  addEventListener("resize", show);
}

try {
  say("Loading the model");
  detector = await openDetector(share => {
    say(share < 1 ? `Loading the model: ${(100 * share).toFixed(0)} %` : "Preparing the model");
  });
  showFacts();
  showSettings();
  listen();
  get("file").disabled = get("camera").disabled = get("settings").hidden = false;
  show();
  say("Ready: choose an image, drop one, or start the camera");
} catch (error) {
  say(error.message, true);
}
