// A detector of images in a browser: reads what lies beside this file, and needs nothing else of the page.
//
//   const detector = await openDetector();
//   const { found } = await detector.detect(await createImageBitmap(file));   // label, score, box, mask of each

const COEFFICIENT = 1 << 11; // the fixed point of OpenCV's weights of pixels

/** Returns a detector once the model is ready; `progress` gets the share of it that was read. */
export async function openDetector(progress = () => {}) {
  if (!globalThis.WebAssembly) {
    throw Error("This browser has no WebAssembly, or it is off: take a current Chrome, Edge, Firefox or Safari.");
  }
  const proof = JSON.parse(new TextDecoder().decode(await read("export.json")));
  const model = await read("model.onnx", progress);
  // A worker of a blob keeps to the page's Content-Security-Policy; one of an address would not.
  const source = `import ${JSON.stringify(beside("worker.mjs"))};`;
  const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })), { type: "module" });
  // Threads share memory, which a browser allows where the server sends COOP and COEP headers; a plain one does not.
  const threads = crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  const { version } = await ask(worker, { model, threads }, [model.buffer]);
  return new Detector(worker, proof, `onnxruntime-web ${version}, ${threads} thread${threads > 1 ? "s" : ""}`);
}

class Detector {
  constructor(worker, proof, runtime) {
    Object.assign(this, { worker, proof, facts: proof.facts, runtime, queue: Promise.resolve() });
  }

  /** Returns the detections of an ImageBitmap, best first, boxes in its pixels; images are looked at in turn. */
  detect(picture) {
    const result = this.queue.then(() => this.detectNow(picture));
    this.queue = result.catch(() => {});
    return result;
  }

  async detectNow(picture) {
    const start = performance.now(), { height, width } = picture, { resize, size: frame } = this.facts;
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.drawImage(picture, 0, 0);
    const whole = resizedSize([height, width], resize), size = fittedSize(whole, frame);
    const planes = shrunk(resized(context.getImageData(0, 0, width, height), whole), whole, size);
    const pixels = placed(planes, size, frame);
    const resizing = performance.now() - start;
    const { outputs, milliseconds } = await ask(this.worker, { pixels, size, frame }, [pixels.buffer]);
    return { found: rows(outputs, [width / size[1], height / size[0]]), resizing, milliseconds };
  }
}

function rows({ boxes, labels, scores, counts, masks }, scales) {
  const cells = masks ? masks.dims[2] * masks.dims[3] : 0;
  return Array.from({ length: Number(counts.data[0]) }, (_, row) => ({
    label: Number(labels.data[row]),
    score: scores.data[row],
    box: [0, 1, 2, 3].map(i => boxes.data[4 * row + i] * scales[i % 2]),
    mask: masks ? masks.data.slice(row * cells, (row + 1) * cells) : null,
  }));
}

/** Returns the size (height, width) that the run's resizing gives an image of `size`. */
function resizedSize(size, [shorter, longer]) {
  const factor = Math.min(shorter / Math.min(...size), longer / Math.max(...size));
  return size.map(side => Math.max(1, roundEven(side * factor)));
}

/** Returns the size that fits into the frame. */
function fittedSize(size, frame) {
  const factor = Math.min(...size.map((side, i) => frame[i] / side));
  return factor < 1 ? size.map(side => Math.max(1, Math.floor(side * factor))) : size;
}

/**
 * Returns the planes (3, height, width) of ImageData at that size.
 *
 * They are those of cv2.resize (INTER_LINEAR), by which the run was trained; a canvas resizes otherwise, and boxes move.
 */
function resized(image, [height, width]) {
  const source = image.data, planes = new Uint8Array(3 * height * width);
  const down = neighbours(image.height, height), across = neighbours(image.width, width);
  for (let y = 0; y < height; y++) {
    const [above, below, upper, lower] = down[y], top = 4 * image.width * above, bottom = 4 * image.width * below;
    for (let x = 0; x < width; x++) {
      const [before, after, left, right] = across[x];
      for (let c = 0; c < 3; c++) {
        const first = source[top + 4 * before + c] * left + source[top + 4 * after + c] * right;
        const second = source[bottom + 4 * before + c] * left + source[bottom + 4 * after + c] * right;
        const sum = ((upper * (first >> 4)) >> 16) + ((lower * (second >> 4)) >> 16);
        planes[(c * height + y) * width + x] = (sum + 2) >> 2;
      }
    }
  }
  return planes;
}

/** Returns `planes` of `size` at `newSize`, smoothed as by torch's interpolate (bilinear, antialias), as resdet does. */
function shrunk(planes, size, newSize) {
  if (size.every((side, i) => side === newSize[i])) return planes;
  const [down, across] = size.map((side, i) => triangles(side, newSize[i])), [height, width] = newSize;
  const narrow = new Float32Array(size[0] * width), out = new Uint8Array(3 * height * width);
  const mean = (values, start, step, weights) =>
    weights.reduce((sum, weight, i) => sum + weight * values[start + i * step], 0);
  for (let c = 0; c < 3; c++) {
    for (let y = 0; y < size[0]; y++) {
      const row = (c * size[0] + y) * size[1];
      across.forEach(([first, weights], x) => { narrow[y * width + x] = mean(planes, row + first, 1, weights); });
    }
    down.forEach(([first, weights], y) => {
      for (let x = 0; x < width; x++) {
        out[(c * height + y) * width + x] = roundEven(mean(narrow, first * width + x, width, weights));
      }
    });
  }
  return out;
}

/** Returns, for each pixel of a row, the first old one under its triangle, and the weights of all under it. */
function triangles(length, newLength) {
  const scale = length / newLength;
  return Array.from({ length: newLength }, (_, i) => {
    const center = (i + 0.5) * scale, first = Math.max(0, Math.floor(center - scale + 0.5));
    const count = Math.min(length, Math.floor(center + scale + 0.5)) - first;
    const heights = Array.from({ length: count }, (_, j) => Math.max(0, 1 - Math.abs(first + j + 0.5 - center) / scale));
    const total = heights.reduce((sum, value) => sum + value);
    return [first, heights.map(value => value / total)];
  });
}

/** Returns the pixels of a frame with `planes` at its top left and zeros elsewhere. */
function placed(planes, [height, width], [rows, columns]) {
  const pixels = new Uint8Array(3 * rows * columns);
  for (let y = 0; y < 3 * height; y++) {
    const row = Math.floor(y / height) * rows + (y % height);
    pixels.set(planes.subarray(y * width, (y + 1) * width), row * columns);
  }
  return pixels;
}

/** Returns, for each pixel of a row, the two old ones around it and their weights. */
function neighbours(length, newLength) {
  const inside = place => Math.min(Math.max(place, 0), length - 1);
  return Array.from({ length: newLength }, (_, i) => {
    const place = Math.fround((i + 0.5) * (length / newLength) - 0.5), low = Math.floor(place);
    const share = Math.fround(place - low);
    const weights = [Math.fround(1 - share), share].map(part => roundEven(part * COEFFICIENT));
    return [inside(low), inside(low + 1), ...weights];
  });
}

/** Returns the nearest integer, halves to the even one, as Python and OpenCV round. */
function roundEven(value) {
  const low = Math.floor(value);
  return value - low === 0.5 ? low + (low % 2) : Math.round(value);
}

async function read(name, progress = () => {}) {
  const response = await fetch(beside(name));
  if (!response.ok) throw Error(`${name}: the server answered ${response.status} ${response.statusText}`);
  const total = Number(response.headers.get("Content-Length")), reader = response.body.getReader(), parts = [];
  for (let done = 0, step; !(step = await reader.read()).done; ) {
    parts.push(step.value);
    done += step.value.length;
    progress(done <= total ? done / total : 0); // a server that compresses tells the smaller length
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

const beside = name => new URL(name, import.meta.url).href;

function ask(worker, message, transfer) {
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => (data.error ? reject(Error(data.error)) : resolve(data));
    worker.onerror = event => reject(Error(event.message || "the worker did not start: a file of the page is missing"));
    worker.postMessage(message, transfer);
  });
}
