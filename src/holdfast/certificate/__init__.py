"""From a frozen plan to a certified or refused claim that anyone can recheck.

Signing (DSSE over the same body) and the tier of human labels have their place here once they exist; until
then `signatures` is empty and every claim is about the score of a named scorer.
"""
