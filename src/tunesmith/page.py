"""Pages for a browser: one file each, which fetches nothing; every text in it is escaped, and steers nothing."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tunesmith.printable import visible


def rendered(template: str, **values: Any) -> str:
    """A template below this package, such as "study/report.html.j2", with its values."""
    environment = Environment(loader=PackageLoader("tunesmith", ""), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"visible": visible, "share": lambda *counts: share(*counts).replace(" ", "\xa0")}
    return environment.get_template(template).render(**values)


def share(part: float, whole: float) -> str:
    """A part of a whole in percent; 0 and 100 only where it is none or all."""
    if not whole:
        return "0 %"
    percent = 100 * part / whole
    if 0 < percent < 0.1 or 99.9 < percent < 100:
        return "<0.1 %" if percent < 1 else ">99.9 %"
    return f"{percent:.0f} %" if percent in (0, 100) else f"{percent:.1f} %"
