"""``python -m stentor`` is the ``stentor`` command."""

from stentor.cli import main

if __name__ == "__main__":
    main()
