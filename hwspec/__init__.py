"""The hardware as data: specs, units, presets, chips."""
