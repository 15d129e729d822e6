"use strict";
// The page of one agent: what it does now, answers of late, and what they should have been. Everything that comes from
// the agent goes into the page as text.

const $ = (id) => document.getElementById(id);
const EVERY_MS = 2000;
const MOST_IN_A_LIST = 30; // of more classes the name is typed
let token = sessionStorage.getItem("token") || "";
let model = null;
let classNames = [];
let learns = false;
const rows = { samples: new Map(), kept: new Map() };

async function ask(path, body) {
  const headers = token ? { Authorization: "Bearer " + token } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const options = { method: body === undefined ? "GET" : "POST", headers, cache: "no-store" };
  if (body !== undefined) options.body = JSON.stringify(body);
  const answer = await fetch(path, options);
  const found = await answer.json();
  if (answer.status === 401) {
    $("login").hidden = false;
    $("main").hidden = true;
  }
  if (!answer.ok) throw new Error(found.error || "the agent answered " + answer.status);
  return found;
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function tell(text, isGood) {
  $("said").textContent = text;
  $("said").className = isGood ? "good" : "bad";
}

const percent = (share) => (100 * share).toFixed(1) + " %";

// What the agent says of itself

function showStatus(status) {
  $("device").textContent = status.device;
  document.title = status.device + ": Edgeloop agent";
  const names = Object.keys(status.models);
  if (model === null || !names.includes(model)) model = names[0];
  const select = $("model");
  if (select.options.length !== names.length || names.some((name, i) => select.options[i].value !== name)) {
    select.replaceChildren(...names.map((name) => new Option(name, name, false, name === model)));
  }
  $("which").hidden = names.length < 2;
  const one = status.models[model];
  const late = one.accuracy;
  const facts = [
    ["Model", model],
    ["Bundle", (one.bundle || "").slice(0, 12)],
    ["Release", (one.release || "as shipped") + (one.state && one.state !== "idle" ? ", " + one.state : "")],
    ["Answers", one.answered],
    ["Right on the last labels", late === null || late === undefined ? "no labels yet" : percent(late)],
    ["Labels learned", one.samples],
    ["Labels that wait", one.waiting ? one.waiting + (one.waiting_for ? ", for " + one.waiting_for : "") : undefined],
    ["Learns by", one.learner === "none" ? "it does not: " + one.why : one.learner],
    ["Paused", one.paused || undefined],
    ["Runs on", one.provider && one.provider.name],
    ["Broker", status.connected ? "connected" : "not connected"],
    ["Memory", status.resident_mb === null ? undefined : Math.round(status.resident_mb) + " MiB"],
    ["Fault", one.fault],
  ];
  $("facts").replaceChildren(
    ...facts
      .filter(([, value]) => value !== undefined && value !== "")
      .map(([title, value]) => {
        const pair = element("div");
        pair.append(element("dt", title), element("dd", String(value)));
        return pair;
      }),
  );
  const experts = Object.entries(one.experts || {}).sort((a, b) => b[1][0] - a[1][0]);
  $("experts-section").hidden = experts.length === 0;
  $("experts").replaceChildren(
    ...experts.map(([name, [weight, right, labels]]) => {
      const row = element("tr");
      const head = element("th", name);
      head.scope = "row";
      const share = element("td");
      const meter = element("meter");
      meter.value = weight;
      meter.setAttribute("aria-label", "share of the say of " + name);
      share.append(meter, percent(weight));
      row.append(head, share, element("td", labels ? percent(right) + " lately, " + labels + " in all" : "none yet"));
      return row;
    }),
  );
}

// Samples

function words(answer) {
  if ("nearest" in answer) return "none of these; nearest: " + words(answer.nearest);
  if ("class" in answer && answer.class !== null) {
    const name = "name" in answer ? answer.name : "class " + answer.class;
    return "confidence" in answer ? name + ", " + percent(answer.confidence) : String(name);
  }
  if ("yes" in answer) return [].concat(answer.yes).map((each) => (each ? "yes" : "no")).join(", ");
  if ("values" in answer) return [].concat(answer.values).map((each) => Number(each).toPrecision(5)).join(", ");
  return "arrays";
}

function showSamples(found) {
  classNames = found.classes;
  learns = found.learns;
  $("hint").textContent = learns
    ? "Say what samples were: this device learns from it, and the samples do not leave it. Framed are those whose label would help most."
    : "This model does not learn: its answers are shown only.";
  $("classes").replaceChildren(...(classNames.length > MOST_IN_A_LIST ? classNames.map((name) => new Option(name)) : []));
  const waits = (sample) => Number(Boolean(sample.answer.label_wanted || "nearest" in sample.answer) && sample.label === null);
  showList("samples", [...found.recent].sort((a, b) => waits(b) - waits(a)));
  showList("kept", found.kept);
  $("none").hidden = found.recent.length > 0;
  $("kept-section").hidden = found.kept.length === 0;
}

function showList(where, samples) {
  const known = rows[where];
  const wanted = samples.map((sample) => sample.id + "\n" + sample.at_ms);
  for (const [key, row] of known) {
    if (!wanted.includes(key)) {
      if (row.contains(document.activeElement) || row.dataset.busy) continue; // somebody is about to say what it was
      row.remove();
      known.delete(key);
    }
  }
  const list = $(where);
  samples.forEach((sample, i) => {
    let row = known.get(wanted[i]);
    if (!row) {
      row = makeRow(sample);
      known.set(wanted[i], row);
      list.insertBefore(row, list.children[i] || null);
    } else if (sample.label !== null && sample.label !== undefined && !row.querySelector(".done")) {
      settle(row, sample.label);
    }
  });
}

function makeRow(sample) {
  const row = element("li");
  const isWanted = Boolean(sample.answer.label_wanted || "nearest" in sample.answer);
  if (isWanted) row.className = "wanted";
  const picture = element("canvas");
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", "sample " + sample.id);
  const about = element("span", sample.id + ", " + new Date(sample.at_ms).toLocaleTimeString(), "about");
  row.append(picture, element("span", words(sample.answer), "answer"), about);
  row.append(element("span", isWanted ? "a label would help" : "", "mark"));
  draw(picture, sample.id);
  if (learns) {
    if (sample.label !== null && sample.label !== undefined) settle(row, sample.label);
    else row.append(makeForm(row, sample));
  }
  return row;
}

function makeForm(row, sample) {
  const form = element("form");
  const answer = sample.answer;
  const chosen = answer.class ?? (answer.nearest && answer.nearest.class);
  const hasClasses = "class" in answer;
  if (hasClasses && answer.class !== null) {
    const right = element("button", "Right");
    right.type = "button";
    right.addEventListener("click", () => label(row, sample, chosen));
    form.append(right);
  }
  let field;
  if (hasClasses && classNames.length && classNames.length <= MOST_IN_A_LIST) {
    field = element("select");
    field.append(new Option("It was …", ""));
    classNames.forEach((name, i) => field.append(new Option(name, String(i))));
    field.addEventListener("change", () => field.value !== "" && label(row, sample, Number(field.value)));
  } else {
    field = element("input");
    field.placeholder = hasClasses ? "It was …" : "Values, with commas";
    if (hasClasses && classNames.length) field.setAttribute("list", "classes");
    const say = element("button", "Say", "plain");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (field.value.trim() === "") return;
      label(row, sample, typed(field.value.trim(), hasClasses));
    });
    form.append(say);
  }
  field.setAttribute("aria-label", "What sample " + sample.id + " was");
  form.append(field);
  form.addEventListener("submit", (event) => event.preventDefault());
  return form;
}

function typed(text, hasClasses) {
  if (!hasClasses) return text.split(",").map(Number);
  if (classNames.includes(text) || !/^\d+$/.test(text)) return text;
  return Number(text);
}

async function label(row, sample, y) {
  row.dataset.busy = "1";
  for (const each of row.querySelectorAll("button, select, input")) each.disabled = true;
  try {
    const found = await ask("labels", { model, id: sample.id, label: y });
    if (!found.joined) throw new Error(found.why);
    settle(row, y);
    tell(found.queued ? "Kept; it is learned when there is budget." : "Learned.", true);
  } catch (error) {
    tell(sample.id + ": " + error.message, false);
    for (const each of row.querySelectorAll("button, select, input")) each.disabled = false;
  }
  delete row.dataset.busy;
  refresh();
}

function settle(row, y) {
  const form = row.querySelector("form");
  if (form) form.remove();
  row.classList.remove("wanted");
  row.querySelector(".mark").textContent = "";
  const name = typeof y === "number" && classNames[y] !== undefined ? classNames[y] : [].concat(y).join(", ");
  row.append(element("p", "It was " + name + ".", "done"));
}

// Pictures

const READERS = {
  float32: Float32Array, float64: Float64Array, uint8: Uint8Array, int8: Int8Array, int16: Int16Array,
  uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array, bool: Uint8Array,
};

function numbers(array) {
  const Reader = READERS[array.dtype];
  if (!Reader) return null;
  const bytes = Uint8Array.from(atob(array.base64), (character) => character.charCodeAt(0));
  return new Reader(bytes.buffer);
}

async function draw(canvas, id) {
  let inputs;
  try {
    inputs = (await ask("samples/" + encodeURIComponent(id) + "?model=" + encodeURIComponent(model))).inputs;
  } catch {
    return;
  }
  for (const array of Object.values(inputs)) {
    const values = numbers(array);
    const shape = array.shape.filter((size, i) => !(i === 0 && size === 1 && array.shape.length > 1));
    if (!values || values.length < 2) continue;
    if (shape.length === 3 && [1, 3].includes(shape[0])) return paint(canvas, values, shape[1], shape[2], shape[0], true, array.dtype);
    if (shape.length === 3 && [1, 3].includes(shape[2])) return paint(canvas, values, shape[0], shape[1], shape[2], false, array.dtype);
    if (shape.length === 2 && shape[0] > 3 && shape[1] > 3) return paint(canvas, values, shape[0], shape[1], 1, true, array.dtype);
    return plot(canvas, values);
  }
}

function paint(canvas, values, height, width, channels, planes, dtype) {
  let low = 0;
  let high = dtype === "uint8" ? 255 : 1;
  let least = Infinity;
  let most = -Infinity;
  for (const value of values) {
    if (value < least) least = value;
    if (value > most) most = value;
  }
  if (least < low || most > high) [low, high] = [least, most];
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  const area = width * height;
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) {
      const channel = channels === 1 ? 0 : c;
      const value = values[planes ? channel * area + i : i * channels + channel];
      image.data[4 * i + c] = (255 * (value - low)) / (high - low || 1);
    }
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function plot(canvas, values) {
  const [width, height] = [176, 176];
  canvas.width = width;
  canvas.height = height;
  const least = values.reduce((a, b) => Math.min(a, b), Infinity);
  const most = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const context = canvas.getContext("2d");
  context.strokeStyle = getComputedStyle(document.body).color;
  context.lineWidth = 2;
  context.beginPath();
  values.forEach((value, i) => {
    const x = 4 + ((width - 8) * i) / (values.length - 1);
    const y = height - 4 - ((height - 8) * (value - least)) / (most - least || 1);
    if (i) context.lineTo(x, y);
    else context.moveTo(x, y);
  });
  context.stroke();
}

// Time

let timer = 0;

async function refresh() {
  clearTimeout(timer);
  try {
    const status = await ask("status");
    showStatus(status);
    showSamples(await ask("samples?model=" + encodeURIComponent(model)));
    $("login").hidden = true;
    $("main").hidden = false;
    const says = status.admission && status.admission.says;
    $("trouble").textContent = says || "";
    $("trouble").hidden = !says;
  } catch (error) {
    $("trouble").textContent = error instanceof TypeError ? "The agent does not answer; trying again." : error.message;
    $("trouble").hidden = false;
  }
  clearTimeout(timer);
  if (!document.hidden && $("login").hidden) timer = setTimeout(refresh, EVERY_MS);
}

$("model").addEventListener("change", () => {
  model = $("model").value;
  for (const where of ["samples", "kept"]) {
    rows[where].clear();
    $(where).replaceChildren();
  }
  tell("", true);
  refresh();
});
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  sessionStorage.setItem("token", token);
  $("login").hidden = true;
  refresh();
});
document.addEventListener("visibilitychange", () => !document.hidden && refresh());
refresh();
