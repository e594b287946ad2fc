"""Kill runs at points chosen by a seed, continue them, and compare with an undisturbed run.

    python -m tests.faults --points 40 --seed 0

Every point is a small run of one of the KINDS that dies once or twice: by SIGKILL at a random time,
by SIGKILL at a file event (a file opened for writing, renamed, removed, a checkpoint's tensors
before and after they are written), or by SIGTERM. It is then continued by the same command, and
must end with the weights, the curve and the results of the undisturbed run. One process imports
everything and forks for each rank of each attempt. The exit code is 1 when a point fails.
"""

import argparse
import contextlib
import functools
import gc
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

RUN = [
    "task=toy",
    "task.dataset.train=320",
    "task.dataset.validation=90",
    "model.config.hidden_size=16",
    "model.config.intermediate_size=32",
    "precision=fp32",
    "trainer.num_train_epochs=2",
    "trainer.save_strategy=steps",
    "trainer.eval_strategy=steps",
    "trainer.save_steps=4",
    "trainer.eval_steps=4",
    "trainer.logging_steps=3",
]
KD = [*RUN, "mode=kd", "mode.gate=off"]
KINDS = {  # words, and in how many processes
    "sft": (RUN, 1),
    "kd": (KD, 1),
    "cut": (
        [*RUN, "trainer.max_steps=17", "trainer.lr_scheduler_type=constant",
         "trainer.gradient_accumulation_steps=2", "trainer.train_sampling_strategy=random",
         "trainer.per_device_train_batch_size=8"],
        1,
    ),
    "live": ([*KD, "mode/loss=hidden"], 1),
    "workers": ([*RUN, "trainer.dataloader_num_workers=2", "precision=bf16"], 1),
    "rl": ([*RUN, "mode=rl", "mode.num_iterations=2", "mode.gate=off"], 1),
    "rl in 2": ([*RUN, "mode=rl", "mode/reward=[exact,metric]", "mode.num_iterations=2",
                 "mode.gate=off", "trainer.train_sampling_strategy=random"], 2),
    "sft in 2": ([*RUN, "trainer.gradient_accumulation_steps=2",
                  "trainer.per_device_train_batch_size=8"], 2),
    "kd in 2": ([*KD, "trainer.train_sampling_strategy=random"], 2),
    "live in 2": ([*KD, "mode/loss=[kl,hidden]"], 2),
}  # fmt: skip
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    asked = parser.parse_args()
    rng, failed = random.Random(asked.seed), 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        teacher = folder / "teacher"
        preload(teacher, folder / "cache")
        kinds = [undisturbed(folder, name, teacher) for name in asked.kinds]
        for number in range(asked.points):
            kind = kinds[number % len(kinds)]
            place = folder / "point"
            kills = plan(rng, kind)
            problem = survive(kind, place, kills)
            failed += bool(problem)
            print(json.dumps({"point": number, "run": kind["name"], "kills": kills,
                              "problem": problem}), flush=True)  # fmt: skip
            shutil.rmtree(place, ignore_errors=True)
    sys.exit(1 if failed else 0)


def preload(run_dir: Path, cache: Path) -> None:
    """Import all that a run needs, by training the teacher; start no thread."""
    import torch
    import tqdm
    from hydra import compose, initialize_config_dir

    import forge.toy
    from forge.config import CONF, register
    from forge.experiment import run

    torch.set_num_threads(1)
    tqdm.tqdm.monitor_interval = 0
    register()
    forge.toy.nli = functools.cache(forge.toy.nli)
    words = [*RUN, "model.config.hidden_size=32", f"cache_dir={cache}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run(compose("config", words), run_dir)
    gc.freeze()  # the Trainer collects garbage: let it not look through the libraries


def undisturbed(folder: Path, name: str, teacher: Path) -> dict:
    """A kind of run: its words, what it ends with, how long it takes, how many file events."""
    counter, started = folder / f"{name}.events", time.monotonic()
    words, ranks = KINDS[name]
    words = [*words, f"teacher.path={teacher}"]
    attempt(words, folder / name, folder / f"{name}.cache", ranks, counter=counter)
    return {
        "name": name,
        "words": words,
        "ranks": ranks,
        "end": outcome(folder / name),
        "seconds": time.monotonic() - started,
        "events": int(counter.read_text()),
    }


def plan(rng: random.Random, kind: dict) -> list[dict]:
    """One or two deaths."""
    kills = []
    for _ in range(rng.choice((1, 1, 2))):
        how = rng.choice(("event", "event", "time", "term"))
        if how == "event":
            kills.append({"event": rng.randrange(1, kind["events"] + 1)})
        else:
            number = signal.SIGKILL if how == "time" else signal.SIGTERM
            after = round(rng.uniform(0, kind["seconds"]), 3)
            kills.append({"after": after, "signal": int(number)})
    return kills


def survive(kind: dict, place: Path, kills: list[dict]) -> str | None:
    """What is wrong with a run that was killed and continued, or None."""
    run = (kind["words"], place / "run", place / "cache", kind["ranks"])
    for kill in kills:
        attempt(*run, kill=kill)
    code = attempt(*run)
    if code:
        log = place / "run.out"
        return f"the last attempt ended with {code}: {log.read_text()[-500:]}"
    for name, wanted in kind["end"].items():
        if outcome(place / "run")[name] != wanted:
            return f"{name} differ from the undisturbed run's"
    return None


def attempt(
    words: list[str],
    run_dir: Path,
    cache: Path,
    ranks: int = 1,
    kill: dict | None = None,
    counter: Path | None = None,
) -> int:
    """Run in child processes, which may be killed; rank 0's exit code, negative for a signal.

    A kill at a file event is rank 0's; the launcher's part, to end the others then, is played here.
    """
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    from accelerate.state import AcceleratorState

    children = []
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for rank in range(ranks):
        if (child := os.fork()) == 0:
            if ranks > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank),
                               "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
                               "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}  # fmt: skip
                AcceleratorState._reset_state(reset_partial_state=True)  # of preload's run
            code = 1
            with contextlib.suppress(BaseException):
                mine = {} if rank else (kill or {})
                code = child_main([*words, f"cache_dir={cache}"], run_dir, rank, mine, counter)
            os._exit(code)
        children.append(child)
    if kill and "after" in kill:
        time.sleep(kill["after"])
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, kill["signal"])
    return outlived(children)


def outlived(children: list[int]) -> int:
    """Wait for the ranks, and end the others when one has failed; rank 0's exit code."""
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        for child in [child for child in children if child not in codes]:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                codes[child] = os.waitstatus_to_exitcode(status)
                if codes[child] < 0 or codes[child] == 1:
                    for other in [c for c in children if c not in codes]:
                        os.kill(other, signal.SIGKILL)
        time.sleep(0.01)
    return codes[children[0]]


def child_main(words: list[str], run_dir: Path, rank: int, kill: dict, counter: Path | None) -> int:
    """One attempt; dies at file event `kill["event"]`."""
    import logging
    import traceback

    import torch
    from hydra import compose, initialize_config_dir
    from transformers import modeling_utils

    from forge.config import CONF
    from forge.experiment import run
    from forge.signals import Preempted

    suffix = f".{rank}.out" if rank else ".out"
    out = open(run_dir.with_suffix(suffix), "w")  # noqa: SIM115  # closed with the process
    os.dup2(out.fileno(), 1), os.dup2(out.fileno(), 2)
    logging.basicConfig(level=logging.INFO, stream=out)
    seen, inside = [0], str(run_dir.parent)

    def count() -> None:
        seen[0] += 1
        if seen[0] == kill.get("event"):
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, args: tuple) -> None:
        if event not in EVENTS or not str(args[0]).startswith(inside):
            return
        if event != "open" or (isinstance(args[1], str) and set(args[1]) & set("wax+")):
            count()

    for module, name in ((torch, "save"), (modeling_utils, "safe_save_file")):
        setattr(module, name, counted(getattr(module, name), count))

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", words)
    sys.addaudithook(hook)
    try:
        run(cfg, run_dir)
    except Preempted as stopped:
        return stopped.exit_code
    except BaseException:
        traceback.print_exc(file=out)
        return 1
    finally:
        if counter and not rank:
            counter.write_text(str(seen[0]))
    return 0


def counted(write: Callable, count: Callable[[], None]) -> Callable:
    """A writer that C++ or Rust implements: an event before it and one after it."""

    def both(*args: object, **kwargs: object) -> None:
        count()
        write(*args, **kwargs)
        count()

    return both


def outcome(run_dir: Path) -> dict[str, str]:
    """Weights, curve and results, as texts that are equal when they are."""
    import hashlib

    newest = max(run_dir.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    rows = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    results = json.loads((run_dir / "results.json").read_text())["splits"]
    weights = (run_dir / "model" / "model.safetensors").read_bytes()

    def untimed(row: dict) -> dict:
        words = ("runtime", "second", "flos")
        return {k: v for k, v in row.items() if not any(word in k for word in words)}

    return {
        "weights": hashlib.sha256(weights).hexdigest(),
        "curves": json.dumps([untimed(row) for row in rows]),
        "results": json.dumps({name: untimed(scores) for name, scores in results.items()}),
    }


if __name__ == "__main__":
    main()
