"""Revisions of the database's tables, by Alembic: the only way in which a table is made or changed."""
