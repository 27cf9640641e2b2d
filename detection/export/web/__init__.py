"""A folder that any static server makes a detector in the browser: the page and the runtime of WebAssembly."""
