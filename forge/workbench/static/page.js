// What every page has: copying, choosing all, light and dark, charts' values, live renewal.
import { charts } from "./charts.js";
import { actions } from "./actions.js";

const told = document.getElementById("told");
let fading;
export function tell(text) {
  told.textContent = text;
  clearTimeout(fading);
  fading = setTimeout(() => { told.textContent = ""; }, 2500);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // not a secure context: the old way
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  tell("copied");
}

export function csv(table) {
  const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const rows = [...table.rows].filter((row) => !row.classList.contains("group"));
  return rows.map((row) => [...row.cells].filter((cell) => !cell.querySelector("input, button"))
    .map((cell) => quoted(cell.innerText.trim())).join(",")).join("\n");
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button, pre.copied");
  if (!button) return;
  if (button.matches(".copy")) copy(button.dataset.copy);
  if (button.matches("pre.copied") && !String(getSelection())) copy(button.textContent);
  if (button.matches(".csv")) {
    const near = button.closest(".tools")?.nextElementSibling ?? button.closest("form");
    copy(csv(near.matches("table") ? near : near.querySelector("table")));
  }
  if (button.id === "theme") {
    const dark = getComputedStyle(document.documentElement).colorScheme === "dark"
      || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    theme(dark ? "light" : "dark");
  }
});

function theme(name) {
  document.documentElement.dataset.theme = name;
  try { localStorage.setItem("forge-theme", name); } catch { /* no storage */ }
}
try { if (localStorage.getItem("forge-theme")) theme(localStorage.getItem("forge-theme")); } catch { /* none */ }

for (const pre of document.querySelectorAll("pre.copied")) { pre.title = "Click to copy"; pre.tabIndex = 0; }
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.matches("pre.copied")) copy(event.target.textContent);
  if (event.key === "/" && !event.target.matches("input, textarea, select")) {
    const search = document.querySelector('input[type="search"]');
    if (search) { event.preventDefault(); search.focus(); }
  }
});
document.getElementById("all")?.addEventListener("change", (event) => {
  for (const box of document.querySelectorAll('input[name="run"][type="checkbox"]')) box.checked = event.target.checked;
});

// Parts that a running run changes are asked for again, while the page is seen.
async function renew() {
  if (document.hidden) return;
  const answer = await fetch(location.href, { headers: { accept: "text/html" } });
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-fresh]")) {
    const other = fresh.querySelector(`[data-fresh="${part.dataset.fresh}"]`);
    if (!other || other.innerHTML === part.innerHTML || part.contains(document.activeElement)) continue;
    const checked = new Set([...part.querySelectorAll("input:checked")].map((box) => box.value));
    part.replaceChildren(...other.childNodes);
    for (const box of part.querySelectorAll('input[name="run"]')) box.checked = checked.has(box.value);
  }
  charts(document);
}
const seconds = Number(document.body.dataset.live);
if (seconds) setInterval(() => renew().catch(() => tell("the workbench does not answer")), seconds * 1000);

charts(document);
if (!("exported" in document.documentElement.dataset)) actions(document, tell);
