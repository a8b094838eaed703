"""What the server remembers of each visitor's session: little, and of so many visitors only.

Gradio keeps up to 10,000 sessions, each with a copy of the whole page's declaration: for links to a state of the page
(`psd.ui.protection.ClosedRoutes` shuts that route).  On this page that is 0.4 MB and 0.1 s for each new visitor, a
script that makes one call included.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import gradio as gr
from gradio.routes import App
from gradio.state_holder import SessionState, StateHolder
from gradio.utils import LRUCache

MOST_SESSIONS = 400  # then the one that was silent for longest is forgotten: its page starts anew when it asks again


class PageSession(SessionState):
    """The values of a visitor's `gr.State`s and the updates of the components, without a copy of the page."""

    def __init__(self, blocks: gr.Blocks) -> None:
        self.blocks_config = copy(blocks.default_config)
        self.config_values = _Nothing()
        self.state_data = {}
        self._state_ttl = {}
        self.is_closed = False
        self.STATE_TTL_WHEN_CLOSED = 3600

    def _update_config(self, key: int) -> None:
        """Nothing: no copy of the page is kept."""

    def _update_value_in_config(self, key: int, value: Any) -> None:
        """Nothing: no copy of the page is kept."""


class Sessions(StateHolder):
    """Gradio's sessions, each made as a `PageSession` when it is first asked for."""

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = PageSession(self.blocks)
        return super().__getitem__(session_id)


class _Nothing(dict):
    """Takes values and keeps none."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class UnreadMessages(LRUCache):
    """The messages that wait for each session's client; those go first that were not asked for longest.

    Gradio keeps 2,000, among them those of clients that left before their answer came, and forgets the oldest session
    first, even while its client reads.
    """

    def __getitem__(self, session_id: str) -> Any:
        self.move_to_end(session_id)
        return super().__getitem__(session_id)


def keep_few_sessions(app: App, blocks: gr.Blocks) -> None:
    """Replace the sessions of a server that has just been launched."""
    blocks.state_session_capacity = MOST_SESSIONS
    app.state_holder = Sessions()
    app.state_holder.set_blocks(blocks)
    blocks._queue.pending_messages_per_session = UnreadMessages(MOST_SESSIONS)
