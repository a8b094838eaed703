"""Live values: what whoever holds the controls changes while a run goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from psd.config.errors import PresetError
from psd.config.preset import Preset, list_settings
from psd.config.settings import read_facts
from psd.distillation.detectors import Monitor
from psd.distillation.events import Event, LiveChanged, Warned
from psd.distillation.methods import choose
from psd.distillation.session import Session, hold_live_values
from psd.models.interfaces import Models


def take_live_values(session: Session) -> Iterator[Event]:
    """Takes over the values asked for since the last step; wrong ones change nothing and are warned of once."""
    state = session.state
    wish = {**state.live, **session.control.live()}
    if wish in (state.live, session.refused):
        return
    try:
        session.live = apply_live_values(session.preset, session.loaded, wish)
    except PresetError as error:
        session.refused = wish
        yield Warned(step=state.step, message=f"The new values were not taken: {error}")
        return
    changes = {name: value for name, value in wish.items() if state.live.get(name) != value}
    if "rewards" in changes:
        state.monitor = Monitor()  # other weights, another curve
    state.live = wish
    yield LiveChanged(step=state.step, values=changes)
    index, _ = session.preset.stage_at(session.preset.progress(state.step))
    if "rewards" in changes and session.preset.stages and "rewards" in session.preset.stages[index].changes:
        message = f"Stage {index + 1} names its own rewards: what you changed holds in the stages that do not."
        yield Warned(step=state.step, message=message)


def apply_live_values(preset: Preset, models: Models, wish: Mapping[str, Any]) -> Preset:
    """The preset with the live values; raises `PresetError` for what is no live field, no value or no loaded reward."""
    known = list_settings()
    for name in wish:
        if name in known and not read_facts(known[name])["live"]:  # the preset itself refuses unknown names
            raise PresetError(f"{name} cannot change during a run: set it before the start")
    live = hold_live_values(preset, wish)
    if unknown := set(live.rewards) - set(preset.rewards):
        raise PresetError(f"rewards {', '.join(sorted(unknown))} are not loaded: name them at the start, with weight 0")
    choose.check_models(live, models)
    return live
