"""Studies: what the project's functions compute, in figures and tables of the documentation."""
