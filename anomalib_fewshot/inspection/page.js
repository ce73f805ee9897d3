"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const PER_PAGE = 200, BINS = 40, STEP = 0.0025, TICKS = [0, .5, 1, 2, 5];
const KINDS = data.defect === null ? ["review", "good"] : ["defect", "review", "good"];
const SIGNS = { good: "●", review: "▲", defect: "■" };
const thresholds = { review: data.review, defect: data.defect };
const pictures = data.pictures.map(([path, score, p, width, height]) => ({ path, score, p, width, height }));
const place = score => Math.max(0, score) / (1 + Math.max(0, score));  // on the axis, from 0 to 1: there is room for any score
const scoreAt = place => { const inside = Math.min(.995, Math.max(0, place)); return inside / (1 - inside); };
const byPath = new Map(pictures.map(picture => [picture.path, picture]));
const key = `anomalib-inspect:${data.id}`;
let filter = "all", page = 0, shown = [], current = null;

const find = id => document.getElementById(id);
const verdictOf = score => (thresholds.defect !== null && score > thresholds.defect ? "defect" : score > thresholds.review ? "review" : "good");
const suffixes = { photos: "jpg", thumbnails: "jpg", heat: "png" };
const fileOf = (part, path) => `page/${part}/${path.split("/").map(encodeURIComponent).join("/")}.${suffixes[part]}`;
const inlined = (part, path) => data.inlined[path][part] || data.inlined[path].thumbnails;
const url = (part, path) => (data.inlined ? inlined(part, path) : fileOf(part, path));
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element && name !== "style") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// Marks, stored in the browser

let marks = {};
try { marks = JSON.parse(localStorage.getItem(key)) || {}; } catch { /* storage is disabled */ }

function mark(path, kind) {
  if (marks[path] === kind) delete marks[path];
  else marks[path] = kind;
  try { localStorage.setItem(key, JSON.stringify(marks)); } catch { /* storage is disabled */ }
  update();
}

function markButtons(path) {
  return ["good", "bad"].map(kind => make("button", {
    type: "button", className: `mark-${kind}`, "aria-pressed": String(marks[path] === kind),
    "aria-label": `Mark ${path} as ${kind}`, onclick: () => mark(path, kind),
  }, `is ${kind}`));
}

const quote = text => (/^[\w./:@%+,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

function command() {
  const isFolder = !(pictures.length === 1 && data.new.endsWith(pictures[0].path));
  const folder = data.new.replace(/\/+$/, "");
  const added = Object.keys(marks).filter(path => marks[path] === "good" && byPath.has(path)).sort();
  const files = added.map(path => (isFolder ? `${folder}/${path}` : data.new));
  const ignore = data.ignore ? ["--ignore", data.ignore] : [];
  const unlabeled = data.unlabeled.length ? ["--unlabeled", ...data.unlabeled] : data.pool ? [] : ["--no-pool"];
  return ["anomalib", "inspect", "--good", ...(data.good.length ? data.good : ["GOOD_FOLDER"]), ...files, "--new", data.new, ...unlabeled, ...ignore].map(quote).join(" ");
}

function showMarks() {
  const kinds = { good: [], bad: [] };
  for (const [path, kind] of Object.entries(marks)) if (byPath.has(path)) kinds[kind].push(byPath.get(path));
  find("marks").hidden = !kinds.good.length && !kinds.bad.length;
  const falseAlarms = kinds.good.filter(picture => verdictOf(picture.score) !== "good").length;
  const detected = kinds.bad.filter(picture => verdictOf(picture.score) !== "good").length;
  const sentences = [];
  if (kinds.good.length) sentences.push(`${plural(kinds.good.length, "picture")} marked good, ${falseAlarms} of them above a threshold.`);
  if (kinds.bad.length) sentences.push(`${plural(kinds.bad.length, "picture")} marked bad, ${detected} of them above a threshold.`);
  sentences.push(kinds.good.length
    ? "The command adds the pictures marked good to the training pictures and does not score them again. You chose them after seeing their scores, so the false-alarm rate is no longer guaranteed."
    : "Only pictures marked good change the model. Without them, the command trains on the same pictures as before.");
  find("marked").textContent = sentences.join(" ");
  find("command").value = command();
  find("copied").textContent = "";
}

// Histogram

const SVG = "http://www.w3.org/2000/svg";
function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const bin = score => Math.min(BINS - 1, Math.max(0, Math.ceil(place(score) * BINS) - 1));
function count(scores) {
  const counts = Array(BINS).fill(0);
  for (const score of scores) counts[bin(score)] += 1;
  return counts;
}
const newCounts = count(pictures.map(picture => picture.score)), calibrationCounts = count(data.calibration_scores);

function showHistogram() {
  const box = find("histogram"), width = Math.max(280, box.clientWidth), middle = 130, above = 84, below = data.calibration_scores.length ? 36 : 0;
  const height = middle + below + 38, x = score => 10 + place(score) * (width - 20), step = (width - 20) / BINS;
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group",
    "aria-label": `Histogram of ${pictures.length} new and ${data.calibration_scores.length} good pictures` });
  const bars = (counts, color, size, direction) => {
    const highest = Math.max(1, ...counts);
    counts.forEach((number, index) => {
      if (!number) return;
      const barHeight = Math.max(3, size * number / highest);
      svg.append(draw("rect", { x: 11 + index * step, width: step - 2, height: barHeight, y: direction > 0 ? middle - barHeight : middle + 1,
        style: `fill: ${color}` }, draw("title", {}, document.createTextNode(String(number)))));
    });
  };
  bars(newCounts, "var(--bar)", above, 1);
  bars(calibrationCounts, "var(--calibration)", below, -1);
  svg.append(draw("path", { class: "axis", d: `M10 ${middle + .5}H${width - 10}` }));
  const calibration = below ? ` above, ${plural(data.calibration_scores.length, "good one")} below` : "";
  const labels = [[width / 2, height - 20, plural(pictures.length, "new picture") + calibration, "middle"]];
  labels.push(...TICKS.map(score => [x(score), height - 4, score ? String(score) : "score 0", score ? "middle" : "start"]));
  for (const [left, top, text, anchor] of labels)
    svg.append(draw("text", { x: left, y: top, "text-anchor": anchor }, document.createTextNode(text)));
  for (const name of ["review", "defect"]) if (thresholds[name] !== null) svg.append(thresholdHandle(name, x, middle + below + 4, width));
  const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.threshold : null;
  box.replaceChildren(svg);
  if (focused) box.querySelector(`[data-threshold=${focused}]`).focus();
}

function thresholdHandle(name, x, bottom, width) {
  const position = x(thresholds[name]), top = name === "review" ? 34 : 14, right = name === "defect" || thresholds.defect === null;
  const fits = right ? position < width - 70 : position < 60;
  const handle = draw("g", { class: `threshold ${name}`, tabindex: 0, role: "slider", "data-threshold": name, "aria-label": `Threshold for ${name}`,
    "aria-valuemin": 0, "aria-valuemax": scoreAt(1).toFixed(3), "aria-valuenow": thresholds[name].toFixed(3), "aria-orientation": "horizontal" },
    draw("rect", { x: position - 14, y: 0, width: 28, height: bottom }),
    draw("path", { d: `M${position} ${top}V${bottom}`, fill: "none" }),
    draw("circle", { cx: position, cy: top, r: 8 }),
    draw("text", { x: position + (fits ? 13 : -13), y: top + 4, "text-anchor": fits ? "start" : "end" }, document.createTextNode(name)));
  return handle;
}

function move(name, value) {
  if (Math.abs(place(value) - place(data[name])) < STEP / 2) value = data[name];
  thresholds[name] = value;
  if (thresholds.defect !== null && name === "review") thresholds.defect = Math.max(thresholds.defect, value);
  if (thresholds.defect !== null && name === "defect") thresholds.review = Math.min(thresholds.review, value);
  update();
}

let dragged = null;
find("histogram").addEventListener("pointerdown", event => {
  const handle = event.target.closest(".threshold");
  if (!handle) return;
  dragged = handle.dataset.threshold;
  event.preventDefault();
  find("histogram").setPointerCapture(event.pointerId);
  handle.focus();
});
find("histogram").addEventListener("pointermove", event => {
  if (!dragged) return;
  const box = find("histogram").firstChild.getBoundingClientRect();
  move(dragged, scoreAt(Math.round((event.clientX - box.left - 10) / (box.width - 20) / STEP) * STEP));
});
for (const name of ["pointerup", "pointercancel"]) find("histogram").addEventListener(name, () => { dragged = null; });
find("histogram").addEventListener("keydown", event => {
  const name = event.target.dataset.threshold;
  const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
  if (!name) return;
  if (event.key in steps) move(name, scoreAt(place(thresholds[name]) + steps[event.key] * STEP));
  else if (event.key === "Home") move(name, 0);
  else if (event.key === "End") move(name, scoreAt(1));
  else return;
  event.preventDefault();
});

function showGuarantees() {
  const rows = KINDS.filter(name => name !== "good").map(name => {
    const above = data.calibration_scores.filter(score => score > thresholds[name]).length;
    const flagged = pictures.filter(picture => picture.score > thresholds[name]).length;
    const moved = thresholds[name] !== data[name];
    const text = !moved ? data.guarantees[name] : data.calibration_scores.length
      ? `Moved by hand: ${above} of your ${data.calibration_scores.length} good pictures exceed it. You moved this threshold after seeing the scores, so the false-alarm rate is no longer guaranteed.`
      : "Moved by hand: there are no calibration scores for comparison.";
    return make("p", {}, make("b", { className: name }, `${SIGNS[name]} ${name} above ${thresholds[name].toFixed(3)}: ${plural(flagged, "new picture")}. `), text);
  });
  find("guarantees").replaceChildren(...rows);
  find("reset").hidden = thresholds.review === data.review && thresholds.defect === data.defect;
}
find("reset").onclick = () => { thresholds.review = data.review; thresholds.defect = data.defect; update(); };

// Tiles

function showCounts() {
  const counts = { all: pictures.length, marked: 0 };
  for (const kind of KINDS) counts[kind] = 0;
  for (const picture of pictures) {
    counts[verdictOf(picture.score)] += 1;
    counts.marked += picture.path in marks;
  }
  find("summary").replaceChildren(...KINDS.flatMap((kind, index) => [index ? " · " : "", make("b", { className: `verdict ${kind}` }, `${SIGNS[kind]} ${counts[kind]} ${kind}`)]));
  const names = ["all", ...KINDS, "marked"];
  if (find("filters").childElementCount === 0)
    find("filters").append(...names.map(name => make("button", { type: "button", "data-filter": name, onclick: () => { filter = name; page = 0; update(); } })));
  for (const button of find("filters").children) {
    const name = button.getAttribute("data-filter");
    button.textContent = `${name} ${counts[name]}`;
    button.setAttribute("aria-pressed", String(filter === name));
  }
}

function selectPictures() {
  const selected = pictures.filter(picture => filter === "all" || (filter === "marked" ? picture.path in marks : verdictOf(picture.score) === filter));
  const order = find("sort").value, sign = order === "low" ? 1 : -1;
  const byName = (a, b) => a.path.localeCompare(b.path, undefined, { numeric: true });
  return selected.sort((a, b) => (order === "name" ? 0 : sign * (a.score - b.score)) || byName(a, b));
}

function tile(picture) {
  const kind = verdictOf(picture.score), p = picture.p === null ? "" : ` · p ${picture.p.toFixed(2)}`;
  return make("li", { className: `tile ${kind}`, "data-path": picture.path },
    make("button", { type: "button", className: "open", "aria-label": `${picture.path}: ${kind}, score ${picture.score.toFixed(3)}. Enlarge`, onclick: () => enlarge(picture) },
      make("span", { className: "frame" },
        make("img", { src: url("thumbnails", picture.path), alt: "", loading: "lazy" }),
        make("img", { src: url("heat", picture.path), alt: "", loading: "lazy", className: "layer" })),
      make("span", { className: "caption" }, make("span", { className: "verdict" }, `${SIGNS[kind]} ${kind}`), make("span", {}, `${picture.score.toFixed(3)}${p}`)),
      make("span", { className: "name" }, picture.path)),
    make("div", { className: "marks", role: "group", "aria-label": `Mark ${picture.path}` }, ...markButtons(picture.path)));
}

function showTiles() {
  const selected = selectPictures(), pages = Math.max(1, Math.ceil(selected.length / PER_PAGE));
  page = Math.min(page, pages - 1);
  const visible = selected.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
  const state = visible.map(picture => `${verdictOf(picture.score)} ${marks[picture.path]} ${picture.path}`);
  const same = visible.length === shown.length && visible.every((picture, index) => picture === shown[index]);
  const tiles = find("tiles").children;
  visible.forEach((picture, index) => {  // update visible tiles in place, so that dragging a threshold reloads no picture
    if (!same || tiles[index].dataset.state === state[index]) return;
    const kind = verdictOf(picture.score), updated = tile(picture);
    tiles[index].className = updated.className;
    tiles[index].querySelector(".verdict").textContent = `${SIGNS[kind]} ${kind}`;
    tiles[index].querySelector(".open").setAttribute("aria-label", updated.querySelector(".open").getAttribute("aria-label"));
    for (const name of ["good", "bad"])
      tiles[index].querySelector(`.mark-${name}`).setAttribute("aria-pressed", String(marks[picture.path] === name));
  });
  if (!same) find("tiles").replaceChildren(...(visible.length ? visible.map(tile) : [make("li", { className: "quiet" }, "No pictures.")]));
  visible.forEach((_, index) => { tiles[index].dataset.state = state[index]; });
  shown = visible;
  find("pages").replaceChildren();
  if (pages === 1) return;
  const pageButton = (label, to) => make("button", { type: "button", disabled: to < 0 || to >= pages, onclick: () => { page = to; update(); find("pictures-title").scrollIntoView(); } }, label);
  find("pages").append(pageButton("Previous page", page - 1), `Page ${page + 1} of ${pages}`, pageButton("Next page", page + 1));
}

// Enlarged picture

function enlarge(picture) {
  current = picture;
  find("large-photo").src = url("photos", picture.path);
  find("large-photo").alt = `${picture.path}, enlarged`;
  find("large-heat").src = url("heat", picture.path);
  document.querySelector(".stage").style.setProperty("--ratio", picture.height / picture.width);
  showLarge();
  if (!find("large").open) find("large").showModal();
}

function showLarge() {
  if (current === null) return;
  const kind = verdictOf(current.score), index = shown.indexOf(current);
  find("large-name").textContent = `${current.path} · ${current.width} × ${current.height}`;
  find("large-verdict").className = kind;
  find("large-verdict").textContent = `${SIGNS[kind]} ${kind} · ${current.score.toFixed(3)}`;
  find("large-heat").style.opacity = find("opacity").value / 100;
  find("large-marks").replaceChildren(...markButtons(current.path));
  find("previous").disabled = index <= 0;
  find("next").disabled = index < 0 || index >= shown.length - 1;
}

function showNeighbor(offset) {
  const other = shown[shown.indexOf(current) + offset];
  if (current !== null && other) enlarge(other);
}
find("opacity").oninput = showLarge;
find("previous").onclick = () => showNeighbor(-1);
find("next").onclick = () => showNeighbor(1);
find("large").addEventListener("close", () => {
  const opened = current && document.querySelector(`[data-path="${CSS.escape(current.path)}"] .open`);
  current = null;
  if (opened) opened.focus();
});

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("textarea, select")) return;
  const letter = event.key.toLowerCase(), tileOf = event.target.closest(".tile");
  const path = current ? current.path : tileOf && tileOf.dataset.path;
  if (letter === "h") { find("heat").checked = !find("heat").checked; find("heat").onchange(); }
  else if (path && letter === "g") mark(path, "good");
  else if (path && letter === "b") mark(path, "bad");
  else if (current && event.key === "ArrowLeft" && event.target.id !== "opacity") showNeighbor(-1);
  else if (current && event.key === "ArrowRight" && event.target.id !== "opacity") showNeighbor(1);
});

// Controls

find("sort").onchange = () => { page = 0; update(); };
find("heat").onchange = () => find("tiles").classList.toggle("heat", find("heat").checked);
find("copy").onclick = async () => {
  const text = find("command");
  try { await navigator.clipboard.writeText(text.value); } catch { text.select(); document.execCommand("copy"); }
  find("copied").textContent = "Copied. Run it in a terminal, in the working directory of the first run.";
};

function update() {
  showCounts();
  showHistogram();
  showGuarantees();
  showTiles();
  showMarks();
  showLarge();
}

const aspects = pictures.map(picture => picture.width / picture.height).sort((a, b) => a - b);
if (aspects.length) find("tiles").style.setProperty("--aspect", Math.min(2, Math.max(.7, aspects[aspects.length >> 1])));
new ResizeObserver(showHistogram).observe(find("histogram"));
update();
