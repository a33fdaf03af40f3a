// The console works without this. It adds rows to live tables, and buttons that copy.
"use strict";

(function () {
  // Copying.
  document.querySelectorAll("pre[data-copy]").forEach(function (pre) {
    if (!navigator.clipboard) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "small copy";
    button.textContent = "Copy";
    button.addEventListener("click", function () {
      navigator.clipboard.writeText(pre.textContent).then(function () {
        button.textContent = "Copied";
        setTimeout(function () { button.textContent = "Copy"; }, 2000);
      });
    });
    pre.before(button);
  });

  // Live tables. A row is made by the server in the way of all rows, as text
  // that has been escaped there.
  const body = document.querySelector("tbody[data-live]");
  if (!body || !window.EventSource) return;
  const state = document.getElementById("live-state");
  const most = 200;
  let held = [];
  let paused = false;

  const pause = document.createElement("button");
  pause.type = "button";
  pause.className = "small";
  pause.textContent = "Pause";
  const words = document.createElement("span");
  state.append(words, " ", pause);
  state.hidden = false;

  function say(text, tone) {
    words.textContent = text;
    words.className = "badge " + tone;
  }

  function add(html) {
    const parsed = new DOMParser().parseFromString("<table><tbody>" + html + "</tbody></table>", "text/html");
    const row = parsed.querySelector("tr");
    if (!row) return;
    row.classList.add("new");
    body.prepend(document.adoptNode(row));
    while (body.rows.length > most) body.deleteRow(-1);
  }

  pause.addEventListener("click", function () {
    paused = !paused;
    pause.textContent = paused ? "Go on" : "Pause";
    if (paused) {
      say("paused", "warn");
      return;
    }
    held.forEach(add);
    held = [];
    say("live", "good");
  });

  const source = new EventSource(body.dataset.live);
  source.onopen = function () { if (!paused) say("live", "good"); };
  source.onerror = function () {
    say(source.readyState === EventSource.CLOSED ? "not live: open the page again" : "connecting…", "warn");
  };
  source.onmessage = function (event) {
    if (!paused) {
      add(event.data);
      return;
    }
    held.push(event.data);
    if (held.length > most) held.shift();
  };
})();
