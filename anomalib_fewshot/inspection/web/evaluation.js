// What the labels say about the verdicts: a confusion table, and the review threshold that fits them best.

function missedSentence() {
  const bad = labeledPictures("bad");
  const missed = bad.filter((picture) => verdictOf(picture) === "good").length;
  if (!bad.length) return "";
  return `Of ${plural(bad.length, "picture")} marked bad, ${missed} (${percent(missed, bad.length)}) ${isOrAre(missed)} called good.`;
}

function falseAlarmSentence() {
  const good = labeledPictures("good");
  const flagged = good.filter((picture) => verdictOf(picture) !== "good").length;
  if (!good.length) return "";
  return `Of ${plural(good.length, "picture")} marked good, ${flagged} (${percent(flagged, good.length)}) ${isOrAre(flagged)} false alarms.`;
}

function confusionRow(label) {
  const labeled = labeledPictures(label);
  const cells = [...verdicts].reverse().map((verdict) => {
    const count = labeled.filter((picture) => verdictOf(picture) === verdict).length;
    return make("td", {}, String(count));
  });
  return make("tr", {}, make("th", { scope: "row" }, `marked ${label}`), ...cells);
}

function confusionTable() {
  const heads = [...verdicts].reverse().map((verdict) => make("th", { scope: "col" }, `${SYMBOLS[verdict]} ${verdict}`));
  return make("table", {},
    make("caption", {}, "Verdicts of the marked pictures"),
    make("thead", {}, make("tr", {}, make("td"), ...heads)),
    make("tbody", {}, confusionRow("good"), confusionRow("bad")));
}

/** Return a short number that is at least `low` and less than `high`. */
function roundBetween(low, high) {
  const middle = (low + high) / 2;
  for (let digits = 3; digits < 7; digits += 1) {
    const rounded = Number(middle.toFixed(digits));
    if (low <= rounded && rounded < high) return rounded;
  }
  return low;
}

/**
 * Return the review threshold with the largest difference of defects found and false alarms, or `null` if there is none
 * with more defects than false alarms. Of equal ones, it is the one that finds the most, then the highest.
 */
function suggestThreshold() {
  const isRelevant = (picture) => labels.has(picture.path) && !isTooSmall(picture);
  const labeled = pictures.filter(isRelevant).sort((a, b) => b.score - a.score);
  let best = null;
  let found = 0;
  let falseAlarms = 0;
  labeled.forEach(({ path, score }, index) => {
    if (labels.get(path) === "bad") found += 1;
    else falseAlarms += 1;
    if (labeled[index + 1]?.score === score) return; // no threshold separates equal scores
    const isBest = best === null ? found > falseAlarms : found - falseAlarms >= best.found - best.falseAlarms;
    if (isBest) best = { score, found, falseAlarms };
  });
  if (best === null) return null;
  const nextLower = pictures.reduce((low, { score }) => (score < best.score ? Math.max(low, score) : low), 0);
  best.threshold = roundBetween(nextLower, best.score);
  return best;
}

function showSuggestion() {
  const numBad = labeledPictures("bad").length;
  const numGood = labeledPictures("good").length;
  find("suggestion").hidden = numBad === 0;
  if (numBad === 0) return;
  const best = suggestThreshold();
  find("use-threshold").hidden = best === null || best.threshold === thresholds.review;
  if (best === null) {
    find("suggested").textContent = "No review threshold finds more defects than false alarms among your marked pictures.";
    return;
  }
  const found = `A review threshold of ${best.threshold} finds ${best.found} of your ${plural(numBad, "defect")}`;
  const falseAlarms = `${plural(best.falseAlarms, "false alarm")} among your ${plural(numGood, "good one")}`;
  find("suggested").textContent = numGood
    ? `${found}, with ${falseAlarms}.`
    : `${found}. No picture is marked good, so the number of false alarms is unknown.`;
  find("use-threshold").onclick = () => setThreshold("review", best.threshold);
}

function showEvaluation() {
  const labeled = pictures.some((picture) => labels.has(picture.path));
  find("no-labels").hidden = labeled;
  find("evaluation").hidden = !labeled;
  find("export").disabled = !labeled;
  if (labeled) {
    find("confusion").replaceChildren(confusionTable());
    find("shares").textContent = [missedSentence(), falseAlarmSentence()].filter(Boolean).join(" ");
  }
  showSuggestion();
}
