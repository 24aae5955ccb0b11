"""How near packings across layers come to a lower bound of sites, and their time: ``python -m benchmarks.packing``.

MobileNets (V1 of arXiv:1704.04861, V2 of arXiv:1801.04381) of width 1.0, with the shapes of their matrices and no
weights, on arrays of several sizes with pairs on two arrays and on neighbouring columns.
"""

import time
from collections.abc import Mapping, Sequence

from compiler.packing import pack_layers, sites_of
from compiler.rectangle_packing import least_sites
from hwspec.array import Array

Matrix = tuple[int, int, int]
"""Groups, rows and columns of a layer's matrices."""
Shapes = Mapping[str, Sequence[tuple[int, int]]]


def mobilenet_v1() -> list[Matrix]:
    """Matrices of MobileNet V1: 3x3 depthwise convolutions, each with a pointwise one."""
    found, channels = [(1, 27, 32)], 32
    for wider in (64, 128, 128, 256, 256, *[512] * 6, 1024, 1024):
        found += [(channels, 9, 1), (1, channels, wider)]
        channels = wider
    return [*found, (1, 1024, 1000)]


def mobilenet_v2() -> list[Matrix]:
    """Matrices of MobileNet V2: inverted bottlenecks that expand, convolve by channel, and project."""
    found, channels = [(1, 27, 32)], 32
    stages = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
    for expansion, results, repeats in stages:
        for _ in range(repeats):
            hidden = expansion * channels
            found += [(1, channels, hidden)] if expansion > 1 else []
            found += [(hidden, 9, 1), (1, hidden, results)]
            channels = results
    return [*found, (1, 320, 1280), (1, 1280, 1000)]


def tile_shapes(matrices: Sequence[Matrix], array: Array) -> dict[str, list[tuple[int, int]]]:
    """Rows and columns of every tile of matrices that are cut to an array's sites."""
    most_rows, most_cols = array.weight_rows, array.weight_cols
    return {
        f"layer{number}": [
            (min(most_rows, rows - row), min(most_cols, cols - col))
            for _ in range(groups)
            for row in range(0, rows, most_rows)
            for col in range(0, cols, most_cols)
        ]
        for number, (groups, rows, cols) in enumerate(matrices)
    }


def main() -> None:
    """Print a table."""
    print("| network | arrays, pairs | tiles | sites: none | layer | all | lower bound | all / bound | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, matrices in (("MobileNet V1", mobilenet_v1()), ("MobileNet V2", mobilenet_v2())):
        for size in (64, 128, 256, 512):
            for pairing in ("two_arrays", "neighbouring_columns"):
                array = Array(rows=size, cols=size, pairing=pairing)
                shapes = tile_shapes(matrices, array)
                every = [shape for of_layer in shapes.values() for shape in of_layer]
                bound = least_sites(every, array.weight_rows, array.weight_cols)
                alone, layer = (
                    sites_of(pack_layers(shapes, array, share=how, spares=False)) for how in ("none", "layer")
                )
                start = time.perf_counter()
                packed = sites_of(pack_layers(shapes, array, share="all", spares=False))
                seconds = time.perf_counter() - start
                sizes = f"{size}x{size}, {pairing.replace('_', ' ')}"
                print(
                    f"| {name} | {sizes} | {len(every):,} | {alone:,} | {layer:,} | {packed:,} | {bound:,} "
                    f"| {packed / bound:.3f} | {seconds:.2f} |"
                )


if __name__ == "__main__":
    main()
