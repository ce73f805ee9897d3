// Communication with the local server of `anomalib inspect --serve`.

const POLL_INTERVAL = 1000; // milliseconds between two questions for news
const POLL_INTERVAL_HIDDEN = 3000; // while the page is in the background
const POLL_INTERVAL_STOPPED = 5000; // while the server does not answer

let version = null; // of the data that the page shows
let numPosts = 0; // changes sent so far
let numPending = 0; // changes without an answer
let postQueue = Promise.resolve();
let requestError = ""; // why the last change was refused
let serverError = ""; // why the last training failed, or that the server has stopped

/** The server has answered with an error. */
class ServerError extends Error {}

/** Send a request and return the answer. Raises `ServerError` if the server refuses, `TypeError` if it has stopped. */
async function request(path, options = {}) {
  const response = await fetch(path, { cache: "no-store", ...options });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new ServerError(answer.error || `The server answered with the status ${response.status}.`);
  return answer;
}

function stoppedText() {
  const command = shellCommand(["anomalib", "inspect", "--resume", data.run, "--serve"]);
  return `The server has stopped. Start it again with: ${command}`;
}

function errorText(error) {
  return error instanceof ServerError ? error.message : stoppedText();
}

function showErrors() {
  const text = [...new Set([requestError, serverError])].filter(Boolean).join(" ");
  if (find("error").textContent !== text) find("error").textContent = text; // screen readers repeat a text that is set
}

/** Send a change, after the earlier ones. Return whether the server has accepted it; if not, show why. */
function post(path, content) {
  numPosts += 1;
  numPending += 1;
  const sent = postQueue.then(() => send(path, content));
  postQueue = sent;
  return sent;
}

async function send(path, content) {
  const headers = { "Content-Type": "application/json", Authorization: `Bearer ${data.server.token}` };
  try {
    await request(path, { method: "POST", headers, body: JSON.stringify(content) });
    requestError = "";
    return true;
  } catch (error) {
    requestError = errorText(error);
    version = null; // the page shows a change that was not made: load the data again
    return false;
  } finally {
    numPending -= 1;
    showErrors();
  }
}

/** Load the data again. Answers that may lack a later change of this page are dropped. */
async function refresh(newVersion) {
  const before = numPosts;
  const next = await request("api/data");
  if (numPosts !== before || numPending > 0 || dragged !== null) return;
  version = newVersion;
  setData(next);
  update();
}

/** Ask the server for news, and return the time until the next question. */
async function poll() {
  try {
    const state = await request("api/state");
    if (requestError === stoppedText()) requestError = ""; // it has been started again
    serverError = state.error || "";
    if (numPending === 0) showJob(state.job);
    if (state.version !== version && numPending === 0 && dragged === null) await refresh(state.version);
  } catch (error) {
    serverError = errorText(error);
    showErrors();
    return POLL_INTERVAL_STOPPED;
  }
  showErrors();
  return document.hidden ? POLL_INTERVAL_HIDDEN : POLL_INTERVAL;
}

async function pollForever() {
  for (;;) {
    const delay = await poll();
    await new Promise((resolve) => { setTimeout(resolve, delay); });
  }
}
