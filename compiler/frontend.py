"""The front end: reads an ONNX model safely and says at once what is wrong with it.

A model file is untrusted input. Every count, size and path in it is checked, in Python integers, before anything of
that size is allocated or opened. What comes out is one self-contained protobuf: external data folded in, names defined
before they are used, tensors that hold exactly the data that their shapes promise.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from compiler.tensor_data import check_tensor, fold_external_data, has_external_data
from hwspec.errors import ModelError, ModelFileError

MAX_PROTOBUF_BYTES = 2**31 - 1
"""Protobuf's own limit on the size of a message."""

MAX_TENSOR_ELEMENTS = 2**34
"""A declared static tensor beyond this is a corrupt or hostile file."""

KNOWN_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operator domains that onnxruntime implements; domains of model-local functions come on top."""

MAX_NAME = 2048
"""Letters of a name; passes make longer ones of it."""

_ALWAYS_READ_OPSET = 21
_ALWAYS_READ_IR = 10
"""The oldest onnxruntime that xbarc allows reads these; only newer models need a question to the installed one."""


@dataclass(frozen=True)
class SourceModel:
    """A model as given, self-contained.

    Parameters
    ----------
    name
        The file's stem, or the graph's name for a model that did not come from a file.
    proto
        The model with all external data folded in. Shared, not to be modified.
    sha256
        Hash of the proto's deterministic serialisation, in hexadecimal.
    """

    name: str
    proto: onnx.ModelProto
    sha256: str


def load_model(source: str | Path | bytes | onnx.ModelProto) -> SourceModel:
    """Read and check a model.

    Parameters
    ----------
    source
        Path of an ONNX file, the bytes of one, or a model in memory (which is copied).

    Returns
    -------
    SourceModel
        The model, all external data folded in.

    Raises
    ------
    ModelFileError
        The file is missing, corrupt, hostile or larger than protobuf allows.
    ModelError
        The model is well formed but needs an operator domain or opset that onnxruntime lacks.
    """
    folder: Path | None = None
    if isinstance(source, onnx.ModelProto):
        proto, name = onnx.ModelProto(), "the model"
        proto.CopyFrom(source)
    elif isinstance(source, bytes):
        proto, name = _parse(source, "the model"), "the model"
    elif isinstance(source, str | Path):
        path = Path(source)
        if "\0" in str(path):
            raise ModelFileError("the model's path", "must not hold a NUL byte", got=str(path))
        proto, name, folder = _parse(_read_file(path), str(path)), str(path), path.parent
    else:
        raise ModelFileError("the model", "must be a path, bytes or an onnx.ModelProto", got=type(source).__name__)

    _check_header(proto, name)
    _check_text(proto, name)
    proto.ClearField("training_info")
    _check_tensors(proto, folder, name)
    for graph in _graphs(proto):
        _check_declared_shapes(graph, name)
    _check_names(proto.graph, [], name)
    for function in proto.functions:
        _check_function_names(function, name)
    _check_operator_sets(proto, name)
    stem = Path(name).stem if folder is not None else proto.graph.name or "model"
    return SourceModel(stem, proto, hashlib.sha256(_serialise(proto, name)).hexdigest())


# -- the file ---------------------------------------------------------------------------------------------------------


def _read_file(path: Path) -> bytes:
    """The bytes of a regular file that is neither empty nor over protobuf's limit."""
    try:
        status = path.stat()
        _check_file(status, str(path))
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelFileError(str(path), "does not exist", hint="check the path") from None
    except OSError as error:
        raise ModelFileError(str(path), f"cannot be read ({error.strerror})") from None


def _check_file(status: os.stat_result, name: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ModelFileError(name, "must be an ONNX file, but it is a directory", hint="name the .onnx file in it")
    if not stat.S_ISREG(status.st_mode):
        raise ModelFileError(name, "must be a regular file")
    if status.st_size == 0:
        raise ModelFileError(name, "is empty", hint="was the download or the export interrupted?")
    if status.st_size > MAX_PROTOBUF_BYTES:
        raise ModelFileError(
            name, "must be smaller than 2 GiB, protobuf's limit", got=status.st_size, hint="use a smaller model"
        )


def _parse(data: bytes, name: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    if not data:
        raise ModelFileError(name, "is empty")
    if len(data) > MAX_PROTOBUF_BYTES:
        raise ModelFileError(name, "must be smaller than 2 GiB, protobuf's limit", got=len(data))
    try:
        proto.ParseFromString(data)
    except Exception:  # protobuf's own exception types differ from one of its implementations to the next
        hint = "check that it is a complete .onnx file"
        if data.startswith(b"PK"):
            hint = "it is a zip file; is it a tile program, which is compiled already?"
        raise ModelFileError(name, "is not an ONNX model, or it is truncated", hint=hint) from None
    return proto


def _serialise(proto: onnx.ModelProto, name: str) -> bytes:
    try:
        return bytes(proto.SerializeToString(deterministic=True))
    except Exception as error:
        raise ModelFileError(
            name, f"must stay under 2 GiB with its external data folded in ({error})", hint="use a smaller model"
        ) from None


def _check_header(proto: onnx.ModelProto, name: str) -> None:
    if not proto.HasField("graph"):
        raise ModelFileError(name, "holds no graph", hint="it is not an ONNX model, or it is truncated")
    if not proto.graph.output:
        raise ModelFileError(name, "has a graph without outputs", hint="it is not an ONNX model, or it is truncated")
    if proto.ir_version < 1:
        raise ModelFileError(name, "must state a positive IR version", got=proto.ir_version)
    if not proto.opset_import and proto.ir_version >= 3:
        raise ModelFileError(name, "names no operator set", hint="it is not an ONNX model, or it is truncated")


def _check_text(message: Any, name: str) -> None:
    """Every text in the model is valid UTF-8; protobuf hands any other out as bytes."""
    if isinstance(message, onnx.TensorProto):  # its other fields are data, and listing them would copy it
        fields = [(message.DESCRIPTOR.fields_by_name["name"], message.name)]
    else:
        fields = message.ListFields()
    for field, value in fields:
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        for item in [value] if isinstance(value, str | bytes) or hasattr(value, "DESCRIPTOR") else value:
            if isinstance(item, bytes):
                raise ModelFileError(f"{name}: {message.DESCRIPTOR.name}.{field.name}", "must be valid UTF-8", got=item)
            if not isinstance(item, str):
                _check_text(item, name)


# -- tensors ----------------------------------------------------------------------------------------------------------


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Every graph of a model, nested ones and those of functions included."""
    pending = [proto.graph, *(g for f in proto.functions for n in f.node for g in _subgraphs(n))]
    while pending:
        graph = pending.pop()
        yield graph
        pending.extend(g for node in graph.node for g in _subgraphs(node))


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in _graphs(proto):
        yield from graph.node
    for function in proto.functions:
        yield from function.node


def _check_tensors(proto: onnx.ModelProto, folder: Path | None, name: str) -> None:
    """Check every tensor, then fold the external ones in; nothing is read before all of them have been checked."""
    sparse = [s for graph in _graphs(proto) for s in graph.sparse_initializer]
    dense = [(t, f"initializer {t.name!r}") for graph in _graphs(proto) for t in graph.initializer]
    for node in _nodes(proto):
        where = f"a tensor of node {node.name!r} ({node.op_type})"
        for attribute in node.attribute:
            dense += [(attribute.t, where)] if attribute.HasField("t") else []
            dense += [(t, where) for t in attribute.tensors]
            sparse += [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            sparse += attribute.sparse_tensors
    for tensor in sparse:
        subject = f"{name}: sparse tensor {tensor.values.name!r}"
        _check_elements(tensor.dims, subject)
        for part in (tensor.values, tensor.indices):
            if has_external_data(part):
                hint = "store it as a dense tensor"
                raise ModelFileError(subject, "must not keep its data in another file", hint=hint)
            check_tensor(part, subject)
    external: list[tuple[onnx.TensorProto, str]] = []
    for dense_tensor, where in dense:
        subject = f"{name}: {where}"
        _check_elements(dense_tensor.dims, subject)
        if has_external_data(dense_tensor):
            external.append((dense_tensor, subject))
        else:
            check_tensor(dense_tensor, subject)
    if external:
        if folder is None:
            hint = "give the path of the model file, or load it with its external data"
            requirement = "keeps its data in another file, but the model was given without a folder"
            raise ModelFileError(external[0][1], requirement, hint=hint)
        fold_external_data(external, folder, MAX_PROTOBUF_BYTES - _byte_size(proto, name))


def _byte_size(proto: onnx.ModelProto, name: str) -> int:
    try:
        return int(proto.ByteSize())
    except Exception as error:
        raise ModelFileError(name, f"must stay under 2 GiB ({error})") from None


def _check_elements(dims: Iterable[int], subject: str) -> None:
    elements = 1
    for dim in dims:
        if dim < -1:
            raise ModelFileError(subject, "must have dimensions that are not negative", got=dim)
        elements *= max(dim, 1)
        if elements > MAX_TENSOR_ELEMENTS:
            raise ModelFileError(subject, "declares more than 2**34 elements", hint="the file is corrupt or hostile")


def _check_declared_shapes(graph: onnx.GraphProto, name: str) -> None:
    """Refuse inputs, outputs and intermediate values of an impossible static size (-1 means unknown)."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.HasField("tensor_type"):
            dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.HasField("dim_value")]
            _check_elements(dims, f"{name}: value {value.name!r}")


# -- names ------------------------------------------------------------------------------------------------------------


def _check_names(graph: onnx.GraphProto, outer: list[set[str]], name: str) -> None:
    """Every name is defined once in its graph and before it is used (in this graph or one around it)."""
    own: set[str] = set()
    for value in graph.input:
        _define(value.name, own, f"{name}: an input of graph {graph.name!r}")
    initializers: set[str] = set()
    for tensor_name in (*(t.name for t in graph.initializer), *(s.values.name for s in graph.sparse_initializer)):
        _define(tensor_name, initializers, f"{name}: an initializer of graph {graph.name!r}")
    own |= initializers
    _check_nodes(graph.node, [*outer, own], name)
    for output in graph.output:
        if not any(output.name in scope for scope in (own, *outer)):
            raise ModelFileError(f"{name}: graph output {output.name!r}", "is produced by no node")
    if not outer and len({o.name for o in graph.output}) != len(graph.output):
        raise ModelFileError(f"{name}: the graph", "must list each output once", got=[o.name for o in graph.output])


def _check_function_names(function: onnx.FunctionProto, name: str) -> None:
    own: set[str] = set()
    subject = f"{name}: function {function.name!r}"
    for value in function.input:
        _define(value, own, f"an input of {subject}")
    _check_nodes(function.node, [own], subject)
    for value in function.output:
        if value not in own:
            raise ModelFileError(f"{subject}: output {value!r}", "is produced by no node")


def _define(value: str, scope: set[str], subject: str) -> None:
    if not value:
        raise ModelFileError(subject, "must have a name")
    _check_length(value, subject)
    if value in scope:
        raise ModelFileError(subject, "must have a name of its own", got=value)
    scope.add(value)


def _check_length(value: str, subject: str) -> None:
    if len(value) > MAX_NAME:
        raise ModelFileError(subject, f"must have a name of at most {MAX_NAME} letters", got=value)


def _check_nodes(nodes: Sequence[onnx.NodeProto], scopes: list[set[str]], name: str) -> None:
    own = scopes[-1]
    for index, node in enumerate(nodes):
        subject = f"{name}: node {node.name or f'number {index}'!r} ({node.op_type})"
        _check_length(node.name, subject[:MAX_NAME])
        if not node.op_type:
            raise ModelFileError(subject, "must name an operator")
        for value in node.input:
            if value and not any(value in scope for scope in scopes):
                later = any(value in other.output for other in nodes)
                why = (
                    "before it is produced; the nodes are not in topological order"
                    if later
                    else "that nothing produces"
                )
                raise ModelFileError(subject, f"reads {value!r} {why}")
        for graph in _subgraphs(node):
            _check_names(graph, scopes, name)
        for value in node.output:
            if value:
                _define(value, own, f"an output of {subject}")


# -- operator sets ----------------------------------------------------------------------------------------------------


def _check_operator_sets(proto: onnx.ModelProto, name: str) -> None:
    """Refuse domains and versions that the installed onnxruntime does not have."""
    known = KNOWN_DOMAINS | {function.domain for function in proto.functions}
    for node in _nodes(proto):
        if node.domain not in known:
            raise ModelError(
                f"{name}: node {node.name!r} ({node.domain}.{node.op_type})",
                "uses an operator domain that xbarc does not know",
                hint="export the model with standard ONNX operators, or with its custom operators as model functions",
            )
    if proto.ir_version > _ALWAYS_READ_IR and not _runtime_reads(_ALWAYS_READ_OPSET, proto.ir_version):
        raise ModelError(
            name,
            f"has IR version {proto.ir_version}, newer than the installed onnxruntime reads",
            hint="update onnxruntime or export the model with an older IR version",
        )
    for imported in proto.opset_import:
        if imported.version < 1:
            raise ModelFileError(
                f"{name}: operator set {imported.domain!r}", "must have a positive version", got=imported.version
            )
        default = imported.domain in ("", "ai.onnx")
        if default and imported.version > _ALWAYS_READ_OPSET and not _runtime_reads(imported.version, _ALWAYS_READ_IR):
            raise ModelError(
                name,
                f"uses ONNX opset {imported.version}, newer than the installed onnxruntime runs",
                hint=f"update onnxruntime or export the model with opset {_newest_opset()} or lower",
            )


@cache
def _runtime_reads(opset: int, ir_version: int) -> bool:
    """Whether the installed onnxruntime opens a model of one Identity with these versions."""
    value = onnx.ValueInfoProto(name="x")
    value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    value.type.tensor_type.shape.dim.add().dim_value = 1
    model = onnx.ModelProto(ir_version=ir_version, opset_import=[onnx.OperatorSetIdProto(version=opset)])
    model.graph.name = "probe"
    model.graph.input.append(value)
    model.graph.output.add().CopyFrom(value)
    model.graph.output[0].name = "y"
    model.graph.node.append(onnx.NodeProto(op_type="Identity", input=["x"], output=["y"]))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # onnxruntime raises its own exception types, all derived from Exception
        return False
    return True


def _newest_opset() -> int:
    newest = onnx.defs.onnx_opset_version()
    return next(
        (v for v in range(newest, _ALWAYS_READ_OPSET, -1) if _runtime_reads(v, _ALWAYS_READ_IR)), _ALWAYS_READ_OPSET
    )
