"""The command line as ``python -m scvi_tahoe``, where the program ``scvi-tahoe`` is not on the path."""

from scvi_tahoe.cli import main

if __name__ == "__main__":
    main()
