// Follows a page: what the coordinator sends anew takes the place of what was there. Without this the pages say the same.
"use strict";

const line = document.getElementById("line");

function ago(ms) {
  const s = Math.max(0, Math.round((Date.now() - ms) / 1000));
  const length = s < 100 ? `${s} s` : s < 5400 ? `${Math.round(s / 60)} min`
    : s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`;
  return document.documentElement.dataset.ago.replace("{}", length);
}

// Times are said as ages; the title has them in full.
function age(root) {
  for (const each of root.querySelectorAll("time[data-ms]")) each.textContent = ago(Number(each.dataset.ms));
}

// On a phone the cells of a row stand below one another, each with the heading of its column.
function headings(root) {
  for (const table of root.querySelectorAll("table.stack")) {
    const heads = [...table.querySelectorAll("thead th")].map((each) => each.textContent);
    for (const row of table.querySelectorAll("tbody tr")) {
      [...row.children].forEach((cell, i) => { cell.dataset.label = heads[i] ?? ""; });
    }
  }
}

// Live is what is followed while the coordinator itself hears the devices.
function say(isFollowed) {
  const isDeaf = document.querySelector("[data-deaf]:not(#line)") !== null;
  line.textContent = isFollowed ? (isDeaf ? line.dataset.deaf : line.dataset.live) : line.dataset.lost;
  line.className = isFollowed ? (isDeaf ? "is-deaf" : "is-live") : "is-lost";
}

function replace(id, html) {
  const place = document.getElementById(id);
  if (!place) return;
  const focus = document.activeElement;
  const isInside = place.contains(focus) && focus !== place;
  // Whoever types or chooses something is not disturbed; the next message brings it.
  if (isInside && focus.matches("input, select, textarea")) return;
  const href = isInside ? focus.getAttribute("href") : null;
  const label = isInside ? focus.getAttribute("aria-label") : null;
  const scrolled = [...place.querySelectorAll(".scroll")].map((each) => [each.scrollLeft, each.scrollTop]);
  const open = [...place.querySelectorAll("details")].map((each) => each.open);
  place.innerHTML = html;
  age(place);
  headings(place);
  [...place.querySelectorAll(".scroll")].forEach((each, i) => {
    if (scrolled[i]) [each.scrollLeft, each.scrollTop] = scrolled[i];
  });
  [...place.querySelectorAll("details")].forEach((each, i) => { each.open = Boolean(open[i]); });
  if (isInside) {
    const again = [...place.querySelectorAll("a, button, [tabindex]")].find(
      (each) => (href !== null && each.getAttribute("href") === href)
        || (href === null && label !== null && each.getAttribute("aria-label") === label));
    if (again) again.focus({ preventScroll: true });
  }
}

let source = null;

function follow() {
  if (source) source.close();
  source = new EventSource(location.href);
  source.onopen = () => say(true);
  source.onerror = () => {
    say(false);
    // The browser tries again by itself, unless it was refused.
    if (source.readyState === EventSource.CLOSED) refused();
  };
  source.onmessage = (event) => {
    for (const [id, html] of Object.entries(JSON.parse(event.data))) replace(id, html);
    say(true);
    document.documentElement.dataset.updated = String(Date.now());
  };
}

// Who is signed in no more is led to sign in: "not connected" would be said for ever.
async function refused() {
  const answer = await fetch("/words", { cache: "no-store" }).catch(() => null);
  if (answer?.status === 401) location.reload();
  else setTimeout(() => { if (!document.hidden) follow(); }, 5000);
}

if ("follow" in document.body.dataset) {
  // Its first message brings every part of the page anew: what came with the page is painted first.
  requestAnimationFrame(() => setTimeout(follow));
  // A page that nobody looks at costs nothing.
  document.addEventListener("visibilitychange", () => { if (document.hidden) source?.close(); else follow(); });
}

for (const each of document.querySelectorAll("select[data-submit]")) {
  each.addEventListener("change", () => each.form.requestSubmit());
}
age(document);
headings(document);
setInterval(() => age(document), 1000);
