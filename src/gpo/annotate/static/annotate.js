"use strict";
// Keys on top of what a form does without a script. Nothing here is needed to take part.
const choices = [...document.querySelectorAll("input[name=step]")];
const press = (id) => document.getElementById(id)?.click();
const keys = { n: "do-none", s: "do-skip", u: "do-undo", Enter: "do-mark" };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const writing = event.target.matches("textarea, #name");
  if (writing && event.key === "Escape") return event.target.blur();
  if (writing || event.target.matches("button, a")) return;
  const number = Number(event.key);
  if (number >= 1 && number <= 9 && choices[number - 1]) {
    choices[number - 1].checked = true;
    choices[number - 1].focus();
  } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && choices.length && !event.target.matches("input, [tabindex]")) {
    choices[0].focus();
  } else if (event.key === "c") {
    document.getElementById("comment")?.focus();
  } else if (keys[event.key] && document.getElementById(keys[event.key])) {
    press(keys[event.key]);
  } else {
    return;
  }
  event.preventDefault();
});

// A box is a stop of the Tab key where it scrolls: the arrow keys then move its text.
const boxes = [...document.querySelectorAll(".question, .step .text")];
function stop() {
  for (const box of boxes) {
    if (box.scrollHeight > box.clientHeight) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
window.addEventListener("resize", stop);
stop();

// A double click must not send a form twice.
for (const form of document.forms) {
  form.addEventListener("submit", (event) => {
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "yes";
  });
}
// Coming back with the browser's own button shows the page as it is on the server.
window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
