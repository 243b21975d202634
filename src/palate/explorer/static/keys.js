// Keys, dialogs, and what is said where the server refuses. Pages can be read without it.
"use strict";

// On a narrow screen the name of this page may lie beyond the edge of the list of pages.
document.querySelector(".top nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

// A key presses what is marked with it: <button data-key="a">; behind an open dialog it presses nothing.
const typing = (target) => target.closest("input, select, textarea, [contenteditable]") !== null;

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.key === "Escape") {
    if (typing(event.target)) event.target.blur();
    document.querySelector("dialog[open]")?.close();
    return;
  }
  if (typing(event.target)) return;
  if (event.key === "?") {
    const help = document.querySelector("dialog.keys");
    help?.open ? help.close() : help?.showModal();
    return;
  }
  if (document.querySelector("dialog[open]")) return;
  const wanted = document.querySelector(`[data-key="${CSS.escape(event.key)}"]:not([disabled])`);
  if (wanted === null) return;
  event.preventDefault();
  wanted.matches("input, select, textarea") ? wanted.focus() : wanted.click();
});

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-opens]");
  if (opener !== null) document.querySelector(opener.dataset.opens)?.showModal();
  if (event.target.closest("[data-closes]") !== null) event.target.closest("dialog")?.close();
});

// A form of ours goes to the server by htmx or not at all: as a plain form it would load another page and decide nothing.
document.addEventListener("submit", (event) => {
  if (event.target.hasAttribute("hx-post")) event.preventDefault();
});

// What the server refuses, or a server that is gone, is said on the page.
const say = (text) => {
  const place = document.querySelector("#notice");
  if (place === null) return;
  place.textContent = text;
  place.hidden = text === "";
};
document.addEventListener("htmx:beforeRequest", () => say(""));
document.addEventListener("htmx:sendError", () => say("The server does not answer. Was `palate ui` stopped?"));
document.addEventListener("htmx:responseError", (event) => {
  const answer = event.detail.xhr;
  const page = new DOMParser().parseFromString(answer.responseText, "text/html").querySelector(".problem p");
  say(page?.textContent ?? answer.responseText.slice(0, 300));
});
