"""Published claims: what each says (`claim.py`, read first), the rules that judge one (`rules.py`), the command that
applies them and writes the record (`judge.py`).
"""
