//! Wires the parts together, in the order they must start.
