"""``python -m psd embedded ship``: trained weights into ``assets/``, each folder with its model card.

A card says what the model is, how it was trained, what it measures and the sha256 of each file that decides what it
computes (the lines that loading and ``python -m psd doctor`` check).  Figures come from ``training.json`` and
``assets/results``; run again after ``evaluate`` to bring the cards up to date.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from psd.embedded.training import data
from psd.embedded.training.autoencoder import forget_keys
from psd.evaluation.experiments.suite import ROOT
from psd.evaluation.shipped.critics import CRITICS, MILDEST
from psd.evaluation.shipped.figures import record_file
from psd.models.checkpoints import digests

ABOUT = {
    "prior": "Text-conditioned multi-view latent diffusion prior of the embedded world: four joint views of 64 px, a "
    "`UNet2DConditionModel` with MVDream's camera condition and joint self-attention, a `CLIPTextModel` with its "
    "word tokenizer, an `AutoencoderTiny` (8 x 16 x 16 latents), v-prediction on the squared-cosine schedule.",
    "reward": "The reward that runs are trained on: a convolutional image tower and a GRU "
    "(`psd.models.rewards.critic_networks.TwoTowerCritic`).  Caption match with hard negatives and Bradley-Terry on "
    "graded degradations; it never saw diffusion noise.",
    "selector": "The selector judge, which the app may use for early stop and best checkpoint: a `CLIPModel` (8 px "
    "patches, causal text tower).",
    "evidence": "The evidence judge: the caption modulates convolutions over the image "
    "(`psd.models.rewards.critic_networks.ModulatedCritic`).  It measures; no run ever sees it.",
    "referee": "The second evidence judge, of yet another architecture: words attend to patches "
    "(`psd.models.rewards.critic_networks.WordCritic`).  It measures; no run ever sees it.",
}
AUTOENCODER = (
    "`vae`, with a training of its own on such pictures (`docs/embedded.md`).  What it costs the judge, and what "
    "colour error between views it adds, tell the figures of truths through it above."
)
UNTOLD = ("model", "captions")  # of a training record: a card says both in words
DATA = (
    "Pictures of 611 low-poly objects of 288 kinds by Kenney and Quaternius, both released under CC0 1.0 "
    "(`docs/embedded.md`), of primitives, and of pairs of them, rasterised by this project; no other data.  {captions}."
    '  About 5 % of the pictures are degraded and captioned "low quality blurry".'
)


def card_text(name: str, folder: Path) -> str:
    """The model card of the shipped ``name`` in ``folder``, as Markdown: training, figures and digests."""
    training = json.loads((folder / "training.json").read_text())
    captions = training.get("captions", data.HELD_OUT)
    lines = [
        "---", "license: apache-2.0", "---", "", f"# {name}", "", ABOUT[name], "",
        "## Training", "", DATA.format(captions=captions), "",
        *list_record(training), "",
    ]  # fmt: skip
    figures = read_figures(name)
    if figures:
        lines += [
            "## Measured on the captions of the evaluation list",
            "",
            *(f"- {key}: {value}" for key, value in figures.items()),
            "",
        ]
    if (part := folder / "vae" / "training.json").is_file():
        lines += ["## Autoencoder", "", AUTOENCODER, "", *list_record(json.loads(part.read_text())), ""]
    lines += ["## Weights", "", "```"]
    lines += [f"{digests.compute_digest(folder / file)}  {file}" for file in digests.list_decisive_files(folder)]
    return "\n".join([*lines, "```", ""])


def list_record(training: dict[str, Any]) -> list[str]:
    """The lines of a card that tell a training record."""
    return [f"- {key.replace('_', ' ')}: {value}" for key, value in training.items() if key not in UNTOLD]


def read_figures(name: str) -> dict[str, str]:
    """What ``evaluate`` recorded of this model."""
    kind = "critics" if name in CRITICS else name
    path = record_file(kind)
    if not path.exists():
        return {}
    record = json.loads(path.read_text())
    if name in CRITICS:
        if name not in record:  # measured before this critic was trained
            return {}
        return {describe_figure(key): f"{value:.3f}" for key, value in record[name].items()}
    top1 = {f"top-1 of 60, {key}": f"{value:.3f}" for key, value in record["top1_of_60"].items()}
    top1 |= {f"outside judge, among five, {key}": f"{value:.3f}" for key, value in record["outside_among_five"].items()}
    ratios = {"": "ratio", ", of ground truth through the autoencoder": "autoencoded_ratio"}
    errors = {f"reprojected colour error over ground truth's{of}": record["consistency"][k] for of, k in ratios.items()}
    return top1 | {name: f"{value:.2f}" for name, value in errors.items()}


def describe_figure(figure: str) -> str:
    """A critic's figure in words; with the strength at which a degraded picture is distinguished from the clean one."""
    kind = figure.removeprefix("pair_")
    strength = f" at strength {MILDEST[kind]:g}" if figure != kind and kind in MILDEST else ""
    return figure.replace("_", " ") + strength


def forget_machine(folder: Path) -> None:
    """Take the place where a model was once read from out of its configurations: it is one of the training machine."""
    for path in folder.rglob("config.json"):
        if "_name_or_path" in json.loads(path.read_text(encoding="utf-8")):
            forget_keys(path, "_name_or_path")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="*", metavar="model", help="default: all that are there")
    parser.add_argument("--work", default="work/train", help="where `train` put its shipped folders")
    parser.add_argument("--cards-only", action="store_true", help="only write the cards again")


def main(arguments: argparse.Namespace) -> int:
    def source_folder(name: str) -> Path:
        return ROOT / "assets" / name if arguments.cards_only else Path(arguments.work) / name / "shipped"

    there = [name for name in ABOUT if (source_folder(name) / "training.json").is_file()]
    if absent := [name for name in arguments.models if name not in there]:
        print(
            f"no trained model in {source_folder(absent[0])}: train it first (there: {', '.join(there)})",
            file=sys.stderr,
        )
        return 2
    for name in arguments.models or there:
        target = ROOT / "assets" / name
        if not arguments.cards_only:
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source_folder(name), target)
        forget_machine(target)
        (target / "README.md").write_text(card_text(name, target), encoding="utf-8")
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        print(f"{target.relative_to(ROOT)}: {size / 1e6:.1f} MB")
    return 0
