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
        lines.append(f"{(kinds or ['passed'])[0]:8} {case.get('name'):60} {', '.join(figures)}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
