// The run: pictures, thresholds, verdicts and image files.

const SYMBOLS = { good: "●", review: "▲", defect: "■" };
const SUFFIXES = { photos: "jpg", thumbnails: "jpg", heat: "png" };

let data = null; // see `page.py`
let pictures = [];
let byPath = new Map();
let verdicts = []; // from bad to good
const thresholds = { review: 0, defect: null }; // as shown; the stored ones are in `data`

/** Show another state of the run. Thresholds that the user has moved are kept, unless the stored ones have changed. */
function setData(next) {
  const sameRun = data !== null && data.id === next.id;
  const keepThresholds = sameRun && data.review === next.review && data.defect === next.defect;
  data = next;
  pictures = data.pictures;
  byPath = new Map(pictures.map((picture) => [picture.path, picture]));
  verdicts = data.defect === null ? ["review", "good"] : ["defect", "review", "good"];
  if (!keepThresholds) {
    thresholds.review = data.review;
    thresholds.defect = data.defect;
  }
  loadLabels();
}

/** Return whether the largest region of a picture is too small to matter. */
function isTooSmall(picture) {
  return data.min_area !== null && picture.region !== null && picture.region[4] < data.min_area;
}

function verdictOf(picture) {
  if (isTooSmall(picture)) return "good";
  if (thresholds.defect !== null && picture.score > thresholds.defect) return "defect";
  return picture.score > thresholds.review ? "review" : "good";
}

function verdictText(picture) {
  const verdict = verdictOf(picture);
  return `${SYMBOLS[verdict]} ${verdict}`;
}

/** Return the address of an image file: a data URI, or a file next to the page. */
function imageUrl(part, path) {
  if (data.inlined) return data.inlined[path][part] || data.inlined[path].thumbnails;
  const escaped = path.split("/").map(encodeURIComponent).join("/");
  return `page/${part}/${escaped}.${SUFFIXES[part]}${urlVersion()}`;
}

/** Return the address of a good picture, or `null` if the page does not contain it. */
function goodImageUrl(index) {
  if (data.inlined_good) return data.inlined_good[index] || null;
  return data.inlined ? null : `page/good/${index}.jpg${urlVersion()}`;
}

/** With a server, a new run has new images at the same address. */
function urlVersion() {
  return data.server ? `?v=${encodeURIComponent(data.id)}` : "";
}
