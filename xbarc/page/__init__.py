"""The report of a program as one HTML page that needs nothing else: a room for each section."""
