//! How the gateway closes a session: the close code and the text of the close frame.

/// Why a session was closed: the close code, and a text that a person can act on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CloseReason {
    /// The WebSocket close code.
    pub code: CloseCode,
    /// The text of the close frame.
    pub text: String,
}

impl CloseReason {
    /// A reason with its text.
    pub fn new(code: CloseCode, text: impl Into<String>) -> Self {
        CloseReason { code, text: text.into() }
    }
}

/// The close codes that this service sends (RFC 6455 section 7.4; 4408 is private use).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseCode {
    /// The client asked for it.
    Normal,
    /// The server goes away.
    GoingAway,
    /// The client broke the framing rules.
    Protocol,
    /// The client sent a binary message.
    Unsupported,
    /// A text message was not UTF-8.
    NotUtf8,
    /// The client broke a rule of this service.
    Policy,
    /// A message over the limit.
    TooBig,
    /// Our own fault.
    Internal,
    /// Too many sessions: try again.
    TryAgain,
    /// The client gives no sign of life, or accepts nothing.
    Lifeless,
}

impl From<CloseCode> for u16 {
    fn from(code: CloseCode) -> u16 {
        match code {
            CloseCode::Normal => 1000,
            CloseCode::GoingAway => 1001,
            CloseCode::Protocol => 1002,
            CloseCode::Unsupported => 1003,
            CloseCode::NotUtf8 => 1007,
            CloseCode::Policy => 1008,
            CloseCode::TooBig => 1009,
            CloseCode::Internal => 1011,
            CloseCode::TryAgain => 1013,
            CloseCode::Lifeless => 4408,
        }
    }
}
