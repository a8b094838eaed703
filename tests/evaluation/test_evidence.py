"""The bench: suites and their jobs, lines that go stale, paired statistics against references, a report that holds."""

import json
import math
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import norm, t

from psd.__main__ import main
from psd.config.errors import MissingError, PresetError
from psd.config.preset import DEFAULT_PRESET, Preset
from psd.embedded.captions import grammar
from psd.embedded.objects.collection import VARIABLE, find_collection
from psd.evaluation import command
from psd.evaluation.experiments import measure, run, suite
from psd.evaluation.experiments.record import RecordedRun
from psd.evaluation.experiments.suite import (
    SUITES,
    Suite,
    expand_jobs,
    list_probes,
    make_probe,
    match_lines,
    read_lines,
)
from psd.evaluation.report import statistics, write
from psd.evaluation.report.charts import draw_curves, draw_intervals, ticks_within
from psd.evaluation.report.criteria import check_criteria, criteria_table
from psd.evaluation.report.tables import (
    differences_table,
    leading_columns,
    matched_table,
    measure_columns,
    measures_table,
    reference_table,
    table_groups,
)
from psd.runs.store.files import append_line

SMALL = """
about: two methods and a swept control
preset: tiny
set: {steps: 6}
captions: [a red tree, a blue tree, a pink table, a green table, a black flower, a white flower]
main: {prompts: 6, seeds: 2}
others: {prompts: 2, seeds: 1}
judges: [assets/evidence]
reference: steered
baseline: sds
beaten: [sds]
sweep: [weak, strong]
bars: true
methods:
  sds: {about: no preference, set: {method: sds}, main: true, equal_cost: true}
  steered: {about: the steered pair, set: {negative: false}, main: true}
  weak: {about: weight 0.5, set: {method: reward_gradient, reward_gradient_weight: 0.5}, main: true}
  strong: {about: weight 2, set: {method: reward_gradient, reward_gradient_weight: 2}, main: true}
  best: {about: the best of four, set: {method: sds}, of: 4}
"""


def small(tmp_path: Path, text: str = SMALL) -> Suite:
    path = tmp_path / "small.yaml"
    path.write_text(text)
    return Suite.load(path)


def probe_line(found: Suite, method: str, cost: float) -> dict:
    return {**make_probe(found, method).key, "steps": 6, "calls": {"unet": [cost, 0]}, "seconds": 1.0}


def run_line(job: suite.PlannedRun, **measures: object) -> dict:
    values = {
        "iou": 0.7,
        "colour_psnr": 15.0,
        "reward": -1.0,
        "evidence/score": -0.5,
        "evidence/raw": -2.0,
        "evidence/named": 1.0,
        "evidence/truth_named": 1.0,
        "seconds": 9,
    }
    curve = [[step, -3 + step / 6, -4 + step / 6] for step in range(7)]
    return {**job.key, "group": "thing", "curve": curve, "calls": {"unet": [50, 0]}, **values, **measures}


# -------------------------------------------------------------------------------------------------------------- suites


@pytest.fixture
def public_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for the list of a public suite, which is not ours to ship."""
    monkeypatch.setattr(suite, "PROMPTS", tmp_path)
    path = tmp_path / "t3bench" / "prompt_single.txt"
    path.parent.mkdir()
    path.write_text("".join(f"A red tree number {number}\n" for number in range(1, 101)))
    return path


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_suite_that_ships_expands_into_distinct_paired_runs(path: Path, public_list: Path) -> None:
    found = Suite.load(path)
    runs = expand_jobs(found, [])
    assert len({(job.method, job.budget, job.preset.prompt, job.preset.seed) for job in runs}) == len(runs)
    for job in runs:
        assert job.preset.negative_prompt == runs[0].preset.negative_prompt and job.preset.threads == 1
    assert all(judge not in job.preset.rewards for job in runs for judge in job.judges)
    assert [path.stem for path in SUITES.glob("*.yaml") if Suite.load(path).bars] == ["embedded"]


def test_the_main_suite_is_as_large_as_was_promised() -> None:
    main = Suite.load(SUITES / "embedded.yaml")
    assert len(main.prompts(main.main)) >= 24 and main.main.seeds >= 3 and len(main.judges) >= 2
    inside = {"sds_1", "sds_2", "best_of_four", "random_pair", "steered", "steered_n"}
    assert inside <= {name for name, method in main.methods.items() if method.main}
    assert main.captions == "confirm" and main.methods["best_of_four"].of == 4


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_what_is_reported_was_not_tuned_on(path: Path, public_list: Path) -> None:
    """`tuning` asks the captions that defaults may be chosen by; no other suite asks any of them."""
    found = Suite.load(path)
    shared = set(found.prompts(found.main)) & set(suite.read_caption_list("tuning"))
    assert len(shared) == (found.main.prompts if path.stem == "tuning" else 0)
    if found.truth:  # a thing without a colour word cannot be held out
        asked = map(grammar.parse, found.prompts(found.main))
        assert all(grammar.is_held_out(it) for it in asked if it.colour or it.relation)


def test_the_main_report_asks_about_the_field_as_it_ships() -> None:
    found = Suite.load(SUITES / "embedded.yaml")
    field = suite.with_preview_interval(Preset.load("tiny", {**found.set, "threads": 1, "judges": []}))
    assert found.values(found.reference) == field


def test_the_default_preset_is_one_of_the_pipelines_that_were_compared() -> None:
    found = Suite.load(SUITES / "pipelines.yaml")
    default = suite.with_preview_interval(Preset.load(DEFAULT_PRESET, {"threads": 1, "judges": []}))
    assert default in [found.values(name) for name in found.methods]


def test_the_large_suite_asks_every_method_of_the_main_one() -> None:
    """The pixel gradient's weights are its own: they depend on the reward's scale; and it has no selector."""
    main, large = (
        {name for name in Suite.load(SUITES / f"{name}.yaml").methods if not name.startswith("pixel")}
        for name in ("embedded", "large")
    )
    assert main - large == {"best_of_four"}


def test_a_method_may_start_from_a_preset_of_its_own() -> None:
    """Each pipeline is the preset that ships, with and without preference, and compared with itself without."""
    found = Suite.load(SUITES / "pipelines.yaml")
    for prefix, preset in (("", "tiny"), ("surface_", "tiny-surface"), ("gaussians_", "tiny-gaussians")):
        whole = suite.with_preview_interval(Preset.load(preset, {"threads": 1, "judges": []}))
        assert found.values(f"{prefix}steered_n") == whole
        plain = {"pair": "random", "preference_weight": 0.0, "negative": False}
        assert found.values(f"{prefix}sds_2") == whole.with_values(plain)
        assert found.against(f"{prefix}steered_n") == f"{prefix}sds_2"
    surface = Preset.load("tiny-surface")
    for name in ("gaussians_surface_steered_n", "gaussians_surface_sds_2"):
        assert (
            found.values(name).stages[-1] == surface.stages[-1] and found.values(name).mesh_faces == surface.mesh_faces
        )


def test_no_surface_of_the_pipelines_was_decimated() -> None:
    """Each of those meshes is the surface that was optimised, with all of its faces."""
    found = Suite.load(SUITES / "pipelines.yaml")
    lines, _ = suite.match_lines(found, suite.read_lines(suite.RESULTS / "pipelines.jsonl"))
    made = [line for line in lines if "surface" in line["method"]]
    assert len(made) == 96
    assert all(line["faces"] < found.values(line["method"]).mesh_faces for line in made)


def test_jobs_are_the_main_methods_in_full_and_the_others_in_part(tmp_path: Path) -> None:
    found = small(tmp_path)
    counts = {name: sum(job.method == name for job in expand_jobs(found, [])) for name in found.methods}
    assert counts == {"sds": 12, "steered": 12, "weak": 12, "strong": 12, "best": 2}  # without those at equal cost
    assert [job.method for job in list_probes(found)] == ["sds", "steered"]


def test_a_suite_that_is_cut_short_has_run_its_main_methods_on_captions_of_all_groups() -> None:
    found = Suite.load(SUITES / "embedded.yaml")
    runs = expand_jobs(found, [probe_line(found, name, 48.0) for name in found.methods])
    methods = [name for name, method in found.methods.items() if method.main]
    first = runs[: 8 * len(methods)]
    assert [job.method for job in first[: len(methods)]] == methods and {job.preset.seed for job in first} == {0}
    groups = {grammar.parse(job.preset.prompt).group for job in first}
    assert groups == {"primitive", "pair", "thing"} and len({job.preset.prompt for job in first}) == 8
    assert {job.budget for job in runs[: 24 * len(methods)]} == {"steps"}


def test_equal_cost_gives_the_cheap_method_more_steps(tmp_path: Path) -> None:
    found = small(tmp_path)
    runs = expand_jobs(found, [probe_line(found, "sds", 48), probe_line(found, "steered", 72)])
    cheap = [job.preset.steps for job in runs if (job.method, job.budget) == ("sds", "cost")]
    assert cheap == [9] * 2  # 72 / 48 of 6 steps, on the smaller part
    assert len(runs) == found.planned_runs == 48 + 2 + 2


def test_the_best_of_four_has_four_seeds_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run of one seed is among another's four; the best is no run alone, and another selector's is another."""
    runs = expand_jobs(small(tmp_path, SMALL.replace("of: 4", "of: 4, main: true")), [])
    seeds = {job.preset.seed: [part.preset.seed for part in job.parts] for job in runs if job.method == "best"}
    assert seeds == {0: [0, 1, 2, 3], 1: [4, 5, 6, 7]}
    single, best = (
        next(job for job in runs if job.method == name and job.preset.seed == 0) for name in ("sds", "best")
    )
    assert single.parts == [single] and best.parts[0].outcome_hash == single.outcome_hash != best.outcome_hash
    original, before = suite.model_hash, best.outcome_hash
    monkeypatch.setattr(suite, "model_hash", lambda source: "new" if source == suite.SELECTOR else original(source))
    assert best.outcome_hash != before and best.parts[0].outcome_hash == single.outcome_hash


def test_a_line_holds_until_its_preset_its_weights_or_its_judge_change(tmp_path: Path, monkeypatch) -> None:
    found = small(tmp_path)
    todo = expand_jobs(found, [])
    lines = [run_line(job) for job in todo]
    kept, missing = match_lines(found, lines)
    assert len(kept) == len(todo) and not missing
    changed = small(tmp_path, SMALL.replace("reward_gradient_weight: 2}", "reward_gradient_weight: 3}"))
    kept, missing = match_lines(changed, lines)
    assert {job.method for job in missing} == {"strong"} and len(kept) == len(todo) - 12
    renamed = small(tmp_path, SMALL.replace("sds", "plain").replace("method: plain", "method: sds"))
    kept, missing = match_lines(renamed, lines)  # a run is what it is, whatever its row is called
    assert not missing and {line["method"] for line in kept} == {"plain", "steered", "weak", "strong", "best"}
    original = suite.model_hash
    for name in ("assets/reward", "assets/prior", "assets/evidence"):
        monkeypatch.setattr(
            suite, "model_hash", lambda source, name=name: "new" if source == name else original(source)
        )
        assert not match_lines(found, lines)[0]
    monkeypatch.setattr(suite, "model_hash", original)
    monkeypatch.setattr(suite, "MEASURES", suite.MEASURES + 1)
    assert not match_lines(found, lines)[0]
    assert (
        todo[0].outcome_hash == expand_jobs(found, [])[0].outcome_hash
    )  # what was made is still good: it is measured again


def test_the_weights_of_all_stages_decide_the_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = expand_jobs(small(tmp_path), [])[0]
    stages = [{"share": 0.5}, {"share": 0.5, "prior": "later", "rewards": {"other": 2.0}}]
    job = replace(job, preset=job.preset.with_values({"stages": stages}))
    before = job.outcome_hash
    for changed in (job.preset.prior, *job.preset.rewards, "later", "other"):
        monkeypatch.setattr(suite, "model_hash", lambda name, changed=changed: f"{name}{name == changed}")
        hashed = job.outcome_hash
        monkeypatch.setattr(suite, "model_hash", lambda name: f"{name}{False}")
        assert hashed != job.outcome_hash != before


def test_only_what_differs_from_the_defaults_counts(tmp_path: Path) -> None:
    """So that a key that comes later, with a default under which nothing changes, leaves recorded lines as they are."""
    job = expand_jobs(small(tmp_path), [])[0]

    def made(**values: Any) -> str:
        return replace(job, preset=job.preset.with_values(values)).outcome_hash

    class Later(Preset):
        key_of_tomorrow: float = 0.0

    assert replace(job, preset=Later.model_validate(job.preset.model_dump())).outcome_hash == job.outcome_hash
    assert made(reward_views=1) != job.outcome_hash and made(reward_views=0) == job.outcome_hash


def test_the_hash_of_weights_follows_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"one")
    (folder / "training.json").write_text("{}")
    before = suite.model_hash(str(folder))
    suite.model_hash.cache_clear()
    (folder / "training.json").write_text('{"seconds": 5}')
    assert suite.model_hash(str(folder)) == before
    suite.model_hash.cache_clear()
    (folder / "model.safetensors").write_bytes(b"two")
    assert suite.model_hash(str(folder)) != before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("baseline: sds", "baseline: nobody"), "nobody"), (("steps: 6", "stepps: 6"), "stepps"),
        (("prompts: 6", "prompts: 7"), "lower prompts"), (("sweep:", "swep:"), "swep"),
        (("of: 4", "of: 0"), "of"), (("bars: true", "bars: true\ntruth: false"), "leave bars out"),
        (("of: 4", "against: nobody"), "best's against names 'nobody'"),
        (("of: 4", "of: 4, equal_cost: true"), "'best' is several runs"), (("of: 4", "preset: nowhere"), "nowhere"),
        (("bars: true", "compared_by: [beauty]"), "beauty"),
        (("beaten: [sds]", "beaten: [best]"), "bars ask all captions of 'best'"),
        (("captions: [a red tree, a blue tree, a pink table, a green table, a black flower, a white flower]",
          "captions: confirm24"), "no list of captions 'confirm24'; there are: confirm, "),
        (("reward_gradient_weight: 2}", "rewards: {assets/selector: 1}}"), "'strong' climbs other rewards"),
    ],
)  # fmt: skip
def test_wrong_suites_are_refused_by_name(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    with pytest.raises(PresetError, match=words):
        small(tmp_path, SMALL.replace(*change))


def test_lines_of_a_public_list_are_read_where_it_is_and_asked_for_where_not(public_list: Path) -> None:
    large = Suite.load(SUITES / "large.yaml")
    prompts = large.prompts(large.main)
    assert prompts[:2] == ["A red tree number 3", "A red tree number 9"] and len(prompts) == 16
    public_list.write_text("one\n\nthree\n")
    with pytest.raises(PresetError, match="no prompt on line 9; it has 3 lines"):
        large.prompts(large.main)
    public_list.unlink()
    large = Suite.load(SUITES / "large.yaml")  # still a suite: its page can be written
    assert large.planned_runs == 16 * 7 + 8 * 8
    with pytest.raises(MissingError, match="t3bench.*fetch it from https"):
        large.prompts(large.main)


NO_TRUTH = """
about: without a truth
preset: tiny
set: {steps: 2, mesh_resolution: 32}
truth: false
captions: {file: t3bench/prompt_single.txt, origin: nowhere, lines: [2]}
main: {prompts: 1, seeds: 1}
others: {prompts: 1, seeds: 1}
judges: [assets/evidence]
reference: steered
baseline: sds
methods:
  sds: {about: no preference, set: {method: sds}}
  steered: {about: the steered pair, set: {negative: false}}
"""


def test_without_a_truth_a_run_is_measured_by_raw_scores(
    tmp_path: Path, public_list: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole runs of two steps, from a public list to the page."""
    monkeypatch.setattr(run, "WORK", tmp_path / "made")
    monkeypatch.setattr(write, "RESULTS", tmp_path)
    public_list.write_text("a chair\na red tree\n")
    found = small(tmp_path, NO_TRUTH)
    lines = [run.run_job(job) for job in expand_jobs(found, [])]
    assert [line["prompt"] for line in lines] == ["a red tree"] * 2
    for line in lines:
        assert {"reward", "evidence/score", "watertight", "seconds"} <= set(line)
        assert line["curve"][-1][1:] == [pytest.approx(line[key], abs=1e-3) for key in ("reward", "evidence/score")]
        assert not {"iou", "evidence/named"} & set(line)
    page = write.suite_report(found, match_lines(found, lines)[0], 0)
    assert "Scores are raw" in page and "| method | evidence | train reward |" in page
    assert "IoU" not in page and "above truth" not in page
    (tmp_path / "small.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    public_list.unlink()
    assert len(write.valid_lines(found)[0]) == 2  # taken at their word


def test_a_cut_line_is_no_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"kind": "run"}\n{"kind": "ru')
    assert read_lines(path) == [{"kind": "run"}] and read_lines(tmp_path / "none.jsonl") == []


def test_missing_weights_are_told_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = small(tmp_path, SMALL.replace("judges: [assets/evidence]", "judges: [assets/nowhere]"))
    with pytest.raises(MissingError, match="nowhere"):
        run.require_weights(found)
    monkeypatch.setattr(run, "SELECTOR", "assets/elsewhere")
    with pytest.raises(MissingError, match="elsewhere"):
        run.require_weights(small(tmp_path))
    run.require_weights(small(tmp_path, SMALL.replace(", of: 4", "")))


# ---------------------------------------------------------------------------------------------------------- statistics


def runs_of(values: dict[tuple[str, int], float], measure: str = "x") -> statistics.Runs:
    return statistics.tabulate_runs(
        {"prompt": prompt, "seed": seed, measure: value} for (prompt, seed), value in values.items()
    )


def differences_of(values: Mapping[str, Sequence[float]]) -> pd.Series:
    """By caption those of its seeds."""
    by_run = {(prompt, seed): value for prompt, own in values.items() for seed, value in enumerate(own)}
    return statistics.measure_values(runs_of(by_run), "x")


def test_differences_are_taken_run_by_run() -> None:
    one = runs_of({("a", 0): 3.0, ("a", 1): 5.0, ("b", 0): 1.0, ("c", 0): 9.0})
    other = runs_of({("a", 0): 1.0, ("a", 1): 2.0, ("b", 0): 4.0})
    assert statistics.pair_differences(one, other, "x").to_dict() == {("a", 0): 2.0, ("a", 1): 3.0, ("b", 0): -3.0}
    assert statistics.pair_differences(
        one, statistics.tabulate_runs([{"prompt": "a", "seed": 0, "x": None}]), "x"
    ).empty
    some = statistics.tabulate_runs(
        [{"prompt": "a", "seed": seed, **value} for seed, value in enumerate([{"x": 1.0}, {}, {"x": 3.0}])]
    )
    assert (
        statistics.mean_measure(some, "x") == 2.0
        and statistics.mean_measure(some, "y") is None
        and statistics.mean_measure(statistics.NO_RUNS, "x") is None
    )


def test_the_interval_is_that_of_the_mean_over_captions() -> None:
    """Against the normal approximation; seeds of a caption count as one, and a constant has no width."""
    rng = np.random.default_rng(5)
    means = rng.normal(0.3, 1.0, 200)
    found = statistics.bootstrap_mean(
        differences_of({str(i): [value - 0.1, value + 0.1] for i, value in enumerate(means)})
    )
    assert found is not None and found.value == pytest.approx(means.mean()) and found.prompts == 200
    half = 1.96 * means.std() / math.sqrt(200)
    assert found.ends == pytest.approx((means.mean() - half, means.mean() + half), abs=0.02)
    flat = statistics.bootstrap_mean(differences_of({prompt: [1.0] for prompt in "abcde"}))
    assert flat is not None and flat.ends == (1.0, 1.0)
    assert statistics.bootstrap_mean(differences_of({})) is None


@pytest.mark.parametrize("count", [6, 8, 12, 24])
def test_intervals_of_few_captions_are_as_wide_as_students(count: int) -> None:
    """Of quantiles of the normal distribution; plain percentiles are a quarter too narrow at 6."""
    values = norm.ppf((np.arange(count) + 0.5) / count)
    found = statistics.bootstrap_mean(differences_of({str(i): [float(value)] for i, value in enumerate(values)}))
    assert found is not None and found.ends is not None
    half = t.ppf(0.975, count - 1) * values.std(ddof=1) / math.sqrt(count)
    assert (found.ends[1] - found.ends[0]) / 2 == pytest.approx(half, rel=0.08)


def test_fewer_than_five_captions_make_no_interval() -> None:
    few, enough = (
        statistics.bootstrap_mean(differences_of({str(i): [float(i)] for i in range(count)})) for count in (4, 5)
    )
    assert few is not None and few.ends is None and few.positive is None and str(few) == "+1.50"
    assert enough is not None and enough.ends is not None and enough.ends[0] < 2.0 < enough.ends[1]


def test_a_win_rate_counts_signs_and_halves_ties() -> None:
    differences = differences_of({"a": [3.0, -1e9], "b": [0.0], "c": [-0.1, -0.2]})
    assert statistics.count_wins(differences).tolist() == [1, 0, 0.5, 0, 0]
    rate = statistics.bootstrap_mean(
        statistics.count_wins(differences_of({str(i): [1.0 if i < 6 else -100.0] for i in range(8)}))
    )
    assert rate is not None and rate.value == 0.75 and rate.positive


def sweep_runs(reward: float, score: float, captions: str = "abcde", slope: float = 0.0) -> statistics.Runs:
    """One run a caption, the reward rising by ``slope`` from one to the next about its mean."""
    middle = (len(captions) - 1) / 2
    return statistics.tabulate_runs(
        {"prompt": p, "seed": 0, "reward": reward + slope * (i - middle), "score": score}
        for i, p in enumerate(captions)
    )


def test_a_matched_control_is_mixed_to_the_references_reward() -> None:
    """Rewards 2 and 6 mixed to 3: three quarters of the weak control and one of the strong."""
    sweep = {"weak": sweep_runs(2.0, 10.0), "strong": sweep_runs(6.0, 14.0)}
    found = statistics.match_control(sweep_runs(3.0, 13.0), sweep, "score")
    assert found is not None and found.lead.value == pytest.approx(13 - 11)
    assert found.bracket == ("weak", "strong") and found.note == "between weak and strong"
    found = statistics.match_control(sweep_runs(9.0, 13.0), sweep, "score")
    assert found is not None and found.lead.value == pytest.approx(-1) and found.bracket is None
    assert "no bracket" in found.note and "+9.00" in found.note and "strong +6.00" in found.note
    assert statistics.match_control(statistics.NO_RUNS, sweep, "score") is None


def test_each_resample_of_a_matched_control_mixes_anew() -> None:
    """Against a loop; no measure differs within a method, so that all of the width is the share's."""
    own, weak, strong = sweep_runs(3.0, 13.0, slope=1.0), sweep_runs(2.0, 10.0), sweep_runs(6.0, 14.0)
    found = statistics.match_control(own, {"weak": weak, "strong": strong}, "score")
    leads, outside = [], 0
    for chosen in np.random.default_rng(0).integers(5, size=(10_000, 5)):
        weight = (own["reward"].to_numpy()[chosen].mean() - 2.0) / (6.0 - 2.0)
        outside += not 0 <= weight <= 1
        leads.append(13.0 - (10.0 + 4.0 * min(max(weight, 0.0), 1.0)))
    assert found is not None and found.lead.ends == pytest.approx(
        tuple(np.percentile(leads, statistics.expanded_percentiles(5)))
    )
    assert outside and f"outside the sweep in {outside / 10_000:.0%}" in found.note


def test_a_resample_beyond_the_enclosing_weights_reads_the_next() -> None:
    """Of captions with rewards 1 to 5 many resamples leave [2, 4]; the line there has another slope."""
    own = sweep_runs(3.0, 0.0, slope=1.0)
    sweep = {
        str(reward): sweep_runs(reward, score) for reward, score in ((0.0, 0.0), (2.0, 1.0), (4.0, 2.0), (6.0, 9.0))
    }
    found = statistics.match_control(own, sweep, "score")
    leads = [
        -np.interp(own["reward"].to_numpy()[chosen].mean(), [0, 2, 4, 6], [0, 1, 2, 9])
        for chosen in np.random.default_rng(0).integers(5, size=(10_000, 5))
    ]
    assert found is not None and found.bracket == ("2.0", "4.0") and found.note == "between 2.0 and 4.0"
    assert found.lead.ends == pytest.approx(tuple(np.percentile(leads, statistics.expanded_percentiles(5))))


def test_the_weights_that_enclose_count_on_all_their_captions() -> None:
    sweep = {"weakest": sweep_runs(0.0, 1.0, "ab"), "weak": sweep_runs(2.0, 10.0), "strong": sweep_runs(6.0, 14.0)}
    found = statistics.match_control(sweep_runs(3.0, 13.0), sweep, "score")
    assert found is not None and found.bracket == ("weak", "strong") and found.lead.prompts == 5


def test_every_method_is_compared_with_the_control_at_its_own_reward(tmp_path: Path) -> None:
    """Between the weights the control's PSNR is 10 to 14 at rewards 0 to 4; below the weakest it is the weakest's."""
    found = small(tmp_path)
    values = {"sds": (-1.0, 9.0), "steered": (3.0, 15.0), "weak": (0.0, 10.0), "strong": (4.0, 14.0)}
    lines = [
        run_line(job, reward=values[job.method][0], colour_psnr=values[job.method][1])
        for job in expand_jobs(found, [])
        if job.method in values and job.budget == "steps"
    ]
    body = {row.split(" | ")[0]: row.split(" | ") for row in matched_table(found, lines)}
    assert list(body) == ["| method", "|---|---|---|---|---|---|", "| `sds`", "| `steered`"]
    column = body["| method"].index("PSNR")
    assert body["| `steered`"][1] == "6" and body["| `steered`"][column] == "+2.00 [+2.00, +2.00]"
    assert body["| `sds`"][column].startswith("-1.00") and "no bracket" in body["| `sds`"][-1]
    assert matched_table(small(tmp_path, SMALL.replace("sweep: [weak, strong]", "")), lines) == []


def test_divergence_needs_a_rising_reward_and_every_judge_falling() -> None:
    def curve(reward: float, one: float, other: float) -> list[list[float]]:
        return [[i, reward * i, one * i, other * i] for i in range(12)]

    assert statistics.is_diverging(curve(1, -1, -1))
    assert not statistics.is_diverging(curve(1, -1, 1)) and not statistics.is_diverging(curve(-1, -1, -1))
    assert not statistics.is_diverging([[0, 1, 2, 3]]) and not statistics.is_diverging([])


# -------------------------------------------------------------------------------------------------------------- report


def strong_lines(found: Suite) -> list[dict]:
    """Lines by which every bar of the small suite is met."""
    better = {"evidence/score": -0.2, "colour_psnr": 16.0, "iou": 0.75, "janus": 0.0, "reward": -1.0}
    measures = {"steered": better, "strong": {"janus": 0.5, "reward": 1.0}}
    return [run_line(job, **measures.get(job.method, {"janus": 0.5, "reward": -1.0})) for job in expand_jobs(found, [])]


def test_the_bars_are_met_missed_and_untold(tmp_path: Path) -> None:
    found = small(tmp_path)
    assert {bar.met for bar in check_criteria(found, [])} == {None}
    assert {bar.verdict for bar in check_criteria(found, [])} == {"not run yet"}
    lines = strong_lines(found)
    assert {bar.met for bar in check_criteria(found, lines)} == {True}
    bad = {"evidence/score": -0.9, "evidence/named": 0.0, "evidence/truth_named": 0.75}
    worse = [line | bad if line["method"] == "steered" else line for line in lines]
    missed = [bar for bar in check_criteria(found, worse) if not bar.met]
    assert len(missed) == 3 and "matched" in missed[1].what
    assert "named" in missed[-1].what and missed[-1].figure == "0 % (the truth itself 75 %)"
    table = "\n".join(criteria_table(check_criteria(found, worse)))
    assert table.count("**MISSED**") == 3 and table.count("| met |") == 3


def test_no_bar_is_met_or_missed_before_all_of_its_runs_are_there(tmp_path: Path) -> None:
    found = small(tmp_path)
    lines = strong_lines(found)
    last = next(line for line in lines if line["method"] == "sds" and line["seed"] == 1)
    asked = check_criteria(found, [line for line in lines if line is not last])
    assert [bar.met for bar in asked] == [None, None, True, None, None, True]  # those that do not involve it stand
    assert "so far, 11 of 12 runs" in asked[0].figure and asked[0].verdict == "open"
    few = check_criteria(found, [line for line in lines if line["prompt"] in found.prompts(found.main)[:3]])
    assert {bar.met for bar in few} == {None} and few[0].figure == "+0.30 so far, 3 of 6 captions"


def test_outside_of_the_sweep_nothing_is_matched(tmp_path: Path) -> None:
    found = small(tmp_path)
    lines = [line | {"reward": 9.0} if line["method"] == "steered" else line for line in strong_lines(found)]
    (bar,) = [bar for bar in check_criteria(found, lines) if "matched" in bar.what]
    assert bar.met is None and "no bracket" in bar.figure and "so far" not in bar.figure and bar.verdict == "open"


def all_lines(found: Suite) -> list[dict]:
    """One line a run, with the probes' weights and steps."""
    first = [probe_line(found, "sds", 48), probe_line(found, "steered", 72)]
    return [run_line(job) for job in expand_jobs(found, first)]


def test_every_row_of_a_table_is_over_the_same_runs(tmp_path: Path) -> None:
    """The main methods on 6 captions and 2 seeds; beside the others on 2 captions and 1 seed, as those are."""
    found = small(tmp_path)
    lines = all_lines(found)
    tables = table_groups(found, lines)
    assert list(tables["main methods"]) == ["sds", "steered", "weak", "strong"]
    assert list(tables["all methods"]) == ["sds", "sds at equal cost", "steered", "weak", "strong", "best"]
    for name, runs in (("main methods", 12), ("all methods", 2)):
        keys = [set(own.index) for own in tables[name].values()]
        assert all(key == keys[0] for key in keys) and len(keys[0]) == runs
    hard = found.prompts(found.main)[1]  # of the main methods only: it must not count among all
    for line in lines:
        if line["prompt"] == hard:
            line["iou"] = 0.0
    tables = table_groups(found, lines)
    iou = []
    for heads, _, *body in (measures_table(found, table) for table in tables.values()):
        place = heads.split(" | ").index("IoU")
        iou.append({row.split(" | ")[place] for row in body})
        assert "PSNR" in heads and "half agrees" not in heads  # only what some line tells
    assert iou == [{"0.583"}, {"0.700"}]
    part = [line for line in lines if line["method"] != "best"]
    assert list(table_groups(found, part)) == ["main methods", "all methods"]
    mains = [line for line in lines if found.methods[line["method"]].main and line["budget"] == "steps"]
    assert list(table_groups(found, mains)) == ["main methods"] and table_groups(found, []) == {}


def test_a_row_that_has_just_begun_waits_while_the_reference_is_complete(tmp_path: Path) -> None:
    found = small(tmp_path)
    lines = [line for line in strong_lines(found) if (line["method"], line["seed"]) != ("strong", 1)]
    table = table_groups(found, lines)["main methods"]
    assert list(table) == ["sds", "steered", "weak"] and {len(own) for own in table.values()} == {12}
    page = write.suite_report(found, lines, missing=6)
    assert "before all runs are there: `strong` (6 of 12)." in page
    begun = [line for line in lines if (line["method"], line["seed"]) != ("steered", 1)]
    table = table_groups(found, begun)["main methods"]
    assert list(table) == ["sds", "steered", "weak", "strong"] and {len(own) for own in table.values()} == {6}


def test_differences_are_to_what_each_method_names(tmp_path: Path) -> None:
    found = small(tmp_path, SMALL.replace("weight 2, ", "weight 2, against: weak, ") + "compared_by: [fog]\n")
    values = {"sds": 0.0, "steered": 1.0, "weak": 2.0, "strong": 5.0, "best": 9.0}
    measures = ("colour_psnr", "evidence/raw", "fog")
    lines = [
        run_line(job, **dict.fromkeys(measures, values[job.method]), cost=100 if job.method == "strong" else 50)
        for job in expand_jobs(found, [])
    ]
    table = differences_table(found, table_groups(found, lines)["main methods"])
    heads, _, *body = [[cell.strip() for cell in row.strip("|").split("|")] for row in table]
    measured = ["evidence", "PSNR", "IoU", "fog"]
    assert heads == ["method", "against", "captions", "cost", *measured, "evidence prefers"]
    assert [row[:2] for row in body] == [["`steered`", "`sds`"], ["`weak`", "`sds`"], ["`strong`", "`weak`"]]
    none, three = "+0.00 [+0.00, +0.00]", "+3.00 [+3.00, +3.00]"
    assert body[2][2:] == ["6", "x 2.00", none, three, none, three, "100 % [100 %, 100 %]"]
    alone = small(tmp_path, SMALL.replace("weight 2, ", "weight 2, against: strong, "))
    assert not [
        row for row in differences_table(alone, table_groups(alone, lines)["main methods"]) if "`strong`" in row
    ]


def test_the_reference_is_set_against_each_method_at_its_own_cost(tmp_path: Path) -> None:
    found = small(tmp_path)
    lines = [
        line | ({"colour_psnr": 17, "cost": 60} if line["method"] == "steered" else {"evidence/raw": -9.0, "cost": 50})
        for line in all_lines(found)
    ]
    table = reference_table(found, lines)
    labels = ["sds", "sds at equal cost", "weak", "strong", "best"]
    assert [row.split(" | ")[0] for row in table[2:]] == [f"| `{label}`" for label in labels]
    dear = "| `sds at equal cost` | 2 | x 1.20 | +0.00 | +2.00 | +0.00 | 100 % |"  # two captions, no interval
    assert table[3] == dear and "| 6 | x 1.20 | +0.00 [+0.00, +0.00] | +2.00 [+2.00, +2.00]" in table[4]
    assert reference_table(found, [line for line in lines if line["method"] == "steered"]) == []


def test_the_columns_of_comparison_are_columns(tmp_path: Path) -> None:
    found = small(tmp_path, SMALL + f"compared_by: [{', '.join(get_args(suite.Further))}]\n")
    assert {*get_args(suite.Further)} <= {column.measure for column in leading_columns(found)}
    heads = {column.head for column in measure_columns(found) if not column.brief}
    assert {"floaters", "saturation", "contrast", "edges"} <= heads


def test_a_curve_is_the_median_of_the_runs() -> None:
    curves = [[[0, 0.0, value], [10, 1.0, 2 * value]] for value in (1.0, 2.0, -900.0)]
    assert write.median_curve(curves, 2) == [(0, 1.0), (10, 2.0)] and write.median_curve([], 2) == []
    curve = [(0.0, -9.0), (10.0, -5.0), (20.0, 1.0), (40.0, 2.0)]
    assert (
        write.drop_first_quarter(curve) == curve[1:]
        and write.drop_first_quarter(curve[:2]) == curve[:2]
        and write.drop_first_quarter([]) == []
    )


def test_the_page_shows_what_is_there_and_counts_what_is_missing(tmp_path: Path) -> None:
    found = small(tmp_path)
    todo = expand_jobs(found, [])
    lines = [run_line(job) for job in todo[:-4]] + [run_line(todo[-4], failed="There is no mesh") | {"iou": 0.0}]
    page = write.suite_report(found, lines, missing=3)
    assert f"{len(todo) - 3} of {len(todo)} runs" in page and "`sds`" in page and "failed |" in page
    assert "Without any run yet: `sds at equal cost`." in page
    assert "Every row is over the same 11 runs, of 6 captions. The evidence judge names 100 % of their truths." in page
    assert "Not run yet" in write.suite_report(found, [], missing=24)


@pytest.mark.usefixtures("collection")
def test_strips_show_what_was_run_and_go_when_their_lines_no_longer_hold(tmp_path: Path, monkeypatch) -> None:
    found = small(tmp_path)
    monkeypatch.setattr(write, "RESULTS", tmp_path)
    made = RecordedRun({"pictures": np.full((8, 96, 96, 3), 200, np.uint8)}, {})

    def made_file(job: suite.PlannedRun) -> Path:
        return tmp_path / f"{job.outcome_hash}.npz"

    lines = [line for line in all_lines(found) if line["method"] in ("sds", "steered")]
    assert write.write_strips(found, lines, made_file) is None, "nothing that was made is here"
    for job in expand_jobs(found, []):
        if job.method in ("sds", "steered"):
            made.save(made_file(job))
    path = write.write_strips(found, lines, made_file)
    assert path is not None
    write.drop_stale_pictures(found, lines)
    assert path.is_file()
    (tmp_path / "small-curves.svg").touch()
    write.drop_stale_pictures(found, lines[1:])
    assert not path.is_file() and (tmp_path / "small-curves.svg").is_file()
    write.drop_stale_pictures(found, [])
    assert not (tmp_path / "small-curves.svg").is_file()


@pytest.mark.usefixtures("collection")
def test_strips_show_the_nearest_weight_and_captions_whose_meshes_are_here(tmp_path: Path, monkeypatch) -> None:
    found = small(tmp_path)
    monkeypatch.setattr(write, "RESULTS", tmp_path)
    made = RecordedRun({"pictures": np.full((8, 96, 96, 3), 200, np.uint8)}, {})
    lines = strong_lines(found)  # rewards: the reference and the weak control -1, the strong one +1
    assert write.nearest_control(found, lines) == "weak" and write.nearest_control(found, []) is None
    here = [job for job in expand_jobs(found, []) if job.preset.prompt in ("a blue tree", "a black flower")]
    for job in here:
        made.save(tmp_path / f"{job.outcome_hash}.npz")
    path = write.write_strips(found, lines, lambda job: tmp_path / f"{job.outcome_hash}.npz")
    assert path is not None
    with Image.open(path) as picture:
        shown = picture.info["comment"].decode().split()
    asked = {job.line_hash for job in here if job.preset.seed == 0 and job.method in ("sds", "steered", "weak")}
    assert len(shown) == 6 and set(shown) == asked

    lines = [line | ({"reward": -5.0} if line["method"] == "sds" else {}) for line in lines]

    def across(suite_text: str) -> int:
        again = small(tmp_path, suite_text)
        assert (path := write.write_strips(again, lines, lambda job: tmp_path / f"{job.outcome_hash}.npz")) is not None
        with Image.open(path) as picture:
            return len(picture.info["comment"].decode().split()) // 2

    assert across(SMALL.replace("sweep: [weak,", "sweep: [sds, weak,")) == 3  # the baseline stays
    monkeypatch.setattr(write, "STRIP_METHODS", 2)
    assert across(SMALL) == 2


def test_frozen_pages_say_so_and_show_their_pictures() -> None:
    """Each begins with a line on its world, is summed up and links to what is there; no picture is unshown."""
    frozen = suite.RESULTS / "hand-drawn"
    summary, shown = (frozen / "README.md").read_text(encoding="utf-8"), set()
    for page in sorted(frozen.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        links = set(re.findall(r"\]\(([^)#:]+)\)", text))
        assert not [link for link in links if not (frozen / link).is_file()], page.name
        shown |= links
        assert "3401b1f" in "".join(text.splitlines()[:4]), page.name
        assert page.name == "README.md" or f"]({page.name})" in summary
    assert not {path.name for path in frozen.iterdir()} - shown - {"README.md"}


def test_the_pages_agree_with_the_results() -> None:
    page = write.EVIDENCE_PAGE.read_text(encoding="utf-8")
    assert write.evidence_section() in page, "stale: run `python -m psd compare --report`"
    for found in suite.read_suites():
        lines, missing = write.valid_lines(found)
        page = (suite.RESULTS / f"{found.name}.md").read_text(encoding="utf-8")
        assert page == write.suite_report(found, lines, missing), "stale: run `python -m psd compare --report`"


def test_every_interval_in_the_prose_is_on_a_page() -> None:
    """Of docs/evidence.md, by hand, and of what sums the frozen pages up, to the digits that they give."""
    number = r"([+-]?\d*\.\d+)"
    interval = re.compile(rf"{number}(?:\s+dB)?\s+\[{number},\s+{number}\]")
    frozen = suite.RESULTS / "hand-drawn"
    summaries = [frozen / "README.md", frozen / "options.md"]
    shown = {
        tuple(map(float, found.groups()))
        for page in {*suite.RESULTS.glob("*.md"), *frozen.glob("*.md")} - set(summaries)
        for found in interval.finditer(page.read_text(encoding="utf-8"))
    }
    page = write.EVIDENCE_PAGE.read_text(encoding="utf-8")
    prose = page[: page.index(write.BEGIN)] + "".join(it.read_text(encoding="utf-8") for it in summaries)
    given = list(interval.finditer(prose))
    assert len(given) > 30 and len(given) == len(re.findall(r"\[[+-]?\d*\.\d+,", prose)), "an interval without its mean"
    for found in given:
        digits = len(found[1].partition(".")[2])
        values, step = tuple(map(float, found.groups())), 10.0**-digits
        # a page has two digits: of fewer it may be either neighbour's rounding
        near = 0.5 * step + 0.005 if digits < 2 else 0.5 * step
        same = any(all(abs(a - b) < near + 1e-9 for a, b in zip(values, its, strict=True)) for its in shown)
        assert same, f"no page says {found[0]}"


def test_a_single_hour_and_a_single_run_are_singular() -> None:
    line = {"seconds": 1800.0, "peak_memory_bytes": 1_000_000_000}
    whole = "the whole suite takes about"
    assert (
        write.progress_sentence([line, line], 0) == f"All 2 runs; {whole} 1 hour of one core, at most 1.0 GB a process."
    )
    assert write.progress_sentence([line, line], 1).startswith(f"2 of 3 runs; {whole} 2 hours of one core")
    assert write.progress_sentence([], 1) == "Not run yet with the present weights: 1 run is to do."


def test_the_section_is_replaced_between_its_markers_only() -> None:
    text = f"before\n{write.BEGIN}\nold\n{write.END}\nafter"
    assert write.replace_section(text, "new") == "before\nnew\nafter"
    with pytest.raises(ValueError, match="markers"):
        write.replace_section("no markers", "new")


# -------------------------------------------------------------------------------------------------------------- charts


def test_charts_are_svg_with_every_name_and_no_point_outside() -> None:
    drawn = draw_curves(
        {"reward": {"a & b": [(0, -1), (10, 4)], "c": [(0, 2), (5, 3)]}, "judge": {"c": [(0, 1)]}}, across="steps"
    )
    rows = draw_intervals({"a & b": (1.0, 0.5, 1.5), "c": (-1.0, -2.0, 0.1)}, title="lead")
    for picture in (drawn, rows):
        root = ElementTree.fromstring(picture)
        words = [element.text for element in root.iter() if element.text]
        assert "a & b" in words and "c" in words
        height = float(root.attrib["viewBox"].split()[3])
        for circle in root.iter("{http://www.w3.org/2000/svg}circle"):
            assert 0 <= float(circle.attrib["cx"]) <= 760 and 0 <= float(circle.attrib["cy"]) <= height


@pytest.mark.parametrize("values", [(0.0, 1.0), (-3.2, 0.1), (0.001, 0.004), (5.0, 5.0), (0, 120), (-0.02, 37.0)])
def test_ticks_are_a_few_round_numbers_within(values: tuple[float, float]) -> None:
    found = ticks_within(values)
    assert 1 <= len(found) <= 9 and all(min(values) - 1e-9 <= tick <= max(values) + 1e-9 for tick in found)
    assert all(len(f"{tick:g}") <= 7 for tick in found)


# ------------------------------------------------------------------------------------------------------------- running


def test_a_job_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = small(tmp_path)
    todo, path = expand_jobs(found, [])[:4], tmp_path / "lines.jsonl"

    def work(job: suite.PlannedRun) -> dict:
        if job is todo[1]:
            raise MemoryError("no room")
        return run_line(job)

    monkeypatch.setattr(run, "run_job", work)
    monkeypatch.setattr(run, "map_unordered", lambda function, jobs, processes: map(function, jobs))
    assert run.run_jobs(todo, path, 1) == 1
    told = capsys.readouterr().err
    assert "MemoryError: no room" in told and todo[1].method in told and "Traceback" in told
    lines = read_lines(path)
    assert [line["hash"] for line in lines] == [todo[i].line_hash for i in (0, 2, 3)]
    assert {line["commit"] for line in lines} == {run.source_commit()}
    assert len(match_lines(found, lines)[0]) == 3  # the commit is a record: it decides nothing
    assert command.finish(1, []) == 1 and "1 job failed" in capsys.readouterr().err and command.finish(0, []) == 0


def test_compare_measures_by_the_objects_of_the_folder_that_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "meshes").mkdir()
    monkeypatch.setenv(VARIABLE, "nowhere")
    monkeypatch.setattr(run, "estimate_remaining", lambda todo: str(find_collection()))
    assert main(["compare", "--list", "--objects", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path)
    assert main(["compare", "--list", "--objects", str(tmp_path / "meshes")]) == 4
    assert "has no folder `meshes`" in capsys.readouterr().err


def test_a_run_that_another_suite_has_a_line_of_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds here under the name it has here; a probe and another run's line do not."""
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr(run, "WORK", tmp_path / "made")
    found = small(tmp_path)
    todo, path, other = expand_jobs(found, []), tmp_path / "small.jsonl", tmp_path / "other.jsonl"
    assert len(todo) == 48 + 2
    assert f"about {(48 + 2 + 2 * 4) * 70 / 3600:.1f} hours" in run.estimate_remaining([(found, path)])
    elsewhere = [{**run_line(job), "method": "other_name", "budget": "cost", "commit": "abc"} for job in todo]
    other.write_text("".join(json.dumps(line) + "\n" for line in elsewhere))
    assert f"about {2 * 70 / 3600:.1f} hours" in run.estimate_remaining([(found, path)])

    elsewhere[1] |= {"kind": "probe"}
    elsewhere[2] |= {"hash": "another"}
    other.write_text("".join(json.dumps(line) + "\n" for line in elsewhere[:3]))
    assert run.reuse_lines(todo, path) == todo[1:]
    assert read_lines(path) == [{**run_line(todo[0]), "commit": "abc"}]
    assert len(match_lines(found, read_lines(path))[0]) == 1


def test_the_commit_says_whether_the_sources_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ROOT", tmp_path)
    assert run.source_commit() is None

    def git(*words: str) -> str:
        named = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run([*named, *words], check=True, capture_output=True, text=True).stdout.strip()

    for name in ("psd/run.py", "assets/results/lines.jsonl", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "First")
    head = git("rev-parse", "--short", "HEAD")
    (tmp_path / "assets/results/lines.jsonl").write_text("2")  # what a suite writes itself
    (tmp_path / "README.md").write_text("2")
    assert run.source_commit() == head
    (tmp_path / "psd/run.py").write_text("2")
    assert run.source_commit() == f"{head}+"


def test_a_probe_that_did_not_end_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One without a mesh does: it counts calls."""
    monkeypatch.setattr(run, "WORK", tmp_path)
    job = list_probes(small(tmp_path))[0]
    facts = {"calls": {"unet": [1, 0]}, "pair_ratio": None, "seconds": 1.0, "failed": "There is no mesh"}
    RecordedRun({}, {**facts, "steps": 6}).save(run.made_file(job))
    assert run.run_job(job)["calls"] == {"unet": [1, 0]}
    RecordedRun({}, {**facts, "failed": "not finite in step 3"}).save(run.made_file(job))
    with pytest.raises(RuntimeError, match="sds did not end: not finite in step 3"):
        run.run_job(job)


def test_no_line_holds_what_is_no_number() -> None:
    with pytest.raises(ValueError, match="iou came out"):
        run.round_values({"iou": math.nan, "seconds": 1.0})


def test_the_outlook_counts_shared_runs_once_and_made_ones_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "WORK", tmp_path / "made")
    found, path = small(tmp_path), tmp_path / "lines.jsonl"
    assert "2 probes and 52 of 52 runs are to do" in run.estimate_remaining([(found, path)])
    every, waiting = 48 + 2 * 4, 2  # the best of four counts four runs
    assert f"about {(every + waiting) * 70 / 3600:.1f} hours" in run.estimate_remaining([(found, path)])
    assert f"about {(every + 2 * waiting) * 70 / 3600:.1f} hours" in run.estimate_remaining(
        [(found, path), (found, tmp_path / "no.jsonl")]
    )
    todo = expand_jobs(found, [])
    path.write_text("".join(json.dumps(run_line(job, seconds=7200)) + "\n" for job in todo[:-1]))
    assert "about 6.0 hours" in run.estimate_remaining([(found, path)])  # it and the two that wait, two hours each
    RecordedRun({}, {}).save(run.made_file(todo[-1]))
    assert "about 4.0 hours" in run.estimate_remaining([(found, path)])


def test_all_suites_that_can_run_here_are_told_before_any_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def require(found: Suite) -> None:
        if found.name == "pipelines":
            raise MissingError("no prior")

    monkeypatch.setattr(run, "require_weights", require)
    assert main(["compare", "--all", "--list"]) == 0
    told = capsys.readouterr().out
    assert "pipelines is left out: no prior" in told and "large is left out" in told
    assert "embedded:" in told and "tuning" not in told and "pipelines:" not in told and "hours of one core" in told
    monkeypatch.setattr(run, "require_weights", lambda found: None)
    assert main(["compare", "--all", "--list"]) == 0
    told = capsys.readouterr().out
    assert told.index("embedded:") < told.index("pipelines:")
    assert main(["compare", "--all", "--only", "steered"]) != 0
    assert "leave out --only" in capsys.readouterr().err


def test_of_four_runs_the_one_that_the_selector_likes_best_is_kept_at_the_cost_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its last preview, not by its first; one without a mesh only where none has one.  Its file is read again."""
    monkeypatch.setattr(run, "WORK", tmp_path)
    found = small(tmp_path)
    job = next(job for job in expand_jobs(found, []) if job.method == "best")
    corners, faces = np.eye(3, dtype=np.float32), np.array([[0, 1, 2]], np.int32)
    triangle = {"vertices": corners, "faces": faces, "normals": corners, "colours": np.zeros((3, 3), np.uint8)}

    def pretend(last: float, first: float = 0.0, **facts: Any) -> RecordedRun:
        previews = np.stack([np.full((4, 8, 8, 3), 255 * value, np.uint8) for value in (first, last)])
        shared = {"calls": {"unet": [10, 1]}, "seconds": 2.5, "peak_memory_bytes": int(100 * last), "steps": 6}
        return RecordedRun({**triangle, "previews": previews}, {**shared, **facts})

    made = [pretend(0.2, 1.0), pretend(0.6), pretend(0.8, failed="There is no mesh"), pretend(0.4)]
    rated = []

    def load_judge(source: str, **_: Any) -> Any:
        rated.append(source)
        return lambda images, prompt: images.mean((2, 3, 4))

    monkeypatch.setattr("psd.evaluation.experiments.measure.load_judge", load_judge)
    monkeypatch.setattr("psd.evaluation.experiments.record.record_run", lambda preset: made[preset.seed])
    best = run.load_made(job)
    assert rated == ["assets/selector"] and best.facts["chosen"] == 1
    assert best.arrays["previews"][-1].mean() == pytest.approx(255 * 0.6, abs=1)
    assert best.facts["calls"] == {"unet": [40, 4]} and best.facts["seconds"] == 10.0
    assert best.facts["peak_memory_bytes"] == 80 and best.facts["steps"] == 6 and "failed" not in best.facts
    made.clear()  # nothing runs again
    assert run.load_made(job).facts == best.facts and run.load_made(job.parts[3]).facts["seconds"] == 2.5

    broken = [pretend(value, failed="not finite") for value in (0.1, 0.9)]
    assert measure.choose_run(broken, "a fox").facts["failed"] == "not finite"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("collection")
def test_a_suite_runs_resumes_and_measures(tmp_path: Path, monkeypatch) -> None:
    """Two short real runs, one process; a second call finds nothing to do; lost lines come back without a run."""
    text = SMALL.replace("set: {steps: 6}", "set: {steps: 4, scene.grid_size: 24, mesh_resolution: 32}")
    found = small(tmp_path, text)
    monkeypatch.setattr(run, "WORK", tmp_path)
    path, todo = tmp_path / "lines.jsonl", expand_jobs(found, [])[:2]
    first = [run.run_job(job) for job in todo]
    append_line(path, json.dumps(first[0]))
    assert {"iou", "reward", "evidence/score", "curve", "calls", "texture", "fog"} <= set(first[0])
    assert [line["calls"]["unet"] for line in first] == [[32, 0], [48, 0]]
    plain, steered = (line["calls"] for line in first)
    looks = plain["reward"][0]  # at previews
    assert plain["decode"][1] == plain["reward"][1] == 0 and steered["encode"] == plain["encode"]
    assert steered["decode"] == [plain["decode"][0] + 32, 16] and steered["reward"] == [looks + 32, 16]
    kept, missing = match_lines(found, read_lines(path))
    assert len(kept) == 1 and todo[0].line_hash not in {job.line_hash for job in missing}
    monkeypatch.setattr("psd.runs.engine.prepare_events", None)  # a second run would fail
    again = run.run_job(todo[0])
    assert again == first[0]
