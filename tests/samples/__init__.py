"""Exchanges and pages of Braze and SessionM, as files.

- `000_…`: Braze's partner page on SessionM, with the campaign payload, the tag `curl` and the
  Connected Content snippet.
- `003_…`: SessionM's documentation of the Tags API.
"""

from pathlib import Path

_HERE = Path(__file__).parent
BRAZE_GUIDE = _HERE / "000_89871c874eea678a.txt"
TAGS_API = _HERE / "003_a513d010f1c3d9e8.txt"
