"""Kinds of things as pictures that fill in the prompt: all that can be made, or those that are nearest to a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

import gradio as gr

from psd.ui.inputs.vocabulary import OfferedKind, Vocabulary
from psd.ui.markup.html import page_file_url

HEADINGS = {
    "animal": "Animals", "building": "Buildings", "character": "Characters", "dinosaur": "Dinosaurs",
    "nature": "Plants and landscape", "primitive": "Plain shapes", "space": "Space", "street": "Street",
    "tool": "Tools and weapons", "treasure": "Treasure", "vehicle": "Vehicles",
}  # fmt: skip
# A click fills the prompt as a hand would that types, so the rest of the page hears of it.  A finger gets no keyboard.
FILL = """
element.addEventListener('click', event => {
  const tile = event.target.closest('.kind'), field = document.querySelector('#prompt textarea')
  if (!tile) return
  field.value = tile.dataset.caption
  field.dispatchEvent(new Event('input', {bubbles: true}))
  field.scrollIntoView({block: 'nearest'})
  if (event.pointerType !== 'touch') field.focus()
})
"""
# Every typed word begins a word of what finds a kind; of a plural the singular does.  The list is one place for the
# Tab key, and the arrows move inside it: nobody wants to pass three hundred pictures on the way to what comes after.
SEARCH = """
const parts = selector => [...element.querySelectorAll(selector)]
const shown = () => parts('.kind:not([hidden])')
const begins = (said, word) => said.includes(' ' + word)
const isCalled = (said, word) => begins(said, word)
  || (word.length > 3 && word.endsWith('s') && begins(said, word.slice(0, -1)))
  || (word.length > 4 && word.endsWith('es') && begins(said, word.slice(0, -2)))
const isName = (tile, typed) => `${tile.dataset.words} `.includes(` ${typed.trim().toLowerCase()} `)
const bestOf = (tiles, typed) => tiles.find(tile => isName(tile, typed)) ?? tiles[0]
const enter = chosen => { for (const tile of parts('.kind')) tile.tabIndex = tile === chosen ? 0 : -1 }
element.addEventListener('input', event => {
  const typed = event.target.value.toLowerCase().split(/[^a-z0-9]+/)
  const words = typed.filter(word => word && !['a', 'an', 'the'].includes(word))
  for (const tile of parts('.kind')) tile.hidden = !words.every(word => isCalled(tile.dataset.words, word))
  for (const group of parts('section')) group.hidden = !group.querySelector('.kind:not([hidden])')
  const count = shown().length
  element.querySelector('[role=status]').textContent = !words.length ? '' : count
    ? count + (count > 1 ? ' kinds' : ' kind') : 'Nothing here has that name. Typed as a prompt, it gets the nearest.'
  enter(shown()[0])
})
element.addEventListener('keydown', event => {
  const tiles = shown(), tile = event.target.closest('.kind')
  if (!tile) {
    if (event.key === 'Enter' && event.target.value) bestOf(tiles, event.target.value)?.click()
    if (event.key === 'ArrowDown') { event.preventDefault(); tiles[0]?.focus() }
    return
  }
  const from = tile.getBoundingClientRect(), place = tiles.indexOf(tile)
  const reach = sign => {
    const ahead = tiles.map(other => [other, other.getBoundingClientRect()])
      .map(([other, box]) => [other, sign * (box.top - from.top), Math.abs(box.left - from.left)])
      .filter(([, down]) => down > 4)
    return ahead.sort((one, two) => one[1] - two[1] || one[2] - two[2])[0]?.[0]
  }
  const next = {ArrowRight: () => tiles[place + 1], ArrowLeft: () => tiles[place - 1], ArrowDown: () => reach(1),
    ArrowUp: () => reach(-1) ?? element.querySelector('input'),
    Home: () => tiles[0], End: () => tiles.at(-1)}[event.key]
  if (!next) return
  event.preventDefault()
  next()?.focus()
})
element.addEventListener('focusin', event => { if (event.target.matches('.kind')) enter(event.target) })
"""


def build_picker(vocabulary: Vocabulary) -> None:
    """The list of all that can be made, in the current Blocks context."""
    with gr.Accordion("What can be made", open=False, elem_id="picker"):
        gr.HTML(picker_html(vocabulary), js_on_load=FILL + SEARCH)


def picker_html(vocabulary: Vocabulary) -> str:
    """A field to search in, and the offered kinds below their categories."""
    kinds = sorted(vocabulary.kinds, key=lambda kind: _name_category(kind.category))
    groups = "".join(
        f"<section><h3>{escape(name)}</h3>{tiles_html(vocabulary, list(group), tabindex=-1)}</section>"
        for name, group in groupby(kinds, key=lambda kind: _name_category(kind.category))
    ).replace('tabindex="-1"', 'tabindex="0"', 1)
    return (
        f"<p>{len(kinds)} kinds of things. {escape(vocabulary.hint)}</p>"
        '<input type="search" aria-label="Find a kind" placeholder="Find: truck, dinosaur, food …" autocomplete="off">'
        f'<p role="status"></p><div class="all-kinds">{groups}</div>'
    )


def tiles_html(vocabulary: Vocabulary, kinds: Sequence[OfferedKind], *, tabindex: int = 0) -> str:
    """A button for each kind: its picture, which is a part of the sheet, and its noun."""
    tiles = "".join(
        f'<button type="button" class="kind" tabindex="{tabindex}" data-caption="{escape(kind.caption)}"'
        f' data-words="{escape(_list_words(kind))}" style="--x:{kind.place[0]};--y:{kind.place[1]}">'
        f"<i></i>{escape(kind.noun)}</button>"
        for kind in kinds
    )
    sheet = escape(f"--sheet:url('{page_file_url(vocabulary.sheet)}');--columns:{vocabulary.columns}")
    return f'<div class="kinds" style="{sheet}">{tiles}</div>'


def _list_words(kind: OfferedKind) -> str:
    """What finds it, each word after a space."""
    said = " ".join([kind.noun, *kind.names, kind.category, _name_category(kind.category)])
    return " " + said.lower().replace("-", " ")


def _name_category(category: str) -> str:
    return HEADINGS.get(category, category.capitalize())
