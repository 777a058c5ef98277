"use strict";
(() => {
  const root = document.documentElement, slider = document.getElementById("page.epoch");
  if (!slider) return;
  root.classList.add("js");
  const epochs = slider.dataset.epochs.split(" ").map(Number), shares = slider.dataset.shares.split(" ").map(Number);
  const shown = document.getElementById("page.shown"), play = document.getElementById("page.play");
  const moved = [...document.querySelectorAll("[data-places]")].map(
    (element) => ({element, places: element.dataset.places.split(" ").map(Number)}));
  const told = [...document.querySelectorAll("[data-v]")].map(
    (element) => ({element, values: element.dataset.v.split("|"), places: ofPart(element)}));
  const marked = [...document.querySelectorAll("[data-m]")].map(
    (element) => ({element, marks: element.dataset.m.split("|"), places: ofPart(element)}));
  const columns = [...document.querySelectorAll("[data-e]")];

  // Of a part that has its own epochs the numbers are by these, else by the slider's.
  function ofPart(element) {
    const part = element.dataset.v === undefined || element.dataset.by === "part" ? element.closest("[data-places]") : null;
    return part && part.dataset.places.split(" ").map(Number);
  }
  function show(place) {
    slider.value = place;
    slider.setAttribute("aria-valuetext", `epoch ${epochs[place]}`);
    shown.textContent = `epoch ${epochs[place]}`;
    root.style.setProperty("--at", shares[place]);
    root.style.setProperty("--kept", epochs.length > 1 ? place / (epochs.length - 1) : 0);
    for (const {element, places} of moved) {
      const column = places.indexOf(place);
      element.classList.toggle("absent", column < 0);
      if (column >= 0) element.style.setProperty("--c", column);
    }
    for (const {element, values, places} of told) {
      element.textContent = values[places ? places.indexOf(place) : place] ?? "";
    }
    for (const {element, marks, places} of marked) {
      const [across, down] = (marks[places ? places.indexOf(place) : place] ?? "").split(" ");
      element.hidden = down === undefined;
      if (!element.hidden) Object.assign(element.style, {left: `${across}%`, top: `${down}%`});
    }
    for (const element of columns) element.classList.toggle("now", element.dataset.e === String(place));
  }
  function step(by) {
    show(Math.min(epochs.length - 1, Math.max(0, Number(slider.value) + by)));
  }

  let timer = 0;
  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "play";
  }
  function start() {
    if (Number(slider.value) === epochs.length - 1) show(0);
    play.textContent = "stop";
    timer = setInterval(() => {
      step(1);
      if (Number(slider.value) === epochs.length - 1) stop();
    }, 700);
  }
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  play.addEventListener("click", () => (timer ? stop() : start()));
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || /INPUT|TEXTAREA|SELECT/.test(event.target.tagName)) return;
    if (event.key === "," || event.key === ".") { stop(); step(event.key === "." ? 1 : -1); }
  });

  function decoded(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return "";  // no link of this page
    }
  }
  // "#conv3/17@8" is the unit at epoch 8. What a link leads to may stand in something that is closed.
  function follow() {
    const [, name, epoch] = /^#(.*?)(?:@(\d+))?$/.exec(decoded(location.hash)) ?? [];
    if (epoch !== undefined && epochs.includes(Number(epoch))) show(epochs.indexOf(Number(epoch)));
    const element = name ? document.getElementById(name) : null;
    if (!element) return;
    for (let part = element; part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
    settle(element, 2);
  }
  // Units that come near the screen get their true heights in the frames that follow, and move what is below them:
  // again, until it has stayed for two frames.
  function settle(element, frames) {
    element.scrollIntoView();
    const top = element.getBoundingClientRect().top;
    requestAnimationFrame(() => {
      const moved = element.getBoundingClientRect().top !== top;
      if (moved || frames) settle(element, moved ? 2 : frames - 1);
    });
  }
  addEventListener("hashchange", follow);
  addEventListener("load", follow);  // of a large page the browser has gone to the link's place once more by then

  const closed = [];
  addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details:not([open])")) { closed.push(part); part.open = true; }
  });
  addEventListener("afterprint", () => { for (const part of closed.splice(0)) part.open = false; });

  show(epochs.length - 1);
  follow();
})();
