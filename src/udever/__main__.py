"""`python -m udever` is the `udever` command."""

from udever.cli import run

if __name__ == "__main__":
    run()
