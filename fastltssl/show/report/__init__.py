"""The report: finished runs as one HTML file that loads nothing."""
