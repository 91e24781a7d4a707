"""Reading and writing files safely: atomic writes, locks, versions, schemas, and files from untrusted sources.

In: paths and content. Out: files that are complete or absent, and content that was validated against a schema.
"""
