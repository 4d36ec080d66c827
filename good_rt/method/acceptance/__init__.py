"""Which generated images are kept: criteria of acceptance, one family a file.

A new one is a file here with a function that `criterion` enters, a setting in
`good_rt.config.settings.AcceptConfig`, and a line below.
"""

from good_rt.method.acceptance import balance, band, gap  # noqa: F401
from good_rt.method.acceptance.base import CRITERIA, Candidate, Kept, rejection

__all__ = ["CRITERIA", "Candidate", "Kept", "rejection"]
