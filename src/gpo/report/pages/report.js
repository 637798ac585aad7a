"use strict";
(() => {
  const sections = [...document.querySelectorAll("main > section")];
  const trajectories = [...document.querySelectorAll(".trajectory")];
  const form = document.getElementById("filters");
  const field = (id) => document.getElementById(id);
  const value = (id) => (field(id) ? field(id).value : "");
  const texts = new Map();

  function textOf(item) {
    if (!texts.has(item)) texts.set(item, item.textContent.toLowerCase());
    return texts.get(item);
  }

  function filter() {
    const words = value("search").toLowerCase().split(/\s+/).filter(Boolean);
    const [task, verdict, least] = [value("task"), value("verdict"), Number(value("gain"))];
    let shown = 0;
    for (const item of trajectories) {
      const { dataset } = item;
      const matches = (!task || dataset.task === task) && (!verdict || dataset.verdict === verdict)
        && Number(dataset.gain) >= least && words.every((word) => textOf(item).includes(word));
      item.hidden = !matches;
      shown += matches;
    }
    if (field("least")) field("least").textContent = least.toFixed(2);
    const all = trajectories.length;
    field("count").textContent = shown === all ? `${all} trajectories` : `${shown} of ${all} trajectories`;
  }

  function go() {
    const target = field(decodeURIComponent(location.hash.slice(1)));
    const section = (target && target.closest("main > section")) || sections[0];
    for (const each of sections) each.hidden = each !== section;
    for (const link of document.querySelectorAll("nav a")) {
      if (link.hash === `#${section.id}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (target && target.matches(".trajectory")) {
      if (target.hidden) {
        form.reset();
        filter();
      }
      target.open = true;
      target.querySelector("summary").focus({ preventScroll: true });
      target.scrollIntoView();
    } else if (target && target !== section) {
      target.scrollIntoView();
    } else {
      scrollTo(0, 0);
    }
  }

  form.addEventListener("input", filter);
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", go);
  filter();
  go();
})();
