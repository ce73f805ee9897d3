"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const PER_PAGE = 200, BINS = 40, STEP = 0.005;
const KINDS = data.defect === null ? ["review", "good"] : ["defect", "review", "good"];
const SIGNS = { good: "●", review: "▲", defect: "■" };
const lines = { review: data.review, defect: data.defect };
const pictures = data.pictures.map(([path, score, p, width, height]) => ({ path, score, p, width, height }));
const byPath = new Map(pictures.map(picture => [picture.path, picture]));
const key = `anomalib-inspect:${data.id}`;
let filter = "all", page = 0, shown = [], current = null;

const find = id => document.getElementById(id);
const verdictOf = score => (lines.defect !== null && score > lines.defect ? "defect" : score > lines.review ? "review" : "good");
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

// Marks, which the browser keeps

let marks = {};
try { marks = JSON.parse(localStorage.getItem(key)) || {}; } catch { /* a browser that keeps nothing */ }

function mark(path, kind) {
  if (marks[path] === kind) delete marks[path];
  else marks[path] = kind;
  try { localStorage.setItem(key, JSON.stringify(marks)); } catch { /* as above */ }
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
  return ["anomalib", "inspect", "--good", ...(data.good.length ? data.good : ["GOOD_FOLDER"]), ...files, "--new", data.new, ...ignore].map(quote).join(" ");
}

function showMarks() {
  const kinds = { good: [], bad: [] };
  for (const [path, kind] of Object.entries(marks)) if (byPath.has(path)) kinds[kind].push(byPath.get(path));
  find("marks").hidden = !kinds.good.length && !kinds.bad.length;
  const wrong = kinds.good.filter(picture => verdictOf(picture.score) !== "good").length;
  const found = kinds.bad.filter(picture => verdictOf(picture.score) !== "good").length;
  const said = [];
  if (kinds.good.length) said.push(`Marked good: ${kinds.good.length}, above a threshold: ${wrong}.`);
  if (kinds.bad.length) said.push(`Marked bad: ${kinds.bad.length}, above a threshold: ${found}.`);
  said.push(kinds.good.length
    ? "The command adds the pictures marked good to the support set and does not score them. You chose them after seeing their scores, so the false-alarm rate is no longer guaranteed."
    : "Only pictures marked good change the model: the command trains on the same support set.");
  find("marked").textContent = said.join(" ");
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

const bin = score => Math.min(BINS - 1, Math.max(0, Math.ceil(score * BINS) - 1));
function count(scores) {
  const counts = Array(BINS).fill(0);
  for (const score of scores) counts[bin(score)] += 1;
  return counts;
}
const newCounts = count(pictures.map(picture => picture.score)), heldCounts = count(data.calibration_scores);

function showHistogram() {
  const box = find("histogram"), width = Math.max(280, box.clientWidth), middle = 130, above = 84, below = data.calibration_scores.length ? 36 : 0;
  const height = middle + below + 38, x = score => 10 + score * (width - 20), step = (width - 20) / BINS;
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group",
    "aria-label": `Histogram of ${pictures.length} new and ${data.calibration_scores.length} good pictures` });
  const bars = (counts, color, size, direction) => {
    const highest = Math.max(1, ...counts);
    counts.forEach((number, index) => {
      if (!number) return;
      const tall = Math.max(3, size * number / highest);
      svg.append(draw("rect", { x: x(index / BINS) + 1, width: step - 2, height: tall, y: direction > 0 ? middle - tall : middle + 1,
        style: `fill: ${color}` }, draw("title", {}, document.createTextNode(String(number)))));
    });
  };
  bars(newCounts, "var(--bar)", above, 1);
  bars(heldCounts, "var(--held)", below, -1);
  svg.append(draw("path", { class: "axis", d: `M10 ${middle + .5}H${width - 10}` }));
  const held = below ? ` above, ${plural(data.calibration_scores.length, "good one")} below` : "";
  const words = [[width / 2, height - 20, plural(pictures.length, "new picture") + held, "middle"]];
  words.push([10, height - 4, "score 0", "start"], [x(.5), height - 4, "0.5", "middle"], [width - 10, height - 4, "1", "end"]);
  for (const [left, top, text, anchor] of words)
    svg.append(draw("text", { x: left, y: top, "text-anchor": anchor }, document.createTextNode(text)));
  for (const name of ["review", "defect"]) if (lines[name] !== null) svg.append(lineHandle(name, x, middle + below + 4, width));
  const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.line : null;
  box.replaceChildren(svg);
  if (focused) box.querySelector(`[data-line=${focused}]`).focus();
}

function lineHandle(name, x, bottom, width) {
  const place = x(lines[name]), top = name === "review" ? 34 : 14, right = name === "defect" || lines.defect === null;
  const fits = right ? place < width - 70 : place < 60;
  const handle = draw("g", { class: `line ${name}`, tabindex: 0, role: "slider", "data-line": name, "aria-label": `Line of ${name}`,
    "aria-valuemin": 0, "aria-valuemax": 1, "aria-valuenow": lines[name].toFixed(3), "aria-orientation": "horizontal" },
    draw("rect", { x: place - 14, y: 0, width: 28, height: bottom }),
    draw("path", { d: `M${place} ${top}V${bottom}`, fill: "none" }),
    draw("circle", { cx: place, cy: top, r: 8 }),
    draw("text", { x: place + (fits ? 13 : -13), y: top + 4, "text-anchor": fits ? "start" : "end" }, document.createTextNode(name)));
  return handle;
}

function move(name, value) {
  value = Math.min(1, Math.max(0, value));
  if (Math.abs(value - data[name]) < STEP / 2) value = data[name];
  lines[name] = value;
  if (lines.defect !== null && name === "review") lines.defect = Math.max(lines.defect, value);
  if (lines.defect !== null && name === "defect") lines.review = Math.min(lines.review, value);
  update();
}

let dragged = null;
find("histogram").addEventListener("pointerdown", event => {
  const handle = event.target.closest(".line");
  if (!handle) return;
  dragged = handle.dataset.line;
  event.preventDefault();
  find("histogram").setPointerCapture(event.pointerId);
  handle.focus();
});
find("histogram").addEventListener("pointermove", event => {
  if (!dragged) return;
  const box = find("histogram").firstChild.getBoundingClientRect();
  move(dragged, Math.round((event.clientX - box.left - 10) / (box.width - 20) / STEP) * STEP);
});
for (const name of ["pointerup", "pointercancel"]) find("histogram").addEventListener(name, () => { dragged = null; });
find("histogram").addEventListener("keydown", event => {
  const name = event.target.dataset.line;
  const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
  if (!name) return;
  if (event.key in steps) move(name, lines[name] + steps[event.key] * STEP);
  else if (event.key === "Home") move(name, 0);
  else if (event.key === "End") move(name, 1);
  else return;
  event.preventDefault();
});

function showPromises() {
  const rows = KINDS.filter(name => name !== "good").map(name => {
    const above = data.calibration_scores.filter(level => level > lines[name]).length;
    const flagged = pictures.filter(picture => picture.score > lines[name]).length;
    const moved = lines[name] !== data[name];
    const words = !moved ? data.guarantees[name] : data.calibration_scores.length
      ? `Moved by hand: ${above} of your ${data.calibration_scores.length} good pictures exceed it. You moved this threshold after seeing the scores, so the false-alarm rate is no longer guaranteed.`
      : "Moved by hand: there are no calibration scores to compare it with.";
    return make("p", {}, make("b", { className: name }, `${SIGNS[name]} ${name} above ${lines[name].toFixed(3)}: ${plural(flagged, "new picture")}. `), words);
  });
  find("guarantees").replaceChildren(...rows);
  find("reset").hidden = lines.review === data.review && lines.defect === data.defect;
}
find("reset").onclick = () => { lines.review = data.review; lines.defect = data.defect; update(); };

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

function choose() {
  const kept = pictures.filter(picture => filter === "all" || (filter === "marked" ? picture.path in marks : verdictOf(picture.score) === filter));
  const order = find("sort").value, sign = order === "low" ? 1 : -1;
  const byName = (one, other) => one.path.localeCompare(other.path, undefined, { numeric: true });
  return kept.sort((one, other) => (order === "name" ? 0 : sign * (one.score - other.score)) || byName(one, other));
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
    make("div", { className: "marks", role: "group", "aria-label": `Marks of ${picture.path}` }, ...markButtons(picture.path)));
}

function showTiles() {
  const chosen = choose(), pages = Math.max(1, Math.ceil(chosen.length / PER_PAGE));
  page = Math.min(page, pages - 1);
  const visible = chosen.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
  const state = visible.map(picture => `${verdictOf(picture.score)} ${marks[picture.path]} ${picture.path}`);
  const same = visible.length === shown.length && visible.every((picture, index) => picture === shown[index]);
  const tiles = find("tiles").children;
  visible.forEach((picture, index) => {  // those that are there change in place: a drag loads no picture again
    if (!same || tiles[index].dataset.state === state[index]) return;
    const kind = verdictOf(picture.score), fresh = tile(picture);
    tiles[index].className = fresh.className;
    tiles[index].querySelector(".verdict").textContent = `${SIGNS[kind]} ${kind}`;
    tiles[index].querySelector(".open").setAttribute("aria-label", fresh.querySelector(".open").getAttribute("aria-label"));
    for (const name of ["good", "bad"])
      tiles[index].querySelector(`.mark-${name}`).setAttribute("aria-pressed", String(marks[picture.path] === name));
  });
  if (!same) find("tiles").replaceChildren(...(visible.length ? visible.map(tile) : [make("li", { className: "quiet" }, "None.")]));
  visible.forEach((_, index) => { tiles[index].dataset.state = state[index]; });
  shown = visible;
  find("pages").replaceChildren();
  if (pages === 1) return;
  const turn = (label, to) => make("button", { type: "button", disabled: to < 0 || to >= pages, onclick: () => { page = to; update(); find("pictures-title").scrollIntoView(); } }, label);
  find("pages").append(turn("Previous page", page - 1), `Page ${page + 1} of ${pages}`, turn("Next page", page + 1));
}

// Enlarged

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

function turnTo(offset) {
  const other = shown[shown.indexOf(current) + offset];
  if (current !== null && other) enlarge(other);
}
find("opacity").oninput = showLarge;
find("previous").onclick = () => turnTo(-1);
find("next").onclick = () => turnTo(1);
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
  else if (current && event.key === "ArrowLeft" && event.target.id !== "opacity") turnTo(-1);
  else if (current && event.key === "ArrowRight" && event.target.id !== "opacity") turnTo(1);
});

// Controls

find("sort").onchange = () => { page = 0; update(); };
find("heat").onchange = () => find("tiles").classList.toggle("heat", find("heat").checked);
find("copy").onclick = async () => {
  const text = find("command");
  try { await navigator.clipboard.writeText(text.value); } catch { text.select(); document.execCommand("copy"); }
  find("copied").textContent = "Copied. Paste it in a terminal, where the first run was started.";
};

function update() {
  showCounts();
  showHistogram();
  showPromises();
  showTiles();
  showMarks();
  showLarge();
}

const aspects = pictures.map(picture => picture.width / picture.height).sort((one, other) => one - other);
if (aspects.length) find("tiles").style.setProperty("--aspect", Math.min(2, Math.max(.7, aspects[aspects.length >> 1])));
new ResizeObserver(showHistogram).observe(find("histogram"));
update();
