// Thresholds: their guarantees, and how moved ones are stored.

/** Set a threshold. The defect threshold is never below the review threshold. */
function setThreshold(name, value) {
  thresholds[name] = value;
  if (thresholds.defect !== null) {
    if (name === "review") thresholds.defect = Math.max(thresholds.defect, value);
    else thresholds.review = Math.min(thresholds.review, value);
  }
  update();
}

/** Set a threshold by hand. Near a stored or guaranteed threshold, it is set to that one. */
function move(name, value) {
  for (const fixed of [data.guaranteed[name], data[name]]) {
    if (Math.abs(axisPosition(value) - axisPosition(fixed)) < STEP / 2) return setThreshold(name, fixed);
  }
  return setThreshold(name, Number(value.toFixed(4))); // the command contains the exact value
}

function areThresholds(other) {
  return thresholds.review === other.review && thresholds.defect === other.defect;
}

function resetThresholds() {
  thresholds.review = data.guaranteed.review;
  thresholds.defect = data.guaranteed.defect;
  update();
}

/** Return what is known about the false-alarm rate of a threshold. */
function guaranteeText(name) {
  const value = thresholds[name];
  if (value === data[name]) return data.guarantees[name] || "";
  if (value === data.guaranteed[name]) return "This threshold results from the calibration.";
  const numGood = data.calibration_scores.length;
  if (numGood === 0) return "Moved by hand: there are no calibration scores for comparison.";
  const above = data.calibration_scores.filter((score) => score > value).length;
  return `Moved by hand: ${above} of your ${plural(numGood, "good picture")} exceed${above === 1 ? "s" : ""} it. `
    + "You moved this threshold after seeing the scores, so the false-alarm rate is no longer guaranteed.";
}

/** Return how many pictures the filter on the area of regions calls good. */
function minAreaText() {
  if (data.min_area === null) return "";
  const filtered = pictures.filter((picture) => isTooSmall(picture) && picture.score > thresholds.review).length;
  if (filtered === 0) return "";
  return `${plural(filtered, "picture")} above a threshold ${isOrAre(filtered)} called good, because the largest region `
    + `is smaller than ${plural(data.min_area, "pixel")}.`;
}

function showGuarantees() {
  const rows = [];
  for (const name of verdicts) {
    if (name === "good") continue;
    const flagged = pictures.filter((picture) => picture.score > thresholds[name]).length;
    const start = `${SYMBOLS[name]} ${name} above ${formatScore(thresholds[name])}: ${plural(flagged, "new picture")}. `;
    rows.push(make("p", {}, make("b", { className: name }, start), guaranteeText(name)));
  }
  find("guarantees").replaceChildren(...rows);
  find("filtered").textContent = minAreaText();
}

function thresholdCommand() {
  const format = (value) => String(Number(value.toFixed(6)));
  let value = `review=${format(thresholds.review)}`;
  if (thresholds.defect !== null) value += `,defect=${format(thresholds.defect)}`;
  if (areThresholds(data.guaranteed)) value = "guaranteed";
  return shellCommand(["anomalib", "inspect", "--resume", data.run, "--thresholds", value]);
}

function showThresholdControls() {
  const moved = !areThresholds(data);
  find("reset").hidden = areThresholds(data.guaranteed);
  find("store-thresholds").hidden = !moved || Boolean(data.server);
  find("apply").hidden = !moved || !data.server;
  if (find("threshold-command").value === thresholdCommand()) return;
  find("threshold-command").value = thresholdCommand();
  find("threshold-copied").textContent = "";
}

function applyThresholds() {
  const values = { review: thresholds.review, defect: thresholds.defect };
  post("api/thresholds", { thresholds: areThresholds(data.guaranteed) ? null : values });
}

find("reset").onclick = resetThresholds;
find("apply").onclick = applyThresholds;
find("copy-thresholds").onclick = () => copyField(find("threshold-command"), find("threshold-copied"));
