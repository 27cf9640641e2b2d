"""Writes a folder that any static server turns into a detector in the browser: page and WebAssembly runtime."""
