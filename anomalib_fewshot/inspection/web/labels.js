// Labels: which pictures the user has marked as good or bad. The server stores them, or else the browser.

const labels = new Map(); // path -> "good" or "bad"

function storageKey() {
  return `anomalib-inspect:${data.labels_key}`;
}

/** Return the changes that were made in this browser: path -> "good", "bad", or null for a removed label. */
function storedChanges() {
  try {
    return new Map(Object.entries(JSON.parse(localStorage.getItem(storageKey())) || {}));
  } catch {
    return new Map(); // storage is disabled
  }
}

function loadLabels() {
  labels.clear();
  for (const [path, label] of Object.entries(data.labels)) labels.set(path, label);
  if (!data.server) applyChanges(storedChanges());
}

function applyChanges(changes) {
  for (const [path, label] of changes) {
    if (label === null) labels.delete(path);
    else labels.set(path, label);
  }
}

/** Set or remove labels, and store them. */
function changeLabels(changes) {
  applyChanges(changes);
  if (data.server) {
    post("api/labels", { labels: Object.fromEntries(changes) });
  } else {
    try {
      const all = new Map([...storedChanges(), ...changes]);
      localStorage.setItem(storageKey(), JSON.stringify(Object.fromEntries(all)));
    } catch {
      /* storage is disabled */
    }
  }
  update();
}

/** Mark a picture. The same mark a second time removes it. */
function mark(path, label) {
  changeLabels(new Map([[path, labels.get(path) === label ? null : label]]));
}

function markButtons(path) {
  return ["good", "bad"].map((label) => make("button", {
    type: "button",
    className: `mark-${label}`,
    "aria-label": `Mark ${path} as ${label}`,
    onclick: () => mark(path, label),
  }, `is ${label}`));
}

/** Show the label of a picture on its buttons. */
function showMark(element, path) {
  for (const label of ["good", "bad"]) {
    element.querySelector(`.mark-${label}`).setAttribute("aria-pressed", String(labels.get(path) === label));
  }
}

/** Return the pictures with a label, which may lack some labels of an earlier run. */
function labeledPictures(label) {
  return pictures.filter((picture) => labels.get(picture.path) === label);
}

function exportLabels() {
  const rows = [["path", "label"]];
  for (const picture of pictures) {
    if (labels.has(picture.path)) rows.push([picture.path, labels.get(picture.path)]);
  }
  download("labels.csv", new Blob([formatCsv(rows)], { type: "text/csv" }));
}

/** Return the labels of a CSV file, and how many of its rows cannot be used. */
function readLabels(text) {
  const [header = [], ...rows] = parseCsv(text);
  const names = header.map((name) => name.trim().toLowerCase());
  const pathColumn = names.indexOf("path");
  const labelColumn = names.indexOf("label");
  if (pathColumn < 0 || labelColumn < 0) throw new Error("The file must have the columns path and label.");
  const result = { changes: new Map(), unknownPaths: 0, unknownLabels: 0 };
  for (const row of rows) {
    if (row.length === 1 && row[0] === "") continue; // empty line
    const path = row[pathColumn];
    const label = (row[labelColumn] || "").trim().toLowerCase();
    if (!byPath.has(path)) result.unknownPaths += 1;
    else if (label !== "good" && label !== "bad") result.unknownLabels += 1;
    else result.changes.set(path, label);
  }
  return result;
}

async function importLabels(file) {
  const message = find("imported");
  try {
    const { changes, unknownPaths, unknownLabels } = readLabels(await file.text());
    const parts = [`Imported ${plural(changes.size, "label")} from ${file.name}.`];
    if (unknownPaths) parts.push(`Skipped ${plural(unknownPaths, "row")} whose path is not among the pictures.`);
    if (unknownLabels) parts.push(`Skipped ${plural(unknownLabels, "row")} whose label is neither good nor bad.`);
    message.textContent = parts.join(" ");
    if (changes.size) changeLabels(changes);
  } catch (error) {
    message.textContent = `${file.name} was not imported. ${error.message}`;
  }
}

find("export").onclick = exportLabels;
find("import").onclick = () => find("import-file").click();
find("import-file").onchange = () => {
  const [file] = find("import-file").files;
  find("import-file").value = ""; // the same file may be chosen again
  if (file) importLabels(file);
};
