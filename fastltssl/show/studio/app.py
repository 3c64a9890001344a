"""The web page of one visitor: its side bar, tabs, address and CSV files."""

import hmac
import io
import logging
from functools import partial
from typing import Any

import panel as pn

from fastltssl.show.report.exhibits import slug
from fastltssl.show.studio import drawing as d
from fastltssl.show.studio import map as map_page
from fastltssl.show.studio import overview, pseudo_labels, refit, samples
from fastltssl.show.studio.address import Address, Unread
from fastltssl.show.studio.session import (
    SLIDERS,
    Options,
    Page,
    Session,
    Shown,
    at_hand,
    moved,
    open_session,
    reset,
    telling,
)
from fastltssl.show.tables import as_csv

PAGES = {
    "Overview": overview.page,
    "Pseudo-labels": pseudo_labels.page,
    "Refit": refit.page,
    "Samples": samples.page,
    "Map": map_page.page,
}
OF_A_RUN = ("set.", "row", "page", "true", "label", "knob")  # names in an address that are forgotten with the run
THEME_LINK = (
    '<a class="theme" href="#" style="color:inherit;font-size:14px" onclick="const a=new URL(window.location);'
    "a.searchParams.set('theme','{other}');window.location=a;return false\">{other} theme</a>"
)


def guarded_page(options: Options, token: str | None) -> Any:
    """The page for one visitor, or the reason why there is none, which panel would print with its traceback."""
    try:
        return page(options, token)
    except Exception as error:
        logging.getLogger("panel.fastltssl").exception("the page cannot be shown")
        return pn.pane.HTML(d.note(f"The page cannot be shown: {type(error).__name__}: {error}"))


def page(options: Options, token: str | None) -> Any:
    """The page for one visitor. If there is a token, it shows a form until the visitor gives the token."""
    if (document := pn.state.curdoc) is not None:
        pn.state._locations[document] = Unread()
    asked = {name: values[0].decode(errors="replace") for name, values in pn.state.session_args.items()}
    is_dark = asked.get("theme") == "dark"
    template: Any = pn.template.BootstrapTemplate(
        title="fastltssl studio", theme="dark" if is_dark else "default", sidebar_width=290,
        header_background="#2d3540", collapsed_sidebar=False, busy_indicator=None, raw_css=[d.sheet(is_dark), SHELL],
    )  # fmt: skip
    template.header.append(pn.pane.HTML(THEME_LINK.format(other="light" if is_dark else "dark"), align="center"))
    body, side = pn.Column(sizing_mode="stretch_width"), pn.Column(sizing_mode="stretch_width")
    address = Address(asked)
    template.main.extend([body, address.line])
    template.sidebar.append(side)

    def enter() -> None:
        side.objects, body.objects = _filled(open_session(options, is_dark, address))

    if token is None or hmac.compare_digest(asked.get("token", "").encode(), token.encode()):
        enter()
        return template
    given = pn.widgets.PasswordInput(label="Token, as the terminal shows it", width=320)

    def check(_: Any) -> None:
        if hmac.compare_digest(str(given.value).encode(), token.encode()):
            enter()
            address.tell("token", token)
        else:
            given.label = "That is not the token that the terminal shows"

    given.param.watch(check, "value")
    body.append(given)
    return template


SHELL = """
#main { background: transparent; }
#header { box-shadow: none; }
.bk-tab { font-size: 14px; }
"""


def _filled(session: Session) -> tuple[list[Any], list[Any]]:
    """The contents of the side bar and of the body; a tab is built when it is first opened."""
    places = [pn.Column(sizing_mode="stretch_width", min_height=300) for _ in PAGES]
    tabs = pn.Tabs(*zip(PAGES, places, strict=True), dynamic=True, sizing_mode="stretch_width")
    built: dict[int, Page] = {}

    def repaint(shown: Shown) -> None:
        index = tabs.active
        if index not in built:
            built[index] = list(PAGES.values())[index](session)
        built[index].repaint(shown)
        if not places[index].objects:
            places[index].objects = [built[index].layout]

    def as_file() -> io.BytesIO:
        name = f"{session.run.value} seed{session.seed.value} {list(PAGES)[tabs.active]}"
        download.filename = f"{slug(name)}.csv"
        lines = built[tabs.active].lines(session.shown) if session.shown else []
        return io.BytesIO(as_csv(lines or [{"note": "nothing is shown here"}]).encode())

    session.repaint = repaint
    session.address.changed = partial(moved, session)
    download = pn.widgets.FileDownload(
        callback=as_file, filename="shown.csv", label="CSV of what is shown", sizing_mode="stretch_width"
    )
    side = _side_bar(session, download)
    _follow(session, tabs)
    moved(session)
    return side, [session.notice, tabs]


def _side_bar(session: Session, download: Any) -> list[Any]:
    """The widgets that choose a run and move its scores, and the buttons under them."""
    dark = session.is_dark
    back = pn.widgets.Button(label="As trained", sizing_mode="stretch_width")

    def restore(_: Any) -> None:
        reset(session)
        moved(session)

    back.on_click(restore)
    for widget in (session.run, session.seed, session.step, *session.sliders.values()):
        widget.sizing_mode = "stretch_width"
    head = d.text(
        "<h3>A cure after training</h3>"
        + d.note("Scores are cached: the sliders relabel the pool and the test rows at once, and nothing is trained."),
        dark,
        margin=(8, 10),
    )
    sliders = [session.sliders[name] for name in SLIDERS]
    return [session.run, session.seed, session.step, head, *sliders, back, download]


def _follow(session: Session, tabs: Any) -> None:
    """Repaint when a widget of the side bar moves or another tab is opened, and keep the tab in the address."""

    def other_run(_: Any) -> None:
        session.address.forget(*OF_A_RUN)
        seeds = list(at_hand(session.folder, None).config.seeds)
        kept = session.seed.value if session.seed.value in seeds else seeds[0]
        session.seed.param.update(options=seeds, value=kept)
        restart(None)

    def restart(_: Any) -> None:
        session.brushed = None
        with telling(session):
            reset(session)
        moved(session)

    session.address.keep("active", tab=tabs)
    session.run.param.watch(other_run, "value")
    session.seed.param.watch(restart, "value")
    for widget in (session.step, *session.sliders.values()):
        widget.param.watch(lambda _: moved(session), "value")
    tabs.param.watch(lambda _: moved(session), "active")
