"""How anything is read from and written to disk.

In: paths and content. Out: files that are whole or not there, locks, and content that was checked against a schema.
"""
