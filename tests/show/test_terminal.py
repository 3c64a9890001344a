"""The terminal shows text from data as it is, and never obeys it."""

import io

import pytest

from fastltssl.errors import plain
from fastltssl.progress import Note, Progress
from fastltssl.show.terminal import follow, grid, pairs_table, show

NAMES = ("[/b]", "[red]x", "[link=http://a]b[/link]", ":smile:", "<b>&amp;</b>", "{x}", "%s", "名前", "été")


@pytest.mark.parametrize("name", NAMES)
def test_names_that_look_like_markup_are_shown_as_they_are(name, capsys):
    show(grid(["class"], [[name]], title=name))
    show(pairs_table({name: name}, name))
    show(f"class {name}")
    assert capsys.readouterr().out.count(name) == 6


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\rb", "\u202etxt.exe", "bell\x07", "\x9b2J", "nul\0"])
def test_what_steers_a_terminal_is_shown_as_a_code(name, capsys):
    show(grid(["class"], [[name]]))
    show(name)
    told = io.StringIO()

    def work():
        yield Note(name)
        yield Progress(1, 1, 1.0)

    follow(work(), "x", told)
    for text in (capsys.readouterr().out, told.getvalue(), plain(name)):
        assert not set("\x1b\r\x07\x9b\0\u202e") & set(text)
        assert "\\x" in text or "\\u" in text
