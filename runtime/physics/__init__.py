"""The physics of arrays and their circuits, as pure functions on arrays."""
