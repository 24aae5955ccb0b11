"""What pairs with failed devices can still hold (``docs/failures.md``); the mathematics is in `hwspec.reach`."""

from hwspec.reach import failed_share, reachable_interval, reachable_set

__all__ = ["failed_share", "reachable_interval", "reachable_set"]
