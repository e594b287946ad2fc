"""The rooms of forge/: imports go downward only, and no modules import each other in a circle;
kinds of task are named in their rooms alone, and a function fits a screen.

Imports inside functions and under TYPE_CHECKING count; rooms on one floor do not import each other.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLOORS = (  # the lowest first; what is in no folder is named with the room it belongs to
    "errors hub ranks",
    "config | guide",
    "records",
    "data",
    "models",
    "inputs",
    "tasks",
    "training",
    "distillation | reinforcement | results | tracking",
    "modes",
    "experiment",
    "launching launch hydra_plugins",
    "commands",
    "workbench",
    "__main__",
)
FILES = [*ROOT.glob("forge/**/*.py"), *ROOT.glob("hydra_plugins/*.py"), ROOT / "launch.py"]
NAMES = [file.relative_to(ROOT).with_suffix("").as_posix().split("/") for file in FILES]
MODULES = {".".join(name): file for name, file in zip(NAMES, FILES, strict=True)}

KINDS = {  # what a new kind of task adds to; every other room asks the task
    *(
        f"forge.tasks.{name}"
        for name in [
            "choice",
            "kinds",
            "label",
            "labels",
            "media",
            "number",
            "span",
            "tags",
            "text",
        ]
    ),
    *(
        f"forge.inputs.{name}"
        for name in ["audio", "choices", "image", "passages", "prompt", "text", "words"]
    ),
}
LINES = 60  # of a function, at most


def place(module: str) -> tuple[int, int]:
    """The floor of a module and its room there."""
    name = module.removeprefix("forge.").split(".")[0]
    for floor, rooms in enumerate(FLOORS):
        for number, names in enumerate(rooms.split("|")):
            if name in names.split():
                return floor, number
    raise AssertionError(f"{module} is in no room: {name} has to be in FLOORS")


def imports(module: str) -> set[str]:
    """Our modules that this one imports."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & MODULES.keys()


def upward() -> set[tuple[str, str]]:
    """Pairs of modules: the first imports the second, which is not below it."""
    pairs = {(a, b) for a in MODULES for b in imports(a)}
    inside = {(a, b) for a, b in pairs if place(a) == place(b)}
    behind = {a: {b for one, b in inside if one == a} for a in MODULES}
    while longer := [(a, b) for a in behind for b in behind[a] if not behind[b] <= behind[a]]:
        for a, b in longer:
            behind[a] |= behind[b]
    circles = {(a, b) for a, b in inside if a in behind[b]}
    return {(a, b) for a, b in pairs - inside if place(a)[0] <= place(b)[0]} | circles


def test_imports_go_downward_and_in_no_circle():
    wrong = upward()
    lines = [
        f"{MODULES[a].relative_to(ROOT)} imports {(b := MODULES[name]).relative_to(ROOT)}: "
        f"move what it needs of {b.name} down, or pass it as an argument"
        for a, name in sorted(wrong)
    ]
    assert not lines, "\n".join(lines)


def test_kinds_are_named_in_their_rooms_alone():
    others = [m for m in MODULES if not m.startswith(("forge.tasks", "forge.inputs"))]
    for module in others:
        assert not imports(module) & KINDS, f"{module}: ask the task instead"
        code = MODULES[module].read_text()
        for auto in (
            "SequenceClassification",
            "TokenClassification",
            "CausalLM",
            "ImageClassification",
            "AudioClassification",
            "MultipleChoice",
            "QuestionAnswering",
        ):
            assert auto not in code, f"{module} names a kind of head; ask task.head"


def test_a_function_fits_a_screen():
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= LINES, f"{file.relative_to(ROOT)}: {node.name} has {lines} lines"
