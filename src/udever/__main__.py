"""`python -m udever` is the `udever` command."""

from udever.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
