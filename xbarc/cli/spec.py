"""``xbarc spec``."""

from typing import TYPE_CHECKING, Annotated

import typer

from hwspec.errors import DataError
from xbarc.cli.arguments import Json, output_path
from xbarc.cli.output import emit_json, say, table

if TYPE_CHECKING:
    from hwspec.spec import HardwareSpec

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
def show(
    spec: str,
    sources: Annotated[bool, typer.Option("--sources", help="Print where each value comes from, as a table.")] = False,
    all_: Annotated[bool, typer.Option("--all", help="With --sources: also the fields left at their default.")] = False,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Write the YAML to this file.")] = None,
    json: Json = False,
) -> None:
    """Print a preset or spec file as YAML with units; save it and edit it to make one of your own."""
    from hwspec.spec import HardwareSpec

    if all_ and not sources:
        raise DataError("--all", "is read with --sources only", hint="without it every field is printed in any case")
    if sources and output is not None:
        raise DataError("--output", "cannot be given with --sources", hint="the YAML file holds the sources")
    found = HardwareSpec.resolve(spec)
    if output is not None:
        _write(found, output, keep=spec)
        if json:
            emit_json({"spec": output, "name": found.name, "sha256": found.sha256})
        else:
            say(f"written to {output}")
    elif sources:
        _show_sources(found, everything=all_, json=json)
    elif json:
        emit_json(found.model_dump(mode="json"))
    else:
        say(found.to_yaml().rstrip())


def _write(spec: "HardwareSpec", output: str, *, keep: str) -> None:
    path = output_path(output, keep=keep)
    try:
        spec.save(path)
    except OSError as error:
        raise DataError(f"output {output}", f"cannot be written ({error.strerror})") from None


def _show_sources(spec: "HardwareSpec", *, everything: bool, json: bool) -> None:
    units = dict(spec.fields_with_units())
    rows = [(name, value, spec.source_of(name)) for name, value in spec.fields() if name != "name"]
    rows = [row for row in rows if everything or not spec.is_default(row[0])]
    if json:
        emit_json({"fields": [{"field": name, "value": value, "source": source} for name, value, source in rows]})
    else:
        table(["field", "value", "source"], [[name, _text(units[name]), source] for name, _, source in rows])


def _text(value: object) -> str:
    """A value as a spec file has it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@app.command()
def check(spec: str, json: Json = False) -> None:
    """Check a spec file, and tell what it models; exits with 2 and the reasons when it is wrong."""
    from hwspec.effects import active_effects
    from hwspec.scope import EXCLUDED
    from hwspec.spec import HardwareSpec

    found = HardwareSpec.resolve(spec)
    effects = active_effects(found)
    if json:
        emit_json({"name": found.name, "sha256": found.sha256, "effects": effects, "not_modelled": list(EXCLUDED)})
        return
    say(f"{found.name} is valid (sha256 {found.sha256})")
    say(f"effects       {', '.join(effects) or 'none: ideal hardware'}")
    say(f"not modelled  {', '.join(EXCLUDED)}")


@app.command("effects")
def effects_(json: Json = False) -> None:
    """List the physical effects, which --only and --without choose from, and the fields that they stand for."""
    from hwspec.effects import EFFECTS, OF_A_CHIP

    if json:
        emit_json(
            {"effects": {name: {"fields": list(of), "of_a_chip": name in OF_A_CHIP} for name, of in EFFECTS.items()}}
        )
        return
    rows = [[name, ", ".join(of), "yes" if name in OF_A_CHIP else "no"] for name, of in EFFECTS.items()]
    table(["effect", "fields", "differs from chip to chip"], rows)


@app.command()
def fields(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/spec.md.")] = False,
    json: Json = False,
) -> None:
    """List every field of a spec: what it takes, its default, and what it means."""
    from xbarc.spec_page import described_fields, markdown_page

    if markdown:
        say(markdown_page().rstrip())
    elif json:
        emit_json({"fields": [field._asdict() for field in described_fields()]})
    else:
        rows = [
            [field.path, field.kind.replace("`", ""), field.default or "", field.meaning]
            for field in described_fields()
        ]
        table(["field", "values", "default", "meaning"], rows)


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

    specs = [HardwareSpec.resolve(spec) for spec in (first, second)]
    sides = [dict(spec.fields()) for spec in specs]
    changed = {name: (sides[0][name], sides[1][name]) for name in sides[0] if sides[0][name] != sides[1][name]}
    if json:
        emit_json({"differences": {name: list(values) for name, values in changed.items()}})
        return
    if not changed:
        say("no differences")
        return
    units = [dict(spec.fields_with_units()) for spec in specs]
    table(["field", first, second], [[name, *(_text(side[name]) for side in units)] for name in changed])
