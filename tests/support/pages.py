"""Run directories written by hand, and the workbench over them in a thread."""

import http.client
import socket
import threading
import time
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forge.records import curve, samples
from forge.records.files import METADATA, RESULTS, STATE, write_json

HOSTILE = '<script>document.title="taken"</script><img src=x onerror=alert(1)>'


def write_run(folder, seed=1, alpha="0", right=0.7, rows=200, status="finished", text="a dog runs"):
    """A run of three labels, its answers right in a share of the rows."""
    rng = np.random.default_rng(seed)
    label = np.arange(rows) % 3
    prediction = np.where(rng.random(rows) < right, label, (label + 1) % 3)
    logits = np.eye(3)[prediction] * 2 + rng.random((rows, 3))
    for part in ("predictions", "rows", "model"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    answers = {"id": np.arange(rows), "label": label, "prediction": prediction}
    table = pa.table(answers | {"logits": logits.tolist()})
    pq.write_table(table, folder / "predictions" / "validation.parquet")
    texts = [f"{text} {i}" for i in range(rows)]
    pq.write_table(
        pa.table({"id": np.arange(rows), "text": texts}), folder / "rows" / "validation.parquet"
    )
    write_json(
        folder / "model" / "config.json", {"id2label": {"0": "yes", "1": "no", "2": HOSTILE}}
    )
    overrides = [f"seed={seed}", f"mode.alpha={alpha}", "task=toy"]
    attempt = {
        "started": "2026-01-01T10:00:00Z",
        "ended": "2026-01-01T10:05:00Z",
        "host": "elsewhere",
        "pid": 7,
        "status": status,
        "commit": "a" * 40,
    }
    config = {
        "seed": seed,
        "task": {"text": "text"},
        "mode": {"alpha": float(alpha)},
        "trainer": {"seed": seed},
    }
    data = {"validation": {"n": rows, "truncated": 0, "mean_length": 4.0, "fingerprint": "f" * 16}}
    choices = {"task": "toy", "model": "tiny", "mode": "kd"}
    write_json(
        folder / METADATA,
        {
            "id": "x",
            "choices": choices,
            "overrides": overrides,
            "config": config,
            "attempts": [attempt],
            "data": data,
            "max_length": 8,
        },
    )
    write_json(
        folder / STATE,
        {"status": status, "step": 20, "max_steps": 20, "updated": "2026-01-01T10:05:00Z"},
    )
    score = float((label == prediction).mean())
    headline = {"metric": "accuracy", "split": "validation", "value": score}
    if status == "finished":
        write_json(
            folder / RESULTS,
            {"headline": headline, "splits": {"validation": {"accuracy": score, "n": rows}}},
        )
    for step in range(1, 21):
        curve.append(
            folder,
            {"step": step, "seconds": step, "tokens": 9 * step, "loss": 1 / step, HOSTILE: 1.0},
        )
    answer = {
        "text": text,
        "rewards": {"exact": 1.0},
        "reward": 1.0,
        "advantage": 0.5,
        "length": 3,
        "kl": 0.1,
    }
    samples.write(
        folder, 4, [{"id": 3, "prompt": {"text": text}, "label": "yes", "answers": [answer] * 4}]
    )
    return folder


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Start a workbench over folders: `ask(path, …)` gives status, headers and text."""
    import uvicorn

    from forge.workbench.app import application
    from forge.workbench.library import Library

    monkeypatch.setenv("FORGE_CACHE", str(tmp_path / "cache"))
    servers = []

    def start(*folders, base="", hosts=()):
        library = Library(folders)
        place = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            application(library, "tok", [*hosts], base),
            log_level="warning",
            lifespan="off",
            ws="none",
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
        thread.start()
        servers.append((server, thread, place))
        while not server.started:
            time.sleep(0.01)
        return Served(place.getsockname()[1], library, base)

    yield start
    for server, thread, place in servers:
        server.should_exit = True
        thread.join(10)
        place.close()


class Served:
    """A workbench that listens."""

    def __init__(self, port, library, base):
        self.port, self.library, self.base, self.cookie = port, library, base, ""
        form = urlencode({"token": "tok"})
        kind = {"content-type": "application/x-www-form-urlencoded"}
        status, headers, _ = self.ask("/login", "POST", form, kind)
        assert status == 303
        self.cookie = headers["set-cookie"].split(";")[0]

    def ask(self, path, method="GET", body=None, headers=None, cookie=True):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        given = {"cookie": self.cookie} if cookie and self.cookie else {}
        connection.request(method, self.base + path, body, given | (headers or {}))
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        named = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, named, content.decode("utf-8", "replace")
