"""The endpoints through `gradio_client`, and what a hostile client is told: on a real server, on loopback."""

import base64
import io
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice, takewhile
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

import app
from psd.config.errors import PresetError
from psd.config.preset import Preset
from psd.distillation.events import LiveChanged
from psd.runs.jobs import admission
from psd.runs.jobs.controls import Controls
from psd.runs.jobs.worker import Worker
from psd.runs.store import ownership
from psd.runs.store.archive import read_status
from psd.runs.store.folder import RunFolder
from psd.runtime import pictures
from psd.ui import api, build, protection
from psd.ui.inputs.vocabulary import describe_problem
from psd.ui.state.watch import Watcher
from tests.runs.test_worker import PATIENCE_S, Gate, finish, until
from tests.support.fake_run import fake_run

ENDPOINTS = {
    "start_run", "get_status", "stop_run", "resume_run", "list_runs", "export_mesh", "score_images", "watch_run",
}  # fmt: skip
STRANGERS = ["..", "../secret", "/etc/passwd", "", "20260101-000000_a_s0_00000000", "a" * 5000, "<b>", "x\0y", "~root"]


@dataclass
class Server:
    """A page over fake runs; ``gate`` holds runs whose seed is 7, and those only."""

    url: str
    root: Path
    worker: Worker
    gate: Gate
    client: Client
    blocks: gr.Blocks

    def call(self, name: str, **values: Any) -> Any:
        return self.client.predict(**values, api_name=f"/{name}")

    def refused(self, name: str, **values: Any) -> str:
        with pytest.raises(AppError) as error:
            self.call(name, **values)
        return str(error.value)

    def finished(self, **values: Any) -> dict[str, Any]:
        told = self.call("start_run", **{"prompt": "a red mushroom", "overrides": "steps: 6", **values})
        self.watch(told["run_id"])
        return told

    def watch(self, run_id: str, since: int = 0) -> list[list[dict[str, Any]]]:
        """All that the stream says; the client's own iterator may end before the last of it."""
        job = self.client.submit(run_id, since, api_name="/watch_run")
        job.result(timeout=PATIENCE_S)
        return [list(events) for events in job.outputs()]

    def ask(self, session: str, asked: list[tuple[int, list[Any], Any]], **query: str) -> list[dict[str, Any]]:
        """Call listeners of the page (number, values, event) as a script would; returns what they answer."""
        for listener, data, event in asked:
            joined = {"data": data, "fn_index": listener, "session_hash": session, "event_data": event}
            answer = httpx.post(f"{self.url}gradio_api/queue/join", params=query, json=joined, timeout=PATIENCE_S)
            assert answer.status_code == 200
        told = []
        address = f"{self.url}gradio_api/queue/data?session_hash={session}"
        with httpx.stream("GET", address, timeout=2 * PATIENCE_S) as stream:
            for line in stream.iter_lines():
                told += [json.loads(line[5:])["output"]] if "process_completed" in line else []
                if len(told) == len(asked):
                    break
        return told

    def fetch(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=PATIENCE_S)


def score(images: Any, prompt: str, judge: str) -> dict[str, Any]:
    return {"judge": judge or "selector", "scores": [float(image.mean()) for image in images], "prompt": prompt}


def remake(folder: Path, scene: str | None, threshold: float | None) -> None:
    (folder / "public/exports/mesh.glb").write_bytes(f"{scene} {threshold}".encode())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root, gate = tmp_path_factory.mktemp("runs"), Gate()
    check = admission.PromptFilter()

    def admit(preset: Preset) -> None:
        check(preset)
        admission.require_known_models(preset)

    worker = Worker(lambda p, c, r: (gate.run if p.seed == 7 else fake_run)(p, c, r), root, admit=admit)
    blocks = build.build_blocks(worker)
    api.register_endpoints(blocks, worker, score=score, remake=remake)
    _, url, _ = blocks.launch(
        prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", max_file_size=2**20,
        app_kwargs={"middleware": protection.protect(worker.library.find_folder)}, **build.launch_options(),
    )  # fmt: skip
    yield Server(url, root, worker, gate, Client(url, verbose=False), blocks)
    gate.open(10_000)
    blocks.close()
    assert worker.shutdown(PATIENCE_S)


def png(size: int = 4, colour: tuple[int, int, int] = (255, 0, 0)) -> str:
    return encode(Image.new("RGB", (size, size), colour))


def encode(image: Image.Image, form: str = "PNG", **options: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return base64.b64encode(stream.getvalue()).decode()


# ---- what the endpoints do


def test_only_the_named_endpoints_are_public_and_each_is_documented(server: Server) -> None:
    told = server.client.view_api(return_format="dict", print_info=False)
    assert isinstance(told, dict)
    named = told["named_endpoints"]
    assert {name.removeprefix("/") for name in named} == ENDPOINTS and not told["unnamed_endpoints"]
    assert all(about["description"] for about in named.values())
    for name, about in named.items():
        for parameter in about["parameters"]:
            where = f"{name}, {parameter['parameter_name']}"
            assert parameter["python_type"]["description"] and parameter["python_type"]["type"] != "Any", where
            assert parameter["label"] == parameter["parameter_name"], where
        (result,) = about["returns"]
        assert result["python_type"]["description"] and result["python_type"]["type"] != "Any", name
    assert named["/export_mesh"]["returns"][0]["python_type"]["type"] == "filepath"
    assert [p["parameter_name"] for p in named["/start_run"]["parameters"]] == [
        "prompt", "preset", "seed", "overrides", "owner",
    ]  # fmt: skip


def test_a_script_starts_watches_and_fetches_a_run(server: Server) -> None:
    told = server.call("start_run", prompt="a red mushroom", seed=3, overrides="{steps: 6, method: sds}")
    assert (told["prompt"], told["seed"], told["method"], told["total"]) == ("a red mushroom", 3, "sds", 6)
    events = [event for chunk in server.watch(told["run_id"]) for event in chunk]
    assert [event["event"] for event in events][0] == "Started" and events[-1]["event"] == "Finished"
    assert [event["step"] for event in events if event["event"] == "Stepped"] == [1, 2, 3, 4, 5, 6]
    status = server.call("get_status", run_id=told["run_id"])
    assert (status["state"], status["step"], status["best_score"], status["ahead"]) == ("finished", 6, 4.0, 0)
    assert "owner" not in status
    picture = server.fetch(status["thumbnail"])
    assert picture.status_code == 200 and picture.content[:2] == b"\xff\xd8"
    newest = server.call("list_runs", owner=told["owner"])
    assert [run["run_id"] for run in newest] == [told["run_id"]]
    assert server.call("list_runs", owner="somebody else") == []


def test_the_stream_of_a_stored_run_goes_on_from_where_it_was_left(server: Server) -> None:
    run_id = server.finished()["run_id"]
    (chunk,) = server.watch(run_id, 3)
    whole = server.worker.events_since(run_id)
    assert len(chunk) == len(whole) - 3
    server.worker._entries.pop(run_id)  # as after a restart
    (again,) = server.watch(run_id, 3)
    assert again == chunk


def test_stop_ends_a_run_and_needs_its_owner(server: Server) -> None:
    told = server.call("start_run", prompt="a red mushroom", seed=7)
    server.gate.open(2)
    for owner in ("", "guess", told["owner"][:-1]):
        assert "belongs to another" in server.refused("stop_run", run_id=told["run_id"], owner=owner)
    server.call("stop_run", run_id=told["run_id"], owner=told["owner"])
    server.gate.open(50)
    server.watch(told["run_id"])
    assert server.call("get_status", run_id=told["run_id"])["state"] == "stopped"
    server.gate.permits = type(server.gate.permits)(0)


def test_a_run_whose_server_was_killed_is_over_and_its_owner_can_go_on(server: Server) -> None:
    preset = Preset(prompt="a red mushroom", seed=11, steps=6)
    with RunFolder.create(preset, server.root) as folder:
        ownership.claim_run(folder.path, "alice")
        for event in takewhile(lambda event: event.step < 5, fake_run(preset, Controls(preset))):
            folder.write(event)
    known = {"run_id": folder.id, "owner": "alice"}
    assert server.call("stop_run", **known)["state"] == "interrupted", "there is nothing to stop"
    for name in ("stop_run", "resume_run"):
        assert "belongs to another" in server.refused(name, run_id=folder.id, owner="bob")
    assert "extra_steps=-1" in server.refused("resume_run", **known, steps=-1)
    told = server.call("resume_run", **known)
    assert told["state"] in ("queued", "running", "finished") and told["step"] >= 4, "from its last checkpoint"
    server.watch(folder.id)
    assert server.call("get_status", run_id=folder.id)["state"] == "finished"
    assert "say how many more" in server.refused("resume_run", **known)
    server.call("resume_run", **known, steps=2)
    server.watch(folder.id)
    assert server.call("get_status", run_id=folder.id)["step"] == 8


def test_a_run_that_a_full_disk_ended_has_failed_and_is_not_interrupted(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder cannot say so; the server that drove it can, to everybody who asks."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    told = server.call("start_run", prompt="a red mushroom", seed=7, overrides="steps: 6")
    server.gate.open(1)
    until(server.worker, told["run_id"], 1)
    monkeypatch.setattr("psd.runs.store.files.open", full, raising=False)
    server.gate.open(50)
    finish(server.worker, told["run_id"])
    assert read_status(server.root / told["run_id"]).state == "interrupted", "all that the folder knows"
    status = server.call("get_status", run_id=told["run_id"])
    (listed,) = (run for run in server.call("list_runs") if run["run_id"] == told["run_id"])
    assert status["state"] == listed["state"] == "failed" and "disk is full" in status["message"]
    watched = Watcher(server.worker).view_run(told["run_id"])
    assert watched.state == "failed"
    monkeypatch.undo()
    server.gate.permits = type(server.gate.permits)(0)


def test_a_seed_counts_wherever_it_is_given(server: Server) -> None:
    for values, seed in [({}, 0), ({"overrides": "{seed: 5, steps: 6}"}, 5), ({"seed": 3}, 3),
                         ({"seed": 4, "overrides": "{seed: 4, prompt: a red mushroom, steps: 6}"}, 4)]:  # fmt: skip
        assert server.finished(**values)["seed"] == seed


def test_addresses_show_no_folder_of_the_server(server: Server) -> None:
    """Files are fetched by the run's id, also before anybody asked for the run, and nothing else is."""
    told = server.finished()
    status = server.call("get_status", run_id=told["run_id"])
    assert status["thumbnail"].startswith(f"gradio_api/file=runs/{told['run_id']}/previews/")
    assert str(server.root) not in json.dumps([status, server.watch(told["run_id"]), server.call("list_runs")])
    old = server.root / f"20200101-000000_a-cube_s0_{secrets.token_hex(4)}"
    (old / "public/exports").mkdir(parents=True)
    (old / "public/exports/mesh.glb").write_bytes(b"glTF of before")
    (old / "status.json").write_text((server.root / told["run_id"] / "status.json").read_text())
    (old / "owner").write_text("secret")
    (old / "public/link").symlink_to(old / "owner")
    below = f"gradio_api/file=runs/{old.name}"
    assert server.fetch(f"{below}/exports/mesh.glb").content == b"glTF of before"
    assert server.fetch(f"{below}/exports/mesh%2Eglb").content == b"glTF of before"
    ranged = httpx.get(f"{server.url}{below}/exports/mesh.glb", headers={"range": "bytes=0-3"}, timeout=PATIENCE_S)
    assert (ranged.status_code, ranged.content) == (206, b"glTF")
    for file in ("../owner", "..%2fowner", "link", "exports", "exports/none.glb", "%00", f"{old}/owner"):
        answer = server.fetch(f"{below}/{file}")
        assert answer.status_code in (403, 404) and str(server.root) not in answer.text.replace(file, ""), file
    assert server.fetch("gradio_api/file=runs/../secret/x").status_code in (403, 404)


def test_runs_of_one_owner_share_the_secret(server: Server) -> None:
    first = server.finished()
    second = server.finished(owner=first["owner"])
    assert second["owner"] == first["owner"] and len(server.call("list_runs", owner=first["owner"])) == 2


def test_meshes_are_fetched_by_all_and_made_again_by_the_owner(server: Server) -> None:
    told = server.finished()
    assert "no mesh yet" in server.refused("export_mesh", run_id=told["run_id"])  # fake runs have none
    assert "no format 'usdz'" in server.refused("export_mesh", run_id=told["run_id"], format="usdz")
    assert "another" in server.refused("export_mesh", run_id=told["run_id"], scene="best")
    made = server.call("export_mesh", run_id=told["run_id"], scene="best", threshold=3.5, owner=told["owner"])
    assert Path(made).read_bytes() == b"best 3.5", "the client fetches the file"
    assert server.call("export_mesh", run_id=told["run_id"]) == made
    for name in ("mesh.obj", "mesh.obj.zip"):  # textured
        (server.root / told["run_id"] / "public/exports" / name).write_text(name)
    assert Path(server.call("export_mesh", run_id=told["run_id"], format="obj")).name == "mesh.obj.zip"


def test_images_are_scored(server: Server) -> None:
    found = server.call("score_images", images=[png(), "data:image/png;base64," + png(8, (0, 0, 0))], prompt="a cube")
    assert found == {"judge": "selector", "scores": [85.0, 0.0], "prompt": "a cube"}


# ---- what they refuse


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a red\x07mug"}, "control characters"),
        ({"prompt": "x" * 301}, "at most 300"),
        ({"prompt": ["a"]}, "valid string"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": True}, "seed=True is yes or no"),
        ({"seed": 3, "overrides": "seed: 5"}, "seed=3, but overrides say 5"),
        ({"overrides": "seed: -1"}, "seed=-1"),
        ({"overrides": "prompt: a blue cube"}, "prompt='a red mushroom', but overrides say 'a blue cube'"),
        ({"seed": 10**40}, "seed"),
        ({"preset": "../../etc/passwd"}, "no preset"),
        ({"preset": "/etc/hosts.yaml"}, "is a file"),
        ({"preset": "/etc/HOSTS.YAML"}, "is a file"),
        ({"overrides": "steps: 1e99"}, "steps"),
        ({"overrides": "mesh_resolution: 100000"}, "mesh_resolution=100000"),
        ({"overrides": "guidance_scale: .nan"}, "guidance_scale"),
        ({"overrides": "stepps: 3"}, "did you mean 'steps'"),
        ({"overrides": "{" + ", ".join(f"k{i}: 1" for i in range(8000)) + "}"}, "unknown key 'k0'"),
        ({"overrides": "seed: 1" + ":59" * 400 + ".5"}, "not valid YAML"),  # to base 60
        ({"overrides": "{a: 1, b: 2, a: 3}"}, "'a' is given twice"),
        ({"overrides": "a: &a [x]\nb: [*a, *a]"}, "alias"),
        ({"overrides": "!!python/object/apply:os.system [id]"}, "not valid YAML"),
        ({"overrides": "[" * 5000}, "nested too deeply"),
        ({"overrides": "a: " + "x" * 200_000}, "too large"),
        ({"overrides": "prior: evil/weights"}, "no model 'evil/weights'"),
        ({"overrides": "rewards: {/etc: 1.0}"}, "no model '/etc'"),
        ({"overrides": "reward_decoder: evil/decoder"}, "no model 'evil/decoder'"),
        ({"overrides": "reward_decoder: /etc/passwd"}, "no model '/etc/passwd'"),
        ({"overrides": "{negative_prompt: a n4k3d mug, guidance_scale: 0}"}, "say it differently"),
        ({"overrides": '{"negative_prompt": "\\ud800"}'}, "unicode"),
        ({"overrides": '{"prior": "\\ud800"}'}, "printable characters"),
        ({"prompt": "a n4k3d mug"}, "say it differently"),
    ],
)
def test_start_run_refuses_in_words(server: Server, values: dict[str, Any], words: str) -> None:
    before = len(server.worker.library.list_runs())
    said = server.refused("start_run", **{"prompt": "a red mushroom", **values})
    assert words in said and "Traceback" not in said and len(said) < 1500
    assert len(server.worker.library.list_runs()) == before, "nothing is left behind"


def test_start_run_makes_what_the_prompt_is_read_as_and_says_so(server: Server) -> None:
    closed = api.Api(server.worker, score, remake, {"assets/prior": app.read_vocabulary()})
    told = closed.start_run("Make me a cute red mushroom, please!", overrides="steps: 6")
    assert (told["prompt"], told["notes"]) == ("a red mushroom", ["cute: dropped"])
    server.watch(told["run_id"])


def test_start_run_refuses_what_the_models_do_not_know_in_the_page_s_words(server: Server) -> None:
    vocabulary = app.read_vocabulary()
    closed = api.Api(server.worker, score, remake, {"assets/prior": vocabulary})
    before = len(server.worker.library.list_runs())
    with pytest.raises(PresetError) as refused:
        closed.start_run("a red unicorn", overrides="steps: 6")
    assert str(refused.value) == describe_problem(vocabulary, "a red unicorn")
    assert "'a red unicorn' names nothing" in str(refused.value) and "mvdream" in str(refused.value)
    assert len(server.worker.library.list_runs()) == before


@pytest.mark.parametrize("run_id", STRANGERS)
@pytest.mark.parametrize("name", ["get_status", "export_mesh", "stop_run"])
def test_strange_run_ids_are_no_runs(server: Server, name: str, run_id: str) -> None:
    said = server.refused(name, run_id=run_id, **({"owner": "x"} if name == "stop_run" else {}))
    assert "no run" in said or "no job" in said
    assert len(said) < 300 and str(server.root) not in said


def test_markup_stays_text(server: Server) -> None:
    prompt = '<img src=x onerror="alert(1)">${1+1}'
    told = server.finished(prompt=prompt)
    assert told["prompt"] == prompt and re.fullmatch(r"[\w-]+", told["run_id"])


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "0 images"),
        ([png()] * 17, "17 images"),
        (["not base64!"], "not a PNG or JPEG"),
        ([base64.b64encode(b"GIF89a...").decode()], "not a PNG or JPEG"),
        (["pictüre"], "not a PNG or JPEG"),
        ([base64.b64encode(base64.b64decode(png())[:40]).decode()], "not a PNG or JPEG"),
        (["A" * 4_000_001], "4000001 characters"),
        ([png(3000)], "3000 x 3000 pixels"),
        ([encode(Image.new("RGB", (14_000, 1)))], "14000 x 1 pixels: 2048 at most along an edge"),
        ("x", "valid list"),
    ],
)
def test_strange_images_are_refused(server: Server, images: Any, words: str) -> None:
    assert words in server.refused("score_images", images=images, prompt="a cube")


def test_a_picture_is_scored_as_a_viewer_shows_it() -> None:
    """Transparency over white, 16 bits as 8, upright, and base64 as the command of that name writes it."""
    generator = np.random.default_rng(0)
    colour, alpha = generator.integers(0, 256, (6, 8, 3), np.uint8), generator.integers(0, 256, (6, 8, 1), np.uint8)
    shown = np.round(colour * (alpha / 255) + 255 * (1 - alpha / 255))
    translucent = Image.fromarray(np.concatenate([colour, alpha], axis=2))
    assert np.abs(pictures.decode_image(encode(translucent)) - shown).max() <= 1
    hidden = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (pictures.decode_image(encode(hidden)) == 255).all(), "white, whatever colour is hidden"
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert (pictures.decode_image(encode(palette, transparency=1)) == 255).all()
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    fine = Image.fromarray(grey.astype(np.uint16) * 257)
    assert (pictures.decode_image(encode(fine))[..., 0] == grey).all()
    upright = Image.fromarray(np.kron(colour, np.ones((8, 8, 1), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = encode(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)
    assert np.abs(pictures.decode_image(turned).astype(int) - np.asarray(upright)).mean() < 12
    lines = base64.encodebytes(base64.b64decode(png())).decode()
    assert (pictures.decode_image(lines) == pictures.decode_image(png())).all()
    assert (pictures.decode_image(f" data:image/png;base64,{lines}\n") == pictures.decode_image(png())).all()


@pytest.mark.parametrize("threshold", [-1.0, float("inf"), float("nan")])
def test_a_threshold_is_a_number_from_0_on(server: Server, threshold: float) -> None:
    closed = api.Api(server.worker, score, remake, {})
    told = server.finished()
    with pytest.raises(PresetError, match="must be a number from 0 on"):
        closed.export_mesh(told["run_id"], threshold=threshold, owner=told["owner"])


@pytest.mark.parametrize(("name", "values"), [
    ("list_runs", {"limit": True}), ("watch_run", {"run_id": "x", "since": True}),
    ("export_mesh", {"run_id": "x", "threshold": True}),
])  # fmt: skip
def test_yes_is_no_number(server: Server, name: str, values: dict[str, Any]) -> None:
    assert "is yes or no" in server.refused(name, **values)


def post(server: Server, name: str, values: Any, session: str = "a script") -> dict[str, Any]:
    """Call an endpoint without the client's own checks; what comes of it, or the refusal of the request."""
    (number,) = (number for number, fn in server.blocks.fns.items() if fn.api_name == name)
    joined = {"data": values, "fn_index": number, "session_hash": session}
    answer = httpx.post(
        f"{server.url}gradio_api/queue/join", content=json.dumps(joined), headers={"content-type": "application/json"},
        timeout=PATIENCE_S,
    )  # fmt: skip
    if answer.status_code != 200:
        return {"error": answer.text, "status": answer.status_code}
    with httpx.stream("GET", f"{server.url}gradio_api/queue/data?session_hash={session}", timeout=PATIENCE_S) as lines:
        for line in lines.iter_lines():
            if "process_completed" in line:
                return json.loads(line[5:])["output"]
    return {"error": "no answer"}


@pytest.mark.parametrize(("name", "values"), [
    ("get_status", []), ("get_status", ["x", "y"]), ("list_runs", ["", 20, 3]), ("start_run", ["a red mushroom"]),
])  # fmt: skip
def test_too_many_and_too_few_values_are_refused(server: Server, name: str, values: list[Any]) -> None:
    assert re.search(r"takes \d values, not \d", post(server, name, values)["error"])


FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
HOSTILE = [None, 8, -1, 2.5, 10**40, True, [], [1, [2]], {}, FILE,
           "\ud800", "a\udfffb", "x" * 100_000, "\0", "../../etc/passwd", "{", "💥" * 300, float("nan")]  # fmt: skip


def test_no_value_brings_a_traceback(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    """Each endpoint with each hostile value in each place of an otherwise plain call."""
    ask_everything(server, capfd, [None, 8, [], "\ud800"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_500_hostile_calls_bring_no_traceback(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    assert ask_everything(server, capfd, HOSTILE, most=500) == 500


def ask_everything(server: Server, capfd: pytest.CaptureFixture[str], hostile: list[Any], most: int = 0) -> int:
    plain: dict[str, list[Any]] = {
        "start_run": ["a red mushroom", "tiny", 0, "steps: 2", ""], "get_status": ["x"], "stop_run": ["x", "y"],
        "list_runs": ["", 3], "export_mesh": ["x", "glb", "", 0.0, ""], "score_images": [[png()], "a cube", ""],
        "watch_run": ["x", 0], "resume_run": ["x", 1, "y", False],
    }  # fmt: skip
    assert set(plain) == ENDPOINTS
    places = [
        (name, place, value) for name, values in plain.items() for place in range(len(values)) for value in hostile
    ]
    calls = list(islice(cycle(places), most or len(places)))
    for name, place, value in calls:
        output = post(server, name, [*plain[name][:place], value, *plain[name][place + 1 :]])
        if "error" in output:
            assert output["error"] and len(str(output["error"])) < 2000, (name, place, value)
            assert str(server.root) not in str(output["error"])
    written = capfd.readouterr()
    assert "Traceback" not in written.out + written.err
    return len(calls)


def test_a_client_has_so_many_streams_and_unread_ones_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams that nobody reads keep nobody else from watching a run."""
    monkeypatch.setattr(api, "STREAMS_OF_CLIENT", 3)
    monkeypatch.setattr(api, "UNREAD", 4)
    monkeypatch.setattr(api, "STREAM_S", 0.02)
    monkeypatch.setattr(api, "SILENT_S", 0.04)
    told = server.call("start_run", prompt="a red mushroom", seed=7, overrides="steps: 6")
    server.gate.open(1)
    until(server.worker, told["run_id"], 1)
    (number,) = (number for number, fn in server.blocks.fns.items() if fn.api_name == "watch_run")
    for _ in range(6):  # nobody fetches what they bring
        joined = {"data": [told["run_id"], 0], "fn_index": number, "session_hash": secrets.token_hex(8)}
        assert httpx.post(f"{server.url}gradio_api/queue/join", json=joined, timeout=PATIENCE_S).status_code == 200
    deadline = time.monotonic() + PATIENCE_S
    refused = ""
    while not refused and time.monotonic() < deadline:
        refused = str(post(server, "watch_run", ["x", 0]).get("error", ""))
    assert "no run" in refused
    stream = server.client.submit(told["run_id"], 0, api_name="/watch_run")
    server.gate.open(50)
    stream.result(timeout=PATIENCE_S)
    events = [event for chunk in stream.outputs() for event in chunk]
    assert events[0]["event"] == "Started" and events[-1]["event"] == "Finished"
    server.gate.permits = type(server.gate.permits)(0)


@pytest.mark.parametrize("stored", [False, True])
def test_a_stream_waits_for_its_reader(server: Server, monkeypatch: pytest.MonkeyPatch, stored: bool) -> None:
    """A run of many events does not pile up in the server's memory for a client that fetches none."""
    for name, value in (("EVENTS_AT_ONCE", 1), ("UNREAD", 3), ("STREAM_S", 0.02), ("SILENT_S", 0.5)):
        monkeypatch.setattr(api, name, value)
    run_id = server.finished()["run_id"]
    if stored:
        server.worker._entries.pop(run_id)  # as after a restart
    session = secrets.token_hex(8)
    (number,) = (number for number, fn in server.blocks.fns.items() if fn.api_name == "watch_run")
    joined = {"data": [run_id, 0], "fn_index": number, "session_hash": session}
    assert httpx.post(f"{server.url}gradio_api/queue/join", json=joined, timeout=PATIENCE_S).status_code == 200
    time.sleep(3.0)
    unread = server.blocks._queue.pending_messages_per_session[session]
    assert unread.qsize() <= 3 + 3, "with what Gradio says of the call itself"
    assert len(server.watch(run_id)) > 12, "a client that reads gets all of it"


def test_a_stream_from_before_the_start_is_refused(server: Server) -> None:
    run_id = server.finished()["run_id"]
    assert "since=-3 is below 0" in server.refused("watch_run", run_id=run_id, since=-3)


def test_what_is_served_is_told_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that looks at the list of runs tells of every folder, again and again."""
    from gradio.data_classes import _StaticFiles

    monkeypatch.setattr("psd.ui.state.watch.LIST_S", 0.0)
    server.finished()
    watcher = Watcher(server.worker)
    watcher.runs()
    before = len(_StaticFiles.all_paths)
    for _ in range(5):
        watcher.runs()
    assert len(_StaticFiles.all_paths) == before


@pytest.mark.parametrize("limit", [0, -1, 10**9])
def test_lists_are_bounded(server: Server, limit: int) -> None:
    assert "must lie in [1, 100]" in server.refused("list_runs", limit=limit)


# ---- over plain HTTP


def test_only_the_public_files_of_runs_are_served(server: Server) -> None:
    told = server.finished()
    folder = server.worker.library.find_folder(told["run_id"])
    server.call("get_status", run_id=told["run_id"])
    secret = server.root / "secret.txt"
    secret.write_text("secret")
    private = [path for path in folder.rglob("*") if path.is_file() and "public" not in path.parts]
    names = {path.name for path in private}
    assert {"owner", "log.txt", "events.jsonl", "preset.resolved.yaml", "000006.safetensors"} <= names
    for path in [
        *private,
        secret,
        Path("/etc/passwd"),
        Path("app.py").resolve(),
        Path("assets/blocked_words.txt").resolve(),
    ]:
        for form in (f"{path}", f"{folder}/public/../{path.name}", f"{folder}/public/..%2f{path.name}"):
            assert server.fetch(f"gradio_api/file={form}").status_code in (403, 404), form
    preview = next((folder / "public/previews").iterdir())
    assert server.fetch(f"gradio_api/file=runs/{folder.name}/previews/{preview.name}").status_code == 200
    (folder / "public/link").symlink_to(secret)
    assert server.fetch(f"gradio_api/file={folder}/public/link").status_code in (403, 404), "a link leads outside"


STEERING = {"stop", "pause", "go_on", "change", "act", "make"}


def test_no_listener_of_the_page_lets_a_stranger_steer(server: Server) -> None:
    """A page attached to another's run calls all that steers, whatever its buttons allow."""
    told = server.call("start_run", prompt="a red mushroom", seed=7)
    run_id = told["run_id"]
    server.gate.open(2)
    until(server.worker, run_id, 2)
    config = server.fetch("config").json()
    components = {it["id"]: it for it in config["components"]}

    def said(number: int) -> Any:
        value = components[number]["props"].get("value")
        return "guess" if components[number]["type"] == "browserstate" and value == "" else value

    asked, names = [], set()
    for listener in config["dependencies"]:
        name = re.sub(r"_\d+$", "", listener["api_name"])
        if name in STEERING:
            names.add(name)
            data = [said(number) for number in listener["inputs"]]
            for act in ("delete", "keep", "go on") if name == "act" else ("",):
                asked.append((listener["id"], data, {"act": act, "run": run_id}))
    assert names == STEERING
    (attach,) = (it for it in config["dependencies"] if it["api_name"] == "attach")
    session = secrets.token_hex(8)
    (attached,) = server.ask(session, [(attach["id"], ["", "guess"], None)], run=run_id)
    assert attached["data"][4:6] == ["a red mushroom", 7], "the page shows the run"
    server.ask(session, asked)

    folder = server.worker.library.find_folder(run_id)
    assert read_status(folder).state == "running" and not (folder / "pinned").exists()
    server.gate.open(2)
    until(server.worker, run_id, 4)
    assert not [event for event in server.worker.events_since(run_id) if isinstance(event, LiveChanged)]
    server.call("stop_run", run_id=run_id, owner=told["owner"])
    server.gate.open(50)
    server.watch(run_id)
    assert server.call("get_status", run_id=run_id)["state"] == "stopped"
    server.gate.permits = type(server.gate.permits)(0)


def test_an_oversized_upload_is_refused(server: Server) -> None:
    files = {"files": ("big.yaml", b"x" * (2**20 + 1))}
    answer = httpx.post(f"{server.url}gradio_api/upload", files=files, timeout=PATIENCE_S)
    assert answer.status_code == 413


def test_a_full_disk_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psd.runs.store.retention.LEAST_FREE_BYTES", 2**80)
    assert "disk is full" in server.refused("start_run", prompt="a red mushroom")


def test_a_password_shuts_everything(tmp_path: Path) -> None:
    worker = Worker(fake_run, tmp_path)
    blocks = build.build_blocks(worker)
    api.register_endpoints(blocks, worker, score=score, remake=remake)
    _, url, _ = blocks.launch(
        prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", auth=[("ada", "lace")],
        **build.launch_options(),
    )  # fmt: skip
    try:
        for path in ("config", "gradio_api/info", "gradio_api/file=/etc/passwd"):
            assert httpx.get(url + path, timeout=PATIENCE_S).status_code == 401
        told = Client(url, auth=("ada", "lace"), verbose=False).predict(prompt="a cube", api_name="/start_run")
        assert told["state"] in ("queued", "running")
        with pytest.raises(Exception, match="(?i)incorrect|auth|login"):
            Client(url, auth=("ada", "wrong"), verbose=False)
    finally:
        blocks.close()
        assert worker.shutdown(PATIENCE_S)


# ---- the guard alone


@pytest.mark.parametrize(
    "prompt", ["a naked man", "NÀKED", "n\u200baked", "a p0rn star", "ｎｕｄｅ", "white\tpower", "mutilated cube"]
)
def test_words_are_seen_through_disguises(prompt: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(PresetError, match="say it differently"):
        admission.PromptFilter()(Preset(prompt=prompt))
    assert "prompt refused" in caplog.text


def test_harmless_words_pass() -> None:
    from psd.embedded.captions import grammar

    check = admission.PromptFilter()
    for caption in list(grammar.all_captions())[::50]:
        check(Preset(prompt=caption.text))
    for prompt in (
        "a grape in Scunthorpe",
        "analysis of a cockatoo",
        "a nudibranch",
        "a snake dancing",
        "100 % cotton",
    ):
        check(Preset(prompt=prompt))


def test_the_list_can_be_edited(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("# mine\nmushroom*  # all of them\nred taxi\n\n")
    check = admission.PromptFilter(path)
    for prompt in ("two mushrooms", "a Red  Taxi".replace("  ", " ")):
        with pytest.raises(PresetError):
            check(Preset(prompt=prompt))
    check(Preset(prompt="a naked blue taxi"))
    path.write_text("# nothing\n")
    admission.PromptFilter(path)(Preset(prompt="anything"))
    with pytest.raises(PresetError, match="cannot read the word list"):
        admission.PromptFilter(tmp_path / "absent.txt")(Preset())


def test_an_image_filter_keeps_the_picture_out_and_ends_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    screen = admission.load_image_filter("tests.ui.test_api:refuses_step_4")
    worker = Worker(fake_run, tmp_path, screen=screen)
    run_id = worker.submit(Preset(steps=6))
    finish(worker, run_id)
    assert worker.shutdown(PATIENCE_S)
    folder = worker.library.find_folder(run_id)
    assert sorted(path.name for path in (folder / "public/previews").glob("*.jpg")) == ["000002.jpg"]
    told = json.loads((folder / "status.json").read_text())
    assert "too green" in told["message"] and "preview was refused: too green" in caplog.text
    with pytest.raises(PresetError, match="no image filter"):
        admission.load_image_filter("tests.ui.test_api:nothing")


def refuses_step_4(images: np.ndarray) -> str:
    return "too green" if images[0, 0, 0, 2] >= 40 else ""
