// Regions to ignore: rectangles that the user draws on the enlarged picture. They apply to all pictures.

const MAX_MASK_SIDE = 2000; // pixels
const MIN_SIDE = 0.005; // of the picture: shorter strokes are clicks

let rectangles = []; // [x, y, width, height], each from 0 to 1
let stroke = null; // rectangle that is being drawn: its start and its end
let isDrawing = false;
let maskIsSaved = false;

function setDrawing(on) {
  isDrawing = on;
  stroke = null;
  find("draw").setAttribute("aria-pressed", String(on));
  find("large-sheet").classList.toggle("drawing", on);
  showIgnored();
}

function stopDrawing() {
  if (isDrawing) setDrawing(false);
}

/** Return the position of the pointer in the picture, from 0 to 1. */
function pointerPosition(event) {
  const box = find("large-sheet").getBoundingClientRect();
  const clip = (value) => Math.min(1, Math.max(0, value));
  return [clip((event.clientX - box.left) / box.width), clip((event.clientY - box.top) / box.height)];
}

function strokeRectangle() {
  const [[x0, y0], [x1, y1]] = stroke;
  return [Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0)];
}

function startStroke(event) {
  if (!isDrawing) return;
  event.preventDefault();
  find("large-sheet").setPointerCapture(event.pointerId);
  stroke = [pointerPosition(event), pointerPosition(event)];
}

function continueStroke(event) {
  if (stroke === null) return;
  stroke[1] = pointerPosition(event);
  showIgnored();
}

function endStroke() {
  if (stroke === null) return;
  const rectangle = strokeRectangle();
  stroke = null;
  if (rectangle[2] > MIN_SIDE && rectangle[3] > MIN_SIDE) changeRectangles([...rectangles, rectangle]);
  else showIgnored();
}

function cancelStroke() {
  stroke = null;
  showIgnored();
}

function changeRectangles(changed) {
  rectangles = changed;
  maskIsSaved = false;
  find("mask-saved").textContent = "";
  update();
}

function rectangleItem(rectangle, index) {
  const [x, y, width, height] = rectangle.map((value) => Math.round(100 * value));
  const text = `${width} % x ${height} %, ${x} % from the left and ${y} % from the top`;
  const remove = () => changeRectangles(rectangles.filter((other) => other !== rectangle));
  return make("li", {}, `Region ${index + 1}: ${text} `,
    make("button", { type: "button", "aria-label": `Remove region ${index + 1}`, onclick: remove }, "Remove"));
}

/** Show the rectangles on the enlarged picture, and their list. */
function showIgnored() {
  const all = stroke === null ? rectangles : [...rectangles, strokeRectangle()];
  const boxes = all.map(([x, y, width, height]) => draw("rect", { x, y, width, height, class: "ignored" }));
  find("ignored-boxes").replaceChildren(...boxes);
  find("ignored").replaceChildren(...rectangles.map(rectangleItem));
  find("clear").hidden = rectangles.length === 0;
  find("save-mask").hidden = rectangles.length === 0;
  find("save-mask").textContent = data.server ? "Ignore from the next training" : "Save mask";
  find("remove-mask").hidden = !data.server || data.ignore === null;
  find("ignore-text").hidden = rectangles.length === 0 && data.ignore === null;
  const current = data.ignore === null ? "" : `The run ignores the white regions of ${data.ignore}; a new mask replaces it. `;
  find("ignore-text").textContent = `${current}Regions to ignore apply to all pictures, at the next training.`;
}

/** Return the mask as a canvas: white rectangles on black. */
function makeMask(picture) {
  const scale = Math.min(1, MAX_MASK_SIDE / Math.max(picture.width, picture.height));
  const canvas = make("canvas");
  canvas.width = Math.max(1, Math.round(scale * picture.width));
  canvas.height = Math.max(1, Math.round(scale * picture.height));
  const context = canvas.getContext("2d");
  context.fillStyle = "black";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = "white";
  for (const [x, y, width, height] of rectangles) {
    const left = Math.floor(x * canvas.width);
    const top = Math.floor(y * canvas.height);
    const right = Math.ceil((x + width) * canvas.width);
    const bottom = Math.ceil((y + height) * canvas.height);
    context.fillRect(left, top, right - left, bottom - top);
  }
  return canvas;
}

async function saveMask() {
  if (data.server) {
    const saved = await post("api/ignore", { path: enlargedPath, rectangles });
    if (saved) find("mask-saved").textContent = "Saved. Train again to use it.";
    return;
  }
  makeMask(byPath.get(enlargedPath)).toBlob((blob) => download("ignore.png", blob), "image/png");
  maskIsSaved = true;
  find("mask-saved").textContent = "Saved as ignore.png. Move it to the folder in which you run the training command.";
  update();
}

async function removeMask() {
  const removed = await post("api/ignore", { path: enlargedPath, rectangles: [] });
  if (removed) changeRectangles([]);
}

/** Escape ends the drawing. Pressed again, it closes the enlarged picture. */
function escapeDrawing(event) {
  if (event.key !== "Escape" || !isDrawing) return;
  event.preventDefault();
  setDrawing(false);
}

find("draw").onclick = () => setDrawing(!isDrawing);
find("clear").onclick = () => changeRectangles([]);
find("save-mask").onclick = saveMask;
find("remove-mask").onclick = removeMask;
find("large-sheet").addEventListener("pointerdown", startStroke);
find("large-sheet").addEventListener("pointermove", continueStroke);
find("large-sheet").addEventListener("pointerup", endStroke);
find("large-sheet").addEventListener("pointercancel", cancelStroke);
find("large").addEventListener("keydown", escapeDrawing);
