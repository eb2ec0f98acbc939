"""`python -m chaindock` is the command line."""

from chaindock.cli.main import main

if __name__ == "__main__":
    main()
