"""xbarc: compiles trained ONNX models onto resistive crossbar tiles and runs the result as the chip would."""
