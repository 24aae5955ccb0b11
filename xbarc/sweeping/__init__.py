"""Sweeps: one question asked of many chips, specs and programs, on one machine or many."""
