"""Published claims: the rules that decide them, their verdicts, and the record. Read `claim.py` first."""
