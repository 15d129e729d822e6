"""The report of a conversion, which `converter.report.describe` makes, on the terminal and as a page."""
