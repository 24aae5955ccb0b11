"""The tile program, and the engines that run it."""
