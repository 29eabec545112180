"""Models for other programs, markers included, checked against ours."""
