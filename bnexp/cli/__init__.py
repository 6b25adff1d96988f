"""What one types: commands, their arguments, composition by Hydra, help. Read `commands.py` first."""
