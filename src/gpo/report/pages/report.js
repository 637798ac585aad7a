"use strict";
(() => {
  const sections = [...document.querySelectorAll("main > section")];
  const parts = [...document.querySelectorAll("[data-search]")];
  const trajectories = [...document.querySelectorAll(".trajectory")];
  const form = document.getElementById("filters");
  const field = (id) => document.getElementById(id);
  const value = (id) => (field(id) ? field(id).value : "");
  const choice = field("shown");
  const texts = new Map();
  let search = parts[0].dataset.search;

  function textOf(item) {
    if (!texts.has(item)) texts.set(item, item.textContent.toLowerCase());
    return texts.get(item);
  }

  function filter() {
    const words = value("search").toLowerCase().split(/\s+/).filter(Boolean);
    const [task, verdict, least] = [value("task"), value("verdict"), Number(value("gain"))];
    let [all, shown] = [0, 0];
    for (const item of trajectories) {
      if (item.parentNode.dataset.search !== search) continue;
      all += 1;
      const { dataset } = item;
      const matches = (!task || dataset.task === task) && (!verdict || dataset.verdict === verdict)
        && Number(dataset.gain) >= least && words.every((word) => textOf(item).includes(word));
      item.hidden = !matches;
      shown += matches;
    }
    if (field("least")) field("least").textContent = least.toFixed(2);
    field("count").textContent = `${shown === all ? "" : `${shown} of `}${all} ${all === 1 ? "trajectory" : "trajectories"}`;
  }

  function go() {
    const target = field(decodeURIComponent(location.hash.slice(1)));
    const section = (target && target.closest("main > section")) || sections[0];
    const part = target && target.closest("[data-search]");
    if (part || section !== sections[0]) search = (part || parts[0]).dataset.search;
    for (const each of sections) each.hidden = each !== section;
    for (const each of parts) each.hidden = each.dataset.search !== search;
    for (const link of document.querySelectorAll("nav a")) {
      const view = link.hash.slice(1).split("-")[0];
      if (choice && view !== "overview") link.hash = `${view}-${search}`;
      if (view === section.id) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (choice) choice.value = search;
    filter();
    if (target && target.matches(".trajectory")) {
      if (target.hidden) {
        form.reset();
        filter();
      }
      target.open = true;
      target.querySelector("summary").focus({ preventScroll: true });
      target.scrollIntoView();
    } else if (target && target !== section && target !== part) {
      target.scrollIntoView();
    } else {
      scrollTo(0, 0);
    }
  }

  form.addEventListener("input", filter);
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("submit", (event) => event.preventDefault());
  if (choice) {
    field("choice").hidden = false;
    choice.addEventListener("input", () => {
      const view = sections.find((each) => !each.hidden).id;
      location.hash = `${view === "overview" ? "trajectories" : view}-${choice.value}`;
    });
  }
  addEventListener("hashchange", go);
  go();
})();
