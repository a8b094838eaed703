"""The table of `make test-gpu`: each GPU test with its outcome and the figures that it recorded."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import torch


def table(report: Path) -> str:
    """Rows of pytest's JUnit report."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no NVIDIA GPU"
    lines = [f"{name}, torch {torch.__version__}", ""]
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = [kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None]
        figures = [f"{item.get('name')} {item.get('value')}" for item in case.iter("property")]
        why = [(case.find(kind).get("message") or "").partition("\n")[0] for kind in kinds]  # type: ignore[union-attr]
        lines.append(f"{(kinds or ['passed'])[0]:8} {case.get('name'):60} {', '.join([*figures, *why])}")
    seconds = sum(float(case.get("time", 0)) for case in ElementTree.parse(report).iter("testcase"))
    lines.append(f"\n{seconds:.0f} s")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
