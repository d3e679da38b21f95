//! The published messages: frozen, and safe against hostile bytes.

mod frozen;
mod hostile;
