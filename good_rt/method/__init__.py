"""The method GOOD (arXiv 2510.17131), each equation beside its code: from the noise schedule to the
p-value."""
