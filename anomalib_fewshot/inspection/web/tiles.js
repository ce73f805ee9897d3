// Tiles of the pictures: filter, order, pages and heat maps.

const PER_PAGE = 200;
const HEAT_MODES = ["flagged", "all", "none"];
const NAME_ORDER = new Intl.Collator(undefined, { numeric: true });

const view = { filter: "all", page: 0 };
let shown = []; // pictures on the current page, in order

function showCounts() {
  const counts = { all: pictures.length, defect: 0, review: 0, good: 0, marked: 0 };
  for (const picture of pictures) {
    counts[verdictOf(picture)] += 1;
    if (labels.has(picture.path)) counts.marked += 1;
  }
  const summary = [];
  for (const verdict of verdicts) {
    if (summary.length) summary.push(" · ");
    summary.push(make("b", { className: `verdict ${verdict}` }, `${SYMBOLS[verdict]} ${counts[verdict]} ${verdict}`));
  }
  find("summary").replaceChildren(...summary);
  showFilters(counts);
}

function showFilters(counts) {
  const names = ["all", ...verdicts, "marked"];
  const buttons = find("filters").children;
  if (buttons.length !== names.length) {
    const makeFilter = (name) => make("button", { type: "button", "data-filter": name, onclick: () => selectFilter(name) });
    find("filters").replaceChildren(...names.map(makeFilter));
  }
  for (const button of buttons) {
    const name = button.getAttribute("data-filter");
    button.textContent = `${name} ${counts[name]}`;
    button.setAttribute("aria-pressed", String(view.filter === name));
  }
}

function selectFilter(name) {
  view.filter = name;
  view.page = 0;
  update();
}

/** Say that good verdicts may be wrong, and how many are known to be. */
function showHint() {
  const isFirst = view.filter === "good" && find("sort").value === "high";
  const advice = isFirst ? "Check the first row." : "Select the good ones, highest score first, and check the first row.";
  find("hint").textContent = `Pictures called good may still be defective. ${advice} ${missedSentence()}`;
}

function matchesFilter(picture) {
  if (view.filter === "all") return true;
  if (view.filter === "marked") return labels.has(picture.path);
  return verdictOf(picture) === view.filter;
}

function selectPictures() {
  const order = find("sort").value;
  const byName = (a, b) => NAME_ORDER.compare(a.path, b.path);
  const compare = {
    high: (a, b) => b.score - a.score || byName(a, b),
    low: (a, b) => a.score - b.score || byName(a, b),
    name: byName,
  };
  return pictures.filter(matchesFilter).sort(compare[order]);
}

function makeTile(path) {
  return make("li", { className: "tile", "data-path": path },
    make("button", { type: "button", className: "open", onclick: () => enlarge(path) },
      make("span", { className: "frame" },
        make("img", { src: imageUrl("thumbnails", path), alt: "", loading: "lazy" }),
        make("img", { src: imageUrl("heat", path), alt: "", loading: "lazy", className: "layer" })),
      make("span", { className: "caption" }, make("span", { className: "verdict" }), make("span", { className: "score" })),
      make("span", { className: "name" }, path)),
    make("div", { className: "marks", role: "group", "aria-label": `Mark ${path}` }, ...markButtons(path)));
}

/** Update a tile in place, so that moving a threshold reloads no picture. */
function fillTile(tile, picture) {
  const verdict = verdictOf(picture);
  const state = [verdict, picture.score, picture.p, labels.get(picture.path)].join(" ");
  if (tile.dataset.state === state) return;
  tile.dataset.state = state;
  tile.className = `tile ${verdict}`;
  tile.querySelector(".verdict").textContent = verdictText(picture);
  const p = picture.p === null ? "" : ` · p ${picture.p.toFixed(2)}`;
  tile.querySelector(".score").textContent = formatScore(picture.score) + p;
  const name = `${picture.path}: ${verdict}, score ${formatScore(picture.score)}. Enlarge`;
  tile.querySelector(".open").setAttribute("aria-label", name);
  showMark(tile, picture.path);
}

/** Return the visible tiles by the picture that they show. Pictures of another run have other images. */
function tilesByKey() {
  const tiles = [...find("tiles").querySelectorAll(".tile")];
  return new Map(tiles.map((tile) => [tile.dataset.key, tile]));
}

function showTiles() {
  const selected = selectPictures();
  const numPages = Math.max(1, Math.ceil(selected.length / PER_PAGE));
  view.page = Math.min(view.page, numPages - 1);
  shown = selected.slice(view.page * PER_PAGE, (view.page + 1) * PER_PAGE);
  const existing = tilesByKey();
  const tiles = [];
  for (const picture of shown) {
    const key = `${data.id} ${picture.path}`;
    const tile = existing.get(key) || makeTile(picture.path);
    tile.dataset.key = key;
    fillTile(tile, picture);
    tiles.push(tile);
  }
  if (tiles.length === 0) tiles.push(make("li", { className: "quiet" }, "No pictures."));
  replaceTiles(tiles);
  showPages(numPages);
}

function replaceTiles(tiles) {
  const current = [...find("tiles").children];
  if (current.length === tiles.length && tiles.every((tile, index) => tile === current[index])) return;
  const focused = document.activeElement;
  const path = focused.closest(".tile")?.dataset.path;
  const selector = focused.classList.contains("open") ? ".open" : `.${focused.className}`;
  find("tiles").replaceChildren(...tiles);
  if (path === undefined) return;
  const tile = tiles.find((other) => other.dataset.path === path);
  tile?.querySelector(selector)?.focus({ preventScroll: true });
}

function showPages(numPages) {
  find("pages").replaceChildren();
  if (numPages === 1) return;
  const pageButton = (text, to) => make("button", {
    type: "button",
    disabled: to < 0 || to >= numPages,
    onclick: () => showPage(to),
  }, text);
  const position = `Page ${view.page + 1} of ${numPages}`;
  find("pages").append(pageButton("Previous page", view.page - 1), position, pageButton("Next page", view.page + 1));
}

function showPage(number) {
  view.page = number;
  update();
  find("pictures-title").scrollIntoView();
}

function showHeat() {
  find("tiles").dataset.heat = find("heat").value;
}

/** Show the next of: heat maps of flagged pictures, of all pictures, of none. */
function nextHeatMode() {
  const index = HEAT_MODES.indexOf(find("heat").value);
  find("heat").value = HEAT_MODES[(index + 1) % HEAT_MODES.length];
  showHeat();
}

/** Give all tiles the shape of a typical picture. */
function setTileShape() {
  const ratios = pictures.map((picture) => picture.width / picture.height).sort((a, b) => a - b);
  if (ratios.length === 0) return;
  const median = ratios[Math.floor(ratios.length / 2)];
  find("tiles").style.setProperty("--aspect", Math.min(2, Math.max(0.7, median)));
}

find("sort").onchange = () => { view.page = 0; update(); };
find("heat").onchange = showHeat;
