//! Reads a client's WebSocket frames (RFC 6455) into whole messages.
//!
//! The codec of actix-http refuses a long frame only when all of it has arrived, and returns fragments one by one.
//! So the length is read from the frame's header first, and the limit applies to the assembled message.

use std::time::{Duration, Instant};

use actix_http::ws::{Codec, Frame, Item, ProtocolError};
use actix_web::{error::PayloadError, web::Bytes};
use bytes::BytesMut;
use cc_executor_actors::{
    client::ClientName,
    close::{CloseCode, CloseReason},
    session::{liveness::BYTES_PER_SECOND, phase::Incoming},
};
use futures_util::{Stream, StreamExt, stream};
use tokio::{sync::oneshot, time::timeout_at};
use tokio_util::codec::Decoder;

use super::message_budget::{FREE_BYTES, MessageBudget, Reservation};

/// The largest number of frames in one message, because empty fragments never reach the limit of bytes.
const MAX_FRAGMENTS: usize = 1_024;

/// The longest header of a frame from a client, in bytes.
const MAX_HEADER: usize = 14;

/// The longest payload of a control frame, in bytes (RFC 6455 section 5.5).
const MAX_CONTROL: u64 = 125;

/// Decodes the frames of one client.
pub struct FrameReader<P> {
    payload: P,
    input: BytesMut,
    codec: Codec,
    limit: usize,
    message: Option<PartialMessage>,
    intake: Intake,
    memory: MessageMemory,
}

/// What bounds the long messages of a client.
pub struct Intake {
    /// The memory of all sessions.
    pub budget: MessageBudget,
    /// The client.
    pub client: ClientName,
    /// How long a long message may take to arrive, one second for each 64 KiB apart.
    pub patience: Duration,
}

/// A message whose last fragments have not arrived.
struct PartialMessage {
    text: BytesMut,
    n_fragments: usize,
}

/// The memory for the message that arrives.
enum MessageMemory {
    /// It is short, or has not begun.
    Free,
    /// It waits, and the client is not read.
    Waiting(oneshot::Receiver<Reservation>),
    /// It has its memory, and must have arrived at this time.
    Reserved { _reservation: Reservation, deadline: Instant },
}

/// The beginning of a frame, as far as it has arrived.
struct FrameHeader {
    is_fin: bool,
    opcode: u8,
    /// The length of the payload, if it has arrived.
    declared: Option<u64>,
    /// Whether the length has the shortest form.
    is_short: bool,
}

impl<P> FrameReader<P>
where
    P: Stream<Item = Result<Bytes, PayloadError>> + Unpin,
{
    /// A reader that accepts messages of at most this many bytes.
    pub fn new(payload: P, limit: usize, intake: Intake) -> Self {
        FrameReader {
            payload,
            input: BytesMut::new(),
            codec: Codec::new().max_size(limit),
            limit,
            message: None,
            intake,
            memory: MessageMemory::Free,
        }
    }

    /// The messages until the connection ends or a fault occurs. After a fault the rest is read and discarded, so that
    /// the close frame reaches a client that is still sending.
    pub fn into_stream(self) -> impl Stream<Item = Incoming>
    where
        P: 'static,
    {
        stream::unfold(Some((self, false)), |state| async {
            let (mut reader, faulty) = state?;
            if faulty {
                reader.discard().await;
                return Some((Incoming::Gone, None));
            }
            match reader.next().await {
                Incoming::Gone => Some((Incoming::Gone, None)),
                fault @ Incoming::Fault(_) => Some((fault, Some((reader, true)))),
                incoming => Some((incoming, Some((reader, false)))),
            }
        })
    }

    async fn discard(&mut self) {
        (self.input, self.message, self.memory) = (BytesMut::new(), None, MessageMemory::Free);
        while let Some(Ok(_)) = self.payload.next().await {}
    }

    async fn next(&mut self) -> Incoming {
        loop {
            match self.decode() {
                Ok(Some(incoming)) => return incoming,
                Ok(None) => {}
                Err(reason) => return Incoming::Fault(reason),
            }
            if let MessageMemory::Waiting(granted) = &mut self.memory {
                // The budget lives as long as this reader, so each reservation is granted.
                self.memory = granted.await.map_or(MessageMemory::Free, |granted| self.reserved(granted));
            } else if let (MessageMemory::Free, Some(needed)) = (&self.memory, self.needed_memory()) {
                match self.intake.budget.reserve(&self.intake.client, needed) {
                    Ok(granted) => self.memory = self.reserved(granted),
                    Err(waiting) => {
                        self.memory = MessageMemory::Waiting(waiting);
                        return Incoming::Held;
                    }
                }
            }
            let read = match self.memory {
                MessageMemory::Reserved { deadline, .. } => {
                    match timeout_at(deadline.into(), self.payload.next()).await {
                        Ok(read) => read,
                        Err(_) => return Incoming::Fault(self.too_slow()),
                    }
                }
                MessageMemory::Free | MessageMemory::Waiting(_) => self.payload.next().await,
            };
            match read {
                Some(Ok(bytes)) => self.input.extend_from_slice(&bytes),
                Some(Err(_)) | None => return Incoming::Gone,
            }
        }
    }

    /// The memory that the message at the front needs beyond what is free. A fragmented one may grow up to the limit.
    fn needed_memory(&self) -> Option<usize> {
        let FrameHeader { is_fin, opcode, declared, .. } = self.header()?;
        if is_control(opcode) {
            return None;
        }
        let so_far = self.message.as_ref().map_or(0, |message| message.text.len());
        let known = usize::try_from(declared?).ok()?.saturating_add(so_far);
        let is_whole = is_fin && self.message.is_none();
        (known > FREE_BYTES).then_some(if is_whole { known } else { self.limit })
    }

    fn reserved(&mut self, granted: Reservation) -> MessageMemory {
        let bytes = self.needed_memory().unwrap_or(0);
        // At once, because a buffer that grows in steps takes twice as much.
        self.input.reserve(bytes.saturating_sub(self.input.len()) + MAX_HEADER);
        let time = self.intake.patience + Duration::from_secs(bytes as u64 / BYTES_PER_SECOND);
        MessageMemory::Reserved { _reservation: granted, deadline: Instant::now() + time }
    }

    fn too_slow(&self) -> CloseReason {
        let patience = self.intake.patience.as_millis();
        let text = format!(
            "a message arrived too slowly: the limit is {patience} ms, and 1 s more for each {} KiB",
            BYTES_PER_SECOND / 1024
        );
        CloseReason::new(CloseCode::Lifeless, text)
    }

    /// Gives the memory of a message back that has been handed over.
    fn release(&mut self) {
        if self.message.is_none() && !matches!(self.memory, MessageMemory::Free) {
            self.memory = MessageMemory::Free;
            // The rest lies in the same large buffer.
            self.input = BytesMut::from(&self.input[..]);
        }
    }

    /// The next message in the bytes that were read.
    fn decode(&mut self) -> Result<Option<Incoming>, CloseReason> {
        loop {
            self.check_header()?;
            let Some(frame) = self.codec.decode(&mut self.input).map_err(|error| self.fault_of(&error))? else {
                if self.input.is_empty() {
                    // An idle session holds no buffer.
                    self.input = BytesMut::new();
                }
                return Ok(None);
            };
            if let Some(incoming) = self.take(frame)? {
                if matches!(incoming, Incoming::Text(_)) {
                    self.release();
                }
                return Ok(Some(incoming));
            }
        }
    }

    fn header(&self) -> Option<FrameHeader> {
        let &[first, second] = self.input.first_chunk::<2>()?;
        let declared = match second & 0x7f {
            126 => self.input.get(2..4).and_then(|len| len.try_into().ok()).map(|len| u16::from_be_bytes(len).into()),
            127 => self.input.get(2..10).and_then(|len| len.try_into().ok()).map(u64::from_be_bytes),
            short => Some(u64::from(short)),
        };
        let is_short = !matches!(second & 0x7f, 126 | 127);
        Some(FrameHeader { is_fin: first & 0x80 != 0, opcode: first & 0x0f, declared, is_short })
    }

    /// Checks the header at the front before the codec waits for the rest of the frame.
    fn check_header(&self) -> Result<(), CloseReason> {
        let Some(FrameHeader { is_fin, opcode, declared, is_short }) = self.header() else { return Ok(()) };
        if is_control(opcode) {
            if !is_fin {
                return Err(protocol("a control frame must not be fragmented"));
            }
            if !is_short || declared.is_some_and(|len| len > MAX_CONTROL) {
                return Err(protocol("a control frame holds at most 125 bytes"));
            }
            if opcode == 8 && declared == Some(1) {
                return Err(protocol("the body of a close frame must be empty or at least 2 bytes"));
            }
            return Ok(());
        }
        if opcode == 2 {
            return Err(unsupported());
        }
        let so_far = self.message.as_ref().map_or(0, |message| message.text.len());
        match declared {
            Some(len) if len > (self.limit - so_far) as u64 => Err(too_big(format!(
                "a message has at most {} bytes; this one would have {}",
                self.limit,
                len.saturating_add(so_far as u64)
            ))),
            _ => Ok(()),
        }
    }

    fn fault_of(&self, error: &ProtocolError) -> CloseReason {
        match error {
            ProtocolError::Overflow => too_big(format!("a message has at most {} bytes", self.limit)),
            error => protocol(&format!("a frame that WebSocket does not allow: {error}")),
        }
    }

    fn take(&mut self, frame: Frame) -> Result<Option<Incoming>, CloseReason> {
        match frame {
            Frame::Ping(payload) => Ok(Some(Incoming::Ping(payload))),
            Frame::Pong(payload) => Ok(Some(Incoming::Pong(payload))),
            Frame::Close(_) => Ok(Some(Incoming::Close)),
            Frame::Binary(_) | Frame::Continuation(Item::FirstBinary(_)) => Err(unsupported()),
            Frame::Text(_) if self.message.is_some() => {
                Err(protocol("a new message began before the last one was complete"))
            }
            Frame::Text(text) => text_message(&text).map(Some),
            Frame::Continuation(Item::FirstText(text)) => {
                self.message = Some(PartialMessage { text: BytesMut::from(&text[..]), n_fragments: 1 });
                Ok(None)
            }
            Frame::Continuation(Item::Continue(text)) => {
                self.assemble(&text)?;
                Ok(None)
            }
            Frame::Continuation(Item::Last(text)) => {
                self.assemble(&text)?;
                let message = self.message.take().ok_or_else(|| protocol(NO_FIRST_FRAME))?;
                text_message(&message.text).map(Some)
            }
        }
    }

    fn assemble(&mut self, text: &[u8]) -> Result<(), CloseReason> {
        let message = self.message.as_mut().ok_or_else(|| protocol(NO_FIRST_FRAME))?;
        message.n_fragments += 1;
        if message.n_fragments > MAX_FRAGMENTS {
            return Err(too_big(format!("a message comes in at most {MAX_FRAGMENTS} fragments")));
        }
        message.text.extend_from_slice(text);
        Ok(())
    }
}

const NO_FIRST_FRAME: &str = "a continuation frame came without a first frame";

fn is_control(opcode: u8) -> bool {
    opcode & 0x08 != 0
}

fn text_message(text: &[u8]) -> Result<Incoming, CloseReason> {
    match std::str::from_utf8(text) {
        Ok(text) => Ok(Incoming::Text(text.to_owned())),
        Err(error) => Err(CloseReason::new(
            CloseCode::NotUtf8,
            format!("a text message is not UTF-8 at byte {}", error.valid_up_to()),
        )),
    }
}

fn protocol(text: &str) -> CloseReason {
    CloseReason::new(CloseCode::Protocol, text)
}

fn too_big(text: String) -> CloseReason {
    CloseReason::new(CloseCode::TooBig, text)
}

fn unsupported() -> CloseReason {
    CloseReason::new(CloseCode::Unsupported, "messages are text: binary is not understood")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MASK: [u8; 4] = [1, 2, 3, 4];

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        match payload.len() {
            0..=125 => out.push(0x80 | payload.len() as u8),
            126..=0xffff => {
                out.push(0x80 | 126);
                out.extend((payload.len() as u16).to_be_bytes());
            }
            _ => {
                out.push(0x80 | 127);
                out.extend((payload.len() as u64).to_be_bytes());
            }
        }
        out.extend(MASK);
        out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        out
    }

    async fn read(pieces: Vec<Vec<u8>>, limit: usize) -> Vec<Incoming> {
        let payload = stream::iter(pieces.into_iter().map(|piece| Ok(Bytes::from(piece))));
        let budget = MessageBudget::new(1 << 20);
        let intake = Intake { budget, client: ClientName::anonymous(), patience: Duration::from_secs(60) };
        FrameReader::new(payload, limit, intake).into_stream().collect().await
    }

    fn read_all(wire: Vec<u8>, limit: usize) -> Vec<Incoming> {
        futures_util::FutureExt::now_or_never(read(vec![wire], limit)).expect("everything is there")
    }

    fn fault(wire: Vec<u8>) -> u16 {
        match read_all(wire, 1_000).first() {
            Some(Incoming::Fault(reason)) => reason.code.into(),
            other => panic!("not a fault: {other:?}"),
        }
    }

    #[test]
    fn each_breach_has_its_close_code() {
        let header = |first: u8, len: u64| {
            let mut out = vec![first, 0x80 | 127];
            out.extend(len.to_be_bytes());
            out
        };
        assert_eq!(fault(frame(0x82, b"x")), 1003, "binary");
        assert_eq!(fault(frame(0x02, b"x")), 1003, "the first fragment of a binary message");
        assert_eq!(fault(frame(0x81, b"\xff")), 1007, "not UTF-8");
        assert_eq!(
            fault([frame(0x01, b"\xe2\x82"), frame(0x80, b"")].concat()),
            1007,
            "a character that ends too early"
        );
        assert_eq!(fault(header(0x81, 1 << 30)), 1009, "1 GiB declared and nothing sent");
        assert_eq!(fault(header(0x81, u64::MAX)), 1009, "the longest length there is");
        assert_eq!(fault(frame(0x81, &[b'x'; 1_001])), 1009, "one byte over the limit");
        assert_eq!(
            fault([frame(0x01, &[b'x'; 600]), frame(0x80, &[b'x'; 401])].concat()),
            1009,
            "over the limit in two frames"
        );
        assert_eq!(
            fault([vec![frame(0x01, b"")], vec![frame(0x00, b""); 10_000]].concat().concat()),
            1009,
            "10 000 fragments"
        );
        assert_eq!(fault(vec![0x81, 0x01, b'x']), 1002, "not masked");
        assert_eq!(fault(frame(0xc1, b"x")), 1002, "a reserved bit");
        assert_eq!(fault(frame(0x83, b"x")), 1002, "a reserved opcode");
        assert_eq!(fault(frame(0x09, b"x")), 1002, "a fragmented ping");
        assert_eq!(fault(frame(0x89, &[b'x'; 126])), 1002, "a long ping");
        assert_eq!(fault(frame(0x80, b"x")), 1002, "a continuation of nothing");
        assert_eq!(fault([frame(0x01, b"x"), frame(0x81, b"y")].concat()), 1002, "a message inside a message");
        assert_eq!(fault(frame(0x88, b"x")), 1002, "a close frame of one byte");
    }

    proptest! {
        #[test]
        fn messages_come_whole_however_they_are_cut(
            messages in prop::collection::vec(("[a-zé😀]{0,300}", 1usize..5), 1..6),
            piece in 1usize..50,
        ) {
            let mut wire = Vec::new();
            for (text, n_fragments) in &messages {
                let size = text.len().div_ceil(*n_fragments).max(1);
                let fragments: Vec<_> = text.as_bytes().chunks(size).collect();
                let fragments = if fragments.is_empty() { vec![&b""[..]] } else { fragments };
                for (at, fragment) in fragments.iter().enumerate() {
                    let opcode = if at == 0 { 1 } else { 0 };
                    let fin = if at + 1 == fragments.len() { 0x80 } else { 0 };
                    wire.extend(frame(fin | opcode, fragment));
                    wire.extend(frame(0x89, b"ping"));
                }
            }
            let pieces = wire.chunks(piece).map(<[u8]>::to_vec).collect();
            let got = futures_util::FutureExt::now_or_never(read(pieces, 10_000)).unwrap();
            let texts: Vec<_> = got.iter().filter_map(|incoming| match incoming {
                Incoming::Text(text) => Some(text.clone()),
                _ => None,
            }).collect();
            prop_assert_eq!(texts, messages.into_iter().map(|(text, _)| text).collect::<Vec<_>>());
            prop_assert_eq!(got.last(), Some(&Incoming::Gone));
        }

        #[test]
        fn garbage_never_panics(wire in prop::collection::vec(any::<u8>(), 0..300)) {
            read_all(wire, 1_000);
        }
    }
}
