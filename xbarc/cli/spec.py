"""``xbarc spec``."""

import typer

from xbarc.cli.arguments import Json
from xbarc.cli.output import emit_json, say, table

app = typer.Typer(help="Show, check and compare hardware specs.", no_args_is_help=True)


@app.command("list")
def list_(json: Json = False) -> None:
    """List the presets."""
    from hwspec.spec import HardwareSpec

    names = HardwareSpec.presets()
    if json:
        emit_json({"presets": names})
    else:
        say("\n".join(names))


@app.command()
def show(spec: str, json: Json = False) -> None:
    """Print a preset or spec file as YAML with units; save it and edit it to make one of your own."""
    from hwspec.spec import HardwareSpec

    found = HardwareSpec.resolve(spec)
    if json:
        emit_json(found.model_dump(mode="json"))
    else:
        say(found.to_yaml().rstrip())


@app.command()
def check(spec: str, json: Json = False) -> None:
    """Check a spec file; exits with 2 and the reasons when it is wrong."""
    from hwspec.spec import HardwareSpec

    found = HardwareSpec.resolve(spec)
    if json:
        emit_json({"name": found.name, "sha256": found.sha256})
    else:
        say(f"{found.name} is valid (sha256 {found.sha256})")


@app.command()
def schema(json: Json = False) -> None:
    """Print the JSON Schema of spec files."""
    del json  # it is JSON in any case
    from hwspec.spec import HardwareSpec

    emit_json(HardwareSpec.model_json_schema())


@app.command()
def diff(first: str, second: str, json: Json = False) -> None:
    """Print the fields in which two specs differ."""
    from hwspec.spec import HardwareSpec

    sides = [dict(HardwareSpec.resolve(spec).fields()) for spec in (first, second)]
    changed = {name: (sides[0][name], sides[1][name]) for name in sides[0] if sides[0][name] != sides[1][name]}
    if json:
        emit_json({"differences": {name: list(values) for name, values in changed.items()}})
        return
    if not changed:
        say("no differences")
        return
    table(["field", first, second], [[name, str(a), str(b)] for name, (a, b) in changed.items()])
