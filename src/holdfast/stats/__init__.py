"""Numbers with their uncertainty: numpy and scipy only, so that a certificate is checked on a laptop."""
