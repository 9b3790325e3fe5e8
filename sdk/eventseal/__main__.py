"""``python -m eventseal``, the command for a shell whose path lacks ``eventseal``."""

from eventseal.cli import main

if __name__ == "__main__":
    main()
