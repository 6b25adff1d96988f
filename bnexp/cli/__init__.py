"""The command line: commands, their arguments, composition by Hydra, errors, help. Read `commands.py` first."""
