"""Operators that read or write by index."""

import torch
from torch import Tensor

from runtime.host_ops.node_torch import HostNode, only_text, translates


def _from_end(indices: Tensor, length: int) -> Tensor:
    """Negative indices count from the end; torch's kernels want int64."""
    indices = indices.long()
    return torch.where(indices < 0, indices + length, indices)


@translates("Gather")
def gather(node: HostNode, x: Tensor, indices: Tensor) -> Tensor:
    """The axis is replaced by all the axes of the indices."""
    axis = node.integer("axis", 0) % x.ndim
    chosen = _from_end(indices, x.shape[axis])
    return x.index_select(axis, chosen.flatten()).reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


@translates("GatherElements")
def gather_elements(node: HostNode, x: Tensor, indices: Tensor) -> Tensor:
    """One index an output element, along one axis."""
    axis = node.integer("axis", 0)
    return torch.gather(x, axis, _from_end(indices, x.shape[axis]))


@translates("GatherND")
def gather_nd(node: HostNode, x: Tensor, indices: Tensor) -> Tensor:
    """The last axis of the indices is an index tuple; the first ``batch_dims`` axes go in step."""
    batch_dims = node.integer("batch_dims", 0)
    grids = []
    for axis in range(batch_dims):
        grid = torch.arange(x.shape[axis], device=x.device)
        grids.append(grid.reshape([-1 if place == axis else 1 for place in range(indices.ndim - 1)]))
    return x[(*grids, *indices.long().unbind(-1))]


@translates("ScatterND", refuses=only_text("reduction", "none", "none"))
def scatter_nd(_: HostNode, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """The last axis of the indices is an index tuple."""
    return x.index_put(indices.long().unbind(-1), updates)


@translates("ScatterElements", refuses=only_text("reduction", "none", "none"))
def scatter_elements(node: HostNode, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """One index an update, along one axis."""
    axis = node.integer("axis", 0)
    return torch.scatter(x, axis, _from_end(indices, x.shape[axis]), updates)


@translates("ArrayFeatureExtractor", domain="ai.onnx.ml")
def array_feature_extractor(_: HostNode, x: Tensor, indices: Tensor) -> Tensor:
    """Columns of the last axis; a vector comes back as one row."""
    return x.reshape(-1, x.shape[-1]).index_select(-1, indices.flatten().long())


@translates("OneHot", host=(1,))
def one_hot(node: HostNode, indices: Tensor, depth: list[float], values: Tensor) -> Tensor:
    """Negative indices count from the end; those out of range give a row without a one."""
    count = int(depth[0])
    axis = node.integer("axis", -1)
    axis += indices.ndim + 1 if axis < 0 else 0
    classes = torch.arange(count, device=indices.device)
    hit = _from_end(indices, count).unsqueeze(axis) == classes.reshape([-1] + [1] * (indices.ndim - axis))
    return torch.where(hit, values[1], values[0])


@translates("NonZero")
def non_zero(_: HostNode, x: Tensor) -> Tensor:
    """One row an axis, where torch has one column."""
    return torch.nonzero(x).T
