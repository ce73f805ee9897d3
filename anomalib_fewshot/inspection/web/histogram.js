// Histogram of the scores, with a handle for each threshold.

const NUM_BINS = 40;
const STEP = 0.0025; // of the axis, for keys and dragging
const TICKS = [0, 0.5, 1, 2, 5];
const MARGIN = 10; // pixels at both ends of the axis
const MIDDLE = 130; // pixels above the axis
const NEW_HEIGHT = 84; // pixels of the highest bar of new pictures
const GOOD_HEIGHT = 36; // pixels of the highest bar of good pictures

let dragged = null; // threshold that is being dragged

/** Return the position of a score on the axis, from 0 to 1. The axis has room for any score. */
function axisPosition(score) {
  const positive = Math.max(0, score);
  return positive / (1 + positive);
}

function scoreAt(position) {
  const inside = Math.min(0.995, Math.max(0, position));
  return inside / (1 - inside);
}

function countScores(scores) {
  const counts = Array(NUM_BINS).fill(0);
  for (const score of scores) {
    const bin = Math.ceil(axisPosition(score) * NUM_BINS) - 1;
    counts[Math.min(NUM_BINS - 1, Math.max(0, bin))] += 1;
  }
  return counts;
}

/** Return bars that start at the axis and grow upwards or downwards. */
function bars(counts, width, height, color, upwards) {
  const highest = Math.max(1, ...counts);
  const step = (width - 2 * MARGIN) / NUM_BINS;
  const result = [];
  counts.forEach((count, bin) => {
    if (count === 0) return;
    const barHeight = Math.max(3, (height * count) / highest);
    result.push(draw("rect", {
      x: MARGIN + 1 + bin * step,
      y: upwards ? MIDDLE - barHeight : MIDDLE + 1,
      width: step - 2,
      height: barHeight,
      style: `fill: ${color}`,
    }, draw("title", {}, String(count))));
  });
  return result;
}

function histogramText(x, y, anchor, text) {
  return draw("text", { x, y, "text-anchor": anchor }, text);
}

function showHistogram() {
  const box = find("histogram");
  const width = Math.max(280, box.clientWidth);
  const goodHeight = data.calibration_scores.length ? GOOD_HEIGHT : 0;
  const height = MIDDLE + goodHeight + 38;
  const x = (score) => MARGIN + axisPosition(score) * (width - 2 * MARGIN);
  const numNew = pictures.length;
  const numGood = data.calibration_scores.length;

  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group" });
  svg.setAttribute("aria-label", `Histogram of ${numNew} new and ${numGood} good pictures`);
  svg.append(...bars(countScores(pictures.map((picture) => picture.score)), width, NEW_HEIGHT, "var(--bar)", true));
  svg.append(...bars(countScores(data.calibration_scores), width, GOOD_HEIGHT, "var(--calibration)", false));
  svg.append(draw("path", { class: "axis", d: `M${MARGIN} ${MIDDLE + 0.5}H${width - MARGIN}` }));

  const ofGood = numGood ? ` above, ${plural(numGood, "good one")} below` : "";
  svg.append(histogramText(width / 2, height - 20, "middle", plural(numNew, "new picture") + ofGood));
  for (const score of TICKS) {
    svg.append(histogramText(x(score), height - 4, score ? "middle" : "start", score ? String(score) : "score 0"));
  }
  for (const name of ["review", "defect"]) {
    if (thresholds[name] !== null) svg.append(thresholdHandle(name, x(thresholds[name]), MIDDLE + goodHeight + 4, width));
  }
  const focused = document.activeElement?.dataset?.threshold;
  box.replaceChildren(svg);
  if (focused) box.querySelector(`[data-threshold=${focused}]`)?.focus();
}

function thresholdHandle(name, x, bottom, width) {
  const top = name === "review" ? 34 : 14;
  const prefersRight = name === "defect" || thresholds.defect === null;
  const isRight = prefersRight ? x < width - 70 : x < 60;
  return draw("g", {
    class: `threshold ${name}`,
    tabindex: 0,
    role: "slider",
    "data-threshold": name,
    "aria-label": `Threshold for ${name}`,
    "aria-valuemin": 0,
    "aria-valuemax": formatScore(scoreAt(1)),
    "aria-valuenow": formatScore(thresholds[name]),
    "aria-orientation": "horizontal",
  },
  draw("rect", { x: x - 14, y: 0, width: 28, height: bottom }),
  draw("path", { d: `M${x} ${top}V${bottom}`, fill: "none" }),
  draw("circle", { cx: x, cy: top, r: 8 }),
  histogramText(x + (isRight ? 13 : -13), top + 4, isRight ? "start" : "end", name));
}

function startDrag(event) {
  const handle = event.target.closest(".threshold");
  if (!handle) return;
  dragged = handle.dataset.threshold;
  event.preventDefault();
  find("histogram").setPointerCapture(event.pointerId);
  handle.focus();
}

function drag(event) {
  if (dragged === null) return;
  const box = find("histogram").firstChild.getBoundingClientRect();
  const position = (event.clientX - box.left - MARGIN) / (box.width - 2 * MARGIN);
  move(dragged, scoreAt(Math.round(position / STEP) * STEP));
}

function moveByKey(event) {
  const name = event.target.dataset.threshold;
  if (!name) return;
  const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };
  if (event.key in steps) move(name, scoreAt(axisPosition(thresholds[name]) + steps[event.key] * STEP));
  else if (event.key === "Home") move(name, 0);
  else if (event.key === "End") move(name, scoreAt(1));
  else return;
  event.preventDefault();
}

find("histogram").addEventListener("pointerdown", startDrag);
find("histogram").addEventListener("pointermove", drag);
find("histogram").addEventListener("pointerup", () => { dragged = null; });
find("histogram").addEventListener("pointercancel", () => { dragged = null; });
find("histogram").addEventListener("keydown", moveByKey);
