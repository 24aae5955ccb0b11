"""The front end reads what onnxruntime runs, and refuses hostile or broken files with one clear message."""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from compiler.frontend import SourceModel, load_model
from hwspec.errors import ModelError, ModelFileError

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def make_model(
    nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto], opset: int = 17, ir_version: int = 8
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def matmul() -> onnx.ModelProto:
    return make_model([helper.make_node("MatMul", ["x", "w"], ["y"])], [numpy_helper.from_array(WEIGHT, "w")])


def external(model: onnx.ModelProto, **entries: str) -> onnx.ModelProto:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return model


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def test_path_bytes_and_proto_give_the_same_model(tmp_path: Path) -> None:
    path = save(matmul(), tmp_path / "tiny.onnx")
    models = [load_model(path), load_model(str(path)), load_model(path.read_bytes()), load_model(matmul())]
    assert {model.sha256 for model in models} == {
        hashlib.sha256(matmul().SerializeToString(deterministic=True)).hexdigest()
    }
    assert [model.name for model in models] == ["tiny", "tiny", "g", "g"]


def test_loading_a_proto_neither_keeps_nor_changes_it() -> None:
    model = matmul()
    loaded = load_model(model)
    model.graph.node[0].op_type = "Add"
    assert loaded.proto.graph.node[0].op_type == "MatMul"


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda _: None, "does not exist"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.write_bytes(b"not an onnx model at all"), "not an ONNX model"),
        (lambda path: path.write_bytes(onnx.ModelProto(ir_version=8).SerializeToString()), "no graph"),
        (lambda path: os.mkfifo(path), "regular file"),
    ],
)
def test_a_file_that_is_no_model_is_refused_with_its_reason(
    tmp_path: Path, prepare: Callable[[Path], object], words: str
) -> None:
    prepare(tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match=words) as caught:
        load_model(tmp_path / "m.onnx")
    assert caught.value.exit_code == 2


def test_a_file_over_two_gib_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(ModelFileError, match="2 GiB"):
        load_model(path)


def test_every_truncation_is_refused_or_leaves_a_complete_graph() -> None:
    data = matmul().SerializeToString()
    for length in range(len(data)):
        with pytest.raises(ModelFileError):
            load_model(data[:length])


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_changed_byte_is_refused_cleanly_or_read(position: int, value: int) -> None:
    data = bytearray(matmul().SerializeToString())
    data[position % len(data)] = value
    with contextlib.suppress(ModelError):
        assert isinstance(load_model(bytes(data)), SourceModel)


# -- external data --------------------------------------------------------------------------------------------------


def test_external_data_is_folded_in(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(b"\0" * 16 + WEIGHT.tobytes())
    path = save(external(matmul(), location="data/w.bin", offset="16", length="48"), tmp_path / "m.onnx")
    loaded = load_model(path)
    assert loaded.sha256 == load_model(matmul()).sha256, "as if the data had always been inside"
    np.testing.assert_array_equal(numpy_helper.to_array(loaded.proto.graph.initializer[0]), WEIGHT)


def test_external_data_of_a_constant_in_a_branch_is_folded_in(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    constant = helper.make_node("Constant", [], ["inner"], value=numpy_helper.from_array(WEIGHT, "v"))
    tensor = constant.attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT, [3, 4])])
    nodes = [
        helper.make_node("If", ["c"], ["w"], then_branch=branch, else_branch=branch),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    loaded = load_model(save(make_model(nodes, [numpy_helper.from_array(np.array(True), "c")]), tmp_path / "m.onnx"))
    for attribute in loaded.proto.graph.node[0].attribute:
        np.testing.assert_array_equal(numpy_helper.to_array(attribute.g.node[0].attribute[0].t), WEIGHT)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "/etc/hostname"}, "relative"),
        ({"location": "C:\\secret"}, "relative"),
        ({"location": "../outside.bin"}, r"without '\.\.'"),
        ({"location": "data/../../outside.bin"}, r"without '\.\.'"),
        ({"location": "..\\outside.bin"}, r"without '\.\.'"),
        ({"location": ""}, "relative"),
        ({}, "relative"),
        ({"location": "link.bin"}, "inside the model's folder"),
        ({"location": "linked/outside.bin"}, "inside the model's folder"),
        ({"location": "data"}, "regular file"),
        ({"location": "absent.bin"}, "does not exist"),
        ({"location": "w.bin", "offset": "1"}, "has only 48"),
        ({"location": "w.bin", "offset": "9" * 19}, "has only 48"),
        ({"location": "w.bin", "offset": "9" * 400}, "whole number"),
        ({"location": "w.bin", "offset": "-4"}, "whole number"),
        ({"location": "w.bin", "length": "-48"}, "whole number"),
        ({"location": "w.bin", "length": "47"}, "48 bytes"),
        ({"location": "w.bin", "length": "4800"}, "48 bytes"),
    ],
)
def test_external_data_attacks_are_refused(tmp_path: Path, entries: dict[str, str], words: str) -> None:
    outside = tmp_path / "outside.bin"
    outside.write_bytes(WEIGHT.tobytes())
    folder = tmp_path / "model"
    (folder / "data").mkdir(parents=True)
    (folder / "w.bin").write_bytes(WEIGHT.tobytes())
    (folder / "link.bin").symlink_to(outside)
    (folder / "linked").symlink_to(tmp_path)
    with pytest.raises(ModelFileError, match=words):
        load_model(save(external(matmul(), **entries), folder / "m.onnx"))


def test_a_huge_external_tensor_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    model = external(matmul(), location="w.bin")
    model.graph.initializer[0].dims[:] = [2**17, 2**16]
    with pytest.raises(ModelFileError, match="has only 48"):
        load_model(save(model, tmp_path / "m.onnx"))


def test_external_data_without_a_folder_is_refused() -> None:
    with pytest.raises(ModelFileError, match="without a folder"):
        load_model(external(matmul(), location="w.bin"))
    with pytest.raises(ModelFileError, match="without a folder"):
        load_model(external(matmul(), location="w.bin").SerializeToString())


# -- tensors, shapes, names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.dims.append(2), "must hold 96 bytes"),
        (lambda t: t.dims.__setitem__(0, -3), "not negative"),
        (lambda t: t.dims.__setitem__(0, 2**62), "elements"),
        (lambda t: t.dims.__setitem__(0, 0), "must hold 0 bytes"),
        (lambda t: setattr(t, "data_type", 99), "known data type"),
        (lambda t: setattr(t, "data_type", 0), "known data type"),
        (lambda t: setattr(t, "raw_data", t.raw_data[:-1]), "must hold 48 bytes"),
        (lambda t: t.ClearField("raw_data"), "must hold 12 entries of float_data"),
        (lambda t: setattr(t, "name", ""), "must have a name"),
    ],
)
def test_an_initializer_holds_what_it_declares(change: Callable[[onnx.TensorProto], object], words: str) -> None:
    model = matmul()
    change(model.graph.initializer[0])
    with pytest.raises(ModelFileError, match=words):
        load_model(model)


@pytest.mark.parametrize("dtype", sorted(set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}))
def test_every_tensor_type_that_onnx_writes_is_read(dtype: int) -> None:
    if dtype == TensorProto.STRING:
        tensor = numpy_helper.from_array(np.array(["a", "b", "c"], dtype=object), "t")
    else:
        tensor = helper.make_tensor("t", dtype, [3], [1, 0, 1])
    model = matmul()
    model.graph.initializer.append(tensor)
    assert load_model(model).proto.graph.initializer[1] == tensor


def test_absurd_declared_shapes_are_refused() -> None:
    for dims, words in (([2**20, 2**20], "elements"), ([-2], "not negative")):
        model = matmul()
        model.graph.value_info.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, dims))
        with pytest.raises(ModelFileError, match=words):
            load_model(model)
    model = matmul()
    model.graph.value_info.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, [-1, 0, "?"]))
    load_model(model)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([("Relu", "later", "y"), ("MatMul", "x w", "later")], "topological order"),
        ([("Relu", "nowhere", "y")], "nothing produces"),
        ([("Relu", "x", "y"), ("Relu", "x", "y")], "name of its own"),
        ([("Relu", "x", "w"), ("Relu", "w", "y")], "name of its own"),
        ([("Relu", "x", "z")], "produced by no node"),
        ([("", "x", "y")], "operator"),
    ],
)
def test_names_are_defined_once_and_before_use(nodes: list[tuple[str, str, str]], words: str) -> None:
    protos = [helper.make_node(op, inputs.split(), outputs.split()) for op, inputs, outputs in nodes]
    with pytest.raises(ModelFileError, match=words):
        load_model(make_model(protos, [numpy_helper.from_array(WEIGHT, "w")]))


def test_names_are_text() -> None:
    data = make_model([helper.make_node("Relu", ["x"], ["y"], name="AAAA")], []).SerializeToString()
    for name in (b"AAAA", b"Relu"):
        with pytest.raises(ModelFileError, match="UTF-8"):
            load_model(data.replace(name, b"A\xffAA"))


def test_two_initializers_of_one_name_are_refused() -> None:
    model = matmul()
    model.graph.initializer.append(model.graph.initializer[0])
    with pytest.raises(ModelFileError, match="name of its own"):
        load_model(model)


# -- operator sets --------------------------------------------------------------------------------------------------


def test_an_unknown_domain_is_not_supported_but_a_function_of_the_model_is() -> None:
    model = make_model([helper.make_node("Twice", ["x"], ["y"], domain="mine")], [])
    model.opset_import.append(helper.make_opsetid("mine", 1))
    with pytest.raises(ModelError, match="domain") as caught:
        load_model(model)
    assert caught.value.exit_code == 3
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    model.functions.append(helper.make_function("mine", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    load_model(model)


def test_an_opset_or_ir_version_from_the_future_is_not_supported() -> None:
    for opset, ir_version, words in ((99, 8, "opset 99"), (17, 99, "IR version 99")):
        with pytest.raises(ModelError, match=words) as caught:
            load_model(make_model([helper.make_node("Relu", ["x"], ["y"])], [], opset, ir_version))
        assert caught.value.exit_code == 3
