// Train again: a command to copy, or a button that asks the server.

/** Return the files of the pictures marked good or bad. */
function markedFiles(label) {
  const isFile = pictures.length === 1 && data.new.endsWith(pictures[0].path);
  const folder = data.new.replace(/\/+$/, "");
  const paths = labeledPictures(label).map((picture) => picture.path).sort();
  return paths.map((path) => (isFile ? data.new : `${folder}/${path}`));
}

function trainingCommand() {
  const good = data.good.length ? data.good : ["GOOD_FOLDER"];
  const bad = [...data.bad, ...markedFiles("bad")];
  const markedGood = [...data.marked_good, ...markedFiles("good")];
  const words = ["anomalib", "inspect", "--good", ...good, "--new", data.new];
  if (markedGood.length) words.push("--marked_good", ...markedGood);
  if (bad.length) words.push("--bad", ...bad);
  if (data.unlabeled.length) words.push("--unlabeled", ...data.unlabeled);
  else if (!data.pool) words.push("--no-pool");
  const mask = maskIsSaved ? "ignore.png" : data.ignore;
  if (mask !== null) words.push("--ignore", mask);
  return shellCommand([...words, ...data.options]);
}

function trainingText() {
  const numGood = labeledPictures("good").length, numBad = labeledPictures("bad").length;
  if (numGood + numBad === 0) return "Mark pictures first: the model learns from those marked good, and not from those marked bad.";
  const sentences = [];
  if (numGood > 0) sentences.push(`The model learns from the ${plural(numGood, "picture")} marked good, which do not set the thresholds and are not scored again.`);
  if (numBad > 0) sentences.push(`The model does not learn from the ${plural(numBad, "picture")} marked bad.`);
  sentences.push("You chose them after seeing their scores, so the false-alarm rate is no longer guaranteed.");
  return sentences.join(" ");
}

function showTraining() {
  const hasLabels = pictures.some((picture) => labels.has(picture.path));
  find("train").hidden = !data.server && !hasLabels && !maskIsSaved;
  find("train-text").textContent = trainingText();
  find("train-command").hidden = Boolean(data.server);
  find("train-again").hidden = !data.server;
  if (find("command").value === trainingCommand()) return;
  find("command").value = trainingCommand();
  find("copied").textContent = "";
}

/** Show the progress of the server, or hide it if there is no job. */
function showJob(job) {
  find("job").hidden = job === null;
  find("train-again").disabled = job !== null;
  if (job === null) return;
  const count = job.total === null ? "" : ` (${job.done} of ${job.total})`;
  find("job-text").textContent = job.text + count;
  if (job.total === null) find("progress").removeAttribute("value");
  else find("progress").value = job.done / Math.max(1, job.total);
}

async function trainAgain() {
  showJob({ text: "Starting the training", done: 0, total: null });
  const started = await post("api/train", {});
  if (!started) showJob(null);
}

find("copy").onclick = () => copyField(find("command"), find("copied"));
find("train-again").onclick = trainAgain;
