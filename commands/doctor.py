"""``nexus doctor``: what is here, and what Nexus can do with it."""

import json
from typing import Annotated

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what is here and what Nexus can do with it.

    Exit code 0 when `nexus serve` can run.

    Example: nexus doctor --json
    """
    from nexus.runtime.doctor import can_serve, examine

    findings = examine()
    able = can_serve(findings)
    if as_json:
        body = {f.name: {"ok": f.ok, "seen": f.seen} for f in findings}
        typer.echo(json.dumps({"can_serve": able, "findings": body}, indent=2))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            typer.echo(f"{'ok' if finding.ok else '--'}  {finding.name:<{width}}  {finding.seen}")
        typer.echo(f"nexus serve can{'' if able else 'not'} run here")
    raise typer.Exit(0 if able else 1)
