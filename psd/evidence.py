"""The report: what the recorded lines of the suites say, as tables, charts, bars and README.md's section "Evidence".

Everything is a function of the lines, so that a test can tell whether README.md and the results agree.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from psd.charts import curves, intervals
from psd.paired import Interval, Line, average, bootstrap, diverging, matched, paired
from psd.preset import MissingError
from psd.suite import RESULTS, ROOT, SUITES, Job, Suite, cost, current, read_lines

BEGIN, END = "<!-- evidence: written by `python -m psd compare --report` -->", "<!-- end of evidence -->"
STRIP_PROMPTS = 6
NAMED_BAR = 0.85
RAW = ("reward", "inconsistency", "watertight", "cost", "seconds")  # measures that ask for no truth
DETAILS = (
    "misbound",
    "depth",
    "normal",
    "texture",
    "fog",
    "inconsistency",
    "closed",
    "seconds",
)  # columns for the page


@dataclass(frozen=True)
class Bar:
    """One thing that was asked before the test captions were run."""

    what: str
    figure: str
    met: bool | None  # None: the runs that would tell are missing


# --------------------------------------------------------------------------------------------------------------- tables


def share(value: float) -> str:
    return f"{100 * value:.0f} %"


def signed(value: float) -> str:
    return f"{value:+.2f}"


def columns(suite: Suite) -> list[tuple[str, str, Callable[[float], str]]]:
    """Heading, measure and wording of each column."""
    judges = [name.rpartition("/")[2] for name in suite.judges]
    found = [
        *((f"{name}", f"{name}/score", signed) for name in judges),
        ("named", f"{judges[0]}/named", share),
        ("misbound", f"{judges[0]}/misbound", share),
        ("PSNR", "colour_psnr", lambda x: f"{x:.1f}"),
        ("IoU", "iou", lambda x: f"{x:.3f}"),
        ("depth", "depth_error", lambda x: f"{x:.3f}"),
        ("normal", "normal_error_deg", lambda x: f"{x:.0f}°"),
        ("Janus", "janus", share),
        ("train reward", "reward", signed),
        ("texture", "texture", lambda x: f"{x:.1f}"),
        ("fog", "fog", share),
        ("inconsistency", "inconsistency", lambda x: f"{x:.2f}"),
        ("closed", "watertight", share),
        ("cost", "cost", lambda x: f"{x:.0f}"),
        ("seconds", "seconds", lambda x: f"{x:.0f}"),
    ]
    return [column for column in found if suite.truth or column[1] in RAW or column[1].endswith("/score")]


def leading(suite: Suite) -> list[tuple[str, str, Callable[[float], str]]]:
    """The columns that methods are compared by, difference by difference."""
    return [column for column in columns(suite) if column[1].endswith("/score") or column[1] in ("colour_psnr", "iou")]


def rows(suite: Suite, lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines of each method in the suite's order; those at the reference's cost as a row of their own."""
    found: dict[str, list[Line]] = {}
    for name in suite.methods:
        for budget, label in (("steps", name), ("cost", f"{name} at equal cost")):
            own = [line for line in lines if line["method"] == name and line["budget"] == budget]
            if own:
                found[label] = own
    return found


def markdown(heads: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(heads) + " |",
        "|---" * len(heads) + "|",
        *("| " + " | ".join(cells) + " |" for cells in body),
    ]


def measures_table(suite: Suite, lines: Sequence[Line], *, brief: bool = False) -> list[str]:
    """A row a method: means over its runs.  ``brief`` leaves out what README.md has no room for."""
    wanted = [column for column in columns(suite) if not brief or column[0] not in DETAILS]
    body = []
    for label, own in rows(suite, lines).items():
        values = [average(own, measure) for _, measure, _ in wanted]
        worded = ["" if value is None else say(value) for value, (_, _, say) in zip(values, wanted, strict=True)]
        hacked = sum(line.get("reward") is not None and line["reward"] > 0 for line in own) / len(own)
        apart = sum(map(diverging, own)) / len(own)
        last = [share(hacked)] if suite.truth else []
        failed = sum("failed" in line for line in own)
        runs = f"{len(own)}" + (f" ({failed} without a mesh)" if failed else "")
        body.append([f"`{label}`", runs, *worded, *last, share(apart)])
    above = ["above truth"] if suite.truth else []
    heads = ["method", "runs", *(head for head, _, _ in wanted), *above, "diverging"]
    return markdown(heads, body)


def differences_table(suite: Suite, lines: Sequence[Line]) -> list[str]:
    """Every row against the baseline, at equal steps."""
    found = rows(suite, lines)
    baseline = found.get(suite.baseline, [])
    wanted = leading(suite)
    body = []
    for label, own in found.items():
        gained = [bootstrap(paired(own, baseline, measure)) for _, measure, _ in wanted]
        if label != suite.baseline and any(gained):
            prompts = max(interval.prompts for interval in gained if interval)
            body.append([f"`{label}`", f"{prompts}", *("" if x is None else str(x) for x in gained)])
    return markdown(["method", "captions", *(head for head, _, _ in wanted)], body) if body else []


def matched_sentences(suite: Suite, lines: Sequence[Line]) -> list[str]:
    found = rows(suite, lines)
    control = {name: found.get(name, []) for name in suite.sweep}
    sentences = []
    for head, measure, _ in leading(suite):
        result = matched(found.get(suite.reference, []), control, measure)
        if result is not None:
            interval, note = result
            sentences.append(f"- {head}: {interval} over {interval.prompts} captions ({note})")
    return sentences


def bars(suite: Suite, lines: Sequence[Line]) -> list[Bar]:
    """The bars of the project, asked of the reference; named before the test captions were run."""
    found = rows(suite, lines)
    own = found.get(suite.reference, [])
    primary = f"{suite.judges[0].rpartition('/')[2]}/score"
    asked = []

    def above_zero(what: str, interval: Interval | None) -> None:
        asked.append(
            Bar(what, "" if interval is None else str(interval), None if interval is None else interval.low > 0)
        )

    for measure, name in ((primary, "evidence judge"), ("colour_psnr", "colour PSNR inside the object")):
        for other in suite.beaten:
            above_zero(
                f"{name} above `{other}`, interval above 0", bootstrap(paired(own, found.get(other, []), measure))
            )
    control = matched(own, {name: found.get(name, []) for name in suite.sweep}, primary)
    what = "evidence judge above the pixel gradient at matched train reward, interval above 0"
    above_zero(what, control[0] if control else None)
    overlap = bootstrap(paired(own, found.get(suite.baseline, []), "iou"))
    figure = "" if overlap is None else str(overlap)
    asked.append(Bar(f"IoU not below `{suite.baseline}`", figure, None if overlap is None else overlap.value >= 0))
    named = average(own, f"{suite.judges[0].rpartition('/')[2]}/named")
    figure = "" if named is None else share(named)
    asked.append(Bar("named among 60 captions in 85 %", figure, None if named is None else named >= NAMED_BAR))
    mine, its = average(own, "janus"), average(found.get(suite.baseline, []), "janus")
    what = f"Janus rate not above `{suite.baseline}`'s"
    if mine is None or its is None:
        return [*asked, Bar(what, "", None)]
    return [*asked, Bar(what, f"{share(mine)} against {share(its)}", mine <= its)]


def bars_table(asked: Sequence[Bar]) -> list[str]:
    words = {True: "met", False: "**MISSED**", None: "not run yet"}
    return markdown(["bar", "found", ""], [[bar.what, bar.figure, words[bar.met]] for bar in asked])


# --------------------------------------------------------------------------------------------------------------- charts


def write_charts(suite: Suite, lines: Sequence[Line]) -> list[Path]:
    """Reward and judges over steps for the main methods; every method's lead over the baseline in the primary."""
    found = {label: own for label, own in rows(suite, lines).items() if label in suite.methods}
    heads = ["train reward", *(name.rpartition("/")[2] for name in suite.judges)]
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {head: {} for head in heads}
    for label, own in found.items():
        if suite.methods[label].main or len(found) <= 8:
            for index, head in enumerate(heads, start=1):
                panels[head][label] = mean_curve(own, index)
    primary = f"{heads[1]}/score"
    leads = {}
    for label, own in found.items():
        interval = bootstrap(paired(own, found.get(suite.baseline, []), primary))
        if interval is not None and label != suite.baseline:
            leads[label] = (interval.value, interval.low, interval.high)
    title = f"{heads[1]} judge: lead over {suite.baseline}, 95 % intervals over captions"
    pictures = {"curves": curves(panels, across="steps")} | ({"leads": intervals(leads, title=title)} if leads else {})
    for name, picture in pictures.items():
        (RESULTS / f"{suite.name}-{name}.svg").write_text(picture, encoding="utf-8")
    return [RESULTS / f"{suite.name}-{name}.svg" for name in pictures]


def mean_curve(lines: Sequence[Line], index: int) -> list[tuple[float, float]]:
    """Over the runs that were looked at after the same steps; relative to the truth's own score."""
    by_step: dict[float, list[float]] = {}
    for line in lines:
        for point in line["curve"]:
            by_step.setdefault(point[0], []).append(point[index])
    return [(step, float(np.mean(values))) for step, values in sorted(by_step.items())]


def write_strips(suite: Suite, lines: Sequence[Line], made_file: Callable[[Job], Path]) -> Path | None:
    """A few captions down, the main methods across, four sides of each mesh; None where what was made is not here."""
    from PIL import Image, ImageDraw

    from psd.suite import jobs
    from psd.tiny.scenes import Distilled

    files = {
        (job.method, job.preset.prompt): made_file(job)
        for job in jobs(suite, read_lines(RESULTS / f"{suite.name}.jsonl"))
        if job.preset.seed == 0 and job.budget == "steps" and suite.methods[job.method].main
    }
    methods = list(dict.fromkeys(method for method, _ in files))
    prompts = list(dict.fromkeys(prompt for _, prompt in files))
    prompts = prompts[:: max(1, len(prompts) // STRIP_PROMPTS)][:STRIP_PROMPTS]
    if not lines or not all(files[method, prompt].is_file() for method in methods for prompt in prompts):
        return None
    size, line, gap = 64, 14, 6
    canvas = Image.new("RGB", (len(methods) * (4 * size + gap), line + len(prompts) * (size + line)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, method in enumerate(methods):
        draw.text((column * (4 * size + gap) + 2, 1), method, fill="black")
        for row, prompt in enumerate(prompts):
            x, y = column * (4 * size + gap), line + row * (size + line)
            if column == 0:
                draw.text((2, y), prompt, fill=(110, 110, 110))
            pictures = Distilled.load(files[method, prompt]).arrays.get("pictures", ())
            for view, picture in enumerate(pictures[::2]):
                canvas.paste(Image.fromarray(picture).resize((size, size)), (x + view * size, y + line))
    path = RESULTS / f"{suite.name}-strips.jpg"
    canvas.save(path, quality=88)
    return path


# --------------------------------------------------------------------------------------------------------------- report

GUIDE = (
    "Scores are over the ground truth's own (0: as good as the truth); cost is what all calls of the networks come to, "
    "in images through the U-Net, by the bench; texture is fine texture over the truth's, inconsistency the "
    "reprojected colour error over the truth's, above truth the share of runs whose train reward exceeds the truth's, "
    "diverging the share whose reward rose at the end while every judge fell."
)
GUIDE_WITHOUT_TRUTH = (
    "Scores are raw, of the field's last preview; inconsistency is its reprojected colour error; cost is what all "
    "calls of the networks come to, in images through the U-Net; diverging is the share of runs whose reward rose at "
    "the end while every judge fell."
)


def suites() -> list[Suite]:
    """Those that ship, the main one first."""
    found = [Suite.load(path) for path in sorted(SUITES.glob("*.yaml"))]
    return sorted(found, key=lambda suite: not suite.bars)


def recorded(suite: Suite) -> tuple[list[dict[str, Any]], int]:
    """The lines that still hold, and how many runs are missing."""
    lines = read_lines(RESULTS / f"{suite.name}.jsonl")
    try:
        found = current(suite, lines)[0] if lines else []
    except MissingError:  # without the list of prompts nobody can tell which lines hold: they are taken at their word
        runs = [line for line in lines if line["kind"] == "run" and line["method"] in suite.methods]
        found = [{**line, "cost": cost(line, suite.costs)} for line in runs]
    return found, suite.planned - len(found)


def suite_report(suite: Suite, lines: Sequence[Line], missing: int) -> str:
    """The whole of what a suite says, as Markdown; pictures are named where they are there."""
    methods = [f"- `{name}`: {method.about}" for name, method in suite.methods.items()]
    parts = [f"# {suite.name}", "", suite.about, "", *methods, "", standing(lines, missing), ""]
    if lines:
        guide = GUIDE if suite.truth else GUIDE_WITHOUT_TRUTH
        parts += ["## Measures", "", guide, "", *measures_table(suite, lines), ""]
        if gained := differences_table(suite, lines):
            parts += [f"## Differences to `{suite.baseline}`, paired, with 95 % intervals", "", *gained, ""]
        if sentences := matched_sentences(suite, lines):
            parts += [f"## `{suite.reference}` against the swept control at its own train reward", "", *sentences, ""]
        if suite.bars:
            parts += ["## Bars", "", *bars_table(bars(suite, lines)), ""]
    for name in ("curves.svg", "leads.svg", "strips.jpg"):
        if lines and (RESULTS / f"{suite.name}-{name}").is_file():
            parts += [f"![{name.partition('.')[0]}]({suite.name}-{name})", ""]
    return "\n".join(parts)


def standing(lines: Sequence[Line], missing: int) -> str:
    """How much of the suite has been run, what it took, and what it takes."""
    total = len(lines) + missing
    if not lines:
        return f"Not run yet with the present weights: {total} runs are to do."
    seconds = sum(line["seconds"] for line in lines)
    whole_h = seconds / len(lines) * total / 3600
    memory = max(line.get("peak_memory_bytes") or 0 for line in lines) / 1e9
    done = f"{len(lines)} of {total} runs" if missing else f"All {total} runs"
    return f"{done}; the whole suite takes about {math.ceil(whole_h)} hours of one core" + (
        f", at most {memory:.1f} GB a process." if memory else "."
    )


def section() -> str:
    """README.md's section: the main suite's table, leads and bars; the others by their state."""
    parts = [BEGIN]
    for suite in suites():
        lines, missing = recorded(suite)
        page = f"[{suite.name}](assets/results/{suite.name}.md)"
        if not suite.bars:
            parts += [f"- {page}: {suite.about} {standing(lines, missing)}"]
            continue
        parts += [f"**{page}**: {suite.about} {standing(lines, missing)}", ""]
        if lines:
            main = [line for line in lines if suite.methods[line["method"]].main]
            parts += [GUIDE, "", *measures_table(suite, main, brief=True), "", *differences_table(suite, main), ""]
            parts += [*bars_table(bars(suite, lines)), ""]
            for name in ("curves.svg", "leads.svg", "strips.jpg"):
                if (RESULTS / f"{suite.name}-{name}").is_file():
                    parts += [f"![{name.partition('.')[0]}](assets/results/{suite.name}-{name})", ""]
    return "\n".join([*parts, END])


def write_report() -> int:
    """Every suite's page and charts, and README.md's section; prints the bars."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for suite in suites():
        lines, missing = recorded(suite)
        if lines:
            write_charts(suite, lines)
        (RESULTS / f"{suite.name}.md").write_text(suite_report(suite, lines, missing), encoding="utf-8")
        print(f"{suite.name}: {standing(lines, missing)}")
        if suite.bars:
            for bar in bars(suite, lines):
                verdict = {True: "met", False: "MISSED", None: "not run yet"}[bar.met]
                print(f"  {bar.what:76} {bar.figure:24} {verdict}")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(replaced(text, section()), encoding="utf-8")
    return 0


def replaced(text: str, new: str) -> str:
    """README.md with its section; the markers tell where."""
    found, count = re.subn(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: new, text, count=1, flags=re.DOTALL)
    if not count:
        raise ValueError(f"README.md lacks the markers {BEGIN} ... {END}: put them back")
    return found
