// Texts of the run, keys, and the start.

function showList(id, texts, makeItem) {
  find(id).hidden = texts.length === 0;
  find(id).replaceChildren(...texts.map(makeItem));
}

function issueItem([path, severity, message]) {
  const kind = severity === "error" ? "Cannot be used:" : "Note:";
  return make("li", {}, make("b", {}, kind), " ", make("span", { className: "path" }, path), ` ${message}`);
}

function showIssues() {
  const items = data.issues.map(issueItem);
  if (data.num_issues > data.issues.length) items.push(make("li", {}, "findings.csv lists all of them."));
  find("issues").hidden = data.num_issues === 0;
  find("issues-title").textContent = plural(data.num_issues, "data issue");
  find("issue-list").replaceChildren(...items);
}

function goodPictureItem(good, index) {
  const url = goodImageUrl(index);
  const item = make("li", {}, make("span", { className: "name" }, good.path));
  if (url !== null) item.prepend(make("img", { src: url, alt: "", loading: "lazy" }));
  return item;
}

function showGoodPictures() {
  const state = `${data.id} ${data.support.map((good) => good.path).join("\n")}`;
  find("good-pictures").hidden = data.support.length === 0;
  if (find("good-list").dataset.state === state) return; // avoid loading the images again
  find("good-list").dataset.state = state;
  find("good-title").textContent = plural(data.support.length, "good picture");
  find("good-list").replaceChildren(...data.support.map(goodPictureItem));
}

/** Show the texts of the run, which change only with the data. */
function showTexts() {
  document.title = data.title;
  find("title").textContent = data.title;
  find("run").textContent = [data.date, data.run].filter(Boolean).join(" · ");
  showList("warnings", data.warnings, (text) => make("li", {}, make("b", {}, "Warning: "), text));
  showList("notes", data.notes, (text) => make("p", {}, text));
  showIssues();
  showGoodPictures();
  find("storage").textContent = data.server ? "Marks are stored with the run." : "Marks are stored in this browser only.";
}

let textsOf = null; // data whose texts are shown

/** Show the current state of the page. */
function update() {
  if (textsOf !== data) {
    textsOf = data;
    showTexts();
    setTileShape();
  }
  showCounts();
  showHint();
  showHistogram();
  showGuarantees();
  showThresholdControls();
  showTiles();
  showEvaluation();
  showTraining();
  showEnlarged();
}

function handleKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("textarea, select, input:not([type=range], [type=file])")) return;
  const path = enlargedPath ?? event.target.closest(".tile")?.dataset.path;
  const isSlider = event.target.id === "opacity";
  const key = event.key.toLowerCase();
  if (key === "h") nextHeatMode();
  else if (path !== undefined && key === "g") mark(path, "good");
  else if (path !== undefined && key === "b") mark(path, "bad");
  else if (enlargedPath !== null && key === "arrowleft" && !isSlider) showNeighbor(-1);
  else if (enlargedPath !== null && key === "arrowright" && !isSlider) showNeighbor(1);
}

setData(JSON.parse(find("data").textContent));
find("issues").open = data.num_issues <= 5;
showHeat();
document.addEventListener("keydown", handleKey);
new ResizeObserver(showHistogram).observe(find("histogram"));
update();
if (data.server) pollForever();
