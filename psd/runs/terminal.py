"""A run on one line of a terminal: step, stage, steps a second, time left, reward."""

from __future__ import annotations

from collections import deque
from typing import TextIO

from psd.distillation.events import Event, Failed, Finished, LiveChanged, Meshed, Started, Stepped, Warned

WINDOW = 20  # steps that the speed is taken over
PLAIN_EVERY = 10  # steps between lines where no line can be redrawn
BAR = 24


class Progress:
    """Redraws one line on a terminal; elsewhere writes a line every `PLAIN_EVERY` steps."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._terminal = stream, stream.isatty()
        self._times: deque[tuple[int, float]] = deque(maxlen=WINDOW + 1)
        self._total, self._drawn = 0, 0
        self._stage, self._stages = 0, 0  # none: 0
        self._scores: dict[str, float] = {}

    def show(self, event: Event) -> None:
        match event:
            case Started():
                self._total, self._stages = event.total_steps, len(event.preset.get("stages", ()))
                self._times.append((event.step, event.time_s))
                for note in event.notes:
                    self._write_line(note)
            case Stepped():
                self._times.append((event.step, event.time_s))
                self._stage = event.stage
                scores = {key: value for key, value in event.metrics.items() if key.startswith(("reward/", "judge/"))}
                self._scores |= scores
                if self._terminal:
                    self._redraw_line(self.text())
                elif event.step % PLAIN_EVERY == 0 or event.step == self._total:
                    self._write_line(self.text())
            case Warned():
                self._write_line(f"warning: {event.message}")
            case LiveChanged():
                self._write_line(", ".join(f"{name} is now {value}" for name, value in event.values.items()))
            case Meshed():
                numbers = [f"{event.statistics[key]} {key}" for key in ("vertices", "faces") if key in event.statistics]
                self._write_line(f"mesh: {', '.join(numbers) or 'none'}" + (f" in {event.file}" if event.file else ""))
            case Finished():
                scores = "".join(f", {_shorten_name(name)} {value:.3f}" for name, value in event.scores.items())
                self._write_line(f"{event.reason} after {event.step} steps and {format_duration(event.time_s)}{scores}")
            case Failed():
                self._write_line(
                    f"failed at step {event.step}: {event.message}" + (f"\n{event.cure}" if event.cure else "")
                )

    def text(self) -> str:
        """``[####....]  45/120  stage 1 of 2  1.31 it/s  0:57 left  reward 0.312``"""
        (first, then), (step, now) = self._times[0], self._times[-1]
        done = BAR * step // max(self._total, 1)
        parts = [f"[{'#' * done}{'.' * (BAR - done)}]", f"{step:{len(str(self._total))}}/{self._total}"]
        if self._stages:
            parts.append(f"stage {self._stage + 1} of {self._stages}")
        if now > then:
            rate = (step - first) / (now - then)
            parts += [f"{rate:.2f} it/s", f"{format_duration((self._total - step) / rate)} left"]
        parts += [f"{_shorten_name(name)} {value:.3f}" for name, value in self._scores.items()]
        return "  ".join(parts)

    def close(self) -> None:
        """Leave the cursor on a line of its own."""
        if self._drawn:
            self._stream.write("\n")
            self._drawn = 0
        self._stream.flush()

    def _redraw_line(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._drawn))
        self._stream.flush()
        self._drawn = len(text)

    def _write_line(self, text: str) -> None:
        """A line that stays; the redrawn one goes on below it."""
        before = "\r" + " " * self._drawn + "\r" if self._drawn else ""
        self._stream.write(f"{before}{text}\n")
        self._stream.flush()
        self._drawn = 0


def format_duration(seconds: float) -> str:
    """``0:57``, ``1:02:03``"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _shorten_name(name: str) -> str:
    """``reward/assets/reward`` -> ``reward``; ``judge/assets/selector`` -> ``judge selector``"""
    kind, _, source = name.partition("/")
    last = source.rstrip("/").rpartition("/")[2]
    return kind if last == kind else f"{kind} {last}"
