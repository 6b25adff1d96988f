"""Published claims: what a claim is (`claim.py`, read first), the rules that judge one (`rules.py`), and the command
that applies the rules, corrects their p values and writes the records (`judge.py`).
"""
