"""The parts of the HTML report: its template, style and script, and the data that they show."""
