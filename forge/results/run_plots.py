"""The pictures of a run's report, each as the bytes of a PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from forge.results import pictures
from forge.results.examine import Entry, Example, Report, Split
from forge.results.predictions import Calibration, Predictions, name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHARE = "gradient_share_"  # of a loss term, as mode=kd logs it
REWARD = re.compile(r"rewards/(.+)/mean$")  # of several, one
POLICY = {
    "reward": "mean reward",
    "kl": "KL to the start",
    "entropy": "entropy of the answers",
}  # as mode=rl logs them
MOST_LABELS = 12  # of a confusion matrix that is written out
ABOVE: dict[str, Any] = {  # a legend over the panel, where it hides nothing
    "fontsize": "small",
    "ncols": 2,
    "frameon": False,
    "loc": "lower center",
    "bbox_to_anchor": (0.5, 1),
}


def curves(report: Report) -> bytes:
    """Losses (of reinforcement reward, KL and entropy), the headline metric and the terms' shares
    of the gradient, over optimizer steps."""
    logged, judged = report["curves"]["training"], report["curves"]["evaluation"]
    metric = report["headline"]["metric"]
    panels: list[Callable[[Axes, Report], None]] = [
        partial(_of_policy, key=key) for key in of_policy(logged)
    ] or [_losses]
    if any(f"eval_{metric}" in entry for entry in judged):
        panels.append(_metric)
    if any(key.startswith(SHARE) for entry in logged for key in entry):
        panels.append(_shares)
    figure = pictures.figure(4.6 * len(panels), 3.6)
    for panel, plane in zip(
        panels, figure.subplots(1, len(panels), sharex=True, squeeze=False)[0], strict=True
    ):
        panel(plane, report)
        plane.set(xlabel="optimizer steps")
        plane.grid(alpha=0.3)
        plane.legend(**ABOVE)
    return pictures.png(figure)


def _line(plane: Axes, entries: list[Entry], key: str, **style: Any) -> None:
    kept = [entry for entry in entries if key in entry]
    if len(kept) < 2:  # a line of one point shows nothing
        style.setdefault("marker", "o")
    values = [np.nan if entry[key] is None else entry[key] for entry in kept]
    plane.plot([entry["step"] for entry in kept], values, **style)


def _losses(plane: Axes, report: Report) -> None:
    logged, judged = report["curves"]["training"], report["curves"]["evaluation"]
    terms = list(dict.fromkeys(k for e in logged for k in e if k.startswith("loss_")))
    _line(plane, logged, "loss", label="training" + (", all terms" if terms else ""), color="C0")
    for i, term in enumerate(terms, 2):
        label = f"{term.removeprefix('loss_')}, weighted"
        _line(plane, logged, term, label=label, linestyle=":", color=f"C{i}")
    if judged:
        label = f"evaluation ({report['headline']['split']}), labels"
        _line(plane, judged, "eval_loss", label=label, color="C1", marker="o", markersize=3)
    plane.set(ylabel="loss")


def of_policy(logged: list[Entry]) -> list[str]:
    """What reinforcement is followed by; its loss is about 0, whatever is learnt."""
    keys = [key for key in POLICY if any(key in entry for entry in logged)]
    return keys if "reward" in keys else []


def _of_policy(plane: Axes, report: Report, key: str) -> None:
    logged = report["curves"]["training"]
    each = [k for k in dict.fromkeys(k for e in logged for k in e) if REWARD.match(k)]
    _line(plane, logged, key, label=POLICY[key], color="C0")
    for i, name in enumerate(each if key == "reward" and len(each) > 1 else (), 2):
        _line(plane, logged, name, label=REWARD.sub(r"\1", name), linestyle=":", color=f"C{i}")
    plane.set(ylabel=key)


def _metric(plane: Axes, report: Report) -> None:
    headline = report["headline"]
    key, split = f"eval_{headline['metric']}", headline["split"]
    _line(
        plane,
        report["curves"]["evaluation"],
        key,
        label="student" if report["teacher"] else split,
        color="C1",
        marker="o",
        markersize=3,
    )
    plane.axhline(headline["value"], color="C1", linewidth=0.8, linestyle=":", label="kept model")
    if (best := report["teacher"].get(split, {}).get(headline["metric"])) is not None:
        plane.axhline(best, color="grey", linestyle="--", label="teacher")
    if (begun := report["start"].get(split, {}).get(headline["metric"])) is not None:
        plane.axhline(begun, color="C3", linestyle="--", linewidth=0.8, label="start")
    plane.set(ylabel=f"{headline['metric']} on {split}")


def _shares(plane: Axes, report: Report) -> None:
    logged = report["curves"]["training"]
    terms = list(dict.fromkeys(k for e in logged for k in e if k.startswith(SHARE)))
    for i, term in enumerate(terms, 2):
        _line(
            plane,
            logged,
            term,
            label=term.removeprefix(SHARE),
            color=f"C{i}",
            marker="o",
            markersize=3,
        )
    plane.set(ylabel="share of the gradient norm", ylim=(0, 1))


def split(name: str, facts: Split, labels: list[str], answers: Predictions) -> bytes:
    """Confusion matrix, of several labels the F1 of each, and reliability diagram; of a regression
    its answers against the labels."""
    if "residuals" in facts:
        figure = pictures.figure(9, 4)
        left, right = figure.subplots(1, 2)
        _scatter(left, answers)
        _histogram(right, facts, answers)
    else:
        figure = pictures.figure(10, 4.8)
        planes = figure.subplot_mosaic(
            [["confusion", "reliability"], ["confusion", "counts"]], height_ratios=[3, 1]
        )
        if "by_label" in facts:
            _by_label(planes["confusion"], facts)
        else:
            _confusion(planes["confusion"], facts, labels)
        _reliability(planes["reliability"], planes["counts"], facts.get("calibration"))
    figure.suptitle(f"{name}, n = {facts['n']:,}", fontsize="medium")
    return pictures.png(figure)


def errors(examples: list[Example], files: list[bytes]) -> bytes:
    """The rows of examples that were answered wrongly, each with what was wanted and given."""
    import PIL.Image

    wide = min(len(files), 5)
    high = -(-len(files) // wide)
    figure = pictures.figure(2.6 * wide, 1.9 * high)
    planes = figure.subplots(high, wide, squeeze=False).ravel()
    for plane in planes:
        plane.set_axis_off()
    for plane, example, data in zip(planes, examples, files, strict=False):
        names = [pictures.drawable(str(example[key])[:20]) for key in ("label", "prediction")]
        title = f"#{example['id']}: {names[0]}\n{names[1]}? {example['probability']:.2f}"
        plane.set_title(title, fontsize="small")
        plane.imshow(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
        plane.set(xticks=[], yticks=[])
        plane.set_axis_on()
    return pictures.png(figure)


def _by_label(plane: Axes, facts: Split) -> None:
    """F1 of each label, of the most frequent ones where there are many."""
    rows = sorted(facts["by_label"], key=lambda row: -row["n"])[:MOST_LABELS][::-1]
    names = [f"{_tick(row['label'], i, 20)} ({row['n']:,})" for i, row in enumerate(rows)]
    plane.barh(names, [row["f1"] for row in rows], color="C0")
    plane.plot([row["precision"] for row in rows], names, "<", color="black", label="precision")
    plane.plot([row["recall"] for row in rows], names, ">", color="black", label="recall")
    plane.set(xlim=(0, 1.02), xlabel="F1")
    plane.legend(title="F1 of each label (and its rows)", **ABOVE)


def _confusion(plane: Axes, facts: Split, labels: list[str]) -> None:
    from sklearn.metrics import ConfusionMatrixDisplay

    counts = np.array(facts["confusion"])
    shares, total = counts / np.maximum(counts.sum(1, keepdims=True), 1), len(counts)
    display = ConfusionMatrixDisplay(shares).plot(
        ax=plane,
        include_values=total <= MOST_LABELS,
        cmap="Blues",
        im_kw={"vmin": 0, "vmax": 1},
        text_kw={"fontsize": 10 if total <= 6 else 7},
    )
    display.im_.colorbar.set_label("share of the label's examples")
    plane.set(xlabel="answer", ylabel="label")
    plane.set_title("confusion matrix", fontsize="medium")
    if display.text_ is None:
        few = range(0, total, -(-total // 10))
        plane.set(xlabel="answer's id", ylabel="label's id", xticks=few, yticks=few)
        return
    for place, n in np.ndenumerate(counts):
        share = f"\n{shares[place]:.0%}" if total <= 6 else ""
        color = "white" if shares[place] > 0.6 else "black"
        display.text_[place].set(text=f"{n:,}{share}", color=color)
    names = [_tick(name_of(labels, i), i, 20 if total <= 4 else 12) for i in range(total)]
    upright = max(map(len, names)) * total > 40
    plane.set_xticks(range(total), names, rotation=90 if upright else 0)
    plane.set_yticks(range(total), names)


def _tick(name: str, number: int, most: int) -> str:
    """A label in one line of at most so many letters; its number where no font has them."""
    name = f"#{number}" if pictures.lacking([name]) else " ".join(name.split())
    return pictures.drawable(name if len(name) <= most else f"{name[:most]}…")


def _reliability(plane: Axes, below: Axes, calibration: Calibration | None) -> None:
    from sklearn.calibration import CalibrationDisplay

    below.set(xlim=(0, 1), xlabel="confidence: probability of the answer", ylabel="examples")
    rows = calibration["table"] if calibration else []
    accuracy, sure = ([row[key] for row in rows] for key in ("accuracy", "confidence"))
    CalibrationDisplay(accuracy, sure, None).plot(
        ax=plane, name="accuracy of a bin at its mean confidence", color="C0"
    )
    plane.set(xlim=(0, 1), ylim=(-0.03, 1.03), xlabel="", ylabel="accuracy", xticklabels=[])
    if calibration is None:
        plane.set_title("no finite probabilities", fontsize="medium")
        return
    title = f"reliability: ECE {100 * calibration['ece']:.1f} %, {calibration['bins']} bins"
    plane.legend(title=title, **ABOVE)
    middle = [(row["from"] + row["to"]) / 2 for row in rows]
    width = 1 / calibration["bins"]
    below.bar(middle, [row["n"] for row in rows], color="C7", width=width, edgecolor="white")


def _scatter(plane: Axes, answers: Predictions) -> None:
    label, prediction = answers.label, answers.prediction
    known = np.concatenate([label, prediction[np.isfinite(prediction)]])
    ends = [known.min(), known.max()]
    plane.plot(ends, ends, "--", color="grey", linewidth=1, label="prediction = label")
    strong = min(1.0, max(0.08, 60 / len(label)))
    plane.plot(label, prediction, "o", markersize=4, alpha=strong, markeredgewidth=0, color="C0")
    plane.set(xlabel="label", ylabel="prediction")
    plane.legend(fontsize="small")


def _histogram(plane: Axes, facts: Split, answers: Predictions) -> None:
    apart = answers.prediction - answers.label
    plane.hist(apart[np.isfinite(apart)], bins=30, color="C0", edgecolor="white")
    plane.axvline(0, color="grey", linestyle="--", linewidth=1)
    mean, spread = facts["residuals"]["mean"], facts["residuals"]["std"]
    if mean is not None:
        plane.axvline(mean, color="C3", linewidth=1, label=f"mean {mean:+.3f}, std {spread:.3f}")
        plane.legend(fontsize="small")
    plane.set(xlabel="residual: prediction minus label", ylabel="examples")
