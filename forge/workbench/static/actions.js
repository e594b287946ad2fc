// What changes something: flags of rows, and questions to models.
async function post(address, body) {
  const answer = await fetch(address, {
    method: "POST", body: JSON.stringify(body),
    headers: { "content-type": "application/json", "x-forge-workbench": "1" },
  });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.problem ?? "it was refused");
  return found;
}

function cell(text, kind) {
  const made = document.createElement("td");
  made.className = kind;
  made.textContent = text;
  return made;
}

function fill(table, header, rows) {
  const head = document.createElement("tr");
  for (const name of header) {
    const made = document.createElement("th");
    made.textContent = name;
    head.append(made);
  }
  table.tHead.replaceChildren(head);
  table.tBodies[0].replaceChildren(...rows.map((row) => {
    const line = document.createElement("tr");
    line.append(...row.map((text, i) => cell(text, i ? "text" : "name")));
    return line;
  }));
}

export function actions(root, tell) {
  root.addEventListener("change", async (event) => {
    const box = event.target.closest("input.flag");
    if (!box) return;
    try {
      const found = await post(`flag${location.search}`, { id: Number(box.value), flagged: box.checked });
      for (const place of root.querySelectorAll(".flags")) place.textContent = found.text;
      tell(box.checked ? "flagged" : "no longer flagged");
    } catch (error) {
      box.checked = !box.checked;
      tell(error.message);
    }
  });
  const form = root.querySelector("form#try");
  form?.addEventListener("submit", async (event) => {
    event.preventDefault();
    const place = root.getElementById("answers");
    const say = root.getElementById("waiting");
    say.textContent = "The models are being asked; the first question loads them.";
    form.querySelector("button").disabled = true;
    try {
      const texts = [...form.querySelectorAll("textarea")].map((area) => area.value);
      const found = await post(`answer${location.search}`, { texts });
      fill(place.querySelector("table"), found.header, found.rows);
      place.hidden = false;
      say.textContent = found.notes.join("\n");
    } catch (error) {
      say.textContent = error.message;
    } finally {
      form.querySelector("button").disabled = false;
    }
  });
}
