"""HTML pages out of the templates that lie beside the code that fills them."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render_page(package: str, **values: Any) -> str:
    """``page.html.jinja`` of ``package`` with ``values``, which are escaped unless marked safe."""
    environment = Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.jinja").render(values)
