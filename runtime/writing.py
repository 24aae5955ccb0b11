"""Writing a program's arrays: once before inference, or one segment of layers after another for every batch."""

from collections import Counter

from pydantic import BaseModel, ConfigDict, Field

from runtime.program import TileProgram


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Programming(_Record):
    """What writing a program takes, each device with as many pulses as it may get."""

    devices: int
    pulses: int = Field(description="a device, at most")
    energy: float
    time: float = Field(description="seconds, arrays of a segment written side by side")


class Segment(_Record):
    """Layers that are on the arrays together."""

    layers: tuple[str, ...]
    arrays: int = Field(description="that are written for them")
    devices: int = Field(description="that are written for them")
    energy: float = Field(description="joules of that")
    write_time: float = Field(description="seconds of that, arrays side by side")


class Reloading(_Record):
    """Writing segments to the same arrays one after another, again for every batch of samples."""

    arrays: int = Field(description="that segments are written to")
    batch: int = Field(description="samples that each segment computes before the next one is written")
    segments: tuple[Segment, ...]
    writes: int = Field(description="of the array that is written most often, for each batch")
    pulses: int = Field(description="on a device of that array for each batch, at most")
    energy: float = Field(description="joules of writing for each batch")
    time: float = Field(description="seconds of writing for each batch")


def written_devices(program: TileProgram) -> dict[int, int]:
    """Devices that tiles use, by the array that they lie on."""
    found: dict[int, int] = {}
    for tile in program.tables.tiles:
        for number, rows, cols in program.places(tile.name).values():
            found[number] = found.get(number, 0) + len(rows) * len(cols)
    return found


def segments_of(program: TileProgram, *, again: bool = False) -> tuple[Segment, ...]:
    """The segments of a program, in order; one where all layers are written once.

    Parameters
    ----------
    program
        The program.
    again
        Whether only what must be written for every batch counts: an array that one segment alone uses keeps what it
        holds.
    """
    tables, write = program.tables, program.spec.costs.write
    pulses = program.spec.device.programming.pulses
    devices: dict[int, dict[int, int]] = {}
    for number, count in written_devices(program).items():
        devices.setdefault(tables.segment(number), {})[tables.physical(number)] = count
    users = Counter(array for of_arrays in devices.values() for array in of_arrays)
    layers: dict[int, dict[str, None]] = {}
    for tile in tables.tiles:
        layers.setdefault(tables.segment(tile.array), {})[tile.layer] = None
    found = []
    for segment, of_arrays in sorted(devices.items()):
        counts = [count for array, count in of_arrays.items() if users[array] > 1 or not again]
        rounds = max((-(-count // write.parallel) for count in counts), default=0)
        found.append(
            Segment(
                layers=tuple(layers[segment]),
                arrays=len(counts),
                devices=sum(counts),
                energy=sum(counts) * pulses * write.energy,
                write_time=rounds * pulses * write.time,
            )
        )
    return tuple(found)


def programming_of(program: TileProgram) -> Programming:
    """What writing all of a program once takes."""
    segments, pulses = segments_of(program), program.spec.device.programming.pulses
    return Programming(
        devices=sum(segment.devices for segment in segments),
        pulses=pulses,
        energy=sum(segment.energy for segment in segments),
        time=sum(segment.write_time for segment in segments),
    )


def reloading_of(program: TileProgram, batch: int) -> Reloading | None:
    """What a batch of so many samples takes of writing; None where all layers are written once."""
    tables = program.tables
    if tables.reload is None:
        return None
    segments, writes = segments_of(program, again=True), Counter(map(tables.physical, written_devices(program)))
    most = max(count for count in writes.values())
    return Reloading(
        arrays=tables.reload,
        batch=batch,
        segments=segments,
        writes=most,
        pulses=most * program.spec.device.programming.pulses,
        energy=sum(segment.energy for segment in segments),
        time=sum(segment.write_time for segment in segments),
    )
