"""The accounts database's schema upgrades, run by `Store.migrate` through alembic."""
