"""The database of a coordinator: tables, and what is asked of them, by subject. It keeps; it decides nothing."""
