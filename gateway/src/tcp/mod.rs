//! Raw relays.
