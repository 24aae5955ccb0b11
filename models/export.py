"""Export of a trained torch network to one small ONNX file."""

from pathlib import Path

import onnx
import onnx_ir
import torch
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules.common import materialize_reshape_shape_rule, remove_optional_bias_from_conv_rule
from torch import nn

OPSET = 18


def export_onnx(network: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Write a network as ONNX: free batch, weights inside, batch normalisation as nodes of its own.

    Parameters
    ----------
    network
        In evaluation mode.
    example : (n, channels, height, width)
        Fixes every size but the first.
    path
        The file to write.
    """
    exported = torch.onnx.export(
        network,
        (example,),
        input_names=["image"],
        output_names=["scores"],
        opset_version=OPSET,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        optimize=False,
        verbose=False,
    )
    if exported is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = onnx_ir.to_proto(simplify(exported.model))
    strip_notes(model)
    strip_weight_shapes(model)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def simplify(model: onnx_ir.Model) -> onnx_ir.Model:
    """Fold what the exporter computes from shapes; nothing is fused, for that is the compiler's work.

    The optimizer that the exporter offers (``optimize=True``) would also fuse the batch normalisation.

    Parameters
    ----------
    model
        An exported model; it is changed in place.
    """
    optimizer.fold_constants(model)
    passes = onnx_ir.passes.Sequential(
        rewriter.RewritePass([materialize_reshape_shape_rule, remove_optional_bias_from_conv_rule]),
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.NameFixPass(),
    )
    return passes(model).model


def strip_notes(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes about its own machine: source lines, stack traces, module names."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def strip_weight_shapes(model: onnx.ModelProto) -> None:
    """Remove the shapes noted of weights, which have them already: tools that transpose a weight trip over the note."""
    weights = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.value_info if value.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
