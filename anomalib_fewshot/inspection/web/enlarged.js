// The enlarged picture, with its largest region and the most similar region of a good picture.

let enlargedPath = null;

function enlarge(path) {
  enlargedPath = path;
  update();
  if (!find("large").open) find("large").showModal();
}

/** Change the address of an image only if it differs, since setting it loads the image again. */
function setImage(image, url, alt) {
  if (image.getAttribute("src") !== url) image.src = url;
  image.alt = alt;
}

/** Return an outline. The dark one below makes the bright one visible on bright pictures. */
function outline(kind, [x, y, width, height]) {
  const box = { x, y, width, height };
  return [draw("rect", { ...box, class: "shadow" }), draw("rect", { ...box, class: kind })];
}

function boxAround(x, y, width, height) {
  return [x - width / 2, y - height / 2, width, height];
}

function drawBoxes(svg, size, boxes) {
  svg.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
  svg.replaceChildren(...boxes.flat());
}

function regionText(picture) {
  if (picture.region === null) return "";
  const [, , width, height, area] = picture.region;
  return `Largest region: ${width} x ${height} pixels, area ${area}`;
}

function showBoxes(picture) {
  const boxes = [];
  if (picture.region !== null) boxes.push(outline("region", picture.region));
  if (picture.nearest !== null) {
    const [index, , , size, x, y] = picture.nearest;
    const good = data.support[index];
    const width = (size * picture.width) / good.width; // the model resizes all pictures to one size
    const height = (size * picture.height) / good.height;
    boxes.push(outline("compared", boxAround(x, y, width, height)));
  }
  drawBoxes(find("large-boxes"), picture, boxes);
}

function showNearest(picture) {
  const url = picture.nearest === null ? null : goodImageUrl(picture.nearest[0]);
  find("nearest").hidden = url === null;
  if (url === null) return;
  const [index, x, y, size] = picture.nearest;
  const good = data.support[index];
  setImage(find("nearest-photo"), url, `Good picture ${good.path}`);
  find("nearest-sheet").style.setProperty("--ratio", good.width / good.height);
  drawBoxes(find("nearest-boxes"), good, [outline("compared", boxAround(x, y, size, size))]);
  find("nearest-text").textContent = `Most similar region: ${good.path}`;
}

function showEnlarged() {
  const picture = byPath.get(enlargedPath);
  if (picture === undefined) {
    if (find("large").open) find("large").close(); // an update has removed the picture
    return;
  }
  setImage(find("large-photo"), imageUrl("photos", picture.path), `${picture.path}, enlarged`);
  setImage(find("large-heat"), imageUrl("heat", picture.path), "");
  find("large-heat").style.opacity = find("opacity").value / 100;
  find("large-sheet").style.setProperty("--ratio", picture.width / picture.height);
  find("large-name").textContent = `${picture.path} · ${picture.width} × ${picture.height}`;
  find("large-verdict").className = verdictOf(picture);
  find("large-verdict").textContent = `${verdictText(picture)} · ${formatScore(picture.score)}`;
  find("region-text").textContent = regionText(picture);
  showBoxes(picture);
  showNearest(picture);
  showIgnored();
  showEnlargedControls(picture);
}

function showEnlargedControls(picture) {
  const buttons = find("large-marks");
  if (buttons.dataset.path !== picture.path) {
    const hadFocus = buttons.contains(document.activeElement) ? document.activeElement.className : null;
    buttons.dataset.path = picture.path;
    buttons.replaceChildren(...markButtons(picture.path));
    if (hadFocus) buttons.querySelector(`.${hadFocus}`).focus();
  }
  showMark(buttons, picture.path);
  const index = shown.indexOf(picture);
  find("previous").disabled = index <= 0;
  find("next").disabled = index < 0 || index >= shown.length - 1;
}

/** Enlarge the previous or the next picture. */
function showNeighbor(offset) {
  const index = shown.findIndex((picture) => picture.path === enlargedPath);
  const neighbor = index < 0 ? undefined : shown[index + offset];
  if (neighbor) enlarge(neighbor.path);
}

function closeEnlarged() {
  const tile = enlargedPath !== null && document.querySelector(`.tile[data-path="${CSS.escape(enlargedPath)}"] .open`);
  enlargedPath = null;
  stopDrawing();
  if (tile) tile.focus();
}

find("opacity").oninput = showEnlarged;
find("previous").onclick = () => showNeighbor(-1);
find("next").onclick = () => showNeighbor(1);
find("large").addEventListener("close", closeEnlarged);
