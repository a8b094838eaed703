"""The Log tab: what the run said, in order."""

from __future__ import annotations

import gradio as gr

from psd.ui.context import Tab
from psd.ui.state.page import Pane


def log_tab() -> Tab:
    box = gr.Textbox(
        "", label="Log", info="Times count from the start of the run.", lines=16, max_lines=16, interactive=False,
        autoscroll=True, buttons=["copy"], elem_id="log",
    )  # fmt: skip
    return Tab([Pane([box], lambda p: (p.run.run_id, p.run.view.log), lambda p: ["\n".join(p.run.view.log)], "Log")])
