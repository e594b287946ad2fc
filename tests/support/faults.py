"""Kill runs at points chosen by a seed, continue them, and compare with an undisturbed run.

    python -m tests.support.faults --points 40 --seed 0

Every point is a small run of one of the KINDS, with some of the SETTINGS, that dies once or twice:
by SIGKILL at a random time, by SIGKILL at a file event (a file opened for writing, renamed,
removed, a checkpoint's tensors before and after they are written), or by SIGTERM. Its newest
checkpoint may be damaged then. It is continued by the same command, and must end with the weights,
the optimizer, the curve, the results, the answers and the files of the undisturbed run. One process
imports everything and forks for each rank of each attempt. The exit code is 1 when a point fails.
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

OFTEN = [
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
RUN = ["task=toy", "task.dataset.train=320", "task.dataset.validation=90", *OFTEN]
LM = ["task=toy_math", "model=tiny_lm", "task.dataset.train=160", "task.dataset.validation=20",
      "task.max_new_tokens=6", "task.generate_rows=8", "task.headline=perplexity",
      "trainer.per_device_train_batch_size=16", *OFTEN]  # fmt: skip
TEACHERS = {"toy": RUN, "toy_math": LM}
TAUGHT = ["mode=kd", "mode.gate=off"]
RL = ["mode=rl", "mode.num_iterations=2", "mode.gate=off"]
DRAWN = [*RL, "mode/reward=length", "mode.reward.length.limit=2", "task.max_new_tokens=4",
         "trainer.max_steps=12"]  # fmt: skip
CUT = ["trainer.max_steps=17", "trainer.lr_scheduler_type=constant",
       "trainer.gradient_accumulation_steps=2", "trainer.train_sampling_strategy=random",
       "trainer.per_device_train_batch_size=8"]  # fmt: skip
KINDS = {  # words, and in how many processes
    "sft": (RUN, 1),
    "kd": ([*RUN, *TAUGHT], 1),
    "cut": ([*RUN, *CUT], 1),
    "live": ([*RUN, *TAUGHT, "mode/loss=hidden"], 1),
    "rl": ([*RUN, *RL], 1),
    "lm": ([*LM, "task.pass_at=[2]", "task.samples=2"], 1),
    "lm kd": ([*LM, *TAUGHT, "mode.top_k=8"], 1),
    "lm live": ([*LM, *TAUGHT, "mode/loss=[kl,hidden]"], 1),
    "lm rl": ([*LM, *DRAWN], 1),
    "rl in 2": ([*RUN, *RL, "mode/reward=[exact,metric]"], 2),
    "sft in 2": (RUN, 2),
    "kd in 2": ([*RUN, *TAUGHT], 2),
    "live in 2": ([*RUN, *TAUGHT, "mode/loss=[kl,hidden]"], 2),
    "lm in 2": (LM, 2),
    "lm kd in 2": ([*LM, *TAUGHT, "mode.top_k=8"], 2),
}
SETTINGS = {
    "random": ["trainer.train_sampling_strategy=random"],
    "workers": ["trainer.dataloader_num_workers=2"],
    "accumulated": ["trainer.gradient_accumulation_steps=2",
                    "trainer.per_device_train_batch_size=8"],
    "bf16": ["precision=bf16"],
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
        preload(folder)
        whole = functools.cache(functools.partial(undisturbed, folder))
        for number in range(asked.points):
            name = asked.kinds[number % len(asked.kinds)]
            settings = tuple(s for s in SETTINGS if rng.random() < 0.2)
            kind = whole(name, settings)
            place = folder / "point"
            kills = plan(rng, kind)
            problem = survive(kind, place, kills)
            failed += bool(problem)
            print(json.dumps({"point": number, "run": name, "settings": settings, "kills": kills,
                              "problem": problem}), flush=True)  # fmt: skip
            shutil.rmtree(place, ignore_errors=True)
    sys.exit(1 if failed else 0)


def preload(folder: Path) -> None:
    """Import all that a run needs, by training the teachers; start no thread."""
    import torch
    import tqdm
    from hydra import compose, initialize_config_dir

    import forge.data.toy_nli
    import forge.distillation.tokens
    import forge.modes.rl
    import forge.reinforcement.texts
    from forge.config.compose import CONF, register
    from forge.experiment import run

    torch.set_num_threads(1)
    tqdm.tqdm.monitor_interval = 0
    register()
    forge.data.toy_nli.nli = functools.cache(forge.data.toy_nli.nli)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for task, words in TEACHERS.items():
            larger = ["model.config.hidden_size=32", f"cache_dir={folder / 'cache'}"]
            run(compose("config", [*words, *larger]), folder / f"teacher {task}")
    gc.freeze()  # the Trainer collects garbage: let it not look through the libraries


def undisturbed(folder: Path, name: str, settings: tuple[str, ...]) -> dict:
    """A kind of run: its words, what it ends with, how long it takes, how many file events."""
    place = folder / "-".join([name, *settings])
    counter, started = place.with_suffix(".events"), time.monotonic()
    words, ranks = KINDS[name]
    task = words[0].removeprefix("task=")
    words = [*words, *(word for s in settings for word in SETTINGS[s])]
    words.append(f"teacher.path='{folder / f'teacher {task}'}'")
    if code := attempt(words, place, place.with_suffix(".cache"), ranks, counter=counter):
        sys.exit(f"{place.name} ended with {code}: {place.with_suffix('.out').read_text()[-2000:]}")
    return {
        "whole": place,
        "words": words,
        "ranks": ranks,
        "end": with_files(place),
        "seconds": time.monotonic() - started,
        "events": int(counter.read_text()),
    }


def plan(rng: random.Random, kind: dict) -> list[dict]:
    """One or two deaths, after which the newest checkpoint may be damaged."""
    kills = []
    for _ in range(rng.choice((1, 1, 2))):
        how = rng.choice(("event", "event", "time", "term"))
        if how == "event":
            kills.append({"event": rng.randrange(1, kind["events"] + 1)})
        else:
            number = signal.SIGKILL if how == "time" else signal.SIGTERM
            after = round(rng.uniform(0, kind["seconds"]), 3)
            kills.append({"after": after, "signal": int(number)})
        if rng.random() < 0.2:
            kills[-1]["damage"] = (rng.choice(list(DAMAGE)), round(rng.random(), 3))
    return kills


def flip(file: Path, where: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(where * len(content))] ^= 1 << int(where * 8000) % 8
    file.write_bytes(content)


DAMAGE = {
    "flip": flip,
    "truncate": lambda file, where: os.truncate(file, int(where * file.stat().st_size)),
    "delete": lambda file, where: file.unlink(),
    "empty": lambda file, where: os.truncate(file, 0),
}


def damage(run_dir: Path, whole: Path, how: str, where: float) -> None:
    """Harm a file of the newest checkpoint; where there is none yet, put another run's there. What
    a finished run has is not looked at again."""
    if (run_dir / "results.json").is_file() or not run_dir.is_dir():
        return
    newest = next(iter(checkpoints(run_dir)), None)
    files = sorted(path for path in newest.rglob("*") if path.stat().st_size) if newest else []
    if files:
        DAMAGE[how](files[int(where * len(files))], where * len(files) % 1)
    else:
        other = next(iter(checkpoints(whole)))
        shutil.copytree(other, run_dir / other.name, dirs_exist_ok=True)


def checkpoints(run_dir: Path) -> list[Path]:
    """Newest first."""
    found = [path for word in ("checkpoint", "preempted") for path in run_dir.glob(f"{word}-*")]
    return sorted(found, key=lambda path: -int(path.name.split("-")[1]))


def survive(kind: dict, place: Path, kills: list[dict]) -> str | None:
    """What is wrong with a run that was killed and continued, or None."""
    run = (kind["words"], place / "run", place / "cache", kind["ranks"])
    for kill in kills:
        attempt(*run, kill=kill)
        if harm := kill.get("damage"):
            damage(place / "run", kind["whole"], *harm)
    code = attempt(*run)
    if code:
        log = place / "run.out"
        return f"the last attempt ended with {code}: {log.read_text()[-500:]}"
    end = with_files(place / "run")
    for name, wanted in kind["end"].items():
        if end[name] != wanted:
            ours, theirs = set(end[name].split(", ")), set(wanted.split(", "))
            told = [*sorted(ours - theirs), "instead of", *sorted(theirs - ours)]
            return f"{name} differ from the undisturbed run's: {' '.join(told)[:500]}"
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

    from forge.config.compose import CONF
    from forge.errors import Preempted
    from forge.experiment import run

    suffix = f".{rank}.out" if rank else ".out"
    out = open(run_dir.with_suffix(suffix), "w", buffering=1)  # noqa: SIM115  # closed with the process
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
    """What a run ends with, as texts that are equal when it is."""
    import hashlib

    import pyarrow.parquet as pq

    newest = checkpoints(run_dir)[0]
    rows = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    results = json.loads((run_dir / "results.json").read_text())["splits"]
    hashed = [run_dir / "model" / "model.safetensors", newest / "optimizer.pt"]
    weights, optimizer = (hashlib.sha256(path.read_bytes()).hexdigest() for path in hashed)
    answers = pq.read_table(run_dir / "predictions" / "validation.parquet").to_pylist()

    def untimed(row: dict) -> dict:
        words = ("runtime", "second", "flos", "step_time")
        return {k: v for k, v in row.items() if not any(word in k for word in words)}

    return {
        "weights": weights,
        "optimizer": optimizer,
        "curves": json.dumps([untimed(row) for row in rows]),
        "results": json.dumps({name: untimed(scores) for name, scores in results.items()}),
        "answers": json.dumps(answers, default=str),
    }


def with_files(run_dir: Path) -> dict[str, str]:
    """The same and the names of its files, but for damaged checkpoints."""
    files = [str(path.relative_to(run_dir)) for path in run_dir.rglob("*")]
    kept = sorted(name for name in files if not name.startswith("set-aside-"))
    return outcome(run_dir) | {"files": ", ".join(kept)}


if __name__ == "__main__":
    main()
