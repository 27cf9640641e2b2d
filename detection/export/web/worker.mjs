// Runs the model beside the page, which so stays alive. A message with a model opens it; one with pixels is answered by
// the outputs of the model.

import * as ort from "./ort.wasm.bundle.min.mjs";

let session;

async function open({ model, threads }) {
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  return { version: ort.env.versions.web };
}

async function run({ pixels, frame, size }) {
  const start = performance.now();
  const outputs = await session.run({
    pixels: new ort.Tensor("uint8", pixels, [1, 3, ...frame]),
    sizes: new ort.Tensor("int64", BigInt64Array.from(size, BigInt), [1, 2]),
  });
  const plain = Object.entries(outputs).map(([name, { data, dims }]) => [name, { data, dims }]);
  return { outputs: Object.fromEntries(plain), milliseconds: performance.now() - start };
}

onmessage = async ({ data }) => {
  try {
    postMessage(await (data.model ? open(data) : run(data)));
  } catch (error) {
    postMessage({ error: String(error?.message ?? error) });
  }
};
