"""``python -m eventseal``: the command, where its program is not on the path."""

from eventseal.cli import main

if __name__ == "__main__":
    main()
