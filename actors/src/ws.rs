//! WebSocket frames (RFC 6455), as far as this service writes them itself.

pub mod encoder;
pub mod frame;
