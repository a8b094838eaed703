"""What `make test-gpu` found: a table on the terminal and, from a GPU, a record of it in assets/results/.

`python tests/gpu_table.py REPORT [--record FOLDER] [--commit HASH]`, REPORT as pytest's ``--junit-xml`` writes it.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "diffusers", "transformers")
UNKNOWN = "not known"
LATE = "not begun within"  # why a test was skipped when time had run out


@dataclass(frozen=True)
class Row:
    """A test: how it ended, the figures that it recorded, and why it did not pass."""

    test: str
    outcome: str  # passed, failure, error or skipped
    seconds: float
    figures: dict[str, str]
    why: str = ""


def rows(report: Path) -> list[Row]:
    """The tests of pytest's JUnit report, in its order."""
    found = []
    for case in ElementTree.parse(report).iter("testcase"):
        wrong = [element for kind in ("failure", "error", "skipped") if (element := case.find(kind)) is not None]
        figures = {item.get("name", ""): item.get("value", "") for item in case.iter("property")}
        why = "; ".join((element.get("message") or "").partition("\n")[0] for element in wrong)
        outcome = wrong[0].tag if wrong else "passed"
        found.append(Row(case.get("name", ""), outcome, float(case.get("time", 0)), figures, why))
    return found


def machine(commit: str = "") -> dict[str, str]:
    """What figures depend on; ``commit`` is asked of git where it is not given."""
    return {
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "driver": told("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0],
        "CUDA": torch.version.cuda or "none",
        "python": platform.python_version(),
        **{name: installed(name) for name in PACKAGES},
        "commit": commit or told("git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=, and changes"),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def told(*command: str) -> str:
    """What a program says; "not known" where there is none, or it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    return done.stdout.strip() or UNKNOWN


def installed(package: str) -> str:
    if package == "torch":
        return torch.__version__  # with its build, which the package's version need not say
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def table(found: Sequence[Row], where: dict[str, str]) -> str:
    """For a terminal."""
    lines = [f"{where['card'] or 'no NVIDIA GPU'}, torch {where['torch']}", ""]
    for row in found:
        figures = [f"{name} {value}" for name, value in row.figures.items()]
        lines.append(f"{row.outcome:8} {row.test:60} {', '.join([*figures, *([row.why] if row.why else [])])}")
    return "\n".join([*lines, "", f"{sum(row.seconds for row in found):.0f} s"])


def page(found: Sequence[Row], where: dict[str, str]) -> str:
    """In Markdown."""

    def cell(text: str) -> str:
        return text.replace("|", r"\|")

    counts = {
        outcome: sum(row.outcome == outcome for row in found) for outcome in dict.fromkeys(r.outcome for r in found)
    }
    lines = [f"# {where['card']}", ""]
    lines += ["What `make test-gpu` measured, with random weights in the exact shapes of the released models: "]
    lines[-1] += ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    lines[-1] += f", {sum(row.seconds for row in found):.0f} s."
    lines += ["", "| machine | |", "|---|---|", *(f"| {name} | {cell(value)} |" for name, value in where.items())]
    lines += ["", "| test | outcome | figures |", "|---|---|---|"]
    for row in found:
        figures = "<br>".join(f"{name}: {value}" for name, value in row.figures.items())
        lines.append(f"| {cell(row.test)} | {row.outcome} | {cell('<br>'.join(filter(None, (figures, row.why))))} |")
    return "\n".join(lines) + "\n"


def record(found: Sequence[Row], where: dict[str, str], folder: Path) -> list[Path]:
    """Writes ``gpu-<card>.json`` and ``.md`` into ``folder``, over those of an earlier call on such a card.

    Nothing without a GPU, or where no test came to its end: a record of nothing would replace one of something.  Where
    time ran out (`LATE`) they stand beside it as ``gpu-<card>-part``, until the next whole one.
    """
    if not where["card"] or not any(row.outcome in ("passed", "failure") for row in found):
        return []
    part = "-part" if any(row.why.startswith(LATE) for row in found) else ""
    slug = "-".join(re.findall(r"[a-z0-9]+", where["card"].lower().removeprefix("nvidia")))
    files = {end: [folder / f"gpu-{slug}{end}{suffix}" for suffix in (".json", ".md")] for end in ("", "-part")}
    if not part:
        for path in files["-part"]:
            path.unlink(missing_ok=True)
    json_file, page_file = files[part]
    text = json.dumps({"machine": where, "tests": [asdict(row) for row in found]}, indent=1, ensure_ascii=False)
    json_file.write_text(f"{text}\n", encoding="utf-8")
    page_file.write_text(page(found, where), encoding="utf-8")
    return [json_file, page_file]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Tell what `make test-gpu` found.")
    parser.add_argument("report", type=Path)
    parser.add_argument("--record", type=Path, metavar="FOLDER")
    parser.add_argument("--commit", default="", help="where git cannot say")
    given = parser.parse_args(argv)
    found, where = rows(given.report), machine(given.commit)
    print(table(found, where))
    for path in record(found, where, given.record) if given.record else []:
        print(f"written: {path}")


if __name__ == "__main__":
    main()
