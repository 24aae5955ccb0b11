"""Mutations of model and program files, each drawn from a generator: what `tests/fuzz.py` feeds to the command line."""

import hashlib
import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NUMBERS = (0, 1, -1, 2, 3, 7, 255, -128, 2**10, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, -(2**63))
FLOATS = (0.0, -1.0, 1e-38, 1e38, -1e38, float("nan"), float("inf"), float("-inf"), 0.5)
TEXTS = ("", "x", "image", "y", "../../etc/passwd", "a" * 5000, "\u0000", "ünï", "Conv", "Loop", "1")
OPERATORS = (
    "Relu",
    "Conv",
    "MatMul",
    "Gemm",
    "Loop",
    "If",
    "Scan",
    "Reshape",
    "LSTM",
    "NonZero",
    "Cast",
    "Split",
    "Nope",
)
DEPTHS = (10, 20, 30)
_DIGEST = 64

Generator = np.random.Generator


def pick(generator: Generator, options: Any) -> Any:
    """One of several options."""
    return options[int(generator.integers(len(options)))]


def mutate_bytes(data: bytes, generator: Generator) -> bytes:
    """Flip bits, or insert, delete, repeat, overwrite or cut off bytes."""
    content = bytearray(data)
    at = int(generator.integers(len(content))) if content else 0
    length = int(2 ** generator.integers(0, 8))
    kind = generator.integers(6)
    if kind == 0:
        for place in generator.integers(max(len(content), 1), size=int(generator.integers(1, 9))):
            content[int(place) % len(content)] ^= 1 << int(generator.integers(8))
    elif kind == 1:
        content[at:at] = generator.bytes(length)
    elif kind == 2:
        del content[at : at + length]
    elif kind == 3:
        content[at:at] = content[at : at + length]
    elif kind == 4:
        content[at : at + length] = pick(generator, (b"\xff", b"\x00", b"\x80")) * len(content[at : at + length])
    else:
        del content[at:]
    return bytes(content)


# -- models -----------------------------------------------------------------------------------------------------------


def mutate_model(data: bytes, generator: Generator) -> tuple[bytes, str]:
    """A mutated model, and what was done to it."""
    if generator.random() < 0.25:
        return mutate_bytes(data, generator), "bytes"
    if generator.random() < 0.03:
        return _deep(data, int(generator.integers(20, 2000)))
    model = onnx.ModelProto()
    model.ParseFromString(data)
    names = []
    for _ in range(int(generator.integers(1, 4))):
        change = _field if generator.random() < 0.5 else pick(generator, _MODEL_CHANGES)
        try:
            names.append(f"{change.__name__}:{change(model, generator) or ''}")
        except (TypeError, ValueError, IndexError, UnicodeError) as error:
            names.append(f"{change.__name__}:({type(error).__name__})")
    return model.SerializeToString(), ", ".join(names)


def _deep(data: bytes, depth: int) -> tuple[bytes, str]:
    """The model with an If in an If in an If …, deeper than protobuf writes: the bytes are put together by hand."""

    def part(number: int, content: bytes) -> bytes:
        size, length = b"", len(content)
        while length > 127:
            size, length = size + bytes([length % 128 + 128]), length // 128
        return bytes([number << 3 | 2]) + size + bytes([length]) + content

    graph = b""
    for _ in range(depth):
        attribute = part(1, b"then_branch") + part(6, graph) + bytes([20 << 3 & 127 | 128, 1, 5])
        graph = part(1, part(1, b"c") + part(2, b"d") + part(4, b"If") + part(5, attribute)) + part(2, b"deep")
    return data + part(7, graph), f"{depth} graphs deep"


def _messages(message: Any) -> list[Any]:
    found = [message]
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in [value] if hasattr(value, "ListFields") else value:
                found += _messages(item)
    return found


def _field(model: onnx.ModelProto, generator: Generator) -> str:
    """Change any field of any part: a value, an entry more or fewer, or none at all."""
    message = pick(generator, _messages(model))
    fields = message.ListFields() or [(field, None) for field in message.DESCRIPTOR.fields[:1]]
    field, value = pick(generator, fields)
    where = f"{message.DESCRIPTOR.name}.{field.name}"
    if value is None or generator.random() < 0.15:
        message.ClearField(field.name)
        return f"{where} cleared"
    if field.type == field.TYPE_MESSAGE:
        if hasattr(value, "ListFields"):
            return where
        at = int(generator.integers(len(value)))
        if generator.random() < 0.5:
            value.add().CopyFrom(value[at])
            return f"{where} doubled"
        del value[at]
        return f"{where} dropped"
    wrong = _value(field, generator)
    if isinstance(value, str | bytes | int | float):
        setattr(message, field.name, wrong)
    elif len(value) and generator.random() < 0.7:
        value[int(generator.integers(len(value)))] = wrong
    else:
        value.append(wrong)
    return f"{where}={str(wrong)[:30]!r}"


def _value(field: Any, generator: Generator) -> Any:
    if field.type == field.TYPE_STRING:
        return pick(generator, TEXTS)
    if field.type == field.TYPE_BYTES:
        return generator.bytes(int(generator.integers(40)))
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return pick(generator, FLOATS)
    if field.type == field.TYPE_ENUM:
        return pick(generator, [value.number for value in field.enum_type.values])
    number = pick(generator, NUMBERS)
    return number % 2**31 if field.type in (field.TYPE_INT32, field.TYPE_UINT32) else number


def _initializer_dims(model: onnx.ModelProto, generator: Generator) -> None:
    tensor = pick(generator, model.graph.initializer)
    tensor.dims[int(generator.integers(len(tensor.dims)))] = pick(generator, NUMBERS)


def _initializer_type(model: onnx.ModelProto, generator: Generator) -> None:
    tensor = pick(generator, model.graph.initializer)
    array = numpy_helper.to_array(tensor)
    kind = pick(generator, ("float16", "float64", "int64", "int32", "uint8", "bool", "complex64"))
    with np.errstate(invalid="ignore"):
        tensor.CopyFrom(numpy_helper.from_array(array.astype(kind), tensor.name))


def _float_initializer(model: onnx.ModelProto, generator: Generator) -> TensorProto:
    tensor: TensorProto = pick(generator, [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT])
    return tensor


def _initializer_values(model: onnx.ModelProto, generator: Generator) -> None:
    array = numpy_helper.to_array(tensor := _float_initializer(model, generator)).copy()
    array.reshape(-1)[int(generator.integers(array.size))] = pick(generator, FLOATS)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _initializer_reshaped(model: onnx.ModelProto, generator: Generator) -> None:
    tensor = _float_initializer(model, generator)
    array = numpy_helper.to_array(tensor)
    array = pick(generator, (array.reshape(-1), array[None], array.T, array[:0], array[..., None]))
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def _input_shape(model: onnx.ModelProto, generator: Generator) -> None:
    dims = pick(generator, model.graph.input).type.tensor_type.shape.dim
    pick(generator, dims).dim_value = pick(generator, NUMBERS)


def _input_type(model: onnx.ModelProto, generator: Generator) -> None:
    pick(generator, model.graph.input).type.tensor_type.elem_type = int(generator.integers(0, 26))


def _attribute(model: onnx.ModelProto, generator: Generator) -> None:
    node = pick(generator, [node for node in model.graph.node if node.attribute])
    attribute = pick(generator, node.attribute)
    value = pick(generator, (1, -1, 2**40, 0.5, "text", [0], [1, 2], [-1, 2**33], [], [1.5], ["a"], np.zeros(2)))
    value = numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
    attribute.CopyFrom(helper.make_attribute(attribute.name, value, attr_type=None if value != [] else 7))


def _attribute_numbers(model: onnx.ModelProto, generator: Generator) -> None:
    attribute = pick(generator, [a for node in model.graph.node for a in node.attribute if a.ints])
    attribute.ints[int(generator.integers(len(attribute.ints)))] = pick(generator, NUMBERS)


def _dangling(model: onnx.ModelProto, generator: Generator) -> None:
    node = pick(generator, model.graph.node)
    node.input[int(generator.integers(len(node.input)))] = "nowhere"


def _rewired(model: onnx.ModelProto, generator: Generator) -> None:
    node, other = pick(generator, model.graph.node), pick(generator, model.graph.node)
    node.input[int(generator.integers(len(node.input)))] = pick(generator, list(other.output) + list(other.input))


def _cycle(model: onnx.ModelProto, _: Generator) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def _operator(model: onnx.ModelProto, generator: Generator) -> str:
    node = pick(generator, model.graph.node)
    node.op_type = pick(generator, OPERATORS)
    return str(node.op_type)


def _inserted(model: onnx.ModelProto, nodes: list[onnx.NodeProto], last: str) -> None:
    """Put nodes before the first one, which then reads what the last of them makes."""
    model.graph.node[0].input[0] = last
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])


def _generator_node(model: onnx.ModelProto, generator: Generator) -> str:
    size = pick(generator, (2**20, 2**25, 2**33, 2**62, -5))
    shape = numpy_helper.from_array(np.array([size], np.int64), "hostile.size")
    one = numpy_helper.from_array(np.array(1, np.int64), "hostile.one")
    zero = numpy_helper.from_array(np.array(0, np.int64), "hostile.zero")
    limit = numpy_helper.from_array(np.array(size, np.int64), "hostile.limit")
    model.graph.initializer.extend([shape, one, zero, limit])
    source = model.graph.input[0].name
    kind = pick(generator, ("ConstantOfShape", "Expand", "Range", "Tile", "Pad", "OneHot"))
    if kind == "ConstantOfShape":
        nodes = [helper.make_node(kind, ["hostile.size"], ["h0"])]
    elif kind == "Expand":
        nodes = [
            helper.make_node("ReduceSum", [source], ["hs"], keepdims=0),
            helper.make_node(kind, ["hs", "hostile.size"], ["h0"]),
        ]
    elif kind == "Range":
        ends = ["hostile.zero", "hostile.limit", "hostile.one"]
        nodes = [helper.make_node(kind, ends, ["hr"]), helper.make_node("Cast", ["hr"], ["h0"], to=TensorProto.FLOAT)]
    elif kind == "OneHot":
        values = numpy_helper.from_array(np.array([0, 1], np.float32), "hostile.values")
        model.graph.initializer.append(values)
        nodes = [helper.make_node(kind, ["hostile.size", "hostile.limit", "hostile.values"], ["h0"])]
    else:
        flat = [helper.make_node("ReduceSum", [source], ["hs"], keepdims=0)]
        axes = numpy_helper.from_array(np.array([0], np.int64), "hostile.axes")
        model.graph.initializer.append(axes)
        flat.append(helper.make_node("Unsqueeze", ["hs", "hostile.axes"], ["hu"]))
        pads = numpy_helper.from_array(np.array([0, size], np.int64), "hostile.pads")
        model.graph.initializer.append(pads)
        how = "hostile.size" if kind == "Tile" else "hostile.pads"
        nodes = [*flat, helper.make_node(kind, ["hu", how], ["h0"])]
    nodes += [
        helper.make_node("ReduceMean", ["h0"], ["h1"], keepdims=0),
        helper.make_node("Add", [source, "h1"], ["h2"]),
    ]
    _inserted(model, nodes, "h2")
    return f"{kind} {size}"


def _endless_loop(model: onnx.ModelProto, generator: Generator) -> None:
    source = model.graph.input[0].name
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Identity", ["v"], ["v2"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v2", TensorProto.FLOAT, None),
        ],
    )
    constants = [np.array(2**62, np.int64), np.array(True), np.array(0.0, np.float32)]
    names = ["loop.m", "loop.c", "loop.z"]
    model.graph.initializer.extend(map(numpy_helper.from_array, constants, names))
    known = generator.random() < 0.5
    loop = helper.make_node("Loop", ["loop.m", "loop.c", "loop.z" if known else source], ["loop.v"], body=body)
    nodes = [loop, helper.make_node("ReduceMean", ["loop.v"], ["loop.s"], keepdims=0)]
    _inserted(model, [*nodes, helper.make_node("Add", [source, "loop.s"], ["loop.y"])], "loop.y")


def _nested_ifs(model: onnx.ModelProto, generator: Generator) -> str:
    source, depth = model.graph.input[0].name, pick(generator, DEPTHS)
    known = generator.random() < 0.5
    inner = [helper.make_node("Relu", [source], ["d0"])]
    out = helper.make_tensor_value_info
    for level in range(1, depth):
        graph = helper.make_graph(inner, f"g{level}", [], [out(f"d{level - 1}", TensorProto.FLOAT, None)])
        inner = [helper.make_node("If", ["if.c"], [f"d{level}"], then_branch=graph, else_branch=_other(source, level))]
    nodes = []
    if known:
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "if.c"))
    else:
        nodes = [
            helper.make_node("ReduceMax", [source], ["if.m"], keepdims=0),
            helper.make_node("Cast", ["if.m"], ["if.c"], to=9),
        ]
    _inserted(model, [*nodes, *inner], f"d{depth - 1}")
    return str(depth)


def _other(source: str, level: int) -> onnx.GraphProto:
    out = helper.make_tensor_value_info(f"e{level}", TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Neg", [source], [f"e{level}"])], f"o{level}", [], [out])


def _external(model: onnx.ModelProto, generator: Generator) -> None:
    tensor = pick(generator, model.graph.initializer)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=pick(generator, ("/etc/passwd", "../x", "m.onnx", "", "none.bin")))
    tensor.external_data.add(key="offset", value=pick(generator, ("0", "-1", "9" * 30, "x")))


def _opset(model: onnx.ModelProto, generator: Generator) -> None:
    model.opset_import[0].version = pick(generator, (0, 1, 6, 7, 11, 13, 21, 26, 28, 2**40, -3))


def _recursive_function(model: onnx.ModelProto, _: Generator) -> None:
    model.opset_import.add(domain="mine", version=1)
    calls = [helper.make_node("F", ["a"], ["b"], domain="mine")]
    model.functions.append(helper.make_function("mine", "F", ["a"], ["b"], calls, list(model.opset_import)))
    _inserted(model, [helper.make_node("F", [model.graph.input[0].name], ["f.y"], domain="mine")], "f.y")


def _shuffled_nodes(model: onnx.ModelProto, generator: Generator) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes[int(n)] for n in generator.permutation(len(nodes)))


_MODEL_CHANGES: tuple[Callable[[onnx.ModelProto, Generator], object], ...] = (
    _initializer_dims,
    _initializer_type,
    _initializer_values,
    _initializer_reshaped,
    _input_shape,
    _input_type,
    _attribute,
    _attribute_numbers,
    _dangling,
    _rewired,
    _cycle,
    _operator,
    _generator_node,
    _endless_loop,
    _nested_ifs,
    _external,
    _opset,
    _recursive_function,
    _shuffled_nodes,
)


# -- programs ---------------------------------------------------------------------------------------------------------


def members_of(data: bytes) -> dict[str, bytes]:
    """The members of a program file but its manifest."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name != "manifest.json"}


def seal(members: list[tuple[str, bytes]], *, hashes: dict[str, str] | None = None, compress: bool = False) -> bytes:
    """A program file of these members with the hashes that they have, or with others."""
    found = {name: hashlib.sha256(content).hexdigest() for name, content in members}
    manifest = json.dumps({"sha256": found if hashes is None else hashes}).encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED) as archive:
        for name, content in (("manifest.json", manifest), *members):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, archive.compression)
        archive.comment = b"0" * _DIGEST
    body = stream.getvalue()[:-_DIGEST]
    return body + hashlib.sha256(body).hexdigest().encode()


def mutate_program(data: bytes, generator: Generator) -> tuple[bytes, str, bool]:
    """A mutated program, what was done to it, and whether its hashes were made to fit."""
    kind = generator.random()
    if kind < 0.2:
        return mutate_bytes(data, generator), "bytes", False
    if kind < 0.35:
        return (*_mutate_zip(data, generator), False)
    members = members_of(data)
    name = _member(members, generator)
    content, how = _mutate_member(name, members[name], generator)
    if content == members[name]:
        return data, "nothing", False
    sealed = generator.random() < 0.85
    hashes = None if sealed else {key: hashlib.sha256(value).hexdigest() for key, value in members.items()}
    members[name] = content
    return seal(list(members.items()), hashes=hashes), f"{name}: {how}", sealed


def _member(members: dict[str, bytes], generator: Generator) -> str:
    """Mostly the tables and tiles: they say what runs."""
    if generator.random() < 0.6:
        return str(pick(generator, ("program.json", "program.json", "tiles.safetensors")))
    return str(pick(generator, sorted(members)))


def _mutate_zip(data: bytes, generator: Generator) -> tuple[bytes, str]:
    members = list(members_of(data).items())
    at = int(generator.integers(len(members)))
    kind = pick(generator, ("drop", "double", "rename", "extra", "compress", "swap", "prefix", "suffix"))
    if kind == "drop":
        del members[at]
    elif kind == "double":
        members.append(members[at])
    elif kind == "rename":
        members[at] = (
            pick(generator, ("../x", "/x", "segments/../x.onnx", "", "tiles", "segments/new.onnx")),
            members[at][1],
        )
    elif kind == "extra":
        members.append((pick(generator, ("extra.txt", "segments/more.onnx", "../../x")), b"text"))
    elif kind == "swap":
        other = (at + 1) % len(members)
        members[at], members[other] = (members[at][0], members[other][1]), (members[other][0], members[at][1])
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in members_of(data).items()}
        return seal(members, hashes=hashes), f"zip {kind}"
    elif kind == "prefix":
        return b"MZ" * 20 + data, f"zip {kind}"
    elif kind == "suffix":
        return data + b"more", f"zip {kind}"
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in members_of(data).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a name twice
        return seal(members, hashes=hashes, compress=kind == "compress"), f"zip {kind}"


def _mutate_member(name: str, content: bytes, generator: Generator) -> tuple[bytes, str]:
    if generator.random() < 0.1:
        return mutate_bytes(content, generator), "bytes"
    if name.endswith(".json"):
        value = json.loads(content)
        how = _json_edit(value, generator)
        return json.dumps(value).encode(), how
    if name.endswith(".safetensors"):
        return _safetensors_edit(content, generator)
    return mutate_model(content, generator)


def _json_edit(value: Any, generator: Generator) -> str:
    """Change one value somewhere in a JSON document."""
    path = ""
    while True:
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return f"{path} left alone"
        key = pick(generator, keys)
        path += f".{key}"
        child = value[key]
        if isinstance(child, dict | list) and child and generator.random() < 0.93:
            value = child
            continue
        return f"{path} {_json_change(value, key, child, generator)}"


def _json_change(value: Any, key: Any, child: Any, generator: Generator) -> str:
    kind = generator.random()
    if kind < 0.1:
        del value[key]
        return "dropped"
    if kind < 0.2 and isinstance(value, list):
        value.append(child)
        return "doubled"
    if kind < 0.3:
        value[key] = pick(generator, (None, [], {}, "text", -1, 1e300, 10**30, True, [[[[]]]]))
    elif isinstance(child, bool):
        value[key] = not child
    elif isinstance(child, int):
        value[key] = pick(generator, (*NUMBERS, child + 1, child - 1, child * 2))
    elif isinstance(child, float):
        value[key] = pick(generator, (*FLOATS, child * 2, child / 2, child * 1.01, -child))
    elif isinstance(child, str):
        value[key] = pick(generator, (*TEXTS, child + "x", "both", "+", "none", "float64", "vectors", "bipolar"))
    else:
        value[key] = pick(generator, (None, 0, "x"))
    return f"= {str(value[key])[:40]}"


def _safetensors_edit(content: bytes, generator: Generator) -> tuple[bytes, str]:
    size = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])
    if generator.random() < 0.35:
        if generator.random() < 0.2:
            size = pick(generator, (0, 7, 2**63, 2**32, len(content) * 2))
            return struct.pack("<Q", size) + content[8:], f"header size {size}"
        how = _json_edit(header, generator)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + bytes(body), how
    name = pick(generator, sorted(name for name in header if name != "__metadata__"))
    start, stop = header[name]["data_offsets"]
    if start == stop:
        return content, f"{name} is empty"
    at = start + int(generator.integers(stop - start))
    body[at] ^= 1 << int(generator.integers(8))
    return content[: 8 + size] + bytes(body), f"bit of {name}"
