//! Names to addresses: DNS by TTL, served stale during an outage.
