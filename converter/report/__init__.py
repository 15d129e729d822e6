"""The report of a conversion, which `converter.describe` makes, on the terminal and as a page."""
