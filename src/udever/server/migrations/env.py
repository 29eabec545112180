"""Alembic's way in: it runs this file, on the connection and in the transaction that `Store.migrate` hands over.

To write the next migration, copy the last file in versions/ and raise HEAD in store.py.
"""

from alembic import context

from udever.server.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
