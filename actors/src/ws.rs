//! The WebSocket frames that this service sends (RFC 6455).

pub mod encoder;
pub mod frame;
