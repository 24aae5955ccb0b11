"""Data that users pass: arrays, files, image folders and built-in sets, checked against a model's inputs."""
