// The page of the hub. All that comes from the server is shown as text, never as markup.

const at = (id) => document.getElementById(id);
const ROWS = 100, SECONDS = 60, REMEMBERED = 20000, MOST_TEXT = 2000;
const CONTROL = ["welcome", "position", "gap", "reconnect"];
const REASONS = {
  evicted: "The server no longer keeps all that came after this page's place.",
  lagged: "This page was too slow: the server has dropped events that it had not had.",
  other_log: "The server's log is a new one, and this page's place was in another.",
  unknown_position: "The server does not know this page's place.",
  lost: "The server has lost a part of its log.",
};
const LATER = {
  drained: "The server is stopping.",
  draining: "The server is stopping, and takes no streams any more.",
  full: "The server has as many streams as it takes.",
  key_full: "There are as many streams from this address as the server takes.",
};
const ENDS = {
  client_gone: "client left",
  closed: "closed",
  drained: "drained",
  lifetime: "lifetime over",
  slow_consumer: "too slow",
  failed: "failed",
};

const topics = new Set(["news", "weather"]);
// An EventSource hands events over by name, to those who listen for it.
const names = new Set(["message"]);
const seen = new Set();
const figures = { received: 0, twice: 0, gaps: 0 };
let source, state, uuid, asked, timer;
let place = "";
// The last time that the stream was gone, and what this page has published meanwhile.
let away;
// Why the server has asked this page to come back later.
let later;

// ---- the stream

const wanted = () => [...topics].sort().join("\n");

function show(now, text) {
  state = now;
  at("main").dataset.state = now;
  at("status").textContent = text;
  at("cut").disabled = now !== "open";
  at("offline").textContent = { offline: "Come back", failed: "Try again" }[now] ?? "Go offline";
  at("offline").classList.toggle("main", now === "offline" || now === "failed");
}

function open() {
  clearTimeout(timer);
  source?.close();
  show("connecting", away ? "Coming back" : "Connecting");
  asked = wanted();
  const query = new URLSearchParams([...topics].map((topic) => ["topic", topic]));
  if (place) query.set("lastEventId", place);
  source = new EventSource(`/events?${query}`);
  for (const name of names) source.addEventListener(name, receive);
  for (const name of CONTROL) source.addEventListener(name, control);
  source.onerror = failed;
}

function control(event) {
  place = event.lastEventId || place;
  if (event.type === "welcome") {
    uuid = JSON.parse(event.data).uuid;
    show("open", "Open");
    if (later) at("notice").hidden = true;
    later = undefined;
    if (away) away.until = performance.now();
    const item = row("note", away ? "" : "Connected. Events come from now on.");
    if (away) away.item = item;
    sayBack();
  } else if (event.type === "gap") {
    const { reason, missed } = JSON.parse(event.data);
    count("gaps");
    slot().gap = true;
    const title = missed === null ? "Gap: events may be missing" : `Gap: ${missed} events missed`;
    row("gap", REASONS[reason] ?? reason, title);
    notice(title, REASONS[reason] ?? reason);
  } else if (event.type === "reconnect") {
    const { reason } = JSON.parse(event.data);
    if (later === reason) return; // asked again, and refused again
    later = reason;
    row("note", LATER[reason] ?? reason);
    notice(LATER[reason] ?? reason, "The browser comes back by itself, in some seconds.");
  }
}

function receive(event) {
  if (!(event instanceof MessageEvent)) return;
  const id = event.lastEventId;
  place = id || place;
  if (seen.has(id)) count("twice");
  seen.add(id);
  if (seen.size > REMEMBERED) seen.delete(seen.values().next().value);
  count("received");
  slot().events += 1;
  row("event", event.data, event.type, id);
  sayBack();
}

function failed(event) {
  if (event instanceof MessageEvent) return receive(event); // an event that was named "error"
  leave(source.readyState === EventSource.CLOSED ? "failed" : "connecting");
}

function leave(now) {
  if (state === "open") {
    away = { since: performance.now(), sent: new Set() };
    row("note", now === "offline" ? "This page went offline." : "The stream has ended.");
  }
  uuid = undefined;
  show(now, { offline: "Offline", failed: "Failed" }[now] ?? "Coming back");
  if (now === "offline") source.close();
  if (now === "connecting" && asked !== wanted()) {
    source.close(); // left alone it would come back for the topics of its address
    timer = setTimeout(open, 1000);
  }
}

function sayBack() {
  if (!away?.item) return;
  const seconds = ((away.until - away.since) / 1000).toFixed(1);
  let text = `Back after ${seconds} seconds, with the last id.`;
  if (away.sent.size) {
    const arrived = [...away.sent].filter((id) => seen.has(id)).length;
    text += ` Published from here meanwhile: ${away.sent.size}, arrived: ${arrived}.`;
  }
  away.item.textContent = text;
}

at("cut").onclick = () => ask(`/connections/${uuid}`, "DELETE");
at("offline").onclick = () => {
  if (state === "open" || state === "connecting") {
    clearTimeout(timer);
    leave("offline");
  } else if (topics.size) {
    open();
  } else {
    say("Choose a topic first.", true);
  }
};

// ---- topics

function chip(topic) {
  const label = document.createElement("label");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.checked = topics.has(topic);
  box.onchange = () => choose(topic, box.checked);
  label.className = "chip";
  label.append(box, topic);
  at("topics").append(label);
  const option = document.createElement("option");
  option.value = topic;
  at("known").append(option);
  return box;
}

function choose(topic, is) {
  topics[is ? "add" : "delete"](topic);
  if (topics.size === 0) {
    if (state !== "offline") leave("offline");
  } else if (state === "open") {
    ask(`/connections/${uuid}/topics/${encodeURIComponent(topic)}`, is ? "POST" : "DELETE");
  } else if (state === "connecting") {
    open();
  }
}

const chips = new Map(["news", "weather", "sport"].map((topic) => [topic, chip(topic)]));
at("add").onsubmit = (event) => {
  event.preventDefault();
  const topic = at("topic-name").value;
  if (!topic) return;
  if (!chips.has(topic)) chips.set(topic, chip(topic));
  if (!chips.get(topic).checked) chips.get(topic).click();
  at("topic-name").value = "";
};

// ---- publishing

// Gives the answer's text; a refusal is shown as the server has put it.
async function ask(path, method, body) {
  try {
    const answer = await fetch(path, { method, body });
    const text = await answer.text();
    if (answer.ok) return text;
    say(`${answer.status}: ${text}`, true);
  } catch {
    say("The server does not answer.", true);
  }
}

function say(text, isBad) {
  at("said").textContent = text;
  at("said").classList.toggle("bad", isBad);
}

function path() {
  const name = at("name").value;
  const query = name ? `?event=${encodeURIComponent(name)}` : "";
  return `/topics/${encodeURIComponent(at("to").value)}${query}`;
}

async function publish(text) {
  const meanwhile = state !== "open" && topics.has(at("to").value) ? away : undefined;
  const answer = await ask(path(), "POST", text);
  if (answer === undefined) return false;
  const { id } = JSON.parse(answer);
  say(`Published as ${id}`, false);
  meanwhile?.sent.add(id);
  sayBack();
  return true;
}

function form() {
  const name = at("name").value;
  if (name && name !== "error" && !names.has(name) && !CONTROL.includes(name)) {
    names.add(name);
    source?.addEventListener(name, receive);
  }
  const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  at("curl").textContent = `curl -d ${quote(at("text").value)} ${quote(location.origin + path())}`;
}

let number = 0, ticking, flying = 0;
at("publish").oninput = at("publish").onchange = form;
at("publish").onsubmit = (event) => {
  event.preventDefault();
  publish(at("text").value);
};
at("ten").onclick = async () => {
  for (let i = 1; i <= 10; i += 1) {
    if (!await publish(`${at("text").value} (${i} of 10)`)) return;
  }
};
at("steady").onclick = () => {
  ticking = ticking ? clearInterval(ticking) : setInterval(async () => {
    if (flying >= 10) return; // a server that hangs is not asked for more
    flying += 1;
    await publish(`${at("text").value} #${number += 1}`);
    flying -= 1;
  }, 100);
  at("steady").setAttribute("aria-pressed", Boolean(ticking));
};

// ---- what is shown

let rows = [];

// A row may soon be out of sight.
function notice(title, text) {
  at("notice").querySelector("b").textContent = title;
  at("notice").querySelector("b + span").textContent = text;
  at("notice").hidden = false;
}

at("dismiss").onclick = () => { at("notice").hidden = true; };

function row(kind, text, title, id) {
  const item = document.createElement("li");
  item.className = kind;
  const part = (tag, className, text) => {
    const node = document.createElement(tag);
    node.className = className;
    node.textContent = text;
    item.append(node);
  };
  if (title) part("b", "", title);
  const rest = text.length > MOST_TEXT ? `… (${text.length} characters)` : "";
  part("span", kind === "event" ? "data" : "", text.slice(0, MOST_TEXT) + rest);
  if (id) part("span", "id", id);
  if (rows.length === 0) requestAnimationFrame(flush);
  rows = [item, ...rows.slice(0, ROWS - 1)];
  return item;
}

function flush() {
  at("log").prepend(...rows);
  rows = [];
  while (at("log").children.length > ROWS) at("log").lastChild.remove();
  for (const [name, value] of Object.entries(figures)) {
    at(name).textContent = value.toLocaleString("en");
    at(name).classList.toggle("some", value > 0);
  }
}

function count(figure) {
  figures[figure] += 1;
}

// One slot for each second of the last minute, and the one that runs.
const slots = [];

function slot() {
  const second = Math.floor(performance.now() / 1000);
  for (let next = (slots.at(-1)?.second ?? second - 1) + 1; next <= second; next += 1) {
    slots.push({ second: next, events: 0, gap: false, down: false });
  }
  slots.splice(0, slots.length - SECONDS - 1);
  return slots.at(-1);
}

function plot() {
  slot().down ||= state !== "open";
  at("rate").textContent = slots.at(-2)?.events ?? 0;
  const canvas = at("plot"), scale = devicePixelRatio;
  const { width, height } = canvas.getBoundingClientRect();
  canvas.width = width * scale;
  canvas.height = height * scale;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const style = getComputedStyle(at("main"));
  const ink = (name) => { pen.fillStyle = style.getPropertyValue(name); };
  const most = 2 * Math.max(2, Math.ceil(Math.max(...slots.map((one) => one.events)) / 2));
  const left = 34, base = height - 18, step = (width - left) / (SECONDS + 1);
  const top = (events) => base - (base - 8) * events / most;
  const places = slots.map((one, i) => [one, width - (slots.length - i) * step]);
  ink("--down");
  for (const [one, x] of places) if (one.down) pen.fillRect(x, 8, step + 0.5, base - 8);
  ink("--edge");
  for (const events of [0, most / 2, most]) pen.fillRect(left, top(events), width - left, 1);
  for (const [one, x] of places) {
    ink("--accent");
    pen.fillRect(x + 1, top(one.events), step - 2, base - top(one.events));
    ink("--wait");
    if (one.gap) pen.fillRect(x + step / 2 - 1.5, 8, 3, base - 8);
  }
  ink("--soft");
  pen.font = "11px system-ui, sans-serif";
  for (const events of [0, most / 2, most]) pen.fillText(events, 0, top(events) + 4);
  pen.fillText("60 s ago", left, height - 3);
  pen.textAlign = "right";
  pen.fillText("now", width, height - 3);
}

// ---- the server's figures

let before;

async function stats() {
  const answer = await fetch("/stats").catch(() => null);
  at("server").classList.toggle("away", !answer?.ok);
  if (!answer?.ok) {
    at("server-said").textContent = "It does not answer.";
    before = undefined;
    return;
  }
  const { ready, connections, broker } = await answer.json();
  const now = performance.now();
  const sent = before && (connections.events - before.events) * 1000 / (now - before.now);
  before = { now, events: connections.events };
  const shown = {
    open: connections.open, refused: connections.refused, sent: Math.max(0, Math.round(sent ?? 0)),
    queued: connections.queued, published: broker.published, told: broker.gaps,
  };
  for (const [name, value] of Object.entries(shown)) {
    at(name).textContent = value.toLocaleString("en");
    at(name).classList.toggle("some", value > 0);
  }
  at("most").textContent = `, of ${connections.most.toLocaleString("en")}`;
  const ends = Object.entries(connections.closed).filter(([reason, n]) => ENDS[reason] && n);
  const ended = ends.map(([reason, n]) => `${ENDS[reason]} ${n.toLocaleString("en")}`).join(", ");
  at("server-said").textContent = (ready ? "" : "It is about to stop. ")
    + `Ended: ${ended || "none yet"}.`;
  at("kept").textContent = `The server keeps the last ${broker.history} events of each topic`
    + (broker.history > 20 ? ": with --history 5 a gap is soon seen." : ".");
}

form();
open();
setInterval(plot, 250);
setInterval(stats, 2000);
stats();
