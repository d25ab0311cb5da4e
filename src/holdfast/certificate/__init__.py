"""From a frozen plan to a signed or refused claim that anyone can recheck."""
