#!/bin/sh
# `make demo`: compile a trained model onto 128x128 tiles, verify it, measure it, run it, and show the program.
set -eu
cd "$(dirname "$0")/.."
out=demo-out
mkdir -p "$out"
step() { printf '\n$ %s\n' "$*"; "$@"; }

step xbarc compile models/digits-cnn/model.onnx --spec rram-128 --calib digits --split train -o "$out/digits.xbar"
step xbarc verify "$out/digits.xbar" --data digits
step xbarc eval "$out/digits.xbar" --data digits --by-layer --chips 0
step xbarc eval "$out/digits.xbar" --data digits --chips 4 --seed 1
step xbarc run "$out/digits.xbar" --data digits --limit 8 -o "$out/outputs.npz"
printf '\n$ xbarc inspect %s --listing\n' "$out/digits.xbar"
xbarc inspect "$out/digits.xbar" --listing | sed -n '/^loop/,$p'
printf '\nThe program is %s. Compile your own: xbarc compile model.onnx --calib data.npz\n' "$out/digits.xbar"
