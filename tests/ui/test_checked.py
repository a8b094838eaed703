"""Any listener of the page, called with any kind of value, answers or refuses in words: never with a traceback."""

import asyncio
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio.components import Component
from gradio.state_holder import SessionState

import app
from psd.runs.jobs.worker import Worker
from psd.ui import build
from psd.ui.checked import CheckedBlocks, describe_kind, find_kind, is_number, is_unicode
from tests.support.fake_run import fake_run

LONE = "\ud800"  # half of a pair: JSON can say it, UTF-8 cannot
STRANGE = [
    None,
    True,
    7,
    -0.5,
    math.nan,
    10**400,
    "text",
    LONE,
    "../../etc/passwd",
    [],
    ["x", LONE],
    [7],
    {"path": 7},
    {"a": {"b": LONE}},
]
REQUEST = SimpleNamespace(headers={"host": "localhost"}, query_params={"run": LONE}, username=None, request=None)


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckedBlocks]:
    worker = Worker(fake_run, tmp_path_factory.mktemp("runs"))
    blocks = build.build_blocks(worker, vocabularies={"assets/prior": app.read_vocabulary()})
    assert isinstance(blocks, CheckedBlocks)
    yield blocks
    assert worker.shutdown()


def usual_value(component: Any) -> Any:
    """What a browser sends for a component that nobody has touched."""
    if isinstance(component, gr.Model3D):
        return {"value": None}
    if isinstance(component, gr.Dataset):
        return 0
    return component.get_config().get("default_value" if isinstance(component, gr.BrowserState) else "value")


async def call(blocks: CheckedBlocks, state: Any, listener: Any, values: list[Any], event: Any = None) -> str:
    """The refusal's words, or nothing where the listener answers."""
    try:
        answer = await blocks.process_api(listener, values, state=state, request=REQUEST, event_data=event)
    except gr.Error as error:
        assert not error.print_exception and error.message and "Traceback" not in error.message
        error.message.encode()
        return error.message
    assert isinstance(answer, dict)
    return ""


async def call_with_strange_values(blocks: CheckedBlocks, listeners: list[Any]) -> int:
    """How many of the calls were refused: each listener with one strange value for all, and in each kind's place."""
    refused, state = 0, SessionState(blocks)
    for listener in listeners:
        usual = [usual_value(component) for component in listener.inputs]
        kinds: dict[str, int] = {}  # the first component of each kind stands for the others
        for place, component in enumerate(listener.inputs):
            kinds.setdefault(str(type(component)), place)
        for strange in STRANGE:
            event = gr.EventData(None, strange)
            refused += bool(await call(blocks, state, listener, [strange] * len(usual), event))
            for place in kinds.values() if strange in STRANGE[::2] else ():
                values = [*usual[:place], strange, *usual[place + 1 :]]
                refused += bool(await call(blocks, state, listener, values, event))
        if usual:
            assert await call(blocks, state, listener, usual[1:]), "a value is missing"
    return refused


def test_every_listener_answers_values_of_any_kind_in_words(blocks: CheckedBlocks) -> None:
    found = {}  # one of those that differ in their component only
    for listener in blocks.fns.values():
        if listener.fn is not None:
            kinds = tuple(type(component).__name__ for component in listener.inputs)
            found[listener.name, kinds] = listener
    assert len(found) > 25
    assert asyncio.run(call_with_strange_values(blocks, list(found.values()))) > 500


def test_every_listener_takes_what_an_untouched_page_sends(blocks: CheckedBlocks) -> None:
    """Nothing that a browser sends by itself is refused for its kind."""
    for listener in blocks.fns.values():
        for component in listener.inputs:
            assert isinstance(component, Component)
            kind = find_kind(component)
            if kind is not None and not component.stateful and not isinstance(component, gr.UploadButton):
                assert kind[0](usual_value(component)), component


def test_a_refusal_crosses_the_wire_without_a_traceback(
    blocks: CheckedBlocks, capfd: pytest.CaptureFixture[str]
) -> None:
    pause = next(listener for listener in blocks.fns.values() if listener.name == "pause")
    _, address, _ = blocks.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    bodies = ['["run", "\\ud800"]', "[7, 7]", "[null, [1]]", "[]", '[{"a": 1}, {"path": "/etc/passwd"}]']
    for body in bodies:
        content = f'{{"fn_index": {pause._id}, "session_hash": "x", "data": {body}}}'
        reply = httpx.post(f"{address}gradio_api/run/predict", content=content,
                           headers={"content-type": "application/json"}, timeout=60)  # fmt: skip
        assert reply.status_code == 500 and reply.json()["error"], body
    blocks.close(verbose=False)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_number_is_finite() -> None:
    assert is_number(7) and is_number(-0.5) and is_number(10**400)
    assert not any(map(is_number, [math.nan, math.inf, -math.inf, True, "7", None]))
    assert describe_kind(math.nan) == "no finite number"


@pytest.mark.parametrize("value", [LONE, [LONE], {"a": {"b": (LONE,)}}, {LONE: 1}])
def test_a_lone_surrogate_is_found_however_deep(value: Any) -> None:
    assert not is_unicode(value)
    assert is_unicode("a mug \U0001f375") and is_unicode([1, None, {"a": "b"}])
