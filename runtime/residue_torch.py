"""The weights of a layer in digital memory, in torch: one small matrix product beside those of the arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from runtime.batches_torch import ToTensor
from runtime.programming import ProgrammedChip
from runtime.tables import Load


@dataclass(frozen=True, eq=False)
class ResidueMatrix:
    """Products of the input codes at `rows` with `matrix` ``(rows, columns)`` go to `columns` of the result."""

    rows: Tensor
    columns: Tensor
    matrix: Tensor

    def add_to(self, total: Tensor, codes: Tensor) -> Tensor:
        """Results ``(windows, length)`` with the products of codes ``(windows, elements of the layer's vectors)``."""
        return total.index_add(1, self.columns, codes[:, self.rows] @ self.matrix)


def residue_matrix(
    chip: ProgrammedChip, layer: str, loads: Sequence[Load], to_tensor: ToTensor
) -> ResidueMatrix | None:
    """The residue of a layer whose rows were loaded, for codes; None for none, and for exact layers."""
    table = chip.program.layers[layer]
    index, values = chip.program.residue(layer)
    row = index // table.cols
    kept = np.zeros(len(index), bool)
    for load in loads:
        kept |= (row >= load.start) & (row < load.stop)
    if layer in chip.exact_layers or not kept.any():
        return None
    column = row // table.rows * table.cols + index % table.cols
    rows, at_row = np.unique(row[kept], return_inverse=True)
    columns, at_column = np.unique(column[kept], return_inverse=True)
    dense = np.zeros((len(rows), len(columns)))
    dense[at_row, at_column] = values[kept] * (table.full_scale / (chip.drive(layer).code_max or 1))
    matrix = to_tensor(dense)
    where = [torch.from_numpy(lines).to(matrix.device) for lines in (rows, columns)]
    return ResidueMatrix(where[0], where[1], matrix)
