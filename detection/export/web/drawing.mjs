// Draws detections on a picture at the screen's own resolution, so that lines and letters are sharp whatever its size.

/** Returns the colour of a class: light, so that black letters can be read on it. */
export const colorOf = (label, classes) => `hsl(${(360 * label) / classes} 100% 70%)`;

/** Draws `found`, best first, on `picture` as large as `room` (width, height in CSS pixels) allows. */
export function draw(canvas, picture, found, names, room) {
  const density = devicePixelRatio, scale = Math.min(room[0] / picture.width, room[1] / picture.height);
  const [width, height] = [picture.width, picture.height].map(side => Math.max(1, Math.round(side * scale)));
  Object.assign(canvas, { width: width * density, height: height * density });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  const context = canvas.getContext("2d");
  context.scale(density, density);
  context.drawImage(picture, 0, 0, width, height);
  const worstFirst = [...found].reverse().map(one => ({
    ...one, box: one.box.map(value => value * scale), ink: colorOf(one.label, names.length),
  }));
  for (const one of worstFirst) {
    if (one.mask) fill(context, one, density);
    outline(context, one);
  }
  context.font = "600 13px system-ui, sans-serif";
  for (const one of worstFirst) caption(context, `${names[one.label]} ${one.score.toFixed(2)}`, one, width);
}

function outline(context, { box: [left, top, right, bottom], ink }) {
  for (const [lineWidth, strokeStyle] of [[4, "#0009"], [2, ink]]) {
    Object.assign(context, { lineWidth, strokeStyle });
    context.strokeRect(left, top, right - left, bottom - top);
  }
}

function caption(context, text, { box: [left, top], ink }, width) {
  const long = context.measureText(text).width + 8;
  const x = Math.max(0, Math.min(left - 1, width - long)), y = Math.max(0, top - 19);
  context.fillStyle = ink;
  context.fillRect(x, y, long, 18);
  context.fillStyle = "#000";
  context.fillText(text, x + 4, y + 13.5);
}

/** Fills the pixels whose probability, bilinear between the centres of the mask's cells, is at least 0.5. */
function fill(context, { mask, box, ink }, density) {
  const [left, top, right, bottom] = box.map(value => value * density), cells = Math.sqrt(mask.length);
  const across = cellsOf(left, right, cells), down = cellsOf(top, bottom, cells);
  if (!across.length || !down.length) return;
  const layer = new OffscreenCanvas(across.length, down.length), drawing = layer.getContext("2d");
  const image = drawing.createImageData(across.length, down.length);
  down.forEach(([above, below, lower], y) => across.forEach(([before, after, share], x) => {
    const between = row => mask[row * cells + before] * (1 - share) + mask[row * cells + after] * share;
    const inside = between(above) * (1 - lower) + between(below) * lower >= 0.5;
    image.data[4 * (y * across.length + x) + 3] = inside ? 128 : 0;
  }));
  drawing.putImageData(image, 0, 0);
  drawing.globalCompositeOperation = "source-in";
  drawing.fillStyle = ink;
  drawing.fillRect(0, 0, across.length, down.length);
  context.drawImage(layer, Math.ceil(left - 0.5) / density, Math.ceil(top - 0.5) / density,
    across.length / density, down.length / density);
}

/** Returns, for each pixel whose centre lies between `low` and `high`, the two cells around it and the later's share. */
function cellsOf(low, high, cells) {
  const first = Math.ceil(low - 0.5), count = Math.max(0, Math.ceil(high - 0.5) - first);
  return Array.from({ length: count }, (_, i) => {
    const place = Math.min(Math.max(((first + i + 0.5 - low) / (high - low)) * cells - 0.5, 0), cells - 1);
    const before = Math.floor(place);
    return [before, Math.min(before + 1, cells - 1), place - before];
  });
}
