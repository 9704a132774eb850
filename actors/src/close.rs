//! Types only: codes and reasons of close frames. `session::phase` chooses, `session::actor` closes.

/// Why a session was closed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CloseReason {
    /// The WebSocket close code.
    pub code: CloseCode,
    /// The reason for people: what happened, and what to do next.
    pub text: String,
}

impl CloseReason {
    /// A reason with its text.
    pub fn new(code: CloseCode, text: impl Into<String>) -> Self {
        CloseReason { code, text: text.into() }
    }
}

/// The close codes of this service (RFC 6455 section 7.4; 4408 is in the range for private use).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum CloseCode {
    /// The client closed the session.
    Normal = 1000,
    /// The service is shutting down.
    GoingAway = 1001,
    /// The client broke the framing rules.
    Protocol = 1002,
    /// The client sent a binary message.
    Unsupported = 1003,
    /// A text message was not UTF-8.
    NotUtf8 = 1007,
    /// The client broke a rule of this service.
    Policy = 1008,
    /// A message was longer than the limit.
    TooBig = 1009,
    /// A fault of the service.
    Internal = 1011,
    /// There are too many sessions: try again.
    TryAgain = 1013,
    /// The client does not answer or does not read.
    Lifeless = 4408,
}

impl From<CloseCode> for u16 {
    fn from(code: CloseCode) -> u16 {
        code as u16
    }
}
