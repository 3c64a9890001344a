"""The address of the page contains the positions of all moved widgets, so that a link restores them."""

from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urlencode

import numpy as np
import panel as pn
from panel.io.location import Location

WRITE = """const address = new URL(window.location)
for (const [name, value] of new URLSearchParams(cb_obj.value))
  value ? address.searchParams.set(name, value) : address.searchParams.delete(name)
window.history.replaceState(window.history.state, '', address)"""  # adds no entry to the history: Back leaves the page


class Unread(Location):
    """Panel's own view of the address, which it would read and fail at what only looks like a number, such as "²"."""

    @property
    def query_params(self) -> dict[str, Any]:
        """Nothing: `Address` reads the address."""
        return {}


class Address:
    """What the link asked for, and what was moved since. `line`, a hidden widget, must be in the page."""

    def __init__(self, asked: dict[str, str]) -> None:
        self.asked = asked
        self.line = pn.widgets.TextInput(visible=False)
        self.line.jscallback(value=WRITE)
        self.changed: Callable[[], None] = self.write  # called when the address should change
        self._told = dict(asked)

    def keep(self, parameter: str = "value", /, **widgets: Any) -> None:
        """Set each widget to the nearest value to what the link asks for, and keep it in the address by its name."""
        for name, widget in widgets.items():
            self.restore(name, widget, parameter)
        self.watch(parameter, **widgets)

    def watch(self, parameter: str = "value", /, **widgets: Any) -> None:
        """Write widgets to the address from their next move on."""
        for name, widget in widgets.items():
            widget.param.watch(partial(self._moved, name), parameter)

    def restore(self, name: str, widget: Any, parameter: str = "value") -> None:
        """Set a widget to what the link asks for, the first time only."""
        if name in self.asked and put(widget, self.asked[name], parameter):
            del self.asked[name]

    def number(self, name: str) -> int | None:
        """A whole number >= 0 that the link asks for, the first time only."""
        text = self.asked.pop(name, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None

    def tell(self, name: str, value: Any) -> None:
        """Write a value to the address with the next repaint; None removes its name."""
        text = "" if value is None else as_text(value)
        if self._told.get(name, "") != text:
            self._told[name] = text
            self.changed()

    def write(self) -> None:
        """Send the address to the browser."""
        self.line.value = urlencode(self._told)

    def forget(self, *names: str) -> None:
        """Remove names from the address and from what the link asked for; "set." stands for all names that begin so."""
        for name in {*self.asked, *self._told}:
            if name in names or f"{name.partition('.')[0]}." in names:
                self.asked.pop(name, None)
                self.tell(name, None)

    def _moved(self, name: str, event: Any) -> None:
        self.tell(name, event.new)


def as_text(value: Any) -> str:
    """A value of a widget as text in an address."""
    if isinstance(value, tuple | list):
        return "~".join(map(as_text, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def put(widget: Any, text: str, parameter: str = "value") -> bool:
    """Set a widget to the value nearest to a text of an address; False if no value is near, and it stays as it is."""
    if (options := getattr(widget, "options", None)) is not None:
        value = _option(list(options), text)
    elif isinstance(getattr(widget, parameter), str):
        value = text
    elif isinstance(widget, pn.Tabs):
        value = _option(list(range(len(widget))), text)
    else:
        value = _within(widget, text)
    if value is not None:
        widget.param.update(**{parameter: value})
    return value is not None


def _option(options: list[Any], text: str) -> Any:
    """The option with that text, else the nearest one if options are numbers."""
    by_text = {as_text(option): option for option in options}
    number = _number(text)
    if text in by_text or number is None or not all(isinstance(option, int | float) for option in options):
        return by_text.get(text)
    return min(options, key=lambda option: abs(option - number), default=None)


def _within(widget: Any, text: str) -> Any:
    """A number, or a pair of numbers, clipped to the range of a slider; None if the text is something else."""
    numbers = [_number(part) for part in text.split("~")]
    inside = [None if number is None else float(np.clip(number, widget.start, widget.end)) for number in numbers]
    is_pair = isinstance(widget.value, tuple)
    if None in inside or len(inside) != 1 + is_pair:
        return None
    return tuple(sorted(inside)) if is_pair else inside[0]


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return None if number != number else number
